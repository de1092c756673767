"""Scores: how well predicted segmentations agree with the truth, in Dice and in millimetres."""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tcurlora.errors import InputError

MEAN = "mean"
MEASURES = ("dice", "hd95_mm", "surface_distance_mm", "volume_ml", "truth_volume_ml")


@dataclass(frozen=True)
class Score:
    """How one structure of one case was segmented; distances in mm, volumes in ml.

    `dice` is None when the structure is neither predicted nor in the truth; the distances are None when it lacks in
    either, because no surface is there to measure from.
    """

    case: str
    structure: str
    dice: float | None
    hd95_mm: float | None
    surface_distance_mm: float | None
    volume_ml: float
    truth_volume_ml: float


def score_case(
    case: str,
    predicted: np.ndarray,
    truth: np.ndarray,
    spacing: tuple[float, float, float],
    structures: Mapping[str, int],
    ignored: np.ndarray | None = None,
) -> list[Score]:
    """Score one case, structure by structure.

    Voxels that nobody labeled count nowhere: not in the Dice, not in the volumes, and the surfaces that distances are
    measured between are those in labeled voxels. The border of what was labeled is not taken for the surface of a
    structure, so of a scan with every n-th slice labeled the outlines in these slices are compared.

    Args:
        case: name of the case.
        predicted: label values, shape (x, y, z), or (layer, x, y, z) where structures overlap.
        truth: label values, in the same way, on the same voxels.
        spacing: size of a voxel along x, y and z in mm.
        structures: label value of each structure.
        ignored: (x, y, z), true in voxels that nobody labeled; None where there are none.

    Raises:
        InputError: when the shapes differ.
    """
    if predicted.shape[-3:] != truth.shape[-3:]:
        raise InputError(
            f"Case '{case}': the prediction has {_shape(predicted)} voxels, the truth {_shape(truth)}.",
            "Compare segmentations of the same scan.",
            "geometry_mismatch",
        )
    voxel_ml = math.prod(spacing) / 1000
    scores = []
    for name, value in structures.items():
        a, b = _mask(predicted, value, ignored), _mask(truth, value, ignored)
        size_a, size_b = int(a.sum()), int(b.sum())
        dice = hd95 = distance = None
        if size_a or size_b:
            box = _bounding_box(a | b)
            a, b, outside = a[box], b[box], None if ignored is None else ignored[box]
            dice = 2 * int((a & b).sum()) / (size_a + size_b)
        if size_a and size_b:
            hd95, distance = (
                _surface_distances(a, b, spacing) if outside is None else _partial_distances(a, b, outside, spacing)
            )
        scores.append(Score(case, name, dice, hd95, distance, size_a * voxel_ml, size_b * voxel_ml))
    return scores


def summarize(scores: Sequence[Score]) -> dict[str, dict[str, float | int | None]]:
    """Mean and standard deviation of each measure, per structure and under `mean` over the structures.

    The overall mean is the mean of the structures' means; its standard deviation is that of the cases' own means.

    Returns:
        For each structure, and `mean`: n (cases with a Dice), n_distance (cases with distances), dice_min, and
        `<measure>_mean` and `<measure>_sd` for each of `MEASURES`; None where there is nothing to average.
    """
    groups: dict[str, list[Score]] = {}
    for score in scores:
        groups.setdefault(score.structure, []).append(score)
    summary = {name: _summary({m: _values(group, m) for m in MEASURES}) for name, group in groups.items()}
    by_case: dict[str, list[Score]] = {}
    for score in scores:
        by_case.setdefault(score.case, []).append(score)
    overall = _summary({m: _present(_mean(_values(g, m)) for g in by_case.values()) for m in MEASURES})
    for measure in MEASURES:
        key = f"{measure}_mean"
        overall[key] = _mean(_present(entry[key] for entry in summary.values()))
    return {**summary, MEAN: overall}


def compare_scores(
    base: Sequence[Score],
    adapted: Sequence[Score],
    subjects: Mapping[str, str] | None = None,
    n_boot: int = 2000,
) -> dict[str, Any]:
    """Compare two models on the same cases, paired per case and structure.

    Where the truth lacks a structure, a model that rightly leaves it out counts as Dice 1 against one that does not.

    Args:
        base: scores of one model.
        adapted: scores of the other.
        subjects: whose scan each case is; every case is a subject of its own when None.
        n_boot: samples of the bootstrap.

    Returns:
        `structures` (name to numbers), `mean` (the same numbers of the cases' means over structures) and `cases`
        (each case's mean Dice). Numbers: n, base_dice, adapted_dice, dice_difference (adapted less base),
        dice_difference_ci95 (paired bootstrap over subjects, because two scans of a person are not two independent
        proofs; None below 3 subjects), improved, worsened, n_distance,
        base_hd95_mm, adapted_hd95_mm, hd95_mm_difference.

    Raises:
        ValueError: when the two do not hold the same cases and structures.
    """
    other = {(score.case, score.structure): score for score in adapted}
    if {(score.case, score.structure) for score in base} != set(other):
        raise ValueError("compare_scores needs the same cases and structures on both sides")
    dice: dict[tuple[str, str], tuple[float, float]] = {}
    hd95: dict[tuple[str, str], tuple[float, float]] = {}
    for score in base:
        key = (score.case, score.structure)
        a, b = score.dice, other[key].dice
        if a is not None or b is not None:
            dice[key] = (1.0 if a is None else a, 1.0 if b is None else b)
        c, d = score.hd95_mm, other[key].hd95_mm
        if c is not None and d is not None:
            hd95[key] = (c, d)
    case_dice, case_hd95 = _case_means(dice), _case_means(hd95)
    subjects = subjects or {score.case: score.case for score in base}
    return {
        "structures": {
            name: _comparison(
                {case: pair for (case, structure), pair in dice.items() if structure == name},
                [pair for (_, structure), pair in hd95.items() if structure == name],
                subjects,
                n_boot,
            )
            for name in dict.fromkeys(score.structure for score in base)
        },
        MEAN: _comparison(case_dice, list(case_hd95.values()), subjects, n_boot),
        "cases": [
            {"case": case, "base_dice": a, "adapted_dice": b, "dice_difference": b - a}
            for case, (a, b) in case_dice.items()
        ],
    }


def _surface_distances(a: np.ndarray, b: np.ndarray, spacing: Sequence[float]) -> tuple[float, float]:
    """95th percentile Hausdorff distance (the larger of both directions) and average symmetric surface distance."""
    import torch
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance
    from monai.metrics.surface_distance import compute_average_surface_distance

    x, y = (torch.from_numpy(np.ascontiguousarray(mask))[None, None] for mask in (a, b))
    mm = list(spacing)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MONAI warns of its own inner use of an old option
        hd95 = compute_hausdorff_distance(x, y, include_background=True, percentile=95, spacing=mm)
        distance = compute_average_surface_distance(x, y, include_background=True, symmetric=True, spacing=mm)
    return float(hd95), float(distance)


def _partial_distances(
    a: np.ndarray, b: np.ndarray, ignored: np.ndarray, spacing: Sequence[float]
) -> tuple[float | None, float | None]:
    """Measure what `_surface_distances` does, of surfaces that do not touch what is ignored."""
    from monai.metrics.utils import get_surface_distance
    from scipy.ndimage import binary_erosion

    # An ignored neighbor may belong to the structure, so it makes no surface.
    edges = [mask & ~binary_erosion(mask | ignored) for mask in (a, b)]
    if not all(edge.any() for edge in edges):
        return None, None
    there, back = (np.asarray(get_surface_distance(x, y, spacing=list(spacing))) for x, y in (edges, edges[::-1]))
    hd95 = max(float(np.percentile(distances, 95)) for distances in (there, back))
    return hd95, float(np.concatenate((there, back)).mean())


def _mask(labels: np.ndarray, value: int, ignored: np.ndarray | None) -> np.ndarray:
    mask: np.ndarray = labels == value if labels.ndim == 3 else np.logical_or.reduce(labels == value)
    return mask if ignored is None else mask & ~ignored


def _bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    """The box around all voxels of the mask, with a margin of one voxel where the image goes on."""
    box = []
    for axis in range(mask.ndim):
        used = np.flatnonzero(mask.any(axis=tuple(i for i in range(mask.ndim) if i != axis)))
        box.append(slice(max(int(used[0]) - 1, 0), int(used[-1]) + 2))
    return tuple(box)


def _shape(array: np.ndarray) -> str:
    return "x".join(str(size) for size in array.shape)


def _present(values: Any) -> list[float]:
    return [value for value in values if value is not None]


def _values(scores: Sequence[Score], measure: str) -> list[float]:
    return _present(getattr(score, measure) for score in scores)


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _summary(values: Mapping[str, Sequence[float]]) -> dict[str, float | int | None]:
    summary: dict[str, float | int | None] = {"n": len(values["dice"]), "n_distance": len(values["hd95_mm"])}
    summary["dice_min"] = min(values["dice"], default=None)
    for measure, numbers in values.items():
        summary[f"{measure}_mean"] = _mean(numbers)
        summary[f"{measure}_sd"] = statistics.stdev(numbers) if len(numbers) > 1 else None
    return summary


def _case_means(pairs: Mapping[tuple[str, str], tuple[float, float]]) -> dict[str, tuple[float, float]]:
    by_case: dict[str, list[tuple[float, float]]] = {}
    for (case, _), pair in pairs.items():
        by_case.setdefault(case, []).append(pair)
    return {case: (statistics.fmean(p[0] for p in g), statistics.fmean(p[1] for p in g)) for case, g in by_case.items()}


def _comparison(
    dice: Mapping[str, tuple[float, float]],
    hd95: Sequence[tuple[float, float]],
    subjects: Mapping[str, str],
    n_boot: int,
) -> dict[str, Any]:
    differences = {case: adapted - base for case, (base, adapted) in dice.items()}
    by_subject: dict[str, list[float]] = {}
    for case, difference in differences.items():
        by_subject.setdefault(subjects[case], []).append(difference)
    interval = None
    if len(by_subject) >= 3:
        sums, counts = (np.array([measure(group) for group in by_subject.values()]) for measure in (sum, len))
        drawn = np.random.default_rng(0).integers(len(sums), size=(n_boot, len(sums)))
        means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
        interval = [float(q) for q in np.percentile(means, (2.5, 97.5))]
    return {
        "n": len(dice),
        "base_dice": _mean([a for a, _ in dice.values()]),
        "adapted_dice": _mean([b for _, b in dice.values()]),
        "dice_difference": _mean(list(differences.values())),
        "dice_difference_ci95": interval,
        "improved": sum(difference > 0 for difference in differences.values()),
        "worsened": sum(difference < 0 for difference in differences.values()),
        "n_distance": len(hd95),
        "base_hd95_mm": _mean([a for a, _ in hd95]),
        "adapted_hd95_mm": _mean([b for _, b in hd95]),
        "hd95_mm_difference": _mean([b - a for a, b in hd95]),
    }
