"""Base models are read as data: nothing in a bundle is executed, and what is wrong is said in a sentence."""

from __future__ import annotations

import copy
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.networks.nets import UNETR, DynUNet, SegResNet, SwinUNETR
from safetensors.torch import save_file

from tcurlora.errors import InputError
from tcurlora.method.model import TensorCurModel
from tcurlora.models.base_model import BaseModel
from tcurlora.models.monai_bundle import write_bundle
from tcurlora.models.opening import load_base_model
from tcurlora.models.weights_files import read_weights
from tcurlora.training.presets import preset

NETWORK = {
    "spatial_dims": 3,
    "init_filters": 8,
    "in_channels": 1,
    "out_channels": 3,
    "blocks_down": [1],
    "blocks_up": [],
}
METADATA = {
    "name": "Tiny",
    "structures": [{"name": "tail", "value": 7, "color": [1, 0, 0.5]}],
    "network_data_format": {"outputs": {"pred": {"channel_def": {"0": "Background", "1": "head", "2": "tail"}}}},
}
INFERENCE = {
    "network_def": {"_target_": "monai.networks.nets.SegResNet", **NETWORK},
    "preprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "LoadImaged", "keys": "image"},
            {"_target_": "EnsureChannelFirstd", "keys": "image"},
            {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
            {"_target_": "Spacingd", "keys": "image", "pixdim": [1, 1.5, 2], "mode": "bilinear"},
            {"_target_": "NormalizeIntensityd", "keys": "image", "nonzero": True},
        ],
    },
    "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [16, 24, 32]},
}


class Payload:
    """A pickle that leaves a canary file when it is executed."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.canary}'",)


@pytest.fixture(scope="module")
def network() -> SegResNet:
    torch.manual_seed(0)
    return SegResNet(**NETWORK).eval()


@pytest.fixture
def bundle(tmp_path: Path, network: SegResNet) -> Path:
    folder = tmp_path / "Modell für 海馬"
    write_bundle(folder, {"metadata": METADATA, "inference": INFERENCE}, "# Tiny\n", network.state_dict())
    return folder


def rewrite(bundle: Path, name: str, change: Callable[[dict[str, Any]], Any]) -> None:
    path = bundle / "configs" / f"{name}.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def assert_refused(bundle: Path, *words: str) -> None:
    """Loading must raise an error that speaks to a person: a sentence, a remedy, no traceback of a library."""
    with pytest.raises(InputError) as caught:
        load_base_model(bundle).build()
    assert caught.value.message.endswith(".")
    assert caught.value.remedy
    for word in words:
        assert word in caught.value.message
    assert "Traceback" not in str(caught.value)


def test_a_bundle_is_read_and_built(bundle: Path, network: SegResNet) -> None:
    base = load_base_model(bundle)
    assert (base.name, base.in_channels, base.structures) == ("Tiny", 1, ["head", "tail"])
    assert base.channels == ("background", "head", "tail")
    assert base.preprocessing.spacing == (1, 1.5, 2)
    assert base.windows.roi_size == (16, 24, 32)
    assert base.preprocessing.intensity == (("NormalizeIntensity", {"nonzero": True}),)
    assert [(s.name, s.value) for s in base.labelled_structures()] == [("head", 1), ("tail", 7)]
    built = base.build()
    assert not built.training
    window = torch.rand(1, 1, 16, 24, 32)
    with torch.no_grad():
        assert torch.equal(built(window), network(window))


def test_without_the_trial_the_same_network_is_made(bundle: Path) -> None:
    base = load_base_model(bundle)
    tried, untried = base.build(), base.build(trial=False)
    assert not untried.training
    for name, value in tried.state_dict().items():
        assert torch.equal(value, untried.state_dict()[name]) and value.stride() == untried.state_dict()[name].stride()


def test_the_identity_is_that_of_the_weights(bundle: Path) -> None:
    before = load_base_model(bundle).sha256
    rewrite(bundle, "metadata", lambda content: content.update(name="other"))
    assert load_base_model(bundle).sha256 == before
    state = read_weights(bundle / "models" / "model.pt")
    next(iter(state.values())).view(-1)[0] += 1
    torch.save(state, bundle / "models" / "model.pt")
    assert load_base_model(bundle).sha256 != before


@pytest.mark.parametrize("wrapped", ["state_dict", "model", ""])
def test_half_precision_and_wrapped_weights_are_read(bundle: Path, network: SegResNet, wrapped: str) -> None:
    state = {key: value.half() for key, value in network.state_dict().items()}
    torch.save({wrapped: state, "epoch": 3} if wrapped else state, bundle / "models" / "model.pt")
    built = load_base_model(bundle).build()
    for name, value in built.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.allclose(value, network.state_dict()[name], atol=1e-3)


def test_safetensors_win_over_a_pickle(bundle: Path, network: SegResNet, tmp_path: Path) -> None:
    save_file(network.state_dict(), bundle / "models" / "model.safetensors")
    (bundle / "models" / "model.pt").write_bytes(pickle.dumps(Payload(tmp_path / "canary")))
    base = load_base_model(bundle)
    assert base.weights.name == "model.safetensors"
    base.build()
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("form", ["pickle", "torch", "nested", "legacy"])
def test_a_pickle_is_never_executed(bundle: Path, tmp_path: Path, form: str) -> None:
    canary, path = tmp_path / "canary", bundle / "models" / "model.pt"
    payload = Payload(canary)
    if form == "pickle":
        path.write_bytes(pickle.dumps(payload, protocol=2))
    elif form == "legacy":
        torch.save({"state_dict": payload}, path, _use_new_zipfile_serialization=False)
    else:
        torch.save(payload if form == "torch" else {"state_dict": {"weight": payload}}, path)
    assert_refused(bundle, "model.pt", "executed")
    assert not canary.exists()
    # The canary sings when a careless loader takes the file: the test would notice.
    torch.load(path, weights_only=False) if form != "pickle" else pickle.loads(path.read_bytes())
    assert canary.exists()


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "subprocess.Popen",
        "builtins.eval",
        "monai.bundle.ConfigParser",
        "monai.networks.nets.ResNet",
        "monai.networks.nets.SegResNet.__init__",
        "evil.SegResNet",
        "$print('x')",
        "",
        7,
        None,
        ["monai.networks.nets.SegResNet"],
    ],
)
def test_only_listed_networks_are_made(bundle: Path, target: Any) -> None:
    rewrite(bundle, "inference", lambda content: content["network_def"].update(_target_=target))
    assert_refused(bundle, bundle.name)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("init_filters", "$__import__('os').system('touch canary')"),
        ("act", {"_target_": "os.system", "command": "touch canary"}),
        ("act", ["RELU", {"inplace": "$__import__('os').system('touch canary')"}]),
        ("norm", "@preprocessing"),
        ("act", "%../../secret.json"),
        ("_requires_", ["$__import__('os').system('touch canary')"]),
        ("_mode_", "debug"),
    ],
)
def test_an_expression_in_the_network_is_never_executed(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, value: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    rewrite(bundle, "inference", lambda content: content["network_def"].update({key: value}))
    assert_refused(bundle, "never executed")
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ({"_target_": "Lambdad", "func": "$__import__('os').system('touch canary')"}, "Lambda"),
        ({"_target_": "os.system", "command": "touch canary"}, "system"),
        ({"_target_": "NormalizeIntensityd", "divisor": "$__import__('os').system('touch canary')"}, "never executed"),
        ({"_target_": "NormalizeIntensityd", "dtype": {"_target_": "os.system", "command": "touch canary"}}, "never"),
        ({"_target_": "Spacingd", "pixdim": "$open('canary', 'w')"}, "never executed"),
        ({"_target_": "Spacingd", "pixdim": [1, 1, 0]}, "voxel size"),
        ({"_target_": "Spacingd", "pixdim": [1, 1]}, "voxel size"),
        ({"_target_": "Orientationd", "axcodes": "LAP"}, "LAP"),
        ({"_target_": "CropForegroundd", "select_fn": "$lambda x: open('canary', 'w')"}, "never executed"),
        ({"_target_": "RandFlipd"}, "RandFlip"),
    ],
)
def test_only_listed_preprocessing_is_done(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: dict[str, Any], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    rewrite(bundle, "inference", lambda content: content["preprocessing"]["transforms"].append(step))
    assert_refused(bundle, words)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("disabled", [True, "true", 1])
def test_disabled_step_is_left_out_as_monai_does(bundle: Path, disabled: Any) -> None:
    before = load_base_model(bundle).preprocessing
    step = {"_target_": "ScaleIntensityd", "minv": 0, "maxv": 1, "_disabled_": disabled}
    rewrite(bundle, "inference", lambda content: content["preprocessing"]["transforms"].append(step))
    assert load_base_model(bundle).preprocessing == before


@pytest.mark.parametrize(
    "step",
    [
        {"_target_": "NormalizeIntensityd", "chmannel_wise": True},
        {"_target_": "NormalizeIntensityd", "subtrahend": "much"},
        {"_target_": "NormalizeIntensityd", "subtrahend": float("nan")},
        {"_target_": "ScaleIntensityRanged", "a_min": 0},
        {"_target_": "ScaleIntensityRangePercentilesd", "lower": 5, "upper": 500, "b_min": 0, "b_max": 1},
    ],
)
def test_preprocessing_that_cannot_be_done_is_known_at_once(bundle: Path, step: dict[str, Any]) -> None:
    rewrite(bundle, "inference", lambda content: content["preprocessing"]["transforms"].append(step))
    with pytest.raises(InputError, match="intensity") as caught:
        load_base_model(bundle)
    assert caught.value.remedy


def test_expressions_elsewhere_are_left_alone(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rewrite(bundle, "inference", lambda content: content.update(run=["$__import__('os').system('touch canary')"]))
    load_base_model(bundle).build()
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("name", ["configs/metadata.json", "configs/inference.json", "models/model.pt"])
def test_a_missing_file_is_named(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    assert_refused(bundle, name)


def test_a_folder_without_configs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="configs"):
        load_base_model(tmp_path)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"\xff\xfe\x00", b"[" * 100_000])
@pytest.mark.parametrize("name", ["metadata", "inference"])
def test_a_damaged_config_is_named(bundle: Path, name: str, text: bytes) -> None:
    (bundle / "configs" / f"{name}.json").write_bytes(text)
    assert_refused(bundle, f"configs/{name}.json")


@pytest.mark.parametrize(
    "definition",
    [None, {}, [], {"1": "head"}, {"0": "background"}, {"0": "background", "1": "head", "2": "t", "3": "x"}],
)
def test_channels_must_be_named(bundle: Path, definition: Any) -> None:
    rewrite(
        bundle,
        "metadata",
        lambda content: content["network_data_format"]["outputs"]["pred"].update(channel_def=definition),
    )
    assert_refused(bundle, "channel")


@pytest.mark.parametrize(
    "definition",
    [
        {"0": "Tumor core", "1": "Whole tumor", "2": "Enhancing tumor"},
        {"0": "head", "1": "background", "2": "tail"},
        {"0": "head", "1": "tail", "2": "background"},
    ],
)
def test_first_channel_must_be_the_background(bundle: Path, definition: dict[str, str]) -> None:
    """Otherwise every voxel would be labeled, or an adapter start its background from a structure."""
    rewrite(
        bundle,
        "metadata",
        lambda content: content["network_data_format"]["outputs"]["pred"].update(channel_def=definition),
    )
    assert_refused(bundle, "first output channel", f"'{definition['0']}'", "background")


def test_later_channels_may_vote_for_the_background_too(bundle: Path) -> None:
    """As in a merged model whose site does not label one of its base's structures."""
    definition = {"0": "background", "1": "head", "2": "background"}
    rewrite(
        bundle,
        "metadata",
        lambda content: content["network_data_format"]["outputs"]["pred"].update(channel_def=definition),
    )
    base = load_base_model(bundle)
    assert base.channels == ("background", "head", "background") and base.structures == ["head"]


SIGMOID = {"_target_": "Activationsd", "keys": "pred", "sigmoid": True}
SOFTMAX = {"_target_": "monai.transforms.Activations", "softmax": [True]}
ARGMAX = {"_target_": "AsDiscreted", "keys": "pred", "argmax": True}
AT_HALF = {"_target_": "AsDiscreted", "keys": "pred", "threshold": 0.5}


@pytest.mark.parametrize(
    ("steps", "activation"),
    [
        ([SIGMOID, AT_HALF], "sigmoid"),
        ([{**SIGMOID, "sigmoid": [True], "softmax": False}, AT_HALF], "sigmoid"),
        ([SOFTMAX, ARGMAX], "softmax"),
        ([{**SIGMOID, "sigmoid": False, "softmax": True}, ARGMAX], "softmax"),
        ([ARGMAX], "softmax"),
        ([], "softmax"),
    ],
)
def test_what_is_behind_the_network_says_whether_structures_may_overlap(
    bundle: Path, steps: list[dict[str, Any]], activation: str
) -> None:
    """Also behind a reference."""
    content = {"postprocessing": {"_target_": "Compose", "transforms": "$@post"}, "post": steps}
    rewrite(bundle, "inference", lambda inference: inference.update(content))
    assert load_base_model(bundle).activation == activation


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([AT_HALF], "threshold"),
        ([{**SIGMOID, "sigmoid": False}, AT_HALF], "threshold"),
        ([SIGMOID, {**AT_HALF, "threshold": 0.3}], "0.3"),
        ([{**SIGMOID, "sigmoid": "$@unknown"}, AT_HALF], "activation"),
        ([{**SOFTMAX, "other": "$lambda x: open('canary', 'w')"}], "never executed"),
        ([SOFTMAX, {"_target_": "FillHolesd", "keys": "pred"}], "FillHoles"),
        ([ARGMAX, {"_target_": "KeepLargestConnectedComponentd", "num_components": 2}], "connected"),
    ],
)
def test_what_cannot_be_told_from_a_softmax_is_refused(bundle: Path, steps: list[dict[str, Any]], words: str) -> None:
    rewrite(bundle, "inference", lambda content: content.update(postprocessing={"transforms": steps}))
    assert_refused(bundle, words)


@pytest.mark.parametrize(
    "roi", [None, "$[16, 16]", "$__import__('os')", [16, 16], [16, 16, 0], [16, 16, 10**9], [1.5, 16, 16], {}]
)
def test_the_window_must_be_given(bundle: Path, roi: Any) -> None:
    rewrite(bundle, "inference", lambda content: content["inferer"].update(roi_size=roi))
    assert_refused(bundle, "window size")


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, 0.99])
@pytest.mark.parametrize("kind", ["model.pt", "model.safetensors"])
def test_truncated_weights_are_named(bundle: Path, network: SegResNet, kind: str, kept: float) -> None:
    path = bundle / "models" / kind
    if kind.endswith("safetensors"):
        save_file(network.state_dict(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    assert_refused(bundle, kind)


@pytest.mark.parametrize(
    "state", [[], 7, {}, {"state_dict": 7}, {"weight": "text"}, {7: torch.zeros(1)}, torch.zeros(3)]
)
def test_weights_that_are_no_state_are_refused(bundle: Path, state: Any) -> None:
    torch.save(state, bundle / "models" / "model.pt")
    assert_refused(bundle, "model.pt")


def test_weights_of_another_network_are_refused(bundle: Path) -> None:
    torch.save(SegResNet(**{**NETWORK, "init_filters": 16}).state_dict(), bundle / "models" / "model.pt")
    assert_refused(bundle, "do not fit")


def test_layers_that_other_releases_of_monai_make_and_never_run_are_left_out(bundle: Path) -> None:
    shape: dict[str, Any] = {"in_channels": 1, "out_channels": NETWORK["out_channels"], "img_size": [16, 16, 16]}
    shape |= {"feature_size": 4, "hidden_size": 24, "mlp_dim": 24, "num_heads": 2}
    torch.manual_seed(0)
    unetr = UNETR(**shape).eval()
    changes = {"network_def": {"_target_": "UNETR", **shape}, "inferer": {"roi_size": [16, 16, 16]}}
    rewrite(bundle, "inference", lambda content: content.update(changes))
    kept = {name: value for name, value in unetr.state_dict().items() if ".norm_cross_attn." not in name}
    assert len(kept) < len(unetr.state_dict())
    torch.save(kept | {"vit.blocks.0.cross_attn.out_proj.weight": torch.ones(24, 24)}, bundle / "models" / "model.pt")
    image = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        assert torch.allclose(load_base_model(bundle).build()(image), unetr(image), atol=1e-5)
    torch.save(kept | {"vit.blocks.0.other.weight": torch.ones(1)}, bundle / "models" / "model.pt")
    assert_refused(bundle, "do not fit its network")


def test_outputs_that_only_helped_to_train_the_base_are_left_out(bundle: Path) -> None:
    """An adapter may have other channels than they have."""
    shape: dict[str, Any] = {"spatial_dims": 3, "in_channels": 1, "out_channels": 3, "kernel_size": [3, 3, 3, 3]}
    shape |= {"strides": [1, 2, 2, 2], "upsample_kernel_size": [2, 2, 2], "filters": [4, 4, 4, 4]}
    shape |= {"deep_supervision": True, "deep_supr_num": 2}
    torch.manual_seed(0)
    stock = DynUNet(**shape).eval()
    rewrite(bundle, "inference", lambda content: content.update(network_def={"_target_": "DynUNet", **shape}))
    torch.save(stock.state_dict(), bundle / "models" / "model.pt")
    base = load_base_model(bundle)
    built, image = base.build(), torch.randn(1, 1, 16, 24, 32)
    with torch.no_grad():
        assert torch.allclose(built(image), stock(image), atol=1e-5)
    assert built.train()(image).shape == (1, 3, 16, 24, 32)
    assert not any("head" in name for name, _ in built.named_parameters())
    assert base.network_def["deep_supervision"] is False


def test_activations_are_not_computed_again_in_the_backward_pass(bundle: Path) -> None:
    """They would be computed with the base's weights, and not with the adapted ones."""
    shape: dict[str, Any] = {"in_channels": 1, "out_channels": 3, "feature_size": 12, "num_heads": [1, 1, 1, 1]}
    shape |= {"depths": [1, 1, 1, 1], "use_checkpoint": True}

    def change(content: dict[str, Any]) -> None:
        content["network_def"] = {"_target_": "SwinUNETR", **shape}
        content["inferer"]["roi_size"] = [64, 32, 32]

    rewrite(bundle, "inference", change)
    torch.save(SwinUNETR(**shape).state_dict(), bundle / "models" / "model.pt")
    network = load_base_model(bundle).build()
    model = TensorCurModel(network, preset("paper", network, head="out.conv.conv")).train()
    model(torch.randn(1, 1, 64, 32, 32)).square().mean().backward()
    assert all(core.grad is not None and bool(core.grad.any()) for core in model.cores())


@pytest.mark.parametrize(
    "change", [{"init_filters": "many"}, {"no_such": 1}, {"blocks_down": []}, {"init_filters": -8}]
)
def test_arguments_that_do_not_fit_the_network_are_said(bundle: Path, change: dict[str, Any]) -> None:
    rewrite(bundle, "inference", lambda content: content["network_def"].update(change))
    assert_refused(bundle, "Tiny")


def test_network_that_fails_on_its_window_is_known_at_once(bundle: Path) -> None:
    """Groups that are `true` in the config are 1 to what makes the network, and nothing to what computes with it."""
    groups = ["group", {"num_groups": True}]
    rewrite(bundle, "inference", lambda content: content["network_def"].update(norm=groups))
    assert_refused(bundle, "fails on its window of 16 x 24 x 32 voxels", "bool")


def test_window_that_the_network_cannot_halve_is_known_at_once(bundle: Path) -> None:
    deeper = {**NETWORK, "blocks_down": [1, 1], "blocks_up": [1]}
    torch.save(SegResNet(**deeper).state_dict(), bundle / "models" / "model.pt")

    def change(content: dict[str, Any]) -> None:
        content["network_def"].update(deeper)
        content["inferer"]["roi_size"] = [17, 24, 32]

    rewrite(bundle, "inference", change)
    assert_refused(bundle, "fails on its window of 17 x 24 x 32 voxels")


def test_network_with_other_outputs_than_are_named_is_known_at_once(bundle: Path) -> None:
    """Nobody says how many there are: it is the class's default."""
    two = SegResNet(**{key: value for key, value in NETWORK.items() if key != "out_channels"})
    torch.save(two.state_dict(), bundle / "models" / "model.pt")
    rewrite(bundle, "inference", lambda content: content["network_def"].pop("out_channels"))
    assert_refused(bundle, "has 2 output channels")


@pytest.mark.parametrize("value", [None, "text", "@x", 7, [], [7], {"transforms": 7}, {"transforms": [7]}, True])
@pytest.mark.parametrize("key", ["network_def", "preprocessing", "inferer", "postprocessing"])
def test_any_other_type_in_the_config_is_refused_or_read(bundle: Path, key: str, value: Any) -> None:
    """A config of unexpected shape ends in an InputError or in a model, never in a traceback."""
    rewrite(bundle, "inference", lambda content: content.update({key: value}))
    assert_no_traceback(bundle)


@pytest.mark.parametrize("value", [None, "text", 7, [], [7], {"outputs": 7}, {"outputs": {"pred": []}}, {"inputs": 7}])
@pytest.mark.parametrize("key", ["network_data_format", "structures", "name"])
def test_any_other_type_in_the_metadata_is_refused_or_read(bundle: Path, key: str, value: Any) -> None:
    rewrite(bundle, "metadata", lambda content: content.update({key: value}))
    assert_no_traceback(bundle)


def assert_no_traceback(bundle: Path) -> None:
    try:
        base = load_base_model(bundle)
        base.labelled_structures()
        base.build()
    except InputError as error:
        assert error.remedy


@pytest.mark.parametrize("channels", ["one", 0, -1, 1.5, None])
def test_in_channels_that_are_no_number_are_refused(bundle: Path, channels: Any) -> None:
    rewrite(bundle, "inference", lambda content: content["network_def"].update(in_channels=channels))
    assert_refused(bundle, "input channels")


def test_a_written_bundle_holds_nothing_but_tensors_and_text(bundle: Path, network: SegResNet) -> None:
    names = sorted(path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file())
    assert names == ["configs/inference.json", "configs/metadata.json", "docs/README.md", "models/model.pt"]
    state = torch.load(bundle / "models" / "model.pt", weights_only=True)
    assert state.keys() == network.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in network.state_dict().items())


def test_a_base_model_is_not_changed_by_its_metadata(bundle: Path) -> None:
    base = load_base_model(bundle)
    assert isinstance(base, BaseModel)
    before = copy.deepcopy(base.network_def)
    base.build()
    assert base.network_def == before
