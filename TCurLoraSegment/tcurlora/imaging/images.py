"""Scans in files: read with every doubt named, written whole or not at all.

What a header claims is checked, here and in `headers`, before voxels are believed or memory is taken for them.
"""

from __future__ import annotations

import glob
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from tcurlora.errors import InputError, TCurLoraError
from tcurlora.imaging.affines import ROUNDING, affine_of, set_affine
from tcurlora.imaging.headers import HEADERS, has_sound_header, nifti
from tcurlora.imaging.headers.formats import FOREIGN, READABLE, format_of
from tcurlora.imaging.headers.streams import is_packed
from tcurlora.imaging.image_warnings import OnWarning, itk_quiet, itk_warnings, unheard
from tcurlora.imaging.reading import (
    damaged_header,
    guarded,
    require_complete,
    require_file,
    require_sound_information,
    require_straight,
)
from tcurlora.runtime.atomic_files import whole_file

IMAGE_SUFFIXES = (
    ".seg.nrrd",
    ".seg.nhdr",
    ".nii.gz",
    ".img.gz",
    ".gipl.gz",
    ".nrrd",
    ".nhdr",
    ".nii",
    ".hdr",
    ".img",
    ".mha",
    ".mhd",
    ".gipl",
    ".dcm",
)
"""Endings of image files, the longer before the shorter that it contains."""

WRITABLE_SUFFIXES = (".seg.nrrd", ".nii.gz", ".nrrd", ".nii", ".mha")
"""Endings that can be written: formats that keep a volume and its geometry in one file."""

UNCERTAINTY = "_uncertainty"
"""How the names of uncertainty maps end, which lie beside segmentations."""
_VOXELS_OF_HDR = (".img", ".img.gz")
_WITH_VOXELS_APART = (".hdr", *_VOXELS_OF_HDR, ".nhdr", ".seg.nhdr", ".mhd")


def suffix(path: Path) -> str:
    """Return the image ending of a file name in lower case (`.nii.gz`, `.seg.nrrd`), or an empty string."""
    name = path.name.lower()
    return next((s for s in IMAGE_SUFFIXES if name.endswith(s) and len(name) > len(s)), "")


def stem(path: Path) -> str:
    """Return the file name without its image ending: `scan.nii.gz` and `scan.seg.nrrd` both give `scan`."""
    return path.name[: len(path.name) - len(suffix(path))]


def images_in(folder: Path) -> list[Path]:
    """Return the image files of a folder in the order of their names, a header and its voxels as one.

    Hidden files are passed over: they are other programs' side files, such as macOS's `._scan.nii.gz`.
    """
    files = sorted(
        entry for entry in folder.iterdir() if suffix(entry) and not entry.name.startswith(".") and entry.is_file()
    )
    headers = {stem(file) for file in files if suffix(file) == ".hdr"}
    return [file for file in files if not (suffix(file) in _VOXELS_OF_HDR and stem(file) in headers)]


def files_of(path: Path) -> list[Path]:
    """Return all files that an image is read from: the slices of a DICOM series, the voxels beside a header."""
    if path.is_dir():
        return sorted(entry for entry in path.iterdir() if entry.is_file() and not entry.name.startswith("."))
    if suffix(path) not in _WITH_VOXELS_APART:
        return [path]
    return sorted(entry for entry in path.parent.glob(f"{glob.escape(stem(path))}.*") if entry.is_file())


def read_image(path: Path, on_warning: OnWarning = unheard) -> sitk.Image:
    """Read a 3D image, of one or several components a voxel, from a file or a folder with one DICOM series.

    A 4D file with a single time point counts as 3D.

    Args:
        path: a NIfTI-1, NRRD, MetaImage or DICOM file, or a folder that holds the slices of one DICOM series.
        on_warning: is told where a header says two things, or leaves something open, and how it was read.

    Returns:
        The image with the file's own pixel type and geometry, and its metadata where it is not DICOM.

    Raises:
        InputError: when the file is missing, damaged, cut short, of another format, not 3D, does not say how the
            patient lies, or its geometry makes no sense.
    """
    path = Path(path)
    with itk_warnings(str(path), on_warning):
        if not path.is_dir():
            return _read_file(path, on_warning)
        from tcurlora.imaging.dicom import read_series

        return read_series(path, on_warning)


def write_image(image: sitk.Image, path: Path) -> None:
    """Write an image compressed, so that the path holds either what it held before or the whole new file.

    The metadata of the image is left out, because that of a DICOM scan names the patient.

    Raises:
        InputError: when the ending of the name is not in `WRITABLE_SUFFIXES`.
        TCurLoraError: when the file cannot be written.
    """
    write_whole(without_metadata(image) if image.GetMetaDataKeys() else image, Path(path))


def _read_file(path: Path, on_warning: OnWarning) -> sitk.Image:
    require_file(path)
    kind = format_of(path)
    if kind == "dicom":
        from tcurlora.imaging.dicom import read_dicom_file

        return read_dicom_file(path, on_warning)
    _require_readable(path, kind)
    if not has_sound_header(path):
        raise damaged_header(path)
    header = HEADERS[kind]
    header.look(path, on_warning)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        if kind == "nifti" and "rthonormal" in str(error):
            return _read_sheared_nifti(path, on_warning)
    image = _voxels(reader, path, path)
    affine = affine_of(image)
    straight = require_straight(path, affine, image.GetSize(), on_warning)
    if straight.cosine > ROUNDING:
        set_affine(image, straight.affine)
    header.settle(path, image, on_warning)
    return image


def _require_readable(path: Path, kind: str) -> None:
    if kind in FOREIGN:
        foreign = FOREIGN[kind]
        raise InputError(f"{path} is {foreign.name}, {foreign.reason}.", foreign.remedy, foreign.code)
    if kind not in READABLE:
        if suffix(path):
            raise damaged_header(path)
        raise InputError(
            f"{path} is not an image of a format that is read.",
            "Give a DICOM series, or a file in NIfTI-1, NRRD or MetaImage format.",
            "unreadable",
        )
    name, endings = READABLE[kind]
    packed = is_packed(path)
    if not path.name.lower().endswith(endings) or (kind == "nifti" and packed and not path.name.lower().endswith("gz")):
        fitting = endings[1 if kind == "nifti" and packed else 0]
        raise InputError(
            f"{path} holds a {name} image, which its name does not say.",
            f"Rename the file so that it ends in {fitting}.",
            "wrong_suffix",
        )


def _voxels(reader: sitk.ImageFileReader, path: Path, file: Path) -> sitk.Image:
    """Read a file (`file`) that a reader has been given; messages name the user's (`path`)."""
    guarded(path, reader.ReadImageInformation)
    require_sound_information(reader, path)
    require_complete(file)
    image = guarded(path, reader.Execute)
    volume: sitk.Image = image[:, :, :, 0] if image.GetDimension() == 4 else image
    return volume


def _read_sheared_nifti(path: Path, on_warning: OnWarning) -> sitk.Image:
    """Read a NIfTI file whose axes ITK does not take, because of a shear that may be of rounding size."""
    header = nifti.read_header(path)
    qform, sform = nifti.forms(header)
    affine = qform if sform is None else sform
    if affine is None or header.magic != b"n+1\0" or not np.linalg.norm(affine[:3, :3], axis=0).min() > 0:
        raise damaged_header(path)
    straight = require_straight(path, affine, header.volume, on_warning)
    require_complete(path)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "voxels.nii"
        try:
            nifti.without_forms(path, copy)
        except OSError as error:
            raise not_written(copy) from error
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(copy))
        image = _voxels(reader, path, copy)
    set_affine(image, straight.affine)
    nifti.settle(path, image, on_warning)
    return image


def require_writable_suffix(path: Path) -> None:
    """Refuse a name whose ending is not in `WRITABLE_SUFFIXES`.

    Raises:
        InputError: naming the endings that can be written.
    """
    if suffix(path) not in WRITABLE_SUFFIXES:
        raise InputError(
            f"{path} has no ending of an image format that can be written.",
            f"Use one of {', '.join(WRITABLE_SUFFIXES)}.",
            "unknown_format",
        )


def write_whole(image: sitk.Image, path: Path) -> None:
    """Write an image with its metadata, so that the path holds either what it held before or the whole new file.

    Raises:
        InputError: when the name cannot be written to.
        TCurLoraError: when the file cannot be written.
    """
    require_writable_suffix(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder.", "Give the name of a file to write.", "is_folder")
    # The same folder, so that the rename is atomic; the same ending, by which ITK picks the format.
    try:
        with whole_file(path, path.name[len(stem(path)) :]) as temporary, itk_quiet():
            sitk.WriteImage(image, str(temporary), useCompression=True)
            if not _written_whole(temporary):
                raise not_written(path)
    except (RuntimeError, OSError) as error:
        raise not_written(path) from error


def without_metadata(image: sitk.Image) -> sitk.Image:
    """Return a copy without metadata; erasing it from a shallow copy would erase it from the original too."""
    vector = image.GetNumberOfComponentsPerPixel() > 1
    bare = sitk.GetImageFromArray(sitk.GetArrayViewFromImage(image), isVector=vector)
    bare.CopyInformation(image)
    return bare


def _written_whole(path: Path) -> bool:
    """Tell whether the file is complete: ITK ignores a disk that fills up while it writes some formats."""
    try:
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
        require_complete(path)
    except (RuntimeError, InputError):
        return False
    return True


def not_written(path: Path) -> TCurLoraError:
    """Say why a file could not be written, as far as the folder and the disk tell."""
    folder = path.parent
    if not folder.is_dir():
        return TCurLoraError(f"{path} cannot be written: there is no folder {folder}.", "Create it.", "not_written")
    if not os.access(folder, os.W_OK):
        return TCurLoraError(
            f"{path} cannot be written: the folder {folder} is write-protected.",
            "Choose a folder in which you may write.",
            "not_written",
        )
    free = shutil.disk_usage(folder).free
    return TCurLoraError(
        f"{path} cannot be written ({free / 1e6:.0f} MB are free on that disk).",
        "Make room on the disk, or within your quota, or choose another folder.",
        "not_written",
    )
