"""Section "Labeled cases": volumes with their segmentations, what is wrong with them, what their structures are."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import qt
import slicer
from slicer.i18n import tr as _

from TCurLoraSegmentLib.adapt_task import export_for_engine
from TCurLoraSegmentLib.errors import UserError, without_options
from TCurLoraSegmentLib.jobs import new_job
from TCurLoraSegmentLib.parameters import CaseRow
from TCurLoraSegmentLib.query import TIMEOUT_S
from TCurLoraSegmentLib.requests import LEAVE_OUT, NEW, map_arguments
from TCurLoraSegmentLib.scene_cases import (
    CasePair,
    SceneStructure,
    matched_by_terminology,
    pair_scene,
    structures_of,
)
from TCurLoraSegmentLib.scene_labels import normalized, state_of
from TCurLoraSegmentLib.widgets.tables import fill, is_checked, set_checked
from TCurLoraSegmentLib.widgets.waiting import waiting

if TYPE_CHECKING:
    from TCurLoraSegmentLib.widgets.panel import Panel


SECONDS_A_CASE = 10
"""What a check may take for each case at most, beside the start of the engine."""


class CasesSection:
    """Keeps the table of labeled cases and the mapping of their structures."""

    def __init__(self, panel: Panel) -> None:
        self._panel = panel
        self._ui = ui = panel.ui
        self._states: dict[CasePair, list[str]] = {}
        self._checked: dict[CasePair, Hashable] = {}
        self._matched: dict[str, list[str]] = {}
        self._structures: list[SceneStructure] = []
        self._structures_of: Hashable = ()
        self._scene = 0
        self._names: list[str] = []
        self._by_terminology: dict[str, list[str]] = {}
        self._choices: list[tuple[str, list[list[str]]]] = []
        self._combos: list[qt.QComboBox] = []
        self._filling = False
        ui.addFromSceneButton.connect("clicked()", self._on_add_from_scene)
        ui.addPairButton.connect("clicked()", self._on_add_pair)
        ui.removeCaseButton.connect("clicked()", self._on_remove)
        ui.checkCasesButton.connect("clicked()", self.check)
        ui.casesTable.connect("itemChanged(QTableWidgetItem*)", self._on_item_changed)

    def chosen(self) -> list[CasePair]:
        """The pairs that are complete and have a check mark."""
        return [row.pair for row in self._panel.parameters.cases() if row.use and all(_nodes(row.pair))]

    def mapping(self) -> dict[str, list[str]]:
        """What the structures of the chosen cases are in the base: as the user says, else by terminology.

        What is not named is left to the engine, which goes by name.
        """
        chosen = {**self._by_terminology, **self._panel.parameters.get("mapping")}
        return {name: list(sources) for name, sources in chosen.items() if name in self._names}

    def add(self, pairs: Sequence[CasePair]) -> int:
        """Add pairs that are not in the table yet; a volume's new segmentation takes the place of its old one.

        Returns:
            How many were added or replaced.
        """
        rows = self._panel.parameters.cases()
        known = {row.pair for row in rows}
        new = [pair for pair in dict.fromkeys(pairs) if pair not in known]
        replaced = {pair.volume_id for pair in new}
        rows = [row for row in rows if row.pair.volume_id not in replaced]
        self._panel.parameters.set_cases([*rows, *(CaseRow(pair) for pair in new)])
        self._panel.refresh()
        return len(new)

    def scene_closed(self) -> None:
        """Forget what was found out about nodes of the scene that is gone; the next one may use their IDs again."""
        self._scene += 1
        self._states, self._checked, self._matched = {}, {}, {}
        self._say("")

    def refresh(self) -> None:
        """Show the cases of the parameter node."""
        self._filling = True
        rows = self._panel.parameters.cases()
        texts, tooltips = [], []
        for row in rows:
            volume, labels = _nodes(row.pair)
            problems = self._problems(row.pair)
            state = "" if problems is None else _("ready") if not problems else problems[0]
            gone = _("(deleted)")
            texts.append(["", volume.GetName() if volume else gone, labels.GetName() if labels else gone, state])
            tooltips.append("\n".join(problems or ()))
        fill(self._ui.casesTable, texts, tooltips)
        for number, row in enumerate(rows):
            set_checked(self._ui.casesTable, number, 0, row.use)
        greeting = _("Load scans with their segmentations, then press 'Add from scene'. Five or more are a good start.")
        if self._ui.casesMessage.text in ("", greeting):
            self._say("" if rows else greeting)
        self._filling = False
        self._refresh_structures()

    def check(self) -> None:
        """Have the engine look at the chosen cases; nothing in the scene changes."""
        parameters, pairs = self._panel.parameters, self.chosen()
        if not pairs or not parameters.get("base"):
            self._say(_("Choose a base model and at least one complete case first."))
            return
        try:
            job = new_job("check", "check")
        except UserError as error:
            self._say(str(error))
            return
        try:
            with waiting():
                export = export_for_engine(self._panel.adapt_settings(), pairs, job.inputs)
        except UserError as error:
            job.delete()
            self._say(str(error))
            return
        unusable = {problem.pair: [f"{problem.message} {problem.remedy}"] for problem in export.problems}
        warned = {warning.pair: f"{warning.message} {warning.remedy}" for warning in export.warnings}
        usable = {
            case.name: pair for case, pair in zip(export.cases, (p for p in pairs if p not in unusable), strict=True)
        }
        self._states, self._checked = dict(unusable), {pair: self._state(pair) for pair in pairs}
        if not usable:
            job.delete()
            self._say(_("No case can be used; see the table."))
            self._panel.refresh()
            return
        self._ui.checkCasesButton.setEnabled(False)
        self._say(_("Checking {number} cases...").format(number=len(pairs)))

        scene = self._scene

        def answered(report: Mapping[str, Any]) -> None:
            if scene == self._scene:
                self._states = {**unusable, **{p: [warned[p]] if p in warned else [] for p in usable.values()}}
                self._show_report(report, usable)

        def failed(error: UserError) -> None:
            self._say(str(error))

        def ended() -> None:
            job.delete()
            self._ui.checkCasesButton.setEnabled(True)

        options = ["--base", str(parameters.get("base")), "--data", str(job.inputs)]
        options += map_arguments(self.mapping())
        timeout_s = TIMEOUT_S + SECONDS_A_CASE * len(pairs)
        self._panel.query("check", *options, on_answer=answered, on_error=failed, on_end=ended, timeout_s=timeout_s)

    def _show_report(self, report: Mapping[str, Any], pairs: Mapping[str, CasePair]) -> None:
        general = []
        for finding in report["findings"]:
            text = without_options(" ".join(filter(None, (finding["message"], finding["remedy"]))))
            for name, pair in pairs.items():
                volume = _nodes(pair)[0]
                text = text.replace(name, volume.GetName() if volume else name)
            if finding["case"]:
                self._states[pairs[str(finding["case"])]].append(text)
            elif finding["severity"] != "note":
                general.append(text)
        self._matched = {entry["name"]: list(entry["base"]) for entry in report["structures"]}
        errors = int(report["errors"]) + len(self._states) - len(pairs)
        summary = (
            _("{number} cases are ready.").format(number=len(pairs))
            if not errors
            else _("{number} problems were found; see the table.").format(number=errors)
        )
        self._say("\n".join([summary, *general]))
        self._panel.refresh()

    def _problems(self, pair: CasePair) -> list[str] | None:
        """What is wrong with a pair; None while that is not known."""
        volume, labels = _nodes(pair)
        if not volume:
            return [_("The volume is gone: remove this row.")]
        if not labels:
            return [_("The segmentation is gone: remove this row, or add the pair anew.")]
        return self._states.get(pair) if self._checked.get(pair) == self._state(pair) else None

    def _state(self, pair: CasePair) -> Hashable:
        """What a check of a pair depends on."""
        return (self._panel.parameters.get("base"), *(state_of(node) for node in _nodes(pair) if node is not None))

    def _on_add_from_scene(self) -> None:
        pairs, unpaired = pair_scene()
        added = self.add(pairs)
        text = _("{number} pairs were added.").format(number=added) if added else _("No new pair was found.")
        self._say("\n".join([text, *unpaired]))

    def _on_add_pair(self) -> None:
        volume, labels = self._ui.pairVolumeSelector.currentNode(), self._ui.pairLabelsSelector.currentNode()
        if volume is None or labels is None:
            self._say(_("Choose a volume and its segmentation."))
            return
        self.add([CasePair(volume.GetID(), labels.GetID())])
        self._say("")

    def _on_remove(self) -> None:
        row = self._ui.casesTable.currentRow()
        rows = self._panel.parameters.cases()
        if 0 <= row < len(rows):
            self._panel.parameters.set_cases(rows[:row] + rows[row + 1 :])
            self._panel.refresh()

    def _on_item_changed(self, item: qt.QTableWidgetItem) -> None:
        if self._filling or item.column() != 0:
            return
        rows = self._panel.parameters.cases()
        table = self._ui.casesTable
        self._panel.parameters.set_cases([replace(row, use=is_checked(table, n, 0)) for n, row in enumerate(rows)])
        self._panel.refresh_later()

    def _refresh_structures(self) -> None:
        base = self._panel.base_model_section.current()
        base_names = [str(name) for name in (base or {}).get("structures", ())]
        structures = self._structures_now()
        names = self._names = [structure.name for structure in structures]
        terminology = {str(name): str(entry) for name, entry in (base or {}).get("terminology", {}).items()}
        same_name = {normalized(name) for name in base_names}
        self._by_terminology = {
            structure.name: found
            for structure in structures
            if normalized(structure.name) not in same_name and (found := matched_by_terminology(structure, terminology))
        }
        mapping = self._panel.parameters.get("mapping")
        table = self._ui.structuresTable
        visible = bool(names)
        table.setVisible(visible)
        self._ui.structuresLabel.setVisible(visible)
        self._choices, self._combos = [], []
        fill(table, [[name, ""] for name in names])
        for row, name in enumerate(names):
            values: list[list[str]] = [[], *([b] for b in base_names)]
            titles = [self._automatic(name), *base_names]
            if len(base_names) > 1:
                values.append(base_names)
                titles.append(" + ".join(base_names))
            values += [[NEW], [LEAVE_OUT]]
            titles += [_("new: the base never saw it"), _("leave out")]
            chosen = list(mapping.get(name, []))
            if chosen not in values:
                values.append(chosen)
                titles.append(" + ".join(chosen))
            combo = qt.QComboBox()
            combo.addItems(titles)
            combo.setCurrentIndex(values.index(chosen))
            combo.connect("currentIndexChanged(int)", self._on_mapping_changed)
            table.setCellWidget(row, 1, combo)
            self._choices.append((name, values))
            self._combos.append(combo)

    def _structures_now(self) -> list[SceneStructure]:
        """The structures of the chosen cases; voxels are counted again only where something has changed."""
        chosen = self.chosen()
        state = tuple((pair, state_of(_nodes(pair)[1])) for pair in chosen)
        if state != self._structures_of:
            self._structures, self._structures_of = structures_of(chosen), state
        return self._structures

    def _automatic(self, name: str) -> str:
        if name in self._by_terminology:
            return _("by terminology: {names}").format(names=" + ".join(self._by_terminology[name]))
        if name not in self._matched:
            return _("by name")
        sources = self._matched[name]
        return _("by name: {names}").format(names=" + ".join(sources)) if sources else _("by name: new to the base")

    def _on_mapping_changed(self, _index: int) -> None:
        mapping = dict(self._panel.parameters.get("mapping"))
        for (name, values), combo in zip(self._choices, self._combos, strict=True):
            mapping[name] = values[combo.currentIndex]
        self._panel.parameters.set("mapping", {name: value for name, value in mapping.items() if value})
        self._states = {}
        self._panel.refresh_later()

    def _say(self, text: str) -> None:
        self._ui.casesMessage.setText(text)


def _nodes(pair: CasePair) -> tuple[slicer.vtkMRMLNode | None, slicer.vtkMRMLNode | None]:
    volume, labels = (
        slicer.mrmlScene.GetNodeByID(node_id) if node_id else None for node_id in (pair.volume_id, pair.labels_id)
    )
    return volume, labels
