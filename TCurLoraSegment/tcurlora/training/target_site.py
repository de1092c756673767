"""A site: a base model, labeled cases, and how the site's structures are served by the base's channels."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tcurlora.cases.case import Case, Dataset, Finding
from tcurlora.cases.channels import read_case_image, with_channels_of
from tcurlora.cases.checks import check_cases
from tcurlora.cases.dataset import find_cases
from tcurlora.cases.labels import read_case_labels, read_structures
from tcurlora.evaluation.scores import Score, score_case
from tcurlora.imaging.label_layers import layers_of
from tcurlora.imaging.structure_matching import match_structures, parse_mapping
from tcurlora.imaging.structures import BACKGROUND, Structure, normalized, parse_labels
from tcurlora.inference.segmenter import Segmenter
from tcurlora.method.adapted_model import AdaptedModel
from tcurlora.method.channels import channel_groups, plan_channels
from tcurlora.method.config import TensorCurConfig
from tcurlora.method.head import find_head
from tcurlora.models.base_model import BaseModel
from tcurlora.models.opening import load_base_model
from tcurlora.training.losses import KeptChannels
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
        labels_complete: whether a voxel without a label holds none of the base's other structures either. If not, they
            are kept: they stay in the results, and such a voxel is not taught to be background.
    """

    base: BaseModel
    dataset: Dataset
    structures: tuple[Structure, ...]
    matched: Mapping[str, list[str]]
    labels_complete: bool = False

    @property
    def kept(self) -> tuple[Structure, ...]:
        """The base's structures that the site does not label and that stay, with numbers that the site does not use."""
        if self.labels_complete:
            return ()
        used = {source for sources in self.matched.values() for source in sources}
        names = {normalized(structure.name) for structure in self.structures}
        taken = {structure.value for structure in self.structures}
        kept: list[Structure] = []
        for structure in self.base.labelled_structures():
            if structure.name in used or normalized(structure.name) in names:
                continue
            value = structure.value if structure.value not in taken else max(taken) + 1
            taken.add(value)
            kept.append(replace(structure, value=value))
        return tuple(kept)

    @property
    def result_structures(self) -> tuple[Structure, ...]:
        """What the adapted model segments: the site's structures, then those that are kept of the base."""
        return (*self.structures, *self.kept)

    @property
    def overlapping(self) -> bool:
        """Whether a voxel may belong to several structures."""
        return self.base.activation == "sigmoid"

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
            "channels": tuple(plan_channels(self.matched, self.base.channels, [s.name for s in self.kept])),
            "seed": seed,
            "activation": self.base.activation,
        }
        if rank is not None:
            changes["r"] = rank
        return preset(method, network, **changes)

    def groups(self, config: TensorCurConfig) -> list[list[int]]:
        """Channel indices of each class that is trained under a configuration.

        The background is first, and with it stand the structures that are kept: see `segmentation_loss`. Where
        structures may overlap there is no background, and what is kept has no loss.
        """
        channels = [c.name for c in config.channels or ()]
        background, *own = channel_groups(channels, [s.name for s in self.structures])
        if self.overlapping:
            return own
        kept = {s.name for s in self.kept}
        return [sorted((*background, *(i for i, name in enumerate(channels) if name in kept))), *own]

    def kept_channels(self, network: nn.Module, config: TensorCurConfig) -> KeptChannels | None:
        """Say which channels are to stay as the base has them; None where nothing is kept.

        Args:
            network: the base's network.
            config: what is trained.
        """
        names = {s.name for s in self.kept}
        if not names:
            return None
        first = set() if self.overlapping else {BACKGROUND}
        channels = list(enumerate(config.channels or ()))
        # The background is first in every base that has one.
        chosen = [(index, c.source) for index, c in channels if c.name in names | first and c.source is not None]
        return KeptChannels(network, tuple(index for index, _ in chosen), tuple(source for _, source in chosen))

    def segmenter(self, model: AdaptedModel, device: torch.device) -> Segmenter:
        """Merge an adapter and make ready to segment with it; an untrained adapter gives the base's own result."""
        channels = [channel.name for channel in model.config.channels or ()]
        return Segmenter(
            model.merged(),
            channels,
            self.result_structures,
            self.base.preprocessing,
            self.base.windows,
            device,
            self.base.in_channels,
            activation=self.base.activation,
        )


def head_of(base: BaseModel, network: nn.Module) -> str:
    """Name the convolution that makes the output of a base model's network."""
    example = torch.zeros(1, base.in_channels, *base.windows.roi_size)
    return find_head(network, example, len(base.channels))


def open_site(
    base: str,
    data: str | Path,
    labels: str = "",
    mapping: Sequence[str] = (),
    strict: bool = True,
    labels_complete: bool = False,
) -> Site:
    """Read base model and cases, and match their structures.

    Args:
        base: name or folder of the base model.
        data: folder or datalist of the cases.
        labels: names of label values, such as `1=hippocampus`.
        mapping: site structures by base structures, such as `hippocampus=anterior+posterior`.
        strict: whether to refuse labels without a name; `check_site` reports them otherwise.
        labels_complete: whether a voxel without a label holds none of the base's other structures either.

    Raises:
        InputError: when something is not found or not named.
    """
    model = load_base_model(base)
    declared = parse_labels(labels)
    dataset = with_channels_of(find_cases(Path(data), declared), model.input_channels)
    structures = tuple(read_structures(dataset, declared, strict))
    matched = match_structures([s.name for s in structures], model.structures, parse_mapping(mapping))
    return Site(model, dataset, structures, matched, labels_complete)


def check_site(site: Site) -> list[Finding]:
    """Name every problem of every case at once, and say how the structures are matched."""
    findings = check_cases(site.dataset, site.structures, site.base.in_channels, overlapping=site.overlapping)
    for name, sources in site.matched.items():
        if not sources:
            text = f"The base model does not know '{name}'; it is learned from your cases alone."
            remedy = "If it does know it, say so (with --map); if not, the method 'full' learns it in fewer steps."
            findings.append(Finding("", "new_structure", text, remedy, "note"))
        elif sources != [name]:
            text = f"'{name}' is taken from the base model's {' + '.join(repr(s) for s in sources)}."
            findings.append(Finding("", "mapped_structure", text, "If that is wrong, correct it (with --map).", "note"))
    if site.kept:
        text = f"The base model also segments {_listed([s.name for s in site.kept])}, which your labels lack: kept."
        remedy = "If they are in none of your scans where nothing is labeled, say so (with --labels-complete)."
        findings.append(Finding("", "kept_structures", text, remedy, "note"))
    return findings


def _listed(names: Sequence[str], most: int = 5) -> str:
    listed = ", ".join(f"'{name}'" for name in names[:most])
    return listed + (f" and {len(names) - most} more" if len(names) > most else "")


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
    """Segment cases and score the results in the geometry of their images, where somebody labeled them."""
    values = {structure.name: structure.value for structure in structures}
    scores = []
    for case in cases:
        image = read_case_image(case)
        predicted, _ = segmenter.segment(image)
        truth = layers_of(read_case_labels(case, structures, image))
        ignored = np.logical_or.reduce([np.isin(layer, case.ignore).T for layer in truth]) if case.ignore else None
        # Axes as the spacing has them.
        found, true = (np.stack([layer.T for layer in layers]) for layers in (layers_of(predicted), truth))
        scores += score_case(case.name, found, true, image.GetSpacing(), values, ignored)
    return scores
