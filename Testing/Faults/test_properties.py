"""Properties of geometry and labels that hold for any scan, against independent computations with SimpleITK."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tcurlora.cases.case import Case
from tcurlora.cases.labels import read_case_labels
from tcurlora.errors import InputError
from tcurlora.imaging.grids import (
    geometry_difference,
    label_array,
    labels_from_grid,
    on_grid_of,
    to_array,
    to_model_grid,
)
from tcurlora.imaging.images import read_image, write_image
from tcurlora.imaging.segmentations import read_segmentation, write_segmentation
from tcurlora.imaging.structure_matching import match_structures
from tcurlora.imaging.structures import BACKGROUND, Structure, normalized
from tcurlora.method.channels import channel_groups, plan_channels

QUIET = settings(
    max_examples=40, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


@st.composite
def grids(draw: Any, largest: int = 12) -> sitk.Image:
    """An empty scan of any size, spacing, place and orientation: axes permuted, mirrored and turned."""
    size = [draw(st.integers(2, largest)) for _ in range(3)]
    spacing = [draw(st.floats(0.3, 4.0)) for _ in range(3)]
    origin = [draw(st.floats(-300, 300)) for _ in range(3)]
    axes = np.eye(3)[list(draw(st.permutations(range(3))))] * [draw(st.sampled_from((-1, 1))) for _ in range(3)]
    turn = sitk.Euler3DTransform()
    turn.SetRotation(*(draw(st.sampled_from((0.0, 0.0, 0.1, -0.3, 0.7))) for _ in range(3)))
    image = sitk.Image(size, sitk.sitkFloat32)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    image.SetDirection((np.array(turn.GetMatrix()).reshape(3, 3) @ axes).ravel().tolist())
    return image


def filled(image: sitk.Image, seed: int, labels: int = 0) -> sitk.Image:
    random = np.random.default_rng(seed)
    shape = image.GetSize()[::-1]
    voxels = random.integers(0, labels + 1, shape).astype(np.uint16) if labels else random.normal(size=shape)
    made = sitk.GetImageFromArray(voxels if labels else voxels.astype(np.float32))
    made.CopyInformation(image)
    return made


@QUIET
@given(grids(), st.integers(0, 99))
def test_labels_come_back_to_the_voxels_that_they_belong_to(grid: sitk.Image, seed: int) -> None:
    labels = filled(grid, seed, labels=3)
    oriented = to_model_grid(labels, None, label=True)
    shares = np.stack([label_array(oriented) == value for value in range(4)]).astype(np.float32)
    back = labels_from_grid(shares, oriented, labels)
    assert np.array_equal(sitk.GetArrayFromImage(back), sitk.GetArrayFromImage(labels))
    assert geometry_difference(back, labels) is None


@QUIET
@given(grids(), st.tuples(*[st.floats(0.5, 3.0)] * 3), st.integers(0, 99))
def test_votes_between_voxels_are_those_of_an_interpolation_by_itk(
    grid: sitk.Image, spacing: tuple[float, float, float], seed: int
) -> None:
    scan = filled(grid, seed)
    model = to_model_grid(scan, spacing)
    random = np.random.default_rng(seed)
    votes = random.random((3, *model.GetSize())).astype(np.float32)
    ours = sitk.GetArrayFromImage(labels_from_grid(votes, model, scan))
    theirs = []
    for vote in votes:
        image = sitk.GetImageFromArray(vote.transpose(2, 1, 0))
        image.CopyInformation(model)
        theirs.append(sitk.GetArrayFromImage(sitk.Resample(image, scan, sitk.Transform(), sitk.sitkLinear, 0.0)))
    stacked = np.stack(theirs)
    ordered = np.sort(stacked, 0)
    clear = ordered[-1] - ordered[-2] > 1e-4  # a tie may fall either way
    assert np.array_equal(ours[clear], stacked.argmax(0)[clear])


@QUIET
@given(grids(), st.tuples(*[st.floats(0.5, 3.0)] * 3))
def test_left_stays_left(grid: sitk.Image, spacing: tuple[float, float, float]) -> None:
    """Each voxel of the scan holds its own place, so that each of the model's must read the place where it is."""
    indices = np.stack(np.meshgrid(*(np.arange(n) for n in grid.GetSize()), indexing="ij"), -1).reshape(-1, 3)
    direction = np.array(grid.GetDirection()).reshape(3, 3)
    for axis in range(3):
        places = (indices * np.array(grid.GetSpacing())) @ direction.T + np.array(grid.GetOrigin())
        scan = sitk.GetImageFromArray(places[:, axis].reshape(grid.GetSize()).transpose(2, 1, 0).astype(np.float64))
        scan.CopyInformation(grid)
        model = to_model_grid(scan, None)
        values = to_array(model)[0]
        i, j, k = (int(n) for n in np.array(values.shape) - 1)
        for index in ((0, 0, 0), (i, 0, 0), (0, j, 0), (0, 0, k), (i, j, k)):
            assert abs(values[index] - model.TransformIndexToPhysicalPoint(index)[axis]) < 1e-3
    assert model.GetDirection()[0] < 0  # the first axis goes to the patient's right, in LPS
    resampled = to_model_grid(scan, spacing)
    values, ends = to_array(resampled)[0], [int(n) for n in resampled.GetSize()]
    middle = tuple(n // 2 for n in ends)
    place = resampled.TransformIndexToPhysicalPoint(middle)[2]
    # Smoothing towards the rim may move a value by a voxel of the scan, but never to the other side.
    assert abs(values[middle] - place) <= 2 * max(grid.GetSpacing()) + 2 * max(spacing)


@QUIET
@given(grids(), st.data())
def test_cropped_labels_return_to_their_place(grid: sitk.Image, data: Any) -> None:
    labels = filled(grid, 0, labels=2)
    starts = [data.draw(st.integers(0, n - 1)) for n in grid.GetSize()]
    ends = [data.draw(st.integers(start + 1, n)) for start, n in zip(starts, grid.GetSize(), strict=True)]
    box = tuple(slice(a, b) for a, b in zip(starts, ends, strict=True))
    back = on_grid_of(labels[box], grid)
    assert back is not None and geometry_difference(back, grid) is None
    expected = np.zeros(grid.GetSize()[::-1], np.uint16)
    expected[box[::-1]] = sitk.GetArrayFromImage(labels)[box[::-1]]
    assert np.array_equal(sitk.GetArrayFromImage(back), expected)


@settings(QUIET, max_examples=25)
@given(grids(8), st.sampled_from([".nii.gz", ".nrrd", ".mha", ".seg.nrrd"]), st.integers(0, 99))
def test_files_keep_voxels_and_place(grid: sitk.Image, ending: str, seed: int) -> None:
    scan = filled(grid, seed)
    with tempfile.TemporaryDirectory() as folder:
        write_image(scan, Path(folder) / f"a{ending}")
        again = read_image(Path(folder) / f"a{ending}")
    assert np.array_equal(sitk.GetArrayFromImage(again), sitk.GetArrayFromImage(scan))
    assert geometry_difference(again, scan) is None


# Labels

WORDS = ("left", "right", "anterior", "posterior", "hippocampus", "amygdala", "Größe", "海馬", "CA1")
NAMES = st.lists(st.sampled_from(WORDS), min_size=1, max_size=3, unique=True).map("_".join)
STRUCTURES = st.lists(
    st.tuples(NAMES, st.one_of(st.integers(1, 9), st.integers(250, 70_000))), min_size=1, max_size=5
).map(lambda pairs: [Structure(name, value) for name, value in pairs])


def are_distinct(structures: list[Structure]) -> bool:
    names = {normalized(s.name) for s in structures}
    return len(names) == len(structures) and len({s.value for s in structures}) == len(structures)


@settings(QUIET, max_examples=50)
@given(STRUCTURES, STRUCTURES, st.sampled_from([".seg.nrrd", ".nii.gz"]), st.randoms(use_true_random=False))
def test_labels_are_mapped_by_name_or_refused(
    own: list[Structure], wanted: list[Structure], ending: str, random: Any
) -> None:
    """Skipped, reordered, renumbered, doubled and large labels of one file, read as another list of structures."""
    assume(are_distinct(wanted))
    array = np.zeros((3, 4, 6), np.int32)
    for place, structure in enumerate(own):
        array[place % 3, place // 3 :: 2, :] = structure.value
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a{ending}"
        if not are_distinct(own):
            with pytest.raises(InputError):
                write_segmentation(sitk.GetImageFromArray(array), own, path)
            return
        write_segmentation(sitk.GetImageFromArray(array), own, path)
        labels, found = read_segmentation(path)
        assert {(normalized(s.name), s.value) for s in found} == {(normalized(s.name), s.value) for s in own}
        assert np.array_equal(sitk.GetArrayFromImage(labels), array)
        try:
            result = sitk.GetArrayFromImage(read_case_labels(Case("a", path, path, "a"), wanted))
        except InputError as error:
            assert error.code in ("unknown_label", "duplicate_structure")
            return
    for structure in own:
        same = next((s for s in wanted if normalized(s.name) == normalized(structure.name)), None)
        if same is not None and (array == structure.value).any():
            assert (result[array == structure.value] == same.value).all()
    assert not result[array == 0].any()


@QUIET
@given(st.lists(NAMES, min_size=1, max_size=4, unique_by=normalized), st.lists(NAMES, max_size=4, unique_by=normalized))
def test_channels_serve_every_structure_and_no_other(site: list[str], base: list[str]) -> None:
    matched = match_structures(site, base)
    assert list(matched) == site
    channels = plan_channels(matched, [BACKGROUND, *base])
    names = [channel.name for channel in channels]
    groups = channel_groups(names, site)
    assert sorted(index for group in groups for index in group) == list(range(len(channels)))
    for name, group in zip(site, groups[1:], strict=True):
        sources = {channels[index].source for index in group}
        assert sources == ({1 + base.index(source) for source in matched[name]} or {None})
        same = [b for b in base if normalized(b) == normalized(name)]
        assert not same or matched[name] == same
    used = {channel.source for channel in channels}
    assert used >= set(range(1 + len(base)))  # no channel of the base is lost
