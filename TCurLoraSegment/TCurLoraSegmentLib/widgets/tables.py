"""Filling Qt's item tables."""

from __future__ import annotations

from collections.abc import Sequence

import qt


def fill(table: qt.QTableWidget, rows: Sequence[Sequence[str]], tooltips: Sequence[str] = ()) -> None:
    """Show rows of texts; what was selected stays selected when its row is still there.

    Args:
        table: a table that has as many columns as the rows have texts.
        rows: one text for each column.
        tooltips: one for each row.
    """
    chosen = table.currentRow()
    table.setRowCount(0)
    table.setRowCount(len(rows))
    for number, row in enumerate(rows):
        for column, text in enumerate(row):
            item = qt.QTableWidgetItem(text)
            if tooltips:
                item.setToolTip(tooltips[number])
            table.setItem(number, column, item)
    if 0 <= chosen < len(rows):
        table.selectRow(chosen)


def set_checked(table: qt.QTableWidget, row: int, column: int, checked: bool) -> None:
    """Give a cell a check mark that the user can change."""
    item = table.item(row, column)
    item.setFlags(qt.Qt.ItemIsUserCheckable | qt.Qt.ItemIsEnabled | qt.Qt.ItemIsSelectable)
    item.setCheckState(qt.Qt.Checked if checked else qt.Qt.Unchecked)


def is_checked(table: qt.QTableWidget, row: int, column: int) -> bool:
    """Whether a cell has its check mark."""
    return table.item(row, column).checkState() == qt.Qt.Checked
