"""Filling Qt's item tables, and giving them no more room than they need."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import qt

MOST_ROWS = 8
"""Rows that a table shows before it scrolls."""
ROW_PADDING = 8
COMBO_PADDING = 14


def prepare(table: qt.QTableWidget, stretched: Collection[int], padding: int = ROW_PADDING) -> None:
    """Share the width of a table by need: some columns take what the others, as wide as their content, leave.

    Args:
        table: a table whose columns are there.
        stretched: columns that share what is left; their texts are cut in the middle.
        padding: pixels above and below the text of a row together.
    """
    header = table.horizontalHeader()
    header.setMinimumSectionSize(24)
    for column in range(table.columnCount):
        stretch = column in stretched
        header.setSectionResizeMode(column, qt.QHeaderView.Stretch if stretch else qt.QHeaderView.ResizeToContents)
    rows = table.verticalHeader()
    rows.setMinimumSectionSize(table.fontMetrics().height() + padding)
    rows.setDefaultSectionSize(table.fontMetrics().height() + padding)
    fit(table)


def fit(table: qt.QTableWidget, most_rows: int = MOST_ROWS) -> None:
    """Make a table as high as its rows, up to a limit; one without rows is not shown."""
    rows = table.rowCount
    shown = min(rows, most_rows)
    height = table.horizontalHeader().sizeHint.height() + 2 * table.frameWidth
    table.setFixedHeight(height + shown * table.verticalHeader().defaultSectionSize)
    table.setVisible(rows > 0)


def fill(
    table: qt.QTableWidget,
    rows: Sequence[Sequence[str]],
    tooltips: Sequence[str] = (),
    editable: Collection[int] = (),
) -> None:
    """Show rows of texts; what was selected stays selected when its row is still there.

    Args:
        table: a table that has as many columns as the rows have texts.
        rows: one text for each column; the tooltip of a cell shows it whole.
        tooltips: what the tooltips of a row say besides.
        editable: columns whose texts the user may change.
    """
    chosen = table.currentRow()
    table.setRowCount(0)
    table.setRowCount(len(rows))
    for number, row in enumerate(rows):
        for column, text in enumerate(row):
            item = qt.QTableWidgetItem(text)
            item.setToolTip("\n".join(filter(None, (text, tooltips[number] if tooltips else ""))))
            if column not in editable:
                item.setFlags(qt.Qt.ItemIsEnabled | qt.Qt.ItemIsSelectable)
            table.setItem(number, column, item)
    if 0 <= chosen < len(rows):
        table.selectRow(chosen)
    fit(table)


def set_checked(table: qt.QTableWidget, row: int, column: int, checked: bool) -> None:
    """Give a cell a check mark that the user can change."""
    item = table.item(row, column)
    item.setFlags(qt.Qt.ItemIsUserCheckable | qt.Qt.ItemIsEnabled | qt.Qt.ItemIsSelectable)
    item.setCheckState(qt.Qt.Checked if checked else qt.Qt.Unchecked)


def is_checked(table: qt.QTableWidget, row: int, column: int) -> bool:
    """Return whether a cell has its check mark."""
    return table.item(row, column).checkState() == qt.Qt.Checked
