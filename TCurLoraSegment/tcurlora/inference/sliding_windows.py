"""Run a network over a scan window by window, as a base model's `Windowing` says."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from monai.data.utils import compute_importance_map
from torch import Tensor

from tcurlora.inference.score_volume import Place, ScoreVolume
from tcurlora.models.base_model import Windowing

NUMPY_PADDING = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def window_starts(size: int, roi: int, windows: Windowing) -> list[int]:
    """Return where windows begin along one axis.

    Args:
        size: of the array along this axis, at least that of the window.
        roi: size of the window.
        windows: overlap and placement.
    """
    if size == roi:
        return [0]
    if windows.placement == "even":
        # Isensee et al. 2021, nnU-Net: as many windows as the step takes, then evenly spread.
        count = math.ceil((size - roi) / (roi * (1 - windows.overlap))) + 1
        return [round((size - roi) / (count - 1) * number) for number in range(count)]
    step = max(1, int(roi * (1 - windows.overlap)))
    return [min(start, size - roi) for start in range(0, size - roi + step, step)]


def window_places(shape: Sequence[int], windows: Windowing) -> list[Place]:
    """Return the place of each window in an array of (x, y, z), the last axis fastest."""
    starts = [window_starts(size, roi, windows) for size, roi in zip(shape, windows.roi_size, strict=True)]
    x, y, z = windows.roi_size
    return [(slice(i, i + x), slice(j, j + y), slice(k, k + z)) for i, j, k in itertools.product(*starts)]


def window_weights(windows: Windowing) -> Tensor:
    """Return the weight of each voxel of a window: (x, y, z) float32, all above 0."""
    if windows.mode != "gaussian_peak":
        made: Tensor = compute_importance_map(windows.roi_size, windows.mode, windows.sigma_scale, dtype=torch.float32)
        return made
    weights = torch.ones((), dtype=torch.float64)
    for size in windows.roi_size:
        distance = torch.arange(size, dtype=torch.float64) - size // 2
        weights = weights[..., None] * torch.exp(-0.5 * (distance / (windows.sigma_scale * size)) ** 2)
    # Those that 32 bits cannot tell from zero, of a very narrow gaussian, would leave voxels without any weight.
    rounded = weights.float()
    return rounded.clamp_(min=rounded[rounded > 0].min())


def padded_to_window(array: np.ndarray, windows: Windowing) -> tuple[np.ndarray, Place]:
    """Fill an array up to the size of the window, on both sides alike and one more at the end where that is odd.

    Args:
        array: (c, x, y, z).
        windows: size of the window, and how to fill up.

    Returns:
        The array, which is the one given where it is large enough, and where that lies in it.
    """
    missing = [max(0, roi - size) for roi, size in zip(windows.roi_size, array.shape[1:], strict=True)]
    x, y, z = (slice(m // 2, m // 2 + size) for m, size in zip(missing, array.shape[1:], strict=True))
    if any(missing):
        around = [(0, 0), *((m // 2, m - m // 2) for m in missing)]
        # Not torch's, which refuses to reflect a scan of less than half the window.
        array = np.pad(array, around, mode=NUMPY_PADDING[windows.padding_mode])  # type: ignore[call-overload]
    return array, (x, y, z)


def mirrored_mean(network: Callable[[Tensor], Tensor], windows: Tensor, axes: Sequence[int]) -> Tensor:
    """Average a network's logits over all combinations of mirrored axes, the unmirrored window included.

    Args:
        network: maps (b, c, x, y, z) to (b, channels, x, y, z).
        windows: (b, c, x, y, z).
        axes: of x, y, z.
    """
    total = network(windows).float()
    if not axes:
        return total
    combinations = [
        [axis + 2 for axis in chosen]
        for count in range(1, len(axes) + 1)
        for chosen in itertools.combinations(axes, count)
    ]
    for dimensions in combinations:
        total += network(windows.flip(dimensions)).flip(dimensions)
    return total.div_(len(combinations) + 1)


def add_windows(
    array: Tensor,
    windows: Windowing,
    predict: Callable[[Tensor], Tensor],
    scores: ScoreVolume,
    batch: int = 1,
    on_window: Callable[[float], None] | None = None,
) -> None:
    """Predict all windows of an array, and add them up with their weights.

    Windows in which each channel has one value throughout, such as the air around a patient, are predicted once.

    Args:
        array: (c, x, y, z), at least as large as the window.
        windows: where they are, and what their voxels weigh.
        predict: maps (b, c, *roi_size) to (b, classes, *roi_size).
        scores: where they are added up, of the array's shape.
        batch: how many windows are predicted at once.
        on_window: called before each of these with the fraction that is done, 0 at first; may raise.
    """
    weights = window_weights(windows).to(scores.device)
    places = window_places(array.shape[1:], windows)
    waiting: list[tuple[Place, Tensor | None]] = []  # in their order, with what is known of them
    done = 0
    uniform: tuple[float, ...] | None = None
    of_uniform: Tensor | None = None

    def add_waiting() -> None:
        nonlocal done
        if on_window is not None:
            on_window(done / len(places))
        unknown = [array[(slice(None), *place)] for place, known in waiting if known is None]
        results = iter(predict(torch.stack(unknown)) if unknown else ())
        for place, known in waiting:
            scores.add(place, next(results) if known is None else known, weights)
        done += len(waiting)
        waiting.clear()

    for place in places:
        window = array[(slice(None), *place)]
        values = _value_of_each_channel(window)
        if values is not None and values != uniform:
            # Only the last one is kept: with many classes one window is hundreds of megabytes.
            uniform, of_uniform = values, predict(window[None])[0]
        waiting.append((place, None if values is None else of_uniform))
        if (values is not None and len(waiting) == 1) or sum(known is None for _, known in waiting) == batch:
            add_waiting()
    if waiting:
        add_waiting()


def _value_of_each_channel(window: Tensor) -> tuple[float, ...] | None:
    """Return the one value that each channel of a window has throughout; None where one of them has several."""
    first = window[:, 0, 0, 0]
    # A line and a plane through the window tell most windows apart, and are read much sooner than all of it.
    for part in (window[:, window.shape[1] // 2], window):
        if bool((part != first.view(-1, *(1,) * (part.dim() - 1))).any()):
            return None
    return tuple(first.tolist())
