"""Labels as other programs write them: names beside them, a file for each structure, DICOM SEG and RTSTRUCT, scaled."""

from __future__ import annotations

import builtins
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dicom_samples import ORIGIN, SIZE, SPACING, labels_on, rectangle, write_rtstruct, write_seg, write_series

from tcurlora.cases.case import IGNORED, Case
from tcurlora.cases.checks import check_cases
from tcurlora.cases.dataset import find_cases
from tcurlora.cases.labels import read_case_labels, read_structures
from tcurlora.errors import InputError
from tcurlora.evaluation.folders import evaluate_folders
from tcurlora.imaging.image_warnings import ImageWarning
from tcurlora.imaging.images import read_image
from tcurlora.imaging.segmentations import read_segmentation, segmentation_files, write_segmentation
from tcurlora.imaging.structures import Structure


def two() -> np.ndarray:
    """Two structures in the slices 3 to 8 of the series."""
    array = np.zeros(SIZE[::-1], np.uint8)
    array[3:8, 4:10, 5:12] = 1
    array[5:9, 10:13, 5:9] = 2
    return array


def write(array: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(labels_on(array), str(path))


def named(path: Path, **options: Any) -> dict[str, np.ndarray]:
    labels, structures = read_segmentation(path, **options)
    array = sitk.GetArrayFromImage(labels)
    return {structure.name: array == structure.value for structure in structures}


# Names beside labels

TABLES = {
    ".ctbl": "# Color table file\n0 Background 0 0 0 0\n1 liver 255 0 51 255\n2 a_tumor 1 2 3 255\n9 other 1 1 1 255\n",
    "_ColorTable.ctbl": "1 liver 255 0 51 255\n2 a_tumor 1 2 3 255\n",
    ".labels.csv": '"LabelValue","Name","Color_R","Color_G","Color_B","Color_A"\n'
    '1,"liver",255,0,51,255\n2,"a tumor",1,2,3,255\n',
    "_ColorTable.csv": "LabelValue;Name;Color_R;Color_G;Color_B\n1;liver;255;0;51\n2;a tumor;1;2;3\n",
    ".csv": "index,name\n0,Background\n1,liver\n2,a tumor\n",
    ".tsv": "index\tname\tcolor\n1\tliver\t#ff0033\n2\ta tumor\t#010203\n",
    ".txt": '# ITK-SnAP Label Description File\n0 0 0 0 0 0 0 "Clear Label"\n'
    '1 255 0 51 1 1 1 "liver"\n2 1 2 3 1 1 1 "a tumor"\n',
    ".label": '0 0 0 0 0 0 0 "Clear Label"\n1 255 0 51 1 1 1 "liver"\n2 1 2 3 0.5 0 1 "a tumor"\n',
    "_LUT.txt": "#No. Label R G B A\n0 Unknown 0 0 0 0\n1 liver 255 0 51 0\n2 a_tumor 1 2 3 0\n",
}


@pytest.mark.parametrize("ending", TABLES)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_names_come_from_the_table_beside_the_labels(tmp_path: Path, ending: str, encoding: str) -> None:
    write(two(), tmp_path / "a.nii.gz")
    table = tmp_path / f"a{ending}"
    table.write_text(TABLES[ending], encoding=encoding)
    labels, structures = read_segmentation(tmp_path / "a.nii.gz")
    assert [(s.name, s.value) for s in structures] == [("liver", 1), ("a tumor", 2)]
    assert structures[0].color in (None, (1.0, 0.0, 0.2)) and (ending == ".csv") == (structures[0].color is None)
    assert np.array_equal(sitk.GetArrayFromImage(labels), two())
    assert segmentation_files(tmp_path / "a.nii.gz") == [tmp_path / "a.nii.gz", table]


def test_names_of_a_bids_folder_and_of_no_table(tmp_path: Path) -> None:
    write(two(), tmp_path / "sub-01" / "anat" / "sub-01_dseg.nii.gz")
    (tmp_path / "dseg.tsv").write_text("index\tname\n1\tliver\n2\ttumor\n")
    path = tmp_path / "sub-01" / "anat" / "sub-01_dseg.nii.gz"
    assert [s.name for s in read_segmentation(path)[1]] == ["liver", "tumor"]
    write(two(), tmp_path / "b.nii.gz")
    (tmp_path / "b.txt").write_text("Seen again on Monday.\n")  # says nothing about labels
    assert read_segmentation(tmp_path / "b.nii.gz")[1] == []
    (tmp_path / "b.labels.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError) as caught:
        read_segmentation(tmp_path / "b.nii.gz")
    assert caught.value.code == "bad_color_table"


def test_labels_with_a_scale_factor_are_rounded_and_that_is_said(tmp_path: Path) -> None:
    import nibabel

    array = two().T.astype(np.float64)
    image = nibabel.Nifti1Image(array, np.diag([1, 1, 2, 1]))
    image.header.set_data_dtype(np.int16)  # which nibabel fills with a scale factor
    image.header.set_slope_inter(None, None)
    nibabel.save(nibabel.Nifti1Image(array * 0.99995, np.diag([1, 1, 2, 1])), tmp_path / "scaled.nii.gz")
    told: list[ImageWarning] = []
    labels, _ = read_segmentation(tmp_path / "scaled.nii.gz", on_warning=told.append)
    assert np.array_equal(sitk.GetArrayFromImage(labels), two())
    assert "rounded_labels" in [warning.code for warning in told]
    for factor in (0.97, 0.5):  # a probability, or a resampled label
        nibabel.save(nibabel.Nifti1Image(array * factor, np.diag([1, 1, 2, 1])), tmp_path / "soft.nii.gz")
        with pytest.raises(InputError) as caught:
            read_segmentation(tmp_path / "soft.nii.gz")
        assert caught.value.code == "not_labels"


# A file for each structure


def test_masks_of_a_folder_are_structures_of_one_label_map(tmp_path: Path) -> None:
    for value, name in ((1, "liver"), (2, "kidney_left")):
        write((two() == value).astype(np.uint8) * (255 if value == 2 else 1), tmp_path / "p1" / f"{name}.nii.gz")
    write(two() * 0, tmp_path / "p1" / "spleen.nii.gz")
    (tmp_path / "p1" / "statistics.json").write_text("{}")
    found = named(tmp_path / "p1")
    assert list(found) == ["kidney_left", "liver", "spleen"] and not found["spleen"].any()
    assert np.array_equal(found["liver"], two() == 1) and np.array_equal(found["kidney_left"], two() == 2)


def test_masks_that_cannot_be_one_label_map_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "p1"
    write((two() == 1).astype(np.uint8), folder / "liver.nii.gz")
    write((two() > 0).astype(np.uint8), folder / "tumor.nii.gz")
    with pytest.raises(InputError, match=f"'tumor' and 'liver' overlap in {int((two() == 1).sum())} voxels") as caught:
        read_segmentation(folder)
    assert caught.value.code == "overlapping_segments"
    labels, _ = read_segmentation(folder, overlaps=True)
    assert labels.GetNumberOfComponentsPerPixel() == 2
    write(two(), folder / "tumor.nii.gz")
    with pytest.raises(InputError) as caught:
        read_segmentation(folder)
    assert caught.value.code == "several_labels"
    moved = labels_on((two() == 2).astype(np.uint8))
    moved.SetOrigin((0.0, 0.0, 0.3))
    sitk.WriteImage(moved, str(folder / "tumor.nii.gz"))
    with pytest.raises(InputError) as caught:
        read_segmentation(folder)
    assert caught.value.code == "geometry_mismatch"


def test_one_label_map_in_a_folder_is_a_label_map(tmp_path: Path) -> None:
    write(two(), tmp_path / "p1" / "seg.nii.gz")
    assert read_segmentation(tmp_path / "p1")[1] == []
    (tmp_path / "p2").mkdir()
    write_segmentation(labels_on(two()), [Structure("liver", 1), Structure("tumor", 2)], tmp_path / "p2" / "x.seg.nrrd")
    assert set(named(tmp_path / "p2")) == {"liver", "tumor"}


# DICOM


@pytest.fixture
def ct(tmp_path: Path) -> tuple[Path, list[Any]]:
    return tmp_path / "images" / "p1", write_series(tmp_path / "images" / "p1")


def case_of(root: Path, label: Path) -> Case:
    return Case("p1", root / "images" / "p1", label, "p1")


@pytest.mark.parametrize("in_folder", [False, True])
def test_dicom_segmentation_lies_on_its_scan(tmp_path: Path, ct: tuple[Path, list[Any]], in_folder: bool) -> None:
    label = tmp_path / "labels" / ("p1/SEG001.dcm" if in_folder else "p1.dcm")
    label.parent.mkdir(parents=True)
    write_seg(label, ct[1], two(), ["liver", "tumor"])
    (dataset,) = [find_cases(tmp_path)]
    structures = read_structures(dataset)
    assert [s.name for s in structures] == ["liver", "tumor"]
    found = read_case_labels(dataset.cases[0], structures)
    assert np.array_equal(sitk.GetArrayFromImage(found), two())
    assert found.GetSize() == SIZE and found.GetSpacing() == SPACING and np.allclose(found.GetOrigin(), ORIGIN)
    assert {f.code for f in check_cases(dataset, structures)} == {"too_few_cases"}


def test_overlapping_segments_of_a_dicom_segmentation(tmp_path: Path, ct: tuple[Path, list[Any]]) -> None:
    stacked = np.stack([two() == 1, two() > 0], -1).astype(np.uint8)
    write_seg(tmp_path / "a.dcm", ct[1], stacked, ["liver", "all"])
    with pytest.raises(InputError) as caught:
        read_segmentation(tmp_path / "a.dcm")
    assert caught.value.code == "overlapping_segments"
    case, structures = case_of(tmp_path, tmp_path / "a.dcm"), [Structure("liver", 1), Structure("all", 2)]
    labels = sitk.GetArrayFromImage(read_case_labels(case, structures))
    assert np.array_equal((labels == 2).any(-1), two() > 0) and np.array_equal((labels == 1).any(-1), two() == 1)


def test_without_highdicom_it_is_said_how_to_get_it(
    tmp_path: Path, ct: tuple[Path, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_seg(tmp_path / "a.dcm", ct[1], two(), ["liver", "tumor"])
    real = builtins.__import__

    def without(name: str, *rest: Any, **options: Any) -> Any:
        if name.split(".")[0] == "highdicom":
            raise ImportError(name)
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match="pip install") as caught:
        read_segmentation(tmp_path / "a.dcm")
    assert caught.value.code == "missing_package"


def test_labels_of_another_scan_are_refused(tmp_path: Path, ct: tuple[Path, list[Any]]) -> None:
    others = write_series(tmp_path / "others")
    write_seg(tmp_path / "a.dcm", others, two(), ["liver", "tumor"])
    write_rtstruct(tmp_path / "b.dcm", others, {"liver": [rectangle((4.6, 11.4), (3.6, 9.4), 3)]})
    for name in ("a.dcm", "b.dcm"):
        with pytest.raises(InputError) as caught:
            read_case_labels(case_of(tmp_path, tmp_path / name), [Structure("liver", 1), Structure("tumor", 2)])
        assert caught.value.code == "other_series"


def contours_of(array: np.ndarray) -> list[Any]:
    """Rectangles around the one box that each slice of a mask has."""
    found = []
    for level in np.unique(np.nonzero(array)[0]):
        rows, columns = np.nonzero(array[level])
        found.append(
            rectangle((columns.min() - 0.4, columns.max() + 0.4), (rows.min() - 0.4, rows.max() + 0.4), int(level))
        )
    return found


def test_structure_set_becomes_voxels_of_its_scan(tmp_path: Path, ct: tuple[Path, list[Any]]) -> None:
    (tmp_path / "labels").mkdir()
    hole = rectangle((6.6, 8.4), (5.6, 7.4), 4)
    contours = {"liver": [*contours_of(two() == 1), hole], "tumor": contours_of(two() == 2), "empty": []}
    write_rtstruct(tmp_path / "labels" / "p1.dcm", ct[1], contours)
    dataset = find_cases(tmp_path)
    structures = read_structures(dataset)
    assert [s.name for s in structures] == ["liver", "tumor"] and structures[0].color == (1.0, 0.0, 0.2)
    expected = two()
    expected[4, 6:8, 7:9] = 0  # what lies within two contours is a hole
    assert np.array_equal(sitk.GetArrayFromImage(read_case_labels(dataset.cases[0], structures)), expected)
    with pytest.raises(InputError) as caught:
        read_segmentation(tmp_path / "labels" / "p1.dcm")
    assert caught.value.code == "needs_scan"


def test_contours_that_are_not_voxels_of_the_scan_are_refused(tmp_path: Path, ct: tuple[Path, list[Any]]) -> None:
    scan, path = read_image(ct[0]), tmp_path / "a.dcm"
    box = (4.6, 11.4), (3.6, 9.4)
    tilted = [(x, y, z + (1 if x > -22 else 0)) for x, y, z in rectangle(*box, 4)]
    for polygons, kind in (
        ([rectangle(*box, 4.4)], "CLOSED_PLANAR"),
        ([tilted], "CLOSED_PLANAR"),
        ([rectangle(*box, 30)], "CLOSED_PLANAR"),
        ([rectangle(*box, level) for level in (2, 4, 6, 8)], "CLOSED_PLANAR"),
        ([rectangle(*box, 4)[:1]], "POINT"),
        ([rectangle(*box, 4)], "OPEN_PLANAR"),
    ):
        write_rtstruct(path, ct[1], {"liver": polygons}, kind)
        with pytest.raises(InputError, match="RTSTRUCT") as caught:
            read_segmentation(path, scan=scan)
        assert caught.value.code == "contours" and "3D Slicer" in caught.value.remedy


def test_dicom_labels_in_place_of_a_scan_are_named(tmp_path: Path, ct: tuple[Path, list[Any]]) -> None:
    write_seg(tmp_path / "a.dcm", ct[1], two(), ["liver", "tumor"])
    write_rtstruct(tmp_path / "b.dcm", ct[1], {"liver": []})
    for name, words in (("a.dcm", "SEG"), ("b.dcm", "RTSTRUCT")):
        with pytest.raises(InputError, match=words) as caught:
            read_image(tmp_path / name)
        assert caught.value.remedy and "damaged" not in caught.value.message


# What nobody labeled, what is empty, what was exchanged


def site(root: Path, count: int = 4) -> Path:
    rng = np.random.default_rng(0)
    for index in range(count):
        write(rng.normal(100, 20, SIZE[::-1]).astype(np.float32), root / "images" / f"{'abcdefgh'[index]}.nii.gz")
        write(two(), root / "labels" / f"{'abcdefgh'[index]}.nii.gz")
    return root


@pytest.mark.parametrize("how", ["nnU-Net", "by number", "user", "table", "segments", "mask"])
def test_what_is_called_ignore_is_no_structure(tmp_path: Path, how: str) -> None:
    root = site(tmp_path / "site")
    declared = [Structure("liver", 1), Structure("ignore", 2)] if how == "user" else []
    if how in ("nnU-Net", "by number"):
        names = {"background": 0, "liver": 1, "ignore": 2}
        labels = names if how == "nnU-Net" else {str(value): name for name, value in names.items()}
        (root / "dataset.json").write_text(json.dumps({"labels": labels}))
    for path in sorted((root / "labels").iterdir()):
        if how == "table":
            (root / "labels" / f"{path.name[0]}.ctbl").write_text("1 liver 1 2 3 255\n2 Ignore 1 2 3 255\n")
        elif how == "segments":
            path.unlink()
            structures = [Structure("liver", 1), Structure("ignore", 2)]
            write_segmentation(labels_on(two()), structures, path.with_name(f"{path.name[0]}.seg.nrrd"))
        elif how == "mask":
            path.unlink()
            for value, name in ((1, "liver"), (2, "ignore")):
                write((two() == value).astype(np.uint8), root / "labels" / path.name[0] / f"{name}.nii.gz")
    dataset = find_cases(root, declared)
    structures = read_structures(dataset, declared)
    assert [s.name for s in structures] == ["liver"]
    assert not [f for f in check_cases(dataset, structures) if f.code != "structure_absent"]
    case = dataset.cases[0]
    assert case.ignore == ((2,) if how in ("nnU-Net", "by number", "user") else (IGNORED,))
    array = sitk.GetArrayFromImage(read_case_labels(case, structures))
    assert np.array_equal(np.isin(array, case.ignore), two() == 2)
    assert np.array_equal(array == structures[0].value, two() == 1)


def test_ignored_voxels_have_no_score(tmp_path: Path) -> None:
    write(two(), tmp_path / "labels" / "a.nii.gz")
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "liver": 1, "ignore": 2}}))
    write((two() > 0).astype(np.uint8), tmp_path / "pred" / "a.nii.gz")
    report = evaluate_folders(tmp_path / "pred", tmp_path / "labels")
    (score,) = report["cases"]
    assert score["structure"] == "liver" and score["dice"] == 1.0 and not report["problems"]


def test_masks_and_cropped_labels_are_evaluated(tmp_path: Path) -> None:
    for value, name in ((1, "liver"), (2, "tumor")):
        write((two() == value).astype(np.uint8), tmp_path / "pred" / "a" / f"{name}.nii.gz")
    structures = [Structure("tumor", 2), Structure("liver", 1)]
    (tmp_path / "truth").mkdir()
    write_segmentation(labels_on(two())[3:16, 2:15, 2:11], structures, tmp_path / "truth" / "a.seg.nrrd")
    report = evaluate_folders(tmp_path / "pred", tmp_path / "truth")
    assert {score["structure"]: score["dice"] for score in report["cases"]} == {"liver": 1.0, "tumor": 1.0}


def test_regions_of_nnunet_are_refused_unless_the_labels_are_named(tmp_path: Path) -> None:
    root = site(tmp_path / "site")
    labels = {"background": 0, "whole": [1, 2], "core": [2]}
    (root / "dataset.json").write_text(json.dumps({"labels": labels, "regions_class_order": [1, 2]}))
    with pytest.raises(InputError, match="'whole' is the labels 1, 2 together") as caught:
        find_cases(root)
    assert caught.value.code == "region_labels"
    given = [Structure("edema", 1), Structure("core", 2)]
    assert [s.name for s in read_structures(find_cases(root, given), given)] == ["edema", "core"]
    labels = {"background": 0, "edema": [1], "core": 2}
    (root / "dataset.json").write_text(json.dumps({"labels": labels}))
    assert [s.name for s in find_cases(root).structures] == ["edema", "core"]


def test_a_structure_under_the_number_0_is_told(tmp_path: Path) -> None:
    root = site(tmp_path / "site")
    (root / "dataset.json").write_text(json.dumps({"labels": {"0": "liver", "1": "tumor", "2": "x"}}))
    assert [(f.code, f.severity) for f in find_cases(root).findings] == [("label_zero_named", "warning")]


def test_empty_label_is_a_warning_as_long_as_others_are_not(tmp_path: Path) -> None:
    root, structures = site(tmp_path / "site"), [Structure("liver", 1), Structure("tumor", 2)]
    write(two() * 0, root / "labels" / "b.nii.gz")
    assert {(f.case, f.code): f.severity for f in check_cases(find_cases(root), structures)} == {
        ("b", "empty_label"): "warning"
    }
    for name in "acd":
        write(two() * 0, root / "labels" / f"{name}.nii.gz")
    found = {(f.case, f.code): f.severity for f in check_cases(find_cases(root), structures)}
    assert found["", "no_labels"] == "error"


def test_scan_and_labels_that_were_exchanged_are_told(tmp_path: Path) -> None:
    root = site(tmp_path / "site")
    image = np.random.default_rng(1).integers(0, 2000, SIZE[::-1]).astype(np.int16)
    write(two(), root / "images" / "b.nii.gz")
    write(image, root / "labels" / "b.nii.gz")
    dataset = find_cases(root, [Structure("liver", 1), Structure("tumor", 2)])
    found = {(f.case, f.code): f.severity for f in check_cases(dataset, [Structure("liver", 1), Structure("tumor", 2)])}
    assert found["b", "image_like_labels"] == "warning" and found["b", "label_like_image"] == "error"
    with pytest.raises(InputError) as caught:
        read_structures(dataset)
    assert len(str(caught.value)) < 2000
