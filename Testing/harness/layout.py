"""A main window's views without pictures: the nodes and logics are real, nothing is rendered."""
# ruff: noqa: N802, N815

from __future__ import annotations

from typing import Any

import slicer
import vtk

SLICES = {"Red": "Axial", "Green": "Coronal", "Yellow": "Sagittal"}


class ModuleSelector:
    """The choice of the module, as slicer.util.selectModule uses it."""

    def __init__(self) -> None:
        self.selectedModule = ""

    def selectModule(self, name: str) -> None:
        self.selectedModule = name


class _SliceWidget:
    def __init__(self, logic: Any) -> None:
        self._logic = logic

    def sliceLogic(self) -> Any:
        return self._logic

    def mrmlSliceNode(self) -> Any:
        return self._logic.GetSliceNode()

    def mrmlSliceCompositeNode(self) -> Any:
        return self._logic.GetSliceCompositeNode()


class _ThreeDView:
    def __init__(self) -> None:
        self.resets = 0

    def resetFocalPoint(self) -> None:
        self.resets += 1

    def rotateToViewAxis(self, axis: int) -> None:
        pass

    def forceRender(self) -> None:
        pass


class _ThreeDWidget:
    def __init__(self, node: Any) -> None:
        self._node = node
        self._view = _ThreeDView()

    def threeDView(self) -> _ThreeDView:
        return self._view

    def mrmlViewNode(self) -> Any:
        return self._node


class _PlotView:
    """As the original, it gives a bar the number of its row, whatever the chart's labels are."""

    def __init__(self) -> None:
        self._chart = vtk.vtkChartXY()

    def chart(self) -> Any:
        return self._chart

    def scheduleRender(self) -> None:
        pass


class _PlotWidget:
    def __init__(self, node: Any) -> None:
        self._node = node
        self._view = _PlotView()

    def plotView(self) -> _PlotView:
        return self._view

    def mrmlPlotViewNode(self) -> Any:
        return self._node


class LayoutManager:
    """slicer.app.layoutManager() of a Slicer with three slices, a 3D view and a plot."""

    threeDViewCount = 1
    plotViewCount = 1

    def __init__(self) -> None:
        self.layout = 0
        self._logics = vtk.vtkCollection()
        self._slices = {}
        for name, orientation in SLICES.items():
            logic = slicer.vtkMRMLSliceLogic()
            logic.SetMRMLApplicationLogic(slicer.app.applicationLogic())
            logic.SetMRMLScene(slicer.mrmlScene)
            node = logic.AddSliceNode(name)
            node.SetOrientation(orientation)
            node.SetMappedInLayout(1)
            self._logics.AddItem(logic)
            self._slices[name] = _SliceWidget(logic)
        slicer.app.applicationLogic().SetSliceLogics(self._logics)
        view = slicer.vtkMRMLViewNode()
        view.SetSingletonTag("1")
        self._three_d = _ThreeDWidget(slicer.mrmlScene.AddNode(view))
        plot = slicer.vtkMRMLPlotViewNode()
        plot.SetSingletonTag("PlotView1")
        self._plot = _PlotWidget(slicer.mrmlScene.AddNode(plot))

    def setLayout(self, number: int) -> None:
        self.layout = int(number)

    def sliceViewNames(self) -> tuple[str, ...]:
        return tuple(self._slices)

    def sliceWidget(self, name: str) -> Any:
        return self._slices.get(name)

    def mrmlSliceLogics(self) -> Any:
        return self._logics

    def threeDWidget(self, index: int) -> Any:
        return self._three_d if index == 0 else None

    def plotWidget(self, index: int) -> Any:
        return self._plot if index == 0 else None

    def resetSliceViews(self) -> None:
        for widget in self._slices.values():
            widget.sliceLogic().FitSliceToAll()

    def resetThreeDViews(self) -> None:
        self._three_d.threeDView().resetFocalPoint()

    def close(self) -> None:
        slicer.app.applicationLogic().SetSliceLogics(vtk.vtkCollection())
        for widget in self._slices.values():
            for node in (widget.mrmlSliceCompositeNode(), widget.mrmlSliceNode()):
                slicer.mrmlScene.RemoveNode(node)
            widget.sliceLogic().SetMRMLScene(None)
        slicer.mrmlScene.RemoveNode(self._three_d.mrmlViewNode())
        slicer.mrmlScene.RemoveNode(self._plot.mrmlPlotViewNode())
