"""Weights in the forms in which people save them, and networks of MONAI's: read, made and given their weights."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.networks import nets
from torch import Tensor, nn

from tcurlora.cli.commands import main
from tcurlora.errors import InputError
from tcurlora.inference.segmenter import Segmenter
from tcurlora.models import catalogue
from tcurlora.models.bare_weights import Description, write_described
from tcurlora.models.monai_bundle import open_bundle
from tcurlora.models.monai_networks import NETWORKS, give_weights, make_network, network_class, usual_arguments
from tcurlora.models.opening import load_base_model
from tcurlora.models.weights_files import read_arrays, read_weights

NETWORK: dict[str, Any] = {
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 3,
    "channels": [4, 8],
    "strides": [2],
    "num_res_units": 1,
    "norm": "batch",
}


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return nets.UNet(**NETWORK).state_dict()


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


def forms(state: dict[str, Tensor]) -> dict[str, Any]:
    return {
        "plain": state,
        "ordered": OrderedDict(state),
        "module": prefixed(state, "module."),
        "compiled": prefixed(state, "_orig_mod."),
        "both": prefixed(state, "module._orig_mod."),
        "compiled inside": {name.replace("model.", "model._orig_mod.", 1): value for name, value in state.items()},
        "model": {"model": state, "epoch": 3, "best": 0.5, "date": "today"},
        "state_dict": {"state_dict": prefixed(state, "module."), "optimizer": {"lr": [1.0]}},
        "network_weights": {"network_weights": state, "init_args": {"a": (1, None)}},
        "model_state_dict": {"model_state_dict": state},
        "net": {"net": state},
        "nested": {"model": {"state_dict": state}},
        "numpy scalar": {
            "state_dict": state,
            "best": np.float64(0.5),
            "more": [np.float32(1), np.int64(2)],
        },
    }


@pytest.mark.parametrize("form", forms({}))
def test_weights_are_found_in_every_form(form: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(forms(state)[form], tmp_path / "w.pt")
    found = read_weights(tmp_path / "w.pt")
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], value) for name, value in state.items())


def test_whatever_a_framework_puts_before_all_names_is_left_out(state: dict[str, Tensor]) -> None:
    network = make_network({"_target_": "UNet", **NETWORK}, 10**6)
    assert give_weights(network, prefixed(state, "net.")) == ""


class Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("torchscript", "TorchScript"),
        ("whole network", "whole pickled network"),
        ("hostile", "executed"),
        ("array of objects", "executed"),
        ("scalar of objects", "executed"),
        ("text", "damaged"),
        ("names", "not a tensor"),
    ],
)
def test_each_refusal_says_what_the_file_is(what: str, words: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    path, canary = tmp_path / "model.pt", tmp_path / "canary"
    if what == "torchscript":
        torch.jit.trace(nn.Conv3d(1, 1, 1), torch.zeros(1, 1, 2, 2, 2)).save(str(path))
    elif what == "whole network":
        torch.save(nets.UNet(**NETWORK), path)
    elif what == "hostile":
        torch.save({"state_dict": state, "best": Canary(canary)}, path)
    elif what == "array of objects":
        torch.save({"state_dict": state, "x": np.array([Canary(canary)], dtype=object)}, path)
    elif what == "scalar of objects":
        torch.save({"state_dict": state, "x": np.array(Canary(canary), dtype=object)}, path)
    elif what == "text":
        path.write_text("not weights")
    else:
        torch.save({"state_dict": {"weight": "text"}}, path)
    with pytest.raises(InputError, match=words) as caught:
        read_weights(path)
    assert caught.value.code == "bad_weights" and caught.value.remedy and "model.pt" in caught.value.message
    assert not canary.exists()


def test_an_architecture_is_read_and_nothing_else(tmp_path: Path) -> None:
    code = {"arch_code_a": np.eye(3, dtype=np.int64), "node_a": np.ones((2, 2), np.float32), "big": np.zeros(10**5)}
    torch.save(code, tmp_path / "code.pt")
    assert read_arrays(tmp_path / "code.pt", ["arch_code_a"]) == {"arch_code_a": np.eye(3).astype(int).tolist()}
    for name in ("nothing", "big"):
        with pytest.raises(InputError):
            read_arrays(tmp_path / "code.pt", [name])
    torch.save({"arch_code_a": np.array([Canary(tmp_path / "canary")], dtype=object)}, tmp_path / "code.pt")
    with pytest.raises(InputError):
        read_arrays(tmp_path / "code.pt", ["arch_code_a"])
    assert not (tmp_path / "canary").exists()


SHAPES: dict[str, dict[str, Any]] = {
    "UNETR": {"img_size": [32] * 3, "feature_size": 4, "hidden_size": 24, "mlp_dim": 24, "num_heads": 2},
    "SwinUNETR": {"img_size": [32] * 3, "feature_size": 12, "depths": [1] * 4, "num_heads": [1] * 4},
    "SegResNet": {"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]},
    "DynUNet": {
        "spatial_dims": 3,
        "kernel_size": [3, 3, 3],
        "strides": [1, 2, 2],
        "upsample_kernel_size": [2, 2],
        "filters": [4, 8, 8],
        "deep_supervision": True,
    },
    "UNet": {key: value for key, value in NETWORK.items() if key not in ("in_channels", "out_channels")},
    "BasicUNet": {"features": [4, 4, 8, 8, 8, 4]},
    "BasicUNetPlusPlus": {"features": [4, 4, 8, 8, 8, 4], "deep_supervision": True},
    "AttentionUnet": {"spatial_dims": 3, "channels": [4, 8, 8], "strides": [2, 2]},
    "VNet": {},
    "SegResNetDS": {"init_filters": 8, "blocks_down": [1, 1, 1], "dsdepth": 2},
    "SegResNetVAE": {"input_image_size": [32] * 3, "init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]},
    "FlexibleUNet": {"backbone": "efficientnet-b0", "spatial_dims": 3, "decoder_channels": [16, 8, 8, 8, 8]},
    "HighResNet": {},
    "AHNet": {"layers": [1, 1, 1, 1], "psp_block_num": 0, "upsample_mode": "trilinear"},
    "MedNeXt": {
        "init_filters": 4,
        "kernel_size": 3,
        "deep_supervision": True,
        "blocks_down": [1, 1],
        "blocks_up": [1, 1],
        "blocks_bottleneck": 1,
    },
}
WINDOWS = {"VNet": 16, "HighResNet": 16, "SwinUNETR": 64}
MORE_IN_TRAINING = ("DynUNet", "BasicUNetPlusPlus", "SegResNetDS", "SegResNetVAE", "MedNeXt")


@pytest.mark.parametrize("name", SHAPES)
def test_a_network_of_the_list_gives_the_main_output_of_monais(name: str) -> None:
    torch.manual_seed(0)
    arguments = {"in_channels": 1, "out_channels": 3, **SHAPES[name]}
    made = {key: value for key, value in arguments.items() if not (name == "SwinUNETR" and key == "img_size")}
    stock = getattr(nets, name)(**made).eval()
    own = make_network(usual_arguments(name, arguments), sum(v.numel() for v in stock.state_dict().values()))
    assert give_weights(own, stock.state_dict()) == ""
    window = torch.randn(1, 1, *[WINDOWS.get(name, 32)] * 3)
    with torch.no_grad():
        expected = stock(window)
        if name == "BasicUNetPlusPlus":
            expected = expected[-1]
        elif not isinstance(expected, Tensor):
            expected = expected[0]
        assert float((own(window) - expected).abs().max()) < 1e-4 * max(1.0, float(expected.abs().max()))
    if name in MORE_IN_TRAINING:
        assert own.train()(window).shape[:2] == (1, 3)


def test_every_class_of_the_list_is_tried_or_of_a_family_that_is() -> None:
    assert set(NETWORKS) - set(SHAPES) == {"DiNTS", "MedNeXtS", "MedNeXtB", "MedNeXtM", "MedNeXtL"}
    for name in NETWORKS:
        assert network_class(f"monai.networks.nets.{name}") == name
    assert network_class("Unet") == "UNet" and network_class("monai.networks.nets.unet.Unet") == "UNet"
    for name in ("ResNet", "os.system", "monai.networks.nets.UNet.__init__", "VISTA3D", "__builtins__", ""):
        assert network_class(name) is None


def whole(**changes: str | bool) -> Description:
    said: dict[str, Any] = {
        "network": "UNet",
        "arguments": json.dumps({k: v for k, v in NETWORK.items() if "channels" not in k or k == "channels"}),
        "structures": "head,tail",
        "spacing": "1,1.5,2",
        "intensity": "-175,250",
        "window": "16,16,16",
    }
    return Description(**{**said, **changes})


def test_weights_and_a_description_become_a_bundle(state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({"state_dict": prefixed(state, "module."), "best": np.float64(1)}, tmp_path / "Gewichte ü.pt")
    write_described(tmp_path / "Gewichte ü.pt", tmp_path / "made", whole())
    base = open_bundle(tmp_path / "made")
    assert base.channels == ("background", "head", "tail")
    assert base.preprocessing.spacing == (1, 1.5, 2) and base.windows.roi_size == (16, 16, 16)
    window = torch.randn(1, 1, 16, 16, 16)
    stock = nets.UNet(**NETWORK).eval()
    stock.load_state_dict(state)
    with torch.no_grad():
        assert torch.allclose(base.build()(window), stock(window), atol=1e-5)
    image = sitk.GetImageFromArray(np.random.default_rng(0).normal(0, 200, (12, 14, 16)).astype(np.float32))
    labels, _ = Segmenter.of_base(base, torch.device("cpu")).segment(image)
    assert labels.GetSize() == image.GetSize()


def test_what_is_not_said_is_that_of_a_similar_model(state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(state, tmp_path / "a.pt")
    write_described(tmp_path / "a.pt", tmp_path / "a", whole(regions=True, structures="x,y,z", intensity="zscore"))
    torch.save({name: value + 0.1 for name, value in state.items()}, tmp_path / "b.pt")
    first = open_bundle(tmp_path / "a")
    second = write_described(tmp_path / "b.pt", tmp_path / "b", Description(like=str(tmp_path / "a")))
    assert second.sha256 != first.sha256
    for field in ("channels", "input_channels", "preprocessing", "windows", "activation", "network_def"):
        assert getattr(second, field) == getattr(first, field), field
    third = write_described(tmp_path / "b.pt", tmp_path / "c", Description(like=str(tmp_path / "a"), structures="u,v"))
    assert third.channels == ("background", "u", "v") and third.activation == "softmax"


def test_the_shipped_models_own_resampling_is_that_of_a_model_like_it(tmp_path: Path) -> None:
    shipped = load_base_model("hippocampus_t1_unetr")
    made = write_described(shipped.weights, tmp_path / "again", Description(like="hippocampus_t1_unetr"))
    assert made.preprocessing == shipped.preprocessing and made.windows == shipped.windows
    assert made.labelled_structures() == shipped.labelled_structures()


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"network": ""}, "not_described"),
        ({"network": "ResNet"}, "unknown_network"),
        ({"network": "os.system"}, "unknown_network"),
        ({"arguments": ""}, "not_described"),
        ({"arguments": "{"}, "arguments"),
        ({"arguments": "/nowhere.json"}, "arguments"),
        ({"arguments": '{"act": "$__import__(\'os\')"}'}, "bad_bundle"),
        ({"structures": ""}, "not_described"),
        ({"structures": "head,$tail"}, "expression"),
        ({"spacing": ""}, "not_described"),
        ({"spacing": "1,2"}, "usage"),
        ({"spacing": "1,2,-1"}, "usage"),
        ({"intensity": ""}, "not_described"),
        ({"intensity": "250,-175"}, "usage"),
        ({"window": ""}, "not_described"),
        ({"window": "16,16,1e9"}, "usage"),
        ({"like": "nowhere"}, "unknown_base"),
        ({"structures": "head"}, "bad_bundle"),
    ],
)
def test_what_is_missing_or_wrong_is_said(
    changes: dict[str, str], code: str, state: dict[str, Tensor], tmp_path: Path
) -> None:
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(InputError) as caught:
        write_described(tmp_path / "w.pt", tmp_path / "made", whole(**changes))
    assert caught.value.code == code and caught.value.remedy


def test_the_command_names_the_weights_that_do_not_fit(
    state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TCURLORA_HOME", str(tmp_path / "home"))
    torch.save(state, tmp_path / "good.pt")
    wrong = {name: value for name, value in state.items() if "1.conv" not in name} | {"extra.weight": torch.ones(1)}
    torch.save(wrong, tmp_path / "wrong.pt")
    said = whole()
    options = [
        option
        for key in ("network", "arguments", "structures", "spacing", "intensity", "window")
        for option in (f"--{key}={getattr(said, key)}",)
    ]
    assert main(["models", "import", str(tmp_path / "wrong.pt"), *options]) == 2
    assert "missing" in (text := capsys.readouterr().err) and "extra.weight" in text
    assert catalogue.models_folder().is_dir() and not list(catalogue.models_folder().iterdir())
    assert main(["models", "import", str(tmp_path / "good.pt"), "--name", "mine", *options]) == 0
    assert main(["models", "show", "mine", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (shown["kind"], shown["origin"], shown["structures"]) == ("MONAI bundle", "added", ["head", "tail"])
    assert shown["channels"] == ["background", "head", "tail"] and shown["spacing"] == [1, 1.5, 2]
    assert main(["models", "import", str(tmp_path / "good.pt"), "--name", "mine", *options]) == 2
