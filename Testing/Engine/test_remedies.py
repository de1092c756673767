"""What messages about files advise is done, as far as it can be done here, and then the file is read.

Lines of Python in a remedy are taken from it as they stand, with names of files for `old`, `new` and `other`.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from pathlib import Path

import nibabel
import nibabel.processing
import numpy as np
import pytest
import SimpleITK as sitk

from tcurlora.errors import InputError
from tcurlora.imaging.image_warnings import ImageWarning
from tcurlora.imaging.images import read_image

A = (np.random.default_rng(0).random((10, 12, 8)) * 1000).astype(np.int16)
AFFINE = np.array([[-1.2, 0, 0, 10], [0, -1.0, 0, 20], [0, 0, 2.0, 30], [0, 0, 0, 1]])


def nifti(qform: np.ndarray | None, sform: np.ndarray | None, array: np.ndarray = A) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        image = nibabel.Nifti1Image(array, None)
        image.header.set_zooms((1.2, 1, 2, 1)[: array.ndim])
        image.set_qform(qform, 1 if qform is not None else 0)
        image.set_sform(sform, 1 if sform is not None else 0)
        nibabel.save(image, folder / "old.nii.gz")
        return folder / "old.nii.gz"

    return write


def sheared() -> np.ndarray:
    affine = AFFINE.copy()
    affine[1, 2] = 0.3
    return affine


def nifti2(folder: Path) -> Path:
    nibabel.save(nibabel.Nifti2Image(A, AFFINE), folder / "old.nii")
    return folder / "old.nii"


def mgz(folder: Path) -> Path:
    nibabel.save(nibabel.MGHImage(A, AFFINE), folder / "old.mgz")
    return folder / "old.mgz"


def sheared_nrrd(folder: Path) -> Path:
    image = sitk.GetImageFromArray(A.T)
    sitk.WriteImage(image, folder / "old.nrrd")
    content = (folder / "old.nrrd").read_bytes()
    directions = b"space directions: (1,0,0) (0,1,0) (0,0,1)"
    assert directions in content
    (folder / "old.nrrd").write_bytes(content.replace(directions, b"space directions: (1,0,0) (0.3,1,0) (0,0,1)"))
    return folder / "old.nrrd"


SCRIPTS: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "no orientation": ("no_orientation", nifti(None, None)),
    "two sizes": ("contradictory_header", nifti(AFFINE, AFFINE @ np.diag([2.0, 1, 1, 1]))),
    "mirrored": ("contradictory_header", nifti(AFFINE, AFFINE @ np.diag([-1.0, 1, 1, 1]))),
    "sheared": ("sheared", nifti(None, sheared())),
    "sheared NRRD": ("sheared", sheared_nrrd),
    "several volumes": ("not_3d", nifti(AFFINE, AFFINE, np.stack([A, A + 1], -1))),
    "NIfTI-2": ("unsupported_format", nifti2),
    "FreeSurfer": ("unsupported_format", mgz),
}


def script_of(remedy: str) -> str:
    """Return the lines of Python in a remedy: from the first `import` to the bracket that closes its last call."""
    start = remedy.index("import ")
    depth, end = 0, start
    for place in range(start, len(remedy)):
        depth += {"(": 1, ")": -1}.get(remedy[place], 0)
        if remedy[place] == ")" and not depth:
            end = place + 1
            if not remedy[end:].startswith("; ") or remedy[end:].startswith("; or "):
                break
    return remedy[start:end]


@pytest.mark.parametrize("what", SCRIPTS)
def test_python_in_a_remedy_makes_the_file_readable(tmp_path: Path, what: str) -> None:
    code, write = SCRIPTS[what]
    old = write(tmp_path)
    with pytest.raises(InputError) as caught:
        read_image(old)
    assert caught.value.code == code
    new = tmp_path / ("new.nrrd" if old.suffix == ".nrrd" else "new.nii.gz")
    nibabel.save(nibabel.Nifti1Image(A, AFFINE), tmp_path / "other.nii.gz")
    exec(script_of(caught.value.remedy), {"old": str(old), "new": str(new), "other": str(tmp_path / "other.nii.gz")})
    image = read_image(new)
    voxels = sitk.GetArrayFromImage(image).T
    if code != "sheared":
        assert np.array_equal(voxels, A)
        assert image.GetSpacing() == pytest.approx((2.4 if what == "two sizes" else 1.2, 1, 2))
    else:
        assert voxels.max() > 0.5 * A.max()


def test_forms_can_be_made_equal(tmp_path: Path) -> None:
    turn = np.eye(4)
    turn[:2, 3] = 5, 7
    old = nifti(turn @ AFFINE, AFFINE)(tmp_path)
    warnings: list[ImageWarning] = []
    read_image(old, warnings.append)
    exec(script_of(warnings[0].remedy), {"old": str(old), "new": str(tmp_path / "new.nii.gz")})
    left: list[ImageWarning] = []
    image = read_image(tmp_path / "new.nii.gz", left.append)
    assert not left
    assert image.GetOrigin() == pytest.approx((-10, -20, 30))


@pytest.mark.parametrize("name", ["scan.mha", "scan.nii.gz", "scan.dat", "scan", "scan.nii"])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_file_that_is_renamed_as_advised_is_read(tmp_path: Path, ending: str, name: str) -> None:
    image = sitk.GetImageFromArray(A.T)
    sitk.WriteImage(image, tmp_path / f"right{ending}")
    if name.removeprefix("scan") == ending:
        return
    wrong = (tmp_path / f"right{ending}").rename(tmp_path / name)
    try:
        read = read_image(wrong)
    except InputError as error:
        assert error.code == "wrong_suffix"
        advised = re.search(r"ends in (\S+?)\.?$", error.remedy)
        assert advised is not None
        read = read_image(wrong.rename(tmp_path / f"renamed{advised.group(1)}"))
    assert np.array_equal(sitk.GetArrayFromImage(read).T, A)


def test_orientation_can_be_written_into_text_headers(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(A.T)
    for ending, line in ((".mha", b"TransformMatrix"), (".nrrd", b"space:")):
        path = tmp_path / f"a{ending}"
        sitk.WriteImage(image, path)
        content = path.read_bytes()
        start = content.index(line)
        removed = content[start : content.index(b"\n", start) + 1]
        without = content.replace(removed, b"" if ending == ".mha" else b"space dimension: 3\n", 1)
        path.write_bytes(without)
        with pytest.raises(InputError) as caught:
            read_image(path)
        assert caught.value.code == "no_orientation"
        advised = re.search(r"'(\w+ ?[=:][^']*)'", caught.value.remedy)
        assert advised is not None
        new = advised.group(1).encode() + b"\n"
        path.write_bytes(
            without.replace(b"Offset", new + b"Offset", 1)
            if ending == ".mha"
            else without.replace(b"space dimension: 3\n", new, 1)
        )
        assert np.array_equal(sitk.GetArrayFromImage(read_image(path)).T, A)


def test_unit_can_be_corrected(tmp_path: Path) -> None:
    old = nifti(AFFINE, AFFINE)(tmp_path)
    image = nibabel.load(old)
    image.header.set_xyzt_units("micron")
    nibabel.save(image, tmp_path / "micrometers.nii")
    warnings: list[ImageWarning] = []
    read_image(tmp_path / "micrometers.nii", warnings.append)
    assert "set_xyzt_units('mm')" in warnings[0].remedy
    image.header.set_xyzt_units("mm")
    nibabel.save(image, tmp_path / "new.nii")
    left: list[ImageWarning] = []
    assert read_image(tmp_path / "new.nii", left.append).GetSpacing() == pytest.approx((1.2, 1, 2))
    assert not left


FOREIGN: dict[str, tuple[str, bytes]] = {
    "a.png": ("PNG", b"\x89PNG\r\n\x1a\n" + bytes(100)),
    "a.jpg": ("JPEG", b"\xff\xd8\xff\xe0" + bytes(100)),
    "a.tif": ("TIFF", b"II*\0" + bytes(100)),
    "a.h5": ("HDF5", b"\x89HDF\r\n\x1a\n" + bytes(100)),
    "a.mnc": ("MINC", b"CDF\x01" + bytes(100)),
    "a.npy": ("NumPy", b"\x93NUMPY" + bytes(100)),
    "a.zip": ("zip", b"PK\x03\x04" + bytes(100)),
    "a.pdf": ("PDF", b"%PDF-1.4" + bytes(100)),
    "a.vtk": ("VTK", b"# vtk DataFile Version 3.0\n" + bytes(100)),
    "a.mat": ("MATLAB", b"MATLAB 5.0 MAT-file" + bytes(100)),
    "a.mgh": ("FreeSurfer", struct.pack(">i", 1) + bytes(300)),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_formats_that_are_not_read_are_named(tmp_path: Path, name: str) -> None:
    what, content = FOREIGN[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_image(tmp_path / name)
    assert what in caught.value.message
    assert "damaged" not in caught.value.message
    assert caught.value.code in ("unsupported_format", "not_3d", "no_orientation")


def test_resampling_is_not_advised_where_a_header_is_wrong(tmp_path: Path) -> None:
    from tcurlora.cases.case import Case, Dataset
    from tcurlora.cases.checks import check_cases
    from tcurlora.imaging.structures import Structure

    labels = np.zeros(A.shape, np.uint8)
    labels[2:5, 3:6, 2:6] = 1
    nibabel.save(nibabel.Nifti1Image(A, AFFINE), tmp_path / "scan.nii")
    shifted = AFFINE.copy()
    shifted[0, 3] += 15
    nibabel.save(nibabel.Nifti1Image(labels, shifted), tmp_path / "label.nii")
    case = Case("a", tmp_path / "scan.nii", tmp_path / "label.nii", "a")
    findings = check_cases(Dataset(tmp_path, (case,), ()), [Structure("x", 1)], minimum=1)
    remedy = next(finding.remedy for finding in findings if finding.code == "geometry_mismatch")
    assert "do not resample" in remedy
