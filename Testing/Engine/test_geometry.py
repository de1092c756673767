"""Grids: every voxel is where it was, whatever the orientation, spacing and crop of a scan.

The reference is computed here from origin, spacing and direction with numpy alone.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from tcurlora.errors import InputError
from tcurlora.imaging.grids import (
    geometry_difference,
    label_array,
    labels_from_grid,
    map_from_grid,
    on_grid_of,
    to_array,
    to_model_grid,
)
from tcurlora.imaging.placing import on_scan

SEEDS = range(12)


def rotation(rng: np.random.Generator, degrees: float) -> np.ndarray:
    """Return a rotation by up to so many degrees about a random axis."""
    axis = rng.normal(size=3)
    x, y, z = axis / np.linalg.norm(axis)
    angle = np.radians(rng.uniform(-degrees, degrees))
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def random_direction(rng: np.random.Generator, oblique: bool = True) -> np.ndarray:
    """Return axes in any of the 48 permutations and flips, tilted by up to 25 degrees."""
    axes = np.eye(3)[:, rng.permutation(3)] * rng.choice([-1.0, 1.0], 3)
    return rotation(rng, 25) @ axes if oblique else axes


def make(array: np.ndarray, rng: np.random.Generator, spacing: tuple[float, ...] | None = None) -> sitk.Image:
    """Make an image from an (i, j, k) array with random geometry."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
    image.SetSpacing(spacing or tuple(rng.uniform(0.6, 2.5, 3)))
    image.SetOrigin(tuple(rng.uniform(-100, 100, 3)))
    image.SetDirection(tuple(random_direction(rng).ravel()))
    return image


def places(image: sitk.Image) -> np.ndarray:
    """Return the place in mm (left, posterior, superior) of each voxel, as an (i, j, k, 3) array."""
    indices = np.stack(np.meshgrid(*(np.arange(n) for n in image.GetSize()), indexing="ij"), -1)
    matrix = np.array(image.GetDirection()).reshape(3, 3) @ np.diag(image.GetSpacing())
    return indices @ matrix.T + image.GetOrigin()


def indices_in(image: sitk.Image, points: np.ndarray) -> np.ndarray:
    matrix = np.array(image.GetDirection()).reshape(3, 3) @ np.diag(image.GetSpacing())
    return (points - image.GetOrigin()) @ np.linalg.inv(matrix).T


def same_geometry(a: sitk.Image, b: sitk.Image) -> bool:
    return (a.GetSize(), a.GetOrigin(), a.GetSpacing(), a.GetDirection()) == (
        b.GetSize(),
        b.GetOrigin(),
        b.GetSpacing(),
        b.GetDirection(),
    )


def one_hot(labels: np.ndarray, classes: int) -> np.ndarray:
    return np.stack([labels == c for c in range(classes)]).astype(np.float32)


@pytest.mark.parametrize("seed", SEEDS)
def test_model_grid_points_right_anterior_superior_and_keeps_every_voxel(seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = make(rng.normal(size=(5, 6, 7)).astype(np.float32), rng)
    grid = to_model_grid(image, None)
    axes = np.array(grid.GetDirection()).reshape(3, 3)
    assert (np.argmax(np.abs(axes), axis=0) == [0, 1, 2]).all()
    assert axes[0, 0] < 0 and axes[1, 1] < 0 and axes[2, 2] > 0
    array = to_array(grid)
    assert array.dtype == np.float32 and array.flags["C_CONTIGUOUS"]
    old = np.rint(indices_in(image, places(grid))).astype(int)
    assert np.allclose(indices_in(image, places(grid)), old, atol=1e-6)
    original = sitk.GetArrayFromImage(image).transpose(2, 1, 0)
    assert np.array_equal(array[0], original[old[..., 0], old[..., 1], old[..., 2]])


@pytest.mark.parametrize("seed", SEEDS)
def test_labels_return_to_their_voxels_bit_for_bit(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 4, (6, 7, 8)).astype(np.int16)
    scan = make(truth, rng)
    grid = to_model_grid(scan, None, label=True)
    back = labels_from_grid(one_hot(label_array(grid), 4), grid, scan)
    assert np.array_equal(label_array(back), truth)
    assert back.GetPixelID() == sitk.sitkUInt16
    assert same_geometry(back, scan)


def test_argmax_is_that_of_numpy_where_voxels_are_the_same() -> None:
    rng = np.random.default_rng(0)
    scan = make(np.zeros((6, 7, 8), np.float32), rng)
    grid = to_model_grid(scan, None)
    scores = rng.choice(np.float32([0.2, 0.3, 0.30001, 0.5]), (5, *grid.GetSize()))
    # Headers are rounded when they are written: a grid off by less than the tolerance is still the same.
    rounded = sitk.Image(scan)
    rounded.SetOrigin(tuple(np.array(scan.GetOrigin()) + 3e-4))
    for target in (scan, rounded):
        back = to_model_grid(labels_from_grid(scores, grid, target), None, label=True)
        assert np.array_equal(label_array(back), np.argmax(scores, axis=0))


@pytest.mark.parametrize("seed", SEEDS)
def test_left_stays_left(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scan = make(np.zeros((20, 22, 24), np.float32), rng)
    middle = places(scan).reshape(-1, 3).mean(axis=0)
    left = places(scan)[..., 0] > middle[0]
    grid = to_model_grid(scan, (1.3, 1.1, 1.7))
    on_grid = places(grid)[..., 0] > middle[0]
    right_half = label_array(grid).shape[0] // 2
    assert on_grid[:right_half].mean() > on_grid[right_half:].mean(), "x grows to the right"
    back = label_array(labels_from_grid(one_hot(on_grid, 2), grid, scan))
    clear = np.abs(places(scan)[..., 0] - middle[0]) > 2
    # Corners of an oblique scan can lie outside the grid by a part of a voxel; none may change sides.
    assert (back[clear & ~left] == 0).all()
    assert (back[clear & left] == 1).mean() > 0.98


@pytest.mark.parametrize("seed", SEEDS)
def test_resampled_intensities_are_those_of_the_place(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scan = make(np.zeros((14, 15, 16), np.float32), rng, (1.4, 1.0, 1.2))
    slope = rng.normal(size=3)
    ramp = (places(scan) @ slope).astype(np.float32)
    values = sitk.GetImageFromArray(np.ascontiguousarray(ramp.transpose(2, 1, 0)))
    values.CopyInformation(scan)
    grid = to_model_grid(values, (1.0, 1.0, 1.0))
    assert grid.GetSpacing() == pytest.approx((1, 1, 1))
    extent = np.array(to_model_grid(scan, None).GetSize()) * to_model_grid(scan, None).GetSpacing()
    assert np.abs(np.array(grid.GetSize()) - extent).max() <= 0.5
    assert places(grid).reshape(-1, 3).mean(axis=0) == pytest.approx(places(scan).reshape(-1, 3).mean(axis=0))
    inner = (slice(2, -2),) * 3
    assert np.allclose(to_array(grid)[0][inner], (places(grid) @ slope)[inner], atol=1e-3)


@pytest.mark.parametrize("seed", SEEDS)
def test_labels_survive_the_way_there_and_back(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scan = make(np.zeros((30, 30, 30), np.int16), rng, tuple(rng.uniform(0.8, 1.4, 3)))
    distance = np.linalg.norm(places(scan) - places(scan).reshape(-1, 3).mean(axis=0) - rng.uniform(-3, 3, 3), axis=-1)
    truth = np.digitize(-distance, [-9, -5]).astype(np.int16)
    labels = sitk.GetImageFromArray(np.ascontiguousarray(truth.transpose(2, 1, 0)))
    labels.CopyInformation(scan)
    grid = to_model_grid(labels, (1.0, 1.0, 1.0), label=True)
    assert set(np.unique(label_array(grid))) == {0, 1, 2}
    back = labels_from_grid(one_hot(label_array(grid), 3), grid, scan)
    assert same_geometry(back, scan)
    # Only voxels within one voxel of a border may change.
    borders = np.minimum(np.abs(distance - 9), np.abs(distance - 5))
    assert np.array_equal(label_array(back)[borders > 1.5], truth[borders > 1.5])
    assert (label_array(back) == truth).mean() > 0.95


@pytest.mark.parametrize("seed", SEEDS)
def test_interpolated_votes_agree_with_an_independent_computation(seed: int) -> None:
    rng = np.random.default_rng(seed)
    target = make(np.zeros((9, 10, 11), np.float32), rng, (1.0, 1.3, 0.9))
    grid = to_model_grid(target, (1.1, 1.2, 1.0))
    scores = rng.uniform(size=(4, *grid.GetSize())).astype(np.float32)
    back = label_array(labels_from_grid(scores, grid, target))
    index = indices_in(grid, places(target))
    inside = ((index >= 0) & (index <= np.array(grid.GetSize()) - 1)).all(axis=-1)
    low = np.floor(index[inside]).astype(int)
    part = index[inside] - low
    votes = np.zeros((4, len(low)))
    for corner in itertools.product((0, 1), repeat=3):
        at = np.minimum(low + corner, np.array(grid.GetSize()) - 1)
        weight = np.prod(np.where(np.array(corner) == 1, part, 1 - part), axis=1)
        votes += weight * scores[:, at[:, 0], at[:, 1], at[:, 2]]
    ordered = np.sort(votes, axis=0)
    clear = ordered[-1] - ordered[-2] > 1e-4
    assert inside.mean() > 0.4 and clear.mean() > 0.9
    assert np.array_equal(back[inside][clear], votes.argmax(axis=0)[clear])


@pytest.mark.parametrize("spacing", [None, (1.3, 1.1, 0.9)])
def test_outside_the_grid_is_background(spacing: tuple[float, float, float] | None) -> None:
    rng = np.random.default_rng(3)
    scan = make(np.zeros((16, 16, 16), np.float32), rng, (1.0, 1.0, 1.0))
    crop = scan[4:12, 4:12, 4:12]
    grid = to_model_grid(crop, spacing)
    # Also where background never wins and scores are negative, as logits are.
    scores = np.stack([np.full(grid.GetSize(), -9.0), np.full(grid.GetSize(), -2.0)]).astype(np.float32)
    back = label_array(labels_from_grid(scores, grid, scan))
    assert same_geometry(labels_from_grid(scores, grid, scan), scan)
    assert back[5:11, 5:11, 5:11].min() == 1
    outside = np.ones(back.shape, bool)
    outside[3:13, 3:13, 3:13] = False
    assert back[outside].max() == 0
    values = np.full(grid.GetSize(), 0.7, np.float32)
    mapped = map_from_grid(values, grid, scan, outside=-1.0)
    assert mapped.GetPixelID() == sitk.sitkFloat32 and same_geometry(mapped, scan)
    assert np.allclose(to_array(mapped)[0][5:11, 5:11, 5:11], 0.7)
    assert (to_array(mapped)[0][outside] == -1).all()


def test_map_returns_bit_for_bit_where_voxels_are_the_same() -> None:
    rng = np.random.default_rng(4)
    scan = make(rng.normal(size=(5, 6, 7)).astype(np.float32), rng)
    grid = to_model_grid(scan, None)
    back = map_from_grid(to_array(grid)[0], grid, scan)
    assert np.array_equal(sitk.GetArrayFromImage(back), sitk.GetArrayFromImage(scan))


def test_shape_that_is_not_the_grids_is_refused() -> None:
    grid = sitk.Image(4, 5, 6, sitk.sitkFloat32)
    with pytest.raises(InputError, match="6x5x4"):
        labels_from_grid(np.zeros((2, 6, 5, 4), np.float32), grid, grid)
    with pytest.raises(InputError):
        map_from_grid(np.zeros((6, 5, 4), np.float32), grid, grid)


def test_equal_spacing_is_not_resampled() -> None:
    rng = np.random.default_rng(5)
    image = make(rng.normal(size=(5, 6, 7)).astype(np.float32), rng, (1.0005, 0.9995, 1.0))
    same = to_model_grid(image, (1.0, 1.0, 1.0))
    assert np.array_equal(to_array(same), to_array(to_model_grid(image, None)))
    assert to_model_grid(image, (1.0, 1.0, 1.1)).GetSpacing() == pytest.approx((1.0, 1.0, 1.1))


def test_channels_go_the_same_way() -> None:
    rng = np.random.default_rng(6)
    first = make(rng.normal(size=(8, 9, 10)).astype(np.float32), rng, (1.0, 1.2, 0.8))
    both = sitk.Compose(first, first * 2)
    for spacing in (None, (1.1, 1.1, 1.1), (2.5, 1.1, 1.1)):
        array = to_array(to_model_grid(both, spacing))
        assert array.shape[0] == 2
        assert np.allclose(array[1], 2 * array[0], atol=1e-5)
        assert np.allclose(array[0], to_array(to_model_grid(first, spacing))[0], atol=1e-5)


def test_coarser_grid_is_not_aliased() -> None:
    stripes = np.zeros((40, 40, 40), np.float32)
    stripes[::2] = 1
    image = sitk.GetImageFromArray(np.ascontiguousarray(stripes.transpose(2, 1, 0)))
    inner = to_array(to_model_grid(image, (3.0, 3.0, 3.0)))[0][2:-2, 2:-2, 2:-2]
    assert inner.min() > 0.4 and inner.max() < 0.6


@pytest.mark.parametrize("seed", range(4))
def test_thin_structures_do_not_vanish(seed: int) -> None:
    rng = np.random.default_rng(seed)
    array = np.zeros((20, 20, 20), np.int16)
    array[3:12, 3:12, 3:12] = 2
    array[16, 3, 9] = 5
    array[5:15, 16, 16] = 300
    labels = make(array, rng, (1.0, 1.0, 1.0))
    coarse = to_model_grid(labels, (2.7, 2.7, 2.7), label=True)
    assert set(np.unique(label_array(coarse))) == {0, 2, 5, 300}
    assert coarse.GetPixelID() == labels.GetPixelID()
    place = indices_in(labels, places(coarse)[label_array(coarse) == 5])
    assert np.abs(place - (16, 3, 9)).max() < 2.7
    fine = to_model_grid(labels, (0.5, 0.5, 0.5), label=True)
    assert set(np.unique(label_array(fine))) == {0, 2, 5, 300}
    assert (label_array(fine) == 2).sum() / 8 == pytest.approx(9**3, rel=0.05)


@pytest.mark.parametrize("seed", range(6))
def test_resampled_labels_are_those_with_the_largest_share(seed: int) -> None:
    rng = np.random.default_rng(seed)
    array = rng.choice([0, 3, 9], (19, 20, 21)).astype(np.int16)
    if seed > 2:
        array[:6], array[14:], array[:, :6], array[:, 14:] = 0, 0, 0, 0
    labels = make(array, rng, (1.0, 1.2, 0.9))
    spacing = (0.8, 0.7, 1.0) if seed % 2 else (3.1, 2.9, 3.0)
    shares = []
    for value in (0, 3, 9):
        share = sitk.Cast(labels == value, sitk.sitkFloat32)
        shares.append(to_array(to_model_grid(share, spacing))[0])
    ordered = np.sort(shares, axis=0)
    clear = ordered[-1] - ordered[-2] > 1e-4
    expected = np.array([0, 3, 9])[np.argmax(shares, axis=0)]
    assert clear.mean() > 0.8 and set(np.unique(expected)) == {0, 3, 9}
    assert np.array_equal(label_array(to_model_grid(labels, spacing, label=True))[clear], expected[clear])


@pytest.mark.parametrize("value", [0, 700])
def test_label_map_of_one_value_keeps_it(value: int) -> None:
    labels = sitk.Image(6, 6, 6, sitk.sitkUInt16) + value
    assert (label_array(to_model_grid(labels, (0.7, 2.0, 1.0), label=True)) == value).all()


def test_single_slice_can_be_resampled() -> None:
    image = sitk.Image(8, 8, 1, sitk.sitkFloat32) + 3
    image.SetSpacing((1, 1, 5))
    assert np.allclose(to_array(to_model_grid(image, (1.0, 1.0, 1.0)))[0], 3)
    assert to_model_grid(image, (4.0, 4.0, 20.0)).GetSize() == (2, 2, 1)


def test_difference_is_said_in_words() -> None:
    rng = np.random.default_rng(7)
    a = make(np.zeros((5, 6, 7), np.float32), rng, (1.0, 1.0, 1.0))
    assert geometry_difference(a, sitk.Cast(a, sitk.sitkUInt8)) is None
    b = sitk.Image(a)
    b.SetOrigin(tuple(np.add(a.GetOrigin(), (0.0005, 0, 0))))
    assert geometry_difference(a, b) is None
    b.SetOrigin(tuple(np.add(a.GetOrigin(), (3.2, 0, 0))))
    assert geometry_difference(a, b) == "origin differs by 3.2 mm"
    assert geometry_difference(a, a[:, :, 1:]) == "size 5x6x7 against 5x6x6"
    c = sitk.Image(a)
    c.SetSpacing((1.0, 1.0, 1.2))
    assert geometry_difference(a, c) == "spacing 1x1x1 mm against 1x1x1.2 mm"
    d = sitk.Image(a)
    turn = np.array([[np.cos(0.1), -np.sin(0.1), 0], [np.sin(0.1), np.cos(0.1), 0], [0, 0, 1]])
    d.SetDirection(tuple((np.array(a.GetDirection()).reshape(3, 3) @ turn).ravel()))
    assert geometry_difference(a, d) == "orientation differs by 5.73 degrees"
    flipped = sitk.Flip(a, [True, False, False])
    assert "orientation differs by 180 degrees" in str(geometry_difference(a, flipped))


def test_difference_is_measured_in_small_voxels() -> None:
    a = sitk.Image(9, 9, 9, sitk.sitkFloat32)
    a.SetSpacing((0.05, 0.05, 0.05))
    b = sitk.Image(a)
    b.SetOrigin((0.00005, 0, 0))
    assert geometry_difference(a, b) is None
    b.SetOrigin((0.0005, 0, 0))
    assert geometry_difference(a, b) is not None


def test_cropped_labels_return_to_the_scan() -> None:
    rng = np.random.default_rng(8)
    array = np.zeros((12, 12, 12), np.uint16)
    array[4:6, 5:8, 3:9] = 2
    labels = make(array, rng)
    placed = on_grid_of(labels[3:8, 4:9, 2:11], labels)
    assert placed is not None and same_geometry(placed, labels)
    assert np.array_equal(label_array(placed), array)
    assert on_grid_of(labels, labels[3:5, :, :]) is None, "a labeled voxel would be lost"
    shifted = sitk.Image(labels[3:8, 4:9, 2:11])
    shifted.SetOrigin(labels.TransformContinuousIndexToPhysicalPoint((3.5, 4, 2)))
    assert on_grid_of(shifted, labels) is None


def test_labels_stored_in_another_order_are_laid_on_their_scan_without_loss(tmp_path: Path) -> None:
    """In all 48 orders of storage, and with geometry that is off by less than a hundredth of a voxel."""
    rng = np.random.default_rng(3)
    image = make(rng.normal(size=(5, 6, 7)), rng, (1.0, 1.2, 2.0))
    array = rng.integers(0, 5, (5, 6, 7)).astype(np.uint8)
    array[0], array[-1], array[:, 0], array[:, -1] = 0, 0, 0, 0
    labels = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
    labels.CopyInformation(image)
    for axes in itertools.permutations(range(3)):
        for flips in itertools.product((False, True), repeat=3):
            stored = sitk.Flip(sitk.PermuteAxes(labels, axes), flips, False)
            stored.SetOrigin([x + 0.005 for x in stored.GetOrigin()])
            placed = on_scan(stored, image, tmp_path)
            assert placed is not None
            assert placed.GetOrigin() == image.GetOrigin()
            assert placed.GetDirection() == image.GetDirection()
            assert np.array_equal(label_array(placed), array)
            stored.SetOrigin([x + 0.3 for x in stored.GetOrigin()])
            assert on_scan(stored, image, tmp_path) is None
    shifted = sitk.Image(labels)
    shifted.SetOrigin(image.TransformIndexToPhysicalPoint((1, 0, 0)))
    assert on_scan(shifted, image, tmp_path) is None
