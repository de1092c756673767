"""Labels on the voxels of their scan, without resampling, however their file says where they are."""

from __future__ import annotations

import itertools
from pathlib import Path

import SimpleITK as sitk

from tcurlora.imaging.affines import affine_of, farthest
from tcurlora.imaging.grids import geometry_difference, on_grid_of, tolerance
from tcurlora.imaging.headers import nifti
from tcurlora.imaging.headers.formats import format_of


def on_scan(labels: sitk.Image, image: sitk.Image, scan: Path, cropped: bool = False) -> sitk.Image | None:
    """Lay labels on the voxels of their scan where that is possible without loss.

    It is where both grids agree within a hundredth of a voxel, or differ in the order of storage; where the labels lie
    at the other one of two places that the scan's NIfTI header gives; and where they were cropped by whole voxels.

    Args:
        labels: as read from their file.
        image: as read from `scan`.
        scan: file or folder of the scan.
        cropped: whether labels may also have been cropped or padded.

    Returns:
        The labels in exactly the geometry of `image`, or None.
    """
    same_size = labels.GetSize() == image.GetSize()
    if same_size and geometry_difference(labels, image) is None:
        return _copied(labels, image)
    if cropped or sorted(labels.GetSize()) == sorted(image.GetSize()):
        placed = on_grid_of(labels, image)
        if placed is not None and (cropped or _covers(labels, image)):
            return placed
    if same_size and scan.is_file() and format_of(scan) == "nifti":
        other = nifti.other_form(scan, image)
        if other is not None and farthest(affine_of(labels), other[2], image.GetSize()) <= tolerance(labels, image):
            return _copied(labels, image)
    return None


def _copied(labels: sitk.Image, image: sitk.Image) -> sitk.Image:
    placed = sitk.Image(labels)
    placed.CopyInformation(image)
    return placed


def _covers(labels: sitk.Image, image: sitk.Image) -> bool:
    """Tell whether both have the same field of view, and not only the same number of voxels."""
    size = image.GetSize()
    ways = itertools.product(*((0, n - 1) for n in size))
    corners = [image.TransformIndexToPhysicalPoint(corner) for corner in ways]
    ends = labels.GetSize()
    indices = [labels.TransformPhysicalPointToContinuousIndex(corner) for corner in corners]
    return all(-0.1 < index < end - 0.9 for place in indices for index, end in zip(place, ends, strict=True))
