"""The choice of the base model in the tab "Adapt": what it is in two lines, and its download."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import qt
import slicer
from slicer.i18n import tr as _

from TCurLoraSegmentLib.errors import UserError
from TCurLoraSegmentLib.widgets.labels import offer, say, searchable

if TYPE_CHECKING:
    from TCurLoraSegmentLib.widgets.panel import Panel

MANY = 12
"""Models from which on the list can be searched."""
LISTED = 4
"""Structures that are named before the rest is counted."""


class BaseModelSection:
    """Chooses the base model."""

    def __init__(self, panel: Panel) -> None:
        self._panel = panel
        self._ui = ui = panel.ui
        self._message = ""
        ui.baseModelCombo.connect("currentIndexChanged(int)", self._on_chosen)
        ui.addBundleButton.connect("clicked()", self.add)
        ui.fetchModelButton.connect("clicked()", self._on_fetch)

    def current(self) -> Mapping[str, Any] | None:
        """The chosen model's entry in the catalogue."""
        name = self._panel.parameters.get("base")
        return next((entry for entry in self._panel.models if entry["name"] == name), None)

    def problems(self) -> list[str]:
        """Why the chosen model cannot be used, one sentence each."""
        name = self._panel.parameters.get("base")
        if not self._panel.models:
            if self._panel.engine_problems():
                return []  # which stand in the way already
            none = _("No base model was found.")
            return [none if self._panel.listed else _("The base models are not listed yet.")]
        if not name or self.current() is not None:
            return []
        return [_("The base model '{name}' is not on this computer: choose another one, or add it.").format(name=name)]

    def models_changed(self) -> None:
        """Show the models that there are now; what a scene was saved with stays chosen, also where it is not here."""
        models, parameters = self._panel.models, self._panel.parameters
        self._message = ""
        if models and not parameters.get("base"):
            parameters.set("base", str(models[0]["name"]))
        if len(models) > MANY and not self._ui.baseModelCombo.editable:
            searchable(self._ui.baseModelCombo)
        self.refresh()

    def refresh(self) -> None:
        """Show the choice of the parameter node."""
        entry, models = self.current(), self._panel.models
        titles = [str(one.get("title") or one["name"]) for one in models]
        offer(self._ui.baseModelCombo, titles, models.index(entry) if entry is not None else -1)
        summary = in_words(entry) if entry else " ".join(self.problems())
        # Where the engine does not work, the notice above the tabs says so for all.
        message = "" if self._panel.engine_problems() else self._message
        say(
            self._ui.baseModelSummary,
            message if message and not models else "\n".join(filter(None, (summary, message))),
        )
        self._ui.baseModelSummary.setToolTip(", ".join(map(str, (entry or {}).get("structures") or ())))
        on_disk = entry is not None and bool(entry["on_disk"])
        self._ui.fetchModelButton.setVisible(entry is not None and not on_disk)

    def add(self) -> None:
        """Ask for a folder or zip file, and add the model in it."""
        box = qt.QMessageBox()
        box.setWindowTitle(_("Add a base model"))
        box.setText(_("Is the model a folder, or a zip file?"))
        as_folder = box.addButton(_("Folder..."), qt.QMessageBox.AcceptRole)
        as_file = box.addButton(_("Zip file..."), qt.QMessageBox.AcceptRole)
        box.addButton(qt.QMessageBox.Cancel)
        box.exec_()
        if box.clickedButton() == as_folder:
            path = qt.QFileDialog.getExistingDirectory(self._ui.addBundleButton, _("Choose the model's folder"))
        elif box.clickedButton() == as_file:
            path = qt.QFileDialog.getOpenFileName(
                self._ui.addBundleButton, _("Choose the model's file"), "", _("Model (*.zip)")
            )
        else:
            return
        if path:
            self.say(_("Reading the model..."))
            # However large the model is, and however slow the drive.
            self._panel.query("models", "add", path, on_answer=self._changed, on_error=self.failed, timeout_s=None)

    def _on_chosen(self, index: int) -> None:
        if 0 <= index < len(self._panel.models):
            self.choose(str(self._panel.models[index]["name"]))

    def choose(self, name: str) -> None:
        """Choose a model."""
        self._panel.parameters.set("base", name)
        self._message = ""
        self._panel.refresh_later()

    def _on_fetch(self) -> None:
        entry = self.current()
        if entry is None:
            return
        name, options = str(entry["name"]), []
        if entry.get("restricted"):
            question = _("'{name}' may not be used for every purpose: {terms} Is your use allowed?").format(
                name=entry.get("title") or name, terms=entry["restricted"]
            )
            if not slicer.util.confirmOkCancelDisplay(question):
                return
            options = ["--accept-licence"]
        self.say(_("Downloading..."))
        self._ui.fetchModelButton.setEnabled(False)
        self._panel.query(
            *("models", "fetch", name, *options),
            on_answer=self._changed,
            on_error=self.failed,
            on_event=self._on_fetched,
            timeout_s=None,
        )

    def _on_fetched(self, event: Mapping[str, Any]) -> None:
        if event["event"] == "progress":
            part = int(100 * event["step"] / max(event["total"], 1))
            self.say(_("Downloading... {part} %").format(part=part))

    def _changed(self, _answer: Mapping[str, Any]) -> None:
        self._ui.fetchModelButton.setEnabled(True)
        self._panel.reload_models()

    def failed(self, error: UserError) -> None:
        """Say what went wrong."""
        self._ui.fetchModelButton.setEnabled(True)
        self.say(str(error))

    def say(self, text: str) -> None:
        """Say something below the summary until another model is chosen or the list is there again."""
        self._message = text
        self.refresh()


def in_words(entry: Mapping[str, Any]) -> str:
    """Describe a model on two lines: its structures; then modality, kind, network, size, license and where it is."""
    size = entry.get("size")
    names = [str(name) for name in entry.get("structures") or ()]
    parts = (
        str(entry.get("modality") or ""),
        _channels(entry.get("channels") or ()),
        str(entry.get("network") or entry.get("kind") or ""),
        f"{size / 1e6:.0f} MB" if size else "",
        _("license {license}").format(license=entry["licence"]) if entry.get("licence") else "",
        where(entry),
    )
    return "\n".join([_("Segments {structures}.").format(structures=listed(names)), ", ".join(filter(None, parts))])


def where(entry: Mapping[str, Any]) -> str:
    """Say where a model is."""
    origin = str(entry.get("origin", ""))
    known = {
        "shipped": _("comes with this extension"),
        "downloaded": _("on this computer") if entry["on_disk"] else _("to be downloaded"),
        "added": _("added by you"),
        "found": _("found on this computer"),
    }
    return known.get(origin, origin)


def listed(names: Sequence[str]) -> str:
    """Name a few, and count the others."""
    if len(names) <= LISTED + 1:
        return ", ".join(names) or "?"
    return _("{names} and {count} more").format(names=", ".join(names[:LISTED]), count=len(names) - LISTED)


def _channels(channels: Sequence[Any]) -> str:
    if len(channels) < 2:
        return ""
    return _("{count} input channels ({names})").format(count=len(channels), names=", ".join(map(str, channels)))
