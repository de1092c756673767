"""Section "Base models": all models in a list that can be searched, and what there is to know about each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import slicer
from slicer.i18n import tr as _

from TCurLoraSegmentLib.errors import UserError
from TCurLoraSegmentLib.widgets.base_model_section import listed, where
from TCurLoraSegmentLib.widgets.labels import say
from TCurLoraSegmentLib.widgets.tables import fill, prepare

if TYPE_CHECKING:
    from TCurLoraSegmentLib.widgets.panel import Panel

NAME, STRUCTURES = 0, 2


class ModelsSection:
    """Lists base models; use, add, remove, details."""

    def __init__(self, panel: Panel) -> None:
        self._panel = panel
        self._ui = ui = panel.ui
        self._shown: list[Mapping[str, Any]] = []
        self._details_of = ""
        prepare(ui.modelsTable, (NAME, STRUCTURES))
        ui.baseModelDetails.setVisible(False)
        ui.modelFilterEdit.connect("textChanged(QString)", lambda _text: self.models_changed())
        ui.modelsTable.connect("itemSelectionChanged()", self._on_selected)
        ui.useModelButton.connect("clicked()", self._on_use)
        ui.addModelButton.connect("clicked()", panel.base_model_section.add)
        ui.removeBundleButton.connect("clicked()", self._on_remove)

    def models_changed(self) -> None:
        """Show the models that there are now and that the user searches for."""
        say(self._ui.modelsMessage, "")
        words = str(self._ui.modelFilterEdit.text).casefold().split()
        self._shown = [entry for entry in self._panel.models if all(word in _searched(entry) for word in words)]
        rows, tooltips = [], []
        for entry in self._shown:
            names = [str(name) for name in entry.get("structures") or ()]
            title = str(entry.get("title") or entry["name"])
            rows.append([title, str(entry.get("kind") or entry.get("network") or ""), listed(names), where(entry)])
            tooltips.append("\n".join([str(entry["name"]), ", ".join(names)]))
        fill(self._ui.modelsTable, rows, tooltips)
        self._on_selected()

    def select(self, name: str) -> None:
        """Select a model by its name."""
        for row, entry in enumerate(self._shown):
            if entry["name"] == name:
                self._ui.modelsTable.selectRow(row)

    def _selected(self) -> Mapping[str, Any] | None:
        row = self._ui.modelsTable.currentRow()
        return self._shown[row] if 0 <= row < len(self._shown) else None

    def _on_selected(self) -> None:
        entry = self._selected()
        on_disk = entry is not None and bool(entry["on_disk"])
        self._ui.useModelButton.setEnabled(entry is not None)
        self._ui.removeBundleButton.setEnabled(
            on_disk and entry is not None and entry["origin"] in ("downloaded", "added")
        )
        name = str(entry["name"]) if entry is not None else ""
        if name == self._details_of:
            return
        self._details_of = name
        details = self._ui.baseModelDetails
        details.setVisible(on_disk)
        details.setPlainText(_("Reading the model...") if on_disk else "")
        say(self._ui.modelsMessage, "" if on_disk or entry is None else _("Use it, then download it in the tab Adapt."))
        if on_disk:
            self._panel.query("models", "show", name, on_answer=self._show_details, on_error=self._no_details)

    def _show_details(self, description: Mapping[str, Any]) -> None:
        if description["name"] == self._details_of:  # another model may have been chosen meanwhile
            self._ui.baseModelDetails.setPlainText(_details(description))

    def _no_details(self, error: UserError) -> None:
        self._ui.baseModelDetails.setPlainText(str(error))

    def _on_use(self) -> None:
        entry = self._selected()
        if entry is not None:
            self._panel.base_model_section.choose(str(entry["name"]))
            self._panel.show_tab("adaptTab")

    def _on_remove(self) -> None:
        entry = self._selected()
        if entry is None:
            return
        question = _("Delete the base model '{name}' from this computer?").format(name=entry["name"])
        if slicer.util.confirmOkCancelDisplay(question):
            name = str(entry["name"])
            self._panel.query("models", "remove", name, on_answer=self._removed, on_error=self._failed)

    def _removed(self, answer: Mapping[str, Any]) -> None:
        if self._panel.parameters.get("base") == answer["removed"]:
            self._panel.parameters.set("base", "")
        self._details_of = ""
        self._panel.reload_models()

    def _failed(self, error: UserError) -> None:
        say(self._ui.modelsMessage, str(error))


def _searched(entry: Mapping[str, Any]) -> str:
    parts = (
        entry["name"],
        entry.get("title"),
        entry.get("kind"),
        entry.get("modality"),
        *(entry.get("structures") or ()),
    )
    return " ".join(str(part) for part in parts if part).casefold()


def _details(description: Mapping[str, Any]) -> str:
    """Say what is known of a model; kinds differ in what they tell."""
    preprocessing = description.get("preprocessing") or {}
    spacing, window = preprocessing.get("spacing") or description.get("spacing"), preprocessing.get("roi_size")
    lines = [
        str(description.get("description") or ""),
        _("Version {version}, license {license}").format(
            version=description.get("version") or "?", license=description.get("licence") or "?"
        ),
        _("Structures: {names}").format(names=", ".join(description.get("structures") or ())),
    ]
    if description.get("input_channels"):
        lines.append(_("Input channels: {names}").format(names=", ".join(map(str, description["input_channels"]))))
    if description.get("network"):
        count = description.get("parameters", description.get("numbers"))
        lines.append(
            _("Network: {name}, {count:,} parameters").format(name=description["network"], count=count)
            if count
            else _("Network: {name}").format(name=description["network"])
        )
    if spacing or window:
        lines.append(
            _("Voxels: {spacing} mm; window: {window}").format(
                spacing=" x ".join(f"{value:g}" for value in spacing or ()) or "?",
                window=" x ".join(str(value) for value in window or ()) or "?",
            )
        )
    if "stacks" in description:
        lines.append(_("Stacks of equal layers that can be adapted: {count}").format(count=len(description["stacks"])))
    for method, counts in (description.get("trained") or {}).items():
        if "total" in counts:
            lines.append(
                _("Trainable with {method}: {count:,} parameters").format(method=method, count=counts["total"])
            )
    if description.get("sha256"):
        lines.append(f"SHA-256: {description['sha256']}")
    return "\n".join(filter(None, lines))
