"""A stand-in for a running Slicer, for tests: Slicer's real scene and logics, and its widgets on PySide6.

`start()` gives the scene, `start_panel()` also `qt`, `ctk` and the widgets. Nothing here is shipped.
"""

from __future__ import annotations

import importlib
from typing import Any

from .app import EXTENSION, clear_scene, start

__all__ = ["EXTENSION", "clear_scene", "start"]

_PANEL = (
    "start_panel open_module enter_module leave_module close_module main_window testing_mode process_events",
    "wait_until choose_node show grab quit_application fail_on_errors begin_test end_test visible_text",
    "words_of",
)
_PARTS = {
    **{name: "panel" for line in _PANEL for name in line.split()},
    **dict.fromkeys(("Shown", "expect", "opened_urls", "outstanding", "shown"), "dialogs"),
    **dict.fromkeys(("pip_calls", "pip_failure", "sample_data"), "supplied"),
    "errors": "pythonqt",
}


def __getattr__(name: str) -> Any:
    """Fetch what concerns the panel when it is asked for, so that tests of the scene load no Qt."""
    if name not in _PARTS:
        raise AttributeError(f"module 'harness' has no attribute '{name}'")
    return getattr(importlib.import_module(f"{__name__}.{_PARTS[name]}"), name)
