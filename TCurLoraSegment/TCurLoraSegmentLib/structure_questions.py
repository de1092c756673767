"""What must be asked about the structures of the cases before a model is adapted to them, and the best guesses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slicer.i18n import tr as _

from TCurLoraSegmentLib.requests import NEW
from TCurLoraSegmentLib.scene_cases import SceneStructure, alike
from TCurLoraSegmentLib.scene_labels import is_telling, normalized

LIKELY = 0.3
"""Dice from which on structures that lie at one place are taken for the same."""
STRIKING = 0.5
"""Dice from which on a telling name that the base does not know is asked about as well."""


@dataclass(frozen=True)
class Candidate:
    """Structures of the base that may together be one of the cases', and their Dice with it."""

    base: tuple[str, ...]
    dice: float


@dataclass(frozen=True)
class Question:
    """Something that only the user knows.

    Attributes:
        text: the question.
        structure: which structure it is about.
        yes: what the button for the offered answer says; empty where none is offered.
        answer: names of base structures, or [`NEW`]; empty where two structures may be the same.
        same_as: the other structure that may be the same.
        urgent: whether no model can be adapted before it is answered.
    """

    text: str
    structure: str
    yes: str = ""
    answer: tuple[str, ...] = ()
    same_as: str = ""
    urgent: bool = True


def candidates_of(report: Mapping[str, Any]) -> dict[str, list[Candidate]]:
    """Read the guesses in the answer of the engine's `check`, by the name of the structure."""
    return {
        str(guess["structure"]): [
            Candidate(tuple(map(str, entry["base"])), float(entry["dice"])) for entry in guess["candidates"]
        ]
        for guess in report.get("guesses", ())
    }


def open_structures(
    structures: Sequence[SceneStructure],
    answered: Mapping[str, Sequence[str]],
    matched: Mapping[str, Sequence[str]],
    candidates: Mapping[str, Sequence[Candidate]],
) -> list[str]:
    """Return the structures of which it is not known what they are in the base model.

    Args:
        structures: those of the cases.
        answered: structures whose place in the base the user or the terminology has told.
        matched: what the engine found by name, for the structures that a check has seen.
        candidates: guesses by overlap, for the structures that a check has compared.
    """
    found = []
    for structure in structures:
        name = structure.name
        if name in answered:
            continue
        best = max((candidate.dice for candidate in candidates.get(name, ())), default=0.0)
        unknown = name in matched and not matched[name]
        if not is_telling(name) or (unknown and best >= STRIKING):
            found.append(name)
    return found


def questions(
    structures: Sequence[SceneStructure],
    open_names: Sequence[str],
    candidates: Mapping[str, Sequence[Candidate]],
    apart: Sequence[Sequence[str]] = (),
) -> list[Question]:
    """Put together what must be asked, the urgent first.

    Args:
        structures: those of the cases.
        open_names: from `open_structures`.
        candidates: guesses by overlap.
        apart: pairs of names of which the user has said that they are not the same.
    """
    asked = []
    for name in open_names:
        if name not in candidates:
            text = _("What is '{name}'? Choose it above, or press 'Check' to see what the base model finds there.")
            asked.append(Question(text.format(name=name), name))
            continue
        best = next(iter(candidates[name]), None)
        if best is None or best.dice < LIKELY:
            text = _("What is '{name}'? The base model finds nothing like it there. Is it new to the base model?")
            asked.append(Question(text.format(name=name), name, _("It is new"), (NEW,)))
            continue
        text = _("What is '{name}'? It lies where the base model finds {base} (Dice {dice:.2f}).")
        words = text.format(name=name, base=" + ".join(best.base), dice=best.dice)
        asked.append(Question(words, name, _("Use that"), best.base))
    known_apart = {frozenset(map(str, pair)) for pair in apart}
    for first, second in alike(structures):
        if frozenset((first, second)) not in known_apart:
            text = _("'{first}' and '{second}' have the same words. Are they the same structure?")
            words = text.format(first=first, second=second)
            asked.append(Question(words, second, _("Same"), same_as=first, urgent=False))
    return asked


def name_for(base: Sequence[str]) -> str:
    """Return the name of a structure that consists of structures of the base: the words that all of them have."""
    if len(base) == 1:
        return base[0]
    shared = [word for word in base[0].split() if all(normalized(word) in normalized(b).split() for b in base[1:])]
    return " ".join(shared) or " + ".join(base)
