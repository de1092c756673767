"""Intensities that would ruin what is computed from them: values that are no numbers, and extreme ones."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from tcurlora.errors import InputError
from tcurlora.imaging.image_warnings import ImageWarning, OnWarning

LARGEST = float(np.finfo(np.float32).max)
"""Networks compute with single precision, in which greater numbers are infinite."""

_BINS = 512
_GAP = 0.1
_APART, _APART_ZERO, _APART_FEW = 1 / 6, 9.0, 5.0
_FEW = 1e-3
_SPREAD = 1.1


def require_finite_image(image: sitk.Image, name: str) -> None:
    """Refuse a scan with values that are no numbers, or are none in single precision.

    Args:
        image: of any pixel type.
        name: what to call the scan.

    Raises:
        InputError: with one of the values and the number of voxels.
    """
    voxels = sitk.GetArrayViewFromImage(image)
    if voxels.dtype.kind != "f":
        return
    low, high = float(voxels.min()), float(voxels.max())  # NaN where one is in it
    if low >= -LARGEST and high <= LARGEST:
        return
    bad = ~((voxels >= -LARGEST) & (voxels <= LARGEST))
    example, count = float(voxels[bad][0]), int(np.count_nonzero(bad))
    kind = f"too large to compute with ({example:g})" if np.isfinite(example) else f"no number ({example:g})"
    raise InputError(
        f"{name} has {count} voxel{'' if count == 1 else 's'} whose intensity is {kind}.",
        "Replace them, for example by 0, or export the scan again.",
        "non_finite",
    )


def check_intensities(image: sitk.Image, name: str, on_warning: OnWarning) -> None:
    """Refuse values that are no numbers, and warn of padding far from all other values.

    Raises:
        InputError: with one of the values and the number of voxels.
    """
    require_finite_image(image, name)
    voxels = sitk.GetArrayViewFromImage(image)
    for channel in [voxels] if voxels.ndim == 3 else np.moveaxis(voxels, -1, 0):
        found = extremes(channel)
        if found is not None:
            count, low, high, inner = found
            values = f"{low:g}" if low == high else f"{low:g} to {high:g}"
            message = (
                f"{name} has {count} voxel{'' if count == 1 else 's'} of intensity {values}, far from all others "
                f"({inner[0]:g} to {inner[1]:g}): normalization rests on them, and the result may be bad."
            )
            remedy = "If they are padding or faults, replace them by the value of the background before you go on."
            on_warning(ImageWarning("extreme_values", message, remedy))


def extremes(voxels: npt.NDArray[Any]) -> tuple[int, float, float, tuple[float, float]] | None:
    """Find values far below or above all others that change the spread of a scan.

    Values count as far where what lies empty between them and the rest has a part of the width of the rest: a sixth for
    one value of many voxels, such as padding, nine times for a background of 0, and five times for few voxels (less
    than one in a thousand) of any values. They count only where the standard deviation is a tenth greater with them.

    Args:
        voxels: finite, of any shape.

    Returns:
        How many voxels have them, the smallest and largest of them, and the range of all others; None where there are
        none.
    """
    inner = (float(voxels.min()), float(voxels.max()))
    values: list[float] = []
    while inner[1] > inner[0]:
        far, main = _far_values(voxels, inner)
        if not far or main == inner:  # or they lie between others
            break
        values += far
        inner = main
    if not values:
        return None
    rest = voxels[(voxels >= inner[0]) & (voxels <= inner[1])]
    whole, alone = float(np.std(voxels, dtype=np.float64)), float(np.std(rest, dtype=np.float64))
    if whole <= _SPREAD * alone:
        return None
    return int(voxels.size - rest.size), min(values), max(values), inner


def _far_values(voxels: npt.NDArray[Any], within: tuple[float, float]) -> tuple[list[float], tuple[float, float]]:
    """Return the ends of groups that are far from the main one, among values in a range, and the range without them."""
    counts, edges = np.histogram(voxels, bins=_BINS, range=within)
    filled = np.flatnonzero(counts)
    wide = np.flatnonzero(np.diff(filled) > _GAP * _BINS)
    # Cut in the middle of each wide gap, because the edge of a bin may round to one of the values.
    cuts = [-np.inf, *((edges[filled[wide] + 1] + edges[filled[wide + 1]]) / 2), np.inf]
    groups: list[tuple[int, float, float]] = []
    for low, high in itertools.pairwise(cuts):
        group = voxels[(voxels >= max(low, within[0])) & (voxels <= min(high, within[1]))]
        groups.append((int(group.size), float(group.min()), float(group.max())))
    broad = [group for group in groups if group[2] > group[1]]
    if not broad:
        return [], within  # a mask
    main = [group for group in broad if group[0] >= _FEW * voxels.size] or [max(broad)]
    bottom, top = min(group[1] for group in main), max(group[2] for group in main)
    far: list[float] = []
    kept = [bottom, top]
    for count, low, high in groups:
        few, one = count < _FEW * voxels.size, low == high
        needed = _APART_FEW if few else _APART_ZERO if low == 0 else _APART
        if (few or one) and max(low - top, bottom - high) >= needed * (top - bottom):
            far += [low, high]
        else:
            kept += [low, high]
    return far, (min(kept), max(kept))
