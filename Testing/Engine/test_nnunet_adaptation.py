"""An nnU-Net is adapted, segments, and is merged into one that nnU-Net's own predictor runs with the same result."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import nnunet_reference as nnunet
from nnunet_reference import Variant

from tcurlora.cli.commands import main
from tcurlora.errors import InputError
from tcurlora.imaging.images import read_image
from tcurlora.inference.segmenter_cache import open_once
from tcurlora.method.stacks import find_stacks
from tcurlora.models.merged_bundles import merge_adapter
from tcurlora.models.opening import load_base_model
from tcurlora.training.presets import PRESETS, preset
from tcurlora.training.target_site import head_of

NETWORKS = ("PlainConvUNet", "ResidualEncoderUNet")


@pytest.fixture(scope="module")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def make(network: str) -> Path:
        if network not in made:
            variant = Variant(network=network, mirrored=False)
            made[network] = nnunet.train(tmp_path_factory.mktemp("models"), variant)
        return made[network]

    return make


@pytest.fixture(scope="module")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three labeled scans, whose structures have the base's names and other values."""
    folder = tmp_path_factory.mktemp("site ü")
    for part in ("images", "labels"):
        (folder / part).mkdir()
    for number in range(3):
        images, labels = nnunet.make_scan(number, (24, 22, 20), (0.9, 1.0, 1.2))
        sitk.WriteImage(images[0], folder / "images" / f"scan{number}.nii.gz")
        swapped = sitk.ChangeLabel(labels, {1: 2, 2: 1})
        sitk.WriteImage(swapped, folder / "labels" / f"scan{number}.nii.gz")
    (folder / "dataset.json").write_text(json.dumps({"labels": {"0": "background", "1": "right", "2": "left"}}))
    return folder


def adapt(model: Path, site: Path, out: Path, *more: str) -> None:
    arguments = ["adapt", "--base", str(model), "--data", str(site), "--out", str(out), "--steps", "2", "--folds", "0"]
    assert main([*arguments, *more]) == 0


@pytest.mark.parametrize("network", NETWORKS)
def test_a_merged_model_gives_nnunet_the_result_of_segment(
    network: str, make_model: Callable[[str], Path], blobs: Path, tmp_path: Path
) -> None:
    model = make_model(network)
    adapt(model, blobs, tmp_path / "adapter")
    merged = tmp_path / "merged"
    arguments = ["merge", "--model", str(tmp_path / "adapter"), "--base", str(model), "--out", str(merged)]
    assert main(arguments) == 0
    (folder,) = (path for path in merged.iterdir() if path.is_dir())
    assert folder.name == model.name
    assert json.loads((folder / "dataset.json").read_text())["labels"] == {"background": 0, "right": 1, "left": 2}
    scan = tmp_path / "case_0000.nii.gz"
    sitk.WriteImage(nnunet.make_scan(9, (26, 23, 19), (1.1, 0.9, 1.0))[0][0], scan)
    theirs, _ = nnunet.predict(folder, [scan])
    segmenter = open_once(str(tmp_path / "adapter"), base=str(model), device="cpu")
    ours, _ = segmenter.segment(read_image(scan))
    again, _ = open_once(str(merged), device="cpu").segment(read_image(scan))
    for labels in (ours, again):
        assert (sitk.GetArrayFromImage(labels) == theirs).mean() >= 0.9999
    assert set(np.unique(theirs)) > {0}
    plain, _ = nnunet.predict(model, [scan])
    assert (np.where(plain > 0, 3 - plain, 0) != theirs).any()


def test_the_merged_checkpoint_loads_into_nnunets_whole_network(
    make_model: Callable[[str], Path], blobs: Path, tmp_path: Path
) -> None:
    model = make_model("PlainConvUNet")
    adapt(model, blobs, tmp_path / "adapter", "--map", "right=right", "--map", "left=new")
    with pytest.raises(InputError) as caught:  # 'left' of the base counts as background: two channels vote for that
        merge_adapter(tmp_path / "adapter", tmp_path / "merged", load_base_model(model))
    assert caught.value.code == "joined_channels" and not (tmp_path / "merged").exists()
    adapt(model, blobs, tmp_path / "second")
    merge_adapter(tmp_path / "second", tmp_path / "merged", load_base_model(model))
    (folder,) = (path for path in (tmp_path / "merged").iterdir() if path.is_dir())
    own = torch.load(model / "fold_0" / "checkpoint_final.pth", weights_only=False)
    found = torch.load(folder / "fold_0" / "checkpoint_final.pth", weights_only=False)
    assert found.keys() == own.keys()
    assert {name: t.shape for name, t in found["network_weights"].items()} == {
        name: t.shape for name, t in own["network_weights"].items()
    }
    assert found["inference_allowed_mirroring_axes"] is None
    assert found["trainer_name"] == own["trainer_name"]


@pytest.mark.parametrize("network", NETWORKS)
def test_presets_leave_heads_of_deep_supervision_out(network: str, make_model: Callable[[str], Path]) -> None:
    base = load_base_model(make_model(network))
    built: Any = base.build()
    head = head_of(base, built)
    assert head == "decoder.seg_layers.1"
    parameters = dict(built.named_parameters())
    assert not any(name.startswith(("decoder.seg_layers.0", "decoder.encoder")) for name in parameters)
    stacked = {part.parameter for stack in find_stacks(built) for part in stack.slices}
    assert stacked == {name for name, value in parameters.items() if value.dim() == 5}
    assert preset("decoder", built, head=head).modules_to_save
    assert "compact" in PRESETS


@pytest.mark.parametrize("method", ["decoder", "full"])
def test_other_methods_adapt_it_too(
    method: str, make_model: Callable[[str], Path], blobs: Path, tmp_path: Path
) -> None:
    model = make_model("PlainConvUNet")
    adapt(model, blobs, tmp_path / "adapter", "--method", method)
    with pytest.raises(InputError) as caught:
        open_once(str(tmp_path / "adapter"), base=str(model), fold="0")
    assert caught.value.code == "no_fold"


def test_what_a_command_shows_of_it(make_model: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "show", str(make_model("ResidualEncoderUNet")), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["network"] == "ResidualEncoderUNet" and shown["structures"] == ["left", "right"]
    assert shown["preprocessing"]["spacing"] == [1.0, 1.0, 1.0]
