"""The methods of a comparison: ours, its controls, and those of others on the same layers.

Every method is an `AdaptedModel`, so that one training loop drives them all. LoRA is peft's own, which is imported only
when it is asked for.
"""

from __future__ import annotations

import copy
import importlib.util
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tcurlora.errors import InputError
from tcurlora.method.adapted_model import AdaptedModel
from tcurlora.method.config import KINDS, TensorCurConfig
from tcurlora.method.core_stack import CoreStack
from tcurlora.method.model import TensorCurModel
from tcurlora.method.stacks import Slice, StackSpec, find_stacks, gather, matches
from tcurlora.method.tensor_cur import Factors, cur_factors
from tcurlora.training.presets import COMPACT_CORE_DECAY, COMPACT_RANK, decoder_modules

PEFT_KINDS = ("linear", "convolution")  # peft has no LoRA for transposed convolutions
ADAPTER = "default"


@dataclass(frozen=True)
class Method:
    """One way to adapt a network.

    Attributes:
        title: what it is, in a few words.
        preset: which layers it changes and what it trains whole; one of `presets.PRESETS`.
        lr_core: middle of the grid of peak learning rates for what changes frozen weights.
        lr_whole: the same for what is trained whole.
        core_decay: of what changes frozen weights.
        changes: fields of the preset's configuration that differ.
        rank: used where the user names none.
        make: turns the network, its configuration and a seed into a model.
        needs_peft: whether peft must be installed.
        trained: False for the base as it is.
    """

    title: str
    preset: str
    lr_core: float
    lr_whole: float
    core_decay: float = 0.0
    changes: Mapping[str, Any] = field(default_factory=dict)
    rank: int = 8
    make: Callable[[nn.Module, TensorCurConfig], AdaptedModel] = TensorCurModel
    needs_peft: bool = False
    trained: bool = True


class FactorModel(TensorCurModel):
    """Cores between frozen factors that are no rows and columns of the base, so that no index sets are stored.

    Args:
        network: the base.
        config: what is adapted; its `stacks` say which weights share a core.
        make_factors: gives the factors of a stack: its number, the weights (n, out, in) and the rank.
    """

    def __init__(
        self, network: nn.Module, config: TensorCurConfig, make_factors: Callable[[int, Tensor, int], Factors]
    ) -> None:
        super().__init__(network, config)
        parameters = dict(network.named_parameters())
        for number, stack in enumerate(self.stacks):
            assert isinstance(stack, CoreStack)
            factors = make_factors(number, gather(stack.spec, parameters), stack.core.shape[-1])
            stack.columns_factor.copy_(torch.view_as_real(factors.columns))
            stack.rows_factor.copy_(torch.view_as_real(factors.rows))

    def trained_state(self) -> dict[str, Tensor]:
        """Collect cores and the parameters trained whole."""
        state = super().trained_state()
        return {name: tensor for name, tensor in state.items() if not name.startswith(("rows.", "columns."))}


class LoraModel(nn.Module):
    """peft's LoRA in a copy of the network, with the head and other parameters trained whole as in all methods.

    The first factor of each layer is random, the second zero: at the start the output is the base's.

    Args:
        network: the base; it stays as it is.
        config: which layers and parameters; its rank is LoRA's rank, its seed that of the first factors.
        layers: names of the layers; all linear layers and convolutions of the configuration when None.

    Raises:
        InputError: when there is no such layer.
    """

    def __init__(self, network: nn.Module, config: TensorCurConfig, layers: Sequence[str] | None = None) -> None:
        super().__init__()
        from peft import LoraConfig, inject_adapter_in_model

        names = [layer.name for layer in lora_layers(network, config)] if layers is None else layers
        if not names:
            raise InputError(
                f"{type(network).__name__} has no layers that LoRA could change in this way.",
                "Leave this method out of --methods.",
                "nothing_to_train",
            )
        pattern = "|".join(re.escape(name) for name in names)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            injected = inject_adapter_in_model(
                LoraConfig(r=config.r, lora_alpha=config.r, target_modules=rf"^({pattern})$"), copy.deepcopy(network)
            )
        self.inner = TensorCurModel(injected, replace(config, kinds=(), stacks=None))
        for parameter in self.cores():
            parameter.requires_grad_(True)

    @property
    def config(self) -> TensorCurConfig:
        """What is trained whole, the head, and the layout of its channels."""
        return self.inner.config

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the network with peft's layers."""
        return self.inner(*args, **kwargs)

    def cores(self) -> list[nn.Parameter]:
        """Both factors of every layer."""
        return [parameter for _, parameter in self._factors()]

    def whole_parameters(self) -> list[nn.Parameter]:
        """The parameters that are trained as they are."""
        return self.inner.whole_parameters()

    def head_parameters(self) -> list[nn.Parameter]:
        """Those of them that belong to the head."""
        return self.inner.head_parameters()

    def trained_state(self) -> dict[str, Tensor]:
        """Collect the factors and the parameters trained whole."""
        factors = {name: parameter.detach().cpu().clone() for name, parameter in self._factors()}
        return {**factors, **self.inner.trained_state()}

    def load_trained_state(self, state: Mapping[str, Tensor]) -> None:
        """Set what `trained_state` holds."""
        self.inner.load_trained_state(state)
        with torch.no_grad():
            for name, parameter in self._factors():
                parameter.copy_(state[name])

    def trained_counts(self) -> dict[str, int]:
        """Count trained parameters: in the factors, in parameters trained whole, and together."""
        cores = sum(parameter.numel() for parameter in self.cores())
        whole = self.inner.trained_counts()["whole"]
        return {"cores": cores, "whole": whole, "total": cores + whole}

    def merged(self) -> nn.Module:
        """Return a copy of the network with the changes added to its weights, without peft's layers."""
        from peft.tuners.lora import LoraLayer as PeftLayer

        network = self.inner.merged()
        for name, module in list(network.named_modules()):
            if isinstance(module, PeftLayer):
                lora: Any = module
                layer = lora.get_base_layer()
                down, up = (factors[ADAPTER].weight.detach() for factors in (lora.lora_A, lora.lora_B))
                # Not by peft's own merge, which fails at convolutions of one channel with kernels of one voxel.
                change = lora.scaling[ADAPTER] * up.flatten(1) @ down.flatten(1)
                layer.weight.data += change.view_as(layer.weight)
                parent, _, attribute = name.rpartition(".")
                setattr(network.get_submodule(parent), attribute, layer)
        return network

    def _factors(self) -> Iterator[tuple[str, nn.Parameter]]:
        for name, parameter in self.inner.network.named_parameters():
            if ".lora_A." in name or ".lora_B." in name:
                yield name, parameter


@dataclass(frozen=True)
class LoraLayer:
    """A layer that LoRA may change, and how many numbers that takes at rank 1."""

    name: str
    numbers: int


def lora_layers(network: nn.Module, config: TensorCurConfig) -> list[LoraLayer]:
    """The linear layers and convolutions that a configuration adapts, in the network's order."""
    names = {parameter: number for number, (parameter, _) in enumerate(network.named_parameters())}
    layers = {
        part.parameter: LoraLayer(part.parameter.removesuffix(".weight"), spec.shape[0] * part.parts + spec.shape[1])
        for spec in _stacks(network, config)
        if spec.kind in PEFT_KINDS
        for part in spec.slices
    }
    return [layers[parameter] for parameter in sorted(layers, key=names.__getitem__)]


def matched_layers(layers: Sequence[LoraLayer], budget: int) -> tuple[int, list[str]]:
    """Choose rank and layers so that LoRA trains at most `budget` numbers.

    All layers at the largest rank that fits. Where even rank 1 does not: rank 1, from the output backwards, each
    layer that still fits.
    """
    rank = budget // max(1, sum(layer.numbers for layer in layers))
    if rank:
        return rank, [layer.name for layer in layers]
    chosen = []
    for layer in reversed(layers):
        if layer.numbers <= budget:
            chosen.append(layer.name)
            budget -= layer.numbers
    return 1, chosen[::-1]


def unimportant_rows_and_columns(matrix: Tensor, rank: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw rows and columns with probabilities inverse to their share of the energy: CURLoRA's rule.

    Without replacement, because a row that is drawn twice adds nothing.

    Args:
        matrix: (out, in).
        rank: how many of each.
        seed: of the draw.
    """
    generator = torch.Generator().manual_seed(seed)
    energy = matrix.detach().double().cpu().square()
    draws = []
    for axis in (1, 0):
        share = energy.sum(axis) / energy.sum().clamp_min(1e-300)
        inverse = 1 / share.clamp_min(1e-12)
        draws.append(torch.multinomial(inverse / inverse.sum(), rank, generator=generator).sort().values)
    return draws[0], draws[1]


def _stacks(network: nn.Module, config: TensorCurConfig) -> list[StackSpec]:
    """The stacks of a configuration, without what it trains whole."""

    def frozen(parameter: str) -> bool:
        whole = bool(config.modules_to_save) and matches(parameter, config.modules_to_save)
        return not whole and parameter != f"{config.head}.weight"

    found = find_stacks(network, config.target_modules)  # kernels flattened: others know no taps
    kept = (
        replace(spec, slices=tuple(part for part in spec.slices if frozen(part.parameter)))
        for spec in found
        if spec.kind in config.kinds
    )
    return [spec for spec in kept if spec.slices]


def _single(network: nn.Module, config: TensorCurConfig) -> TensorCurConfig:
    """Every weight for itself, as methods without tensors have it; a fused qkv weight is one matrix, as in peft."""
    specs = [
        StackSpec(spec.kind, (spec.shape[0] * part.parts, spec.shape[1]), (Slice(part.parameter),))
        for spec in _stacks(network, config)
        for part in spec.slices
        if part.part == 0
    ]
    return replace(config, stacks=tuple(specs))


def _curlora(network: nn.Module, config: TensorCurConfig) -> AdaptedModel:
    config = _single(network, config)
    parameters = dict(network.named_parameters())
    chosen = [
        unimportant_rows_and_columns(
            gather(spec, parameters)[0], min(config.r, *spec.shape), config.seed * 1000 + number
        )
        for number, spec in enumerate(config.stacks or ())
    ]
    return TensorCurModel(network, config, chosen)


def _lora_xs(network: nn.Module, config: TensorCurConfig) -> AdaptedModel:
    def singular(_number: int, stack: Tensor, rank: int) -> Factors:
        left, values, right = torch.linalg.svd(stack.double(), full_matrices=False)
        columns = left[..., :rank] * values[:, None, :rank]
        return Factors(columns.to(torch.complex64), right[:, :rank].to(torch.complex64))

    return FactorModel(network, _single(network, config), singular)


def _gaussian(network: nn.Module, config: TensorCurConfig) -> AdaptedModel:
    def drawn(number: int, stack: Tensor, rank: int) -> Factors:
        generator = torch.Generator().manual_seed(config.seed * 1000 + number)
        noise = torch.randn(stack.shape, generator=generator)
        noise *= stack.norm().cpu() / noise.norm()
        return cur_factors(noise, torch.arange(rank), torch.arange(rank), config.factors)

    return FactorModel(network, config, drawn)


def _compact_decoder(network: nn.Module, config: TensorCurConfig) -> AdaptedModel:
    return TensorCurModel(network, replace(config, target_modules=decoder_modules(network, "compact-decoder")))


def _lora_matched(network: nn.Module, config: TensorCurConfig) -> AdaptedModel:
    budget = TensorCurModel(network, config).trained_counts()["cores"]
    rank, layers = matched_layers(lora_layers(network, replace(config, kinds=KINDS)), budget)
    return LoraModel(network, replace(config, r=rank), layers)


_RAW = {"factors": "raw"}
# Every layer that has weights, its kernels flattened to matrices: what methods without taps adapt.
_ALL = {"kinds": KINDS, "kernels": "flat"}
_compact = partial(Method, preset="compact", lr_core=6e-3, lr_whole=3e-3)
METHODS: dict[str, Method] = {
    "base": Method("the base model as it is", "compact", 0.0, 0.0, trained=False),
    "decoder": Method("decoder and head trained whole", "decoder", 0.0, 1e-3),
    "full": Method("everything trained whole", "full", 0.0, 5e-4),
    "compact": _compact(
        "tCURLoRA, kernels by taps, relative factors; head", core_decay=COMPACT_CORE_DECAY, rank=COMPACT_RANK
    ),
    "compact-orthonormal": _compact(
        "tCURLoRA, as compact with orthonormal factors; head",
        lr_core=3e-2,
        changes={"factors": "orthonormal"},
        rank=COMPACT_RANK,
    ),
    "compact-raw": _compact(
        "tCURLoRA, as compact with raw factors; head", lr_core=1e-2, changes=_RAW, rank=COMPACT_RANK
    ),
    "compact-decoder": _compact(
        "tCURLoRA, as compact, the decoder's kernels only; head",
        core_decay=COMPACT_CORE_DECAY,
        rank=COMPACT_RANK,
        make=_compact_decoder,
    ),
    "compact-flat": _compact(
        "tCURLoRA, all stacks, flat kernels, relative factors; head", core_decay=COMPACT_CORE_DECAY, changes=_ALL
    ),
    "paper": Method("tCURLoRA, transformer's stacks, raw factors; decoder and head", "paper", 1e-3, 1e-3),
    "paper-orthonormal": Method(
        "tCURLoRA, transformer's stacks, orthonormal factors; decoder and head",
        "paper",
        1e-2,
        1e-3,
        changes={"factors": "orthonormal"},
    ),
    "random": _compact(
        "control: as compact, rows and columns drawn at random",
        core_decay=COMPACT_CORE_DECAY,
        changes={"selection": "random"},
        rank=COMPACT_RANK,
    ),
    "gaussian": _compact(
        "control: as compact, random factors that know nothing of the base",
        core_decay=COMPACT_CORE_DECAY,
        rank=COMPACT_RANK,
        make=_gaussian,
    ),
    "curlora": _compact(
        "CURLoRA: each matrix for itself, unimportant rows and columns; head",
        lr_core=3e-2,
        changes={**_ALL, **_RAW},
        make=_curlora,
    ),
    "lora-xs": _compact(
        "LoRA-XS: each matrix between its singular vectors; head", lr_core=1e-2, changes=_ALL, make=_lora_xs
    ),
    "lora": _compact(
        "LoRA (peft), linear layers and convolutions; head", lr_core=1e-2, changes=_ALL, make=LoraModel, needs_peft=True
    ),
    "lora-matched": _compact(
        "LoRA (peft), at most as many numbers as compact; head",
        lr_core=1e-2,
        rank=COMPACT_RANK,
        make=_lora_matched,
        needs_peft=True,
    ),
    "paper-lora": Method(
        "LoRA (peft), transformer's linear layers; decoder and head",
        "paper",
        1e-3,
        1e-3,
        make=LoraModel,
        needs_peft=True,
    ),
}


def parse_methods(names: Iterable[str]) -> dict[str, tuple[Method, int]]:
    """Look up methods by name; `lora@4` is LoRA at rank 4.

    Returns:
        Method and rank by the name that was given.

    Raises:
        InputError: for a name or a rank that is not known, one given twice, or when peft is missing.
    """
    chosen: dict[str, tuple[Method, int]] = {}
    for entry in (name.strip() for name in names):
        name, at, rank = entry.partition("@")
        if name not in METHODS:
            raise InputError(
                f"--methods has the method '{entry}', which is not known.",
                f"Choose among {', '.join(METHODS)}; NAME@RANK sets another rank than the usual one.",
                "unknown_method",
            )
        if at and not (rank.isdecimal() and 1 <= int(rank) < 10_000):
            raise InputError(f"--methods has the rank '{rank}' in '{entry}'.", "Write for example lora@4.", "bad_rank")
        if entry in chosen:
            raise InputError(f"--methods names '{entry}' twice.", "Name each method once.", "duplicate_method")
        chosen[entry] = (METHODS[name], int(rank) if at else METHODS[name].rank)
    needing = [name for name, (method, _) in chosen.items() if method.needs_peft]
    if needing and importlib.util.find_spec("peft") is None:
        raise InputError(
            f"The method '{needing[0]}' needs the package peft, which is not installed.",
            "Install it with 'pip install peft', or leave the method out of --methods.",
            "no_peft",
        )
    return chosen
