"""Regions, which may overlap: decided one by one, kept in layers, written, read and scored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from torch import Tensor, nn

from tcurlora.errors import InputError
from tcurlora.evaluation.folders import evaluate_folders
from tcurlora.evaluation.scores import score_case
from tcurlora.imaging.grids import label_array
from tcurlora.imaging.label_layers import flattened, has_overlaps, in_layers, layers_of, mask_of
from tcurlora.imaging.segmentations import read_segmentation, write_segmentation
from tcurlora.imaging.structures import Structure
from tcurlora.inference.scans import SegmentRequest, run_segment
from tcurlora.inference.segmenter import Segmenter
from tcurlora.inference.segmenter_cache import SegmenterCache
from tcurlora.models.base_model import Windowing
from tcurlora.models.monai_preprocessing import MonaiPreprocessing

CPU = torch.device("cpu")
PREPROCESSING = MonaiPreprocessing(None, (("NormalizeIntensity", {"channel_wise": True}),))
WHOLE, CORE, ENHANCING = (
    Structure("whole tumor", 3, (1.0, 0.0, 0.0)),
    Structure("tumor core", 1),
    Structure("enhancing tumor", 300),
)
REGIONS = [WHOLE, CORE, ENHANCING]
LEVELS = (0.0, 0.6, 1.2)


class Levels(nn.Module):
    """A region for each level that voxels are brighter than."""

    def __init__(self, levels: Sequence[float] = LEVELS) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([20 * (x - level) for level in self.levels], 1)


def nested(levels: Sequence[float] = LEVELS, names: Sequence[str] | None = None, **windows: Any) -> Segmenter:
    return Segmenter(
        Levels(levels),
        names or [s.name for s in REGIONS],
        REGIONS,
        PREPROCESSING,
        Windowing((16, 16, 16), **windows),
        CPU,
        activation="sigmoid",
    )


def brighter_than(image: sitk.Image, level: float) -> np.ndarray:
    voxels = sitk.GetArrayFromImage(image).astype(float)
    return cast(np.ndarray, (voxels - voxels.mean()) / voxels.std() > level)


@pytest.mark.parametrize("blend", ["probabilities", "logits"])
def test_each_region_is_decided_by_itself(make_scan: Callable[..., Any], blend: str) -> None:
    image, _ = make_scan(1, (30, 18, 21), (1.0, 1.3, 2.0), (0, 1, 0, 0, 0, -1, 1, 0, 0))
    labels, uncertainty = nested(blend=blend).segment(image, uncertainty=True)
    assert has_overlaps(labels) and len(layers_of(labels)) == 3
    for region, level in zip(REGIONS, LEVELS, strict=True):
        found = mask_of(labels, region.value)
        assert found.any() and np.array_equal(found, brighter_than(image, level))
    assert uncertainty is not None
    for result in (labels, uncertainty):
        assert result.GetSize() == image.GetSize() and result.GetDirection() == image.GetDirection()
        assert result.GetOrigin() == image.GetOrigin() and result.GetSpacing() == image.GetSpacing()
    certainty = sitk.GetArrayFromImage(uncertainty)
    assert certainty.min() < 0.05 and certainty.max() > 0.5


def test_channels_of_one_region_are_joined_and_a_background_has_none(make_scan: Callable[..., Any]) -> None:
    image, _ = make_scan(1)
    names = ["tumor core", "background", "tumor core", "whole tumor", "enhancing tumor"]
    segmenter = nested((0.9, -5.0, 0.6, 0.0, 1.2), names)
    labels, _ = segmenter.segment(image)
    for region, level in zip(REGIONS, LEVELS, strict=True):
        assert np.array_equal(mask_of(labels, region.value), brighter_than(image, level))
    assert segmenter.probabilities(np.zeros((1, 16, 16, 16), np.float32)).shape[0] == 3


def test_regions_on_another_grid_are_decided_on_that_of_the_scan(make_scan: Callable[..., Any]) -> None:
    image, _ = make_scan(2, (28, 20, 12), (1.0, 1.2, 2.5))
    segmenter = nested((0.6,), ["tumor core"])
    segmenter.structures, segmenter.preprocessing = [CORE], MonaiPreprocessing((1.5, 1.5, 1.5), PREPROCESSING.intensity)
    segmenter.__post_init__()
    prepared = segmenter.preprocessing.prepare(image)
    expected = segmenter.preprocessing.map_to_scan(segmenter.probabilities(prepared.array)[0], prepared, image)
    labels, _ = segmenter.segment(image)
    assert not has_overlaps(labels)
    assert np.array_equal(sitk.GetArrayFromImage(labels) == 1, sitk.GetArrayFromImage(expected) > 0.5)
    assert 0 < (sitk.GetArrayFromImage(labels) == 1).mean() < 0.5


def masks(*boxes: tuple[int, int]) -> list[np.ndarray]:
    made = []
    for start, stop in boxes:
        mask = np.zeros((6, 7, 20), bool)
        mask[1:5, 2:6, start:stop] = True
        made.append(mask)
    return made


def test_there_are_only_as_many_layers_as_overlaps_need() -> None:
    geometry = sitk.Image([20, 7, 6], sitk.sitkUInt8)
    one = in_layers(zip((1, 2, 300), masks((0, 4), (4, 8), (9, 20)), strict=True), geometry)
    assert not has_overlaps(one) and one.GetPixelID() == sitk.sitkUInt16
    two = in_layers(zip((1, 2, 3, 4), masks((0, 8), (4, 12), (8, 16), (12, 20)), strict=True), geometry)
    assert len(layers_of(two)) == 2
    for value, mask in zip((1, 2, 3, 4), masks((0, 8), (4, 12), (8, 16), (12, 20)), strict=True):
        assert np.array_equal(mask_of(two, value), mask)
    assert not layers_of(in_layers([], geometry))[0].any()


def written(path: Path, given: Sequence[np.ndarray], structures: Sequence[Structure] = REGIONS) -> sitk.Image:
    geometry = sitk.Image([20, 7, 6], sitk.sitkUInt8)
    geometry.SetSpacing((0.5, 1.0, 2.0))
    geometry.SetOrigin((-3.0, 4.0, 5.5))
    labels = in_layers(zip((s.value for s in structures), given, strict=True), geometry)
    write_segmentation(labels, structures, path)
    return labels


def test_overlaps_come_back_from_a_segmentation_file(tmp_path: Path) -> None:
    given = masks((2, 18), (4, 12), (6, 9))
    written(tmp_path / "a.seg.nrrd", given)
    labels, structures = read_segmentation(tmp_path / "a.seg.nrrd", overlaps=True)
    assert structures == [Structure(s.name, s.value, s.color or structures[n].color) for n, s in enumerate(REGIONS)]
    for structure, mask in zip(structures, given, strict=True):
        assert np.array_equal(mask_of(labels, structure.value), mask)
    assert labels.GetSpacing() == (0.5, 1.0, 2.0) and labels.GetOrigin() == (-3.0, 4.0, 5.5)
    with pytest.raises(InputError) as caught:
        read_segmentation(tmp_path / "a.seg.nrrd")
    assert caught.value.code == "overlapping_segments"
    # Without overlaps a reader that allows them gets what any other one gets.
    written(tmp_path / "b.seg.nrrd", masks((0, 3), (4, 8), (9, 11)))
    allowing, plain = (read_segmentation(tmp_path / "b.seg.nrrd", allowed)[0] for allowed in (True, False))
    assert not has_overlaps(allowing)
    assert np.array_equal(sitk.GetArrayFromImage(allowing), sitk.GetArrayFromImage(plain))


def test_a_format_of_one_label_for_each_voxel_gets_later_regions_over_earlier_ones(tmp_path: Path) -> None:
    given = masks((2, 18), (4, 12), (6, 9))
    layered = written(tmp_path / "a.nii.gz", given)
    labels, _ = read_segmentation(tmp_path / "a.nii.gz")
    expected = np.zeros(given[0].shape, int)
    for structure, mask in zip(REGIONS, given, strict=True):
        expected[mask] = structure.value
    assert np.array_equal(sitk.GetArrayFromImage(labels), expected)
    reverse = sitk.GetArrayFromImage(flattened(layered, [300, 1, 3]))
    assert np.array_equal(reverse, np.where(given[0], 3, 0))


def test_each_region_is_scored_whole_in_whichever_layer(tmp_path: Path) -> None:
    truth, predicted = masks((2, 18), (4, 12), (6, 9)), masks((2, 18), (4, 10), (4, 12))
    for name, given in (("truth", truth), ("predicted", predicted)):
        (tmp_path / name).mkdir()
        written(tmp_path / name / "a.seg.nrrd", given)
    images = [read_segmentation(tmp_path / name / "a.seg.nrrd", overlaps=True)[0] for name in ("predicted", "truth")]
    arrays = [label_array(image) for image in images]
    assert arrays[0].shape == (3, 20, 7, 6)
    values = {s.name: s.value for s in REGIONS}
    scores = score_case("a", arrays[0], arrays[1], (0.5, 1.0, 2.0), values)
    assert [score.dice for score in scores] == pytest.approx([1, 2 * 6 / 14, 2 * 3 / 11])
    # Against labels of one layer too, and from files.
    flat = score_case("a", arrays[0], np.where(arrays[1] == 3, 3, 0).max(0), (0.5, 1.0, 2.0), {"whole tumor": 3})
    assert flat[0].dice == 1
    found = evaluate_folders(tmp_path / "predicted", tmp_path / "truth")
    assert {case["structure"]: case["dice"] for case in found["cases"]} == {s.structure: s.dice for s in scores}


class Events:
    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.stages: list[dict[str, Any]] = []

    def emit(self, kind: str, **fields: Any) -> None:
        if kind == "warning":
            self.warnings.append(fields["code"])
        elif kind == "stage":
            self.stages.append(fields)


@pytest.mark.parametrize(("ending", "codes"), [(".seg.nrrd", []), (".nii.gz", ["flattened_regions"])])
def test_whoever_asks_for_a_format_without_overlaps_is_told(
    tmp_path: Path, make_scan: Callable[..., Any], ending: str, codes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    image, _ = make_scan(1)
    sitk.WriteImage(image, str(tmp_path / "scan.nii.gz"))
    cache = SegmenterCache()
    monkeypatch.setattr(cache, "open", lambda *_: nested())
    monkeypatch.setattr("tcurlora.inference.scans.TOLD_BYTES", 0)
    events = Events()
    request = SegmentRequest("nested", (str(tmp_path / "scan.nii.gz"),), str(tmp_path / f"out{ending}"))
    run_segment(request, events, segmenters=cache)
    assert events.warnings == codes
    (told,) = (stage for stage in events.stages if stage["name"] == "scan")
    assert told["memory_bytes"] > 0 and told["disk_bytes"] == 0
    labels, structures = read_segmentation(tmp_path / f"out{ending}", overlaps=True)
    assert {s.name for s in structures} == {s.name for s in REGIONS}
    assert has_overlaps(labels) is (not codes)
    assert np.array_equal(mask_of(labels, 300), brighter_than(image, 1.2))
