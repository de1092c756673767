"""Compare a folder of segmentations with a folder of true labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from tcurlora.cases.dataset import declared_labels, find_cases
from tcurlora.errors import InputError
from tcurlora.evaluation.gain import summarize
from tcurlora.evaluation.scores import Score, score_case
from tcurlora.imaging.grids import geometry_difference, label_array, on_grid_of
from tcurlora.imaging.images import UNCERTAINTY, images_in, stem
from tcurlora.imaging.segmentations import read_segmentation
from tcurlora.imaging.structures import BACKGROUND, IGNORE, Structure, is_background, is_ignored, normalized
from tcurlora.runtime.events import EventSink, NullEvents


def evaluate_folders(
    prediction: Path, truth: Path, declared: Sequence[Structure] = (), events: EventSink | None = None
) -> dict[str, Any]:
    """Score every truth segmentation of a folder against the prediction of the same name.

    Structures are matched by the names in the files. A file without names takes them by label number from `declared`,
    from the dataset.json of the cases whose labels/ the truth is, or from the other file of its pair, and else calls
    them `label 1`, `label 2`. What no truth file knows is not scored. Subjects come from the cases whose labels/ the
    truth is; elsewhere every case is a subject of its own.

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
    if not declared and truth.name == "labels":
        told = declared_labels(truth.parent)
        declared = (*told.structures, *(Structure(IGNORE, value) for value in told.ignore))
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
    for case in sorted(predictions.keys() - truths.keys()):
        if case.endswith(UNCERTAINTY) and case.removesuffix(UNCERTAINTY) in predictions:
            continue
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
        "summary": summarize(scores, _subjects(truth)),
        "cases": [asdict(score) for score in scores],
        "problems": problems,
    }


def _subjects(truth: Path) -> dict[str, str]:
    """Return whose scan each case is, as far as the folder above says it."""
    if truth.name != "labels":
        return {}
    try:
        return {case.name: case.subject for case in find_cases(truth.parent).cases}
    except InputError:
        return {}  # labels without scans can be evaluated too


def _score_files(
    case: str, prediction: Path, truth: Path, declared: Sequence[Structure]
) -> tuple[list[Score], set[str]]:
    """Score one pair of files; also say which structures the truth knows, by normalized name."""
    predicted_image, predicted_structures = read_segmentation(prediction, overlaps=True)
    truth_image, truth_structures = read_segmentation(truth, overlaps=True)
    difference = geometry_difference(predicted_image, truth_image)
    if difference:
        # Slicer and DICOM leave out what is empty, so one of the two may be a part of the other.
        placed = on_grid_of(truth_image, predicted_image)
        if placed is not None:
            truth_image, difference = placed, None
        elif (placed := on_grid_of(predicted_image, truth_image)) is not None:
            predicted_image, difference = placed, None
    if difference:
        raise InputError(
            f"Case '{case}': prediction and truth do not lie on the same voxels: {difference}.",
            "Compare segmentations of the same scan, in that scan's geometry.",
            "geometry_mismatch",
        )
    predicted_names = predicted_structures or declared or truth_structures
    truth_names = truth_structures or declared or predicted_structures
    predicted_array, predicted_here, _ = _by_name(predicted_image, predicted_names)
    truth_array, truth_here, ignored = _by_name(truth_image, truth_names)
    # Names that a file merely borrowed say nothing about what it knows.
    known = set(truth_here) | {normalized(structure.name) for structure in truth_structures or declared}
    known -= {BACKGROUND, IGNORE}
    named = (s for s in (*truth_names, *predicted_names) if not is_background(s.name) and not is_ignored(s.name))
    shown = {normalized(s.name): s.name for s in named}
    shown |= {n: name for here in (predicted_here, truth_here) for n, (name, _) in here.items()}
    common = {name: number for number, name in enumerate(shown, start=1)}
    scores = score_case(
        case,
        _renumbered(predicted_array, predicted_here, common),
        _renumbered(truth_array, truth_here, common),
        truth_image.GetSpacing(),
        {shown[name]: number for name, number in common.items()},
        ignored if ignored.any() else None,
    )
    return scores, known


def _by_name(
    image: sitk.Image, structures: Sequence[Structure]
) -> tuple[np.ndarray, dict[str, tuple[str, list[int]]], np.ndarray]:
    """The label array; for each structure in it, by normalized name, its name and values; and what nobody labeled."""
    names = {structure.value: structure.name for structure in structures}
    array = label_array(image)
    nothing = [value for value, name in names.items() if is_background(name)]
    unlabeled = np.isin(array, [value for value, name in names.items() if is_ignored(name)])
    ignored = unlabeled if unlabeled.ndim == 3 else np.logical_or.reduce(unlabeled)
    array = np.where(np.isin(array, nothing) | unlabeled, 0, array)
    found: dict[str, tuple[str, list[int]]] = {}
    for value in np.unique(array[array != 0]).tolist():
        name = names.get(value, f"label {value}")
        found.setdefault(normalized(name), (name, []))[1].append(value)
    return array, found, ignored


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
    inside = [entry for entry in sorted(folder.iterdir()) if entry.is_dir() and not entry.name.startswith(".")]
    for path in (*images_in(folder), *(entry for entry in inside if images_in(entry))):
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
