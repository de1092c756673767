"""Section "Result": what the adapter gained, in words, as a table and as a plot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import slicer
from slicer.i18n import tr as _

from TCurLoraSegmentLib.result_nodes import case_ticks, comparison_rows, report_nodes, rows_of_table, summary_of
from TCurLoraSegmentLib.widgets.labels import say
from TCurLoraSegmentLib.widgets.plot_ticks import PlotTicks
from TCurLoraSegmentLib.widgets.tables import fill, prepare

if TYPE_CHECKING:
    from TCurLoraSegmentLib.widgets.panel import Panel

CASE, STRUCTURE = 0, 1


class ResultSection:
    """Shows the comparison of base and adapter."""

    def __init__(self, panel: Panel) -> None:
        self._panel = panel
        self._ui = ui = panel.ui
        self._shown = ""
        self._ticks = PlotTicks()
        prepare(ui.resultTable, (CASE,))
        ui.showTableButton.connect("clicked()", self._on_show_table)
        ui.showPlotButton.connect("clicked()", self._on_show_plot)
        ui.resultTable.connect("cellDoubleClicked(int,int)", self._on_double_click)
        self.clear()

    def clear(self) -> None:
        """Show that there is no result."""
        self._shown = ""
        self._ticks.forget()
        say(self._ui.resultSummary, _("The comparison of base and adapter appears here."))
        self._fill([])

    def show(self, report: Mapping[str, Any], name: str, case_names: Mapping[str, str], add_nodes: bool) -> None:
        """Show a report, and add its table and plot to the scene.

        Args:
            report: the content of report.json.
            name: of the adapter.
            case_names: names of volumes by the numbers under which the report lists them.
            add_nodes: whether the scene is still that of the volumes, so that table and plot belong there.
        """
        say(self._ui.resultSummary, str(report["summary"]))
        validation = report.get("cross_validation")
        nodes = report_nodes(report, name, case_names) if validation and add_nodes else None
        self._panel.parameters.set_node("report_table", nodes.table if nodes else None)
        self._panel.parameters.set_node("report_chart", nodes.chart if nodes else None)
        self._shown = nodes.table.GetID() if nodes else ""
        self._fill(_texts(validation, case_names) if validation else [])
        self._ui.resultSection.collapsed = False
        self._panel.bring_into_view(self._ui.resultSection)

    def refresh(self) -> None:
        """Show what the scene holds of a result, also of one that it was saved with."""
        table, chart = (self._panel.parameters.get_node(f"report_{what}") for what in ("table", "chart"))
        if table is not None and table.GetID() != self._shown:
            self._shown = table.GetID()
            say(self._ui.resultSummary, summary_of(table))
            self._fill(rows_of_table(table))
        self._ui.showTableButton.setEnabled(table is not None)
        self._ui.showPlotButton.setEnabled(chart is not None)

    def _fill(self, rows: list[list[str]]) -> None:
        fill(self._ui.resultTable, rows)
        one_structure = len({row[STRUCTURE] for row in rows}) < 2
        self._ui.resultTable.setColumnHidden(STRUCTURE, one_structure)

    def _on_show_table(self) -> None:
        table = self._panel.parameters.get_node("report_table")
        if table is not None:
            _show(table, "SetActiveTableID", "PropagateTableSelection", "FourUpTableView")

    def _on_show_plot(self) -> None:
        chart, table = (self._panel.parameters.get_node(f"report_{what}") for what in ("chart", "table"))
        if chart is not None:
            _show(chart, "SetActivePlotChartID", "PropagatePlotChartSelection", "FourUpPlotView")
            if table is not None:
                self._ticks.show(chart, case_ticks(table))

    def _on_double_click(self, row: int, _column: int) -> None:
        item = self._ui.resultTable.item(row, CASE)
        if item is not None:
            self._panel.cases_section.show_volume(str(item.text()))


def _show(node: slicer.vtkMRMLNode, activate: str, propagate: str, layout: str) -> None:
    """Show a node in a layout that has a view for it; without a layout, as in a hidden main window, it is selected."""
    manager = slicer.app.layoutManager()
    if manager is not None:
        manager.setLayout(getattr(slicer.vtkMRMLLayoutNode, f"SlicerLayout{layout}"))
    logic = slicer.app.applicationLogic()
    getattr(logic.GetSelectionNode(), activate)(node.GetID())
    getattr(logic, propagate)()


def _texts(validation: Mapping[str, Any], case_names: Mapping[str, str]) -> list[list[str]]:
    texts = []
    for row in comparison_rows(validation, case_names):
        before, after = row.base.get("dice"), row.adapted.get("dice")
        change = "" if before is None or after is None else f"{after - before:+.3f}"
        dice = ["" if value is None else f"{value:.3f}" for value in (before, after)]
        texts.append([row.case, row.structure, *dice, change])
    return texts
