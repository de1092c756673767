"""Cases of the base model's own site: what an adapter loses there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tcurlora.cases.case import Case
from tcurlora.cases.channels import read_case_image, with_channels_of
from tcurlora.cases.checks import check_cases
from tcurlora.cases.dataset import find_cases
from tcurlora.cases.labels import read_case_labels, read_structures
from tcurlora.errors import InputError
from tcurlora.evaluation.scores import Score, score_case
from tcurlora.imaging.label_layers import layers_of
from tcurlora.imaging.structures import Structure, normalized, parse_labels
from tcurlora.inference.segmenter import Segmenter
from tcurlora.training.target_site import Site


@dataclass(frozen=True)
class OwnData:
    """Labeled cases of the base's own site, whose structures are joined to those of the site that is adapted to.

    Attributes:
        cases: the cases.
        structures: what they are labeled with.
        joined: for each structure of the site, the label values that make it up here.
        values: label value of each structure of the site.
    """

    cases: tuple[Case, ...]
    structures: tuple[Structure, ...]
    joined: Mapping[str, tuple[int, ...]]
    values: Mapping[str, int]

    def score(self, segmenter: Segmenter) -> list[Score]:
        """Segment all cases and score the structures that are labeled here."""
        scores = []
        for case in self.cases:
            image = read_case_image(case)
            predicted, _ = segmenter.segment(image)
            labels = layers_of(read_case_labels(case, self.structures))
            # A layer for each structure, because they may overlap.
            truth = np.stack(
                [np.isin(labels, values).any(0).T * self.values[name] for name, values in self.joined.items()]
            )
            found = np.stack([layer.T for layer in layers_of(predicted)])
            known = {name: self.values[name] for name in self.joined}
            scores += score_case(case.name, found, truth, image.GetSpacing(), known)
        return scores


def open_own_data(site: Site, data: str | Path, labels: str = "") -> OwnData:
    """Find the cases of the base's own site and say which of their labels make up which structure of the other site.

    A structure of the site is here either under its own name, or as all the base's structures that it consists of.

    Args:
        site: the site that is adapted to.
        data: folder or datalist of the base's own cases.
        labels: names of label values there.

    Raises:
        InputError: when a case cannot be used, or no structure of the site is labeled there.
    """
    declared = parse_labels(labels)
    dataset = with_channels_of(find_cases(Path(data), declared), site.base.input_channels)
    structures = tuple(read_structures(dataset, declared))
    findings = check_cases(dataset, structures, site.base.in_channels, minimum=1, overlapping=site.overlapping)
    problems = [finding for finding in findings if finding.severity == "error"]
    if problems:
        first = problems[0]
        raise InputError(f"--own-data: {first.message}", first.remedy, first.code)
    by_name = {normalized(structure.name): structure.value for structure in structures}
    joined: dict[str, tuple[int, ...]] = {}
    for name, sources in site.matched.items():
        for names in ([name], sources):
            if names and all(normalized(each) in by_name for each in names):
                joined[name] = tuple(by_name[normalized(each)] for each in names)
                break
    if not joined:
        known = ", ".join(f"'{structure.name}'" for structure in structures)
        raise InputError(
            f"None of the structures to adapt to is labeled in {data}, which has {known}.",
            "Correct the names with --own-labels, or leave out --own-data.",
            "unknown_structure",
        )
    return OwnData(dataset.cases, structures, joined, {s.name: s.value for s in site.structures})
