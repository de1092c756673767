"""What the panel asks of the engine: checked settings, and the arguments that say them to the command line."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from slicer.i18n import tr as _

METHODS = ("compact", "paper", "decoder", "full")
NEW, LEAVE_OUT = "new", "leave out"
MINIMUM_CASES = 2
MAXIMUM_NAME = 80

# What no file system takes in a name, and what would be read as a folder.
_FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f]')
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


@dataclass(frozen=True)
class AdaptSettings:
    """How a base model is to be adapted.

    Attributes:
        base: name or folder of the base model.
        name: of the new adapter.
        minutes: for the whole run; 0 takes `steps`.
        device: `auto`, `cpu`, `cuda`, ...
        cross_validation: whether to compare with the base on held-out cases first.
        method: one of `METHODS`.
        rank: of the cores; 0 leaves it to the engine.
        steps: optimizer steps of each training; 0 leaves them to the engine.
        folds: of the cross-validation; 0 leaves them to the engine.
        seed: of everything random.
        mapping: structure of the site to names of base structures; [`NEW`] for one that the base never saw,
            [`LEAVE_OUT`] for one that is not to be learned. What is not named is matched by the engine.
        names: what the user calls a label, by its name in the scene.
    """

    base: str
    name: str
    minutes: float = 15
    device: str = "auto"
    cross_validation: bool = True
    method: str = METHODS[0]
    rank: int = 0
    steps: int = 0
    folds: int = 0
    seed: int = 0
    mapping: Mapping[str, Sequence[str]] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)

    def missing(self, cases: int, taken_names: Sequence[str] = ()) -> list[str]:
        """Say everything that stands in the way, one sentence each; nothing does when the list is empty.

        Args:
            cases: how many labeled cases are chosen.
            taken_names: names of the adapters that exist.
        """
        problems = []
        if not self.base:
            problems.append(_("Choose a base model."))
        if cases < MINIMUM_CASES:
            problems.append(_("Choose at least {number} labeled cases.").format(number=MINIMUM_CASES))
        problems += name_problems(self.name, taken_names)
        return problems

    def arguments(self, data: Path, out: Path, job: Path) -> list[str]:
        """The arguments of `tcurlora adapt`.

        Args:
            data: folder of the exported cases.
            out: folder of the new adapter.
            job: the job's folder.
        """
        words = ["adapt", "--base", self.base, "--data", str(data), "--out", str(out), "--job", str(job)]
        words += [f"--name={self.name}", "--method", self.method, "--device", self.device, "--seed", str(self.seed)]
        if self.minutes > 0:
            words += ["--minutes", f"{self.minutes:g}"]
        elif self.steps > 0:
            words += ["--steps", str(self.steps)]
        if self.rank > 0:
            words += ["--rank", str(self.rank)]
        if not self.cross_validation:
            words += ["--folds", "0"]
        elif self.folds > 0:
            words += ["--folds", str(self.folds)]
        return words + map_arguments(self.mapping)

    def to_dict(self) -> dict[str, Any]:
        """JSON types, for the job's folder."""
        return asdict(self)


@dataclass(frozen=True)
class SegmentSettings:
    """How scans are to be segmented.

    Attributes:
        model: adapter or base model, by name or folder.
        title: name of the model in the names of results.
        device: `auto`, `cpu`, `cuda`, ...
        uncertainty: whether a map of uncertainty is wanted.
        as_labelmap: whether results are labelmaps instead of segmentations.
        structures: names, values, colors and terminology, where they are known beforehand; the result brings them too.
    """

    model: str
    title: str = ""
    device: str = "auto"
    uncertainty: bool = False
    as_labelmap: bool = False
    structures: Sequence[Mapping[str, Any]] = ()

    def missing(self, volumes: int) -> list[str]:
        """Say everything that stands in the way, one sentence each."""
        problems = []
        if not self.model:
            problems.append(_("Choose an adapter or a base model."))
        if not volumes:
            problems.append(_("Choose a volume to segment."))
        return problems

    def arguments(self, scans: Sequence[Path], out: Path, job: Path | None = None) -> list[str]:
        """The arguments of `tcurlora segment`; with a job's folder for a process of its own."""
        words = ["segment", "--model", self.model, "--out", str(out), "--device", self.device]
        words += ["--job", str(job)] if job else []
        words += ["--uncertainty"] if self.uncertainty else []
        return [*words, "--input", *map(str, scans)]

    def to_dict(self) -> dict[str, Any]:
        """JSON types, for the job's folder."""
        return asdict(self)


def map_arguments(mapping: Mapping[str, Sequence[str]]) -> list[str]:
    """Say a mapping of structures as `--map` options; what is left out is not exported and so not named."""
    return [
        f"--map={structure}={'+'.join(sources)}"
        for structure, sources in mapping.items()
        if list(sources) != [LEAVE_OUT]
    ]


def name_problems(name: str, taken: Sequence[str] = ()) -> list[str]:
    """Say why a name cannot be that of a new adapter, one sentence each."""
    if not name.strip():
        return [_("Give the adapter a name.")]
    if (
        _FORBIDDEN.search(name)
        or _RESERVED.fullmatch(name)
        or name != name.strip(" .").lstrip("-")
        or len(name) > MAXIMUM_NAME
    ):
        return [
            _("'{name}' cannot be an adapter's name: use up to {number} letters, digits, spaces and dashes.").format(
                name=name[:MAXIMUM_NAME], number=MAXIMUM_NAME
            )
        ]
    if name.casefold() in (other.casefold() for other in taken):
        return [_("There is an adapter '{name}' already: choose another name.").format(name=name)]
    return []


def free_name(wanted: str, taken: Sequence[str]) -> str:
    """The wanted name, or the first of `wanted 2`, `wanted 3`, ... that is not taken."""
    known = {name.casefold() for name in taken}
    number, name = 2, wanted
    while name.casefold() in known:
        name = f"{wanted} {number}"
        number += 1
    return name
