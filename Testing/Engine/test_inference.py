"""Inference: probabilities of classes, and results in exactly the geometry of the scan."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.inferers import sliding_window_inference
from torch import Tensor, nn

from tcurlora.errors import InputError, MemoryExhausted
from tcurlora.imaging.structures import Structure
from tcurlora.inference.segmenter import Segmenter
from tcurlora.inference.uncertainty import normalized_entropy
from tcurlora.method.head import class_logits
from tcurlora.models.base_model import Windowing
from tcurlora.models.monai_preprocessing import MonaiPreprocessing
from tcurlora.models.opening import load_base_model

CPU = torch.device("cpu")
WINDOWS = Windowing((16, 16, 16))
PREPROCESSING = MonaiPreprocessing((1.0, 1.0, 1.0), (("NormalizeIntensity", {"channel_wise": True}),))
OBLIQUE = tuple(
    float(v)
    for v in (
        np.array([[math.cos(0.3), -math.sin(0.3), 0], [math.sin(0.3), math.cos(0.3), 0], [0, 0, 1]])
        # Stored from left to right and head to foot, as many scanners do.
        @ np.diag([-1, 1, -1])
    ).ravel()
)


class Threshold(nn.Module):
    """Finds bright voxels, split over two channels of equal weight."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([-10 * (x - 1.0), 0 * x, 0 * x], 1)


def thresholding(structures: list[Structure] | None = None) -> Segmenter:
    structures = structures or [Structure("hippocampus", 7)]
    return Segmenter(Threshold(), ("background", "hippocampus", "hippocampus"), structures, PREPROCESSING, WINDOWS, CPU)


def test_channels_of_one_class_add_their_probabilities() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 4, 3, 3, 3)
    joined = class_logits(logits, [[2], [0, 3], [1]]).softmax(1)
    single = logits.softmax(1)
    torch.testing.assert_close(joined[:, 0], single[:, 2])
    torch.testing.assert_close(joined[:, 1], single[:, 0] + single[:, 3])
    torch.testing.assert_close(joined[:, 2], single[:, 1])
    assert class_logits(logits, [[0], [1], [2], [3]]) is logits


def test_two_halves_win_together_against_a_stronger_background() -> None:
    # Neither channel beats the background alone: 0.4 against 0.3 + 0.3.
    logits = torch.log(torch.tensor([0.4, 0.3, 0.3]))[None, :, None, None, None]
    assert logits.argmax(1).item() == 0
    assert class_logits(logits, [[0], [1, 2]]).argmax(1).item() == 1


@pytest.mark.parametrize(
    ("size", "spacing", "direction"),
    [
        ((20, 18, 16), (1.0, 1.0, 1.0), (1, 0, 0, 0, 1, 0, 0, 0, 1)),
        ((17, 40, 13), (1.3, 0.5, 1.7), OBLIQUE),
        ((15, 16, 21), (1.0, 1.0, 1.0), (0, 1, 0, 0, 0, -1, 1, 0, 0)),
        ((9, 8, 7), (2.0, 2.1, 2.2), OBLIQUE),
    ],
)
def test_result_has_the_geometry_of_the_scan_and_the_labels_of_the_structures(
    make_scan: Callable[..., Any], size: tuple[int, int, int], spacing: tuple[float, ...], direction: tuple[float, ...]
) -> None:
    image, _ = make_scan(1, size, spacing, direction)
    labels, uncertainty = thresholding().segment(image, uncertainty=True)
    assert uncertainty is not None
    for result in (labels, uncertainty):
        assert result.GetSize() == image.GetSize()
        assert result.GetSpacing() == image.GetSpacing()
        assert result.GetOrigin() == image.GetOrigin()
        assert result.GetDirection() == image.GetDirection()
    found = sitk.GetArrayFromImage(labels)
    assert set(np.unique(found)) == {0, 7}
    voxels = sitk.GetArrayFromImage(image)
    truth = (voxels - voxels.mean()) / voxels.std() > 1.0 - math.log(2) / 10
    if spacing == (1.0, 1.0, 1.0):
        assert (found == 7).sum() > 50
        assert np.array_equal(found == 7, truth)
    else:
        assert 2 * ((found == 7) & truth).sum() / ((found == 7).sum() + truth.sum()) > 0.7
    certainty = sitk.GetArrayFromImage(uncertainty)
    assert certainty.dtype == np.float32
    assert 0 <= certainty.min() < 0.05 and 0.5 < certainty.max() <= 1 + 1e-6


def test_uncertainty_is_zero_when_certain_and_one_when_all_classes_are_alike() -> None:
    probabilities = np.zeros((3, 2, 1, 1), np.float32)
    probabilities[:, 0] = [[[1.0]], [[0.0]], [[0.0]]]
    probabilities[:, 1] = 1 / 3
    entropy = normalized_entropy(probabilities)
    assert entropy[:, 0, 0] == pytest.approx([0, 1], abs=1e-4)
    assert entropy.min() >= 0 and entropy.max() <= 1 + 1e-6


@pytest.mark.parametrize("value", [1, 300, 70000])
def test_label_values_of_any_size_survive(make_scan: Callable[..., Any], value: int) -> None:
    labels, uncertainty = thresholding([Structure("hippocampus", value)]).segment(make_scan(0)[0])
    assert set(np.unique(sitk.GetArrayFromImage(labels))) == {0, value}
    assert uncertainty is None


def test_scan_smaller_than_the_window_and_larger_are_both_covered(make_scan: Callable[..., Any]) -> None:
    for size in ((6, 7, 8), (40, 20, 18)):
        image, _ = make_scan(2, size)
        array = PREPROCESSING.prepare(image).array
        probabilities = thresholding().probabilities(array)
        assert probabilities.shape == (2, *array.shape[1:])
        np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-5)
        # A network without context sees the same in every window, so the seams must not show.
        whole = class_logits(Threshold()(torch.from_numpy(array)[None]), [[0], [1, 2]]).softmax(1)[0]
        np.testing.assert_allclose(probabilities, whole.numpy(), atol=1e-5)


def test_dropout_is_off_so_that_results_repeat(bundle: Path, make_scan: Callable[..., Any]) -> None:
    base = load_base_model(bundle)
    network = base.build().train()
    segmenter = Segmenter.of_base(base, CPU, network)
    array = base.preprocessing.prepare(make_scan(0)[0]).array
    assert np.array_equal(segmenter.probabilities(array), segmenter.probabilities(array))


def test_scan_with_another_number_of_channels_is_refused(make_scan: Callable[..., Any]) -> None:
    image, _ = make_scan(0)
    with pytest.raises(InputError, match=r"scan has 2 channels, but the model takes 1"):
        thresholding().segment(sitk.Compose(image, image))


def test_too_little_memory_is_said(make_scan: Callable[..., Any]) -> None:
    class Huge(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise torch.OutOfMemoryError("Tried to allocate 200 GiB")

    segmenter = Segmenter(Huge(), ("background", "a"), [Structure("a", 1)], PREPROCESSING, WINDOWS, CPU)
    with pytest.raises(MemoryExhausted) as caught:
        segmenter.segment(make_scan(0)[0])
    assert caught.value.exit_code == 3 and caught.value.remedy


class Counting(nn.Module):
    """Smooths, adds a constant, and remembers the windows that it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.smooth = nn.Conv3d(1, 2, 5, padding=2)
        self.windows: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.windows += list(x.clone())
        result: Tensor = self.smooth(x)
        return result


def test_windows_of_zeros_are_computed_once_and_change_nothing() -> None:
    torch.manual_seed(0)
    network, structures = Counting().eval(), [Structure("hippocampus", 7)]
    segmenter = Segmenter(network, ("background", "hippocampus"), structures, PREPROCESSING, WINDOWS, CPU)
    array = np.zeros((1, 44, 40, 60), np.float32)
    array[:, 25:40, 5:30, 4:20] = np.random.default_rng(0).normal(0, 3, (15, 25, 16))
    fractions: list[float] = []
    probabilities = segmenter.probabilities(array, fractions.append)
    with_nothing = [window for window in network.windows if not window.any()]
    network.windows = []
    with torch.inference_mode():
        expected = sliding_window_inference(
            torch.from_numpy(array)[None], (16, 16, 16), 1, lambda x: network(x).softmax(1), 0.5, "gaussian"
        )
    assert np.abs(probabilities - expected[0].numpy()).max() < 1e-5
    assert len(with_nothing) < sum(not window.any() for window in network.windows) / 2
    assert fractions[0] == 0 and fractions == sorted(fractions) and 0.9 < fractions[-1] < 1
