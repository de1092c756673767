"""What memory a segmentation will take, told before it begins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import SimpleITK as sitk

from tcurlora.errors import MemoryExhausted
from tcurlora.inference.score_volume import bar_bytes, score_bytes
from tcurlora.inference.segmenter import Segmenter
from tcurlora.runtime.system_memory import memory

FEATURES = 192
"""Numbers that a network holds at once for each voxel of a window: those of a U-Net of 32 features at full size."""

PROGRAM_BYTES = 400 * 2**20
"""Python with torch and MONAI."""


class Expected(NamedTuple):
    """Bytes of main memory at most, and of a temporary file on disk."""

    memory: int
    disk: int


def expected_bytes(segmenter: Segmenter, image: sitk.Image, uncertainty: bool = False) -> Expected:
    """Estimate what segmenting a scan takes, beside the memory of the graphics card where one computes.

    The network's own share is a rule of thumb; the rest follows from the sizes of scan, grid and window.

    Args:
        segmenter: the model.
        image: the scan.
        uncertainty: whether the voxel map is computed as well.
    """
    voxels = math.prod(image.GetSize())
    spacing = segmenter.preprocessing.spacing or image.GetSpacing()
    finer = math.prod(image.GetSpacing()) / math.prod(spacing)
    window = math.prod(segmenter.windows.roi_size)
    grid = max(math.ceil(voxels * finer), window)
    channels, classes = image.GetNumberOfComponentsPerPixel(), len(segmenter.groups)
    own = voxels * channels * image.GetSizeOfPixelComponent()
    sums = score_bytes(classes, (grid,))
    on_disk = sums > segmenter.in_memory
    kept = bar_bytes(classes, _grid(image, spacing, segmenter.windows.roi_size), segmenter.windows.roi_size)
    kept = min(kept, sums) if on_disk else sums
    here = segmenter.device.type == "cpu"
    predicted = segmenter.batch_size() * window * 4 * (2 * len(segmenter.channels) + (FEATURES if here else 0))
    preparing = 4 * channels * (2 * voxels + 3 * grid)
    # Grid and array of the prepared scan, and the sums of the weights.
    predicting = grid * 4 * (2 * channels + 1) + kept + predicted
    # The best score, that of a class as image and as array, which class is best, and where it was bettered.
    back = 4 * voxels * 4 + (2 + 1) * voxels if segmenter.activation == "softmax" else 13 * voxels + classes * voxels
    returning = grid * 4 * (2 * channels + 2) + (0 if on_disk else kept) + back + (8 * grid if uncertainty else 0)
    weights = sum(tensor.nbytes for tensor in segmenter.network.state_dict().values()) if here else 0
    return Expected(PROGRAM_BYTES + weights + own + max(preparing, predicting, returning), sums if on_disk else 0)


def _grid(image: sitk.Image, spacing: Sequence[float], window: Sequence[int]) -> list[int]:
    """The size of the prepared scan, at least that of the window, with axes as those of the scan."""
    sizes = zip(image.GetSize(), image.GetSpacing(), spacing, window, strict=True)
    return [max(math.ceil(count * own / new), least) for count, own, new, least in sizes]


def require_memory(expected: Expected) -> str | None:
    """Compare what a segmentation takes with what this computer has.

    Returns:
        What to do where less is free at the moment; None where it will do.

    Raises:
        MemoryExhausted: when the computer has less than that altogether.
    """
    total, available = memory()
    need = f"Segmenting it takes about {expected.memory / 1e9:.1f} GB of memory"
    if total is not None and expected.memory > total:
        raise MemoryExhausted(
            f"{need}, and this computer has {total / 1e9:.1f} GB.",
            "Crop the scan to the region of interest, or use a computer with more memory.",
        )
    if available is not None and expected.memory > available:
        return f"{need}, and {available / 1e9:.1f} GB are free. Close other programs, or crop the scan, if it fails."
    return None
