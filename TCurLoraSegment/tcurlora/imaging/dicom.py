"""DICOM scans: a series of slices in a folder, or one file with many frames, brought into the order of space.

Every slice or frame must have a position, and together they must be one even, straight stack: what is missing, doubled,
tilted or of another volume is refused and named. pydicom reads what the elements say, GDCM (in SimpleITK) the voxels of
series and of compressed frames.
"""

from __future__ import annotations

import copy
import io
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
import SimpleITK as sitk
from pydicom.uid import UID

from tcurlora.errors import InputError
from tcurlora.imaging.affines import Matrix, set_affine
from tcurlora.imaging.headers import dicom as elements
from tcurlora.imaging.headers import has_sound_header
from tcurlora.imaging.image_warnings import ImageWarning, OnWarning
from tcurlora.imaging.reading import (
    damaged_header,
    guarded,
    require_possible_size,
    require_sound_information,
)

_EXPORT = "Export the scan again from its source (PACS or scanner), with its geometry."
_EXPORT_ALL = "Export the series again, completely, into an empty folder."
_ONE_VOLUME = "Export the one volume that is meant alone; 3D Slicer's DICOM module lists them one by one."

NOT_SCANS = {
    "1.2.840.10008.5.1.4.1.1.66.4": "a DICOM segmentation (SEG)",
    "1.2.840.10008.5.1.4.1.1.66.5": "a DICOM surface segmentation",
    "1.2.840.10008.5.1.4.1.1.481.2": "a DICOM radiotherapy dose (RTDOSE)",
    "1.2.840.10008.5.1.4.1.1.481.3": "DICOM radiotherapy structures (RTSTRUCT)",
    "1.2.840.10008.1.3.10": "the table of contents of a DICOM medium (DICOMDIR)",
}
"""Classes of DICOM objects that people give in place of a scan."""

_GEOMETRY = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
_SIGNS = ("SOPClassUID", "SOPInstanceUID", "Rows", "DirectoryRecordSequence")
_LAST_ENDINGS = ("", ".dcm", ".ima", ".dicom", ".dic")
_APART = {"TemporalPositionIdentifier": "time points", "EchoTime": "echo times", "DiffusionBValue": "b-values"}
_MAYBE_APART = {
    **{"ImageType": "kinds of image", "TriggerTime": "heart phases", "AcquisitionNumber": "acquisitions"},
    **{"InversionTime": "inversion times", "AcquisitionTime": "acquisition times"},
}


@dataclass(frozen=True)
class _Slice:
    """What a slice or frame says of itself.

    Attributes:
        name: of the file, or the number of the frame.
        position: of the center of its first voxel, in left-posterior-superior mm.
        row: direction in which the column number grows.
        column: direction in which the row number grows.
        spacing: distance between rows, and between columns, in mm.
        size: rows and columns.
        slope: factor of the stored values.
        intercept: what is added to them.
        number: in its series or stack.
        thickness: of the slice, in mm.
        between: distance that is given between slices, in mm.
        apart: facts that are equal in all slices of one volume, by what people call them.
        maybe: facts that may tell two volumes apart, but may also differ in one.
    """

    name: str
    position: Matrix
    row: Matrix
    column: Matrix
    spacing: tuple[float, float]
    size: tuple[int, int]
    slope: float = 1.0
    intercept: float = 0.0
    number: int | None = None
    thickness: float | None = None
    between: float | None = None
    apart: dict[str, str] = field(default_factory=dict)
    maybe: dict[str, str] = field(default_factory=dict)


def read_series(folder: Path, on_warning: OnWarning) -> sitk.Image:
    """Read the one DICOM series whose files lie in a folder.

    Every file that is, or may be, a part of it is read or named in an error.

    Args:
        folder: files in it that are something else, such as notes or reports, and folders are passed over.
        on_warning: is told of contradictions, and how they were read.

    Raises:
        InputError: when the folder holds no series or several, a file is damaged, or the slices are not one even stack.
    """
    found = _pictures(folder)
    if not found:
        raise InputError(
            f"The folder {folder} holds no DICOM series.",
            "Give an image file, or the folder that directly holds the slices of one series.",
            "no_series",
        )
    series = {_text(dataset, "SeriesInstanceUID") for _, dataset in found}
    if len(series) > 1:
        raise InputError(
            f"The folder {folder} holds {len(series)} DICOM series, and it is not clear which one is meant.",
            "Put each series into a folder of its own.",
            "several_series",
        )
    if len(found) == 1:
        return read_dicom_file(found[0][0], on_warning)
    for file, dataset in found:
        _require_scan(file, dataset)
        if _frames_of(dataset) > 1:
            raise InputError(
                f"The folder {folder} holds {len(found)} files of one series, and {file.name} alone holds "
                f"{_frames_of(dataset)} frames: several volumes, or one in parts.",
                f"Give the one file that is meant. {_ONE_VOLUME}",
                "several_volumes",
            )
    slices = [_parsed(file, lambda f=file, d=dataset: _slice_of(f, d)) for file, dataset in found]  # type: ignore[misc]
    _tell_of_contents(folder, [dataset for _, dataset in found], on_warning)
    _tell_of_count(folder, found[0][1], len(slices), on_warning)
    order, affine = _stacked(folder, "slices", slices, on_warning)
    files = [str(found[index][0]) for index in order]
    volume = _read_slices(folder, files)
    if volume.GetSize()[:3] != (slices[0].size[1], slices[0].size[0], len(files)):
        raise damaged_header(folder)
    set_affine(volume, affine)
    return volume


def read_dicom_file(path: Path, on_warning: OnWarning) -> sitk.Image:
    """Read a DICOM file that holds a volume as frames, or a single slice.

    Raises:
        InputError: when the file is damaged or no scan, or its frames are not one even stack.
    """
    if not has_sound_header(path):
        raise damaged_header(path)
    dataset = _dataset(path)
    if dataset is None:
        raise damaged_header(path)
    _require_scan(path, dataset)
    if "PerFrameFunctionalGroupsSequence" in dataset or _frames_of(dataset) > 1:
        return _read_frames(path, dataset, on_warning)
    piece = _parsed(path, lambda: _slice_of(path, dataset))
    _tell_of_contents(path, [dataset], on_warning)
    message = f"{path} is a single slice."
    on_warning(ImageWarning("single_slice", message, "Give the folder with all slices of the series."))
    _, affine = _stacked(path, "slices", [piece], on_warning)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    _guarded(path, dataset, reader.ReadImageInformation)
    require_sound_information(reader, path)
    image: sitk.Image = _guarded(path, dataset, reader.Execute)
    set_affine(image, affine)
    return image


# Files


def _pictures(folder: Path) -> list[tuple[Path, pydicom.Dataset]]:
    """Return the DICOM files with voxels; refuse files that cannot be read and may be a part of the series."""
    files = sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
    found: list[tuple[Path, pydicom.Dataset]] = []
    unread: list[Path] = []
    for file in files:
        if not file.stat().st_size:
            unread.append(file)
            continue
        if not has_sound_header(file):
            raise damaged_header(file)
        dataset = _dataset(file)
        if dataset is None:
            unread.append(file)
        elif "Rows" in dataset:
            found.append((file, dataset))
    endings = {*_LAST_ENDINGS, *(file.suffix.lower() for file, _ in found)}
    for file in unread:
        ending = file.suffix.lower()
        if (ending in endings or ending[1:].isdigit()) and not (ending == "" and _is_text(file)):
            state = "damaged or was cut short" if file.stat().st_size else "empty"
            raise InputError(
                f"{file} may be a slice of the series, but it is {state}: its size is {file.stat().st_size} bytes.",
                "Copy or export the series again; if the file does not belong to it, remove it from the folder.",
                "unreadable",
            )
    return found


def _is_text(file: Path) -> bool:
    with file.open("rb") as stream:
        head = stream.read(1024)
    return bool(head) and not any(byte < 9 or 13 < byte < 32 for byte in head)


@contextmanager
def _without_python_warnings() -> Iterator[None]:
    """Keep pydicom's remarks about odd values from the console; what matters is looked at here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class _Bounded(io.BufferedReader):
    """A file that takes no memory for more bytes than it has, whatever length an element claims."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self._end = path.stat().st_size

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self._end - self.tell())
        return super().read(left if size is None or size < 0 else min(size, left))


def _read(path: Path, stop_before_pixels: bool = False) -> pydicom.FileDataset:
    with _Bounded(path) as stream:
        return pydicom.dcmread(stream, stop_before_pixels=stop_before_pixels, force=True)


def _dataset(path: Path) -> pydicom.Dataset | None:
    """Read the elements before the voxels; None where the file is not DICOM."""
    try:
        with _without_python_warnings():
            dataset = _read(path, stop_before_pixels=True)
            is_dicom = any(key in dataset for key in _SIGNS)
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception:
        return None
    return dataset if is_dicom else None


def _parsed(path: Path, action: Callable[[], Any]) -> Any:
    """Interpret elements, whose values may be anything."""
    try:
        with _without_python_warnings():
            return action()
    except (MemoryError, InputError):
        raise
    except Exception as error:
        raise damaged_header(path) from error


def _guarded(path: Path, dataset: pydicom.Dataset, action: Callable[[], Any]) -> Any:
    """Run a step of GDCM; where it fails on compressed voxels, name the compression."""
    try:
        return guarded(path, action)
    except InputError as error:
        syntax = UID(str(getattr(dataset.file_meta, "TransferSyntaxUID", "") if hasattr(dataset, "file_meta") else ""))
        if error.code != "unreadable" or syntax in elements.NATIVE or not syntax:
            raise
        raise InputError(
            f"The voxels of {path} cannot be unpacked: they are damaged, or compressed in a way that is not read here "
            f"({syntax.name}).",
            "Export the scan without compression (as 'Explicit VR Little Endian').",
            "unreadable",
        ) from error


def _require_scan(path: Path, dataset: pydicom.Dataset) -> None:
    kind = _text(dataset, "SOPClassUID")
    if kind in NOT_SCANS or "Rows" not in dataset:
        name = NOT_SCANS.get(kind) or f"not a scan but '{UID(kind).name}'" if kind else "a DICOM file without voxels"
        raise InputError(
            f"{path} is {name}.",
            "Give the scan itself: the folder of its series, or its multi-frame file.",
            "not_a_scan",
        )


def _text(dataset: pydicom.Dataset, keyword: str) -> str:
    value = dataset.get(keyword)
    return "" if value is None else str(value).strip()


def _frames_of(dataset: pydicom.Dataset) -> int:
    try:
        return int(_text(dataset, "NumberOfFrames") or 1)
    except ValueError:
        return 1


# Slices


def _slice_of(path: Path, dataset: pydicom.Dataset) -> _Slice:
    """Read what a slice of a series says of itself."""
    missing = [keyword for keyword in _GEOMETRY if not dataset.get(keyword)]
    if missing:
        raise _without_geometry(path, missing)
    return _Slice(
        path.name,
        *_place(dataset.ImagePositionPatient, dataset.ImageOrientationPatient),
        spacing=_pair(path, dataset.PixelSpacing),
        size=(int(dataset.Rows), int(dataset.Columns)),
        slope=_number(dataset, "RescaleSlope", 1.0),
        intercept=_number(dataset, "RescaleIntercept", 0.0),
        number=_whole(dataset, "InstanceNumber"),
        thickness=_maybe_number(dataset, "SliceThickness"),
        between=_maybe_number(dataset, "SpacingBetweenSlices"),
        apart={name: _fact(dataset, key) for key, name in _APART.items()},
        maybe={name: _fact(dataset, key) for key, name in _MAYBE_APART.items()},
    )


def _without_geometry(path: Path, missing: Sequence[str]) -> InputError:
    return InputError(
        f"{path} does not say where its voxels are: it has no {' and no '.join(missing)}.", _EXPORT, "bad_geometry"
    )


def _place(position: Any, orientation: Any) -> tuple[Matrix, Matrix, Matrix]:
    """Read a position and two directions at right angles.

    Raises:
        ValueError: when they are none.
    """
    place, turn = np.array([float(part) for part in position]), np.array([float(part) for part in orientation])
    if place.shape != (3,) or turn.shape != (6,) or not np.isfinite(place).all() or not np.isfinite(turn).all():
        raise ValueError("no position or orientation")
    row, column = turn[:3], turn[3:]
    if abs(row @ column) > 5e-3 or max(abs(np.linalg.norm(part) - 1) for part in (row, column)) > 1e-2:
        raise ValueError("directions that are not at right angles")
    # To the last digit at right angles, both turned alike.
    left, _, right = np.linalg.svd(np.stack([row, column], 1), full_matrices=False)
    straight = left @ right
    return place, straight[:, 0], straight[:, 1]


def _pair(path: Path, values: Any) -> tuple[float, float]:
    rows, columns = (float(part) for part in values)
    if not (0 < rows < math.inf and 0 < columns < math.inf):
        raise _without_geometry(path, ["usable PixelSpacing"])
    return rows, columns


def _maybe_number(dataset: pydicom.Dataset, keyword: str) -> float | None:
    """Read one finite number; None where there is none, or something else."""
    try:
        value = float(str(dataset.get(keyword)))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _number(dataset: pydicom.Dataset, keyword: str, default: float) -> float:
    """Read one number that matters: what is there and is none makes the file damaged.

    Raises:
        ValueError: when it is there and is none.
    """
    text = _text(dataset, keyword)
    value = float(text) if text else default
    if not math.isfinite(value):
        raise ValueError(keyword)
    return value


def _whole(dataset: pydicom.Dataset, keyword: str) -> int | None:
    value = _maybe_number(dataset, keyword)
    return None if value is None else int(value)


def _fact(dataset: pydicom.Dataset, keyword: str) -> str:
    """Return a value for comparison; numbers with as many digits as tell volumes apart."""
    text = _text(dataset, keyword)
    try:
        return f"{float(text):.2g}" if keyword in ("EchoTime", "EffectiveEchoTime") else text
    except ValueError:
        return text


# One stack


def _stacked(
    path: Path, what: str, slices: Sequence[_Slice], on_warning: OnWarning
) -> tuple[npt.NDArray[np.int64], Matrix]:
    """Sort slices along their normal, and refuse those that are not one even, straight stack.

    Args:
        path: of the file or folder.
        what: they are called: slices or frames.
        slices: in any order.
        on_warning: is told of contradictions, and how they were read.

    Returns:
        The order of the slices, and the (4, 4) map from voxel index (column, row, slice) to mm.

    Raises:
        InputError: when there is more than one volume, or slices are missing, doubled or tilted.
    """
    first = slices[0]
    _require_alike(path, what, slices)
    for piece in slices:
        if piece.slope == 0:
            raise InputError(
                f"{path}: {piece.name} has a scale factor (RescaleSlope) of 0, so that all its voxels would be equal.",
                _EXPORT,
                "bad_scaling",
            )
    normal = np.cross(first.row, first.column)
    along = np.array([piece.position @ normal for piece in slices])
    order = np.argsort(along, kind="stable")
    gap = first.between or first.thickness or 1.0
    if len(slices) > 1:
        _require_one_volume(path, what, slices, order, along)
        _require_even(path, what, slices, order, along)
        gap = float(along[order[-1]] - along[order[0]]) / (len(slices) - 1)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = first.row * first.spacing[1], first.column * first.spacing[0]
    # Rounded positions lie a little beside the line that most of them lie on.
    aside = np.median([piece.position - normal * (piece.position @ normal) for piece in slices], axis=0)
    affine[:3, 2], affine[:3, 3] = normal * abs(gap), aside + normal * along[order[0]]
    if len(slices) > 1:
        _require_in_place(path, what, [slices[index] for index in order], affine, on_warning)
        _tell_of_distances(path, slices, gap, on_warning)
        _tell_of_numbers(path, what, slices, on_warning)
    return order, affine


def _require_alike(path: Path, what: str, slices: Sequence[_Slice]) -> None:
    first = slices[0]
    for piece in slices[1:]:
        turned = max(np.abs(piece.row - first.row).max(), np.abs(piece.column - first.column).max())
        if piece.size != first.size or turned > 2e-3 or not np.allclose(piece.spacing, first.spacing, rtol=1e-3):
            raise InputError(
                f"The {what} of the DICOM series in {path} differ in size, voxel size or orientation: {first.name} and "
                f"{piece.name}.",
                "Export the series again, without scouts and other pictures.",
                "uneven_slices",
            )


def _require_one_volume(
    path: Path, what: str, slices: Sequence[_Slice], order: npt.NDArray[np.int64], along: Matrix
) -> None:
    """Refuse several time points, echoes or stacks, whether they lie in the same place or not."""
    count = len(slices)
    for name in _fact_names(slices, "apart"):
        values = {piece.apart.get(name, "") for piece in slices}
        if 1 < len(values) < count:
            raise InputError(f"{path} holds {len(values)} {name}: several volumes.", _ONE_VOLUME, "several_volumes")
    steps = np.diff(along[order])
    same = steps < 1e-4
    if not same.any():
        return
    places = count - int(same.sum())
    starts = np.flatnonzero(np.r_[True, ~same])
    copies = np.diff(np.r_[starts, count])
    differ = [
        name
        for group in ("apart", "maybe")
        for name in _fact_names(slices, group)
        if len({getattr(piece, group).get(name, "") for piece in slices}) > 1
    ]
    if places > 1 and copies.min() == copies.max():
        by = f" ({', '.join(differ)})" if differ else ""
        raise InputError(
            f"{path} holds {copies[0]} {what} in each of {places} places: several volumes{by}, or every file twice.",
            _ONE_VOLUME,
            "several_volumes",
        )
    double = int(np.flatnonzero(same)[0])
    a, b = slices[order[double]].name, slices[order[double + 1]].name
    raise InputError(
        f"In the DICOM series in {path} {what} are doubled: {a} and {b} lie in one place.",
        "Remove the one that is too many, or export the series again into an empty folder.",
        "uneven_slices",
    )


def _fact_names(slices: Sequence[_Slice], group: str) -> list[str]:
    """Return the names of the facts that slices are compared by."""
    return list(getattr(slices[0], group))


def _require_even(path: Path, what: str, slices: Sequence[_Slice], order: npt.NDArray[np.int64], along: Matrix) -> None:
    places = along[order]
    gaps = np.diff(places)
    even = np.linspace(places[0], places[-1], len(places))
    uneven = gaps.max() - gaps.min() > max(0.05 * float(np.median(gaps)), 0.02)
    if uneven or np.abs(places - even).max() > 0.25 * gaps.mean():
        widest = int(gaps.argmax())
        raise InputError(
            f"The DICOM series in {path} has {what} {gaps.min():.3g} to {gaps.max():.3g} mm apart, the most between "
            f"{slices[order[widest]].name} and {slices[order[widest + 1]].name}: {what} are missing, doubled or mixed.",
            _EXPORT_ALL,
            "uneven_slices",
        )


def _require_in_place(path: Path, what: str, ordered: Sequence[_Slice], affine: Matrix, on_warning: OnWarning) -> None:
    """Refuse slices that are not stacked along their normal, as with a tilted gantry: they would be straightened."""
    normal = affine[:3, 2] / np.linalg.norm(affine[:3, 2])
    offsets = np.array([piece.position for piece in ordered]) - affine[:3, 3]
    aside = np.linalg.norm(offsets - np.outer(offsets @ normal, normal), axis=1)
    away = float(aside.max())
    finest = float(np.linalg.norm(affine[:3, :3], axis=0).min())
    if away > 0.5 * finest:
        raise InputError(
            f"The {what} of the DICOM series in {path} are not stacked straight: they would end up {away:.3g} mm "
            "beside their place.",
            "If the gantry was tilted, load the series with 3D Slicer's DICOM module, harden the transform that it "
            "adds (in the Data module), and save the volume from there as .nrrd.",
            "tilted",
        )
    if away > 0.1 * finest:
        message = (
            f"The {what} of {path} are not stacked quite straight: they end up to {away:.2g} mm beside their place."
        )
        on_warning(ImageWarning("straightened", message, "Nothing needs to be done, unless you need that accuracy."))


# What is told


def _tell_of_contents(path: Path, datasets: Sequence[pydicom.Dataset], on_warning: OnWarning) -> None:
    """Tell of values that mean the opposite, and of sizes in two fields."""
    if any(_text(dataset, "PhotometricInterpretation") == "MONOCHROME1" for dataset in datasets):
        message = (
            f"In {path} low values are white (MONOCHROME1): it is read inverted, so that what is bright on a screen "
            "has high values. Values are then not those of the scanner, such as Hounsfield units."
        )
        on_warning(ImageWarning("inverted", message, "If that is wrong, export the scan as MONOCHROME2."))
    for dataset in datasets:
        sizes = [dataset.get(key) for key in ("PixelSpacing", "ImagerPixelSpacing")]
        try:
            plain, imager = ([float(part) for part in size or ()] for size in sizes)
        except (TypeError, ValueError):
            continue
        if len(plain) == len(imager) == 2 and not np.allclose(plain, imager, rtol=1e-3):
            message = (
                f"{path} gives two voxel sizes: {_times(plain)} mm (PixelSpacing), which is taken, and "
                f"{_times(imager)} mm (ImagerPixelSpacing)."
            )
            on_warning(ImageWarning("sizes_differ", message, "If that is wrong, export the scan again."))
            return


def _times(values: Sequence[float]) -> str:
    return "x".join(f"{value:.5g}" for value in values)


def _tell_of_distances(path: Path, slices: Sequence[_Slice], gap: float, on_warning: OnWarning) -> None:
    given = {abs(piece.between) for piece in slices if piece.between}
    other = [between for between in sorted(given) if abs(between / gap - 1) > 1e-2]
    if other:
        message = (
            f"{path} gives two distances between slices: {gap:.4g} mm (from their positions), which is taken, and "
            f"{other[0]:.4g} mm (SpacingBetweenSlices)."
        )
        on_warning(ImageWarning("sizes_differ", message, "If slices are missing, export the series again."))


def _tell_of_numbers(path: Path, what: str, slices: Sequence[_Slice], on_warning: OnWarning) -> None:
    """Tell of numbers without a slice, which is all that shows of slices missing at an end."""
    numbers = sorted(piece.number for piece in slices if piece.number is not None)
    steps = np.diff(numbers)
    if len(numbers) < len(slices) or (steps <= 0).any():
        return
    step = int(steps.min())
    missing = sorted(set(range(numbers[0], numbers[-1], step)) - set(numbers))
    message = ""
    if (steps % step).any() or missing:
        message = f"The {what} of {path} have numbers from {numbers[0]} to {numbers[-1]}, but not all between"
    elif numbers[0] > max(step, 1):
        message = f"The {what} of {path} are numbered from {numbers[0]} on, and none comes before"
    if message:
        remedy = "Look in 3D Slicer whether an end of the scan is missing; if so, export the series again, completely."
        on_warning(ImageWarning("missing_slices", f"{message}: {what} may be missing.", remedy))


def _tell_of_count(path: Path, dataset: pydicom.Dataset, count: int, on_warning: OnWarning) -> None:
    """Tell when an object says that its series has more slices than there are."""
    for keyword in ("NumberOfSlices", "ImagesInAcquisition"):
        promised = _whole(dataset, keyword)
        if promised is not None and promised > count:
            message = f"{path} says that it has {promised} slices ({keyword}), but there are {count}."
            on_warning(ImageWarning("missing_slices", message, _EXPORT_ALL))
            return


# Voxels


def _read_slices(folder: Path, files: Sequence[str]) -> sitk.Image:
    """Read slices in the order of space."""
    types: set[int] = set()
    reader = sitk.ImageFileReader()
    for number, file in enumerate(files):
        reader.SetFileName(file)
        dataset = _dataset(Path(file)) or pydicom.Dataset()
        _guarded(Path(file), dataset, reader.ReadImageInformation)
        if not number:
            require_sound_information(reader, Path(file), slices=len(files))
        types.add(reader.GetPixelID())
    series = sitk.ImageSeriesReader()
    series.SetFileNames(files)
    if len(types) > 1:  # Slices that are scaled would be rounded to the type of a first one that is not.
        series.SetOutputPixelType(sitk.sitkFloat32)
    volume: sitk.Image = _guarded(folder, dataset, series.Execute)
    return volume


def _read_frames(path: Path, dataset: pydicom.Dataset, on_warning: OnWarning) -> sitk.Image:
    """Read a multi-frame file: each frame with its own place and factors."""
    slices = _parsed(path, lambda: _frame_slices(path, dataset))
    require_possible_size(path, (*slices[0].size, len(slices)))
    _tell_of_contents(path, [dataset], on_warning)
    if "ConcatenationUID" in dataset and (_whole(dataset, "InConcatenationTotalNumber") or 2) > 1:
        raise InputError(
            f"{path} is one part of a multi-frame object that was split over several files.",
            "Export the series as single slices, or as one file.",
            "several_volumes",
        )
    if str(dataset.get("VolumetricProperties", "")) == "DISTORTED":
        message = f"{path} says of itself that it is distorted in space; it is read as it is."
        on_warning(ImageWarning("distorted", message, "Sizes and places in it are not to be trusted."))
    order, affine = _stacked(path, "frames", slices, on_warning)
    stored = _stored_frames(path, dataset, len(slices))
    if stored.shape[:3] != (len(slices), *slices[0].size):
        raise damaged_header(path)
    values = _scaled(stored, slices, _text(dataset, "PhotometricInterpretation") == "MONOCHROME1", dataset)
    image = sitk.GetImageFromArray(np.ascontiguousarray(values[order]), isVector=values.ndim == 4)
    set_affine(image, affine)
    return image


def _frame_slices(path: Path, dataset: pydicom.Dataset) -> list[_Slice]:
    count = _frames_of(dataset)
    frames = dataset.get("PerFrameFunctionalGroupsSequence")
    if frames is None:
        return _detector_slices(path, dataset, count)
    if len(frames) != count or count < 1:
        raise damaged_header(path)
    shared = dataset.get("SharedFunctionalGroupsSequence")
    common = shared[0] if shared else pydicom.Dataset()
    return [_slice_of_frame(path, dataset, common, frame, number) for number, frame in enumerate(frames, start=1)]


def _slice_of_frame(
    path: Path, dataset: pydicom.Dataset, common: pydicom.Dataset, frame: pydicom.Dataset, number: int
) -> _Slice:
    """Read what one frame of an enhanced object says of itself (PS3.3, C.7.6.16)."""

    def group(keyword: str) -> pydicom.Dataset:
        for source in (frame, common):
            items = source.get(keyword)
            if items:
                first: pydicom.Dataset = items[0]
                return first
        return pydicom.Dataset()

    position, plane = group("PlanePositionSequence"), group("PlaneOrientationSequence")
    measures, scaling = group("PixelMeasuresSequence"), group("PixelValueTransformationSequence")
    content = group("FrameContentSequence")
    needed = {
        "ImagePositionPatient": position,
        "ImageOrientationPatient": plane,
        "PixelSpacing": measures,
    }
    missing = [keyword for keyword, source in needed.items() if not source.get(keyword)]
    if missing:
        raise _without_geometry(path, [f"{keyword} of frame {number}" for keyword in missing])
    echo, diffusion = group("MREchoSequence"), group("MRDiffusionSequence")
    kinds = [group(f"{modality}ImageFrameTypeSequence") for modality in ("MR", "CT", "PET")]
    return _Slice(
        f"frame {number}",
        *_place(position.ImagePositionPatient, plane.ImageOrientationPatient),
        spacing=_pair(path, measures.PixelSpacing),
        size=(int(dataset.Rows), int(dataset.Columns)),
        slope=_number(scaling, "RescaleSlope", _number(dataset, "RescaleSlope", 1.0)),
        intercept=_number(scaling, "RescaleIntercept", _number(dataset, "RescaleIntercept", 0.0)),
        number=_whole(content, "InStackPositionNumber"),
        thickness=_maybe_number(measures, "SliceThickness"),
        between=_maybe_number(measures, "SpacingBetweenSlices"),
        apart={
            "stacks": _text(content, "StackID"),
            "time points": _text(content, "TemporalPositionIndex"),
            "echo times": _fact(echo, "EffectiveEchoTime"),
            "b-values": _text(diffusion, "DiffusionBValue"),
            "kinds of image": " ".join(
                _text(kind, keyword) for kind in kinds for keyword in ("FrameType", "ComplexImageComponent")
            ),
        },
        maybe={"acquisition times": _text(content, "FrameAcquisitionDateTime")},
    )


def _detector_slices(path: Path, dataset: pydicom.Dataset, count: int) -> list[_Slice]:
    """Read the places of the frames of a reconstructed nuclear medicine image (PS3.3, C.8.4.15), which are even."""
    detectors = dataset.get("DetectorInformationSequence")
    detector = detectors[0] if detectors else pydicom.Dataset()
    missing = [
        keyword
        for keyword, source in {
            "ImagePositionPatient": detector,
            "ImageOrientationPatient": detector,
            "PixelSpacing": dataset,
            "SpacingBetweenSlices": dataset,
        }.items()
        if not source.get(keyword)
    ]
    if missing:
        raise _without_geometry(path, [f"{keyword} of its {count} frames" for keyword in missing])
    position, row, column = _place(detector.ImagePositionPatient, detector.ImageOrientationPatient)
    step = _number(dataset, "SpacingBetweenSlices", 0.0) * np.cross(row, column)
    return [
        _Slice(
            f"frame {number + 1}",
            position + number * step,
            row,
            column,
            spacing=_pair(path, dataset.PixelSpacing),
            size=(int(dataset.Rows), int(dataset.Columns)),
            slope=_number(dataset, "RescaleSlope", 1.0),
            intercept=_number(dataset, "RescaleIntercept", 0.0),
        )
        for number in range(count)
    ]


def _stored_frames(path: Path, dataset: pydicom.Dataset, count: int) -> npt.NDArray[Any]:
    """Return the stored values as (frame, row, column), or with colors as a fourth axis."""

    def native() -> npt.NDArray[Any]:
        array = np.asarray(_read(path).pixel_array)
        return array[None] if count == 1 else array

    syntax = str(getattr(dataset.file_meta, "TransferSyntaxUID", "")) if hasattr(dataset, "file_meta") else ""
    if syntax in elements.NATIVE or not syntax:
        frames: npt.NDArray[Any] = _parsed(path, native)
        return frames
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "frames.dcm"
        _parsed(path, lambda: _write_plain(path, plain))
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(plain))
        return np.asarray(sitk.GetArrayFromImage(_guarded(path, dataset, reader.Execute)))


def _write_plain(path: Path, target: Path) -> None:
    """Write the frames, compressed as they are, without all that GDCM would read otherwise than it is read here."""
    dataset = copy.copy(_read(path))
    for keyword in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "RescaleSlope"):
        if keyword in dataset:
            delattr(dataset, keyword)
    multi_frame_word = UID("1.2.840.10008.5.1.4.1.1.7.3")
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = multi_frame_word
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.save_as(target)


def _scaled(
    stored: npt.NDArray[Any], slices: Sequence[_Slice], inverted: bool, dataset: pydicom.Dataset
) -> npt.NDArray[Any]:
    """Apply each frame's factors; whole numbers stay whole."""
    if inverted:
        bits = int(dataset.BitsStored)
        ends = -1 if int(dataset.PixelRepresentation) else 2**bits - 1
        stored = (ends - stored.astype(np.int64)).astype(np.int64)
    slopes, intercepts = (np.array([getattr(piece, key) for piece in slices]) for key in ("slope", "intercept"))
    if stored.ndim == 4:  # colors
        return stored
    if stored.dtype.kind in "iu" and (slopes == 1).all() and (np.rint(intercepts) == intercepts).all():
        whole = stored.astype(np.int64) + intercepts.astype(np.int64)[:, None, None]
        low, high = int(whole.min()), int(whole.max())
        kinds: tuple[Any, ...] = (np.int16, np.uint16, np.int32)
        fitting = [kind for kind in kinds if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max]
        return whole.astype(fitting[0] if fitting else np.float32)
    values = np.empty(stored.shape, np.float32)
    with np.errstate(over="ignore"):
        for index in range(len(values)):
            values[index] = stored[index].astype(np.float64) * slopes[index] + intercepts[index]
    return values
