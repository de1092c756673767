"""Scores against shapes whose Dice and distances are known, and against an independent computation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from tcurlora.errors import InputError
from tcurlora.evaluation.folders import evaluate_folders
from tcurlora.evaluation.gain import compare_scores, summarize
from tcurlora.evaluation.scores import Score, score_case
from tcurlora.imaging.segmentations import write_segmentation
from tcurlora.imaging.structures import Structure, parse_labels

SPACING = (0.7, 1.0, 2.5)


def ellipsoid(shape: tuple[int, ...], center: tuple[float, ...], radii: tuple[float, ...]) -> np.ndarray:
    """True inside; all sizes in voxels."""
    grid = np.indices(shape)
    return np.asarray(sum(((grid[i] - center[i]) / radii[i]) ** 2 for i in range(3)) <= 1)


def surface(mask: np.ndarray) -> np.ndarray:
    """The mask's voxels that touch the outside with a face; the image ends in outside."""
    padded = np.pad(mask, 1)
    inner = padded.copy()
    for axis in range(3):
        inner &= np.roll(padded, 1, axis) & np.roll(padded, -1, axis)
    return np.asarray((padded & ~inner)[1:-1, 1:-1, 1:-1])


def distances(a: np.ndarray, b: np.ndarray, spacing: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Distances in mm from each surface voxel of one mask to the surface of the other, both ways."""
    a, b = surface(a), surface(b)
    to_b = ndimage.distance_transform_edt(~b, sampling=spacing)
    to_a = ndimage.distance_transform_edt(~a, sampling=spacing)
    return to_b[a], to_a[b]


def one(predicted: np.ndarray, truth: np.ndarray, spacing: tuple[float, float, float] = SPACING) -> Score:
    (score,) = score_case("c", predicted.astype(np.int16), truth.astype(np.int16), spacing, {"blob": 1})
    return score


def test_dice_and_volumes_of_overlapping_boxes_are_exact() -> None:
    truth, predicted = np.zeros((2, 20, 20, 20), bool)
    truth[2:12, 5:10, 5:10] = True
    predicted[7:17, 5:10, 5:10] = True
    score = one(predicted, truth)
    assert score.dice == pytest.approx(0.5, abs=1e-12)
    assert score.volume_ml == score.truth_volume_ml == pytest.approx(250 * 0.7 * 1.0 * 2.5 / 1000)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_distance_between_single_voxels_follows_the_spacing_of_their_axis(axis: int) -> None:
    truth, predicted = np.zeros((2, 12, 13, 14), bool)
    truth[4, 4, 4] = True
    predicted[tuple(4 + 5 * (i == axis) for i in range(3))] = True
    score = one(predicted, truth)
    assert score.dice == 0
    assert score.hd95_mm == score.surface_distance_mm == pytest.approx(5 * SPACING[axis], rel=1e-6)


def test_distances_agree_with_an_independent_computation() -> None:
    truth = ellipsoid((40, 30, 20), (18, 15, 9), (10, 8, 5))
    predicted = ellipsoid((40, 30, 20), (21, 14, 10), (9, 9, 6))
    predicted[38:40, 0:2, 18:20] = True  # a far speck: it must not decide HD95, as it would the maximum
    there, back = distances(predicted, truth, SPACING)
    score = one(predicted, truth)
    assert score.hd95_mm == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)), rel=1e-5)
    assert score.hd95_mm < max(there.max(), back.max()) / 2
    assert score.surface_distance_mm == pytest.approx(np.concatenate([there, back]).mean(), rel=1e-5)


def test_structures_that_touch_the_image_border_are_measured_right() -> None:
    truth, predicted = np.zeros((2, 10, 10, 10), bool)
    truth[0:5, :, :] = True
    predicted[0:8, :, :] = True
    there, back = distances(predicted, truth, SPACING)
    score = one(predicted, truth)
    assert score.hd95_mm == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)), rel=1e-5)


def test_equal_shapes_are_perfect() -> None:
    truth = ellipsoid((20, 20, 20), (9, 9, 9), (5, 6, 7))
    score = one(truth, truth)
    assert (score.dice, score.hd95_mm, score.surface_distance_mm) == (1, 0, 0)


def test_absent_structures() -> None:
    empty, full = np.zeros((8, 8, 8), bool), np.ones((8, 8, 8), bool)
    assert (one(empty, empty).dice, one(empty, empty).hd95_mm) == (None, None)
    for predicted, truth in ((empty, full), (full, empty)):
        score = one(predicted, truth)
        assert (score.dice, score.hd95_mm, score.surface_distance_mm) == (0, None, None)


def test_structures_are_scored_each_by_its_own_label() -> None:
    truth, predicted = np.zeros((2, 10, 10, 10), np.uint8)
    truth[1:5], truth[5:9] = 1, 7
    predicted[1:5], predicted[5:7] = 1, 7
    scores = score_case("c", predicted, truth, SPACING, {"left": 1, "right": 7})
    assert [(score.structure, score.dice) for score in scores] == [("left", 1), ("right", pytest.approx(2 / 3))]


def test_different_shapes_are_refused() -> None:
    with pytest.raises(InputError, match="5x5x5"):
        one(np.zeros((5, 5, 5)), np.zeros((5, 5, 6)))


def score(case: str, structure: str, dice: float | None, hd95: float | None = None) -> Score:
    return Score(case, structure, dice, hd95, hd95, 1.0, 2.0)


def test_summary_leaves_out_what_is_absent_and_says_how_many_counted() -> None:
    scores = [score("a", "x", 0.8, 2.0), score("b", "x", 0.6), score("c", "x", None), score("a", "y", 0.5, 4.0)]
    summary = summarize(scores)
    assert summary["x"]["n"] == 2
    assert summary["x"]["n_distance"] == 1
    assert summary["x"]["dice_mean"] == pytest.approx(0.7)
    assert summary["x"]["dice_sd"] == pytest.approx(np.std([0.8, 0.6], ddof=1))
    assert summary["x"]["dice_min"] == 0.6
    assert summary["x"]["hd95_mm_sd"] is None
    assert summary["mean"]["dice_mean"] == pytest.approx(((0.8 + 0.5) / 2 + 0.6) / 2)
    assert summary["mean"]["hd95_mm_mean"] == pytest.approx(3.0)
    assert summary["mean"]["n"] == 2
    assert summarize([score("a", "x", None)])["x"]["dice_mean"] is None


def test_comparison_pairs_cases_and_structures() -> None:
    base = [score(c, s, d, 4.0) for c, s, d in [("a", "x", 0.5), ("a", "y", 0.7), ("b", "x", 0.6), ("b", "y", 0.6)]]
    better = [score(c, s, d, 3.0) for c, s, d in [("b", "x", 0.8), ("b", "y", 0.5), ("a", "y", 0.9), ("a", "x", 0.6)]]
    result = compare_scores(base, better)
    assert result["structures"]["x"]["dice_difference"] == pytest.approx(0.15)
    assert (result["structures"]["y"]["improved"], result["structures"]["y"]["worsened"]) == (1, 1)
    assert result["mean"]["dice_difference"] == pytest.approx(0.1)
    assert result["mean"]["improved"] == 2
    assert result["mean"]["hd95_mm_difference"] == pytest.approx(-1.0)
    assert result["mean"]["dice_difference_ci95"] is None
    assert [entry["case"] for entry in result["cases"]] == ["a", "b"]
    with pytest.raises(ValueError, match="same cases"):
        compare_scores(base, better[1:])


def test_interval_of_the_gain_tells_a_sure_gain_from_chance() -> None:
    cases = [f"{i}" for i in range(12)]
    base = [score(case, "x", 0.5) for case in cases]
    sure = compare_scores(base, [score(case, "x", 0.6 + 0.001 * i) for i, case in enumerate(cases)])
    chance = compare_scores(base, [score(case, "x", 0.51 + (0.2 if i % 2 else -0.2)) for i, case in enumerate(cases)])
    low, high = sure["mean"]["dice_difference_ci95"]
    assert 0.1 < low < sure["mean"]["dice_difference"] < high < 0.111
    assert chance["mean"]["dice_difference_ci95"][0] < 0 < chance["mean"]["dice_difference"]
    again = compare_scores(base, [score(case, "x", 0.6 + 0.001 * i) for i, case in enumerate(cases)])
    assert again == sure


def test_two_scans_of_a_subject_are_no_two_proofs() -> None:
    gains = (0.02, 0.05, -0.01, 0.04, 0.01)
    sides = [f"{i}{side}" for i in range(5) for side in "LR"]
    base = [score(case, "x", 0.5) for case in sides]
    better = [score(case, "x", 0.5 + gains[int(case[0])]) for case in sides]
    one_side = compare_scores(base[::2], better[::2])
    by_subject = compare_scores(base, better, {case: case[0] for case in sides})
    assert by_subject["mean"]["dice_difference_ci95"] == pytest.approx(one_side["mean"]["dice_difference_ci95"])
    low, high = compare_scores(base, better)["mean"]["dice_difference_ci95"]
    wide_low, wide_high = by_subject["mean"]["dice_difference_ci95"]
    assert wide_low < low < high < wide_high
    assert by_subject["mean"]["n"] == 10
    two = {case: "ab"[int(case[0]) % 2] for case in sides}
    assert compare_scores(base, better, two)["mean"]["dice_difference_ci95"] is None


def test_a_false_alarm_counts_against_a_model_that_rightly_finds_nothing() -> None:
    result = compare_scores([score("a", "x", None)], [score("a", "x", 0.0)])
    assert result["mean"]["dice_difference"] == -1


def save(path: Path, array: np.ndarray, names: dict[str, int], spacing: tuple[float, ...] = SPACING) -> None:
    image = sitk.GetImageFromArray(array.astype(np.uint16).transpose())
    image.SetSpacing(spacing)
    path.parent.mkdir(parents=True, exist_ok=True)
    if names:
        write_segmentation(image, [Structure(name, value) for name, value in names.items()], path)
    else:
        sitk.WriteImage(image, str(path))


def boxes(first: int, second: int) -> np.ndarray:
    array = np.zeros((12, 14, 10), np.uint16)
    array[2:6, 2:10, 2:8] = first
    array[6:10, 2:10, 2:8] = second
    return array


def test_folders_are_matched_by_structure_name_not_by_number(tmp_path: Path) -> None:
    truth, prediction = tmp_path / "Wahrheit ü", tmp_path / "予測 1"
    save(truth / "scan 1.nii.gz", boxes(1, 2), {"anterior part": 1, "posterior part": 2})
    save(prediction / "scan 1.seg.nrrd", boxes(5, 3), {"Anterior_Part": 5, "posterior part": 3})
    report = evaluate_folders(prediction, truth)
    assert report["problems"] == []
    assert [(c["case"], c["structure"], c["dice"]) for c in report["cases"]] == [
        ("scan 1", "anterior part", 1.0),
        ("scan 1", "posterior part", 1.0),
    ]
    assert report["summary"]["mean"]["dice_mean"] == 1
    assert report["cases"][0]["truth_volume_ml"] == pytest.approx(4 * 8 * 6 * 1.75 / 1000)


def test_spacing_of_the_files_reaches_the_distances(tmp_path: Path) -> None:
    shifted = np.roll(boxes(1, 0), 1, axis=2)
    save(tmp_path / "t" / "a.nii.gz", boxes(1, 0), {})
    save(tmp_path / "p" / "a.nii.gz", shifted, {})
    (case,) = evaluate_folders(tmp_path / "p", tmp_path / "t")["cases"]
    assert case["hd95_mm"] == pytest.approx(2.5, rel=1e-5)


def test_scans_of_a_subject_are_averaged_first(tmp_path: Path) -> None:
    """Where the folder of cases says whose they are."""
    site = tmp_path / "site"
    for case, dice in (("a1", 1), ("a2", 1), ("b", 0)):
        save(site / "labels" / f"{case}.nii.gz", boxes(1, 0), {})
        save(site / "images" / f"{case}.nii.gz", boxes(1, 0), {})
        save(tmp_path / "p" / f"{case}.nii.gz", boxes(dice, 1 - dice), {})
    assert evaluate_folders(tmp_path / "p", site / "labels")["summary"]["mean"]["dice_mean"] == pytest.approx(2 / 3)
    (site / "cases.csv").write_text("file,subject\na1,anna\na2,anna\nb,ben\n", encoding="utf-8")
    summary = evaluate_folders(tmp_path / "p", site / "labels")["summary"]
    assert summary["mean"]["dice_mean"] == summary["label 1"]["dice_mean"] == 0.5
    assert (summary["mean"]["n"], summary["mean"]["subjects"]) == (3, 2)


def test_files_without_names_use_declared_names_or_numbers(tmp_path: Path) -> None:
    save(tmp_path / "t" / "a.nii.gz", boxes(1, 2), {})
    save(tmp_path / "p" / "a.nii.gz", boxes(1, 0), {})
    report = evaluate_folders(tmp_path / "p", tmp_path / "t")
    assert [(c["structure"], c["dice"]) for c in report["cases"]] == [("label 1", 1.0), ("label 2", 0.0)]
    named = evaluate_folders(tmp_path / "p", tmp_path / "t", [Structure("front", 1), Structure("back", 2)])
    assert [c["structure"] for c in named["cases"]] == ["front", "back"]


def test_names_come_from_the_folder_of_cases_that_the_truth_belongs_to(tmp_path: Path) -> None:
    save(tmp_path / "site" / "labels" / "a.nii.gz", boxes(1, 2), {})
    save(tmp_path / "p" / "a.nii.gz", boxes(1, 2), {})
    (tmp_path / "site" / "dataset.json").write_text(
        '{"labels": {"0": "background", "1": "海馬", "2": "back"}}', "utf-8"
    )
    report = evaluate_folders(tmp_path / "p", tmp_path / "site" / "labels")
    assert [c["structure"] for c in report["cases"]] == ["海馬", "back"]
    given = evaluate_folders(tmp_path / "p", tmp_path / "site" / "labels", [Structure("front", 1)])
    assert given["cases"][0]["structure"] == "front"


def test_problems_of_single_cases_are_listed_and_the_others_scored(tmp_path: Path) -> None:
    names = {"front": 1, "back": 2}
    for case in ("good", "moved", "missing", "broken"):
        save(tmp_path / "t" / f"{case}.seg.nrrd", boxes(1, 2), names)
    save(tmp_path / "p" / "good.seg.nrrd", boxes(1, 2) + (boxes(1, 2) == 0) * 3, {**names, "skull": 3})
    save(tmp_path / "p" / "moved.seg.nrrd", boxes(1, 2), names, (1.0, 1.0, 1.0))
    save(tmp_path / "p" / "extra.seg.nrrd", boxes(1, 2), names)
    (tmp_path / "p" / "broken.nii.gz").write_bytes(b"not an image")
    report = evaluate_folders(tmp_path / "p", tmp_path / "t")
    assert {(c["case"], c["structure"]) for c in report["cases"]} == {("good", "front"), ("good", "back")}
    found = {(problem["case"], problem["code"]): problem for problem in report["problems"]}
    assert {("moved", "geometry_mismatch"), ("missing", "missing_prediction"), ("extra", "missing_truth")} <= set(found)
    assert any(case == "broken" for case, _ in found)
    assert "skull" in found["", "unknown_structure"]["message"]
    assert found["missing", "missing_prediction"]["severity"] == "error"
    assert all(problem["remedy"] for problem in report["problems"])


def test_maps_of_uncertainty_beside_segmentations_are_passed_over(tmp_path: Path) -> None:
    for folder in ("p", "t"):
        save(tmp_path / folder / "a.seg.nrrd", boxes(1, 2), {"front": 1, "back": 2})
    for name in ("a_uncertainty.nii.gz", "b_uncertainty.nii.gz"):
        sitk.WriteImage(sitk.GetImageFromArray(np.zeros((4, 4, 4), np.float32)), str(tmp_path / "p" / name))
    report = evaluate_folders(tmp_path / "p", tmp_path / "t")
    assert [problem["case"] for problem in report["problems"]] == ["b_uncertainty"]


def test_folders_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    save(tmp_path / "t" / "a.nii.gz", boxes(1, 2), {})
    save(tmp_path / "other" / "b.nii.gz", boxes(1, 2), {})
    save(tmp_path / "twice" / "a.nii.gz", boxes(1, 2), {})
    save(tmp_path / "twice" / "a.nrrd", boxes(1, 2), {})
    for folder, words in (("none", "not a folder"), ("empty", "no segmentation"), ("twice", "two files")):
        with pytest.raises(InputError, match=words):
            evaluate_folders(tmp_path / folder, tmp_path / "t")
    with pytest.raises(InputError, match=r"No case could be scored.*a\.nii\.gz"):
        evaluate_folders(tmp_path / "other", tmp_path / "t")


def test_header_and_voxels_are_one_file(tmp_path: Path) -> None:
    save(tmp_path / "t" / "a.hdr", boxes(1, 2), {})
    save(tmp_path / "p" / "a.nii.gz", boxes(1, 2), {})
    assert (tmp_path / "t" / "a.img").is_file()
    report = evaluate_folders(tmp_path / "p", tmp_path / "t")
    assert [c["dice"] for c in report["cases"]] == [1.0, 1.0] and report["problems"] == []


@pytest.mark.parametrize("names", [{"front": 1, "background": 2}, {}])
def test_background_is_not_scored(tmp_path: Path, names: dict[str, int]) -> None:
    """Be it a segment of that name, or a number that was declared to be it."""
    save(tmp_path / "t" / "a.seg.nrrd" if names else tmp_path / "t" / "a.nii.gz", boxes(1, 2), names)
    save(tmp_path / "p" / "a.nii.gz", boxes(1, 0), {})
    report = evaluate_folders(tmp_path / "p", tmp_path / "t", parse_labels("1=front,2=background"))
    assert [(c["structure"], c["dice"]) for c in report["cases"]] == [("front", 1.0)]
    assert report["problems"] == []


def test_voxels_that_nobody_labeled_count_nowhere() -> None:
    truth = np.zeros((20, 20, 21), np.int32)
    truth[5:15, 5:15, 4:17] = 1
    predicted = np.zeros_like(truth)
    predicted[5:15, 6:16, 4:17] = 1  # shifted by one voxel of 2 mm
    ignored = np.ones(truth.shape, bool)
    ignored[..., 6:16:3] = False  # every third slice is labeled
    whole = score_case("a", predicted, truth, (1.0, 2.0, 5.0), {"x": 1})[0]
    partly = truth.copy()
    partly[ignored] = 99
    (score,) = score_case("a", predicted, partly, (1.0, 2.0, 5.0), {"x": 1}, ignored)
    assert score.dice == pytest.approx(whole.dice) == pytest.approx(0.9)
    assert score.truth_volume_ml == pytest.approx(whole.truth_volume_ml * 4 / 13)
    # The outline in the slices is compared, and not the slices' own faces.
    assert score.hd95_mm == pytest.approx(2.0)
    # What is predicted where nobody labeled is no error.
    predicted[ignored] = 1
    assert score_case("a", predicted, partly, (1.0, 2.0, 5.0), {"x": 1}, ignored)[0].dice == score.dice
    nothing = np.ones_like(ignored)
    (score,) = score_case("a", predicted, partly, (1.0, 2.0, 5.0), {"x": 1}, nothing)
    assert score.dice is None and score.hd95_mm is None


def test_overlapping_structures_are_scored_one_by_one() -> None:
    layers = np.zeros((2, 8, 8, 8), np.int32)
    layers[0, 1:7, 1:7, 1:7], layers[1, 2:5, 2:5, 2:5] = 1, 2
    scores = score_case("a", layers, layers[:1], (1.0, 1.0, 1.0), {"outer": 1, "inner": 2})
    assert [score.dice for score in scores] == [1.0, 0.0]
