"""Labels and choices that are changed without the user: no signal, no blank strip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import qt


def say(label: qt.QLabel, text: str) -> None:
    """Show a text; an empty one takes no room."""
    label.setText(text)
    label.setVisible(text != "")


def quietly(widget: Any, method: str, *values: Any) -> None:
    """Call a setter without telling anybody of the change."""
    was_blocked = widget.blockSignals(True)
    getattr(widget, method)(*values)
    widget.blockSignals(was_blocked)


def offer(combo: qt.QComboBox, titles: Sequence[str], current: int) -> None:
    """Fill a choice without telling anybody; nothing is done where it shows just that."""
    if [combo.itemText(index) for index in range(combo.count)] != list(titles):
        quietly(combo, "clear")
        quietly(combo, "addItems", list(titles))
    quietly(combo, "setCurrentIndex", current)


def searchable(combo: qt.QComboBox) -> None:
    """Let the user type a part of a long list's entry."""
    combo.setEditable(True)
    combo.setInsertPolicy(qt.QComboBox.NoInsert)
    combo.completer().setFilterMode(qt.Qt.MatchContains)
    combo.completer().setCompletionMode(qt.QCompleter.PopupCompletion)
    combo.completer().setCaseSensitivity(qt.Qt.CaseInsensitive)
