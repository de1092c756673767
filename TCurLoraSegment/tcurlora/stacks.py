"""Find the stacks of a network: its equal-shaped weight matrices, in the order in which the t-product takes them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
QKV = ("q", "k", "v")


@dataclass(frozen=True)
class Slice:
    """One matrix of a stack: a whole weight, or one of the three parts of a fused qkv weight.

    Attributes:
        parameter: the weight's name in the network.
        part: index of the part along the output axis.
        parts: number of parts that the weight is cut into.
    """

    parameter: str
    part: int = 0
    parts: int = 1

    def __str__(self) -> str:
        return self.parameter if self.parts == 1 else f"{self.parameter}#{QKV[self.part]}"

    @classmethod
    def parse(cls, text: str) -> Slice:
        parameter, _, part = text.partition("#")
        return cls(parameter, QKV.index(part), 3) if part else cls(parameter)


@dataclass(frozen=True)
class StackSpec:
    """The slices of one stack and the (out, in) shape that they share."""

    kind: str
    shape: tuple[int, int]
    slices: tuple[Slice, ...]


def find_stacks(network: nn.Module, target_modules: Sequence[str] | None = None) -> list[StackSpec]:
    """Group the weights of linear layers and convolutions by kind and matrix shape.

    Layers keep the order in which the network registers them (in a MONAI transformer block: MLP up, MLP down, output
    projection, q, k, v). A fused qkv weight counts as three matrices. Kernels are flattened to (out, in * k^3).

    Args:
        network: any module.
        target_modules: regular expressions, searched in the module's name; None takes all.
    """
    found: dict[tuple[str, tuple[int, int]], list[Slice]] = {}
    # A weight that several layers share is listed once, under its first name.
    parameters = dict(network.named_parameters())
    for name, module in network.named_modules():
        kind = _kind(module)
        if kind is None or not matches(name, target_modules):
            continue
        parameter = f"{name}.weight" if name else "weight"
        if parameter not in parameters:
            continue
        out, inside = as_matrix(module.weight, kind == "transposed").shape
        parts = 3 if kind == "linear" and out == 3 * inside and "qkv" in name else 1
        slices = found.setdefault((kind, (out // parts, inside)), [])
        slices += [Slice(parameter, part, parts) for part in range(parts)]
    return [StackSpec(kind, shape, tuple(slices)) for (kind, shape), slices in found.items()]


def gather(spec: StackSpec, parameters: Mapping[str, Tensor]) -> Tensor:
    """Stack the matrices of a spec: (n, out, in)."""
    transposed = spec.kind == "transposed"
    return torch.stack([as_matrix(parameters[s.parameter], transposed).chunk(s.parts)[s.part] for s in spec.slices])


def as_matrix(weight: Tensor, transposed: bool) -> Tensor:
    """Flatten a weight to (out, in * kernel); a transposed convolution holds its input axis first."""
    return (weight.transpose(0, 1) if transposed else weight).flatten(1)


def as_weight(matrix: Tensor, shape: Sequence[int], transposed: bool) -> Tensor:
    """Undo `as_matrix` for a weight of the given shape."""
    return matrix.view(shape[1], shape[0], *shape[2:]).transpose(0, 1) if transposed else matrix.view(*shape)


def matches(name: str, patterns: Sequence[str] | None) -> bool:
    """Say whether any regular expression is found in the name; None matches every name."""
    return patterns is None or any(re.search(pattern, name) for pattern in patterns)


def _kind(module: nn.Module) -> str | None:
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, CONVOLUTIONS):
        # Grouped kernels see only a part of the input channels; their matrices are no maps of the whole feature space.
        return "convolution" if module.groups == 1 else None
    if isinstance(module, TRANSPOSED):
        return "transposed" if module.groups == 1 else None
    return None
