"""Section "Labeled cases": volumes with their segmentations, whose they are, and what is wrong with them."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import qt
import slicer
from slicer.i18n import tr as _

from TCurLoraSegmentLib.adapt_task import export_for_engine
from TCurLoraSegmentLib.errors import UserError, without_options
from TCurLoraSegmentLib.jobs import new_job
from TCurLoraSegmentLib.parameters import CaseRow
from TCurLoraSegmentLib.query import TIMEOUT_S
from TCurLoraSegmentLib.requests import map_arguments
from TCurLoraSegmentLib.scene_cases import CasePair, is_uncorrected, pair_scene
from TCurLoraSegmentLib.scene_export import CaseExport
from TCurLoraSegmentLib.scene_labels import state_of
from TCurLoraSegmentLib.scene_subjects import Subject, subjects_of
from TCurLoraSegmentLib.scene_views import show_case
from TCurLoraSegmentLib.widgets.labels import say
from TCurLoraSegmentLib.widgets.tables import fill, is_checked, prepare, set_checked
from TCurLoraSegmentLib.widgets.waiting import waiting

if TYPE_CHECKING:
    from TCurLoraSegmentLib.widgets.panel import Panel


SECONDS_A_CASE = 10
"""What a check may take for each case at most, beside the start of the engine."""
SECONDS_TO_GUESS = 900
"""What segmenting a few cases may take, with a large model on a slow computer."""
USE, VOLUME, LABELS, PERSON, STATE = range(5)
LISTED = 3
"""Cases whose problems are written below the table."""


@dataclass(frozen=True)
class Remark:
    """What a check found about a case; an error keeps it from being used."""

    message: str
    error: bool
    remedy: str = ""

    @property
    def text(self) -> str:
        """All that there is to say."""
        return f"{self.message} {self.remedy}".strip()


class CasesSection:
    """Keeps the table of labeled cases, and checks them."""

    def __init__(self, panel: Panel) -> None:
        self._panel = panel
        self._ui = ui = panel.ui
        self._remarks: dict[CasePair, list[Remark]] = {}
        self._checked: dict[CasePair, Hashable] = {}
        self._uncorrected: dict[str, tuple[Hashable, bool]] = {}
        self._message = ""
        self._message_of: Hashable = None
        self._checking = False
        self._scene = 0
        self._filling = False
        prepare(ui.casesTable, (VOLUME, LABELS, PERSON))
        ui.pairFrame.setVisible(False)
        ui.addFromSceneButton.connect("clicked()", self._on_add_from_scene)
        ui.addPairToggle.connect("toggled(bool)", lambda on: ui.pairFrame.setVisible(bool(on)))
        ui.addPairButton.connect("clicked()", self._on_add_pair)
        ui.removeCaseButton.connect("clicked()", self._on_remove)
        ui.checkCasesButton.connect("clicked()", self.check)
        ui.casesTable.connect("itemChanged(QTableWidgetItem*)", self._on_item_changed)
        ui.casesTable.connect("cellDoubleClicked(int,int)", self._on_double_click)
        ui.casesTable.connect("itemSelectionChanged()", self._refresh_buttons)

    def chosen(self) -> list[CasePair]:
        """The pairs that are complete and have a check mark."""
        return [row.pair for row in self._panel.parameters.cases() if row.use and all(_nodes(row.pair))]

    def subjects(self) -> dict[CasePair, str]:
        """What the user calls the person of each case, where that was said."""
        return {row.pair: row.subject for row in self._panel.parameters.cases() if row.subject}

    def people(self) -> list[str]:
        """What the people of all cases are called."""
        return [person.label for person in self._people(self._panel.parameters.cases()) if person]

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

    def add_and_look(self, pairs: Sequence[CasePair]) -> int:
        """Add pairs, and compare what has no telling name with what the base model finds there."""
        added = self.add(pairs)
        if added and self._panel.structures_section.wants_guesses() and not self._panel.engine_problems():
            self.check()
        return added

    def scene_closed(self) -> None:
        """Forget what was found out about nodes of the scene that is gone; the next one may use their IDs again."""
        self._scene += 1
        self._remarks, self._checked, self._uncorrected = {}, {}, {}
        self._say("")

    def forget_check(self) -> None:
        """Forget what a check found: it was made with other structures."""
        self._remarks = {}

    def labels_state(self, pair: CasePair) -> Hashable:
        """Return what the structures of a case depend on."""
        labels = _nodes(pair)[1]
        return pair, labels is not None and state_of(labels)

    def step(self, by: int) -> None:
        """Show the next case in the views, or the one before."""
        count = self._ui.casesTable.rowCount
        if count:
            row = self._ui.casesTable.currentRow()
            self._show((row + by) % count if row >= 0 else (0 if by > 0 else count - 1))

    def show_volume(self, name: str) -> None:
        """Show the case of the volume of this name."""
        for number, row in enumerate(self._panel.parameters.cases()):
            volume = _nodes(row.pair)[0]
            if volume is not None and volume.GetName() == name:
                self._show(number)
                return

    def refresh(self) -> None:
        """Show the cases of the parameter node."""
        self._filling = True
        rows = self._panel.parameters.cases()
        people = self._people(rows)
        texts, tooltips = [], []
        for row, person in zip(rows, people, strict=True):
            volume, labels = _nodes(row.pair)
            gone = _("(deleted)")
            state, tooltip = self._state_words(row.pair)
            own, drawn = (node.GetName() if node else gone for node in (volume, labels))
            texts.append(["", own, _without(own, drawn), person.label if person else "", state])
            tooltips.append("\n".join(filter(None, (f"{own}: {drawn}", tooltip))))
        fill(self._ui.casesTable, texts, tooltips, (PERSON,))
        for number, row in enumerate(rows):
            set_checked(self._ui.casesTable, number, USE, row.use)
        if self._message_of is not None and self._message_of != self._state_of_all():
            self._say("")
        say(self._ui.casesMessage, self._message or self._summary(rows))
        self._ui.trySampleButton.setVisible(not rows)
        self._filling = False
        self._refresh_buttons()

    def check(self) -> None:
        """Have the engine look at the chosen cases; nothing in the scene changes."""
        parameters, pairs = self._panel.parameters, self.chosen()
        if not pairs or not parameters.get("base") or self._checking:
            return
        try:
            job = new_job("check", "check")
        except UserError as error:
            self.tell(str(error))
            return
        try:
            with waiting():
                export = export_for_engine(self._panel.adapt_settings(), pairs, job.inputs, self.subjects())
        except UserError as error:
            job.delete()
            self.tell(str(error))
            return
        remarks = {problem.pair: [Remark(problem.message, True, problem.remedy)] for problem in export.problems}
        usable = {
            case.name: pair for case, pair in zip(export.cases, (p for p in pairs if p not in remarks), strict=True)
        }
        remarks |= {pair: [] for pair in usable.values()}
        for warning in export.warnings:
            remarks[warning.pair].append(Remark(warning.message, False, warning.remedy))
        self._remarks, self._checked = remarks, {pair: self._state(pair) for pair in pairs}
        if not usable:
            job.delete()
            self._conclude([])
            return
        guess = self._panel.structures_section.wants_guesses()
        self._checking = True
        self._say(
            _("Comparing your labels with what the base model finds...")
            if guess
            else _("Checking {number} cases...").format(number=len(pairs))
        )
        scene = self._scene
        words = _Words(export, usable, str(job.path))

        def answered(report: Mapping[str, Any]) -> None:
            if scene == self._scene:
                self._remarks = remarks
                self._panel.structures_section.take(report)
                self._take(report, usable, words, pairs)

        def failed(error: UserError) -> None:
            self.tell(words.of(str(error)))

        def ended() -> None:
            job.delete()
            self._checking = False
            self._refresh_buttons()

        options = ["--base", str(parameters.get("base")), "--data", str(job.inputs)]
        options += map_arguments(self._panel.structures_section.mapping())
        options += ["--guess", "--device", self._panel.device()] if guess else []
        timeout_s = TIMEOUT_S + SECONDS_A_CASE * len(pairs) + (SECONDS_TO_GUESS if guess else 0)
        self._panel.query("check", *options, on_answer=answered, on_error=failed, on_end=ended, timeout_s=timeout_s)
        self._panel.refresh()

    def _take(
        self, report: Mapping[str, Any], usable: Mapping[str, CasePair], words: _Words, pairs: Sequence[CasePair]
    ) -> None:
        general = []
        structures = self._panel.structures_section.structures
        odd = [s for s in structures if 0 < s.cases < len(pairs) / 2]
        absent = _absent_structures(structures, odd, pairs)
        asked = self._panel.structures_section.open()
        for finding in report["findings"]:
            message, remedy = (words.of(without_options(str(finding[key]))) for key in ("message", "remedy"))
            pair = usable.get(str(finding["case"]))
            if finding["code"] == "new_structure" and any(f"'{name}'" in message for name in asked):
                continue  # which is asked about
            if pair is None:
                general.append(f"{message} {remedy}".strip())
            elif finding["code"] == "structure_absent":
                self._remarks[pair] += [absent[pair]] if pair in absent else []
            else:
                self._remarks[pair].append(Remark(message, finding["severity"] == "error", remedy))
        for structure in odd:
            text = _("Only {count} of {number} cases have '{name}'.")
            message = text.format(count=structure.cases, number=len(pairs), name=structure.name)
            remark = Remark(message, False, _("If the others have it under another name, use one name in all."))
            for member in structure.members:
                if member < len(pairs) and pairs[member] in self._remarks:
                    self._remarks[pairs[member]].append(remark)
        self._conclude(general)

    def _conclude(self, general: Sequence[str]) -> None:
        """Say how many cases are ready, in agreement with their rows, and what was found."""
        remarks = list(self._remarks.items())
        bad = sum(any(remark.error for remark in found) for _pair, found in remarks)
        noted = sum(bool(found) for _pair, found in remarks) - bad
        if bad:
            summary = _("{ready} of {number} cases are ready; {bad} cannot be used.").format(
                ready=len(remarks) - bad, number=len(remarks), bad=bad
            )
        else:
            summary = _("{cases} are ready.").format(cases=self._count(self._panel.parameters.cases()))
        if noted:
            summary += " " + _("{noted} with a remark.").format(noted=noted)
        lines = []
        for pair, found in remarks:
            volume = _nodes(pair)[0]
            if found and volume is not None:
                lines.append(f"{volume.GetName()}: {found[0].message}")
        if len(lines) > LISTED:
            more = _("{count} more: see the tooltips in the table.").format(count=len(lines) - LISTED)
            lines = [*lines[:LISTED], more]
        self.tell("\n".join([summary, *lines, *general]))

    def _state_words(self, pair: CasePair) -> tuple[str, str]:
        """The state of a case in a word, and all that there is to say about it."""
        volume, labels = _nodes(pair)
        if not volume:
            return _("gone"), _("The volume is gone: remove this row.")
        if not labels:
            return _("gone"), _("The segmentation is gone: remove this row, or add the pair again.")
        lines = []
        if self._is_uncorrected(labels):
            lines.append(_("A model made these labels, and nobody has corrected them."))
        word = _("uncorrected") if lines else ""
        remarks = self._remarks.get(pair) if self._checked.get(pair) == self._state(pair) else None
        if remarks is not None:
            lines += [remark.text for remark in remarks]
            if any(remark.error for remark in remarks):
                word = _("problem")
            else:
                word = word or (_("remark") if remarks else _("ready"))
        return word, "\n".join(lines)

    def _is_uncorrected(self, labels: slicer.vtkMRMLNode) -> bool:
        state, node_id = state_of(labels), labels.GetID()
        known = self._uncorrected.get(node_id)
        if known is None or known[0] != state:
            known = self._uncorrected[node_id] = (state, is_uncorrected(labels))
        return known[1]

    def _state(self, pair: CasePair) -> Hashable:
        """Return what a check of a pair depends on."""
        return (self._panel.parameters.get("base"), *(state_of(node) for node in _nodes(pair) if node is not None))

    def _state_of_all(self) -> Hashable:
        """Return what a message about all cases depends on."""
        rows = self._panel.parameters.cases()
        return tuple((row, tuple(node is not None for node in _nodes(row.pair)), self._state(row.pair)) for row in rows)

    def _people(self, rows: Sequence[CaseRow]) -> list[Subject | None]:
        volumes = [_nodes(row.pair)[0] for row in rows]
        there = [(volume, row.subject) for volume, row in zip(volumes, rows, strict=True) if volume]
        found = iter(subjects_of([volume for volume, _given in there], [given for _volume, given in there]))
        return [next(found) if volume else None for volume in volumes]

    def _summary(self, rows: Sequence[CaseRow]) -> str:
        if not rows:
            return _("Load scans with their segmentations, then press 'Add from scene'. Five or more are a good start.")
        return _("{cases} are chosen.").format(cases=self._count(rows))

    def _count(self, rows: Sequence[CaseRow]) -> str:
        used = [row for row in rows if row.use and all(_nodes(row.pair))]
        people = {person.key for person in self._people(used) if person}
        return _("{cases} cases of {people} people").format(cases=len(used), people=len(people))

    def _refresh_buttons(self) -> None:
        ui = self._ui
        ui.checkCasesButton.setEnabled(bool(self.chosen()) and not self._checking)
        ui.removeCaseButton.setEnabled(0 <= ui.casesTable.currentRow() < ui.casesTable.rowCount)

    def _show(self, number: int) -> None:
        rows = self._panel.parameters.cases()
        if 0 <= number < len(rows):
            self._ui.casesTable.selectRow(number)
            others = [node for row in rows for node in [_nodes(row.pair)[1]] if node is not None]
            show_case(*_nodes(rows[number].pair), others)

    def _on_double_click(self, row: int, column: int) -> None:
        if column != PERSON:  # which is edited
            self._show(row)

    def _on_add_from_scene(self) -> None:
        pairs, unpaired = pair_scene()
        added = self.add(pairs)
        text = _("{number} pairs were added.").format(number=added) if added else _("No new pair was found.")
        rows = self._panel.parameters.cases()
        self.tell("\n".join([text, *unpaired, *([self._summary(rows)] if rows else [])]))
        if added and self._panel.structures_section.wants_guesses() and not self._panel.engine_problems():
            self.check()

    def _on_add_pair(self) -> None:
        volume, labels = self._ui.pairVolumeSelector.currentNode(), self._ui.pairLabelsSelector.currentNode()
        if volume is None or labels is None:
            self.tell(_("Choose a volume and its segmentation."))
            return
        self._say("")
        self.add_and_look([CasePair(volume.GetID(), labels.GetID())])

    def _on_remove(self) -> None:
        row = self._ui.casesTable.currentRow()
        rows = self._panel.parameters.cases()
        if 0 <= row < len(rows):
            self._panel.parameters.set_cases(rows[:row] + rows[row + 1 :])
            self._panel.refresh()

    def _on_item_changed(self, item: qt.QTableWidgetItem) -> None:
        if self._filling or item.column() not in (USE, PERSON):
            return
        rows, table = self._panel.parameters.cases(), self._ui.casesTable
        if item.column() == USE:
            rows = [replace(row, use=is_checked(table, n, USE)) for n, row in enumerate(rows)]
        elif item.row() < len(rows):
            rows[item.row()] = replace(rows[item.row()], subject=str(item.text()).strip())
        self._panel.parameters.set_cases(rows)
        self._panel.refresh_later()

    def _say(self, text: str) -> None:
        self._message, self._message_of = text, None
        say(self._ui.casesMessage, text)

    def tell(self, text: str) -> None:
        """Say something that holds as long as the cases stay as they are."""
        self._say(text)
        self._message_of = self._state_of_all()
        self._panel.refresh()


class _Words:
    """Says what the engine says, with nodes in the place of files."""

    def __init__(self, export: CaseExport, usable: Mapping[str, CasePair], folder: str) -> None:
        self._folder = folder
        self._names: dict[str, str] = {}
        cases: dict[str, str] = {}
        for case in export.cases:
            volume, labels = _nodes(usable[case.name])
            own = cases[case.name] = volume.GetName() if volume else case.name
            self._names[str(case.image)] = own
            self._names[str(case.label)] = labels.GetName() if labels else own
        self._names |= cases

    def of(self, text: str) -> str:
        """Replace paths, then names of cases, then whatever else lies in the folder of the check."""
        for file, name in self._names.items():
            text = re.sub(rf"'?(?<![\w/\\-]){re.escape(file)}(?![\w-])'?", _quoted(name), text)
        return re.sub(rf"'?{re.escape(self._folder)}[^\s']*'?", _quoted(_("a copy")), text)


def _quoted(name: str) -> Callable[[re.Match[str]], str]:
    return lambda _match: f"'{name}'"


def _without(name: str, other: str) -> str:
    """Return what a name has beside another that it begins with: rows are told apart by what differs."""
    rest = other[len(name) :]
    return f"…{rest}" if name and other.startswith(name) and rest and not rest[0].isalnum() else other


def _absent_structures(
    structures: Sequence[Any], odd: Sequence[Any], pairs: Sequence[CasePair]
) -> dict[CasePair, Remark]:
    """Say for each case which structures it lacks, but for those that most cases lack."""
    remarks = {}
    for number, pair in enumerate(pairs):
        names = [f"'{s.name}'" for s in structures if s not in odd and s.cases and number not in s.members]
        labels = _nodes(pair)[1]
        if names and labels is not None:
            message = _("'{labels}' has no {names}.").format(labels=labels.GetName(), names=", ".join(names))
            remarks[pair] = Remark(message, False, _("Fine if it is not in the scan; otherwise label it."))
    return remarks


def _nodes(pair: CasePair) -> tuple[slicer.vtkMRMLNode | None, slicer.vtkMRMLNode | None]:
    volume, labels = (
        slicer.mrmlScene.GetNodeByID(node_id) if node_id else None for node_id in (pair.volume_id, pair.labels_id)
    )
    return volume, labels
