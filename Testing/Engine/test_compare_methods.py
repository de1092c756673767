"""The methods that tCURLoRA is compared with: each does what its authors say, and starts at the base."""

from __future__ import annotations

import ast
import copy
import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.networks.nets import UNETR
from torch import Tensor, nn

import tcurlora
from tcurlora.comparison import methods as baselines
from tcurlora.comparison.methods import (
    METHODS,
    LoraLayer,
    LoraModel,
    lora_layers,
    matched_layers,
    parse_methods,
    unimportant_rows_and_columns,
)
from tcurlora.errors import InputError
from tcurlora.method.config import TensorCurConfig
from tcurlora.method.model import TensorCurModel, fingerprint
from tcurlora.runtime.memory import peak_bytes
from tcurlora.training.presets import PRESETS, preset, training_settings

pytest.importorskip("peft")
HEAD = "out.conv.conv"


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    small = {"feature_size": 4, "hidden_size": 24, "mlp_dim": 48, "num_heads": 2}
    return UNETR(1, 3, (16, 16, 16), **small).eval()


@pytest.fixture(scope="module")
def image() -> Tensor:
    return torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(1))


def config_of(name: str, network: nn.Module, rank: int = 4, seed: int = 0) -> TensorCurConfig:
    return replace(preset(METHODS[name].preset, network, head=HEAD, r=rank, seed=seed), **METHODS[name].changes)


def make(name: str, network: nn.Module, rank: int = 4, seed: int = 0) -> Any:
    return METHODS[name].make(network, config_of(name, network, rank, seed))


def disturb(model: Any) -> None:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in (*model.cores(), *model.whole_parameters()):
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("name", PRESETS)
def test_preset_is_compared_as_it_is_adapted_with(name: str, network: nn.Module) -> None:
    method, settings = METHODS[name], training_settings(name)
    assert method.preset == name and method.rank == (preset(name, network).r if method.lr_core else method.rank)
    assert (method.lr_whole, method.core_decay) == (settings.lr_whole, settings.core_decay)
    assert method.lr_core in (0.0, settings.lr_core) and bool(method.lr_core) == bool(make(name, network).cores())


def test_decoder_can_be_adapted_alone(network: nn.Module) -> None:
    config = make("compact-decoder", network).config
    adapted = {part.parameter for spec in config.stacks for part in spec.slices}
    everywhere = {part.parameter for spec in make("compact", network).config.stacks for part in spec.slices}
    assert adapted == {name for name in everywhere if name.startswith("decoder")} and adapted < everywhere


@pytest.mark.parametrize("name", METHODS)
def test_method_starts_at_the_base_learns_and_can_be_kept(name: str, network: nn.Module, image: Tensor) -> None:
    before = fingerprint(network)
    model = make(name, network).eval()
    with torch.no_grad():
        assert torch.allclose(model(image), network(image), atol=1e-5)
    model.train()
    model(image).square().mean().backward()
    trained = [*model.cores(), *model.whole_parameters()]
    assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for p in trained}
    # LoRA's first factors get no gradient while the second ones are zero; UNETR has parameters that it never uses.
    moved = [p for p in trained if p.grad is not None and p.grad.abs().sum() > 0]
    assert len(moved) >= (len(trained) // 2 if "lora" in name or name == "full" else len(trained))
    counts = model.trained_counts()
    assert counts["total"] == sum(p.numel() for p in trained) == counts["cores"] + counts["whole"]
    disturb(model)
    model.eval()
    other = make(name, network).eval()
    other.load_trained_state(model.trained_state())
    with torch.no_grad():
        changed = model(image)
        assert not torch.allclose(changed, network(image), atol=1e-3)
        assert torch.allclose(other(image), changed, atol=1e-5)
        assert torch.allclose(model.merged().eval()(image), changed, atol=1e-4)
    assert not any("lora" in key or "base_layer" in key for key in model.merged().state_dict())
    assert fingerprint(network) == before and not any(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_method_is_made_where_a_training_before_it_left_the_network(
    name: str, network: nn.Module, image: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`meta` stands for a graphics card, so what is copied from it has no values."""
    monkeypatch.setattr(Tensor, "cpu", lambda x: torch.ones(x.shape, dtype=x.dtype) if x.is_meta else x)
    monkeypatch.setattr(TensorCurModel, "_device_type", lambda _: "cpu")  # autocast does not know the other
    card = torch.device("meta")
    model = make(name, copy.deepcopy(network).to(card))
    assert {tensor.device for tensor in (*model.parameters(), *model.buffers())} == {card}
    assert model(image.to(card)).device == card
    assert {parameter.device for parameter in model.merged().parameters()} == {card}


def test_lora_trains_what_its_formula_says(network: nn.Module) -> None:
    """r (in k^3 + out) for each linear layer and convolution, but for the head and transposed convolutions."""
    by_hand = 0
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear):
            by_hand += 4 * (module.in_features + module.out_features)
        elif isinstance(module, nn.Conv3d) and name != HEAD:
            by_hand += 4 * (module.in_channels * module.kernel_size[0] ** 3 + module.out_channels)
    counts = make("lora", network).trained_counts()
    assert counts == {"cores": by_hand, "whole": 4 * 3 + 3, "total": by_hand + 15}
    # 12 blocks: q, k and v in one layer of 24 to 72, output projection of 24 to 24, an MLP of 24 to 48 and back.
    paper = make("paper-lora", network).trained_counts()
    assert paper["cores"] == 4 * 12 * ((24 + 72) + (24 + 24) + 2 * (24 + 48))
    decoder = sum(p.numel() for n, p in network.named_parameters() if n.startswith(("decoder", HEAD)))
    assert paper["whole"] == decoder == make("decoder", network).trained_counts()["total"]


def test_matrix_methods_train_as_many_numbers_as_ours(network: nn.Module) -> None:
    ours = make("compact", network).trained_counts()
    for name in ("random", "gaussian", "compact-raw"):
        assert make(name, network).trained_counts() == ours
    # q, k and v of 12 blocks are three matrices of a stack, but one matrix by themselves.
    flat = make("compact-flat", network).trained_counts()
    for name in ("curlora", "lora-xs"):
        assert make(name, network).trained_counts()["cores"] == flat["cores"] - 12 * 2 * 4 * 4
    assert all(len(spec.slices) == 1 for spec in make("curlora", network).config.stacks)


def test_matched_lora_fills_the_number_of_ours_and_no_more(network: nn.Module) -> None:
    ours = make("compact", network).trained_counts()["cores"]
    matched = make("lora-matched", network).trained_counts()["cores"]
    assert 0.95 * ours <= matched <= ours


def test_matching_by_hand() -> None:
    layers = [LoraLayer("a", 10), LoraLayer("b", 30), LoraLayer("c", 20)]
    assert matched_layers(layers, 185) == (3, ["a", "b", "c"])
    assert matched_layers(layers, 60) == (1, ["a", "b", "c"])
    # Backwards from the output: c, then b, of which 9 is left, too little for a.
    assert matched_layers(layers, 59) == (1, ["b", "c"])
    assert matched_layers(layers, 35) == (1, ["a", "c"])
    assert matched_layers(layers, 5) == (1, [])


def test_lora_is_pefts_and_its_start_depends_on_the_seed_alone(network: nn.Module) -> None:
    from peft.tuners.lora import LoraLayer as PeftLayer

    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = (make("lora", network, seed=seed).trained_state() for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected), "the caller's random numbers are left alone"
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)
    model = make("lora", network)
    wrapped = [name for name, module in model.inner.network.named_modules() if isinstance(module, PeftLayer)]
    assert sorted(wrapped) == sorted(layer.name for layer in lora_layers(network, config_of("lora", network)))
    assert HEAD not in wrapped and not any("transp_conv.conv" in name for name in wrapped)


def test_lora_without_layers_is_refused(network: nn.Module) -> None:
    config = replace(config_of("lora", network), target_modules=("^nothing$",))
    with pytest.raises(InputError, match="no layers"):
        LoraModel(network, config)


def test_curlora_prefers_what_is_unimportant() -> None:
    matrix = torch.ones(20, 30)
    matrix[:15] *= 100
    matrix[:, :24] *= 100
    rows, columns = zip(*(unimportant_rows_and_columns(matrix, 4, seed) for seed in range(20)), strict=True)
    assert torch.cat(rows).ge(15).float().mean() > 0.9 and torch.cat(columns).ge(24).float().mean() > 0.9
    assert all(len(set(draw.tolist())) == 4 for draw in (*rows, *columns))
    assert len({tuple(draw.tolist()) for draw in rows}) > 1
    assert torch.equal(unimportant_rows_and_columns(matrix, 4, 3)[0], rows[3])
    zeros = torch.zeros(4, 4)
    assert unimportant_rows_and_columns(zeros, 2, 0)[0].shape == (2,)


def test_lora_xs_moves_weights_within_their_leading_singular_vectors(network: nn.Module) -> None:
    model = make("lora-xs", network)
    disturb(model)
    name = "vit.blocks.3.mlp.linear1.weight"
    base = dict(network.named_parameters())[name].detach()
    change = model.adapted_parameters()[name].detach() - base
    left, _, right = torch.linalg.svd(base, full_matrices=False)
    within = left[:, :4] @ (left[:, :4].T @ change @ right[:4].T) @ right[:4]
    assert change.abs().max() > 1e-3
    assert torch.allclose(within, change, atol=1e-5)
    assert not any(key.startswith(("rows", "columns")) for key in model.trained_state())


def test_controls_know_less_of_the_base_than_ours(network: nn.Module) -> None:
    """Random rows and columns are still the base's; of Gaussian factors only the norm is."""
    torch.manual_seed(3)
    other = UNETR(1, 3, (16, 16, 16), feature_size=4, hidden_size=24, mlp_dim=48, num_heads=2).eval()
    ours, random, gaussian = (
        [(m.stacks[0].columns_factor, m.stacks[0].rows) for m in (make(name, network), make(name, other))]
        for name in ("compact", "random", "gaussian")
    )
    assert not torch.equal(ours[0][1], ours[1][1])
    assert torch.equal(random[0][1], random[1][1]) and not torch.allclose(random[0][0], random[1][0])
    torch.testing.assert_close(*(factor / factor.norm() for factor, _ in gaussian))
    assert not torch.allclose(gaussian[0][0], gaussian[1][0])
    assert not torch.equal(make("gaussian", network, seed=1).stacks[0].columns_factor, gaussian[0][0])


def test_methods_are_parsed_with_their_ranks() -> None:
    chosen = parse_methods(["compact", "lora", " lora@4 ", "compact@16"])
    assert {name: rank for name, (_, rank) in chosen.items()} == {
        "compact": 4,
        "lora": 8,
        "lora@4": 4,
        "compact@16": 16,
    }
    for bad in (["magic"], ["lora@0"], ["lora@"], ["lora", "lora"]):
        with pytest.raises(InputError, match=r"--methods"):
            parse_methods(bad)


def test_missing_peft_is_said_beforehand(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(baselines.importlib.util, "find_spec", lambda name: None if name == "peft" else find(name))
    with pytest.raises(InputError, match="pip install peft"):
        parse_methods(["compact", "lora"])
    assert list(parse_methods(["compact", "lora-xs", "curlora", "gaussian"]))


def test_engine_loads_peft_only_when_asked() -> None:
    for module in Path(tcurlora.__file__).parent.glob("*.py"):
        for node in ast.parse(module.read_text(encoding="utf-8")).body:
            names = (
                [a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", "") or ""]
            )
            assert not any(name.startswith("peft") for name in names), module.name


def test_peak_counts_what_is_alive_at_once() -> None:
    def work(keep: bool) -> None:
        first = torch.zeros(1_000_000)  # 4 MB
        kept = [first] if keep else []
        del first
        second = torch.ones(500_000) * 2  # 2 MB, and 2 MB of the ones
        view = second.view(2, -1).t()
        del kept, view

    cpu = torch.device("cpu")
    assert peak_bytes(lambda: work(True), cpu) == pytest.approx(8_000_000, rel=0.01)
    assert peak_bytes(lambda: work(False), cpu) == pytest.approx(4_000_000, rel=0.01)


def test_peak_of_a_training_step_counts_gradients(network: nn.Module, image: Tensor) -> None:
    def step(model: TensorCurModel) -> int:
        return peak_bytes(lambda: model.train()(image).sum().backward(), torch.device("cpu"))

    weights = 4 * sum(p.numel() for p in network.parameters())
    whole, small = step(make("full", network)), step(make("decoder", network))
    assert whole > weights and small < whole
