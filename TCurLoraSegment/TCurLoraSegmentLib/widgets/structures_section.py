"""The table of structures: what the cases are labeled with, what that is in the base model, and what must be asked."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import qt
from slicer.i18n import tr as _

from TCurLoraSegmentLib.requests import LEAVE_OUT, NEW
from TCurLoraSegmentLib.scene_cases import SceneStructure, matched_by_terminology, structures_of
from TCurLoraSegmentLib.scene_labels import is_telling, normalized
from TCurLoraSegmentLib.structure_questions import (
    Candidate,
    Question,
    candidates_of,
    name_for,
    open_structures,
    questions,
)
from TCurLoraSegmentLib.widgets.labels import say, searchable
from TCurLoraSegmentLib.widgets.tables import COMBO_PADDING, fill, prepare, share

if TYPE_CHECKING:
    from TCurLoraSegmentLib.widgets.panel import Panel

NAME, BASE = 0, 1
FEW = 4
"""Base structures up to which all of them together are offered as one."""
MANY = 15
"""Base structures from which on the list can be searched."""


class StructuresSection:
    """Keeps the names of the structures and their mapping to the base model."""

    def __init__(self, panel: Panel) -> None:
        self._panel = panel
        self._ui = ui = panel.ui
        self._matched: dict[str, list[str]] = {}
        self._candidates: dict[str, list[Candidate]] = {}
        self._checked_base = ""
        self._structures: list[SceneStructure] = []
        self._structures_of: Hashable = ()
        self._by_terminology: dict[str, list[str]] = {}
        self._choices: list[tuple[str, list[list[str]]]] = []
        self._combos: list[qt.QComboBox] = []
        self._question: Question | None = None
        self._filling = False
        prepare(ui.structuresTable, (BASE, NAME), COMBO_PADDING)
        ui.structuresTable.connect("itemChanged(QTableWidgetItem*)", self._on_renamed)
        ui.questionYesButton.connect("clicked()", self._on_yes)
        ui.questionNoButton.connect("clicked()", self._on_no)

    @property
    def structures(self) -> list[SceneStructure]:
        """What the chosen cases are labeled with."""
        return self._structures

    def clear(self) -> None:
        """Forget what a check has found."""
        self._matched, self._candidates = {}, {}

    def mapping(self) -> dict[str, list[str]]:
        """What the structures of the chosen cases are in the base: as the user says, else by terminology.

        What is not named is left to the engine, which goes by name.
        """
        chosen = {**self._by_terminology, **self._answers()}
        names = [structure.name for structure in self._structures]
        return {name: list(sources) for name, sources in chosen.items() if name in names}

    def names(self) -> dict[str, str]:
        """What the user calls labels, by their names in the scene."""
        return {str(old): str(new) for old, new in self._panel.parameters.get("names").items()}

    def problems(self) -> list[str]:
        """What must be answered before a model can be adapted, one sentence each."""
        return [
            _("Choose what '{name}' is in the base model.").format(name=question.structure)
            for question in self._questions()
            if question.urgent
        ]

    def wants_guesses(self) -> bool:
        """Return whether a check is to compare the labels with what the base model finds."""
        return any(name not in self._candidates for name in self.open())

    def take(self, report: Mapping[str, Any]) -> None:
        """Take in what the engine's `check` says about structures."""
        self._matched = {str(entry["name"]): list(entry["base"]) for entry in report["structures"]}
        self._candidates.update(candidates_of(report))

    def join(self, names: Sequence[str], name: str) -> None:
        """Call several structures by one name, so that they are one."""
        wanted = {normalized(one) for one in names}
        changed = self.names()
        for structure in self._structures_now(include=names):
            if normalized(structure.name) in wanted:
                changed.update({alias: name for alias in structure.aliases if alias != name})
        for one in names:
            changed.setdefault(one, name)
        self._panel.parameters.set("names", {old: new for old, new in changed.items() if old != new})

    def refresh(self) -> None:
        """Show the structures of the chosen cases."""
        base = self._panel.base_model_section.current()
        if str(self._panel.parameters.get("base")) != self._checked_base:
            self._checked_base = str(self._panel.parameters.get("base"))
            self.clear()
        base_names = self._base_names()
        structures = self._structures_now()
        terminology = {str(name): str(entry) for name, entry in ((base or {}).get("terminology") or {}).items()}
        same_name = {normalized(name) for name in base_names}
        self._by_terminology = {
            structure.name: found
            for structure in structures
            if normalized(structure.name) not in same_name and (found := matched_by_terminology(structure, terminology))
        }
        self._filling = True
        self._choices, self._combos = [], []
        tooltips = [self._origin(structure) for structure in structures]
        fill(self._ui.structuresTable, [[structure.name, ""] for structure in structures], tooltips, (NAME,))
        for row, structure in enumerate(structures):
            self._add_combo(row, structure.name, base_names)
        share(self._ui.structuresTable)
        self._filling = False
        self._refresh_question()

    def _add_combo(self, row: int, name: str, base_names: Sequence[str]) -> None:
        chosen = list(self._answers().get(name, []))
        values, titles = self._offers(name, base_names, chosen)
        combo = qt.QComboBox()
        combo.addItems(titles)
        combo.setSizeAdjustPolicy(qt.QComboBox.AdjustToMinimumContentsLengthWithIcon)
        combo.setCurrentIndex(values.index(chosen))
        combo.setToolTip(titles[values.index(chosen)])
        if len(base_names) > MANY:
            searchable(combo)
            combo.lineEdit().connect("editingFinished()", lambda row=row: self._on_typed(row))
        combo.connect("currentIndexChanged(int)", lambda index, row=row: self._on_chosen(row, index))
        self._ui.structuresTable.setCellWidget(row, BASE, combo)
        self._choices.append((name, values))
        self._combos.append(combo)

    def _offers(self, name: str, base_names: Sequence[str], chosen: Sequence[str]) -> tuple[list[list[str]], list[str]]:
        """What a structure may be in the base, and how each choice is called; the best guesses first."""
        values: list[list[str]] = [[]]
        titles = [_("choose...") if name in self.open() else self._automatic(name)]
        dice = {candidate.base: candidate.dice for candidate in self._candidates.get(name, ())}
        whole = [tuple(base_names)] if 1 < len(base_names) <= FEW else []
        for sources in dict.fromkeys([*dice, *((b,) for b in base_names), *whole]):
            if all(source in base_names for source in sources):
                title = " + ".join(sources)
                values.append(list(sources))
                titles.append(
                    _("{name} (overlap: Dice {dice:.2f})").format(name=title, dice=dice[sources])
                    if sources in dice
                    else title
                )
        values += [[NEW], [LEAVE_OUT]]
        titles += [_("new (not in the base model)"), _("leave out")]
        if list(chosen) not in values:
            values.append(list(chosen))
            titles.append(" + ".join(chosen))
        return values, titles

    def _base_names(self) -> list[str]:
        base = self._panel.base_model_section.current()
        return [str(name) for name in (base or {}).get("structures") or ()]

    def _answers(self) -> dict[str, list[str]]:
        """What the user has said, as far as this base model has the structures."""
        known = {*self._base_names(), NEW, LEAVE_OUT}
        everything = self._panel.parameters.get("mapping")
        return {
            str(name): list(sources)
            for name, sources in everything.items()
            if sources and (len(known) == 2 or all(source in known for source in sources))
        }

    def open(self) -> list[str]:
        """The structures of which it is not known what they are in the base model."""
        answered = {**self._by_terminology, **self._answers()}
        return open_structures(self._structures, answered, self._matched, self._candidates)

    def _questions(self) -> list[Question]:
        apart = self._panel.parameters.get("apart")
        return questions(self._structures, self.open(), self._candidates, apart)

    def _structures_now(self, include: Sequence[str] = ()) -> list[SceneStructure]:
        """The structures of the chosen cases; voxels are counted again only where something has changed."""
        chosen = self._panel.cases_section.chosen()
        state = (tuple(self._panel.cases_section.labels_state(pair) for pair in chosen), tuple(self.names().items()))
        if state != self._structures_of:
            self._structures, self._structures_of = structures_of(chosen, self.names()), state
        return self._structures

    def _automatic(self, name: str) -> str:
        if name in self._by_terminology:
            return _("by terminology: {names}").format(names=" + ".join(self._by_terminology[name]))
        if name not in self._matched:
            return _("by name")
        sources = self._matched[name]
        if not sources:
            return _("by name: new (not in the base model)")
        return _("by name: {names}").format(names=" + ".join(sources))

    def _origin(self, structure: SceneStructure) -> str:
        others = [alias for alias in structure.aliases if alias != structure.name]
        where = _("in {count} cases").format(count=structure.cases)
        return f"{', '.join(map(repr, others))}: {where}" if others else where

    def _refresh_question(self) -> None:
        asked, ui = self._questions(), self._ui
        question = self._question = asked[0] if asked else None
        ui.questionFrame.setVisible(question is not None)
        if question is None:
            say(ui.questionLabel, "")
            return
        say(ui.questionLabel, question.text)
        ui.questionYesButton.setText(question.yes)
        ui.questionYesButton.setVisible(question.yes != "")
        ui.questionNoButton.setVisible(question.same_as != "")

    def _on_yes(self) -> None:
        question = self._question
        if question is None:
            return
        if question.same_as:
            self.join([question.structure], question.same_as)
        else:
            self._answer(question.structure, list(question.answer))
        self._panel.refresh()

    def _on_no(self) -> None:
        if self._question is not None and self._question.same_as:
            pair = sorted((self._question.structure, self._question.same_as))
            self._panel.parameters.set("apart", [*self._panel.parameters.get("apart"), pair])
        self._panel.refresh()

    def _on_chosen(self, row: int, index: int) -> None:
        name, values = self._choices[row]
        if not self._filling and 0 <= index < len(values):
            self._answer(name, values[index])
            self._panel.refresh_later()

    def _on_typed(self, row: int) -> None:
        """Take a typed entry: one of the list, or several structures of the base with a plus sign between them."""
        if self._filling or row >= len(self._combos):
            return
        name, combo = self._choices[row][0], self._combos[row]
        typed = combo.currentText
        if typed == combo.itemText(combo.currentIndex):
            return
        known = {normalized(base): base for base in self._base_names()}
        parts = [known.get(normalized(part), "") for part in typed.split("+")]
        if all(parts):
            self._answer(name, parts)
        self._panel.refresh_later()  # which shows the former choice where the text names nothing

    def _answer(self, name: str, sources: list[str]) -> None:
        """Keep what a structure is in the base; one without a telling name gets that of the base's."""
        mapping = dict(self._panel.parameters.get("mapping"))
        mapping[name] = sources
        if sources and sources not in ([NEW], [LEAVE_OUT]) and not is_telling(name):
            new = name_for(sources)
            if normalized(new) not in {normalized(structure.name) for structure in self._structures}:
                self.join([name], new)
                mapping[new] = mapping.pop(name)
        self._panel.parameters.set("mapping", {one: value for one, value in mapping.items() if value})
        self._panel.cases_section.forget_check()

    def _on_renamed(self, item: qt.QTableWidgetItem) -> None:
        if self._filling or item.column() != NAME or item.row() >= len(self._structures):
            return
        structure, new = self._structures[item.row()], " ".join(str(item.text()).split())
        if new and new != structure.name:
            mapping = dict(self._panel.parameters.get("mapping"))
            if structure.name in mapping:
                mapping.setdefault(new, mapping.pop(structure.name))
                self._panel.parameters.set("mapping", mapping)
            names = {**self.names(), **dict.fromkeys(structure.aliases, new)}
            self._panel.parameters.set("names", {old: chosen for old, chosen in names.items() if old != chosen})
            self._panel.cases_section.forget_check()
        self._panel.refresh_later()
