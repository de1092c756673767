"""The plan of a comparison: what is asked for, and which cases are trained on and tested on."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tcurlora.cases.case import Case
from tcurlora.cases.checks import check_cases, require_no_errors
from tcurlora.errors import InputError
from tcurlora.runtime.job_folder import JobFolder
from tcurlora.runtime.json_files import read_object
from tcurlora.training.target_site import Site, check_site, fold_cases
from tcurlora.training.trainer import TrainingSettings
from tcurlora_contract.job_files import LOCK, REQUEST
from tcurlora_contract.methods import COMPARED

BASE = "base"
DEFAULT_METHODS = COMPARED
RATE_FACTORS = (1.0, 10**-0.5, 10**0.5, 0.1, 10.0, 10**-1.5, 10**1.5)
"""The grid around a method's own learning rates, in the order in which more trials extend it."""


@dataclass(frozen=True)
class CompareRequest:
    """What the user asks for; every field is a JSON type.

    Attributes:
        base: name or folder of the base model.
        data: folder or datalist of the labeled cases.
        out: folder of the comparison.
        methods: names of `baselines.METHODS`; the base is always among them. Without any, those of `DEFAULT_METHODS`
            that suit the base model.
        reference: method that the others are compared with; `compact`, or else the last one, when empty.
        steps: optimizer steps of each training.
        minutes: time for the whole comparison instead of steps.
        folds: folds of the cross-validation, or draws where `subjects` is given; None chooses.
        subjects: train on so many subjects, drawn at random, and test on all others.
        seeds: each method is trained once with each.
        lr_trials: learning rates that are tried for each method; 1 takes the method's own.
        rates_of: folder of another comparison of the same splits, whose learning rates are taken instead.
        score_at: steps after which the test cases are scored too, on the way.
        test: folder or datalist of cases to test on, instead of a part of `data`.
        own_data: folder or datalist of cases of the base's own site, to see what is lost there.
        own_labels: names of label values there.
        labels: names of label values in `data` and `test`.
        mapping: site structures by base structures.
        device: `auto`, `cpu`, `cuda`, ...
        labels_complete: whether a voxel without a label holds none of the base's other structures either; if not, they
            are kept.
    """

    base: str
    data: str
    out: str
    methods: tuple[str, ...] = ()
    reference: str = ""
    steps: int | None = None
    minutes: float | None = None
    folds: int | None = None
    subjects: int | None = None
    seeds: tuple[int, ...] = (0,)
    lr_trials: int = 3
    rates_of: str = ""
    score_at: tuple[int, ...] = ()
    test: str = ""
    own_data: str = ""
    own_labels: str = ""
    labels: str = ""
    mapping: tuple[str, ...] = ()
    device: str = "auto"
    labels_complete: bool = False

    def binding(self) -> dict[str, Any]:
        """What must stay the same when a comparison goes on, as JSON types; methods and seeds may be added."""
        free = ("out", "methods", "reference", "seeds")
        content: dict[str, Any] = json.loads(json.dumps({k: v for k, v in asdict(self).items() if k not in free}))
        return content

    @classmethod
    def begun(cls, folder: Path) -> tuple[CompareRequest, dict[str, Any]] | None:
        """Read what a comparison was begun with: the request, and how it is written there; None where there is none.

        One that an earlier version began lacks later options, which then have their defaults.
        """
        try:
            written = dict(read_object(folder / REQUEST)["request"])
            return cls(**{"out": str(folder), **written}), written
        except (OSError, ValueError, TypeError, KeyError):
            return None


@dataclass(frozen=True)
class Split:
    """Cases to train on and cases to test on, of different subjects."""

    number: int
    training: tuple[Case, ...]
    test: tuple[Case, ...]


def make_splits(
    cases: Sequence[Case], test: Sequence[Case] = (), folds: int | None = None, subjects: int | None = None
) -> list[Split]:
    """Plan what is trained on and what is tested on; a subject is never on both sides.

    Args:
        cases: the labeled cases.
        test: cases to test on; without them, those of `cases` that are not trained on.
        folds: folds, or draws where `subjects` is given; None takes as many folds as `adapt`, or 3 draws.
        subjects: train on so many subjects, drawn at random.

    Raises:
        InputError: when nothing would be left to train on or to test on.
    """
    everyone = sorted({case.subject for case in cases})
    if subjects is not None:
        if subjects > len(everyone) - (0 if test else 1):
            raise InputError(
                f"--subjects {subjects} is too much: there are labeled scans of {len(everyone)} subjects"
                f"{'' if test else ', and one at least must be left to test on'}.",
                "Give a smaller number.",
                "too_few_cases",
            )
        draws = [set(random.Random(1000 + draw).sample(everyone, subjects)) for draw in range(folds or 3)]
        return [
            Split(
                number,
                tuple(case for case in cases if case.subject in chosen),
                tuple(test) or tuple(case for case in cases if case.subject not in chosen),
            )
            for number, chosen in enumerate(draws, start=1)
        ]
    if test:
        if folds is not None:
            raise InputError("With --test there are no folds.", "Leave out --folds, or give --subjects too.", "usage")
        return [Split(1, tuple(cases), tuple(test))]
    held_out = fold_cases(cases, folds, seed=0)
    if not held_out:
        raise InputError(
            "Without folds there are no cases to test on.", "Give --folds 2 or more, or --test.", "no_test_cases"
        )
    return [
        Split(number, tuple(case for case in cases if case not in fold), tuple(fold))
        for number, fold in enumerate(held_out, start=1)
    ]


@dataclass(frozen=True)
class Tuning:
    """How learning rates were chosen in another comparison.

    Attributes:
        job: its folder, which holds the rates.
        steps: of its trainings; a part of them counts for a trial.
        lr_trials: how many rates were tried.
    """

    job: JobFolder
    steps: int
    lr_trials: int


def rate_key(method: str, split: int) -> str:
    """Under which name a comparison's folder keeps the learning rate of a method on a split."""
    return f"rate-{method}-{split}"


def open_tuning(request: CompareRequest, methods: Iterable[str], splits: int) -> Tuning:
    """Open the comparison whose learning rates are to be taken.

    Args:
        request: names it.
        methods: that are trained, by name.
        splits: how many splits there are.

    Raises:
        InputError: when it is none, was made of other splits, or has not chosen all the rates.
    """
    folder = Path(request.rates_of)
    begun = CompareRequest.begun(folder)
    if begun is None:
        raise InputError(
            f"--rates-of: '{folder}' is not the folder of a comparison.", "Give one that compare wrote.", "no_rates"
        )
    other, _ = begun
    for key in ("base", "data", "labels", "mapping", "folds", "subjects", "test"):
        if json.dumps(getattr(other, key)) != json.dumps(getattr(request, key)):
            raise InputError(
                f"--rates-of: the comparison '{folder}' differs in its {key}, so its rates are of other splits.",
                "Give the same base, cases, folds and subjects as there.",
                "other_splits",
            )
    job = JobFolder(folder)
    for method in methods:
        if any(job.remembered(rate_key(method, number)) is None for number in range(1, splits + 1)):
            raise InputError(
                f"--rates-of: the comparison '{folder}' has not chosen the learning rates of '{method}'.",
                "Run it with this method first, or leave the method out.",
                "no_rates",
            )
    return Tuning(job, int(job.remembered("steps") or other.steps or TrainingSettings.steps), other.lr_trials)


def rate_candidates(trials: int) -> list[float]:
    """Factors on a method's own learning rates, ascending; the same number for every method."""
    return sorted(RATE_FACTORS[: max(1, trials)])


def require_good_cases(site: Site, test: Sequence[Case]) -> None:
    """Check all cases, and that no subject is both trained on and tested on.

    Raises:
        InputError: listing every problem.
    """
    findings = check_site(site)
    if test:
        subjects = {case.subject for case in site.dataset.cases}
        both = sorted({case.subject for case in test if case.subject in subjects})
        if both:
            raise InputError(
                f"The subject '{both[0]}' is among the cases to train on and among those to test on.",
                "Leave it out on one side; subjects are named in cases.csv, or else by the names of the files.",
                "subject_on_both_sides",
            )
        together = replace(site.dataset, cases=(*site.dataset.cases, *test))
        findings = check_cases(together, site.structures, site.base.in_channels, overlapping=site.overlapping)
    require_no_errors(findings)


def require_usable_folder(out: Path) -> None:
    """Refuse a folder that holds something else, or that cannot be made.

    Raises:
        InputError: when it is so.
    """
    used = out.is_dir() and any(entry.name != LOCK for entry in out.iterdir())
    if out.exists() and (not out.is_dir() or (used and CompareRequest.begun(out) is None)):
        raise InputError(f"'{out}' exists and is not the folder of a comparison.", "Choose another --out.", "exists")
    above = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise InputError(f"'{out.name}' cannot be written in '{above}'.", "Choose another --out.", "cannot_write")
