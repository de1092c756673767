"""What a site's structures may be in the base model, guessed by where the labels lie in the base's segmentations."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tcurlora.cases.channels import read_case_image
from tcurlora.cases.labels import read_case_labels
from tcurlora.errors import TCurLoraError
from tcurlora.imaging.grids import label_array
from tcurlora.inference.segmenter import Segmenter
from tcurlora.runtime.events import EventSink
from tcurlora.training.target_site import Site

MOST_CASES = 3
"""Cases that are segmented: where a structure lies is seen in few of them."""
ENOUGH_S = 60.0
"""Seconds after which no further case is segmented."""
MOST_CANDIDATES = 5


@dataclass(frozen=True)
class Guess:
    """How well a structure of the site is covered by structures of the base.

    Attributes:
        structure: name of the site's structure.
        cases: segmented cases that hold it.
        candidates: names of base structures that are taken together, and their Dice with it over those cases; the
            best first, without those that do not touch it.
    """

    structure: str
    cases: int
    candidates: tuple[tuple[tuple[str, ...], float], ...]

    def to_dict(self) -> dict[str, Any]:
        candidates = [{"base": list(names), "dice": round(dice, 4)} for names, dice in self.candidates]
        return {"structure": self.structure, "cases": self.cases, "candidates": candidates}


def guess_structures(site: Site, device: torch.device, events: EventSink) -> list[Guess]:
    """Segment a few cases with the base model, and compare every structure of the site with those of the base.

    Args:
        site: base model and cases; a case that cannot be read is passed over.
        device: where the base runs.
        events: told of the stage and of each case.

    Returns:
        A guess for each structure of the site, in their order.
    """
    known = site.base.labelled_structures()
    events.emit("stage", name="guess", title="Comparing your labels with what the base model finds")
    segmenter = Segmenter.of_base(site.base, device)
    overlap = np.zeros((len(site.structures), len(known)), np.int64)
    own, found = np.zeros(len(site.structures), np.int64), np.zeros(overlap.shape, np.int64)
    cases = np.zeros(len(site.structures), np.int64)
    started, chosen = time.monotonic(), site.dataset.cases[:MOST_CASES]
    for number, case in enumerate(chosen, start=1):
        try:
            image = read_case_image(case)
            labels = label_array(read_case_labels(case, site.structures))
            predicted = label_array(segmenter.segment(image)[0])
        except TCurLoraError:
            continue  # the check tells what is wrong with it
        sizes = np.array([(predicted == structure.value).sum() for structure in known])
        for row, structure in enumerate(site.structures):
            inside = labels == structure.value
            if not inside.any():
                continue
            cases[row] += 1
            own[row] += inside.sum()
            overlap[row] += [(predicted[inside] == one.value).sum() for one in known]
            found[row] += sizes
        events.emit("progress", step=number, total=len(chosen))
        if time.monotonic() - started > ENOUGH_S:
            break
    names = [structure.name for structure in known]
    return [
        Guess(structure.name, int(cases[row]), rank_unions(names, int(own[row]), overlap[row], found[row]))
        for row, structure in enumerate(site.structures)
    ]


def rank_unions(
    names: Sequence[str], own: int, overlap: npt.NDArray[np.int64], found: npt.NDArray[np.int64]
) -> tuple[tuple[tuple[str, ...], float], ...]:
    """Rank single structures and unions of them by their Dice with a structure.

    Structures of a labelmap do not overlap, so the best union takes those of which the largest parts lie inside: the
    ratio of two sums is the largest for the first so many in that order.

    Args:
        names: of the base's structures.
        own: voxels of the site's structure.
        overlap: voxels of each base structure inside of it.
        found: voxels of each base structure.

    Returns:
        Names and Dice, the best first; those with no overlap are left out.
    """
    touching = [index for index in range(len(names)) if overlap[index] > 0]
    touching.sort(key=lambda index: overlap[index] / found[index], reverse=True)
    unions = {frozenset([index]) for index in touching}
    unions |= {frozenset(touching[:count]) for count in range(1, len(touching) + 1)}
    ranked = [
        (
            tuple(names[index] for index in sorted(union)),
            2.0 * float(sum(overlap[i] for i in union)) / float(own + sum(found[i] for i in union)),
        )
        for union in unions
    ]
    ranked.sort(key=lambda entry: (-entry[1], len(entry[0]), entry[0]))
    return tuple(ranked[:MOST_CANDIDATES])
