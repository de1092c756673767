"""Compare methods on the same cases: means over runs, and paired differences between subjects."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tcurlora.evaluation.scores import MEAN

MEASURES = ("dice", "hd95_mm")
RESAMPLES = 10_000
EXACT_UP_TO = 13
"""With so many subjects all ways to turn signs are tried; with more, random ones."""

Key = tuple[str, str]
"""Subject and case."""


@dataclass(frozen=True)
class Row:
    """One structure of one case, segmented by one run of a method."""

    part: str
    method: str
    split: int
    seed: int
    subject: str
    case: str
    structure: str
    dice: float | None
    hd95_mm: float | None
    surface_distance_mm: float | None
    volume_ml: float
    truth_volume_ml: float


def case_values(rows: Iterable[Row], measure: str) -> dict[str, dict[str, dict[Key, float]]]:
    """Average a measure over the runs of each method: method, structure (and `mean` over them), subject and case.

    A structure that the truth lacks counts as Dice 1 for a run that leaves it out where another run does not; where
    none marks it, it does not count. A distance counts where there is one.
    """
    rows = list(rows)
    scored = {(row.structure, row.case) for row in rows if row.dice is not None}
    lists: dict[tuple[str, str, Key], list[float]] = {}
    for row in rows:
        value = getattr(row, measure)
        if measure == "dice" and value is None and (row.structure, row.case) in scored:
            value = 1.0
        if value is not None:
            lists.setdefault((row.method, row.structure, (row.subject, row.case)), []).append(value)
    result: dict[str, dict[str, dict[Key, float]]] = {}
    by_case: dict[tuple[str, Key], list[float]] = {}
    for (method, structure, key), values in lists.items():
        mean = statistics.fmean(values)
        result.setdefault(method, {}).setdefault(structure, {})[key] = mean
        by_case.setdefault((method, key), []).append(mean)
    for (method, key), values in by_case.items():
        result[method].setdefault(MEAN, {})[key] = statistics.fmean(values)
    return result


def compare(values: Mapping[Key, float], reference: Mapping[Key, float]) -> dict[str, Any]:
    """Compare two methods on the cases that both have.

    Subjects are the unit: the differences of a subject's cases are averaged first, because both hippocampi of a person
    are not two independent proofs.

    Returns:
        subjects, cases, difference (values less reference, mean over subjects), ci95 (bootstrap over subjects; None
        below 3), p (two-sided test that turns the signs of subjects' differences; None below 2), higher and lower
        (cases).
    """
    keys = sorted(values.keys() & reference.keys())
    by_subject: dict[str, list[float]] = {}
    for subject, case in keys:
        by_subject.setdefault(subject, []).append(values[subject, case] - reference[subject, case])
    differences = np.array([statistics.fmean(group) for group in by_subject.values()])
    count = len(differences)
    return {
        "subjects": count,
        "cases": len(keys),
        "difference": float(differences.mean()) if count else None,
        "ci95": bootstrap_interval(differences) if count >= 3 else None,
        "p": sign_flip_test(differences) if count >= 2 else None,
        "higher": sum(values[key] > reference[key] for key in keys),
        "lower": sum(values[key] < reference[key] for key in keys),
    }


def bootstrap_interval(differences: np.ndarray) -> list[float]:
    """95 % percentile interval of the mean, subjects drawn again with replacement."""
    drawn = np.random.default_rng(0).integers(len(differences), size=(RESAMPLES, len(differences)))
    return [float(q) for q in np.percentile(differences[drawn].mean(axis=1), (2.5, 97.5))]


def sign_flip_test(differences: np.ndarray) -> float:
    """Probability of a mean at least as far from zero if each subject's difference could as well have the other sign.

    Every combination of signs is tried up to `EXACT_UP_TO` subjects, else random ones.
    """
    count = len(differences)
    observed = abs(differences.sum())
    if count <= EXACT_UP_TO:
        signs = np.array(list(itertools.product((-1, 1), repeat=count)))
        extra = 0
    else:
        signs = np.random.default_rng(0).choice((-1, 1), size=(RESAMPLES, count))
        extra = 1  # the signs as they are
    # A margin, because sums that are equal on paper differ by rounding.
    as_far = int((np.abs(signs @ differences) >= observed * (1 - 1e-9) - 1e-15).sum())
    return (as_far + extra) / (len(signs) + extra)


def holm(p_values: Mapping[str, float | None]) -> dict[str, float | None]:
    """Correct for several comparisons (Holm): the chance of one or more false findings stays as said."""
    known = sorted((p, name) for name, p in p_values.items() if p is not None)
    corrected: dict[str, float | None] = dict.fromkeys(p_values)
    largest = 0.0
    for rank, (p, name) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        corrected[name] = largest
    return corrected


def spread(rows: Iterable[Row], runs: Sequence[str]) -> float | None:
    """Standard deviation, over runs, of the mean Dice over cases; what training again would change.

    Args:
        rows: of one method.
        runs: the fields that tell runs apart, `split` and `seed`.
    """
    groups: dict[tuple[Any, ...], list[float]] = {}
    for row in rows:
        if row.dice is not None:
            groups.setdefault(tuple(getattr(row, name) for name in runs), []).append(row.dice)
    means = [statistics.fmean(group) for group in groups.values()]
    return statistics.stdev(means) if len(means) > 1 else None
