"""Scans in files: read with every doubt named, written whole or not at all.

What a header claims is checked, here and in `image_contents`, before voxels are believed or memory is taken for them.
"""

from __future__ import annotations

import glob
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from tcurlora.errors import InputError, TCurLoraError
from tcurlora.imaging.headers import has_sound_header, is_complete
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
MAX_VOXELS = 2**31
_COPY_AGAIN = "Copy or export the file again, and check that it opens in 3D Slicer."


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


def read_image(path: Path) -> sitk.Image:
    """Read a 3D image, of one or several components a voxel, from a file or a folder with one DICOM series.

    A 4D file with a single time point counts as 3D.

    Args:
        path: a file that SimpleITK reads, or a folder that holds the slices of one DICOM series.

    Returns:
        The image with the file's own pixel type, geometry and metadata.

    Raises:
        InputError: when the file is missing, damaged, cut short, not 3D, or its geometry makes no sense.
    """
    path = Path(path)
    with _itk_quiet():
        return _read_series(path) if path.is_dir() else _read_file(path)


def write_image(image: sitk.Image, path: Path) -> None:
    """Write an image compressed, so that the path holds either what it held before or the whole new file.

    The metadata of the image is left out, because that of a DICOM scan names the patient.

    Raises:
        InputError: when the ending of the name is not in `WRITABLE_SUFFIXES`.
        TCurLoraError: when the file cannot be written.
    """
    write_whole(without_metadata(image) if image.GetMetaDataKeys() else image, Path(path))


@contextmanager
def _itk_quiet() -> Iterator[None]:
    before = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(before)


def _read_file(path: Path) -> sitk.Image:
    _require_file(path)
    if not has_sound_header(path):
        raise _damaged_header(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    _guarded(path, reader.ReadImageInformation)
    _require_sound_header(reader, path)
    _require_complete(path)
    image = _guarded(path, reader.Execute)
    volume: sitk.Image = image[:, :, :, 0] if image.GetDimension() == 4 else image
    return volume


def _read_series(folder: Path) -> sitk.Image:
    for file in sorted(folder.iterdir()):
        if file.is_file() and file.stat().st_size and not has_sound_header(file):
            raise _damaged_header(file)
    ids = _guarded(folder, lambda: sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder)))
    if not ids:
        raise InputError(
            f"The folder {folder} holds no DICOM series.",
            "Give an image file, or the folder that directly holds the slices of one series.",
            "no_series",
        )
    if len(ids) > 1:
        raise InputError(
            f"The folder {folder} holds {len(ids)} DICOM series, and it is not clear which one is meant.",
            "Put each series into a folder of its own.",
            "several_series",
        )
    files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), ids[0])
    if len(files) == 1:
        return _read_file(Path(files[0]))
    centers, one_type = _require_even_slices(folder, files)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(files)
    if not one_type:  # Slices that are scaled would be rounded to the type of a first one that is not.
        reader.SetOutputPixelType(sitk.sitkFloat32)
    volume: sitk.Image = _guarded(folder, reader.Execute)
    _require_in_place(volume, folder, centers)
    return volume


def _require_even_slices(folder: Path, files: Sequence[str]) -> tuple[list[tuple[float, ...]], bool]:
    """Refuse a series with a missing or doubled slice: ITK would squeeze or stretch the patient.

    Returns:
        The place of the first voxel of each slice, and whether all slices have one pixel type.
    """
    centers: list[tuple[float, ...]] = []
    types: set[int] = set()
    first: tuple[Any, ...] = ()
    reader = sitk.ImageFileReader()
    for file in files:
        reader.SetFileName(file)
        _guarded(Path(file), reader.ReadImageInformation)
        if not centers:
            _require_sound_header(reader, Path(file), slices=len(files))
        grid = (reader.GetSize(), np.round((*reader.GetDirection(), *reader.GetSpacing()[:2]), 3).tolist())
        first = first or grid
        if grid != first:
            raise InputError(
                f"The slices of the DICOM series in {folder} differ in size, voxel size or orientation.",
                "Export the series again, without scouts and other pictures.",
                "uneven_slices",
            )
        centers.append(reader.GetOrigin())
        types.add(reader.GetPixelID())
    gaps = np.linalg.norm(np.diff(np.array(centers), axis=0), axis=1)
    if gaps.min() < 1e-4 or gaps.max() - gaps.min() > max(0.05 * float(np.median(gaps)), 0.02):
        raise InputError(
            f"The DICOM series in {folder} has slices {gaps.min():.3g} to {gaps.max():.3g} mm apart: "
            "slices are missing, doubled or mixed.",
            "Export the series again, completely.",
            "uneven_slices",
        )
    return centers, len(types) == 1


def _require_in_place(volume: sitk.Image, folder: Path, centers: Sequence[Sequence[float]]) -> None:
    """Refuse slices that are not stacked along their normal, as with a tilted gantry: ITK would straighten them."""
    ends = [volume.TransformIndexToPhysicalPoint((0, 0, index)) for index in (0, len(centers) - 1)]
    away = max(math.dist(end, center) for end, center in zip(ends, (centers[0], centers[-1]), strict=True))
    if away > 0.5 * min(volume.GetSpacing()):
        raise InputError(
            f"The slices of the DICOM series in {folder} are not stacked straight: they would end up {away:.3g} mm "
            "beside their place.",
            "If the gantry was tilted, load the series in 3D Slicer, harden its transform, and export it from there.",
            "tilted",
        )


def _damaged_header(path: Path) -> InputError:
    return InputError(f"The header of {path} is damaged, or gives no voxel size.", _COPY_AGAIN, "unreadable")


def _require_file(path: Path) -> None:
    if not path.exists():
        raise InputError(f"There is no file {path}.", "Check the path.", "not_found")
    if not os.access(path, os.R_OK):
        raise InputError(f"The file {path} may not be read.", "Ask for permission to read it.", "no_permission")
    if path.stat().st_size == 0:
        raise InputError(f"The file {path} is empty.", _COPY_AGAIN, "unreadable")


def _guarded(path: Path, action: Callable[[], Any]) -> Any:
    """Run a step of SimpleITK, and turn what it throws into a sentence about the file."""
    try:
        return action()
    except MemoryError:
        raise
    except Exception as error:
        text = str(error)
        if "rthonormal" in text:
            raise InputError(
                f"The axes of {path} are not at right angles to each other (sheared).",
                "Resample the scan onto a straight grid, for example in 3D Slicer with 'Resample Scalar Volume'.",
                "sheared",
            ) from error
        if "bad_alloc" in text or "allocate memory" in text:
            raise InputError(
                f"The image {path} does not fit into memory.",
                "Crop it, or use a machine with more memory.",
                "too_large",
            ) from error
        raise InputError(
            f"{path} cannot be read: it is damaged, incomplete or not an image.", _COPY_AGAIN, "unreadable"
        ) from error


def _require_sound_header(reader: sitk.ImageFileReader, path: Path, slices: int = 1) -> None:
    size, dimension = reader.GetSize(), reader.GetDimension()
    if dimension < 3 or dimension > 4 or (dimension == 4 and size[3] != 1):
        raise InputError(
            f"{path} is not a 3D image but {dimension}D, of size {'x'.join(map(str, size))}.",
            "Save the one 3D volume that is meant in a file of its own.",
            "not_3d",
        )
    if "complex" in sitk.GetPixelIDValueAsString(reader.GetPixelID()):
        raise InputError(f"{path} holds complex numbers.", "Save the magnitude image.", "complex_values")
    voxels = math.prod(size) * slices
    if voxels < 1 or voxels > MAX_VOXELS:
        raise InputError(
            f"{path} claims to have {'x'.join(map(str, size))} voxels, which cannot be right or is too many.",
            _COPY_AGAIN,
            "too_large",
        )
    spacing, origin = np.array(reader.GetSpacing()[:3]), np.array(reader.GetOrigin()[:3])
    direction = np.array(reader.GetDirection()).reshape(dimension, dimension)[:3, :3]
    finite = all(bool(np.isfinite(part).all()) for part in (spacing, origin, direction))
    if not finite or spacing.min() <= 0 or abs(np.linalg.det(direction)) < 1e-3:
        raise InputError(
            f"The header of {path} gives no usable voxel size or orientation.",
            "Export the scan again from its source, with its geometry.",
            "bad_geometry",
        )


def _require_complete(path: Path) -> None:
    """Refuse a file that holds fewer bytes than its header promises, or whose compressed stream is broken."""
    if not is_complete(path):
        raise InputError(
            f"{path} is damaged or was cut short: it holds less than its header says.", _COPY_AGAIN, "unreadable"
        )


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
        with whole_file(path, path.name[len(stem(path)) :]) as temporary, _itk_quiet():
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
        _require_complete(path)
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
