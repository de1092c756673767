"""nnU-Net's preprocessing, in its order: orientation, axes, crop, normalization, resampling to a shape; and back.

Follows nnU-Net v2 (Isensee et al. 2021, doi:10.1038/s41592-020-01008-z): `DefaultPreprocessor` and
`convert_predicted_logits_to_segmentation_with_correct_shape`. Arrays have the network's own axes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn.functional import interpolate

from tcurlora.errors import InputError
from tcurlora.imaging.grids import MAX_GRID_VOXELS, Scores
from tcurlora.imaging.preprocessing import Prepared, Preprocessing
from tcurlora.models.nnunet_files import TORCH, Normalization, Resampling, TrainedModel

EPSILON = 1e-8
Shape = tuple[int, int, int]
Spacing = tuple[float, float, float]


@dataclass(frozen=True)
class NnunetGrid:
    """The way back from a prepared array to the scan.

    Attributes:
        orientation: that the scan was brought to; None where it was taken as stored.
        whole: shape of the scan along the network's axes, before it was cropped.
        crop: where the crop lies in it.
        spacing: of the scan in mm along the network's axes.
    """

    orientation: str | None
    whole: Shape
    crop: tuple[slice, slice, slice]
    spacing: Spacing

    @property
    def cropped(self) -> Shape:
        """Shape of the crop."""
        a, b, c = (part.stop - part.start for part in self.crop)
        return a, b, c


@dataclass(frozen=True)
class NnunetPreprocessing(Preprocessing):
    """What an nnU-Net expects of its input.

    Attributes:
        spacing: voxel size in mm along the network's axes.
        transpose: of the axes (z, y, x) of a scan, those of the network.
        normalizations: of each input channel.
        resampling: of the scan.
        resampling_back: of the network's output.
        orientation: that scans are brought to; None takes them as they are stored.
    """

    spacing: Spacing
    transpose: Shape
    normalizations: tuple[Normalization, ...]
    resampling: Resampling
    resampling_back: Resampling
    orientation: str | None

    @classmethod
    def of(cls, trained: TrainedModel) -> NnunetPreprocessing:
        """Take what a trained model's files say."""
        return cls(
            trained.spacing,
            trained.transpose,
            trained.normalizations,
            trained.resampling,
            trained.resampling_back,
            trained.orientation,
        )

    def prepare(self, image: sitk.Image) -> Prepared:
        """Orient, transpose, crop to what is not zero, normalize there, and only then resample."""
        oriented = self._oriented(image)
        array = self._to_axes(oriented)
        spacing = self._spacing_of(oriented)
        occupied: np.ndarray = np.asarray(array.any(0))
        crop = _box(occupied)
        array = array[(slice(None), *crop)].copy()  # it is changed, and may have been the scan's own voxels
        grid = NnunetGrid(self.orientation, _shape(occupied), crop, spacing)
        self._normalize(array, occupied[crop])
        shape = self._shape_on_grid(grid)
        resampled = resize(torch.from_numpy(array), shape, spacing, self.spacing, self.resampling)
        return Prepared(np.ascontiguousarray(resampled.numpy()), grid)

    def prepare_labels(self, labels: sitk.Image, prepared: Prepared) -> np.ndarray:
        """Give each voxel of the grid the label with the largest share of it, as nnU-Net does for each label alone."""
        grid: NnunetGrid = prepared.grid
        cropped = self._to_axes(self._oriented(labels), np.int32)[0][grid.crop]
        shape = _shape(prepared.array[0])
        if shape == cropped.shape:
            return np.ascontiguousarray(cropped)
        rule = Resampling(self.resampling.function, 1, 0, self.resampling.separate_z, self.resampling.threshold)
        values = np.unique(cropped)
        best = torch.full(shape, -1.0)
        winner = torch.full(shape, int(values[0]), dtype=torch.int32)
        for value in values.tolist():
            share = resize(torch.from_numpy(cropped == value).float()[None], shape, grid.spacing, self.spacing, rule)[0]
            better = share > best
            best[better] = share[better]
            winner[better] = value
        return winner.numpy()

    def labels_to_scan(self, scores: Scores, prepared: Prepared, image: sitk.Image) -> sitk.Image:
        """Resample class by class, and let the largest win; memory holds two classes of the crop and not all."""
        grid: NnunetGrid = prepared.grid
        best, winner = None, np.zeros(grid.cropped, np.uint16)
        for index, values in enumerate(self._on_crop(scores, grid)):
            if best is None:
                best = values.clone()
                continue
            better = values > best
            torch.where(better, values, best, out=best)
            winner[better.numpy()] = index
        return self._placed(winner, grid, image, 0)

    def map_to_scan(
        self, values: np.ndarray, prepared: Prepared, image: sitk.Image, outside: float = 0.0
    ) -> sitk.Image:
        """Resample as the network's output is."""
        (cropped,) = self._on_crop(values[None], prepared.grid)
        return self._placed(cropped.numpy(), prepared.grid, image, outside)

    def to_dict(self) -> dict[str, Any]:
        """Describe it as JSON types."""
        return {
            "spacing": list(self.spacing),
            "orientation": self.orientation,
            "transpose": list(self.transpose),
            "normalization": [asdict(normalization) for normalization in self.normalizations],
            "resampling": asdict(self.resampling),
            "resampling_back": asdict(self.resampling_back),
        }

    def _oriented(self, image: sitk.Image) -> sitk.Image:
        return image if self.orientation is None else sitk.DICOMOrient(image, self.orientation)

    def _to_axes(self, image: sitk.Image, dtype: Any = np.float32) -> np.ndarray:
        """The voxels as (c, *axes) along the network's axes."""
        voxels = sitk.GetArrayViewFromImage(image)
        channels = voxels[None] if voxels.ndim == 3 else np.moveaxis(voxels, -1, 0)
        return np.ascontiguousarray(channels.transpose(0, *(axis + 1 for axis in self.transpose)), dtype=dtype)

    def _spacing_of(self, image: sitk.Image) -> Spacing:
        backwards = image.GetSpacing()[::-1]
        a, b, c = (float(backwards[axis]) for axis in self.transpose)
        return a, b, c

    def _shape_on_grid(self, grid: NnunetGrid) -> Shape:
        """The crop's shape at the model's spacing.

        Raises:
            InputError: when the voxel size of the scan cannot be that of a scan for this model.
        """
        sizes = zip(grid.spacing, self.spacing, grid.cropped, strict=True)
        a, b, c = (max(1, round(old / new * size)) for old, new, size in sizes)
        if a * b * c > MAX_GRID_VOXELS:
            raise InputError(
                f"The scan, of {_times(grid.cropped)} voxels of {_times(grid.spacing)} mm, would have {a} x {b} x {c} "
                f"voxels at the model's {_times(self.spacing)} mm.",
                "Check the voxel size of the scan, or crop it to the region of interest.",
                "spacing",
            )
        return a, b, c

    def _normalize(self, array: np.ndarray, occupied: np.ndarray) -> None:
        """Normalize each channel in place.

        Args:
            array: (c, *axes), cropped.
            occupied: (*axes), where any channel is not zero.
        """
        mask = None
        for channel, how in zip(array, self.normalizations, strict=True):
            if how.scheme == "CTNormalization":
                np.clip(channel, how.low, how.high, out=channel)
                channel -= how.mean
                channel /= max(how.std, EPSILON)
            elif how.scheme == "ZScoreNormalization" and how.use_mask:
                mask = _filled(occupied) if mask is None else mask
                inside = channel[mask]
                if inside.size:
                    channel[mask] = (inside - inside.mean()) / max(float(inside.std()), EPSILON)
            elif how.scheme == "ZScoreNormalization":
                mean, std = channel.mean(), channel.std()
                channel -= mean
                channel /= max(float(std), EPSILON)
            elif how.scheme == "RescaleTo01Normalization":
                channel -= channel.min()
                channel /= max(float(channel.max()), EPSILON)
            elif how.scheme == "RGBTo01Normalization":
                if channel.min() < 0 or channel.max() > 255:
                    raise InputError(
                        "The scan has intensities below 0 or above 255, but the model takes colors.",
                        "Give an image of 8 bits for each color.",
                        "intensities",
                    )
                channel /= 255.0

    def _on_crop(self, scores: Scores, grid: NnunetGrid) -> Iterator[Tensor]:
        """Bring (class, *axes) to the crop's own voxels, one class at a time."""
        for index in range(scores.shape[0]):
            one = torch.from_numpy(np.ascontiguousarray(scores[index], dtype=np.float32))[None]
            yield resize(one, grid.cropped, self.spacing, grid.spacing, self.resampling_back)[0]

    def _placed(self, values: np.ndarray, grid: NnunetGrid, image: sitk.Image, outside: float) -> sitk.Image:
        """Put a crop back into its place, its axes back into the scan's order, and that onto the scan's grid."""
        whole = np.full(grid.whole, outside, values.dtype)
        whole[grid.crop] = values
        result = sitk.GetImageFromArray(np.ascontiguousarray(whole.transpose(np.argsort(self.transpose))))
        if grid.orientation is not None:
            # Axes are only permuted and flipped, so that the same filter, told where they were, undoes it.
            oriented = self._oriented(_header_of(image))
            result.CopyInformation(oriented)
            result = sitk.DICOMOrient(result, _orientation_of(image))
        result.CopyInformation(image)
        return result


def _header_of(image: sitk.Image) -> sitk.Image:
    """An image of one byte a voxel in the geometry of another one."""
    header = sitk.Image(image.GetSize(), sitk.sitkUInt8)
    header.CopyInformation(image)
    return header


def _orientation_of(image: sitk.Image) -> str:
    return str(sitk.DICOMOrientImageFilter_GetOrientationFromDirectionCosines(image.GetDirection()))


def _box(occupied: np.ndarray) -> tuple[slice, slice, slice]:
    """The smallest box around what is true; filling holes does not change it. All, where nothing is."""
    parts = []
    for axis in range(3):
        along = np.flatnonzero(occupied.any(tuple(other for other in range(3) if other != axis)))
        parts.append(slice(int(along[0]), int(along[-1]) + 1) if along.size else slice(0, occupied.shape[axis]))
    return parts[0], parts[1], parts[2]


def _filled(mask: np.ndarray) -> np.ndarray:
    """Fill the holes of a mask: what is false and cannot be reached from outside through faces of voxels."""
    parts, count = ndimage.label(np.pad(~mask, 1, constant_values=True))
    if count < 2:
        return mask
    inside: np.ndarray = (parts != parts[0, 0, 0])[1:-1, 1:-1, 1:-1]
    return inside


def _shape(array: np.ndarray) -> Shape:
    a, b, c = array.shape
    return a, b, c


# Resampling


def resize(array: Tensor, shape: Shape, spacing: Spacing, new_spacing: Spacing, how: Resampling) -> Tensor:
    """Resample to a shape as nnU-Net does, of which spacings only decide whether one axis is resampled apart.

    Args:
        array: (c, *axes) float32.
        shape: that it is to have.
        spacing: of the array in mm.
        new_spacing: of the result.
        how: function, orders and the rule for coarse axes.

    Returns:
        (c, *shape) float32; the array itself where it has the shape already.
    """
    if tuple(array.shape[1:]) == tuple(shape):
        return array
    axis = coarse_axis(spacing, new_spacing, how)
    result = torch.empty(array.shape[0], *shape)
    for channel, target in zip(array, result, strict=True):
        target.copy_(_resized(channel, shape, axis, how))
    return result


def coarse_axis(spacing: Spacing, new_spacing: Spacing, how: Resampling) -> int | None:
    """The axis that is resampled apart from the others, because voxels are much longer along it than across."""
    if how.separate_z is False:
        return None
    if how.separate_z:
        deciding: Spacing | None = spacing
    else:
        both = (spacing, new_spacing)
        deciding = next((s for s in both if max(s) / min(s) > how.threshold), None)
    if deciding is None:
        return None
    longest = [axis for axis in range(3) if max(deciding) / deciding[axis] == 1]
    return longest[0] if len(longest) == 1 else None


def _resized(volume: Tensor, shape: Shape, axis: int | None, how: Resampling) -> Tensor:
    if how.function == TORCH:
        return _resized_by_torch(volume, shape, axis, how)
    if axis is None:
        return _spline(volume, shape, how.order, (0, 1, 2))
    planes = [other for other in range(3) if other != axis]
    in_plane = list(shape)
    in_plane[axis] = volume.shape[axis]
    flat = _spline(volume, in_plane, how.order, planes, each=axis)
    if in_plane[axis] == shape[axis]:
        return flat
    if how.order_z == 0:
        return flat.index_select(axis, torch.from_numpy(_nearest(in_plane[axis], shape[axis])))
    return _along(flat, axis, _matrix(in_plane[axis], shape[axis], how.order_z))


def _resized_by_torch(volume: Tensor, shape: Shape, axis: int | None, how: Resampling) -> Tensor:
    if axis is None:
        return interpolate(volume[None, None], list(shape), mode="trilinear")[0, 0]
    planes = [shape[other] for other in range(3) if other != axis]
    flat = interpolate(volume.movedim(axis, 0)[None], planes, mode="bilinear")[0].movedim(0, axis)
    return interpolate(flat[None, None], list(shape), mode=how.nearest)[0, 0]


def _spline(volume: Tensor, shape: Sequence[int], order: int, axes: Sequence[int], each: int | None = None) -> Tensor:
    """Resample along some axes by a spline, within the range of the values.

    skimage's `resize(mode="edge")`, which nnU-Net uses, is a product of one linear map for each axis.

    Args:
        volume: (*axes).
        shape: of the result; differs along `axes` only.
        order: of the spline.
        axes: to resample along.
        each: an axis each of whose planes has its own range.
    """
    if order == 1 and len(axes) == 3:
        return interpolate(volume[None, None], list(shape), mode="trilinear")[0, 0]
    result = volume
    # What makes the array smaller comes first.
    for axis in sorted(axes, key=lambda axis: shape[axis] / volume.shape[axis]):
        if shape[axis] != volume.shape[axis]:
            if order == 0:
                result = result.index_select(axis, torch.from_numpy(_nearest(volume.shape[axis], shape[axis])))
            else:
                result = _along(result, axis, _matrix(volume.shape[axis], shape[axis], order))
    if order < 2:
        return result
    if each is None:
        return result.clamp(volume.min(), volume.max())
    return result.clamp(volume.amin(list(axes), keepdim=True), volume.amax(list(axes), keepdim=True))


def _along(volume: Tensor, axis: int, matrix: np.ndarray) -> Tensor:
    product: Tensor = torch.tensordot(torch.from_numpy(matrix), volume, dims=([1], [axis]))
    return product.movedim(0, axis)


@lru_cache(maxsize=32)
def _matrix(size: int, new_size: int, order: int) -> np.ndarray:
    """The linear map (new_size, size) that resizing along one axis is: what it makes of each unit vector."""
    if size == 1:
        return np.ones((new_size, 1), np.float32)
    zoom = (new_size / size, 1.0)
    resized = ndimage.zoom(np.eye(size), zoom, order=order, mode="nearest", grid_mode=True)
    return np.ascontiguousarray(resized, dtype=np.float32)


@lru_cache(maxsize=32)
def _nearest(size: int, new_size: int) -> np.ndarray:
    """For each voxel along an axis, the old voxel whose center is nearest."""
    places = size / new_size * (np.arange(new_size) + 0.5) - 0.5
    found = ndimage.map_coordinates(np.arange(size, dtype=np.float64), [places], order=0, mode="nearest")
    return np.asarray(found, dtype=np.int64)


def _times(sizes: Sequence[float]) -> str:
    return " x ".join(f"{size:g}" for size in sizes)
