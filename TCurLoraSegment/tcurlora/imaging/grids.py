"""Where voxels are: from any scan to the grid on which a model works, and back to exactly the scan's grid.

Arrays are (x, y, z) or (channel, x, y, z), with axes that point to the right, anterior and superior as closely as the
acquisition allows: axes are permuted and flipped, an oblique scan stays oblique.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from tcurlora.errors import InputError

SPACING_TOLERANCE = 1e-3
"""Relative difference of spacings up to which no resampling is worth its blur."""

SAME_VOXEL = 1e-2
"""Part of a voxel by which its center may differ in two files of one grid, as from rounding."""

ANTIALIAS_FROM = 1.2
"""Downsampling by more than this factor is preceded by a Gaussian filter."""

MAX_GRID_VOXELS = 2**29
"""More voxels than this, 2 GB of intensities, come of a wrong voxel size and not of a patient."""

COARSEST = 100
"""A scan is not made coarser than this; what stays of it would mean nothing."""

Floats = npt.NDArray[np.float32]
Matrix = npt.NDArray[np.float64]


class Scores(Protocol):
    """Scores of each class on the prepared grid, of which one class at a time is in memory; an array is one too."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(class, *axes)."""

    def __getitem__(self, index: int, /) -> Any:
        """The scores of one class: (*axes) float32."""


def geometry_difference(a: sitk.Image, b: sitk.Image) -> str | None:
    """Say in words how the grids of two images differ.

    Returns:
        None when the images have the same size and all voxel centers agree within a hundredth of the smallest
        spacing (or 0.0001 mm, whichever is more); else for example `size 35x51x35 against 36x51x35`.
    """
    if a.GetSize() != b.GetSize():
        return f"size {_times(a.GetSize())} against {_times(b.GetSize())}"
    corners = _corners(a.GetSize())
    # Both maps from index to place are affine, so their difference is largest at a corner.
    distance = float(np.linalg.norm(_places(a, corners) - _places(b, corners), axis=1).max())
    if distance <= tolerance(a, b):
        return None
    words = []
    if not np.allclose(a.GetSpacing(), b.GetSpacing(), rtol=SPACING_TOLERANCE, atol=0):
        words.append(f"spacing {_times(a.GetSpacing())} mm against {_times(b.GetSpacing())} mm")
    angle = _angle(_directions(a), _directions(b))
    if angle > 0.01:
        words.append(f"orientation differs by {angle:.3g} degrees")
    shift = math.dist(a.GetOrigin(), b.GetOrigin())
    if shift > tolerance(a, b):
        words.append(f"origin differs by {shift:.3g} mm")
    return ", ".join(words) or f"voxel centers differ by up to {distance:.3g} mm"


def to_model_grid(image: sitk.Image, spacing: tuple[float, float, float] | None, label: bool = False) -> sitk.Image:
    """Bring an image onto the grid on which a model works.

    Axes are permuted and flipped to point right, anterior and superior. Only where the spacing then differs from the
    model's is the image resampled, over the same field of view: intensities linearly (smoothed first when it gets
    coarser), labels by the largest smoothed share, and no label disappears that has a voxel to stand on.

    Args:
        image: 3D; of one or several components, or integer labels of one component.
        spacing: of the model's grid along right, anterior and superior, in mm; None leaves it as it is.
        label: whether the voxels are labels.

    Returns:
        Intensities as 32 bit floats, or labels with their own pixel type.

    Raises:
        InputError: when the voxel size of the image cannot be that of a scan for this model.
    """
    oriented: sitk.Image = sitk.DICOMOrient(image, "RAS")
    if spacing is not None:
        require_resamplable(oriented.GetSize(), oriented.GetSpacing(), spacing)
    if not label:
        pixel = sitk.sitkFloat32 if oriented.GetNumberOfComponentsPerPixel() == 1 else sitk.sitkVectorFloat32
        oriented = sitk.Cast(oriented, pixel)
    if spacing is None or np.allclose(oriented.GetSpacing(), spacing, rtol=SPACING_TOLERANCE, atol=0):
        return oriented
    grid = _grid_over(oriented, spacing)
    if label:
        return _resample_labels(oriented, grid)
    sigmas = _sigmas(oriented, spacing)
    count = oriented.GetNumberOfComponentsPerPixel()
    if count == 1:
        return _linear(_smoothed(oriented, sigmas), grid)
    parts = [sitk.VectorIndexSelectionCast(oriented, index, sitk.sitkFloat32) for index in range(count)]
    resampled: sitk.Image = sitk.Compose([_linear(_smoothed(part, sigmas), grid) for part in parts])
    return resampled


def to_array(image: sitk.Image) -> Floats:
    """Return the voxels of an image as a (channel, x, y, z) array of 32 bit floats; one channel for a scalar image."""
    voxels = sitk.GetArrayViewFromImage(image)
    channels = voxels[None] if voxels.ndim == 3 else np.moveaxis(voxels, -1, 0)
    return np.ascontiguousarray(channels.transpose(0, 3, 2, 1), dtype=np.float32)


def label_array(image: sitk.Image) -> npt.NDArray[np.int32]:
    """Return labels as an (x, y, z) array, or as (layer, x, y, z) where the image has several components."""
    return np.ascontiguousarray(sitk.GetArrayViewFromImage(image).T, dtype=np.int32)


def index_of_largest(maps: Iterable[Floats]) -> npt.NDArray[np.uint16]:
    """Return which of several maps has the largest value in each voxel, the first one in a tie; one map at a time."""
    remaining = iter(maps)
    best = np.array(next(remaining))  # a copy, because it is changed
    winner = np.zeros(best.shape, np.uint16)
    for index, values in enumerate(remaining, start=1):
        better = values > best
        np.copyto(best, values, where=better)
        np.copyto(winner, np.uint16(index), where=better)
    return winner


def labels_from_grid(probabilities: Scores, grid: sitk.Image, target: sitk.Image) -> sitk.Image:
    """Decide for each voxel of a scan which class is the most probable one there.

    Probabilities are interpolated linearly, one class at a time, so that memory holds two volumes of the scan and not
    one for each class. Where scan and grid have the same voxels nothing is interpolated. Outside the grid all is
    background.

    Args:
        probabilities: (class, x, y, z) on `grid`, the background first; any monotone score serves. One class at a time
            is asked for.
        grid: an image in the geometry of the probabilities; its voxels are not looked at.
        target: the scan.

    Returns:
        Class indices as unsigned 16 bit integers, in exactly the geometry of `target`.

    Raises:
        InputError: when the shape of the probabilities is not that of the grid.
    """
    _require_shape(probabilities.shape[1:], grid)
    classes = (probabilities[index] for index in range(probabilities.shape[0]))
    if _shares_voxels(grid, target):
        return _exactly(_resampled(_image(index_of_largest(classes), grid), target, sitk.sitkNearestNeighbor), target)
    # Outside the grid every class reads 0, and the background, being first, wins the tie.
    return _exactly(
        sitk.GetImageFromArray(index_of_largest(_voxels(_linear(_image(scores, grid), target)) for scores in classes)),
        target,
    )


def map_from_grid(values: Floats, grid: sitk.Image, target: sitk.Image, outside: float = 0.0) -> sitk.Image:
    """Bring a map, such as an uncertainty, from the model's grid to a scan.

    Args:
        values: (x, y, z) on `grid`.
        grid: an image in the geometry of the values.
        target: the scan.
        outside: the value of voxels of the scan that the grid does not cover.

    Returns:
        32 bit floats in exactly the geometry of `target`; interpolated linearly, unless the voxels are the same.

    Raises:
        InputError: when the shape of the values is not that of the grid.
    """
    _require_shape(values.shape, grid)
    how = sitk.sitkNearestNeighbor if _shares_voxels(grid, target) else sitk.sitkLinear
    return _exactly(_resampled(_image(values.astype(np.float32), grid), target, how, outside), target)


def on_grid_of(labels: sitk.Image, image: sitk.Image) -> sitk.Image | None:
    """Lay labels that were cropped or padded by whole voxels back onto the grid of their scan.

    Returns:
        The labels in exactly the geometry of `image`, or None when the two grids do not share their voxels or a
        labeled voxel lies outside the scan.
    """
    if not _shares_voxels(labels, image):
        return None
    placed = _resampled(labels, image, sitk.sitkNearestNeighbor)
    if np.count_nonzero(_voxels(placed)) != np.count_nonzero(_voxels(labels)):
        return None
    return _exactly(placed, image)


def labels_on_grid(labels: sitk.Image, grid: sitk.Image) -> npt.NDArray[np.int32]:
    """Bring labels onto a grid: each of its voxels gets the label with the largest share of it.

    Args:
        labels: integers of one component, in the geometry of their scan.
        grid: an image whose axes are those of the labels, permuted and flipped.

    Returns:
        (x, y, z) labels on the grid.
    """
    axes = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(grid.GetDirection())
    oriented = sitk.DICOMOrient(labels, axes)
    if _shares_voxels(oriented, grid):
        return label_array(_resampled(oriented, grid, sitk.sitkNearestNeighbor))
    return label_array(_resample_labels(oriented, grid))


def require_resamplable(size: Sequence[int], spacing: Sequence[float], wanted: Sequence[float]) -> None:
    """Refuse a voxel size, such as one in meters or micrometers, before memory is taken for a grid of that extent.

    Args:
        size: of the scan in voxels.
        spacing: of the scan in mm.
        wanted: that of the model in mm.

    Raises:
        InputError: when the scan cannot be brought there.
    """
    factors = [old / new for old, new in zip(spacing, wanted, strict=True)]
    voxels = math.prod(max(1.0, n * factor) for n, factor in zip(size, factors, strict=True))
    if voxels > MAX_GRID_VOXELS or min(factors) < 1 / COARSEST:
        raise InputError(
            f"The scan has voxels of {_times(spacing)} mm, which cannot be brought to the model's {_times(wanted)} mm.",
            "Check the voxel size of the scan, which may be in another unit than mm.",
            "bad_spacing",
        )


def _corners(size: Sequence[int]) -> Matrix:
    return np.array([[i, j, k] for i in (0, size[0] - 1) for j in (0, size[1] - 1) for k in (0, size[2] - 1)], float)


def _directions(image: sitk.Image) -> Matrix:
    return np.array(image.GetDirection()).reshape(3, 3)


def _places(image: sitk.Image, indices: Matrix) -> Matrix:
    """Map (n, 3) voxel indices to places in mm."""
    scaled = _directions(image) * np.array(image.GetSpacing())
    return np.asarray(indices @ scaled.T + np.array(image.GetOrigin()))


def tolerance(*images: sitk.Image) -> float:
    """Return the distance in mm by which grids may differ and count as one: a hundredth of the smallest voxel."""
    finest = min(float(min(image.GetSpacing())) for image in images)
    return max(SAME_VOXEL * finest, 1e-4)


def _angle(a: Matrix, b: Matrix) -> float:
    cosines = np.sum(a * b, axis=0) / (np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0))
    return math.degrees(math.acos(min(1.0, max(-1.0, float(cosines.min())))))


def _times(numbers: Sequence[float]) -> str:
    return "x".join(f"{number:.6g}" for number in numbers)


def _shares_voxels(grid: sitk.Image, target: sitk.Image) -> bool:
    """Tell whether voxel centers of the target are voxel centers of the grid, on it or on its continuation."""
    inverse = np.linalg.inv(_directions(grid) * np.array(grid.GetSpacing()))
    step = inverse @ (_directions(target) * np.array(target.GetSpacing()))
    whole = np.rint(step)
    permutes = bool((np.abs(whole).sum(axis=0) == 1).all() and (np.abs(whole).sum(axis=1) == 1).all())
    indices = (_places(target, _corners(target.GetSize())) - np.array(grid.GetOrigin())) @ inverse.T
    return permutes and bool(np.abs(indices - np.rint(indices)).max() < SAME_VOXEL)


def _grid_over(image: sitk.Image, spacing: Sequence[float]) -> sitk.Image:
    """Return an empty image of another spacing that covers the same field of view, about the same center."""
    old_size, old_spacing = np.array(image.GetSize()), np.array(image.GetSpacing())
    new_spacing = np.array(spacing, float)
    # Rounding keeps every new center inside the old field of view, also where that is thinner than a new voxel.
    new_size = np.maximum(1, np.rint(old_size * old_spacing / new_spacing)).astype(int)
    center = _places(image, (old_size[None] - 1) / 2)[0]
    origin = center - _directions(image) @ ((new_size - 1) / 2 * new_spacing)
    grid = sitk.Image([int(n) for n in new_size], sitk.sitkUInt8)
    grid.SetSpacing([float(s) for s in new_spacing])
    grid.SetDirection(image.GetDirection())
    grid.SetOrigin([float(x) for x in origin])
    return grid


def _sigmas(image: sitk.Image, spacing: Sequence[float]) -> list[float]:
    """Return the Gaussian, in old voxels, that makes an old voxel's profile as wide as a new one's."""
    factors = [new / old for new, old in zip(spacing, image.GetSpacing(), strict=True)]
    return [math.sqrt(f * f - 1) / (2 * math.sqrt(2 * math.log(2))) if f > ANTIALIAS_FROM else 0.0 for f in factors]


def _smoothed(image: sitk.Image, sigmas: Sequence[float]) -> sitk.Image:
    if not any(sigmas):
        return image
    widest = 2 * math.ceil(4 * max(sigmas)) + 1
    smooth: sitk.Image = sitk.DiscreteGaussian(image, [sigma * sigma for sigma in sigmas], widest, 0.01, False)
    return smooth


def _resample_labels(labels: sitk.Image, grid: sitk.Image) -> sitk.Image:
    """Give each new voxel the label with the largest share of it; each label is looked at only where it is."""
    sigmas = _sigmas(labels, grid.GetSpacing())
    shape = grid.GetSize()[::-1]
    best, total, winner = np.zeros(shape, np.float32), np.zeros(shape, np.float32), np.zeros(shape, np.int64)
    peaks: list[tuple[float, tuple[int, ...], int]] = []
    boxes = sitk.LabelShapeStatisticsImageFilter()
    boxes.Execute(sitk.Cast(labels, sitk.sitkInt32))
    for value in boxes.GetLabels():
        box = boxes.GetBoundingBox(value)
        part = labels[tuple(_with_margin(box, labels.GetSize(), sigmas))]
        region = _region_of(part, grid)
        if any(cut.start >= cut.stop for cut in region):
            continue
        here = region[::-1]
        share = _voxels(_linear(_smoothed(sitk.Cast(part == value, sitk.sitkFloat32), sigmas), grid[tuple(region)]))
        place = np.unravel_index(int(share.argmax()), share.shape)
        peaks.append((float(share.max()), tuple(int(i) + cut.start for i, cut in zip(place, here, strict=True)), value))
        total[here] += share
        better = share > best[here]
        best[here][better] = share[better]
        winner[here][better] = value
    # Shares add up to one, so the background has what the labels leave.
    winner[best <= 1 - total] = 0
    # A structure thinner than a new voxel loses every vote; its best voxel keeps it, unless that is another's last.
    for peak, where, value in sorted(peaks, reverse=True):
        if peak > 0 and not (winner == value).any() and (not winner[where] or (winner == winner[where]).sum() > 1):
            winner[where] = value
    return sitk.Cast(_exactly(sitk.GetImageFromArray(winner), grid), labels.GetPixelID())


def _with_margin(box: Sequence[int], size: Sequence[int], sigmas: Sequence[float]) -> list[slice]:
    """Widen a box (start and size along each axis) so that a smoothed label fades out inside it."""
    margins = [math.ceil(5 * sigma) + 2 for sigma in sigmas]
    return [
        slice(max(0, box[axis] - margins[axis]), min(size[axis], box[axis] + box[3 + axis] + margins[axis]))
        for axis in range(3)
    ]


def _region_of(part: sitk.Image, grid: sitk.Image) -> tuple[slice, ...]:
    """Return the voxels of the grid, whose axes are those of the part, that lie in the part's field of view."""
    ends = [[-0.5] * 3, [n - 0.5 for n in part.GetSize()]]
    first, last = (
        grid.TransformPhysicalPointToContinuousIndex(part.TransformContinuousIndexToPhysicalPoint(end)) for end in ends
    )
    return tuple(
        slice(max(0, math.ceil(a - 1e-6)), min(n, math.floor(b + 1e-6) + 1))
        for a, b, n in zip(first, last, grid.GetSize(), strict=True)
    )


def _image(values: npt.NDArray[Any], grid: sitk.Image) -> sitk.Image:
    return _exactly(sitk.GetImageFromArray(np.ascontiguousarray(values.transpose(2, 1, 0))), grid)


def _voxels(image: sitk.Image) -> npt.NDArray[Any]:
    """Return a copy as (z, y, x); a view would outlive its image here."""
    return np.asarray(sitk.GetArrayFromImage(image))


def _linear(image: sitk.Image, grid: sitk.Image) -> sitk.Image:
    return _resampled(image, grid, sitk.sitkLinear)


def _resampled(image: sitk.Image, grid: sitk.Image, how: int, outside: float = 0.0) -> sitk.Image:
    return sitk.Resample(
        image,
        grid.GetSize(),
        sitk.Transform(3, sitk.sitkIdentity),
        how,
        grid.GetOrigin(),
        grid.GetSpacing(),
        grid.GetDirection(),
        outside,
        image.GetPixelID(),
    )


def _exactly(image: sitk.Image, target: sitk.Image) -> sitk.Image:
    image.SetOrigin(target.GetOrigin())
    image.SetSpacing(target.GetSpacing())
    image.SetDirection(target.GetDirection())
    return image


def _require_shape(shape: Sequence[int], grid: sitk.Image) -> None:
    if tuple(shape) != grid.GetSize():
        raise InputError(
            f"An array of {_times(shape)} voxels does not lie on a grid of {_times(grid.GetSize())}.",
            "Pass the grid from which the array was made.",
            "shape_mismatch",
        )
