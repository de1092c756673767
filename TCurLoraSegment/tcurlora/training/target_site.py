"""A site: a base model, labeled cases, and how the site's structures are served by the base's channels."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tcurlora.cases.dataset import Case, Dataset, Finding, check_cases, find_cases, read_case_labels, read_structures
from tcurlora.evaluation.scores import Score, score_case
from tcurlora.imaging.grids import label_array
from tcurlora.imaging.images import read_image
from tcurlora.imaging.structure_matching import match_structures, parse_mapping
from tcurlora.imaging.structures import Structure, parse_labels
from tcurlora.inference.segmenter import Segmenter
from tcurlora.method.adapted_model import AdaptedModel
from tcurlora.method.channels import channel_groups, plan_channels
from tcurlora.method.config import TensorCurConfig
from tcurlora.method.head import find_head
from tcurlora.models.base_model import BaseModel
from tcurlora.models.opening import load_base_model
from tcurlora.training.presets import preset

LEAVE_ONE_OUT_BELOW = 6


@dataclass(frozen=True)
class Site:
    """A base model and a site's cases.

    Attributes:
        base: the base model.
        dataset: the labeled cases.
        structures: what the site labels.
        matched: for each structure the base's structures that it consists of; none for a new one.
    """

    base: BaseModel
    dataset: Dataset
    structures: tuple[Structure, ...]
    matched: Mapping[str, list[str]]

    def config(self, network: nn.Module, method: str, rank: int | None = None, seed: int = 0) -> TensorCurConfig:
        """Configure what is trained: the preset, the head, and the layout of its channels.

        Args:
            network: the base's network.
            method: one of `presets.PRESETS`.
            rank: of the cores; None takes the preset's.
            seed: of a random selection.
        """
        changes: dict[str, Any] = {
            "head": head_of(self.base, network),
            "channels": tuple(plan_channels(self.matched, self.base.channels)),
            "seed": seed,
        }
        if rank is not None:
            changes["r"] = rank
        return preset(method, network, **changes)

    def groups(self, config: TensorCurConfig) -> list[list[int]]:
        """Channel indices of each class under a configuration, the background first."""
        return channel_groups([c.name for c in config.channels or ()], [s.name for s in self.structures])

    def segmenter(self, model: AdaptedModel, device: torch.device) -> Segmenter:
        """Merge an adapter and make ready to segment with it; an untrained adapter gives the base's own result."""
        channels = [channel.name for channel in model.config.channels or ()]
        return Segmenter(
            model.merged(),
            channels,
            self.structures,
            self.base.preprocessing,
            self.base.windows,
            device,
            self.base.in_channels,
        )


def head_of(base: BaseModel, network: nn.Module) -> str:
    """Name the convolution that makes the output of a base model's network."""
    example = torch.zeros(1, base.in_channels, *base.windows.roi_size)
    return find_head(network, example, len(base.channels))


def open_site(base: str, data: str | Path, labels: str = "", mapping: Sequence[str] = (), strict: bool = True) -> Site:
    """Read base model and cases, and match their structures.

    Args:
        base: name or folder of the base model.
        data: folder or datalist of the cases.
        labels: names of label values, such as `1=hippocampus`.
        mapping: site structures by base structures, such as `hippocampus=anterior+posterior`.
        strict: whether to refuse labels without a name; `check_site` reports them otherwise.

    Raises:
        InputError: when something is not found or not named.
    """
    model = load_base_model(base)
    declared = parse_labels(labels)
    dataset = find_cases(Path(data), declared)
    structures = tuple(read_structures(dataset, declared, strict))
    matched = match_structures([s.name for s in structures], model.structures, parse_mapping(mapping))
    return Site(model, dataset, structures, matched)


def check_site(site: Site) -> list[Finding]:
    """Name every problem of every case at once, and say how the structures are matched."""
    findings = check_cases(site.dataset, site.structures, site.base.in_channels)
    for name, sources in site.matched.items():
        if not sources:
            text = f"The base model does not know '{name}'; it is learned from your cases alone."
            remedy = "If it does know it, say so (with --map); if not, the method 'full' learns it in fewer steps."
            findings.append(Finding("", "new_structure", text, remedy, "note"))
        elif sources != [name]:
            text = f"'{name}' is taken from the base model's {' + '.join(repr(s) for s in sources)}."
            findings.append(Finding("", "mapped_structure", text, "If that is wrong, correct it (with --map).", "note"))
    return findings


def fold_cases(cases: Sequence[Case], folds: int | None, seed: int) -> list[list[Case]]:
    """Split cases into held-out sets; all cases of a subject stay together.

    Args:
        cases: all cases.
        folds: number of folds; None means 3, or one for each subject below 6 cases. 0 and 1 mean none.
        seed: of the shuffle.
    """
    subjects = sorted({case.subject for case in cases})
    count = folds if folds is not None else (len(subjects) if len(cases) < LEAVE_ONE_OUT_BELOW else 3)
    count = min(count, len(subjects))
    if count < 2:
        return []
    random.Random(seed).shuffle(subjects)
    fold_of = {subject: i % count for i, subject in enumerate(subjects)}
    return [[case for case in cases if fold_of[case.subject] == fold] for fold in range(count)]


def score_cases(segmenter: Segmenter, cases: Sequence[Case], structures: Sequence[Structure]) -> list[Score]:
    """Segment cases and score the results in the geometry of their images."""
    values = {structure.name: structure.value for structure in structures}
    scores = []
    for case in cases:
        image = read_image(case.image)
        predicted, _ = segmenter.segment(image)
        truth = read_case_labels(case, structures, image)
        scores += score_case(case.name, label_array(predicted), label_array(truth), image.GetSpacing(), values)
    return scores
