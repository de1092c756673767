"""Open models: adapters share the network of their base, and give to the last bit what a merged copy gives."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import SimpleITK as sitk
import torch
from monai.networks.nets import DynUNet
from torch import Tensor, nn

from tcurlora.errors import InputError
from tcurlora.imaging.structures import BACKGROUND
from tcurlora.inference.scans import SegmentRequest, run_segment
from tcurlora.inference.segmenter_cache import AdaptedNetwork, SegmenterCache, open_once
from tcurlora.method.channels import Channel
from tcurlora.method.config import TensorCurConfig
from tcurlora.method.model import TensorCurModel, adapt, find_places
from tcurlora.models.adapter_files import load_adapter, save_adapter
from tcurlora.models.opening import load_base_model
from tcurlora.runtime.events import NullEvents

HEAD = "conv_final.2.conv"
SAME = (Channel(BACKGROUND, 0), Channel("a", 1), Channel("b", 2))
MORE = (*SAME, Channel("c", 2), Channel("d", None))


def save(bundle: Path, folder: Path, seed: int, **changes: Any) -> Path:
    """Write an adapter of random weights."""
    base = load_base_model(bundle)
    config = TensorCurConfig(**{"r": 2, "head": HEAD, "channels": SAME, "seed": seed, **changes})
    model = scattered(adapt(base.build(trial=False), config), seed)
    names = [channel.name for channel in config.channels or () if channel.name != BACKGROUND]
    structures = [{"name": name, "value": number} for number, name in enumerate(names, start=1)]
    save_adapter(model, folder, {"structures": structures, "base_model": {"sha256": base.sha256}})
    return folder


def scattered(model: TensorCurModel, seed: int) -> TensorCurModel:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in [*model.cores(), *model.whole_parameters()]:
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def output(network: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        result: Tensor = network(torch.randn(2, 1, 16, 16, 16, generator=generator))
    return result


def merged(bundle: Path, adapter: Path) -> nn.Module:
    return load_adapter(load_base_model(bundle).build(trial=False), adapter).merged()


def test_adapters_in_turns_give_what_merged_copies_give(bundle: Path, tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [{}, {}, {"channels": MORE}, {"r": 3}, {"selection": "random"}, {"alpha": 2.0}]
    changes += [{"selection": "random"}, {"factors": "raw"}, {"modules_to_save": ("convInit",)}]
    adapters = [save(bundle, tmp_path / str(n), n, **change) for n, change in enumerate(changes)]
    cache, plain = SegmenterCache(), load_base_model(bundle).build(trial=False)
    opened = [cache.open(str(adapter), str(bundle), "cpu") for adapter in adapters]
    base = cache.open(str(bundle), device="cpu")
    for adapter, segmenter in zip(adapters, opened, strict=True):
        assert torch.equal(output(segmenter.network), output(merged(bundle, adapter)))
        assert torch.equal(output(base.network), output(plain))
    assert [channel for channel in opened[2].channels] == [channel.name for channel in MORE]


def test_adapters_share_the_weights_of_their_base(bundle: Path, tmp_path: Path) -> None:
    cache = SegmenterCache()
    adapters = [
        cache.open(str(save(bundle, tmp_path / str(seed), seed, kinds=())), str(bundle), "cpu") for seed in (1, 2)
    ]
    network = cache.open(str(bundle), device="cpu").network
    head = dict(network.named_parameters())[f"{HEAD}.weight"]
    for segmenter in adapters:
        assert isinstance(segmenter.network, AdaptedNetwork)
        assert segmenter.network._shared[0] is network
        assert sum(tensor.numel() for tensor in segmenter.network.state_dict().values()) == head.numel() + len(head)


def test_opened_once_it_is_the_merged_network(bundle: Path, tmp_path: Path) -> None:
    adapter = save(bundle, tmp_path / "a", 1, channels=MORE)
    network, expected = open_once(str(adapter), str(bundle), "cpu").network, merged(bundle, adapter)
    assert not isinstance(network, AdaptedNetwork)
    assert torch.equal(output(network), output(expected))
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in expected.state_dict().items())


def test_layers_of_several_names_and_memory_layouts_stay_right() -> None:
    torch.manual_seed(0)
    network = DynUNet(3, 1, 3, (3, 3, 3), (1, 2, 2), (2, 2), filters=(4, 8, 12)).eval()
    network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    before = output(network)
    model = scattered(adapt(network, TensorCurConfig(r=2)), 1)
    with torch.no_grad():
        adapted = AdaptedNetwork(network, model.adapted_parameters(), find_places(network))
        for _ in range(2):
            assert torch.equal(output(adapted), output(model.merged()))
            assert torch.equal(output(network), before)
        layouts = {name: value.stride() for name, value in model.merged().named_parameters()}
        scattered(model, 2)  # changes nothing that was opened before
        again = output(adapted)
    assert torch.equal(again, output(adapted)) and not torch.equal(again, output(model.merged()))
    assert torch.equal(output(adapted.folded()), again)
    assert {name: value.stride() for name, value in network.named_parameters()} == layouts


def test_spare_model_takes_an_adapter_only_where_it_fits(bundle: Path, tmp_path: Path) -> None:
    network = load_base_model(bundle).build(trial=False)
    spare = load_adapter(network, save(bundle, tmp_path / "first", 1))
    for number, (changes, fits) in enumerate(
        [
            ({}, True),
            ({"channels": (Channel(BACKGROUND, 0), Channel("x", 2), Channel("y", 1))}, True),
            ({"channels": MORE}, False),
            ({"r": 1}, False),
            ({"alpha": 0.5}, False),
            ({"selection": "random"}, False),
            ({"target_modules": ("up",)}, False),
        ]
    ):
        adapter = save(bundle, tmp_path / str(number), 7, **changes)
        model, fresh = load_adapter(network, adapter, spare=spare), load_adapter(network, adapter)
        assert (model is spare) == fits, changes
        assert model.config == fresh.config
        state = fresh.trained_state()
        assert all(torch.equal(value, state[name]) for name, value in model.trained_state().items())
    other = load_base_model(bundle).build(trial=False)
    assert load_adapter(other, tmp_path / "first", spare=spare) is not spare


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: content["inferer"].update(roi_size=[17, 16, 16]), "fails on its window of 17 x 16 x 16"),
        (lambda content: content["network_def"].pop("out_channels"), "has 2 output channels"),
    ],
)
def test_network_that_fails_is_said_to_once_for_all_scans(
    bundle: Path,
    tmp_path: Path,
    make_scan: Callable[..., Any],
    change: Callable[[dict[str, Any]], Any],
    words: str,
) -> None:
    folder = Path(shutil.copytree(bundle, tmp_path / "Modell ä"))
    path = folder / "configs" / "inference.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    if "out_channels" not in content["network_def"]:
        from monai.networks.nets import SegResNet
        from safetensors.torch import save_file

        arguments = {key: value for key, value in content["network_def"].items() if key != "_target_"}
        save_file(SegResNet(**arguments).state_dict(), folder / "models" / "model.safetensors")
    for number in range(2):
        sitk.WriteImage(make_scan(number)[0], tmp_path / f"{number}.nrrd")
    for count in (1, 2):
        scans = tuple(str(tmp_path / f"{number}.nrrd") for number in range(count))
        out = tmp_path / f"out {count}"
        with pytest.raises(InputError, match=words) as caught:
            run_segment(SegmentRequest(str(folder), scans, str(out)), NullEvents())
        assert caught.value.code == "bad_bundle" and caught.value.remedy
        assert not out.exists()
