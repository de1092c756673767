"""The icon has the size that the Extensions Index asks for, and is what its script draws."""

from __future__ import annotations

import importlib.util
import struct
from pathlib import Path

import numpy as np
import pytest
from matplotlib import image
from project_files import MODULE, ROOT

ICON = MODULE / "Resources/Icons/TCurLoraSegment.png"


def size_of(content: bytes) -> tuple[int, int]:
    """Read the size of a PNG."""
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        raise ValueError("no PNG")
    width, height = struct.unpack(">II", content[16:24])
    return width, height


def test_the_icon_is_128_by_128() -> None:
    assert size_of(ICON.read_bytes()) == (128, 128)


def test_another_file_is_found() -> None:
    with pytest.raises(ValueError, match="no PNG"):
        size_of(b"GIF89a")


def test_the_script_draws_the_icon(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("make_icon", ROOT / "Testing/Visual/make_icon.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.draw(tmp_path / "icon.png")
    # Another version of matplotlib smooths edges a little differently.
    difference = np.abs(image.imread(tmp_path / "icon.png") - image.imread(ICON))
    assert difference.mean() < 0.02
