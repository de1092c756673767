"""Scores: how well predicted segmentations agree with the truth, in Dice and in millimetres."""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from tcurlora.errors import InputError
from tcurlora.events import EventSink, NullEvents
from tcurlora.geometry import geometry_difference, label_array
from tcurlora.images import IMAGE_SUFFIXES, read_segmentation, stem
from tcurlora.labels import Structure, normalized

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
) -> list[Score]:
    """Score one case, structure by structure.

    Args:
        case: name of the case.
        predicted: label values, shape (x, y, z).
        truth: label values, shape (x, y, z), on the same voxels.
        spacing: size of a voxel along x, y and z in mm.
        structures: label value of each structure.

    Raises:
        InputError: when the shapes differ.
    """
    if predicted.shape != truth.shape:
        raise InputError(
            f"Case '{case}': the prediction has {_shape(predicted)} voxels, the truth {_shape(truth)}.",
            "Compare segmentations of the same scan.",
            "geometry_mismatch",
        )
    voxel_ml = math.prod(spacing) / 1000
    scores = []
    for name, value in structures.items():
        a, b = predicted == value, truth == value
        size_a, size_b = int(a.sum()), int(b.sum())
        dice = hd95 = distance = None
        if size_a or size_b:
            box = _bounding_box(a | b)
            a, b = a[box], b[box]
            dice = 2 * int((a & b).sum()) / (size_a + size_b)
        if size_a and size_b:
            hd95, distance = _surface_distances(a, b, spacing)
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


def compare_scores(base: Sequence[Score], adapted: Sequence[Score], n_boot: int = 2000) -> dict[str, Any]:
    """Compare two models on the same cases, paired per case and structure.

    Where the truth lacks a structure, a model that rightly leaves it out counts as Dice 1 against one that does not.

    Returns:
        `structures` (name to numbers), `mean` (the same numbers of the cases' means over structures) and `cases`
        (each case's mean Dice). Numbers: n, base_dice, adapted_dice, dice_difference (adapted less base),
        dice_difference_ci95 (paired bootstrap over cases; None below 3 cases), improved, worsened, n_distance,
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
    return {
        "structures": {
            name: _comparison(
                [pair for key, pair in dice.items() if key[1] == name],
                [pair for key, pair in hd95.items() if key[1] == name],
                n_boot,
            )
            for name in dict.fromkeys(score.structure for score in base)
        },
        MEAN: _comparison(list(case_dice.values()), list(case_hd95.values()), n_boot),
        "cases": [
            {"case": case, "base_dice": a, "adapted_dice": b, "dice_difference": b - a}
            for case, (a, b) in case_dice.items()
        ],
    }


def evaluate_folders(
    prediction: Path, truth: Path, declared: Sequence[Structure] = (), events: EventSink | None = None
) -> dict[str, Any]:
    """Score every truth segmentation of a folder against the prediction of the same name.

    Structures are matched by the names in the files. A file without names takes them by label number from `declared`
    or from the other file of its pair, and else calls them `label 1`, `label 2`. What no truth file knows is not
    scored.

    Args:
        prediction: folder with the predicted segmentations.
        truth: folder with the true ones; file names may differ in their endings.
        declared: names of the label numbers, for files that carry none.
        events: told the progress, one step a case.

    Returns:
        `schema`, `summary` (see `summarize`), `cases` (a dict for each `Score`) and `problems` (case, code, message,
        remedy, severity), such as a truth without a prediction.

    Raises:
        InputError: when a folder cannot be used, or no case could be scored.
    """
    events = events or NullEvents()
    predictions, truths = _files_by_stem(prediction), _files_by_stem(truth)
    scores: list[Score] = []
    known: set[str] = set()
    problems: list[dict[str, str]] = []
    for step, (case, path) in enumerate(truths.items(), start=1):
        try:
            if case not in predictions:
                raise InputError(
                    f"'{path.name}' has no prediction in '{prediction}'.",
                    "Segment that scan too, or give the prediction the same file name.",
                    "missing_prediction",
                )
            case_scores, names = _score_files(case, predictions[case], path, declared)
            scores += case_scores
            known |= names
        except InputError as error:
            problems.append(_problem(case, error.code, error.message, error.remedy, "error"))
        events.emit("progress", step=step, total=len(truths))
    for case in predictions.keys() - truths.keys():
        message = f"'{predictions[case].name}' has no truth in '{truth}' and is not scored."
        problems.append(_problem(case, "missing_truth", message, "Add its truth, or leave it out.", "warning"))
    for name in dict.fromkeys(s.structure for s in scores if normalized(s.structure) not in known):
        message = f"The predictions have the structure '{name}', which no truth file has; it is not scored."
        problems.append(_problem("", "unknown_structure", message, "Check the structures' names.", "warning"))
    if not known:
        reason = problems[0]["message"] if problems else f"No truth file in '{truth}' has a labeled voxel."
        raise InputError(f"No case could be scored. {reason}", "Correct the folders or files.", "nothing_to_evaluate")
    scores = [score for score in scores if normalized(score.structure) in known]
    return {
        "schema": 1,
        "summary": summarize(scores),
        "cases": [asdict(score) for score in scores],
        "problems": problems,
    }


def _score_files(
    case: str, prediction: Path, truth: Path, declared: Sequence[Structure]
) -> tuple[list[Score], set[str]]:
    """Score one pair of files; also say which structures the truth knows, by normalized name."""
    predicted_image, predicted_structures = read_segmentation(prediction)
    truth_image, truth_structures = read_segmentation(truth)
    difference = geometry_difference(predicted_image, truth_image)
    if difference:
        raise InputError(
            f"Case '{case}': prediction and truth do not lie on the same voxels: {difference}.",
            "Compare segmentations of the same scan, in that scan's geometry.",
            "geometry_mismatch",
        )
    predicted_names = predicted_structures or declared or truth_structures
    truth_names = truth_structures or declared or predicted_structures
    predicted_array, predicted_here = _by_name(predicted_image, predicted_names)
    truth_array, truth_here = _by_name(truth_image, truth_names)
    # Names that a file merely borrowed say nothing about what it knows.
    known = set(truth_here) | {normalized(structure.name) for structure in truth_structures or declared}
    shown = {normalized(structure.name): structure.name for structure in (*truth_names, *predicted_names)}
    shown |= {n: name for here in (predicted_here, truth_here) for n, (name, _) in here.items()}
    common = {name: number for number, name in enumerate(shown, start=1)}
    scores = score_case(
        case,
        _renumbered(predicted_array, predicted_here, common),
        _renumbered(truth_array, truth_here, common),
        truth_image.GetSpacing(),
        {shown[name]: number for name, number in common.items()},
    )
    return scores, known


def _by_name(image: sitk.Image, structures: Sequence[Structure]) -> tuple[np.ndarray, dict[str, tuple[str, list[int]]]]:
    """The label array, and for each structure that occurs in it, by normalized name, its name and label values."""
    names = {structure.value: structure.name for structure in structures}
    array = label_array(image)
    found: dict[str, tuple[str, list[int]]] = {}
    for value in np.unique(array[array != 0]).tolist():
        name = names.get(value, f"label {value}")
        found.setdefault(normalized(name), (name, []))[1].append(value)
    return array, found


def _renumbered(
    array: np.ndarray, found: Mapping[str, tuple[str, list[int]]], numbers: Mapping[str, int]
) -> np.ndarray:
    """The array with each structure's own label values replaced by its common number."""
    result = np.zeros(array.shape, np.int32)
    for name, (_, values) in found.items():
        result[np.isin(array, values)] = numbers[name]
    return result


def _files_by_stem(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise InputError(f"'{folder}' is not a folder.", "Give the folder that holds the segmentations.", "no_folder")
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.is_file() or not path.name.lower().endswith(tuple(IMAGE_SUFFIXES)):
            continue
        if stem(path) in files:
            raise InputError(
                f"'{folder}' has two files for one case: '{files[stem(path)].name}' and '{path.name}'.",
                "Keep one of them.",
                "duplicate_case",
            )
        files[stem(path)] = path
    if not files:
        raise InputError(f"'{folder}' holds no segmentation.", "Give one with .nii.gz or .seg.nrrd files.", "empty")
    return files


def _problem(case: str, code: str, message: str, remedy: str, severity: str) -> dict[str, str]:
    return {"case": case, "code": code, "message": message, "remedy": remedy, "severity": severity}


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
    dice: Sequence[tuple[float, float]], hd95: Sequence[tuple[float, float]], n_boot: int
) -> dict[str, Any]:
    differences = np.array([b - a for a, b in dice])
    interval = None
    if len(differences) >= 3:
        drawn = np.random.default_rng(0).integers(len(differences), size=(n_boot, len(differences)))
        interval = [float(q) for q in np.percentile(differences[drawn].mean(axis=1), (2.5, 97.5))]
    return {
        "n": len(dice),
        "base_dice": _mean([a for a, _ in dice]),
        "adapted_dice": _mean([b for _, b in dice]),
        "dice_difference": _mean(differences.tolist()),
        "dice_difference_ci95": interval,
        "improved": int((differences > 0).sum()),
        "worsened": int((differences < 0).sum()),
        "n_distance": len(hd95),
        "base_hd95_mm": _mean([a for a, _ in hd95]),
        "adapted_hd95_mm": _mean([b for _, b in hd95]),
        "hd95_mm_difference": _mean([b - a for a, b in hd95]),
    }
