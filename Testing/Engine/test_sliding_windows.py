"""Windows over a scan: where they are, what they weigh, what is averaged, and where the sums are kept."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.data.utils import dense_patch_slices
from monai.inferers import sliding_window_inference
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.inference.sliding_window_prediction import compute_gaussian, compute_steps_for_sliding_window
from torch import Tensor, nn

from tcurlora.errors import MemoryExhausted
from tcurlora.imaging.structures import Structure
from tcurlora.inference.expected_memory import Expected, expected_bytes, require_memory
from tcurlora.inference.score_volume import ScoreVolume
from tcurlora.inference.segmenter import Segmenter
from tcurlora.inference.sliding_windows import window_places, window_starts, window_weights
from tcurlora.inference.uncertainty import as_probabilities, normalized_entropy, uncertainty_map
from tcurlora.models.base_model import Windowing
from tcurlora.models.monai_preprocessing import MonaiPreprocessing

CPU = torch.device("cpu")
CLASSES = 4
STRUCTURES = [Structure(f"part {number}", number) for number in range(1, CLASSES)]
NNUNET = {"mode": "gaussian_peak", "placement": "even", "blend": "logits"}


class Smoothing(nn.Module):
    """A network with some context, that counts the windows it is given."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv3d(channels, 8, 5, padding=2), nn.Tanh(), nn.Conv3d(8, CLASSES, 3, padding=1)
        )
        self.seen = 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        result: Tensor = 3 * self.layers(x)
        return result


def segmenter_with(windows: Windowing, channels: int = 1, spacing: float | None = None, **more: Any) -> Segmenter:
    torch.manual_seed(0)
    names = ("background", *(s.name for s in STRUCTURES))
    preprocessing = MonaiPreprocessing(None if spacing is None else (spacing,) * 3)
    return Segmenter(Smoothing(channels), names, STRUCTURES, preprocessing, windows, CPU, channels, **more)


def noise(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


@pytest.mark.parametrize("overlap", [0.0, 0.1, 0.25, 0.5, 0.6, 0.75])
def test_windows_are_where_monai_or_nnunet_put_them(overlap: float) -> None:
    random = np.random.default_rng(0)
    for _ in range(12):
        roi = tuple(int(n) for n in random.integers(4, 40, 3))
        size = [n + int(more) for n, more in zip(roi, random.integers(0, 60, 3), strict=True)]
        steps = [n if n == whole else max(1, int(n * (1 - overlap))) for n, whole in zip(roi, size, strict=True)]
        by_step = [tuple(slice(int(s.start), int(s.stop)) for s in p) for p in dense_patch_slices(size, roi, steps)]
        assert window_places(size, Windowing(roi, overlap)) == by_step  # type: ignore[arg-type]
        even = Windowing(roi, overlap, placement="even")  # type: ignore[arg-type]
        starts = [window_starts(whole, n, even) for whole, n in zip(size, roi, strict=True)]
        assert starts == compute_steps_for_sliding_window(size, roi, 1 - overlap)  # type: ignore[arg-type]


@pytest.mark.parametrize("roi", [(128, 112, 16), (20, 7, 5), (9, 64, 33)])
def test_weights_of_nnunet_are_the_same_and_none_is_zero(roi: tuple[int, int, int]) -> None:
    expected = compute_gaussian(roi, 1 / 8, 10, torch.float32, CPU) / 10
    weights = window_weights(Windowing(roi, mode="gaussian_peak"))
    torch.testing.assert_close(weights, expected, rtol=1e-5, atol=0)
    narrow = window_weights(Windowing((64, 64, 64), mode="gaussian_peak", sigma_scale=0.01))
    assert narrow.min() > 0


@pytest.mark.parametrize("padding", ["constant", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("mode", ["gaussian", "constant"])
def test_result_is_that_of_monais_sliding_window(mode: Any, padding: Any) -> None:
    segmenter = segmenter_with(Windowing((16, 12, 20), 0.4, mode, padding, sigma_scale=0.2))
    array = noise((1, 37, 8, 33))
    with torch.inference_mode():
        expected = sliding_window_inference(
            torch.from_numpy(array)[None],
            (16, 12, 20),
            1,
            lambda x: segmenter.network(x).softmax(1),
            0.4,
            mode,
            0.2,
            padding_mode=padding,
        )
    np.testing.assert_allclose(segmenter.probabilities(array), expected[0].numpy(), atol=2e-6)


@pytest.mark.parametrize(("axes", "shape"), [((), (30, 20, 41)), ((0, 2), (30, 9, 41)), ((0, 1, 2), (16, 16, 17))])
def test_logits_are_those_of_nnunets_predictor(
    axes: tuple[int, ...], shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its sums are in half precision, in which some of its weights are hardly above zero; here they are not.
    gaussian = partial(compute_gaussian, dtype=torch.float32)
    monkeypatch.setattr("nnunetv2.inference.predict_from_raw_data.compute_gaussian", gaussian)
    monkeypatch.setattr(torch, "half", torch.float32)
    roi = (16, 12, 20)
    segmenter = segmenter_with(Windowing(roi, mirror_axes=axes, **NNUNET))  # type: ignore[arg-type]
    array = noise((1, *shape))
    reference = nnUNetPredictor(0.5, True, bool(axes), False, CPU, allow_tqdm=False)
    reference.network = segmenter.network
    reference.configuration_manager = SimpleNamespace(patch_size=roi)
    reference.label_manager = SimpleNamespace(num_segmentation_heads=CLASSES)
    reference.allowed_mirroring_axes = axes or None
    with torch.inference_mode():
        expected = reference.predict_sliding_window_return_logits(torch.from_numpy(array))
    with segmenter.scores(array) as scores:
        ours = scores.to_array()
    np.testing.assert_allclose(ours, expected.numpy(), atol=1e-5)


def test_a_scan_of_less_than_half_the_window_is_reflected_again_and_again() -> None:
    segmenter = segmenter_with(Windowing((16, 16, 16), padding_mode="reflect"))
    array = noise((1, 3, 1, 40))
    with torch.inference_mode():
        padded = torch.from_numpy(np.pad(array, [(0, 0), (6, 7), (7, 8), (0, 0)], "reflect"))[None]
        whole = sliding_window_inference(
            padded, (16, 16, 16), 1, lambda x: segmenter.network(x).softmax(1), 0.5, "gaussian"
        )
    expected = whole[0, :, 6:9, 7:8].numpy()
    np.testing.assert_allclose(segmenter.probabilities(array), expected, atol=2e-6)


@pytest.mark.parametrize("surroundings", [(0.0, 0.0), (-0.7, 1.3)])
def test_uniform_windows_of_any_value_are_computed_once_and_change_nothing(surroundings: tuple[float, float]) -> None:
    array = np.empty((2, 60, 40, 56), np.float32)
    array[:] = np.array(surroundings, np.float32)[:, None, None, None]
    array[:, 30:44, 4:20, 6:20] = noise((2, 14, 16, 14))
    # One channel alone that varies is not nothing.
    array[1, 2:6, 30:34, 40:44] += 1
    segmenter = segmenter_with(Windowing((16, 16, 16)), channels=2)
    fractions: list[float] = []
    ours = segmenter.probabilities(array, fractions.append)
    seen, segmenter.network.seen = segmenter.network.seen, 0  # type: ignore[union-attr]
    with torch.inference_mode():
        expected = sliding_window_inference(
            torch.from_numpy(array)[None], (16, 16, 16), 1, lambda x: segmenter.network(x).softmax(1), 0.5, "gaussian"
        )
    np.testing.assert_allclose(ours, expected[0].numpy(), atol=2e-6)
    assert seen < segmenter.network.seen / 2  # type: ignore[operator]
    assert fractions[0] == 0 and fractions == sorted(fractions) and fractions[-1] < 1


def test_sums_on_disk_are_let_go_of_when_the_work_breaks_off(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[Any] = []
    leave = ScoreVolume.__exit__
    monkeypatch.setattr(ScoreVolume, "__exit__", lambda self, *of: (leave(self, *of), closed.append(self)))

    def stop(part: float) -> None:
        if part > 0.3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        segmenter_with(Windowing((16, 16, 16)), in_memory=0).probabilities(noise((1, 40, 40, 40)), stop)
    assert len(closed) == 1 and closed[0]._file._file.closed


@pytest.mark.parametrize("options", [{}, NNUNET])
@pytest.mark.parametrize("spacing", [None, 1.4])
def test_sums_on_disk_give_exactly_the_result_of_those_in_memory(
    make_scan: Callable[..., Any], options: Any, spacing: float | None
) -> None:
    image = sitk.Normalize(make_scan(3, (44, 31, 27), (1.1, 0.9, 1.6))[0])
    windows = Windowing((16, 16, 16), **options)
    expected = segmenter_with(windows, spacing=spacing).segment(image, uncertainty=True)
    found = segmenter_with(windows, spacing=spacing, in_memory=0).segment(image, uncertainty=True)
    for one, other in zip(found, expected, strict=True):
        assert one is not None and other is not None
        assert np.array_equal(sitk.GetArrayFromImage(one), sitk.GetArrayFromImage(other))
    assert len(np.unique(sitk.GetArrayFromImage(expected[0]))) == CLASSES


@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.5, 0.8])
@pytest.mark.parametrize("placement", ["step", "even"])
@pytest.mark.parametrize("shape", [(20, 37, 29), (45, 9, 17), (8, 8, 8)])
def test_sums_on_disk_are_the_same_whatever_the_windows(overlap: float, placement: Any, shape: Any) -> None:
    windows = Windowing((12, 10, 8), overlap, placement=placement)
    array = noise((1, *shape))
    array[:, :, 12:] = 0.5  # some windows are uniform, and wait with others
    expected = segmenter_with(windows).probabilities(array)
    assert np.array_equal(segmenter_with(windows, in_memory=0).probabilities(array), expected)


def test_the_file_of_the_sums_is_gone_afterwards_and_a_full_disk_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    with ScoreVolume(3, (20, 20, 20), in_memory=0) as scores:
        scores.add((slice(0, 20),) * 3, torch.full((3, 20, 20, 20), 2.0), torch.full((20, 20, 20), 0.5))
        assert not list(tmp_path.iterdir())
        assert (scores[1] == 2).all()
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**30))
    with pytest.raises(MemoryExhausted) as caught:
        ScoreVolume(3, (20, 20, 20), in_memory=0)
    assert caught.value.code == "no_disk_space" and "TMPDIR" in caught.value.remedy


def test_logits_that_are_averaged_become_probabilities_and_uncertainty() -> None:
    logits = 4 * noise((5, 6, 7, 8))
    probabilities = as_probabilities(logits, "softmax")
    np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-6)
    expected = normalized_entropy(probabilities)
    np.testing.assert_allclose(uncertainty_map(logits, "softmax", "logits"), expected, atol=1e-5)
    # A region as likely as not is as uncertain as can be, however certain the others are.
    regions = np.array([[[[-30.0, -30, 30]]], [[[-30.0, 0, 30]]]], np.float32)
    np.testing.assert_allclose(uncertainty_map(regions, "sigmoid", "logits")[0, 0], [0, 1, 0], atol=1e-4)
    segmenter = segmenter_with(Windowing((16, 16, 16), blend="logits"))
    np.testing.assert_allclose(segmenter.probabilities(noise((1, 20, 20, 20))).sum(0), 1, atol=1e-5)


def test_memory_is_told_beforehand_and_too_little_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    few, many = sitk.Image([40, 40, 40], sitk.sitkInt16), sitk.Image([200, 200, 200], sitk.sitkInt16)
    segmenter = segmenter_with(Windowing((16, 16, 16)))
    small, large = expected_bytes(segmenter, few), expected_bytes(segmenter, many)
    assert small.disk == large.disk == 0
    assert large.memory - small.memory > 4 * CLASSES * 200**3
    segmenter.in_memory = 2**20
    spilled = expected_bytes(segmenter, many)
    assert spilled.disk == 4 * CLASSES * 200**3 and spilled.memory < large.memory
    gigabyte = 10**9
    monkeypatch.setattr("tcurlora.inference.expected_memory.memory", lambda: (16 * gigabyte, 4 * gigabyte))
    assert require_memory(Expected(3 * gigabyte, 0)) is None
    assert require_memory(Expected(5 * gigabyte, 0))
    with pytest.raises(MemoryExhausted):
        require_memory(Expected(17 * gigabyte, 0))
    monkeypatch.setattr("tcurlora.inference.expected_memory.memory", lambda: (None, None))
    assert require_memory(Expected(17 * gigabyte, 0)) is None
