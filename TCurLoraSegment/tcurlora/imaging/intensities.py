"""Intensities that would ruin what is computed from them: values that are no numbers, and extreme ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from tcurlora.errors import InputError
from tcurlora.imaging.image_warnings import ImageWarning, OnWarning

LARGEST = float(np.finfo(np.float32).max)
"""Networks compute with single precision, in which greater numbers are infinite."""

_BINS = 512
_APART, _APART_ZERO = 0.15, 0.9
_FEW = 1e-3
_SPREAD = 1.25


def require_finite(image: sitk.Image, name: str) -> None:
    """Refuse a scan with values that are no numbers, or are none in single precision.

    Args:
        image: of any pixel type.
        name: what to call the scan.

    Raises:
        InputError: with one of the values and the number of voxels.
    """
    require_finite_array(sitk.GetArrayViewFromImage(image), name)


def require_finite_array(voxels: npt.NDArray[Any], name: str, after: str = "") -> None:
    """Refuse an array with values that are no numbers, or are none in single precision.

    Args:
        voxels: of any shape.
        name: what to call the scan.
        after: what was done with it, if anything.

    Raises:
        InputError: with one of the values and the number of voxels.
    """
    if voxels.dtype.kind != "f":
        return
    low, high = float(voxels.min()), float(voxels.max())  # NaN where one is in it
    if low >= -LARGEST and high <= LARGEST:
        return
    bad = ~((voxels >= -LARGEST) & (voxels <= LARGEST))
    example, count = float(voxels[bad].flat[0]), int(np.count_nonzero(bad))
    kind = f"too large to compute with ({example:g})" if np.isfinite(example) else f"no number ({example:g})"
    raise InputError(
        f"{name} has {count} voxel{'' if count == 1 else 's'} whose intensity is {kind}{f' {after}' if after else ''}.",
        "Replace them, for example by 0, or export the scan again."
        if not after
        else "Look at the smallest and largest intensities of the scan, and replace those that make no sense.",
        "non_finite",
    )


def check_intensities(image: sitk.Image, name: str, on_warning: OnWarning) -> None:
    """Refuse values that are no numbers, and warn of padding far from all other values.

    Raises:
        InputError: with one of the values and the number of voxels.
    """
    require_finite(image, name)
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

    Values count as far where at least a part of the whole range (15 percent; 90 percent for a background of 0) lies
    empty between them and the rest, where they are few voxels (one in a thousand) or all of one value, and where the
    standard deviation with them is a quarter greater than without, or more.

    Args:
        voxels: finite, of any shape.

    Returns:
        How many voxels have them, the smallest and largest of them, and the range of all others; None where there are
        none.
    """
    inner = (float(voxels.min()), float(voxels.max()))
    values: list[float] = []
    for _ in range(4):  # one more end each time, or the next value of the same end
        cut = _far_end(voxels, inner)
        if cut is None:
            break
        end, inner = cut
        values += end
    if not values:
        return None
    inside = (voxels >= inner[0]) & (voxels <= inner[1])
    rest = voxels[inside]
    count = int(voxels.size - rest.size)
    whole, alone = float(np.std(voxels, dtype=np.float64)), float(np.std(rest, dtype=np.float64))
    if whole <= _SPREAD * alone:
        return None
    return count, min(values), max(values), inner


def _far_end(voxels: npt.NDArray[Any], inner: tuple[float, float]) -> tuple[list[float], tuple[float, float]] | None:
    """Return the values of an end that is far from the rest of a range, and the range without it."""
    low, high = inner
    if not high > low:
        return None
    counts, edges = np.histogram(voxels, bins=_BINS, range=inner)
    filled = np.flatnonzero(counts)
    widest = int(np.diff(filled).argmax())
    below, above = int(filled[widest]), int(filled[widest + 1])
    empty = (above - below - 1) / _BINS
    middle = float((edges[below + 1] + edges[above]) / 2)
    lower = (voxels >= low) & (voxels <= middle)
    upper = (voxels > middle) & (voxels <= high)
    ends = [(lower, upper), (upper, lower)] if lower.sum() <= upper.sum() else [(upper, lower), (lower, upper)]
    for end, rest in ends:
        found = voxels[end]
        first, last = float(found.min()), float(found.max())
        one = first == last
        if not one and found.size > _FEW * voxels.size:
            continue
        needed = _APART_ZERO if one and first == 0 and found.size > _FEW * voxels.size else _APART
        if empty >= needed and np.count_nonzero(rest) > found.size * 0.05:
            remaining = voxels[rest]
            if float(remaining.min()) == float(remaining.max()):
                return None  # two values are a mask
            return [first, last], (float(remaining.min()), float(remaining.max()))
    return None
