"""Scores: how well predicted segmentations agree with the truth, in Dice and in millimetres."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tcurlora.errors import InputError

MEASURES = ("dice", "hd95_mm", "surface_distance_mm", "volume_ml", "truth_volume_ml")


@dataclass(frozen=True)
class Score:
    """How one structure of one case was segmented; distances in mm, volumes in ml.

    `dice` is None when the structure is neither predicted nor in the truth; the distances are None when it lacks in
    either, because no surface is there to measure from.
    """

    case: str
    structure: str
    dice: float | None
    hd95_mm: float | None
    surface_distance_mm: float | None
    volume_ml: float
    truth_volume_ml: float


def score_case(
    case: str,
    predicted: np.ndarray,
    truth: np.ndarray,
    spacing: tuple[float, float, float],
    structures: Mapping[str, int],
    ignored: np.ndarray | None = None,
) -> list[Score]:
    """Score one case, structure by structure.

    Voxels that nobody labeled count nowhere: not in the Dice, not in the volumes, and the surfaces that distances are
    measured between are those in labeled voxels. The border of what was labeled is not taken for the surface of a
    structure, so of a scan with every n-th slice labeled the outlines in these slices are compared.

    Args:
        case: name of the case.
        predicted: label values, shape (x, y, z), or (layer, x, y, z) where structures overlap.
        truth: label values, in the same way, on the same voxels.
        spacing: size of a voxel along x, y and z in mm.
        structures: label value of each structure.
        ignored: (x, y, z), true in voxels that nobody labeled; None where there are none.

    Raises:
        InputError: when the shapes differ.
    """
    if predicted.shape[-3:] != truth.shape[-3:]:
        raise InputError(
            f"Case '{case}': the prediction has {_shape(predicted)} voxels, the truth {_shape(truth)}.",
            "Compare segmentations of the same scan.",
            "geometry_mismatch",
        )
    voxel_ml = math.prod(spacing) / 1000
    scores = []
    for name, value in structures.items():
        a, b = _mask(predicted, value, ignored), _mask(truth, value, ignored)
        size_a, size_b = int(a.sum()), int(b.sum())
        dice = hd95 = distance = None
        if size_a or size_b:
            box = _bounding_box(a | b)
            a, b, outside = a[box], b[box], None if ignored is None else ignored[box]
            dice = 2 * int((a & b).sum()) / (size_a + size_b)
        if size_a and size_b:
            hd95, distance = (
                _surface_distances(a, b, spacing) if outside is None else _partial_distances(a, b, outside, spacing)
            )
        scores.append(Score(case, name, dice, hd95, distance, size_a * voxel_ml, size_b * voxel_ml))
    return scores


def _surface_distances(a: np.ndarray, b: np.ndarray, spacing: Sequence[float]) -> tuple[float, float]:
    """95th percentile Hausdorff distance (the larger of both directions) and average symmetric surface distance."""
    import torch
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance
    from monai.metrics.surface_distance import compute_average_surface_distance

    x, y = (torch.from_numpy(np.ascontiguousarray(mask))[None, None] for mask in (a, b))
    mm = list(spacing)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MONAI warns of its own inner use of an old option
        hd95 = compute_hausdorff_distance(x, y, include_background=True, percentile=95, spacing=mm)
        distance = compute_average_surface_distance(x, y, include_background=True, symmetric=True, spacing=mm)
    return float(hd95), float(distance)


def _partial_distances(
    a: np.ndarray, b: np.ndarray, ignored: np.ndarray, spacing: Sequence[float]
) -> tuple[float | None, float | None]:
    """Measure what `_surface_distances` does, of surfaces that do not touch what is ignored."""
    from monai.metrics.utils import get_surface_distance
    from scipy.ndimage import binary_erosion

    # An ignored neighbor may belong to the structure, so it makes no surface.
    edges = [mask & ~binary_erosion(mask | ignored) for mask in (a, b)]
    if not all(edge.any() for edge in edges):
        return None, None
    there, back = (np.asarray(get_surface_distance(x, y, spacing=list(spacing))) for x, y in (edges, edges[::-1]))
    hd95 = max(float(np.percentile(distances, 95)) for distances in (there, back))
    return hd95, float(np.concatenate((there, back)).mean())


def _bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    """The box around all voxels of the mask, with a margin of one voxel where the image goes on."""
    box = []
    for axis in range(mask.ndim):
        used = np.flatnonzero(mask.any(axis=tuple(i for i in range(mask.ndim) if i != axis)))
        box.append(slice(max(int(used[0]) - 1, 0), int(used[-1]) + 2))
    return tuple(box)


def _mask(labels: np.ndarray, value: int, ignored: np.ndarray | None = None) -> np.ndarray:
    """Where a structure is, in whichever layer, without voxels that nobody labeled: (x, y, z)."""
    mask: np.ndarray = np.equal(labels, value).reshape(-1, *labels.shape[-3:]).any(0)
    return mask if ignored is None else mask & ~ignored


def _shape(array: np.ndarray) -> str:
    return "x".join(str(size) for size in array.shape[-3:])
