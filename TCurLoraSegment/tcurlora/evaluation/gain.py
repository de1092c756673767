"""What a score of many cases is, and what one model gains over another: the one definition, for every report.

The subject is the unit. A case's value is the mean over its structures, a subject's value the mean over its cases, and
what is reported the mean over subjects; a gain is the mean over subjects of the difference of two models' values. So
three scans of one person are not three independent proofs, and a gain is the difference of the two means beside it.

A structure counts in a case that has it. Where the truth lacks it, it counts if one of the models compared marks it:
Dice 0 for a model that does, 1 for one that rightly does not. Where no model marks it either, it does not count.
A distance needs both surfaces; two models are compared on the structures of cases for which both have one.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tcurlora.evaluation.paired_statistics import bootstrap_interval, sign_flip_test
from tcurlora.evaluation.scores import MEASURES, Score

MEAN = "mean"
ESTIMAND = (
    "Each subject counts once: scores are averaged over the structures of a scan, then over the scans of a subject, "
    "then over the subjects."
)

Key = tuple[str, str]
"""Subject and case."""
Values = Mapping[str, Mapping[Key, float]]
"""Values of cases by structure, and under `MEAN` their means over structures."""


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


@dataclass(frozen=True)
class Average:
    """A mean over subjects, its standard deviation over subjects (None for one), and what it rests on."""

    mean: float
    sd: float | None
    subjects: int
    cases: int


@dataclass(frozen=True)
class Gain:
    """How two models differ on the cases that both have.

    Attributes:
        subjects: how many.
        cases: how many.
        value: mean over subjects of the model; None without a case.
        reference: mean over subjects of the model that it is compared with.
        value_sd: standard deviation over subjects; None below 2.
        reference_sd: the same of the other model.
        difference: value less reference.
        ci95: bootstrap interval of the difference over subjects; None below 3.
        p: two-sided sign-flip permutation test on the subjects' differences; None below 2.
        higher: cases in which the model has the higher value.
        lower: cases in which it has the lower one.
    """

    subjects: int
    cases: int
    value: float | None
    reference: float | None
    value_sd: float | None
    reference_sd: float | None
    difference: float | None
    ci95: tuple[float, float] | None
    p: float | None
    higher: int
    lower: int


def rows_of(scores: Iterable[Score], subjects: Mapping[str, str] | None = None, method: str = "") -> list[Row]:
    """Say whose scores these are; a case without a known subject is its own."""
    known = subjects or {}
    return [
        Row(part="", method=method, split=0, seed=0, subject=known.get(score.case, score.case), **asdict(score))
        for score in scores
    ]


def counted(rows: Iterable[Row]) -> set[tuple[str, str]]:
    """Return the structures and cases that count: those that the truth has, or that some method marks."""
    return {(row.structure, row.case) for row in rows if row.dice is not None}


def case_values(
    rows: Iterable[Row],
    measure: str,
    in_mean: Collection[str] | None = None,
    counting: Collection[tuple[str, str]] | None = None,
) -> dict[str, dict[str, dict[Key, float]]]:
    """Average a measure over the runs of each method.

    Args:
        rows: scores of one or more methods.
        measure: a field of `Score`.
        in_mean: structures that the mean over structures is taken over; all of them when None.
        counting: from `counted`; that of these rows when None.

    Returns:
        Method, structure (and `MEAN` over them), subject and case.
    """
    rows = list(rows)
    counting = counted(rows) if counting is None else counting
    lists: dict[tuple[str, str, Key], list[float]] = {}
    for row in rows:
        value = getattr(row, measure)
        if measure == "dice" and value is None and (row.structure, row.case) in counting:
            value = 1.0
        if value is not None:
            lists.setdefault((row.method, row.structure, (row.subject, row.case)), []).append(value)
    result: dict[str, dict[str, dict[Key, float]]] = {}
    by_case: dict[tuple[str, Key], list[float]] = {}
    for (method, structure, key), values in lists.items():
        mean = statistics.fmean(values)
        result.setdefault(method, {}).setdefault(structure, {})[key] = mean
        if in_mean is None or structure in in_mean:
            by_case.setdefault((method, key), []).append(mean)
    for (method, key), values in by_case.items():
        result[method].setdefault(MEAN, {})[key] = statistics.fmean(values)
    return result


def average(values: Mapping[Key, float]) -> Average | None:
    """Average the values of cases, subject by subject; None without a case.

    >>> average({("anna", "first"): 0.75, ("anna", "second"): 0.25, ("ben", "only"): 1.0}).mean
    0.75
    """
    subjects = _by_subject(values)
    if not subjects:
        return None
    means = [statistics.fmean(group) for group in subjects.values()]
    sd = statistics.stdev(means) if len(means) > 1 else None
    return Average(statistics.fmean(means), sd, len(subjects), len(values))


def gain(values: Values, reference: Values, structures: Iterable[str]) -> Gain:
    """Compare two models on structures of cases that both have a value for.

    Args:
        values: of a model, from `case_values`.
        reference: of the model that it is compared with.
        structures: one, or those to average over in each case.
    """
    pairs: dict[Key, list[tuple[float, float]]] = {}
    for structure in structures:
        own, other = values.get(structure, {}), reference.get(structure, {})
        for key in own.keys() & other.keys():
            pairs.setdefault(key, []).append((own[key], other[key]))
    means = {
        key: (statistics.fmean(a for a, _ in pairs[key]), statistics.fmean(b for _, b in pairs[key]))
        for key in sorted(pairs)
    }
    mine, theirs = average({key: a for key, (a, _) in means.items()}), average({k: b for k, (_, b) in means.items()})
    by_subject = _by_subject({key: a - b for key, (a, b) in means.items()})
    differences = np.array([statistics.fmean(group) for group in by_subject.values()])
    return Gain(
        subjects=len(differences),
        cases=len(means),
        value=mine.mean if mine else None,
        reference=theirs.mean if theirs else None,
        value_sd=mine.sd if mine else None,
        reference_sd=theirs.sd if theirs else None,
        difference=float(differences.mean()) if len(differences) else None,
        ci95=bootstrap_interval(differences),
        p=sign_flip_test(differences),
        higher=sum(a > b for a, b in means.values()),
        lower=sum(a < b for a, b in means.values()),
    )


def summarize(
    scores: Sequence[Score], subjects: Mapping[str, str] | None = None
) -> dict[str, dict[str, float | int | None]]:
    """Average the scores of one model: each measure, per structure and under `mean` over the structures.

    Args:
        scores: of the cases.
        subjects: whose scan each case is; every case is a subject of its own when None.

    Returns:
        For each structure, and `mean`: n (cases with a Dice), subjects, n_distance (cases with distances), dice_min,
        and `<measure>_mean` and `<measure>_sd` (over subjects) for each of `MEASURES`; None where there is nothing to
        average.
    """
    rows = rows_of(scores, subjects)
    values = {measure: case_values(rows, measure).get("", {}) for measure in MEASURES}
    summary: dict[str, dict[str, float | int | None]] = {}
    for name in (*dict.fromkeys(score.structure for score in scores), MEAN):
        dice, distances = values["dice"].get(name, {}), values["hd95_mm"].get(name, {})
        entry: dict[str, float | int | None] = {
            "n": len(dice),
            "subjects": len({subject for subject, _ in dice}),
            "n_distance": len(distances),
            "dice_min": min(dice.values(), default=None),
        }
        for measure in MEASURES:
            found = average(values[measure].get(name, {}))
            entry[f"{measure}_mean"], entry[f"{measure}_sd"] = (found.mean, found.sd) if found else (None, None)
        summary[name] = entry
    return summary


def mean_dice(scores: Sequence[Score], subjects: Mapping[str, str] | None = None) -> float | None:
    """Return the mean Dice of one model; None where nothing could be scored."""
    found = average(case_values(rows_of(scores, subjects), "dice").get("", {}).get(MEAN, {}))
    return found.mean if found else None


def compare_scores(
    base: Sequence[Score],
    adapted: Sequence[Score],
    subjects: Mapping[str, str] | None = None,
    new: Collection[str] = (),
) -> dict[str, Any]:
    """Compare an adapter with its base model on the same cases.

    Args:
        base: scores of the base model.
        adapted: scores of the adapter.
        subjects: whose scan each case is; every case is a subject of its own when None.
        new: structures that the base model cannot segment: it has no output for them, so there is no gain to speak of,
            only what the adapter reaches.

    Returns:
        `structures` (name to numbers), `mean` (the numbers of the mean over the structures that are not new; over all,
        without the base's, when all are), `new` (names) and `cases` (each case's mean Dice). Numbers: n (cases),
        subjects, base_dice, base_dice_sd, adapted_dice, adapted_dice_sd, dice_difference (adapted less base),
        dice_difference_ci95, dice_difference_p, improved, worsened (cases), n_distance, and base_hd95_mm,
        adapted_hd95_mm, their `_sd`, and hd95_mm_difference. What needs a base is None for new structures.

    Raises:
        ValueError: when the two do not hold the same cases and structures.
    """
    if {(score.case, score.structure) for score in base} != {(score.case, score.structure) for score in adapted}:
        raise ValueError("compare_scores needs the same cases and structures on both sides")
    names = list(dict.fromkeys(score.structure for score in base))
    known = [name for name in names if name not in new]
    rows = [
        *rows_of([score for score in base if score.structure in known], subjects, "base"),
        *rows_of(adapted, subjects, "adapted"),
    ]
    dice, hd95 = (case_values(rows, measure, in_mean=known or None) for measure in ("dice", "hd95_mm"))
    overall = dice.get("adapted", {}).get(MEAN, {})
    before = dice.get("base", {}).get(MEAN, {})
    return {
        "structures": {name: _numbers(dice, hd95, [name], name in known) for name in names},
        MEAN: _numbers(dice, hd95, known or names, bool(known)),
        "new": [name for name in names if name not in known],
        "cases": [
            {
                "case": key[1],
                "base_dice": before.get(key),
                "adapted_dice": overall[key],
                "dice_difference": overall[key] - before[key] if key in before else None,
            }
            for key in sorted(overall, key=lambda key: key[1])
        ],
    }


def _numbers(
    dice: Mapping[str, Values], hd95: Mapping[str, Values], structures: Sequence[str], has_base: bool
) -> dict[str, Any]:
    adapted = [measure.get("adapted", {}) for measure in (dice, hd95)]
    # Compared with itself, the adapter gives its own means; what says something of a base is then left out.
    base = [measure.get("base", {}) for measure in (dice, hd95)] if has_base else adapted
    overlap, distance = (gain(own, other, structures) for own, other in zip(adapted, base, strict=True))
    return {
        "n": overlap.cases,
        "subjects": overlap.subjects,
        "base_dice": overlap.reference if has_base else None,
        "base_dice_sd": overlap.reference_sd if has_base else None,
        "adapted_dice": overlap.value,
        "adapted_dice_sd": overlap.value_sd,
        "dice_difference": overlap.difference if has_base else None,
        "dice_difference_ci95": list(overlap.ci95) if has_base and overlap.ci95 else None,
        "dice_difference_p": overlap.p if has_base else None,
        "improved": overlap.higher if has_base else None,
        "worsened": overlap.lower if has_base else None,
        "n_distance": distance.cases,
        "base_hd95_mm": distance.reference if has_base else None,
        "base_hd95_mm_sd": distance.reference_sd if has_base else None,
        "adapted_hd95_mm": distance.value,
        "adapted_hd95_mm_sd": distance.value_sd,
        "hd95_mm_difference": distance.difference if has_base else None,
    }


def spread(
    rows: Iterable[Row], runs: Sequence[str], counting: Collection[tuple[str, str]] | None = None
) -> float | None:
    """Return the standard deviation of the mean Dice over runs: what training again would change.

    Args:
        rows: of one method.
        runs: the fields that tell runs apart, `split` and `seed`.
        counting: from `counted`, of all methods; that of these rows when None.
    """
    rows = list(rows)
    counting = counted(rows) if counting is None else counting
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(getattr(row, name) for name in runs), []).append(row)
    means = []
    for group in groups.values():
        for values in case_values(group, "dice", counting=counting).values():
            if found := average(values.get(MEAN, {})):
                means.append(found.mean)
    return statistics.stdev(means) if len(means) > 1 else None


def _by_subject(values: Mapping[Key, float]) -> dict[str, list[float]]:
    groups: dict[str, list[float]] = {}
    for (subject, _), value in values.items():
        groups.setdefault(subject, []).append(value)
    return groups
