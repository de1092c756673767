"""Section "Base model": the catalogue, an own bundle, download, details."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import qt
import slicer
from slicer.i18n import tr as _

from TCurLoraSegmentLib.errors import UserError

if TYPE_CHECKING:
    from TCurLoraSegmentLib.widgets.panel import Panel


class BaseModelSection:
    """Chooses the base model."""

    def __init__(self, panel: Panel) -> None:
        self._panel = panel
        self._ui = ui = panel.ui
        self._shown_details = ""
        self._message = ""
        ui.baseModelCombo.connect("currentIndexChanged(int)", self._on_chosen)
        ui.addBundleButton.connect("clicked()", self._on_add)
        ui.removeBundleButton.connect("clicked()", self._on_remove)
        ui.fetchModelButton.connect("clicked()", self._on_fetch)
        ui.baseModelDetailsGroup.connect("toggled(bool)", self._on_details)

    def current(self) -> Mapping[str, Any] | None:
        """The chosen model's entry in the catalogue."""
        name = self._panel.parameters.get("base")
        return next((entry for entry in self._panel.models if entry["name"] == name), None)

    def problems(self) -> list[str]:
        """Why the chosen model cannot be used, one sentence each."""
        name = self._panel.parameters.get("base")
        if not self._panel.models or not name or self.current() is not None:
            return []
        return [_("The base model '{name}' is not on this computer: choose another one, or add it.").format(name=name)]

    def models_changed(self) -> None:
        """Show the models that there are now; what a scene was saved with stays chosen, also where it is not here."""
        models, parameters = self._panel.models, self._panel.parameters
        self._message = ""
        if models and not parameters.get("base"):
            parameters.set("base", str(models[0]["name"]))
        combo = self._ui.baseModelCombo
        was_blocked = combo.blockSignals(True)
        combo.clear()
        for entry in models:
            combo.addItem(str(entry.get("title") or entry["name"]))
        combo.blockSignals(was_blocked)
        self.refresh()

    def refresh(self) -> None:
        """Show the choice of the parameter node."""
        entry = self.current()
        combo = self._ui.baseModelCombo
        was_blocked = combo.blockSignals(True)
        combo.setCurrentIndex(self._panel.models.index(entry) if entry is not None else -1)
        combo.blockSignals(was_blocked)
        summary = _in_words(entry) if entry else " ".join(self.problems()) or _("No base model was found.")
        self._ui.baseModelSummary.setText("\n".join(filter(None, (summary, self._message))))
        on_disk = entry is not None and bool(entry["on_disk"])
        self._ui.fetchModelButton.setVisible(entry is not None and not on_disk)
        own = entry is not None and entry["origin"] in ("downloaded", "added")
        self._ui.removeBundleButton.setEnabled(on_disk and own)
        if entry is None or entry["name"] != self._shown_details:
            self._ui.baseModelDetails.setPlainText("")
            self._shown_details = ""
            self._on_details()

    def _on_chosen(self, index: int) -> None:
        if 0 <= index < len(self._panel.models):
            self._panel.parameters.set("base", str(self._panel.models[index]["name"]))
            self._message = ""
            self._panel.refresh()

    def _on_add(self) -> None:
        folder = qt.QFileDialog.getExistingDirectory(self._ui.addBundleButton, _("Choose the folder of a MONAI bundle"))
        if folder:
            self.say(_("Reading the bundle..."))
            # However large the bundle is, and however slow the drive.
            self._panel.query("models", "add", folder, on_answer=self._changed, on_error=self._failed, timeout_s=None)

    def _on_remove(self) -> None:
        entry = self.current()
        if entry is None:
            return
        question = _("Delete the base model '{name}' from this computer?").format(name=entry["name"])
        if slicer.util.confirmOkCancelDisplay(question):
            name = str(entry["name"])
            self._panel.query("models", "remove", name, on_answer=self._removed, on_error=self._failed)

    def _on_fetch(self) -> None:
        entry = self.current()
        if entry is not None:
            self.say(_("Downloading..."))
            self._ui.fetchModelButton.setEnabled(False)
            name = str(entry["name"])
            self._panel.query(
                *("models", "fetch", name),
                on_answer=self._changed,
                on_error=self._failed,
                on_event=self._on_fetched,
                timeout_s=None,
            )

    def _on_fetched(self, event: Mapping[str, Any]) -> None:
        if event["event"] == "progress":
            part = int(100 * event["step"] / max(event["total"], 1))
            self.say(_("Downloading... {part} %").format(part=part))

    def _on_details(self, _open: bool = True) -> None:
        entry = self.current()
        if self._ui.baseModelDetailsGroup.collapsed or entry is None or not entry["on_disk"] or self._shown_details:
            return
        self._shown_details = str(entry["name"])
        self._ui.baseModelDetails.setPlainText(_("Reading the model..."))
        self._panel.query(
            "models", "show", self._shown_details, on_answer=self._show_details, on_error=self._no_details
        )

    def _show_details(self, description: Mapping[str, Any]) -> None:
        if description["name"] != self._shown_details:
            return  # another model has been chosen meanwhile
        self._ui.baseModelDetails.setPlainText(_details(description))

    def _no_details(self, error: UserError) -> None:
        self._ui.baseModelDetails.setPlainText(str(error))

    def _removed(self, answer: Mapping[str, Any]) -> None:
        if self._panel.parameters.get("base") == answer["removed"]:
            self._panel.parameters.set("base", "")
        self._changed(answer)

    def _changed(self, answer: Mapping[str, Any]) -> None:
        self._ui.fetchModelButton.setEnabled(True)
        self._panel.reload_models()

    def _failed(self, error: UserError) -> None:
        self._ui.fetchModelButton.setEnabled(True)
        self.say(str(error))

    def say(self, text: str) -> None:
        """Tell something below the summary until another model is chosen or the list is there anew."""
        self._message = text
        self.refresh()


def _in_words(entry: Mapping[str, Any]) -> str:
    """Modality, structures, licence, size and where it is, on a few lines."""
    size = entry.get("size")
    where = {
        "shipped": _("comes with this extension"),
        "downloaded": _("on this computer") if entry["on_disk"] else _("to be downloaded"),
        "added": _("your own bundle"),
    }[entry["origin"]]
    lines = [
        _("Segments {structures}.").format(structures=", ".join(map(str, entry.get("structures", ()))) or "?"),
        ", ".join(
            filter(
                None,
                (
                    str(entry.get("modality", "")),
                    str(entry.get("network", "")),
                    f"{size / 1e6:.0f} MB" if size else "",
                    _("licence {licence}").format(licence=entry["licence"]) if entry.get("licence") else "",
                    where,
                ),
            )
        ),
    ]
    return "\n".join(lines)


def _details(description: Mapping[str, Any]) -> str:
    preprocessing = description["preprocessing"]
    lines = [
        str(description["description"]),
        _("Version {version}, licence {licence}").format(
            version=description["version"] or "?", licence=description["licence"] or "?"
        ),
        _("Structures: {names}").format(names=", ".join(description["structures"])),
        _("Network: {name}, {numbers:,} numbers").format(name=description["network"], numbers=description["numbers"]),
        _("Voxels: {spacing} mm; window: {window}").format(
            spacing=" x ".join(f"{value:g}" for value in preprocessing.get("spacing") or ()) or "?",
            window=" x ".join(str(value) for value in preprocessing["roi_size"]),
        ),
        _("Stacks of equal layers that can be adapted: {number}").format(number=len(description["stacks"])),
    ]
    for method, counts in description["trained"].items():
        if "total" in counts:
            lines.append(
                _("Trained by the method {method}: {number:,} numbers").format(method=method, number=counts["total"])
            )
    lines.append(f"SHA-256: {description['sha256']}")
    return "\n".join(filter(None, lines))
