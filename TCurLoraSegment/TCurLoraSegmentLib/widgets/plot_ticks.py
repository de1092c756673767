"""Names of cases below the bars of a plot: charts of the scene have numbers there, so Slicer's plot view is told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import slicer
import vtk

LONGEST = 18


class PlotTicks:
    """Puts names on the horizontal axis of the plot view that shows a chart, and takes them off with the chart."""

    def __init__(self) -> None:
        self._axis: Any = None
        self._view: Any = None
        self._tag: int | None = None
        self._chart_id = ""

    def show(self, chart: slicer.vtkMRMLPlotChartNode, names: Sequence[str]) -> None:
        """Name the places 0, 1, 2, ... in the plot view that shows this chart; without a plot view nothing is done."""
        self.forget()
        manager = slicer.app.layoutManager()
        for number in range(getattr(manager, "plotViewCount", 0) if manager is not None else 0):
            widget = manager.plotWidget(number)
            view = widget.mrmlPlotViewNode() if widget is not None else None
            if view is None or view.GetPlotChartNodeID() != chart.GetID():
                continue
            self._axis = widget.plotView().chart().GetAxis(vtk.vtkAxis.BOTTOM)
            self._view, self._chart_id = view, chart.GetID()
            self._tag = view.AddObserver(vtk.vtkCommand.ModifiedEvent, self._on_view)
            positions, labels = vtk.vtkDoubleArray(), vtk.vtkStringArray()
            for place, name in enumerate(names):
                positions.InsertNextValue(place)
                labels.InsertNextValue(shortened(name))
            self._axis.SetCustomTickPositions(positions, labels)
            self._axis.GetLabelProperties().SetOrientation(90 if len(names) > 3 else 0)
            widget.plotView().scheduleRender()
            return

    def forget(self) -> None:
        """Give the axis its numbers back."""
        if self._view is not None and self._tag is not None:
            self._view.RemoveObserver(self._tag)
        if self._axis is not None:
            self._axis.SetCustomTickPositions(None, None)
            self._axis.GetLabelProperties().SetOrientation(0)
        self._axis = self._view = self._tag = None

    def _on_view(self, view: Any, _event: str) -> None:
        if view.GetPlotChartNodeID() != self._chart_id:
            self.forget()


def shortened(name: str) -> str:
    """Cut a long name in the middle, where names differ least."""
    half = (LONGEST - 1) // 2
    return name if len(name) <= LONGEST else f"{name[:half]}…{name[-half:]}"
