"""Section "Result": what the adapter gained, in words, as a table and as a plot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import slicer
from slicer.i18n import tr as _

from TCurLoraSegmentLib.result_nodes import ReportNodes, comparison_rows, report_nodes
from TCurLoraSegmentLib.widgets.tables import fill

if TYPE_CHECKING:
    from TCurLoraSegmentLib.widgets.panel import Panel


class ResultSection:
    """Shows the comparison of base and adapter."""

    def __init__(self, panel: Panel) -> None:
        self._panel = panel
        self._ui = ui = panel.ui
        self._nodes: ReportNodes | None = None
        ui.showTableButton.connect("clicked()", self._on_show_table)
        ui.showPlotButton.connect("clicked()", self._on_show_plot)
        self.clear()

    def clear(self) -> None:
        """Show that there is no result."""
        self._nodes = None
        self._ui.resultSummary.setText(_("The comparison of base and adapter appears here."))
        fill(self._ui.resultTable, [])
        self._ui.showTableButton.setEnabled(False)
        self._ui.showPlotButton.setEnabled(False)

    def show(self, report: Mapping[str, Any], name: str, case_names: Mapping[str, str], add_nodes: bool) -> None:
        """Show a report, and add its table and plot to the scene.

        Args:
            report: the content of report.json.
            name: of the adapter.
            case_names: names of volumes by the numbers under which the report lists them.
            add_nodes: whether the scene is still that of the volumes, so that table and plot belong there.
        """
        self._ui.resultSummary.setText(str(report["summary"]))
        self._ui.resultSection.collapsed = False
        validation = report.get("cross_validation")
        self._nodes = report_nodes(report, name, case_names) if validation and add_nodes else None
        fill(self._ui.resultTable, _texts(validation, case_names) if validation else [])
        self._ui.resultTable.resizeColumnsToContents()
        self._ui.showTableButton.setEnabled(self._nodes is not None)
        self._ui.showPlotButton.setEnabled(self._nodes is not None)

    def _on_show_table(self) -> None:
        if self._nodes is not None:
            _show(self._nodes.table, "SetActiveTableID", "PropagateTableSelection", "FourUpTableView")

    def _on_show_plot(self) -> None:
        if self._nodes is not None:
            _show(self._nodes.chart, "SetActivePlotChartID", "PropagatePlotChartSelection", "FourUpPlotView")


def _show(node: slicer.vtkMRMLNode, activate: str, propagate: str, layout: str) -> None:
    """Show a node in a layout that has a view for it; without a layout, as in a hidden main window, it is selected."""
    if slicer.mrmlScene.GetNodeByID(node.GetID()) is None:
        return
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
