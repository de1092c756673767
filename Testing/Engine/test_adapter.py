"""What an adapted network computes: the base's output at the start, then what its cores say, and nothing else."""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from monai.networks.nets import UNETR, DynUNet, SegResNet, SwinUNETR
from torch import Tensor, nn

import tcurlora
from tcurlora.errors import InputError
from tcurlora.method import core_stack
from tcurlora.method.channels import Channel, channel_groups
from tcurlora.method.config import TensorCurConfig
from tcurlora.method.head import find_head
from tcurlora.method.model import TensorCurModel, adapt, fingerprint, merge
from tcurlora.method.stacks import Slice, StackSpec
from tcurlora.training.presets import PRESETS, preset

Size = tuple[int, int, int]
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Size, str]] = {
    "UNETR": (
        lambda: UNETR(1, 3, (32, 16, 16), feature_size=4, hidden_size=24, mlp_dim=48, num_heads=2),
        (32, 16, 16),
        "out.conv.conv",
    ),
    "SwinUNETR": (
        lambda: SwinUNETR(1, 3, feature_size=12, depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 2), patch_size=2),
        (64, 32, 32),
        "out.conv.conv",
    ),
    "SegResNet": (
        lambda: SegResNet(init_filters=8, in_channels=1, out_channels=3),
        (16, 16, 16),
        "conv_final.2.conv",
    ),
    "DynUNet": (
        lambda: DynUNet(3, 1, 3, (3, 3, 3), (1, 2, 2), (2, 2), filters=(4, 8, 12)),
        (16, 16, 16),
        "output_block.conv.conv",
    ),
}


@functools.cache
def base(name: str) -> tuple[nn.Module, Tensor, Tensor, str]:
    """A base network, an input, its output, and the name of its head; an adapter must leave all this as it is."""
    build, size, head = NETWORKS[name]
    torch.manual_seed(1)
    network = build().eval()
    image = torch.randn(1, 1, *size)
    with torch.no_grad():
        return network, image, network(image), head


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """`meta` stands for a device that has no float64, and that tensors can be copied from."""

    def to_processor(tensor: Tensor) -> Tensor:
        return torch.ones(tensor.shape, dtype=tensor.dtype) if tensor.is_meta else tensor

    double = Tensor.double

    def only_on_processor(tensor: Tensor) -> Tensor:
        if tensor.is_meta:
            raise TypeError("this device has no float64")
        return double(tensor)

    monkeypatch.setattr(Tensor, "cpu", to_processor)
    monkeypatch.setattr(Tensor, "double", only_on_processor)
    monkeypatch.setattr(TensorCurModel, "_device_type", lambda _: "cpu")  # autocast does not know the other
    return torch.device("meta")


def digest(network: nn.Module) -> str:
    """A hash of all parameters and buffers, independent of the engine's own fingerprint."""
    content = hashlib.sha256()
    for name, value in network.state_dict().items():
        content.update(name.encode() + value.detach().numpy().tobytes())
    return content.hexdigest()


def train_one_step(model: TensorCurModel, image: Tensor, lr: float = 0.05) -> Tensor:
    trained = [p for p in model.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == model.trained_counts()["total"]
    optimizer = torch.optim.Adam(trained, lr=lr)
    output = model(image)
    # A weighted sum: a mean would be blind to what a softmax or a norm takes away.
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(5))
    (output * weights).sum().backward()
    optimizer.step()
    return output


def fill_cores(model: TensorCurModel, scale: float = 0.1) -> None:
    with torch.no_grad():
        for i, stack in enumerate(model.stacks):
            stack.core.copy_(scale * torch.randn(stack.core.shape, generator=torch.Generator().manual_seed(i)))


def output_of(model: nn.Module, image: Tensor) -> Tensor:
    with torch.no_grad():
        return model(image)


@pytest.mark.parametrize(
    ("name", "method"),
    [(n, m) for n in NETWORKS for m in PRESETS if m != "paper" or n in ("UNETR", "SwinUNETR")],
)
def test_at_the_start_the_output_is_that_of_the_base_bit_for_bit(name: str, method: str) -> None:
    network, image, expected, head = base(name)
    model = adapt(network, preset(method, network, head=head, r=4))
    assert torch.equal(output_of(model, image), expected)
    if method == "compact":
        # Also with gradients and in the mode of training.
        assert torch.equal(model.train()(image).detach(), expected)
        network.eval()


@pytest.mark.parametrize("factors", ["raw", "orthonormal", "relative"])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_core_is_trained_and_the_output_depends_on_it(name: str, factors: str) -> None:
    network, image, expected, head = base(name)
    before = digest(network)
    model = adapt(network, TensorCurConfig(r=4, factors=factors, head=head)).train()
    assert all(stack.core.count_nonzero() == 0 for stack in model.stacks)
    train_one_step(model, image)
    for stack in model.stacks:
        assert stack.core.grad is not None
        assert stack.core.grad.isfinite().all()
        assert stack.core.grad.count_nonzero() > 0, str(stack.spec)
        assert stack.core.count_nonzero() > 0
    model.eval()
    with torch.no_grad():
        for parameter in model.whole.values():
            assert parameter.grad.count_nonzero() > 0
    after = output_of(model, image)
    assert (after - expected).abs().max() > 1e-3 * expected.abs().max()
    # The base itself neither moved nor was asked for gradients; disabled, its own output is back.
    assert digest(network) == before
    assert all(p.grad is None and not p.requires_grad for p in network.parameters())
    model.enabled = False
    assert torch.equal(output_of(model, image), expected)
    model.enabled = True
    assert torch.equal(output_of(model, image), after)
    # Without the cores, only the trained head would be left.
    with torch.no_grad():
        for stack in model.stacks:
            stack.core.zero_()
    assert (output_of(model, image) - after).abs().max() > 1e-4 * expected.abs().max()


@pytest.mark.parametrize("name", ["UNETR", "DynUNet"])
def test_each_single_core_changes_its_own_weights_and_the_output(name: str) -> None:
    network, image, expected, head = base(name)
    model = adapt(network, TensorCurConfig(r=4, head=head)).eval()
    weights = dict(network.named_parameters())
    for stack in model.stacks:
        with torch.no_grad():
            stack.core.fill_(0.3)
            changed = {n for n, w in model.adapted_parameters().items() if not torch.equal(w, weights[n])}
            assert changed == {part.parameter for part in stack.spec.slices}
            assert not torch.equal(model(image), expected)
            stack.core.zero_()
    assert torch.equal(output_of(model, image), expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_merged_and_unmerged_agree(name: str) -> None:
    network, image, expected, head = base(name)
    before = digest(network)
    model = adapt(network, TensorCurConfig(r=4, head=head)).eval()
    fill_cores(model)
    adapted = output_of(model, image)
    merged = merge(model)
    assert (output_of(merged, image) - adapted).abs().max() <= 1e-5
    assert (adapted - expected).abs().max() > 1e-2
    assert type(merged) is type(network)
    assert {n: v.shape for n, v in merged.state_dict().items()} == {n: v.shape for n, v in network.state_dict().items()}
    assert not any(type(module).__module__.startswith("tcurlora") for module in merged.modules())
    assert digest(network) == before


def test_change_of_a_weight_is_what_its_stack_says() -> None:
    network, *_ = base("UNETR")
    model = adapt(network, TensorCurConfig(r=4, alpha=0.5))
    double = adapt(network, TensorCurConfig(r=4, alpha=1.0))
    fill_cores(model)
    fill_cores(double)
    weights, adapted = dict(network.named_parameters()), model.adapted_parameters()
    twice = double.adapted_parameters()
    (attention,) = (s for s in model.stacks if s.spec.shape == (24, 24) and s.spec.kind == "linear")
    change = attention.change()
    qkv = "vit.blocks.7.attn.qkv.weight"
    assert torch.allclose(adapted[qkv] - weights[qkv], torch.cat(list(change[4 * 7 + 1 : 4 * 7 + 4])), atol=1e-6)
    assert torch.allclose(2 * (adapted[qkv] - weights[qkv]), twice[qkv] - weights[qkv], atol=1e-6)
    up = "decoder5.transp_conv.conv.weight"
    (stack,) = (s for s in model.stacks if Slice(up) in s.spec.slices)
    taps = stack.change().split(8)[stack.spec.slices.index(Slice(up))]
    expected = taps.permute(2, 1, 0).reshape(weights[up].shape)  # (tap, out, in) to (in, out, kernel)
    assert torch.allclose(adapted[up] - weights[up], expected, atol=1e-6)


def test_each_change_is_computed_once_a_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    network, image, *_ = base("UNETR")
    model = adapt(network, TensorCurConfig(r=2, kinds=("linear",)))
    calls = []
    compute = core_stack.low_rank_change
    monkeypatch.setattr(core_stack, "low_rank_change", lambda *a: calls.append(1) or compute(*a))
    output_of(model, image.expand(2, -1, -1, -1, -1))
    assert len(calls) == len(model.stacks) == 3


def test_counts_of_the_paper(card: torch.device) -> None:
    with card:
        network = UNETR(1, 2, (128, 128, 128), feature_size=16, hidden_size=768, mlp_dim=3072, num_heads=12)
    assert sum(p.numel() for p in network.parameters()) == 93_029_602
    model = adapt(network, preset("paper", network))
    assert sorted(tuple(stack.core.shape) for stack in model.stacks) == [(12, 8, 8), (12, 8, 8), (48, 8, 8)]
    assert sorted(stack.spec.shape for stack in model.stacks) == [(768, 768), (768, 3072), (3072, 768)]
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    cores = {n: p for n, p in trained.items() if n.endswith(".core")}
    assert sum(p.numel() for p in cores.values()) == 4_608
    assert all(p.dtype == torch.float32 for p in cores.values())
    rest = {n: p for n, p in trained.items() if n not in cores}
    assert sum(p.numel() for p in rest.values()) == 2_678_528
    assert {n.split(".")[1].split("/")[0] for n in rest} == {"decoder2", "decoder3", "decoder4", "decoder5"}
    assert model.trained_counts() == {"cores": 4_608, "whole": 2_678_528, "total": 2_683_136}
    assert model.config.factors == "raw"


def test_presets_train_what_they_say() -> None:
    network, _, _, head = base("UNETR")
    everything = sum(p.numel() for p in network.parameters())
    counts = {m: adapt(network, preset(m, network, head=head)).trained_counts() for m in PRESETS}
    assert counts["full"] == {"cores": 0, "whole": everything, "total": everything}
    assert counts["decoder"]["cores"] == 0
    assert counts["paper"]["whole"] == counts["decoder"]["whole"] > counts["compact"]["whole"]
    assert counts["compact"]["whole"] == sum(p.numel() for p in network.get_submodule(head).parameters())
    assert counts["paper"]["cores"] == (48 + 12 + 12) * 64
    kernels = {n: m for n, m in network.named_modules() if isinstance(m, nn.Conv3d | nn.ConvTranspose3d) and n != head}
    # r^2 for each voxel of a kernel; the patch embedding, with its 16^3 voxels, is one matrix.
    assert counts["compact"]["cores"] == sum(
        min(4, m.in_channels, m.out_channels) ** 2 * math.prod(m.kernel_size) if max(m.kernel_size) <= 3 else 16
        for m in kernels.values()
    )


@pytest.mark.parametrize("name", ["SegResNet", "DynUNet"])
def test_paper_is_refused_where_it_would_train_no_core(name: str) -> None:
    """It would be 'decoder' by another name."""
    network, _, _, head = base(name)
    with pytest.raises(InputError, match=f"{name} has no linear layers") as refusal:
        preset("paper", network, head=head)
    assert "'compact'" in refusal.value.remedy and "'decoder'" in refusal.value.remedy
    assert preset("decoder", network, head=head).modules_to_save


def test_what_is_trained_whole_is_in_no_stack() -> None:
    network, _, _, head = base("UNETR")
    model = adapt(network, TensorCurConfig(r=2, head=head, modules_to_save=(r"^decoder[23]\.", r"attn\.qkv")))
    whole = {name.replace("/", ".") for name in model.whole}
    stacked = {part.parameter for stack in model.stacks for part in stack.spec.slices}
    assert f"{head}.weight" in whole
    assert "vit.blocks.3.attn.qkv.weight" in whole
    assert whole.isdisjoint(stacked)
    assert whole | stacked >= {n for n, _ in network.named_parameters() if n.endswith("conv.weight")}


def test_compact_adapts_linear_layers_where_there_are_no_kernels() -> None:
    network = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    assert adapt(network, preset("compact", network)).trained_counts() == {"cores": 32, "whole": 0, "total": 32}


def test_taps_reach_a_filter_that_mixtures_of_existing_filters_do_not() -> None:
    """All that can be reached at full rank: with taps any kernel, flattened only combinations of the base's filters."""
    torch.manual_seed(0)
    layer = nn.Conv3d(4, 4, 3, bias=False)
    wanted = torch.randn_like(layer.weight)

    def missed(kernels: str) -> float:
        model = adapt(nn.Sequential(copy.deepcopy(layer)), TensorCurConfig(r=4, kernels=kernels))
        (core,) = model.cores()
        columns = []
        for number in range(core.numel()):
            with torch.no_grad():
                core.zero_().view(-1)[number] = 1
                columns.append((model.adapted_parameters()["0.weight"] - layer.weight).flatten())
        reachable = torch.stack(columns, 1).double()
        target = (wanted - layer.weight).detach().double().flatten()
        found = torch.linalg.lstsq(reachable, target[:, None]).solution[:, 0]
        return float((reachable @ found - target).norm() / target.norm())

    assert missed("taps") < 1e-5
    assert missed("flat") > 0.5


@pytest.mark.parametrize("factors", ["raw", "orthonormal", "relative"])
def test_a_rank_above_the_sides_is_cut(factors: str) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 3), nn.ReLU(), nn.Linear(3, 5), nn.Linear(5, 3)).eval()
    tokens = torch.randn(4, 5)
    model = adapt(network, TensorCurConfig(r=1000, factors=factors))
    assert [tuple(stack.core.shape) for stack in model.stacks] == [(2, 3, 3), (1, 3, 3)]
    expected = output_of(network, tokens)
    assert torch.equal(output_of(model, tokens), expected)
    train_one_step(model, tokens)
    assert not torch.allclose(output_of(model, tokens), expected, atol=1e-3)


def test_random_selection_is_another_choice_and_repeatable() -> None:
    network, *_ = base("DynUNet")
    first, again, other = (
        adapt(network, TensorCurConfig(r=3, selection="random", seed=seed)).trained_state() for seed in (0, 0, 1)
    )
    chosen = adapt(network, TensorCurConfig(r=3)).trained_state()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    assert any(not torch.equal(first[name], chosen[name]) for name in first)


@pytest.mark.parametrize("call_train", [True, False])
def test_batch_norm_keeps_the_statistics_of_the_base(call_train: bool) -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Conv2d(4, 2, 1))
    before = digest(network)
    model = adapt(network, TensorCurConfig(r=1))
    if call_train:
        model.train()
    assert model.network[2].training
    for _ in range(3):
        train_one_step(model, torch.randn(2, 1, 8, 8) + 5)
    assert digest(network) == before


def test_changes_are_computed_in_full_precision_under_autocast() -> None:
    torch.manual_seed(0)
    model = adapt(nn.Sequential(nn.Conv1d(9, 4, 1), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)))
    fill_cores(model, 1.0)
    exact = model.adapted_parameters()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model.adapted_parameters()
        assert model.network[1](torch.randn(2, 6)).dtype == torch.bfloat16
    assert all(torch.equal(mixed[name], exact[name]) for name in exact)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_base_of_another_precision(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)).to(dtype).eval()
    tokens = torch.randn(3, 6, dtype=dtype)
    model = adapt(network)
    expected = output_of(network, tokens)
    assert torch.equal(output_of(model, tokens), expected)
    fill_cores(model)
    adapted = output_of(model, tokens)
    assert adapted.dtype == dtype
    assert not torch.equal(adapted, expected)
    assert torch.equal(output_of(merge(model), tokens), adapted)


def test_layers_that_share_a_weight_still_do_when_adapted_and_merged() -> None:
    network = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False))
    network[1].weight = network[0].weight
    model = adapt(network, TensorCurConfig(r=2))
    tokens = torch.randn(3, 6)
    assert torch.equal(output_of(model, tokens), output_of(network, tokens))
    fill_cores(model)
    weight = model.adapted_parameters()["0.weight"].detach()
    assert torch.allclose(output_of(model, tokens), tokens @ weight.T @ weight.T, atol=1e-6)
    merged = merge(model)
    assert merged[1].weight is merged[0].weight
    assert torch.allclose(output_of(merged, tokens), output_of(model, tokens), atol=1e-6)


def test_a_layer_of_two_names_is_adapted_and_the_base_keeps_its_weight() -> None:
    layer = nn.Linear(6, 6)
    network = nn.ModuleDict({"first": layer, "second": nn.Sequential(layer, nn.ReLU(), layer)})
    network.forward = lambda tokens: network["second"](network["first"](tokens))
    tokens = torch.randn(3, 6)
    before, expected = digest(network), output_of(network, tokens)
    model = adapt(network, TensorCurConfig(r=2))
    fill_cores(model)
    weight = model.adapted_parameters()["first.weight"].detach()
    for _ in range(2):
        hidden = torch.relu(nn.functional.linear(tokens @ weight.T + layer.bias, weight, layer.bias))
        assert torch.allclose(output_of(model, tokens), nn.functional.linear(hidden, weight, layer.bias), atol=1e-6)
    assert isinstance(layer.weight, nn.Parameter)
    assert digest(network) == before
    assert torch.equal(output_of(network, tokens), expected)


# New layouts of the output channels -----


def small_base(outputs: int) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(3)
    network = nn.Sequential(nn.Conv3d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv3d(6, outputs, 1)).eval()
    image = 3 * torch.randn(2, 1, 6, 6, 6)
    return network, image, output_of(network, image).softmax(1)


def probabilities(network: nn.Module, image: Tensor, channels: tuple[Channel, ...], names: list[str]) -> Tensor:
    model = adapt(network, TensorCurConfig(head="2", channels=channels))
    shares = output_of(model, image).softmax(1)
    assert shares.shape[1] == len(channels)
    groups = channel_groups([c.name for c in channels], names)
    merged = merge(model)
    assert merged[2].out_channels == len(channels)
    assert torch.allclose(output_of(merged, image).softmax(1), shares, atol=1e-6)
    return torch.stack([shares[:, group].sum(1) for group in groups], dim=1)


def test_a_union_has_the_summed_probability_of_its_parts() -> None:
    network, image, before = small_base(4)
    channels = (
        Channel("background", 0),
        Channel("hippocampus", 1),
        Channel("background", 2),
        Channel("hippocampus", 3),
    )
    after = probabilities(network, image, channels, ["hippocampus"])
    assert torch.allclose(after[:, 1], before[:, 1] + before[:, 3], atol=1e-6)
    assert torch.allclose(after[:, 0], before[:, 0] + before[:, 2], atol=1e-6)


def test_a_split_shares_the_probability_of_the_whole() -> None:
    network, image, before = small_base(3)
    channels = (Channel("background", 0), *(Channel(n, 1) for n in ("a", "b", "c")), Channel("other", 2))
    after = probabilities(network, image, channels, ["a", "b", "c", "other"])
    assert torch.allclose(after[:, 1:4].sum(1), before[:, 1], atol=1e-6)
    assert torch.allclose(after[:, 1], after[:, 3], atol=1e-6)
    assert torch.allclose(after[:, [0, 4]], before[:, [0, 2]], atol=1e-6)


def test_a_new_structure_starts_rare_and_is_never_the_answer() -> None:
    network, image, before = small_base(3)
    channels = (*(Channel(n, i) for i, n in enumerate(("background", "a", "b"))), Channel("lesion", None))
    after = probabilities(network, image, channels, ["a", "b", "lesion"])
    assert torch.allclose(after[:, 3] / after[:, 0], torch.full_like(after[:, 0], math.exp(-4)), atol=1e-5)
    assert 0.018 < float((after[:, 3] / after[:, 0]).mean()) < 0.02
    assert not (after.argmax(1) == 3).any()
    assert torch.equal(after.argmax(1), before.argmax(1))
    assert torch.allclose(after[:, 1] / after[:, 2], before[:, 1] / before[:, 2], rtol=1e-4)


def test_a_new_layout_is_trained_with_its_head() -> None:
    network, image, _, head = base("UNETR")
    channels = (Channel("background", 0), Channel("h", 1), Channel("h", 2), Channel("new", None))
    model = adapt(network, TensorCurConfig(r=2, head=head, channels=channels)).train()
    assert train_one_step(model, image).shape[1] == 4
    assert model.trained_counts()["whole"] == 4 * (4 + 1)
    assert base("UNETR")[0](image).shape[1] == 3


# A network that a training has left on another device -----


@pytest.mark.parametrize("name", NETWORKS)
def test_the_head_is_found_on_every_device(name: str, card: torch.device) -> None:
    network, image, _, head = base(name)
    assert find_head(copy.deepcopy(network).to(card), image, 3) == head


@pytest.mark.parametrize("method", ["compact", "paper", "full"])
def test_a_network_on_another_device_is_adapted_there(method: str, card: torch.device) -> None:
    network, image, _, head = base("UNETR")
    moved = copy.deepcopy(network).to(card)
    model = TensorCurModel(moved, preset(method, moved, head=head))
    assert {tensor.device for tensor in (*model.parameters(), *model.buffers())} == {card}
    assert model(image.to(card)).device == card
    assert {parameter.device for parameter in model.merged().parameters()} == {card}
    assert {tensor.device.type for tensor in model.trained_state().values()} == {"cpu"}


# The head, the configuration, the identity of a base -----


@pytest.mark.parametrize("name", NETWORKS)
def test_the_head_is_found(name: str) -> None:
    network, image, _, head = base(name)
    try:
        assert find_head(network.train(), image, 3) == head
        assert network.training
        with pytest.raises(InputError, match="17 output channels") as refusal:
            find_head(network, image, 17)
    finally:
        network.eval()
    assert refusal.value.code == "no_head"
    assert not any(module._forward_hooks for module in network.modules())


def test_a_configuration_is_read_back_from_json() -> None:
    network, _, _, head = base("DynUNet")
    config = TensorCurConfig(
        r=3,
        alpha=2.0,
        factors="raw",
        selection="random",
        kinds=("convolution",),
        kernels="flat",
        target_modules=("^up",),
        modules_to_save=("norm",),
        head=head,
        channels=(Channel("background", 0), Channel("海馬", None)),
        seed=4,
    )
    for one in (config, adapt(network, config).config, TensorCurConfig()):
        assert TensorCurConfig.from_dict(json.loads(json.dumps(one.to_dict()))) == one


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"r": 0}, "bad_rank"),
        ({"r": -3}, "bad_rank"),
        ({"factors": "orthogonal"}, "unknown_word"),
        ({"selection": "best"}, "unknown_word"),
        ({"kinds": ("linear", "conv")}, "unknown_word"),
        ({"kernels": "tap"}, "unknown_word"),
        ({"target_modules": ("no such layer",)}, "nothing_to_train"),
        ({"kinds": ()}, "nothing_to_train"),
        ({"head": "2.conv"}, "no_head"),
        ({"stacks": (StackSpec("linear", (4, 4), (Slice("0.weight"),)),)}, "adapter_mismatch"),
        ({"stacks": (StackSpec("linear", (6, 1), (Slice("nothing.weight"),)),)}, "adapter_mismatch"),
    ],
)
def test_configurations_that_cannot_be_are_refused(change: dict[str, object], code: str) -> None:
    with pytest.raises(InputError) as refusal:
        adapt(small_base(3)[0], TensorCurConfig(**change))
    assert refusal.value.code == code
    assert refusal.value.remedy


def test_unknown_presets_and_decoders_are_refused() -> None:
    with pytest.raises(InputError, match="'lora'") as refusal:
        preset("lora", small_base(3)[0])
    assert refusal.value.code == "unknown_method"
    for method in ("paper", "decoder"):
        with pytest.raises(InputError, match="Sequential") as refusal:
            preset(method, small_base(3)[0])
        assert refusal.value.code == "unknown_decoder"


@pytest.mark.parametrize("missing", ["core.0", "whole.2.bias"])
def test_a_state_that_does_not_fit_is_refused(missing: str) -> None:
    model = adapt(small_base(3)[0], TensorCurConfig(head="2"))
    state = model.trained_state()
    model.load_trained_state(state)
    wrong = {**state, missing: torch.zeros(7)}
    for bad in ({k: v for k, v in state.items() if k != missing}, wrong):
        with pytest.raises(InputError, match=f"'{missing}'"):
            model.load_trained_state(bad)


def test_the_fingerprint_follows_every_weight() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
    first = fingerprint(network)
    other = copy.deepcopy(network)
    assert fingerprint(other) == first
    with torch.no_grad():
        other[0].weight[2, 0, 1, 1].nextafter_(torch.tensor(9.0))
    assert fingerprint(other) != first
    other = copy.deepcopy(network)
    other[1].running_var[3] = 2.0
    assert fingerprint(other) != first
    adapt(network)
    assert fingerprint(network) == first


# Networks that are no segmentation models -----


def image_classifier() -> tuple[nn.Module, Tensor]:
    layers = (nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8 * 16, 10), nn.Linear(10, 10))
    return nn.Sequential(*layers), torch.randn(2, 3, 8, 8)


def encoder_layer() -> tuple[nn.Module, Tensor]:
    return nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True), torch.randn(2, 5, 16)


@pytest.mark.parametrize("build", [image_classifier, encoder_layer])
def test_any_module_is_adapted_saved_loaded_and_merged(
    build: Callable[[], tuple[nn.Module, Tensor]], tmp_path: Path
) -> None:
    torch.manual_seed(2)
    network, inputs = build()
    network.eval()
    expected = output_of(network, inputs)
    model = tcurlora.adapt(network, tcurlora.TensorCurConfig(r=3))
    assert torch.equal(output_of(model, inputs), expected)
    train_one_step(model.train(), inputs)
    model.eval()
    adapted = output_of(model, inputs)
    assert not torch.allclose(adapted, expected, atol=1e-3)
    tcurlora.save_adapter(model, tmp_path / "adapter")
    loaded = tcurlora.load_adapter(network, tmp_path / "adapter").eval()
    assert torch.equal(output_of(loaded, inputs), adapted)
    assert torch.allclose(output_of(tcurlora.merge(loaded), inputs), adapted, atol=1e-5)
    assert torch.equal(output_of(network, inputs), expected)


def in_both_ways(model: TensorCurModel, image: Tensor) -> list[tuple[Tensor, list[Tensor]]]:
    """Output and gradients of the cores with factors applied to the inputs, and with changed weights."""
    results = []
    for factored in (True, False):
        if not factored:
            model._factored = []
        output = model(image)
        weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(5), dtype=output.dtype)
        results.append((output, list(torch.autograd.grad((output * weights).sum(), model.cores()))))
    return results


def test_factors_applied_to_inputs_are_changed_weights() -> None:
    torch.manual_seed(2)
    # Attention with a fused qkv weight, and an MLP, both wide beside a core of rank 1.
    network = UNETR(1, 2, (16, 16, 16), feature_size=4, hidden_size=96, mlp_dim=192, num_heads=4).double().eval()
    model = TensorCurModel(network, TensorCurConfig(r=1, alpha=1.5))
    for core in model.cores():
        nn.init.normal_(core, std=0.05)
    model.double()
    factored = [stack.spec for stack in model._factored]
    assert {spec.shape for spec in factored} == {(96, 96), (192, 96), (96, 192)}
    assert any(part.parts == 3 for spec in factored for part in spec.slices)
    image = torch.randn(2, 1, 16, 16, 16, dtype=torch.float64)
    (applied, own), (changed, expected) = in_both_ways(model, image)
    assert (changed - network(image)).abs().max() > 1e-3
    torch.testing.assert_close(applied, changed, rtol=0, atol=1e-9)
    torch.testing.assert_close(own, expected, rtol=1e-8, atol=1e-9)
    assert not any(module._forward_hooks for module in network.modules())


class DirectUse(nn.Module):
    """Uses the weight of one linear layer without calling the layer, and names the input of the other."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(32, 32)
        self.second = nn.Linear(32, 48)

    def forward(self, image: Tensor) -> Tensor:
        result: Tensor = self.second(input=nn.functional.linear(image, self.first.weight))
        return result


def test_a_weight_that_is_used_without_its_layer_is_changed() -> None:
    torch.manual_seed(3)
    network = DirectUse()
    model = TensorCurModel(network, TensorCurConfig(r=2))
    for core in model.cores():
        nn.init.normal_(core)
    image = torch.randn(4, 32)
    assert [stack.spec.shape for stack in model._factored] == [(32, 32), (48, 32)]
    torch.testing.assert_close(model(image), model.merged()(image))
    assert [stack.spec.shape for stack in model._factored] == [(48, 32)]
    torch.testing.assert_close(model(image), model.merged()(image))
