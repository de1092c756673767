"""Section "Adapters": the library of adapters on this computer."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import qt
import slicer
from slicer.i18n import tr as _

from TCurLoraSegmentLib.errors import UserError
from TCurLoraSegmentLib.requests import free_name, name_problems
from TCurLoraSegmentLib.widgets.labels import say
from TCurLoraSegmentLib.widgets.tables import fill, prepare

if TYPE_CHECKING:
    from TCurLoraSegmentLib.widgets.panel import Panel


NAME, BASE = 0, 1
LARGEST_CONFIG = 2**20
_LEFT_OUT = re.compile(r"^- SHA-256[^\n]*\n|^## Use\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
"""What a card says to people at a command line."""


class AdaptersSection:
    """Lists adapters; use, rename, export, import, delete, open the card."""

    def __init__(self, panel: Panel) -> None:
        self._panel = panel
        self._ui = ui = panel.ui
        self._message = self._deleted = ""
        prepare(ui.adaptersTable, (NAME, BASE))
        ui.adaptersTable.connect("itemSelectionChanged()", self._on_selected)
        for name in ("use", "rename", "export", "import", "delete"):
            getattr(ui, f"{name}AdapterButton").connect("clicked()", getattr(self, f"_on_{name}"))
        ui.cardButton.connect("clicked()", self._on_card)
        ui.adapterCard.setVisible(False)

    def adapters_changed(self) -> None:
        """Show the adapters that there are now."""
        self._leave_deleted()
        rows, tooltips = [], []
        for entry in self._panel.adapters:
            dice = entry["adapted_dice"]
            rows.append(
                [
                    entry["name"],
                    str(entry["base_model"] or "?"),
                    str(entry["created"] or "?"),
                    str(entry["cases"] or "?"),
                    "" if dice is None else f"{dice:.3f}",
                ]
            )
            tooltips.append(str(entry["problem"] or entry["summary"] or ""))
        fill(self._ui.adaptersTable, rows, tooltips)
        self._ui.adapterCard.setVisible(False)
        self._on_selected()
        self._message = ""

    def _leave_deleted(self) -> None:
        """Choose another model when the chosen adapter was deleted here, and say so."""
        names = [entry["name"] for entry in self._panel.adapters]
        deleted, self._deleted = self._deleted, ""
        if not deleted or deleted in names:
            return
        self._message = _("Deleted '{name}'.").format(name=deleted)
        if self._panel.parameters.get("model") == deleted:
            self._panel.parameters.set("model", "")
            self._panel.segment_section.models_changed()
            title = self._panel.segment_section.title()
            self._message += " " + _("'{model}' is chosen in 'Segment' now.").format(model=title)

    def _selected(self) -> Mapping[str, Any] | None:
        row = self._ui.adaptersTable.currentRow()
        return self._panel.adapters[row] if 0 <= row < len(self._panel.adapters) else None

    def _on_selected(self) -> None:
        entry = self._selected()
        for name in ("rename", "export", "delete"):
            getattr(self._ui, f"{name}AdapterButton").setEnabled(entry is not None)
        self._ui.cardButton.setEnabled(entry is not None)
        self._ui.useAdapterButton.setEnabled(entry is not None and not entry["problem"])
        if not self._panel.adapters and not self._message:
            self._say(_("There are no adapters yet.") if self._panel.listed else "")
            return
        self._say(self._message or str((entry or {}).get("problem") or (entry or {}).get("summary") or ""))

    def _on_use(self) -> None:
        entry = self._selected()
        if entry is not None:
            self._panel.parameters.set("model", entry["name"])
            self._panel.refresh()
            self._panel.show_tab("segmentTab")

    def _on_card(self) -> None:
        entry = self._selected()
        card = self._ui.adapterCard
        if entry is None or card.visible:
            card.setVisible(False)
            return
        try:
            text = (Path(entry["path"]) / "README.md").read_text(encoding="utf-8")
            card.setMarkdown(_LEFT_OUT.sub("", text))
        except OSError:
            card.setPlainText(_("The adapter '{name}' has no model card.").format(name=entry["name"]))
        card.setVisible(True)

    def _on_rename(self) -> None:
        entry = self._selected()
        if entry is None:
            return
        old = str(entry["name"])
        new = qt.QInputDialog.getText(
            self._ui.renameAdapterButton, _("Rename adapter"), _("New name:"), qt.QLineEdit.Normal, old
        )
        if not new or new == old:
            return
        problems = name_problems(new, [e["name"] for e in self._panel.adapters if e["name"] != old])
        if problems:
            self._say(" ".join(problems))
            return

        def renamed(answer: Any) -> None:
            if self._panel.parameters.get("model") == old:
                self._panel.parameters.set("model", new)
            self._changed(answer)

        self._panel.query("adapters", "rename", old, "--name", new, on_answer=renamed, on_error=self._failed)

    def _on_export(self) -> None:
        entry = self._selected()
        if entry is None:
            return
        suggested = str(Path.home() / f"{entry['name']}.zip")
        target = qt.QFileDialog.getSaveFileName(
            self._ui.exportAdapterButton, _("Export adapter"), suggested, _("Adapter (*.zip)")
        )
        if target:
            # The file dialog has asked before an existing file is replaced.
            options = ["--out", target if target.lower().endswith(".zip") else f"{target}.zip"]
            options += ["--force"] if target.lower().endswith(".zip") else []
            self._panel.query(
                "adapters", "export", str(entry["name"]), *options, on_answer=self._exported, on_error=self._failed
            )

    def _on_import(self) -> None:
        path = qt.QFileDialog.getOpenFileName(
            self._ui.importAdapterButton, _("Import adapter"), "", _("Adapter (*.zip)")
        )
        if path:

            def imported(answer: Mapping[str, Any]) -> None:
                self._message = _("Added '{name}'.").format(name=Path(str(answer["path"])).name)
                self._changed(answer)

            name = _name_in(path)
            options = [f"--name={free_name(name, [str(e['name']) for e in self._panel.adapters])}"] if name else []
            self._panel.query("adapters", "import", path, *options, on_answer=imported, on_error=self._failed)

    def _on_delete(self) -> None:
        entry = self._selected()
        if entry is None:
            return
        question = _("Delete the adapter '{name}'? This cannot be undone.").format(name=entry["name"])
        if slicer.util.confirmOkCancelDisplay(question):
            name = str(entry["name"])

            def deleted(answer: Any) -> None:
                self._deleted = name
                self._changed(answer)

            self._panel.query("adapters", "remove", name, on_answer=deleted, on_error=self._failed)

    def _changed(self, _answer: Any) -> None:
        self._panel.reload_adapters()

    def _exported(self, answer: Mapping[str, Any]) -> None:
        self._say(_("Exported to {path}.").format(path=answer["path"]))

    def _failed(self, error: UserError) -> None:
        self._say(str(error))

    def _say(self, text: str) -> None:
        say(self._ui.adaptersMessage, text)


def _name_in(path: str) -> str:
    """Return the name that an exported adapter was given when it was made; empty where it has none that can be used.

    The engine looks at everything else in the file.
    """
    with suppress(OSError, ValueError, KeyError, AttributeError, zipfile.BadZipFile), zipfile.ZipFile(path) as opened:
        member = next((name for name in opened.namelist() if name.rpartition("/")[2] == "adapter_config.json"), "")
        if member and opened.getinfo(member).file_size < LARGEST_CONFIG:
            name = str(json.loads(opened.read(member)).get("name") or "")
            return "" if name_problems(name) else name
    return ""
