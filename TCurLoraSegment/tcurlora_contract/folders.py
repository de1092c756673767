"""Where this program keeps the user's data."""

from __future__ import annotations

import os
import sys
from pathlib import Path

HOME_VARIABLE = "TCURLORA_HOME"
"""Environment variable that names another folder."""


def data_folder() -> Path:
    """Return the folder for this program's data: `TCURLORA_HOME`, or else where the platform keeps such things."""
    home = os.environ.get(HOME_VARIABLE)
    if home:
        return Path(home)
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return base / "TCurLoraSegment"


def adapters_folder() -> Path:
    """Return the folder that holds one folder for each adapter; it may not exist yet."""
    return data_folder() / "adapters"


def models_folder() -> Path:
    """Return the folder of downloaded and added base models, one folder each; it may not exist yet."""
    return data_folder() / "models"


def jobs_folder() -> Path:
    """Return the folder of the panel's jobs, one folder each; it may not exist yet."""
    return data_folder() / "jobs"
