"""The preprocessing of MONAI bundles as MONAI does it: the bundle's own transforms, and the way back through them.

MONAI samples a scan at the new voxel centers without smoothing it first, from the scan's first voxel on. A network that
was trained so must be given its scans so.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import SimpleITK as sitk
import torch
from monai.data import MetaTensor
from monai.transforms import (
    ClipIntensityPercentiles,
    CropForeground,
    InvertibleTransform,
    NormalizeIntensity,
    Resize,
    ScaleIntensity,
    ScaleIntensityRange,
    ScaleIntensityRangePercentiles,
    Spacing,
    ThresholdIntensity,
)
from monai.transforms.utils import convert_applied_interp_mode
from torch import Tensor

from tcurlora.imaging.grids import Scores, index_of_largest, labels_on_grid, require_resamplable, to_array
from tcurlora.imaging.preprocessing import Prepared, Preprocessing

# The transforms that a base model may ask for; nothing else is ever instantiated from its files.
INTENSITY = {
    cls.__name__: cls
    for cls in (
        NormalizeIntensity,
        ScaleIntensity,
        ScaleIntensityRange,
        ScaleIntensityRangePercentiles,
        ClipIntensityPercentiles,
        ThresholdIntensity,
    )
}
GEOMETRY = {cls.__name__: cls for cls in (Spacing, CropForeground, Resize)}
ORIENTATION = "Orientation"
_LINEAR = ("bilinear", "border")
_SIDES = ("LR", "PA", "IS")

Step: TypeAlias = "tuple[str, Mapping[str, Any]]"
Undo: TypeAlias = "Callable[[MetaTensor, bool], MetaTensor]"


@dataclass(frozen=True)
class MonaiGrid:
    """Where a prepared scan lies.

    Attributes:
        affine: (4, 4), from voxels to mm, to the right, anterior and superior.
        shape: of the prepared array.
        undo: leads back to the scan, the last first; each is given whether voxels are labels.
    """

    affine: Tensor
    shape: tuple[int, ...]
    undo: tuple[Undo, ...]


@dataclass(frozen=True)
class MonaiTransforms(Preprocessing):
    """A bundle's transforms, in its order.

    Attributes:
        spacing: voxel size in mm along the array's axes; None keeps that of the scan.
        steps: each a name from `INTENSITY` or `GEOMETRY`, or `ORIENTATION`, and its arguments.
        back: what is brought back to the scan: `probabilities` of the logits that the windows are averaged in, these
            `logits` themselves, or the `labels`.
        largest_only: whether of each class only the largest connected component is kept.
    """

    spacing: tuple[float, float, float] | None
    steps: tuple[Step, ...]
    back: Literal["probabilities", "logits", "labels"] = "probabilities"
    largest_only: bool = False

    @property
    def intensity(self) -> tuple[Step, ...]:
        """The steps that change intensities."""
        return tuple((name, arguments) for name, arguments in self.steps if name in INTENSITY)

    def normalize(self, array: np.ndarray) -> np.ndarray:
        """Apply the intensity transforms alone to a (c, x, y, z) array."""
        data = torch.from_numpy(array)
        for name, arguments in self.intensity:
            data = INTENSITY[name](**arguments)(data)
        return _as_array(data)

    def prepare(self, image: sitk.Image) -> Prepared:
        """Run the transforms."""
        data = MetaTensor(torch.from_numpy(to_array(image)), affine=affine_of(image))
        undo: list[Undo] = []
        for name, arguments in self.steps:
            if name == ORIENTATION:
                data, back = _oriented(data, str(arguments["axcodes"]))
                undo.append(back)
            elif name in GEOMETRY:
                if name == "Spacing":
                    _require_resamplable(data, arguments)
                elif name == "CropForeground" and not _has_foreground(data, arguments):
                    continue
                data, back = _moved(data, GEOMETRY[name](**arguments))
                undo.append(back)
            else:
                data = INTENSITY[name](**arguments)(data)
        array = _as_array(data)
        return Prepared(array, MonaiGrid(data.affine, array.shape[1:], tuple(reversed(undo))))

    def prepare_labels(self, labels: sitk.Image, prepared: Prepared) -> np.ndarray:
        """Give each voxel of the grid the label with the largest share of it."""
        grid: MonaiGrid = prepared.grid
        return labels_on_grid(labels, grid_image(grid.affine, grid.shape))

    def labels_to_scan(self, scores: Scores, prepared: Prepared, image: sitk.Image) -> sitk.Image:
        """Undo the transforms class by class, and let the largest win; or undo them for the labels.

        Args:
            scores: (class, *axes) logits, the background first.
            prepared: the scan as it was prepared.
            image: the scan.
        """
        logits = (scores[index] for index in range(scores.shape[0]))
        if self.back == "labels":
            classes = index_of_largest(logits)
            if self.largest_only:
                classes = largest_components(classes)
            return _image(np.rint(self._back(classes, prepared.grid, nearest=True)).astype(np.uint16), image)
        if self.back == "probabilities":
            total = _log_sum(scores)
            logits = (np.exp(logit - total) for logit in logits)
        classes = index_of_largest(self._back(values, prepared.grid) for values in logits)
        return _image(largest_components(classes) if self.largest_only else classes, image)

    def region_to_scan(self, score: np.ndarray, above: float, prepared: Prepared, image: sitk.Image) -> np.ndarray:
        """Undo the transforms for the logits of a region, or for its probabilities or voxels."""
        if self.back == "labels":
            inside = self._back(score > above, prepared.grid, nearest=True) > 0.5
        elif self.back == "probabilities":
            inside = self._back(_sigmoid(score - above), prepared.grid) > 0.5
        else:
            inside = self._back(score, prepared.grid) > above
        if self.largest_only:
            inside = largest_components(inside.astype(np.uint8)) > 0
        mask: np.ndarray = inside.transpose(2, 1, 0)
        return mask

    def map_to_scan(
        self, values: np.ndarray, prepared: Prepared, image: sitk.Image, outside: float = 0.0
    ) -> sitk.Image:
        """Undo the transforms; what they cut off is `outside`."""
        back = self._back(values, prepared.grid)
        if any(name == "CropForeground" for name, _ in self.steps):
            back[self._back(np.ones_like(values), prepared.grid, nearest=True) < 0.5] = outside
        return _image(back, image)

    def to_dict(self) -> dict[str, Any]:
        """Describe it as JSON types."""
        return {
            "spacing": None if self.spacing is None else list(self.spacing),
            "steps": [{"name": name, **arguments} for name, arguments in self.steps],
            "back": self.back,
            "largest_only": self.largest_only,
        }

    @staticmethod
    def _back(values: np.ndarray, grid: MonaiGrid, nearest: bool = False) -> np.ndarray:
        data = MetaTensor(torch.from_numpy(np.ascontiguousarray(values[None], dtype=np.float32)), affine=grid.affine)
        for step in grid.undo:
            data = step(data, nearest)
        on_scan: np.ndarray = _as_array(data)[0]
        return on_scan


def affine_of(image: sitk.Image) -> Tensor:
    """Return the affine of an image as MONAI has it: (4, 4), from voxels to mm to the right, anterior and superior."""
    matrix = np.eye(4)
    matrix[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    matrix[:3, 3] = image.GetOrigin()
    return torch.from_numpy(np.diag([-1.0, -1.0, 1.0, 1.0]) @ matrix)


def grid_image(affine: Tensor, shape: Sequence[int]) -> sitk.Image:
    """Return an empty image in a geometry."""
    matrix = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine.numpy()
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    grid = sitk.Image([int(n) for n in shape], sitk.sitkUInt8)
    grid.SetSpacing(spacing.tolist())
    grid.SetDirection((matrix[:3, :3] / spacing).ravel().tolist())
    grid.SetOrigin(matrix[:3, 3].tolist())
    return grid


def _log_sum(logits: Scores) -> np.ndarray:
    """Logarithm of the sum of the exponentials of all classes, one class at a time in memory."""
    total: np.ndarray = np.full(logits.shape[1:], -np.inf, np.float32)
    for index in range(logits.shape[0]):
        np.logaddexp(total, logits[index], out=total)
    return total


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    probabilities: np.ndarray = torch.from_numpy(logits).sigmoid().numpy()
    return probabilities


def largest_components(classes: np.ndarray) -> np.ndarray:
    """Keep of each class only its largest connected component, voxels that touch at a corner being connected."""
    from scipy import ndimage

    kept = np.zeros_like(classes)
    for value in np.unique(classes[classes > 0]):
        parts, count = ndimage.label(classes == value, np.ones((3, 3, 3)))
        sizes = np.bincount(parts.ravel())
        sizes[0] = 0
        kept[parts == sizes.argmax()] = value if count else 0
    return kept


def _as_array(data: Tensor) -> np.ndarray:
    plain = data.as_tensor() if isinstance(data, MetaTensor) else data
    return np.ascontiguousarray(plain.numpy(), dtype=np.float32)


def _image(voxels: np.ndarray, image: sitk.Image) -> sitk.Image:
    made = sitk.GetImageFromArray(np.ascontiguousarray(voxels.transpose(2, 1, 0)))
    made.CopyInformation(image)
    return made


def _moved(data: MetaTensor, transform: InvertibleTransform) -> tuple[MetaTensor, Undo]:
    """Apply a transform of MONAI that remembers how it is undone."""
    result = transform(MetaTensor(data.as_tensor(), affine=data.affine))
    affine, operations = result.affine, result.applied_operations
    linear = (
        isinstance(transform, Spacing) and (transform.sp_resample.mode, transform.sp_resample.padding_mode) == _LINEAR
    )

    def undo(there: MetaTensor, nearest: bool) -> MetaTensor:
        if linear and not nearest:
            # What MONAI does, axis by axis: of a large scan MONAI would hold the place of every voxel.
            return MetaTensor(_resized(there.as_tensor(), affine, data.affine, data.shape[1:]), affine=data.affine)
        own = copy.deepcopy(operations)
        if nearest:
            own = convert_applied_interp_mode(own, mode="nearest", align_corners=None)
        back: MetaTensor = transform.inverse(MetaTensor(there.as_tensor(), affine=affine, applied_operations=own))
        return back

    return result, undo


def _resized(values: Tensor, affine: Tensor, wanted: Tensor, shape: Sequence[int]) -> Tensor:
    """Interpolate (c, x, y, z) values linearly onto a grid of the same axes; its border goes on outside of it."""
    change = torch.linalg.inv(affine) @ wanted
    for axis, count in sorted(enumerate(shape), key=lambda pair: pair[1] / values.shape[pair[0] + 1]):
        last = values.shape[axis + 1] - 1
        places = (change[axis, axis] * torch.arange(count, dtype=change.dtype) + change[axis, 3]).clamp_(0, last)
        below = places.floor().long()
        above = (below + 1).clamp_(max=last)
        if torch.equal(places, below.to(places.dtype)):
            values = values.index_select(axis + 1, below)
            continue
        weights = (places - below).float().view([-1 if i == axis + 1 else 1 for i in range(4)])
        values = torch.lerp(values.index_select(axis + 1, below), values.index_select(axis + 1, above), weights)
    return values


def _oriented(data: MetaTensor, axcodes: str) -> tuple[MetaTensor, Undo]:
    """Permute and flip axes so that they point where the codes say, as closely as the acquisition allows.

    MONAI needs nibabel for it, which is not needed otherwise.
    """
    affine = data.affine.numpy()
    closest = _closest_axes(affine[:3, :3])
    wanted = [next(i for i, pair in enumerate(_SIDES) if code in pair) for code in axcodes]
    order = [closest.index(axis) for axis in wanted]
    upward = [affine[axis, old] > 0 for axis, old in zip(wanted, order, strict=True)]
    flipped = [number + 1 for number, code in enumerate(axcodes) if upward[number] != (code in "RAS")]
    moved = data.as_tensor().permute(0, *(axis + 1 for axis in order)).flip(flipped)
    change = np.zeros((4, 4))
    change[3, 3] = 1
    for new, old in enumerate(order):
        change[old, new] = -1 if new + 1 in flipped else 1
        change[old, 3] = data.shape[old + 1] - 1 if new + 1 in flipped else 0
    back_order = [order.index(axis) + 1 for axis in range(3)]

    def undo(there: MetaTensor, _nearest: bool) -> MetaTensor:
        return MetaTensor(there.as_tensor().flip(flipped).permute(0, *back_order), affine=data.affine)

    return MetaTensor(moved, affine=torch.from_numpy(affine @ change)), undo


def _closest_axes(matrix: np.ndarray) -> list[int]:
    """For each axis of an array, the axis of space that it follows most closely; each once."""
    left = np.abs(matrix / np.linalg.norm(matrix, axis=0))
    closest = [0, 0, 0]
    for _ in range(3):
        space, axis = np.unravel_index(int(left.argmax()), left.shape)
        closest[axis] = int(space)
        left[space, :] = left[:, axis] = -1
    return closest


def _has_foreground(data: MetaTensor, arguments: Mapping[str, Any]) -> bool:
    """A scan without foreground is left as it is: MONAI would leave nothing of it."""
    channels = arguments.get("channel_indices")
    part = data.as_tensor() if channels is None else data.as_tensor()[channels]
    return bool((part > 0).any())


def _require_resamplable(data: MetaTensor, arguments: Mapping[str, Any]) -> None:
    pixdim = arguments["pixdim"]
    spacing = data.affine[:3, :3].norm(dim=0).tolist()
    wanted = [new if new is not None and new > 0 else old for new, old in zip(pixdim, spacing, strict=True)]
    require_resamplable(data.shape[1:], spacing, wanted)


def known_axcodes(axcodes: Any) -> str | None:
    """Return codes of an orientation such as `RAS`, or None when they are no such codes."""
    text = "".join(map(str, axcodes)) if isinstance(axcodes, list) else axcodes
    if not isinstance(text, str) or len(text) != 3:
        return None
    axes = {i for i, pair in enumerate(_SIDES) for code in text if code in pair}
    return text if len(axes) == 3 else None
