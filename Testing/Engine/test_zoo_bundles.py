"""Bundles as MONAI's Model Zoo writes them give what MONAI gives with the same weights.

The zoo's configs are read where they lie: beside the project, or in the folder that TCURLORA_ZOO names, such as
`models` of a clone of the zoo. Without them these tests are left out; forms of configs are tested in
`test_bundle_config.py` and `test_base_models.py` in any case. The weights are random.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from tcurlora.errors import InputError
from tcurlora.inference.segmenter import Segmenter
from tcurlora.method.model import TensorCurModel
from tcurlora.models import catalogue
from tcurlora.models.monai_bundle import open_bundle
from tcurlora.models.monai_transforms import MonaiTransforms
from tcurlora.training.presets import preset
from tcurlora.training.target_site import head_of

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "Benchmarks"))

import zoo_bundles as zoo

pytestmark = pytest.mark.skipif(not zoo.ZOO.is_dir(), reason="the zoo's configs are not here")

# Windows that the network can halve as often as it does, and small enough to be quick.
WINDOWS = {
    "brats_mri_segmentation": 24,
    "prostate_mri_anatomy": 32,
    "renalStructures_CECT_segmentation": 24,
    "segmentation_template": 24,
    "spleen_ct_segmentation": 32,
    "spleen_deepedit_annotation": 32,
    "wholeBody_ct_segmentation": 16,
    "pediatric_abdominal_ct_segmentation": 32,
}
SLOW = ("pancreas_ct_dints_segmentation", "swin_unetr_btcv_segmentation")
"""Compared in Testing/Benchmarks/zoo_bundles.py, whose result is committed beside it."""

FACTS: dict[str, tuple[str, int, str, str]] = {
    "brats_mri_segmentation": ("SegResNet", 4, "sigmoid", "probabilities"),
    "pancreas_ct_dints_segmentation": ("DiNTS", 1, "softmax", "probabilities"),
    "pediatric_abdominal_ct_segmentation": ("DynUNet", 1, "softmax", "probabilities"),
    "prostate_mri_anatomy": ("UNet", 1, "softmax", "labels"),
    "renalStructures_CECT_segmentation": ("SegResNet", 3, "sigmoid", "logits"),
    "segmentation_template": ("UNet", 1, "softmax", "probabilities"),
    "spleen_ct_segmentation": ("UNet", 1, "softmax", "probabilities"),
    "spleen_deepedit_annotation": ("DynUNet", 1, "softmax", "probabilities"),
    "swin_unetr_btcv_segmentation": ("SwinUNETR", 1, "softmax", "probabilities"),
    "wholeBody_ct_segmentation": ("SegResNet", 1, "softmax", "labels"),
}


@pytest.mark.parametrize("name", WINDOWS)
def test_bundle_gives_what_monai_gives(name: str, tmp_path: Path) -> None:
    folder = zoo.make_bundle(name, tmp_path / "Modell für 海馬", WINDOWS[name])
    found = zoo.compare(folder, zoo.make_scan(open_bundle(folder)))
    assert found.labels > 1, "a result of one label shows nothing"
    assert found.prepared < 1e-4
    assert found.probabilities < 1e-4
    assert found.no_ties == 0


def test_every_bundle_is_compared_somewhere() -> None:
    assert {*WINDOWS, *SLOW} == set(zoo.TAKEN) == set(FACTS)
    results = Path(zoo.__file__).parent / "results" / "zoo_bundles.json"
    report = json.loads(results.read_text(encoding="utf-8"))
    for name, found in report["bundles"].items():
        assert found["prepared"] < 1e-4 and found["probabilities"] < 1e-4 and found["no_ties"] == 0, name
    assert report["bundles"].keys() == set(zoo.TAKEN)


@pytest.mark.parametrize("name", zoo.TAKEN)
def test_bundle_is_taken_as_it_is(name: str, tmp_path: Path) -> None:
    base = open_bundle(zoo.make_bundle(name, tmp_path / name, weights=False))
    network, inputs, activation, back = FACTS[name]
    assert (base.network_name, base.in_channels, base.activation) == (network, inputs, activation)
    assert isinstance(base.preprocessing, MonaiTransforms) and base.preprocessing.back == back
    assert base.windows.blend == "logits"
    known = {entry["name"]: entry for entry in catalogue.list_models()}.get(name)
    if known is not None:
        assert list(base.structures) == known["structures"]
        assert list(base.windows.roi_size) == known["patch"]
        assert list(base.input_channels) == known["input_channels"]
        assert base.preprocessing.spacing == (known["input_spacing"] and tuple(known["input_spacing"]))


@pytest.mark.parametrize("config", ["inference_segresnet.yaml", "inference_swinunetr.yaml"])
def test_other_configs_of_a_bundle_name_their_own_weights(config: str, tmp_path: Path) -> None:
    name = "pediatric_abdominal_ct_segmentation"
    folder = zoo.make_bundle(name, tmp_path / name, config=config, weights=False)
    (folder / "configs" / "inference.yaml").write_text(
        (zoo.ZOO / name / "configs" / config).read_text(encoding="utf-8"), encoding="utf-8"
    )
    base = open_bundle(folder)
    assert base.weights.name == zoo.weights_name(name, config)
    assert base.channels == ("background", "liver", "spleen", "pancreas")


@pytest.mark.parametrize("name", zoo.REFUSED)
def test_others_are_refused_with_a_sentence_that_says_why(name: str, tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    for path in (zoo.ZOO / name / "configs").iterdir():
        (tmp_path / "configs" / path.name).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(InputError) as caught:
        open_bundle(tmp_path)
    assert ("UNesT" if "UNEST" in name else "VISTA3D") in caught.value.message
    assert caught.value.remedy and caught.value.message.count(". ") == 0


def test_windows_are_those_of_the_config(tmp_path: Path) -> None:
    windows = open_bundle(zoo.make_bundle("wholeBody_ct_segmentation", tmp_path / "a", weights=False)).windows
    assert (windows.overlap, windows.mode, windows.padding_mode) == (0.25, "gaussian", "replicate")
    windows = open_bundle(zoo.make_bundle("pediatric_abdominal_ct_segmentation", tmp_path / "b", weights=False)).windows
    assert (windows.overlap, windows.mode, windows.padding_mode) == (0.75, "constant", "constant")
    base = open_bundle(zoo.make_bundle("segmentation_template", tmp_path / "c", weights=False))
    assert base.windows.roi_size == (128, 128, 128), "the whole scan, as far as metadata.json says"


def test_regions_of_the_brain_tumor_bundle_come_out_with_their_overlaps(tmp_path: Path) -> None:
    base = open_bundle(zoo.make_bundle("brats_mri_segmentation", tmp_path / "b", 16))
    assert base.structures == ["Tumor core", "Whole tumor", "Enhancing tumor"]
    assert base.input_channels == ("T1c", "T1", "T2", "FLAIR")
    labels, _ = Segmenter.of_base(base, torch.device("cpu")).segment(zoo.make_scan(base))
    assert labels.GetNumberOfComponentsPerPixel() > 1


def test_adapting_leaves_the_statistics_of_batch_norm_alone(tmp_path: Path) -> None:
    base = open_bundle(zoo.make_bundle("spleen_ct_segmentation", tmp_path / "s", 32))
    network = base.build()
    before = {name: value.clone() for name, value in network.named_buffers()}
    assert any("running_mean" in name for name in before)
    for method in ("compact", "decoder", "full"):
        model = TensorCurModel(network, preset(method, network, head=head_of(base, network))).train()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.SGD(trained, 1e-3)
        model(torch.randn(1, 1, 32, 32, 32)).square().mean().backward()
        optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in network.named_buffers())


def test_labels_of_a_site_come_to_the_grid_of_the_scan(tmp_path: Path) -> None:
    """Cropped, turned and resampled as the scan is: a bright body and its labels stay together."""
    spacing = {"pixdim": [2.0, 1.0, 1.5]}
    steps: tuple[Any, ...] = (("Orientation", {"axcodes": "LPS"}), ("Spacing", spacing), ("CropForeground", {}))
    voxels = np.zeros((24, 30, 36), np.float32)
    voxels[6:14, 8:20, 10:28] = 100
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing((1.0, 1.2, 1.1))
    image.SetDirection((0, 1, 0, 1, 0, 0, 0, 0, -1))
    preprocessing = MonaiTransforms((2.0, 1.0, 1.5), steps)
    prepared = preprocessing.prepare(image)
    labels = preprocessing.prepare_labels(sitk.Cast(image > 50, sitk.sitkUInt8), prepared)
    assert labels.shape == prepared.array.shape[1:]
    bright = prepared.array[0] > 50
    assert np.logical_and(bright, labels == 1).sum() > 0.95 * np.logical_or(bright, labels == 1).sum()
    scores = np.stack([1 - labels, labels]).astype(np.float32) * 10
    back = sitk.GetArrayFromImage(preprocessing.labels_to_scan(scores, prepared, image))
    assert 2 * np.logical_and(back, voxels).sum() / (back.sum() + (voxels > 0).sum()) > 0.9
    outside = sitk.GetArrayFromImage(preprocessing.map_to_scan(np.ones(labels.shape, np.float32), prepared, image, 7.0))
    assert outside[0, 0, 0] == 7 and outside[10, 14, 20] == 1
