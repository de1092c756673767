"""Showing that the panel is busy for a moment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import qt


@contextmanager
def waiting() -> Iterator[None]:
    """Show the wait cursor.

    Unlike `slicer.util.WaitCursor` it handles no events, among which may be a second click on the same button.
    """
    qt.QApplication.setOverrideCursor(qt.Qt.WaitCursor)
    try:
        yield
    finally:
        qt.QApplication.restoreOverrideCursor()
