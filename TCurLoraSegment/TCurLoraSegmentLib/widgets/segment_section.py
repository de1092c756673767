"""Section "Segment new scans": which scans, with which model, and what can be done with the result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import qt
import slicer
from slicer.i18n import tr as _

from TCurLoraSegmentLib.errors import UserError
from TCurLoraSegmentLib.requests import SegmentSettings
from TCurLoraSegmentLib.scene_cases import (
    CasePair,
    accept_labels,
    is_uncorrected,
    results,
    structures_of,
    volume_of_result,
)
from TCurLoraSegmentLib.scene_labels import normalized
from TCurLoraSegmentLib.segment_task import Segmented, SegmentTask
from TCurLoraSegmentLib.widgets.labels import offer, quietly, say
from TCurLoraSegmentLib.widgets.tables import fill, is_checked, prepare, set_checked
from TCurLoraSegmentLib.widgets.waiting import waiting

if TYPE_CHECKING:
    from TCurLoraSegmentLib.widgets.panel import Panel


class _Model(NamedTuple):
    """What can segment: its name for the engine, its title, and how the list shows it."""

    name: str
    title: str
    shown: str


class SegmentSection:
    """Starts, shows and cancels segmentations, one at a time."""

    def __init__(self, panel: Panel) -> None:
        self._panel = panel
        self._ui = ui = panel.ui
        self._task: SegmentTask | None = None
        self._results: list[str] = []
        self._result = ""
        self._models: list[_Model] = []
        self._scans: list[str] = []
        self._filling = False
        prepare(ui.scansTable, (0,))
        ui.resultCombo.connect("currentIndexChanged(int)", self._on_result)
        ui.modelCombo.connect("currentIndexChanged(int)", self._on_model)
        # Not currentNodeChanged: a selector takes another node by itself when its own is deleted, or a scene is read.
        ui.inputSelector.connect("nodeActivated(vtkMRMLNode*)", lambda node: self._on_node("input", node))
        ui.outputSelector.connect("nodeActivated(vtkMRMLNode*)", lambda node: self._on_node("output", node))
        ui.scansTable.connect("itemChanged(QTableWidgetItem*)", self._on_scan_checked)
        ui.labelmapCheck.connect("toggled(bool)", lambda on: self._store("as_labelmap", bool(on)))
        ui.uncertaintyCheck.connect("toggled(bool)", lambda on: self._store("uncertainty", bool(on)))
        ui.segmentButton.connect("clicked()", self._on_segment)
        ui.cancelSegmentButton.connect("clicked()", self._on_cancel)
        ui.show3DButton.connect("clicked()", self._on_show_3d)
        ui.editButton.connect("clicked()", self._on_edit)
        ui.useAsCaseButton.connect("clicked()", self._on_use_as_case)

    @property
    def running(self) -> bool:
        """Whether a segmentation runs."""
        return self._task is not None

    def kill(self) -> None:
        """End a run at once: the panel goes away."""
        if self._task is not None:
            self._task.kill()

    def scene_closed(self) -> None:
        """Forget nodes of the scene that is gone."""
        self._result = ""
        if self._task is not None:
            self._task.scene_closed()
        else:
            self._say("")

    def title(self) -> str:
        """The chosen model, as it is called in the panel."""
        name = self._panel.parameters.get("model")
        return next((model.title for model in self._models if model.name == name), str(name))

    def models_changed(self) -> None:
        """Offer the adapters and base models that there are now."""
        adapters = [entry for entry in self._panel.adapters if not entry["problem"]]
        bases = [entry for entry in self._panel.models if entry["on_disk"]]
        self._models = [_Model(str(e["name"]), str(e["name"]), _("{name} (adapter)")) for e in adapters]
        self._models += [
            _Model(str(e["name"]), str(e.get("title") or e["name"]), _("{name} (base model as it is)")) for e in bases
        ]
        offer(self._ui.modelCombo, [model.shown.format(name=model.title) for model in self._models], -1)
        # What a scene was saved with stays chosen, also where it is not on this computer.
        if self._models and self._panel.listed and not self._panel.parameters.get("model"):
            self._panel.parameters.set("model", self._models[0].name)

    def refresh(self) -> None:
        """Show the parameter node, and what still stands in the way of a run."""
        ui, parameters = self._ui, self._panel.parameters
        names = [model.name for model in self._models]
        model = parameters.get("model")
        for widget, method, value in (
            (ui.modelCombo, "setCurrentIndex", names.index(model) if model in names else -1),
            (ui.inputSelector, "setCurrentNode", parameters.get_node("input")),
            (ui.outputSelector, "setCurrentNode", parameters.get_node("output")),
            (ui.labelmapCheck, "setChecked", parameters.get("as_labelmap")),
            (ui.uncertaintyCheck, "setChecked", parameters.get("uncertainty")),
        ):
            quietly(widget, method, value)
        self._refresh_scans()
        missing = self._missing()
        ui.segmentButton.setEnabled(not missing and not self.running)
        if self.running:
            tooltip = _("Not possible yet: a run is in progress.")
        elif missing:
            tooltip = _("Still missing:\n{list}").format(list="\n".join(f"- {text}" for text in missing))
        else:
            tooltip = _("Segment the chosen volumes; runs in the background")
        ui.segmentButton.setToolTip(tooltip)
        ui.cancelSegmentButton.setEnabled(self.running)
        ui.segmentProgress.setVisible(self.running)
        say(ui.segmentStatus, ui.segmentStatus.text)
        self._refresh_results()

    def _refresh_results(self) -> None:
        """Offer what models have made in this scene, also in one that was loaded again."""
        nodes, ui = results(), self._ui
        self._results = [node.GetID() for node in nodes]
        if self._result not in self._results:
            self._result = self._results[-1] if self._results else ""
        offer(
            ui.resultCombo,
            [node.GetName() for node in nodes],
            self._results.index(self._result) if self._result else -1,
        )
        ui.afterFrame.setVisible(bool(nodes))
        result = self._result_nodes()
        is_segmentation = result is not None and bool(result[1].IsA("vtkMRMLSegmentationNode"))
        ui.show3DButton.setEnabled(is_segmentation)
        ui.editButton.setEnabled(is_segmentation)
        ui.useAsCaseButton.setEnabled(result is not None)

    def _refresh_scans(self) -> None:
        self._filling = True
        chosen = {node.GetID() for node in self._panel.parameters.get_nodes("scans")}
        volumes = [
            node
            for node in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")
            if not node.IsA("vtkMRMLLabelMapVolumeNode") and not node.GetHideFromEditors()
        ]
        self._scans = [node.GetID() for node in volumes]
        fill(self._ui.scansTable, [[node.GetName()] for node in volumes])
        for row, node_id in enumerate(self._scans):
            set_checked(self._ui.scansTable, row, 0, node_id in chosen)
        self._filling = False

    def _volumes(self) -> list[slicer.vtkMRMLScalarVolumeNode]:
        first = self._panel.parameters.get_node("input")
        nodes = [*([first] if first else []), *self._panel.parameters.get_nodes("scans")]
        return list({node.GetID(): node for node in nodes}.values())

    def _settings(self) -> SegmentSettings:
        get = self._panel.parameters.get
        name = get("model")
        return SegmentSettings(name, self.title(), self._panel.device(), get("uncertainty"), get("as_labelmap"))

    def _missing(self) -> list[str]:
        volumes, output = self._volumes(), self._panel.parameters.get_node("output")
        settings = self._settings()
        missing = [*self._panel.engine_problems(), *settings.missing(len(volumes))]
        if settings.model and self._panel.listed and settings.model not in [model.name for model in self._models]:
            missing.append(_("The model '{name}' is not on this computer.").format(name=settings.model))
        if output is not None and len(volumes) > 1:
            missing.append(_("For several volumes choose 'Create new' as output."))
        return missing

    def _store(self, key: str, value: Any) -> None:
        self._panel.parameters.set(key, value)
        self._panel.refresh()

    def _on_model(self, index: int) -> None:
        if 0 <= index < len(self._models):
            self._store("model", self._models[index].name)

    def _on_node(self, role: str, node: slicer.vtkMRMLNode | None) -> None:
        self._panel.parameters.set_node(role, node)
        self._panel.refresh_later()

    def _on_scan_checked(self, _item: qt.QTableWidgetItem) -> None:
        if self._filling:
            return
        table = self._ui.scansTable
        chosen = [node_id for row, node_id in enumerate(self._scans) if is_checked(table, row, 0)]
        nodes = filter(None, map(slicer.mrmlScene.GetNodeByID, chosen))
        self._panel.parameters.set_nodes("scans", list(nodes))
        self._panel.refresh_later()

    def _on_result(self, index: int) -> None:
        if 0 <= index < len(self._results):
            self._result = self._results[index]
            self._panel.refresh_later()

    def _on_segment(self) -> None:
        try:
            with waiting():
                self._task = SegmentTask(
                    self._panel.engine(),
                    self._settings(),
                    self._volumes(),
                    self._panel.parameters.get_node("output"),
                    self._on_event,
                    self._on_finished,
                    self._panel.warm,
                )
        except UserError as error:
            self._say(str(error))
            return
        self._ui.segmentProgress.setRange(0, 0)
        self._say(_("Starting..."))
        self._panel.run(self._task)
        self._panel.refresh()

    def _on_cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()
            self._ui.cancelSegmentButton.setEnabled(False)
            self._say(_("Cancelling..."))

    def _on_event(self, event: Mapping[str, Any]) -> None:
        if event["event"] == "stage":
            self._say(str(event.get("title", "")))
        elif event["event"] == "progress":
            self._ui.segmentProgress.setRange(0, max(int(event["total"]), 1))
            self._ui.segmentProgress.setValue(int(event["step"]))

    def _on_finished(self, finished: Segmented) -> None:
        self._task = None
        for node in finished.nodes.values():
            self._result = node.GetID()
        names = [node.GetName() for node in finished.nodes.values()]
        done = [_("Created {names}.").format(names=", ".join(f"'{name}'" for name in names))] if names else []
        if finished.outcome.cancelled:
            done.append(_("Cancelled."))
            finished.messages.clear()
        self._say("\n".join([*done, *finished.messages]))
        self._panel.refresh()

    def _result_nodes(self) -> tuple[slicer.vtkMRMLNode | None, slicer.vtkMRMLNode] | None:
        node = slicer.mrmlScene.GetNodeByID(self._result) if self._result else None
        return (volume_of_result(node), node) if node is not None else None

    def _on_show_3d(self) -> None:
        result = self._result_nodes()
        if result is None:
            return
        node, display = result[1], result[1].GetDisplayNode()
        shown = bool(display.GetVisibility3D()) and _has_surface(node)
        if not shown:
            node.CreateClosedSurfaceRepresentation()
        display.SetVisibility3D(not shown)

    def _on_edit(self) -> None:
        result = self._result_nodes()
        if result is None:
            return
        slicer.util.selectModule("SegmentEditor")
        widget = getattr(slicer.modules, "SegmentEditorWidget", None)
        if widget is not None:
            widget.editor.setSegmentationNode(result[1])
            if result[0] is not None:
                widget.editor.setSourceVolumeNode(result[0])

    def _on_use_as_case(self) -> None:
        result = self._result_nodes()
        if result is None or result[0] is None:
            self._say(_("The volume of this result is gone."))
            return
        if is_uncorrected(result[1]):
            question = _(
                "'{name}' was not corrected. As a labeled case it only repeats what the model finds anyway, and makes "
                "the adapter look better than it is. Use it nevertheless?"
            )
            if not slicer.util.confirmYesNoDisplay(question.format(name=result[1].GetName())):
                return
        pair = CasePair(result[0].GetID(), result[1].GetID())
        self._offer_to_join(pair)
        accept_labels(result[1])
        self._panel.cases_section.add([pair])
        self._say(_("Added '{name}' to the labeled cases.").format(name=result[0].GetName()))

    def _offer_to_join(self, pair: CasePair) -> None:
        """Ask whether parts that only this result has, such as a base model's, are the whole of the other cases."""
        others = [structure.name for structure in self._panel.structures_section.structures]
        mapping = self._panel.structures_section.mapping()
        parts = [structure.name for structure in structures_of([pair], self._panel.structures_section.names())]
        new = [part for part in parts if normalized(part) not in {normalized(other) for other in others}]
        for whole in others:
            words = set(normalized(whole).split())
            belong = [
                part
                for part in new
                if part in mapping.get(whole, ()) or (words and words < set(normalized(part).split()))
            ]
            if len(belong) < 2:
                continue
            question = _("This result has {parts}; your other cases have '{whole}'. Join them to '{whole}'?").format(
                parts=", ".join(f"'{part}'" for part in belong), whole=whole
            )
            if slicer.util.confirmYesNoDisplay(question):
                self._panel.structures_section.join(belong, whole)
            return

    def _say(self, text: str) -> None:
        say(self._ui.segmentStatus, text)


def _has_surface(node: slicer.vtkMRMLSegmentationNode) -> bool:
    name = slicer.vtkSegmentationConverter.GetSegmentationClosedSurfaceRepresentationName()
    return bool(node.GetSegmentation().ContainsRepresentation(name))
