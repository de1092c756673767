"""Labels in DICOM objects: segmentations (SEG) through highdicom, and radiotherapy structures (RTSTRUCT).

A SEG has voxels of its own. An RTSTRUCT has contours, which become voxels on the slices that they were drawn on.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from tcurlora.errors import InputError
from tcurlora.imaging.affines import set_affine
from tcurlora.imaging.headers.formats import format_of

SEG = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
RTSTRUCT = "1.2.840.10008.5.1.4.1.1.481.3"

IN_PLANE = 0.1
"""How far from the middle of a slice a contour may lie, in slices."""
_IN_SLICER = "load it in 3D Slicer together with its scan, and save the segmentation as .seg.nrrd"
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class NamedMask:
    """A structure as voxels.

    Attributes:
        name: what the object calls it.
        mask: (z, y, x), as SimpleITK has it.
        color: RGB, 0 to 1, where it is known.
    """

    name: str
    mask: Mask
    color: tuple[float, float, float] | None = None


def _dataset(path: Path, **options: Any) -> Any:
    """Read a DICOM file; pydicom is imported only then, because it loads requests, which opens a socket."""
    import pydicom

    return pydicom.dcmread(path, **options)


def dicom_labels_kind(path: Path) -> str:
    """Return `SEG` or `RTSTRUCT` for a file of labels in DICOM, and an empty string for anything else."""
    if not path.is_file() or format_of(path) != "dicom":
        return ""
    try:
        found = str(_dataset(path, specific_tags=["SOPClassUID"], stop_before_pixels=True).get("SOPClassUID"))
    except Exception:  # pydicom raises many kinds of errors on damaged files
        return ""
    return "SEG" if found in SEG else "RTSTRUCT" if found == RTSTRUCT else ""


def names_in_dicom(path: Path) -> list[str]:
    """Return the names of the structures of a SEG or RTSTRUCT file, or none where it cannot be read."""
    try:
        dataset = _dataset(path, stop_before_pixels=True)
        names = [str(item.get("SegmentLabel", "")) for item in dataset.get("SegmentSequence", ())]
        return names + [str(item.get("ROIName", "")) for item in dataset.get("StructureSetROISequence", ())]
    except Exception:
        return []


def read_seg(path: Path) -> tuple[list[NamedMask], sitk.Image]:
    """Read the segments of a DICOM segmentation.

    Returns:
        The segments, and an empty image in their geometry; slices without any segment may be missing at its ends.

    Raises:
        InputError: when highdicom is not installed, or the file cannot be read as one even stack of slices.
    """
    try:
        import highdicom
    except ImportError as error:
        raise InputError(
            f"{path} is a DICOM segmentation (SEG), and the package that reads it, highdicom, is not installed.",
            f"Install it with 'pip install highdicom', or {_IN_SLICER}.",
            "missing_package",
        ) from error
    try:
        found = highdicom.seg.segread(path)
        numbers = [int(number) for number in found.get_segment_numbers() if number > 0]
        drawn = {_segment_of(frame) for frame in found.PerFrameFunctionalGroupsSequence} - {None, 0}
        if not drawn <= set(numbers):
            raise ValueError("it has frames of unknown segments")
        descriptions = {number: found.get_segment_description(number) for number in numbers}
        volume = found.get_volume(segment_numbers=numbers, combine_segments=False, rescale_fractional=True)
        voxels = np.asarray(volume.array)
        affine = np.asarray(volume.affine, float)
    except InputError:
        raise
    except Exception as error:  # highdicom and pydicom raise many kinds of errors on damaged files
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"The DICOM segmentation {path} cannot be read: {first}",
            f"Export it again, or {_IN_SLICER}.",
            "unreadable",
        ) from error
    if voxels.dtype.kind == "f" and not np.isin(voxels, (0, 1)).all():
        raise InputError(
            f"The DICOM segmentation {path} holds probabilities, and not which voxels belong to a segment.",
            f"Export it as binary, or {_IN_SLICER}.",
            "not_labels",
        )
    # Slices, rows and columns of highdicom are SimpleITK's order of (z, y, x) already.
    geometry = sitk.Image([int(n) for n in voxels.shape[2::-1]], sitk.sitkUInt8)
    columns_first = affine.copy()
    columns_first[:, [0, 2]] = affine[:, [2, 0]]
    set_affine(geometry, columns_first)
    segments = [
        NamedMask(
            str(descriptions[number].segment_label).strip() or f"segment {number}",
            voxels[..., index] > 0,
            _cielab(descriptions[number]),
        )
        for index, number in enumerate(numbers)
    ]
    return segments, geometry


def _segment_of(frame: Any) -> int | None:
    """Return the number of the segment that a frame shows; None where all frames show all of them."""
    identified = frame.get("SegmentIdentificationSequence")
    return int(identified[0].ReferencedSegmentNumber) if identified else None


def read_rtstruct(path: Path, scan: sitk.Image) -> list[NamedMask]:
    """Read radiotherapy structures onto the voxels of the scan that they were drawn on.

    A voxel belongs to a structure when its center lies within an odd number of the contours in its slice.

    Args:
        path: the file.
        scan: which they were drawn on.

    Raises:
        InputError: when the file cannot be read, or its contours are not closed, do not lie in slices of the scan, or
            were drawn on some of the slices only.
    """
    try:
        dataset = _dataset(path)
        names = {int(item.ROINumber): str(item.get("ROIName", "")) for item in dataset.StructureSetROISequence}
        contours = dataset.get("ROIContourSequence", ()) or ()
        found = [(int(item.ReferencedROINumber), item) for item in contours]
    except Exception as error:
        raise InputError(
            f"The DICOM radiotherapy structures (RTSTRUCT) in {path} are damaged.",
            f"Export them again, or {_IN_SLICER}.",
            "unreadable",
        ) from error
    masks = []
    for number, item in found:
        name = names.get(number, "").strip() or f"structure {number}"
        polygons = list(_polygons(path, name, item, scan))
        if polygons:
            masks.append(NamedMask(name, _filled(path, name, polygons, scan), _rgb(item)))
    return masks


def _polygons(path: Path, name: str, item: Any, scan: sitk.Image) -> Iterator[tuple[int, npt.NDArray[np.float64]]]:
    """Give the slice of each contour, and its corners as (x, y) voxel indices."""
    matrix = np.array(scan.GetDirection()).reshape(3, 3) * np.array(scan.GetSpacing())
    inverse, origin = np.linalg.inv(matrix), np.array(scan.GetOrigin())
    depth = scan.GetSize()[2]
    for contour in item.get("ContourSequence", ()) or ():
        kind = str(contour.get("ContourGeometricType", ""))
        try:
            points = np.array([float(value) for value in contour.ContourData]).reshape(-1, 3)
            if len(points) != int(contour.get("NumberOfContourPoints", len(points))):
                raise ValueError("another number of points")
        except Exception as error:
            raise _not_filled(path, name, "has a contour that is damaged") from error
        if kind not in ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR") or len(points) < 3 or not np.isfinite(points).all():
            what = {"POINT": "a point", "OPEN_PLANAR": "an open line", "OPEN_NONPLANAR": "an open line"}
            raise _not_filled(path, name, f"has {what.get(kind, 'a contour without an area')}")
        indices = (points - origin) @ inverse.T
        level = int(np.rint(indices[:, 2].mean()))
        if np.abs(indices[:, 2] - level).max() > IN_PLANE:
            raise _not_filled(path, name, "has contours that do not lie in the slices of the scan")
        if not 0 <= level < depth:
            raise _not_filled(path, name, "has contours beyond the slices of the scan")
        yield level, indices[:, :2]


def _filled(path: Path, name: str, polygons: list[tuple[int, npt.NDArray[np.float64]]], scan: sitk.Image) -> Mask:
    columns, rows, depth = scan.GetSize()
    mask = np.zeros((depth, rows, columns), bool)
    of_level: dict[int, list[npt.NDArray[np.float64]]] = defaultdict(list)
    for level, corners in polygons:
        of_level[level].append(corners)
    steps = np.diff(sorted(of_level))
    if len(steps) > 1 and np.median(steps) > 1:
        raise _not_filled(path, name, f"was drawn on every {round(float(np.median(steps)))}th slice only")
    for level, several in of_level.items():
        for corners in several:
            mask[level] ^= inside(corners, (rows, columns))
    return mask


def inside(corners: npt.NDArray[np.float64], shape: tuple[int, int]) -> Mask:
    """Return which points of a grid lie inside a closed polygon, by the even-odd rule.

    Args:
        corners: (n, 2) x and y; the last is joined with the first.
        shape: rows (y) and columns (x) of the grid.
    """
    rows, columns = shape
    result = np.zeros(shape, bool)
    ends = np.roll(corners, -1, axis=0)
    for row in range(max(0, int(np.ceil(corners[:, 1].min()))), min(rows - 1, int(corners[:, 1].max())) + 1):
        crosses = (corners[:, 1] <= row) != (ends[:, 1] <= row)
        (x0, y0), (x1, y1) = corners[crosses].T, ends[crosses].T
        places = np.sort(x0 + (row - y0) * (x1 - x0) / (y1 - y0))
        result[row] = np.searchsorted(places, np.arange(columns), side="right") % 2 == 1
    return result


def _not_filled(path: Path, name: str, what: str) -> InputError:
    return InputError(
        f"The DICOM radiotherapy structures (RTSTRUCT) in {path} cannot be turned into voxels: '{name}' {what}.",
        f"Check that they belong to this scan; then {_IN_SLICER}.",
        "contours",
    )


def _rgb(item: Any) -> tuple[float, float, float] | None:
    try:
        red, green, blue = (float(value) / 255 for value in item.ROIDisplayColor)
    except Exception:
        return None
    return red, green, blue


def _cielab(description: Any) -> tuple[float, float, float] | None:
    """Convert the recommended color of a segment to RGB (IEC 61966-2-1, from CIE L*a*b* with D65)."""
    value = description.get("RecommendedDisplayCIELabValue")
    try:
        lightness, a, b = (float(part) for part in value)
    except (TypeError, ValueError):
        return None
    fy = (lightness * 100 / 65535 + 16) / 116
    fx, fz = fy + (a * 255 / 65535 - 128) / 500, fy - (b * 255 / 65535 - 128) / 200
    x, y, z = (
        white * (t**3 if t > 6 / 29 else 3 * (6 / 29) ** 2 * (t - 4 / 29))
        for white, t in zip((0.95047, 1.0, 1.08883), (fx, fy, fz), strict=True)
    )
    linear = (
        3.2406 * x - 1.5372 * y - 0.4986 * z,
        -0.9689 * x + 1.8758 * y + 0.0415 * z,
        0.0557 * x - 0.2040 * y + 1.0570 * z,
    )
    clipped = (min(max(part, 0.0), 1.0) for part in linear)
    red, green, blue = (12.92 * c if c <= 0.0031308 else 1.055 * c ** (1 / 2.4) - 0.055 for c in clipped)
    return round(red, 4), round(green, 4), round(blue, 4)


def require_same_space(path: Path, scan: Path) -> None:
    """Refuse labels in DICOM that name another series or another frame of reference than a scan in DICOM.

    Raises:
        InputError: code `other_series`.
    """
    files = sorted(entry for entry in scan.iterdir() if entry.is_file()) if scan.is_dir() else [scan]
    of_scan = next((file for file in files if file.is_file() and format_of(file) == "dicom"), None)
    if of_scan is None:
        return
    try:
        theirs = {
            str(item.FrameOfReferenceUID)
            for item in _all_with(_dataset(path, stop_before_pixels=True), "FrameOfReferenceUID")
        }
        own = str(_dataset(of_scan, stop_before_pixels=True).get("FrameOfReferenceUID", ""))
    except Exception:
        return  # what is damaged is told when it is read
    if own and theirs - {""} and own not in theirs:
        raise InputError(
            f"The labels in {path} were drawn in another space (frame of reference) than that of the scan {scan}.",
            "Give the labels of this scan. If the two were registered, resample the labels in 3D Slicer.",
            "other_series",
        )


def _all_with(dataset: Any, name: str) -> list[Any]:
    found = [dataset] if name in dataset else []
    return found + [item for item in dataset.get("ReferencedFrameOfReferenceSequence", ()) or () if name in item]
