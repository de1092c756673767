"""Filling Qt's item tables, and giving them no more room than they need."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import qt

MOST_ROWS = 8
"""Rows that a table shows before it scrolls."""
ROW_PADDING = 8
COMBO_PADDING = 14
CELL_PADDING = 12
ARROW_PADDING = 40
SHARED = "TCurLoraSegment.SharedColumns"
"""Property of a table: the columns that share what the others leave."""


def prepare(table: qt.QTableWidget, shared: Sequence[int], padding: int = ROW_PADDING) -> None:
    """Share the width of a table by need: some columns take what the others, as wide as their content, leave.

    Args:
        table: a table whose columns are there.
        shared: columns that share what is left, by what their texts need; texts are cut in the middle.
        padding: pixels above and below the text of a row together.
    """
    header = table.horizontalHeader()
    header.setMinimumSectionSize(24)
    for column in range(table.columnCount):
        mode = qt.QHeaderView.Fixed if column in shared else qt.QHeaderView.ResizeToContents
        header.setSectionResizeMode(column, mode)
    # The first of them follows the width of the table, and tells when that has changed.
    header.setSectionResizeMode(shared[0], qt.QHeaderView.Stretch)
    if len(shared) > 1:
        # Afterwards, because the header does not take other widths while it hands out its own. It ends with the table.
        later = qt.QTimer(table)
        later.setSingleShot(True)
        later.setInterval(0)
        later.connect("timeout()", lambda: _share(table, shared))
        header.connect("sectionResized(int,int,int)", lambda column, _old, _new: column in shared and later.start())
        table.setProperty(SHARED, ",".join(map(str, shared)))
    rows = table.verticalHeader()
    rows.setMinimumSectionSize(table.fontMetrics().height() + padding)
    rows.setDefaultSectionSize(table.fontMetrics().height() + padding)
    fit(table)


def share(table: qt.QTableWidget) -> None:
    """Share the width of a table again, after its content has changed."""
    shared = str(table.property(SHARED) or "")
    if shared:
        _share(table, [int(column) for column in shared.split(",")])


def _share(table: qt.QTableWidget, shared: Sequence[int]) -> None:
    """Give columns the widths that their texts need, and where that is too much, the widest of them less."""
    if not table:
        return  # it was destroyed since
    header = table.horizontalHeader()
    widths = parts_by_need(
        [_needed(table, column) for column in shared], sum(header.sectionSize(column) for column in shared)
    )
    for column, width in list(zip(shared, widths, strict=True))[1:]:
        if header.sectionSize(column) != width:
            header.resizeSection(column, width)


def parts_by_need(needs: Sequence[int], available: int) -> list[int]:
    """Share a width: who needs little gets it, the others get equal parts; what is too much is shared equally."""
    parts = [0] * len(needs)
    left, waiting = available, sorted(range(len(needs)), key=lambda index: needs[index])
    while waiting:
        index = waiting.pop(0)
        parts[index] = min(needs[index], left // (len(waiting) + 1))
        left -= parts[index]
    return [part + left // len(parts) for part in parts]


def _needed(table: qt.QTableWidget, column: int) -> int:
    metrics = table.fontMetrics()
    items = (table.item(row, column) for row in range(table.rowCount))
    texts = [str(item.text()) for item in items if item is not None]
    title = table.horizontalHeaderItem(column)
    texts.append(str(title.text()) if title is not None else "")
    needs = [metrics.horizontalAdvance(text) + CELL_PADDING for text in texts]
    widgets = (table.cellWidget(row, column) for row in range(table.rowCount))
    needs += [metrics.horizontalAdvance(str(one.currentText)) + ARROW_PADDING for one in widgets if one is not None]
    return max(needs)


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
    share(table)


def set_checked(table: qt.QTableWidget, row: int, column: int, checked: bool) -> None:
    """Give a cell a check mark that the user can change."""
    item = table.item(row, column)
    item.setFlags(qt.Qt.ItemIsUserCheckable | qt.Qt.ItemIsEnabled | qt.Qt.ItemIsSelectable)
    item.setCheckState(qt.Qt.Checked if checked else qt.Qt.Unchecked)


def is_checked(table: qt.QTableWidget, row: int, column: int) -> bool:
    """Return whether a cell has its check mark."""
    return table.item(row, column).checkState() == qt.Qt.Checked
