"""The adapter: what of a frozen network is trained, and how that changes its weights.

`TensorCurModel` leaves the network untouched and computes the adapted weights once per forward pass: each stack's
change C * U * R is formed once for all of its layers. Where it is small beside its linear layers it is not formed at
all, but applied to their inputs factor by factor, so that neither it nor a gradient of its size is held. Any
`torch.nn.Module` made of linear layers and convolutions can be adapted; nothing in it is replaced or wrapped.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Literal, Protocol, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call

from tcurlora.errors import InputError
from tcurlora.labels import Channel
from tcurlora.stacks import KernelMode, Slice, StackSpec, as_matrices, as_weight, find_stacks, gather, matches
from tcurlora.tensor_cur import (
    FactorMode,
    Factors,
    apply_change,
    cur_factors,
    layer_blocks,
    low_rank_change,
    random_rows_and_columns,
    real_factors,
    select_rows_and_columns,
)

PEFT_TYPE = "TCURLORA"
KINDS = ("linear", "convolution", "transposed")
Addition: TypeAlias = Callable[[Tensor], Tensor]
Places: TypeAlias = Mapping[str, Sequence[str]]
# A structure that the base never saw starts at this much below the background's logit: 2 % of its probability.
NEW_STRUCTURE_LOGIT = -4.0


@dataclass(frozen=True)
class TensorCurConfig:
    """What is adapted and how; peft's words where they fit.

    Attributes:
        r: tubal rank of every core, cut to the smaller side of a stack where that is less.
        alpha: factor on C * U * R.
        factors: `relative` (one learning rate moves every stack by the same part of its weights), `orthonormal` (by the
            same amount) or `raw` (the paper's).
        selection: `cur` (the most energetic rows and columns) or `random` (a control).
        kinds: kinds of layers that are stacked: `linear`, `convolution`, `transposed`.
        kernels: `taps` stacks a matrix for each voxel of a kernel, `flat` one for each kernel.
        target_modules: regular expressions on module names; None takes all modules of these kinds.
        modules_to_save: regular expressions on parameter names that are trained as they are and saved whole.
        head: name of the convolution that makes the output channels; trained whole, None if it stays frozen.
        channels: new layout of the head's output channels; None keeps the base's.
        stacks: the stacks in their order; found in the network when None.
        seed: for the random selection.
    """

    r: int = 8
    alpha: float = 1.0
    factors: FactorMode = "relative"
    selection: Literal["cur", "random"] = "cur"
    kinds: tuple[str, ...] = KINDS
    kernels: KernelMode = "taps"
    target_modules: tuple[str, ...] | None = None
    modules_to_save: tuple[str, ...] = ()
    head: str | None = None
    channels: tuple[Channel, ...] | None = None
    stacks: tuple[StackSpec, ...] | None = field(default=None, repr=False)
    seed: int = 0

    @property
    def has_new_channels(self) -> bool:
        """Whether a channel starts from none of the base's, or shares one with another, and has far to go."""
        sources = [channel.source for channel in self.channels or ()]
        return None in sources or len(set(sources)) < len(sources)

    def __post_init__(self) -> None:
        if self.r < 1:
            raise InputError(f"The rank is {self.r}, but it must be at least 1.", "Choose for example 8.", "bad_rank")
        for value, known in (
            (self.factors, ("relative", "orthonormal", "raw")),
            (self.selection, ("cur", "random")),
            (self.kernels, ("taps", "flat")),
            *((kind, KINDS) for kind in self.kinds),
        ):
            if value not in known:
                raise InputError(
                    f"The adapter's configuration has the word '{value}', which is not known.",
                    f"Choose among {', '.join(known)}.",
                    "unknown_word",
                )

    def to_dict(self) -> dict[str, Any]:
        """Describe the configuration as JSON types."""
        content = asdict(self)
        content["stacks"] = None if self.stacks is None else [_stack_to_dict(spec) for spec in self.stacks]
        return {"peft_type": PEFT_TYPE, **content}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> TensorCurConfig:
        """Read what `to_dict` wrote; keys of others are ignored.

        Raises:
            InputError: when the content is no tCURLoRA configuration.
        """
        if content.get("peft_type") != PEFT_TYPE:
            raise InputError(
                f"The adapter's peft_type is {content.get('peft_type')!r}, not {PEFT_TYPE!r}.",
                "Choose an adapter that this program made.",
                "not_an_adapter",
            )
        try:
            channels = content.get("channels")
            stacks = content.get("stacks")
            target_modules = content.get("target_modules")
            return cls(
                r=int(content["r"]),
                alpha=float(content["alpha"]),
                factors=content["factors"],
                selection=content["selection"],
                kinds=tuple(content["kinds"]),
                kernels=content["kernels"],
                target_modules=None if target_modules is None else tuple(target_modules),
                modules_to_save=tuple(content["modules_to_save"]),
                head=content["head"],
                channels=None if channels is None else tuple(_channel_from_dict(c) for c in channels),
                stacks=None if stacks is None else tuple(_stack_from_dict(entry) for entry in stacks),
                seed=int(content["seed"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise InputError(
                f"The adapter's configuration cannot be read ({error!r}).",
                "The file adapter_config.json is damaged; use another copy of the adapter.",
                "damaged_adapter",
            ) from error


class AdaptedModel(Protocol):
    """What training, scoring and merging ask of a model; any other method that has these can be trained like ours."""

    @property
    def config(self) -> TensorCurConfig:
        """What is trained whole, the head, and the layout of its channels."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the adapted network."""

    def to(self, device: torch.device) -> Any:
        """Move everything to a device."""

    def train(self, mode: bool = True) -> Any:
        """Set the mode of training."""

    def eval(self) -> Any:
        """Set the mode of inference."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """All parameters; the trained ones require a gradient."""

    def cores(self) -> list[nn.Parameter]:
        """The trained parameters that change frozen weights."""

    def whole_parameters(self) -> list[nn.Parameter]:
        """The parameters that are trained as they are."""

    def head_parameters(self) -> list[nn.Parameter]:
        """Those of them that make the output channels."""

    def trained_state(self) -> dict[str, Tensor]:
        """A copy of what an adapter file holds."""

    def load_trained_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over such a copy."""

    def trained_counts(self) -> dict[str, int]:
        """Trained numbers: `cores`, `whole` and `total`."""

    def merged(self) -> nn.Module:
        """The network with the adapted weights."""


class CoreStack(nn.Module):
    """One stack's frozen factors and its trained core U, (n, r, r), which starts at zero.

    Args:
        spec: which weights are stacked.
        stack: the base's weights, (n, out, in).
        config: rank, alpha, factors and selection.
        index: number of the stack, for the seed of the random selection.
        chosen: the index sets of rows and columns; selected from the weights when None.
    """

    def __init__(
        self,
        spec: StackSpec,
        stack: Tensor,
        config: TensorCurConfig,
        index: int = 0,
        chosen: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.alpha = config.alpha
        rank = min(config.r, *spec.shape)
        if chosen is None:
            chosen = (
                select_rows_and_columns(stack, rank)
                if config.selection == "cur"
                else random_rows_and_columns(stack, rank, config.seed * 1000 + index)
            )
        rows, columns = chosen
        factors = cur_factors(stack, rows, columns, config.factors)
        self.rows: Tensor
        self.columns: Tensor
        self.rows_factor: Tensor
        self.columns_factor: Tensor
        self.register_buffer("rows", rows)
        self.register_buffer("columns", columns)
        # The factors come from the base, so they are not part of the state that is saved. Real and imaginary parts are
        # kept apart because moving a module to another dtype would drop the imaginary part of a complex buffer.
        for name, factor in factors._asdict().items():
            self.register_buffer(f"{name}_factor", torch.view_as_real(factor), persistent=False)
        self.core = nn.Parameter(torch.zeros(spec.depth, len(rows), len(rows)))

    def change(self) -> Tensor:
        """Compute alpha * C * U * R for all matrices of the stack: (n, out, in)."""
        return low_rank_change(self._factors(), self.alpha * self.core)

    def suits_factors(self) -> bool:
        """Say whether applying the factors to the inputs of the layers takes less than forming the change."""
        # Per token, factors and their gradients take at most what the gradient of the dense weights would.
        return self.spec.kind == "linear" and 2 * self.core.shape[0] * self.core.shape[1] <= min(self.spec.shape)

    def additions(self) -> dict[str, Addition]:
        """Give, by parameter, what the change adds to the output of a linear layer as a function of its input."""
        factors, blocks = real_factors(self._factors()), layer_blocks(self.alpha * self.core)
        numbers: dict[str, list[int]] = {}
        for number, part in enumerate(self.spec.slices):
            numbers.setdefault(part.parameter, []).append(number)
        return {
            name: partial(apply_change, factors=factors, blocks=blocks[own[0]][None] if len(own) == 1 else blocks[own])
            for name, own in numbers.items()
        }

    def _factors(self) -> Factors:
        return Factors(torch.view_as_complex(self.columns_factor), torch.view_as_complex(self.rows_factor))


class TensorCurModel(nn.Module):
    """A frozen network with tCURLoRA cores, a trained head and, where wanted, other parameters trained whole.

    At the start the output equals that of the network bit for bit, as long as the output channels stay the same.

    Args:
        network: the base; its parameters are frozen and never changed.
        config: what is adapted and how.
        index_sets: rows and columns of each stack, from a saved adapter; selected from the weights when None.

    Raises:
        InputError: when nothing would be trained, or the configuration does not fit the network.
    """

    def __init__(
        self,
        network: nn.Module,
        config: TensorCurConfig,
        index_sets: Sequence[tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)
        self.enabled = True
        self._places = find_places(network)
        parameters = dict(network.named_parameters())
        head = () if config.head is None else tuple(f"{config.head}.{p}" for p in ("weight", "bias"))
        whole = {name for name in parameters if config.modules_to_save and matches(name, config.modules_to_save)}
        whole.update(name for name in head if name in parameters)
        specs = config.stacks
        if specs is None:
            found = find_stacks(network, config.target_modules, config.kernels) if config.kinds else []
            specs = tuple(_without(spec, whole) for spec in found if spec.kind in config.kinds)
            specs = tuple(spec for spec in specs if spec.slices)
        if not specs and not whole:
            raise InputError(
                "The configuration trains nothing: no layer fits target_modules and no parameter modules_to_save.",
                "Correct the names, or leave them out to adapt all layers.",
                "nothing_to_train",
            )
        if config.head is not None and head[0] not in parameters:
            raise InputError(
                f"The network has no layer '{config.head}' with weights, which the configuration names as its head.",
                "Name the convolution that makes the output channels.",
                "no_head",
            )
        _require_parameters(parameters, specs)
        self.config = replace(config, stacks=specs)
        self.stacks = nn.ModuleList(
            CoreStack(spec, gather(spec, parameters), config, i, None if index_sets is None else index_sets[i])
            for i, spec in enumerate(specs)
        ).to(_device(network))
        # Weights that something else than a linear layer holds could be used in another way.
        by_linear = {weight for weight, places in self._places.items() if _all_linear(network, places)}
        self._factored = [
            stack
            for stack in self._core_stacks()
            if stack.suits_factors() and all(part.parameter in by_linear for part in stack.spec.slices)
        ]
        self.whole = nn.ParameterDict(
            {_key(name): nn.Parameter(parameters[name].detach().clone()) for name in sorted(whole)}
        )
        if config.channels is not None and config.head is not None:
            for name in head:
                if name in parameters:
                    rows = _relayout(parameters[name].detach(), config.channels, is_bias=name.endswith("bias"))
                    self.whole[_key(name)] = nn.Parameter(rows)
        self.train(network.training)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the network with the adapted weights, or with its own when the adapter is disabled."""
        if not self.enabled:
            return self.network(*args, **kwargs)
        with torch.autocast(self._device_type(), enabled=False):
            additions = {name: add for stack in self._factored for name, add in stack.additions().items()}
        adapted = self._weights(stack for stack in self._core_stacks() if stack not in self._factored)
        places = {place: value for name, value in adapted.items() for place in self._places[name]}
        with _added_to_outputs(self.network, additions) as reached:
            # Without torch's own tying, which swaps a layer of several names twice and leaves the last weight in the
            # base.
            output = functional_call(self.network, places, args, kwargs, tie_weights=False)
        if additions.keys() == reached:
            return output
        # Some layer's weight is used, if at all, without calling the layer: its stack must change the weights.
        self._factored = [s for s in self._factored if all(part.parameter in reached for part in s.spec.slices)]
        return self(*args, **kwargs)

    def adapted_parameters(self) -> dict[str, Tensor]:
        """Compute the adapted weights by parameter name, differentiable with respect to what is trained."""
        return self._weights(self._core_stacks())

    def _weights(self, stacks: Iterable[CoreStack]) -> dict[str, Tensor]:
        base = dict(self.network.named_parameters())
        adapted: dict[str, Tensor] = {name.replace("/", "."): value for name, value in self.whole.items()}
        with torch.autocast(self._device_type(), enabled=False):
            for stack in stacks:
                changes: dict[str, list[Tensor]] = {}
                for matrices, part in zip(stack.change().split(stack.spec.taps), stack.spec.slices, strict=True):
                    changes.setdefault(part.parameter, []).append(matrices)
                for name, parts in changes.items():
                    matrices = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
                    weight = base[name]
                    change = as_weight(matrices, weight.shape, stack.spec.kind)
                    adapted[name] = weight + change.to(weight.dtype)
        return adapted

    def train(self, mode: bool = True) -> TensorCurModel:
        """Set the mode; batch norm keeps the base's statistics, which are part of the frozen network."""
        super().train(mode)
        for module in self.network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def cores(self) -> list[nn.Parameter]:
        """The core of each stack."""
        return [stack.core for stack in self._core_stacks()]

    def whole_parameters(self) -> list[nn.Parameter]:
        """The parameters that are trained as they are."""
        return list(self.whole.values())

    def head_parameters(self) -> list[nn.Parameter]:
        """Those of them that belong to the head."""
        names = {_key(f"{self.config.head}.{part}") for part in ("weight", "bias")}
        return [value for name, value in self.whole.items() if name in names]

    def trained_state(self) -> dict[str, Tensor]:
        """Collect what an adapter file holds: index sets, cores, and the parameters trained whole."""
        state: dict[str, Tensor] = {}
        for i, stack in enumerate(self._core_stacks()):
            state |= {f"rows.{i}": stack.rows, f"columns.{i}": stack.columns, f"core.{i}": stack.core.detach()}
        state |= {f"whole.{name.replace('/', '.')}": value.detach() for name, value in self.whole.items()}
        return {name: tensor.cpu().clone().contiguous() for name, tensor in state.items()}

    def load_trained_state(self, state: Mapping[str, Tensor]) -> None:
        """Set cores and whole parameters from `trained_state`.

        Raises:
            InputError: when a tensor is missing or has another shape.
        """
        own: dict[str, Tensor] = {f"core.{i}": stack.core for i, stack in enumerate(self._core_stacks())}
        own |= {f"whole.{name.replace('/', '.')}": value for name, value in self.whole.items()}
        with torch.no_grad():
            for name, parameter in own.items():
                if name not in state or state[name].shape != parameter.shape:
                    raise InputError(
                        f"The adapter's tensor '{name}' is missing or does not fit the base model.",
                        "Use the base model that the adapter was made for.",
                        "adapter_mismatch",
                    )
                parameter.copy_(state[name])

    def trained_counts(self) -> dict[str, int]:
        """Count trained numbers: in the cores, in parameters trained whole, and together."""
        cores = sum(stack.core.numel() for stack in self._core_stacks())
        whole = sum(value.numel() for value in self.whole.values())
        return {"cores": cores, "whole": whole, "total": cores + whole}

    def _device_type(self) -> str:
        return _device(self.network).type

    def _core_stacks(self) -> Iterator[CoreStack]:
        for stack in self.stacks:
            assert isinstance(stack, CoreStack)
            yield stack

    def merged(self) -> nn.Module:
        """Return a copy of the network that holds the adapted weights and needs this package no longer."""
        network = copy.deepcopy(self.network)
        with torch.no_grad():
            for name, value in self.adapted_parameters().items():
                module_name, _, parameter = name.rpartition(".")
                module = network.get_submodule(module_name)
                own = getattr(module, parameter)
                if own.shape == value.shape:
                    # In place, so that layers that share a weight still do.
                    own.copy_(value)
                    continue
                setattr(module, parameter, nn.Parameter(value.detach().clone(), requires_grad=False))
                if module_name == self.config.head and parameter == "weight" and hasattr(module, "out_channels"):
                    module.out_channels = value.shape[0]  # type: ignore[assignment]
        return network


def adapt(network: nn.Module, config: TensorCurConfig | None = None) -> TensorCurModel:
    """Make a network adaptable: freeze it and add what is trained.

    Args:
        network: any module with linear layers or convolutions.
        config: what is adapted and how; the defaults adapt every stack at rank 8.
    """
    return TensorCurModel(network, config or TensorCurConfig())


def merge(model: TensorCurModel) -> nn.Module:
    """Fold an adapter into a copy of its network; inference then costs what the base costs."""
    return model.merged()


def fingerprint(network: nn.Module) -> str:
    """Identify a network by its weights: SHA-256 over names, shapes and float32 values of its state."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()


def find_head(network: nn.Module, example: Tensor, out_channels: int) -> str:
    """Name the convolution that makes the output: the last one run that has as many outputs.

    Args:
        network: the base, called once in evaluation mode.
        example: an input that the network takes, on any device.
        out_channels: number of output channels.

    Raises:
        InputError: when no convolution makes that many channels.
    """
    names: dict[nn.Module, str] = {
        module: name for name, module in network.named_modules() if isinstance(module, nn.Conv3d | nn.Conv2d)
    }
    last: list[str] = []

    def remember(module: nn.Module, _inputs: Any, output: Tensor) -> None:
        if output.shape[1] == out_channels:
            last[:] = [names[module]]

    handles = [module.register_forward_hook(remember) for module in names]
    was_training = network.training
    try:
        with torch.no_grad():
            network.eval()(example.to(_device(network)))
    finally:
        network.train(was_training)
        for handle in handles:
            handle.remove()
    if not last:
        raise InputError(
            f"No convolution of {type(network).__name__} makes {out_channels} output channels.",
            "Name the output layer in the configuration's 'head'.",
            "no_head",
        )
    return last[0]


def find_places(network: nn.Module) -> Places:
    """Find by each parameter's first name where it is: once in every layer that holds it.

    Layers may share a weight, and one layer may have several names (in DynUNet all have).
    """
    places: dict[str, list[str]] = {}
    names = {parameter: name for name, parameter in network.named_parameters()}
    for prefix, module in network.named_modules():
        for place, parameter in module.named_parameters(prefix, recurse=False, remove_duplicate=False):
            places.setdefault(names[parameter], []).append(place)
    return places


def _device(network: nn.Module) -> torch.device:
    return next(network.parameters()).device


def _relayout(tensor: Tensor, channels: Sequence[Channel], is_bias: bool) -> Tensor:
    uses = {c.source: sum(other.source == c.source for other in channels) for c in channels}
    rows = []
    for channel in channels:
        row = tensor[0 if channel.source is None else channel.source].clone()
        if is_bias:
            # k copies of a channel share its probability, so their union is what the base said.
            row += NEW_STRUCTURE_LOGIT if channel.source is None else -math.log(uses[channel.source])
        rows.append(row)
    return torch.stack(rows)


def _all_linear(network: nn.Module, places: Sequence[str]) -> bool:
    return all(type(network.get_submodule(place.rpartition(".")[0])) is nn.Linear for place in places)


@contextmanager
def _added_to_outputs(network: nn.Module, additions: Mapping[str, Addition]) -> Iterator[set[str]]:
    """Let linear layers give more than they do; tells which weights' layers ran."""
    names: dict[Tensor, str] = {weight: name for name, weight in network.named_parameters() if name in additions}
    reached: set[str] = set()

    def add(name: str, _layer: nn.Module, args: tuple[Tensor, ...], named: dict[str, Tensor], output: Tensor) -> Tensor:
        reached.add(name)
        inputs = args[0] if args else named["input"]
        return output + additions[name](inputs).to(output.dtype)

    linear = [module for module in network.modules() if isinstance(module, nn.Linear) and module.weight in names]
    handles = [layer.register_forward_hook(partial(add, names[layer.weight]), with_kwargs=True) for layer in linear]
    try:
        yield reached
    finally:
        for handle in handles:
            handle.remove()


def _without(spec: StackSpec, names: set[str]) -> StackSpec:
    return replace(spec, slices=tuple(s for s in spec.slices if s.parameter not in names))


def _require_parameters(parameters: Mapping[str, Tensor], specs: Sequence[StackSpec]) -> None:
    for spec in specs:
        for part in spec.slices:
            weight = parameters.get(part.parameter)
            shape = None if weight is None else as_matrices(weight, spec.kind, spec.taps).shape
            if shape is None or (shape[0], shape[1] // part.parts, shape[2]) != (spec.taps, *spec.shape):
                raise InputError(
                    f"The adapter expects a weight '{part}' of shape {tuple(spec.shape)}, which the network lacks.",
                    "Use the base model that the adapter was made for.",
                    "adapter_mismatch",
                )


def _key(name: str) -> str:
    # torch allows no dots in the names of registered parameters.
    return name.replace(".", "/")


def _channel_from_dict(entry: Mapping[str, Any]) -> Channel:
    return Channel(str(entry["name"]), None if entry["source"] is None else int(entry["source"]))


def _stack_to_dict(spec: StackSpec) -> dict[str, Any]:
    return {"kind": spec.kind, "shape": list(spec.shape), "taps": spec.taps, "slices": [str(s) for s in spec.slices]}


def _stack_from_dict(entry: Mapping[str, Any]) -> StackSpec:
    out, inside = entry["shape"]
    slices = tuple(Slice.parse(text) for text in entry["slices"])
    return StackSpec(entry["kind"], (int(out), int(inside)), slices, int(entry["taps"]))
