"""What a report of a fault needs: versions and the log, free of names and paths."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

LINES = 200
"""Lines of the log that are taken, from its end."""

_PATH = re.compile(
    r"(?:[A-Za-z]:\\|\\\\|(?<![\w.])/)(?:[^\s'\":,;()<>|]+[ ]?(?=[^\s'\":,;()<>|]*[\\/]))*[^\s'\":,;()<>|]*"
)


def compose(slicer_version: str, items: Sequence[Mapping[str, Any]], log: str, names: Iterable[str]) -> str:
    """Put together the text of a report.

    Args:
        slicer_version: of the program that runs the module.
        items: what the engine's `doctor` has found.
        log: of the last run.
        names: of nodes and people, which must not be in it.
    """
    lines = [f"Slicer {slicer_version}, {platform.system()} {platform.release()}, {platform.machine()}"]
    lines += [f"{item['name']}: {item['value']}{'' if item['ok'] else ' (!)'}" for item in items]
    tail = log.splitlines()[-LINES:]
    text = "\n".join([*lines, "", "Log:", *(tail or ["(none)"])])
    return scrubbed(text, names)


def scrubbed(text: str, names: Iterable[str] = ()) -> str:
    """Replace paths and names in a text.

    Args:
        text: what may hold them.
        names: what must not be left, such as names of volumes; the longest are replaced first.
    """
    home = str(Path.home())
    for path in {home, home.replace("\\", "/")} - {"/", ""}:
        text = re.sub(rf"{re.escape(path)}[^\n'\"]*", "(path)", text)
    text = _PATH.sub("(path)", text)
    for name in sorted({name.strip() for name in names if len(name.strip()) > 1}, key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "(name)", text, flags=re.IGNORECASE)
    return text
