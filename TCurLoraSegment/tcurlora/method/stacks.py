"""Find the stacks of a network: its equal-shaped weight matrices, in the order in which the t-product takes them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
QKV = ("q", "k", "v")
KernelMode = Literal["taps", "flat"]
MOST_TAPS = 27
"""A kernel of 3 x 3 x 3; a larger one, as a patch embedding has, would need a core for each of thousands of voxels."""


@dataclass(frozen=True)
class Slice:
    """What one weight gives to a stack: all of it, or one of the three parts of a fused qkv weight.

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
    """The weights of one stack, and how each becomes matrices of equal shape.

    Attributes:
        kind: `linear`, `convolution` or `transposed`.
        shape: (out, in) of the matrices.
        slices: where the matrices come from.
        taps: matrices from each slice: one for each voxel of a kernel, or a single one.
    """

    kind: str
    shape: tuple[int, int]
    slices: tuple[Slice, ...]
    taps: int = 1

    @property
    def depth(self) -> int:
        """Matrices in the stack: n."""
        return len(self.slices) * self.taps


def find_stacks(
    network: nn.Module, target_modules: Sequence[str] | None = None, kernels: KernelMode = "flat"
) -> list[StackSpec]:
    """Group the weights of linear layers and convolutions by kind and matrix shape.

    Layers keep the order in which the network registers them (in a MONAI transformer block: MLP up, MLP down, output
    projection, q, k, v). A fused qkv weight counts as three matrices.

    Args:
        network: any module.
        target_modules: regular expressions, searched in the module's name; None takes all.
        kernels: `flat` flattens a kernel to one matrix (out, in * k^3). `taps` makes a kernel a stack by itself, with
            a matrix (out, in) for each of its k^3 voxels, where there are at most 27.
    """
    found: dict[tuple[str, tuple[int, int], int, str], list[Slice]] = {}
    # A weight that several layers share is listed once, under its first name.
    parameters = dict(network.named_parameters())
    for name, module in network.named_modules():
        kind = _kind(module)
        if kind is None or not matches(name, target_modules):
            continue
        parameter = f"{name}.weight" if name else "weight"
        if parameter not in parameters:
            continue
        size = math.prod(module.weight.shape[2:])
        taps = size if kernels == "taps" and size <= MOST_TAPS else 1
        _, out, inside = as_matrices(module.weight, kind, taps).shape
        parts = 3 if kind == "linear" and out == 3 * inside and "qkv" in name else 1
        # The t-product turns the axis of a stack into a circle, and the taps of two kernels are not neighbours.
        alone = parameter if taps > 1 else ""
        slices = found.setdefault((kind, (out // parts, inside), taps, alone), [])
        slices += [Slice(parameter, part, parts) for part in range(parts)]
    return [StackSpec(kind, shape, tuple(slices), taps) for (kind, shape, taps, _), slices in found.items()]


def gather(spec: StackSpec, parameters: Mapping[str, Tensor]) -> Tensor:
    """Stack the matrices of a spec on the processor, wherever the network lies: (n, out, in)."""
    # Factors must not depend on a device's algebra, and are computed in float64, which some devices do not have.
    return torch.cat(
        [as_matrices(parameters[s.parameter], spec.kind, spec.taps).chunk(s.parts, 1)[s.part] for s in spec.slices]
    ).cpu()


def as_matrices(weight: Tensor, kind: str, taps: int = 1) -> Tensor:
    """Lay out a weight as matrices: (taps, out, in), or (1, out, in * kernel) where it is flattened.

    Args:
        weight: of a linear layer or a convolution; a transposed convolution holds its input axis first.
        kind: `linear`, `convolution` or `transposed`.
        taps: number of voxels of the kernel, or 1.
    """
    weight = weight.transpose(0, 1) if kind == "transposed" else weight
    return weight.flatten(1)[None] if taps == 1 else weight.flatten(2).permute(2, 0, 1)


def as_weight(matrices: Tensor, shape: Sequence[int], kind: str) -> Tensor:
    """Undo `as_matrices` for a weight of the given shape."""
    out_in = (shape[1], shape[0]) if kind == "transposed" else (shape[0], shape[1])
    weight = (matrices[0] if len(matrices) == 1 else matrices.permute(1, 2, 0)).reshape(*out_in, *shape[2:])
    return weight.transpose(0, 1) if kind == "transposed" else weight


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
