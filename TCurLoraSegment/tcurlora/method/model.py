"""The adapter: what of a frozen network is trained, and how that changes its weights.

`TensorCurModel` leaves the network untouched and computes the adapted weights once per forward pass: each stack's
change C * U * R is formed once for all of its layers. Where it is small beside its linear layers it is not formed at
all, but applied to their inputs factor by factor, so that neither it nor a gradient of its size is held. Any
`torch.nn.Module` made of linear layers and convolutions can be adapted; nothing in it is replaced or wrapped.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call

from tcurlora.errors import InputError
from tcurlora.method.config import TensorCurConfig
from tcurlora.method.core_stack import Addition, CoreStack
from tcurlora.method.head import device_of, laid_out
from tcurlora.method.stacks import StackSpec, as_matrices, as_weight, find_stacks, gather, matches

Places: TypeAlias = Mapping[str, Sequence[str]]


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
        ).to(device_of(network))
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
                    is_bias = name.endswith("bias")
                    rows = laid_out(parameters[name].detach(), config.channels, is_bias, config.activation)
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
        """Count trained parameters: in the cores, in parameters trained whole, and together."""
        cores = sum(stack.core.numel() for stack in self._core_stacks())
        whole = sum(value.numel() for value in self.whole.values())
        return {"cores": cores, "whole": whole, "total": cores + whole}

    def _device_type(self) -> str:
        return device_of(self.network).type

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
