"""Section "Segment new scans": which scans, with which model, and what can be done with the result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import qt
import slicer
from slicer.i18n import tr as _

from TCurLoraSegmentLib.errors import UserError
from TCurLoraSegmentLib.requests import SegmentSettings
from TCurLoraSegmentLib.scene_cases import CasePair, accept_labels
from TCurLoraSegmentLib.segment_task import Segmented, SegmentTask
from TCurLoraSegmentLib.widgets.tables import fill, is_checked, set_checked
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
        self._result: tuple[str, str] | None = None
        self._models: list[_Model] = []
        self._scans: list[str] = []
        self._filling = False
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
        self._result = None
        if self._task is not None:
            self._task.scene_closed()

    def models_changed(self) -> None:
        """Offer the adapters and base models that there are now."""
        adapters = [entry for entry in self._panel.adapters if not entry["problem"]]
        bases = [entry for entry in self._panel.models if entry["on_disk"]]
        self._models = [_Model(str(e["name"]), str(e["name"]), _("{name} (adapter)")) for e in adapters]
        self._models += [
            _Model(str(e["name"]), str(e.get("title") or e["name"]), _("{name} (base model as it is)")) for e in bases
        ]
        combo = self._ui.modelCombo
        was_blocked = combo.blockSignals(True)
        combo.clear()
        combo.addItems([model.shown.format(name=model.title) for model in self._models])
        combo.blockSignals(was_blocked)
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
            was_blocked = widget.blockSignals(True)
            getattr(widget, method)(value)
            widget.blockSignals(was_blocked)
        self._refresh_scans()
        missing = [_("A run is under way.")] if self.running else self._missing()
        ui.segmentButton.setEnabled(not missing)
        ui.segmentButton.setToolTip(
            _("Still missing:\n{list}").format(list="\n".join(f"- {text}" for text in missing))
            if missing
            else _("Segment the chosen volumes; runs in the background")
        )
        ui.cancelSegmentButton.setEnabled(self.running)
        ui.segmentProgress.setVisible(self.running)
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
        title = next((model.title for model in self._models if model.name == name), name)
        return SegmentSettings(name, title, self._panel.device(), get("uncertainty"), get("as_labelmap"))

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
        for volume_id, node in finished.nodes.items():
            self._result = (volume_id, node.GetID())
        names = [node.GetName() for node in finished.nodes.values()]
        done = [_("Made {names}.").format(names=", ".join(f"'{name}'" for name in names))] if names else []
        if finished.outcome.cancelled:
            done.append(_("Cancelled."))
            finished.messages.clear()
        self._say("\n".join([*done, *finished.messages]))
        self._panel.refresh()

    def _result_nodes(self) -> tuple[slicer.vtkMRMLNode | None, slicer.vtkMRMLNode] | None:
        if self._result is None:
            return None
        volume, node = (slicer.mrmlScene.GetNodeByID(node_id) for node_id in self._result)
        return (volume, node) if node is not None else None

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
        accept_labels(result[1])
        self._panel.cases_section.add([CasePair(result[0].GetID(), result[1].GetID())])
        self._say(_("'{name}' is among the labeled cases now.").format(name=result[0].GetName()))

    def _say(self, text: str) -> None:
        self._ui.segmentStatus.setText(text)


def _has_surface(node: slicer.vtkMRMLSegmentationNode) -> bool:
    name = slicer.vtkSegmentationConverter.GetSegmentationClosedSurfaceRepresentationName()
    return bool(node.GetSegmentation().ContainsRepresentation(name))
