"""The translator of what the user reads, for modules that are also used without Slicer."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress


def _as_it_is(text: str) -> str:
    return text


tr: Callable[[str], str] = _as_it_is
if "slicer" in sys.modules:  # not looked for elsewhere: a Python that has Slicer's libraries need not be Slicer's
    with suppress(ImportError):
        from slicer import i18n

        # The very function, without one around it: it takes the context of a text from the file that calls it.
        tr = i18n.tr
