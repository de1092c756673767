"""Patches: drawn as MONAI draws them, from the listed voxels alone, and reading no more of a scan than they show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.transforms import RandCropByPosNegLabel

from tcurlora.cases import cached_case
from tcurlora.cases.cached_case import CachedCase, list_voxels, save_case
from tcurlora.training.patches import CutPatch, middle_patch, patch_transform

ROI = (16, 16, 16)


def saved(folder: Path, label: np.ndarray, image: np.ndarray | None = None) -> CachedCase:
    values = np.random.default_rng(0).random((1, *label.shape)) if image is None else image
    return save_case("case", values.astype(np.float32), label.astype(np.uint8), folder, "key")


def ball(shape: tuple[int, ...], center: tuple[int, ...], radius: float) -> np.ndarray:
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"))
    inside: np.ndarray = ((grid - np.array(center)[:, None, None, None]) ** 2).sum(0) <= radius**2
    return inside


@pytest.mark.parametrize("seed", range(6))
def test_patch_is_the_one_that_monai_cuts(tmp_path: Path, seed: int) -> None:
    case = saved(tmp_path, ball((30, 26, 40), (8, 12, 33), 4))
    image, label = (torch.from_numpy(np.array(part)) for part in case.load())
    label = label.long()
    monais = RandCropByPosNegLabel(ROI, label[None], pos=3, neg=1, num_samples=1).set_random_state(seed)
    patch = CutPatch(ROI).set_random_state(seed)(case)
    assert torch.equal(patch["image"], monais(image, label[None])[0].as_tensor())


def test_shares_of_foreground_and_background_are_those_of_monai(tmp_path: Path) -> None:
    # One voxel of structure in a corner: only a patch that is drawn around it lies there.
    label = np.zeros((64, 64, 64), bool)
    label[2, 2, 2] = True
    transform = CutPatch(ROI)
    case, hits = saved(tmp_path, label), 0
    for seed in range(400):
        hits += bool(transform.set_random_state(seed)(case)["label"].any())
    assert 0.70 < hits / 400 < 0.83


@pytest.mark.parametrize("value", [0, 1])
def test_case_of_one_class_gives_patches_without_a_warning(
    tmp_path: Path, value: int, recwarn: pytest.WarningsRecorder
) -> None:
    case = saved(tmp_path, np.full((20, 20, 20), value))
    assert set(CutPatch(ROI).set_random_state(0)(case)["label"].flatten().tolist()) == {value}
    assert middle_patch(case, ROI)["label"].shape == (1, 1, *ROI)
    assert not [w for w in recwarn if issubclass(w.category, UserWarning)]


def test_listed_voxels_are_all_or_an_even_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached_case, "_SLAB_VOXELS", 1000)  # several slabs
    label = np.random.default_rng(0).integers(0, 3, (20, 21, 22)).astype(np.uint8)
    foreground, background = list_voxels(label)
    assert np.array_equal(foreground, np.flatnonzero(label)) and np.array_equal(background, np.flatnonzero(label == 0))
    some, others = list_voxels(label, most=2000)
    assert len(np.unique(some)) == len(np.unique(others)) == 2000
    assert label.flat[some].all() and not label.flat[others].any()
    # An even sample has its quartiles where those of all voxels are.
    assert np.allclose(np.quantile(some, (0.25, 0.5, 0.75)) / label.size, (0.25, 0.5, 0.75), atol=0.04)
    assert abs((label.flat[some] == 1).mean() - 0.5) < 0.05
    assert all(np.array_equal(a, b) for a, b in zip((some, others), list_voxels(label, most=2000), strict=True))


def test_only_the_patch_is_read_from_a_large_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts what is copied out of the mapped files, whatever the size of the scan."""
    copied = []
    original = np.array

    def count(values: np.ndarray, *args: object, **named: object) -> np.ndarray:
        result: np.ndarray = original(values, *args, **named)  # type: ignore[call-overload]
        if isinstance(values, np.memmap):
            copied.append(result.size)
        return result

    case = saved(tmp_path, ball((120, 110, 100), (60, 50, 40), 10))
    monkeypatch.setattr("tcurlora.training.patches.np.array", count)
    patch_transform(ROI).set_random_state(0)(case)
    assert copied == [16**3, 16**3]


@pytest.mark.parametrize("shape", [(40, 9, 30), (9, 9, 9)])
def test_scan_that_is_smaller_than_the_patch_is_taken_whole(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    label = np.zeros(shape, bool)
    label[-1, 4, 3] = True
    case = saved(tmp_path, label)
    for seed in range(5):
        patch = patch_transform(ROI).set_random_state(seed)(case)
        assert patch["image"].shape == patch["label"].shape == (1, *ROI)
    middle = middle_patch(case, ROI)
    assert middle["image"].shape == (1, 1, *ROI) and int(middle["label"].sum()) == 1


def test_middle_patch_lies_around_all_structures(tmp_path: Path) -> None:
    label = ball((50, 50, 50), (30, 20, 44), 3).astype(np.uint8) * 2
    label[24, 20, 44] = 1
    patch = middle_patch(saved(tmp_path, label), ROI)
    places = torch.nonzero(patch["label"][0, 0])
    middle = (places.min(0).values + places.max(0).values) / 2
    # The scan ends 5 voxels behind the middle of the structures along the last axis.
    assert middle[:2].tolist() == pytest.approx([8, 8], abs=1) and middle[2] == 10


def test_augmentation_keeps_left_left_and_varies_the_rest(tmp_path: Path) -> None:
    label = np.zeros((24, 24, 24), np.uint8)
    # Four marks that a mirror on any axis, or a swap of axes, would put out of order.
    for value, corner in ((1, (6, 12, 12)), (2, (17, 12, 12)), (3, (12, 6, 12)), (4, (12, 12, 6))):
        label[tuple(slice(c - 1, c + 2) for c in corner)] = value
    case, transform = saved(tmp_path, label, label[None] * 10.0), patch_transform((24, 24, 24))
    seen = []
    for seed in range(40):
        patch = transform.set_random_state(seed)(case)
        assert patch["image"].shape == patch["label"].shape == (1, 24, 24, 24)
        assert set(patch["label"].unique().tolist()) <= {0, 1, 2, 3, 4}
        one, two, three, four = (torch.nonzero(patch["label"][0] == v).float().mean(0) for v in (1, 2, 3, 4))
        assert one[0] < two[0] - 5 and three[1] < two[1] - 2 and four[2] < two[2] - 2, seed
        seen.append(patch["image"])
    assert len({tuple(image.flatten().tolist()) for image in seen}) > 30  # each change has a chance of not happening


def test_augmented_label_follows_the_image(tmp_path: Path) -> None:
    label = np.zeros((20, 20, 20), np.uint8)
    label[6:14, 7:13, 5:12] = 1
    case, transform = saved(tmp_path, label, label[None] * 100.0), patch_transform(ROI)
    for seed in range(10):
        patch = transform.set_random_state(seed)(case)
        bright = patch["image"] > patch["image"].max() / 2
        assert (bright == (patch["label"] == 1)).float().mean() > 0.97
