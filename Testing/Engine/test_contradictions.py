"""Headers that say nothing, two things, or the impossible: refused, or read in one way that is told."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from tcurlora.cases.case import Case, Dataset
from tcurlora.cases.checks import check_cases
from tcurlora.cases.labels import read_case_labels
from tcurlora.errors import InputError
from tcurlora.imaging.grids import geometry_difference
from tcurlora.imaging.image_warnings import ImageWarning
from tcurlora.imaging.images import read_image, write_image
from tcurlora.imaging.segmentations import write_segmentation
from tcurlora.imaging.structures import Structure

A = (np.random.default_rng(0).random((10, 12, 8)) * 1000).astype(np.int16)
AFFINE = np.array([[-1.2, 0, 0, 10], [0, -1.0, 0, 20], [0, 0, 2.0, 30], [0, 0, 0, 1]])
TO_LPS = np.diag([-1.0, -1, 1, 1])


def turned(degrees: float, shift: tuple[float, float, float] = (0, 0, 0)) -> np.ndarray:
    t = np.deg2rad(degrees)
    matrix = np.eye(4)
    matrix[:2, :2] = [[np.cos(t), -np.sin(t)], [np.sin(t), np.cos(t)]]
    matrix[:3, 3] = shift
    return matrix


def write_nifti(
    path: Path,
    qform: np.ndarray | None = None,
    sform: np.ndarray | None = None,
    codes: tuple[int, int] = (1, 1),
    patches: tuple[tuple[Any, ...], ...] = (),
    array: np.ndarray = A,
) -> Path:
    """Write a file with either form or both, then set fields of its header: (format, offset, value)."""
    image = nibabel.Nifti1Image(array, None)
    image.header.set_zooms((1.2, 1, 2))
    image.set_qform(qform, codes[0] if qform is not None else 0)
    image.set_sform(sform, codes[1] if sform is not None else 0)
    if sform is not None and qform is None:
        image.header["pixdim"][1:4] = np.linalg.norm(sform[:3, :3], axis=0)
    nibabel.save(image, path)
    raw = bytearray(path.read_bytes())
    for code, offset, value in patches:
        struct.pack_into(f"<{code}", raw, offset, value)
    path.write_bytes(bytes(raw))
    return path


def refused(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_image(path)
    assert str(path) in caught.value.message
    assert caught.value.remedy
    return caught.value.code


def read_with_warnings(path: Path) -> tuple[sitk.Image, list[str]]:
    warnings: list[ImageWarning] = []
    image = read_image(path, warnings.append)
    assert all(str(path) in warning.message and warning.remedy for warning in warnings)
    return image, [warning.code for warning in warnings]


def affine_of(image: sitk.Image) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    matrix[:3, 3] = image.GetOrigin()
    return TO_LPS @ matrix


def test_sound_headers_give_no_warning(tmp_path: Path) -> None:
    for qform, sform in ((AFFINE, AFFINE), (None, AFFINE), (AFFINE, None), (turned(20) @ AFFINE, turned(20) @ AFFINE)):
        image, warnings = read_with_warnings(write_nifti(tmp_path / "a.nii", qform, sform))
        assert not warnings
        assert affine_of(image) == pytest.approx(nibabel.load(tmp_path / "a.nii").affine, abs=1e-4)
        assert np.array_equal(sitk.GetArrayFromImage(image).T, A)


# Nothing is said


def gipl(folder: Path) -> Path:
    sitk.WriteImage(sitk.GetImageFromArray(A.astype(np.uint8)), folder / "a.gipl")
    return folder / "a.gipl"


def analyze(folder: Path) -> Path:
    nibabel.save(nibabel.AnalyzeImage(A, AFFINE), folder / "a.hdr")
    return folder / "a.hdr"


def changed(kind: str, *pairs: tuple[str, str]) -> Callable[[Path], Path]:
    """Write a file with a header in text, and replace parts of it."""

    def write(folder: Path) -> Path:
        image = sitk.GetImageFromArray(A.T)
        image.SetSpacing((1.2, 1, 2))
        image.SetOrigin((3, 4, 5))
        path = folder / f"a.{kind}"
        sitk.WriteImage(image, str(path))
        content = path.read_bytes()
        for old, new in pairs:
            assert old.encode() in content, old
            content = content.replace(old.encode(), new.encode(), 1)
        path.write_bytes(content)
        return path

    return write


SPACE = "space: left-posterior-superior\n"
DIRECTIONS = "space directions: (1.2,0,0) (0,1,0) (0,0,2)\n"
MATRIX = "TransformMatrix = 1 0 0 0 1 0 0 0 1\n"
WITHOUT_ORIENTATION: dict[str, Callable[[Path], Path]] = {
    "NIfTI": lambda folder: write_nifti(folder / "a.nii"),
    "NIfTI packed": lambda folder: write_packed(folder),
    "NIfTI pair": lambda folder: write_pair(folder),
    "Analyze": analyze,
    "GIPL": gipl,
    "NRRD with spacings": changed(
        "nrrd", (SPACE, ""), (DIRECTIONS, "spacings: 1.2 1 2\n"), ("space origin: (3,4,5)\n", "")
    ),
    "NRRD without axes of a patient": changed("nrrd", (SPACE, "space: 3D-right-handed\n")),
    "NRRD in a scanner": changed("nrrd", (SPACE, "space: scanner-xyz\n")),
    "NRRD with a dimension only": changed("nrrd", (SPACE, "space dimension: 3\n")),
    "MHA": changed("mha", (MATRIX, "")),
    "MHD": changed("mhd", (MATRIX, "")),
}


def write_packed(folder: Path) -> Path:
    image = nibabel.Nifti1Image(A, None)
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    nibabel.save(image, folder / "a.nii.gz")
    return folder / "a.nii.gz"


def write_pair(folder: Path) -> Path:
    image = nibabel.Nifti1Pair(A, None)
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    nibabel.save(image, folder / "a.img")
    return folder / "a.img"


@pytest.mark.parametrize("kind", WITHOUT_ORIENTATION)
def test_scan_that_does_not_say_how_the_patient_lies_is_refused(tmp_path: Path, kind: str) -> None:
    assert refused(WITHOUT_ORIENTATION[kind](tmp_path)) == "no_orientation"


@pytest.mark.parametrize(
    "write",
    [
        changed("nrrd", ("space origin: (3,4,5)\n", "")),
        changed("mha", ("Offset = 3 4 5\n", "")),
    ],
)
def test_missing_position_is_told(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    image, warnings = read_with_warnings(write(tmp_path))
    assert warnings == ["no_position"]
    assert image.GetOrigin() == (0, 0, 0)


# Two things are said


@pytest.mark.parametrize("codes", [(1, 1), (1, 2), (2, 1), (1, 4), (4, 1), (2, 2)])
def test_forms_that_disagree_are_told_with_the_one_that_was_taken(tmp_path: Path, codes: tuple[int, int]) -> None:
    qform = turned(10, (3, -4, 2)) @ AFFINE
    path = write_nifti(tmp_path / "a.nii", qform, AFFINE, codes)
    warnings: list[ImageWarning] = []
    image = read_image(path, warnings.append)
    assert [warning.code for warning in warnings] == ["forms_disagree"]
    taken = "qform" if np.allclose(affine_of(image), qform, atol=1e-3) else "sform"
    if taken == "sform":
        assert affine_of(image) == pytest.approx(AFFINE, abs=1e-3)
    assert f"with its {taken}" in warnings[0].message


def test_forms_that_differ_by_rounding_are_not_told(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii", turned(0.01, (0.01, 0, 0)) @ AFFINE, AFFINE)
    assert read_with_warnings(path)[1] == []


@pytest.mark.parametrize(
    "other", [np.diag([-1.0, 1, 1, 1]) @ AFFINE, turned(90) @ AFFINE, AFFINE @ np.diag([1, 1, -1.0, 1])]
)
def test_forms_that_lay_the_patient_differently_are_refused(tmp_path: Path, other: np.ndarray) -> None:
    assert refused(write_nifti(tmp_path / "a.nii", AFFINE, other)) == "contradictory_header"


def test_voxel_sizes_that_disagree_are_refused_or_told(tmp_path: Path) -> None:
    larger = AFFINE @ np.diag([2.0, 1, 1, 1])
    assert refused(write_nifti(tmp_path / "a.nii", None, larger, patches=(("f", 80, 1.2),))) == "contradictory_header"
    assert refused(write_nifti(tmp_path / "a.nii", AFFINE, larger)) == "contradictory_header"
    slightly = AFFINE @ np.diag([1.003, 1, 1, 1])
    assert read_with_warnings(write_nifti(tmp_path / "a.nii", None, slightly, patches=(("f", 80, 1.2),)))[1] == [
        "sizes_differ"
    ]


def test_label_at_the_other_form_of_its_scan_is_taken(tmp_path: Path) -> None:
    """The usual line of nibabel users writes the scan's sform, where ITK reads the qform."""
    qform = turned(10, (3, -4, 2)) @ AFFINE
    scan = write_nifti(tmp_path / "scan.nii", qform, AFFINE, (1, 2))
    labels = np.zeros(A.shape, np.uint8)
    labels[2:5, 3:6, 2:6] = 1
    nibabel.save(nibabel.Nifti1Image(labels, nibabel.load(scan).affine), tmp_path / "label.nii")
    case = Case("a", scan, tmp_path / "label.nii", "a")
    structures = [Structure("x", 1)]
    read = read_case_labels(case, structures)
    assert geometry_difference(read, read_image(scan)) is None
    assert np.array_equal(sitk.GetArrayFromImage(read).T, labels)
    findings = check_cases(Dataset(tmp_path, (case,), ()), structures, minimum=1)
    assert "geometry_mismatch" not in {finding.code for finding in findings}
    assert [(f.case, f.severity) for f in findings if f.code == "forms_disagree"] == [("a", "warning")]
    elsewhere = nibabel.Nifti1Image(labels, turned(0, (0, 0, 1)) @ AFFINE)
    nibabel.save(elsewhere, tmp_path / "label.nii")
    findings = check_cases(Dataset(tmp_path, (case,), ()), structures, minimum=1)
    assert "geometry_mismatch" in {finding.code for finding in findings}


ODD_FIELDS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "meters": ("unit", ("B", 123, 1)),
    "micrometers": ("unit", ("B", 123, 3)),
    "unit that is none": ("unit", ("B", 123, 5)),
    "qfac 0": ("qfac", ("f", 76, 0.0)),
    "qfac 5": ("qfac", ("f", 76, 5.0)),
    "offset without a factor": ("scaling", ("2f", 112, None)),
}


@pytest.mark.parametrize("what", ODD_FIELDS)
def test_odd_fields_of_a_nifti_are_told(tmp_path: Path, what: str) -> None:
    code, patch = ODD_FIELDS[what]
    path = write_nifti(tmp_path / "a.nii", AFFINE, None, patches=() if patch[2] is None else (patch,))
    if patch[2] is None:
        raw = bytearray(path.read_bytes())
        struct.pack_into("<2f", raw, 112, 0, -1024)
        path.write_bytes(bytes(raw))
    image, warnings = read_with_warnings(path)
    assert warnings == [code]
    factor = {"meters": 1000, "micrometers": 1e-3}.get(what, 1)
    assert image.GetSpacing() == pytest.approx(tuple(factor * size for size in (1.2, 1, 2)))


@pytest.mark.parametrize("form", ["qform", "sform", "both"])
def test_negative_voxel_size_is_refused(tmp_path: Path, form: str) -> None:
    forms = (None if form == "sform" else AFFINE, None if form == "qform" else AFFINE)
    path = write_nifti(tmp_path / "a.nii", *forms, patches=(("f", 80, -1.2),))
    assert refused(path) == "contradictory_header"


@pytest.mark.parametrize("unit", [0, 2])
def test_unknown_unit_and_millimeters_are_not_told(tmp_path: Path, unit: int) -> None:
    assert read_with_warnings(write_nifti(tmp_path / "a.nii", AFFINE, AFFINE, patches=(("B", 123, unit),)))[1] == []


TEXT_HEADERS: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "size and spacing": ("sizes_differ", changed("mha", (MATRIX, MATRIX + "ElementSize = 1.2 1 3\n"))),
    "size only": ("sizes_differ", changed("mha", ("ElementSpacing", "ElementSize"))),
    "words and matrix": ("orientation_differs", changed("mha", ("Orientation = RAI", "Orientation = LAI"))),
}


@pytest.mark.parametrize("what", TEXT_HEADERS)
def test_contradictions_of_text_headers_are_told(tmp_path: Path, what: str) -> None:
    code, write = TEXT_HEADERS[what]
    image, warnings = read_with_warnings(write(tmp_path))
    assert warnings == [code]
    assert image.GetSpacing() == pytest.approx((1.2, 1, 2))


def test_words_about_the_orientation_fit_in_all_orientations(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(A.T)
    for axes in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            image.SetDirection((np.eye(3)[:, axes] * signs).ravel().tolist())
            sitk.WriteImage(image, tmp_path / "a.mha")
            assert read_with_warnings(tmp_path / "a.mha")[1] == []


@pytest.mark.parametrize(
    "write",
    [
        changed("nrrd", (SPACE, SPACE + 'space units: "um" "um" "um"\n')),
        changed("mha", (MATRIX, MATRIX + "DistanceUnits = um\n")),
    ],
)
def test_micrometers_become_millimeters(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    image, warnings = read_with_warnings(write(tmp_path))
    assert warnings == ["unit"]
    assert image.GetSpacing() == pytest.approx((1.2e-3, 1e-3, 2e-3))
    assert image.GetOrigin() == pytest.approx((3e-3, 4e-3, 5e-3))


REFUSED_HEADERS = {
    "two matrices": changed("mha", (MATRIX, MATRIX + "Orientation = 0 1 0 1 0 0 0 0 -1\n")),
    "two positions": changed("mha", (MATRIX, MATRIX + "Position = 1 2 3\n")),
    "two units": changed("nrrd", (SPACE, SPACE + 'space units: "mm" "mm" "um"\n')),
    "no length": changed("nrrd", (SPACE, SPACE + 'space units: "s" "s" "s"\n')),
    "sizes in the matrix": changed("mha", (MATRIX, "TransformMatrix = 2 0 0 0 2 0 0 0 2\n")),
    "directions and spacings": changed("nrrd", (SPACE, SPACE + "spacings: 5 5 5\n")),
}


@pytest.mark.parametrize("what", REFUSED_HEADERS)
def test_text_headers_without_one_reading_are_refused(tmp_path: Path, what: str) -> None:
    assert refused(REFUSED_HEADERS[what](tmp_path)) in ("contradictory_header", "bad_geometry", "unreadable")


# Shear


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("shear", [6e-4, 1.2e-3, 3e-3])
def test_shear_of_rounding_size_is_straightened(tmp_path: Path, shear: float, packed: bool) -> None:
    sform = AFFINE.copy()
    sform[1, 2] = shear
    path = write_nifti(tmp_path / "Größe 一.nii", None, sform)
    if packed:
        nibabel.save(nibabel.load(path), tmp_path / "a.nii.gz")
        path = tmp_path / "a.nii.gz"
    image, warnings = read_with_warnings(path)
    assert warnings == ["straightened"]
    assert np.array_equal(sitk.GetArrayFromImage(image).T, A)
    for voxel in itertools.product((0, 9), (0, 11), (0, 7)):
        place = TO_LPS[:3, :3] @ (sform @ (*voxel, 1))[:3]
        assert image.TransformIndexToPhysicalPoint(voxel) == pytest.approx(place, abs=0.02)
    direction = np.array(image.GetDirection()).reshape(3, 3)
    assert direction.T @ direction == pytest.approx(np.eye(3), abs=1e-9)


@pytest.mark.parametrize(
    ("kind", "old", "new"),
    [
        ("nrrd", DIRECTIONS, "space directions: (1.2,0,0) (0.0005,1,0) (0,0,2)\n"),
        ("mha", MATRIX, "TransformMatrix = 1 0 0 0.0005 1 0 0 0 1\n"),
    ],
)
def test_shear_in_text_headers(tmp_path: Path, kind: str, old: str, new: str) -> None:
    image, warnings = read_with_warnings(changed(kind, (old, new))(tmp_path))
    assert warnings == ["straightened"]
    assert image.TransformIndexToPhysicalPoint((9, 11, 7)) == pytest.approx((3 + 9 * 1.2, 15, 19), abs=0.01)
    assert refused(changed(kind, (old, new.replace("0.0005", "0.05")))(tmp_path)) == "sheared"


def test_scaled_scan_with_shear_keeps_its_scale(tmp_path: Path) -> None:
    sform = AFFINE.copy()
    sform[1, 2] = 6e-4
    path = write_nifti(tmp_path / "a.nii", None, sform)
    raw = bytearray(path.read_bytes())
    struct.pack_into("<2f", raw, 112, 0.5, 3)
    path.write_bytes(bytes(raw))
    assert pytest.approx(0.5 * A + 3) == sitk.GetArrayFromImage(read_image(path)).T


def test_large_shear_is_refused(tmp_path: Path) -> None:
    sform = AFFINE.copy()
    sform[1, 2] = 0.1
    assert refused(write_nifti(tmp_path / "a.nii", None, sform)) == "sheared"


# Results


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_every_program_finds_results_in_one_place(tmp_path: Path, ending: str) -> None:
    """Both forms are written with codes that say so, and mean the same: nibabel is the second reader."""
    rng = np.random.default_rng(0)
    for axes in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            image = sitk.GetImageFromArray(np.zeros((4, 5, 6), np.uint8))
            direction = turned(rng.uniform(-30, 30))[:3, :3] @ (np.eye(3)[:, axes] * signs)
            image.SetDirection(direction.ravel().tolist())
            image.SetSpacing(rng.uniform(0.5, 3, 3).tolist())
            image.SetOrigin(rng.uniform(-100, 100, 3).tolist())
            write_image(image, tmp_path / f"a{ending}")
            write_segmentation(image, [Structure("x", 1)], tmp_path / f"b{ending}")
            for name in "ab":
                header = nibabel.load(tmp_path / f"{name}{ending}").header
                forms = [header.get_qform(coded=True), header.get_sform(coded=True)]
                for form, code in forms:
                    assert code > 0
                    assert form == pytest.approx(affine_of(image), abs=1e-3)


# What ITK says


def test_words_of_itk_are_told_without_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tcurlora.imaging import image_warnings

    monkeypatch.setattr(image_warnings, "_TOLD_ELSEWHERE", ())
    path = write_nifti(tmp_path / "a.nii", None, AFFINE @ np.diag([1.003, 1, 1, 1]), patches=(("f", 80, 1.2),))
    warnings: list[ImageWarning] = []
    read_image(path, warnings.append)
    found = [warning.message for warning in warnings if warning.code == "itk"]
    assert len(found) == 1
    assert "unexpected scales in sform" in found[0]
    assert "itkNifti" not in found[0]
    assert "0x" not in found[0]
