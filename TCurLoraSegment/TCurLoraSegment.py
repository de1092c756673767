"""The module TCurLoraSegment: adapt a segmentation model to labeled volumes, and segment with what results."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import slicer
from slicer.i18n import tr as _
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin

from TCurLoraSegmentLib import query
from TCurLoraSegmentLib.adapt_task import Adapted, AdaptTask, prepare_adapt
from TCurLoraSegmentLib.engine import Engine, engine_of
from TCurLoraSegmentLib.errors import UserError
from TCurLoraSegmentLib.requests import AdaptSettings, SegmentSettings
from TCurLoraSegmentLib.sample_data import register_sample_data
from TCurLoraSegmentLib.scene_cases import CasePair
from TCurLoraSegmentLib.segment_task import SegmentTask


class TCurLoraSegment(ScriptedLoadableModule):
    """What Slicer shows of the module before it is opened."""

    def __init__(self, parent: Any) -> None:
        ScriptedLoadableModule.__init__(self, parent)
        parent.title = _("TCurLora Segment")
        parent.categories = [_("Segmentation")]
        parent.dependencies = ["Segmentations", "SubjectHierarchy"]
        parent.contributors = ["The TCurLoraSegment authors"]
        parent.helpText = _(
            "Adapts a segmentation model to the scans of your own hospital with a few volumes that you labeled, on "
            "this computer, and segments new scans with the small adapter that results. Nothing leaves this computer."
        )
        parent.acknowledgementText = _(
            "The method is tCURLoRA by He, Cheng, Zhu, Cai and Yu (MICCAI 2025, arXiv 2501.02227). "
            "Not a medical device. Look at every result."
        )
        slicer.app.connect("startupCompleted()", self._registerSampleData)

    def _registerSampleData(self) -> None:
        register_sample_data(Path(__file__).parent / "Resources" / "Icons" / "TCurLoraSegment.png")


class TCurLoraSegmentWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """Connects the panel with Slicer: its scene, and when it is shown and closed."""

    def __init__(self, parent: Any = None) -> None:
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic: TCurLoraSegmentLogic | None = None
        self.panel: Any = None

    def setup(self) -> None:
        """Build the panel."""
        from TCurLoraSegmentLib.widgets.panel import Panel

        ScriptedLoadableModuleWidget.setup(self)
        self.logic = TCurLoraSegmentLogic()
        widget = slicer.util.loadUI(self.resourcePath("UI/TCurLoraSegment.ui"))
        self.layout.addWidget(widget)
        widget.setMRMLScene(slicer.mrmlScene)
        self.ui = slicer.util.childWidgetVariables(widget)
        self.panel = Panel(self.ui, self.logic.getParameterNode())
        scene = slicer.mrmlScene
        self.addObserver(scene, scene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(scene, scene.EndCloseEvent, self.onSceneEnd)
        self.addObserver(scene, scene.EndImportEvent, self.onSceneEnd)
        for event in (scene.NodeAddedEvent, scene.NodeRemovedEvent):
            self.addObserver(scene, event, self.onNodesChanged)
        slicer.app.connect("aboutToQuit()", self.panel.close)

    def enter(self) -> None:
        """The module is opened."""
        self.panel.enter()

    def exit(self) -> None:
        """Another module is opened."""
        self.panel.exit()

    def onReload(self) -> None:
        """Load the module's files again, for developers; Slicer itself would keep those of the library."""
        for name in [name for name in sys.modules if name.partition(".")[0] == "TCurLoraSegmentLib"]:
            del sys.modules[name]
        ScriptedLoadableModuleWidget.onReload(self)
        reloaded = slicer.util.getModuleWidget("TCurLoraSegment")
        if reloaded.parent.isEntered:  # Slicer tells only those that come to the module
            reloaded.enter()

    def cleanup(self) -> None:
        """The module goes away, or is reloaded."""
        self.removeObservers()
        if self.panel is not None:
            slicer.app.disconnect("aboutToQuit()", self.panel.close)
            self.panel.close()

    def onSceneStartClose(self, caller: Any, event: Any) -> None:
        """The scene is about to be emptied."""
        self.panel.scene_closed()

    def onSceneEnd(self, caller: Any, event: Any) -> None:
        """The scene has been emptied, or another one has been read: take its parameters."""
        assert self.logic is not None
        self.panel.set_parameter_node(self.logic.getParameterNode())

    def onNodesChanged(self, caller: Any, event: Any) -> None:
        """Nodes came or went, often many at once."""
        if not (slicer.mrmlScene.IsClosing() or slicer.mrmlScene.IsImporting()):
            self.panel.nodes_changed()


class TCurLoraSegmentLogic(ScriptedLoadableModuleLogic):
    """Adapting and segmenting for scripts: nodes in, nodes out, no panel needed.

    Args:
        python: another Python that has the engine's packages; empty for Slicer's own.
    """

    def __init__(self, python: str = "") -> None:
        ScriptedLoadableModuleLogic.__init__(self)
        self._python = python

    def engine(self) -> Engine:
        """How the engine is started.

        Raises:
            UserError: when its Python is not there.
        """
        return engine_of(self._python)

    def baseModels(self) -> list[Mapping[str, Any]]:
        """List the base models: name, title, structures, licence, whether they are on disk."""
        return query.ask(self.engine(), "models", "list")

    def adapters(self) -> list[Mapping[str, Any]]:
        """List the adapters: name, path, base model, structures, date, cases, Dice."""
        return query.ask(self.engine(), "adapters", "list")

    def adapt(
        self,
        cases: Sequence[tuple[slicer.vtkMRMLScalarVolumeNode, slicer.vtkMRMLNode]],
        name: str,
        base: str = "hippocampus_t1_unetr",
        onEvent: Callable[[Mapping[str, Any]], None] | None = None,
        **settings: Any,
    ) -> Adapted:
        """Adapt a base model to labeled volumes, and wait for the end.

        Args:
            cases: volumes with their segmentations or labelmaps.
            name: of the new adapter.
            base: name or folder of the base model.
            onEvent: gets every event of the engine.
            settings: further fields of `AdaptSettings`, such as `minutes=5` or `cross_validation=False`.

        Returns:
            The adapter's folder and report, and what the volumes are called in it.

        Raises:
            UserError: when it could not be done; nothing in the scene has changed.
        """
        pairs = [CasePair(volume.GetID(), labels.GetID()) for volume, labels in cases]
        job = prepare_adapt(AdaptSettings(base=base, name=name, **settings), pairs)
        task = AdaptTask(self.engine(), job, on_event=onEvent)
        task.start()
        adapted = task.wait()
        if adapted.adapter is None:
            raise UserError(adapted.outcome.sentence())
        return adapted

    def segment(
        self,
        volumeNode: slicer.vtkMRMLScalarVolumeNode,
        adapter: str,
        outputNode: slicer.vtkMRMLNode | None = None,
        onEvent: Callable[[Mapping[str, Any]], None] | None = None,
        **settings: Any,
    ) -> slicer.vtkMRMLNode:
        """Segment a volume, and wait for the result.

        Args:
            volumeNode: the scan.
            adapter: name or folder of an adapter or a base model.
            outputNode: segmentation or labelmap that is replaced; a new segmentation is made otherwise.
            onEvent: gets every event of the engine.
            settings: further fields of `SegmentSettings`, such as `as_labelmap=True` or `device="cpu"`.

        Returns:
            The result, in the geometry of the volume.

        Raises:
            UserError: when it could not be done; nothing in the scene has changed.
        """
        request = SegmentSettings(adapter, **{"title": Path(adapter).name, **settings})
        task = SegmentTask(self.engine(), request, [volumeNode], outputNode, on_event=onEvent)
        task.start()
        finished = task.wait()
        if not finished.nodes:
            raise UserError(" ".join(finished.messages))
        return next(iter(finished.nodes.values()))


class TCurLoraSegmentTest(ScriptedLoadableModuleTest):
    """Runs the module's tests in Slicer; see `TCurLoraSegmentLib/self_test.py`."""

    def runTest(self) -> None:
        """Run all tests, each in an empty scene."""
        from TCurLoraSegmentLib.self_test import run

        run()
