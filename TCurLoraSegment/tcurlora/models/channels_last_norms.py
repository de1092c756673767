"""Instance and group normalization in the memory layout that convolutions on a processor are fastest in.

torch computes the first there by way of the other layout, which copies every image twice, and the second with sums that
lose what is small beside a large mean.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

SPACE = (2, 3, 4)
LAYOUT = torch.channels_last_3d


class InstanceNorm(nn.InstanceNorm3d):
    """`torch.nn.InstanceNorm3d` with the same parameters and, but for rounding, the same output and gradients."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalize each channel of each image: (batch, channels, x, y, z)."""
        if not _is_in_layout(input):
            return super().forward(input)
        return _normalized(input, input.shape[1], self.eps, self.weight, self.bias)


class GroupNorm(nn.GroupNorm):
    """`torch.nn.GroupNorm` with the same parameters and, but for rounding, the same output and gradients."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalize each group of channels of each image: (batch, channels, x, y, z)."""
        if not _is_in_layout(input):
            return super().forward(input)
        return _normalized(input, self.num_groups, self.eps, self.weight, self.bias)


def replace_norms(network: nn.Module) -> None:
    """Let a network normalize in this way where it normalizes images by their own statistics."""
    for module in network.modules():
        if type(module) is nn.InstanceNorm3d and not module.track_running_stats:
            module.__class__ = InstanceNorm
        elif type(module) is nn.GroupNorm:
            module.__class__ = GroupNorm


def _is_in_layout(images: Tensor) -> bool:
    return images.device.type == "cpu" and images.dim() == 5 and images.is_contiguous(memory_format=LAYOUT)


def _normalized(images: Tensor, groups: int, eps: float, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    output: Tensor = _Normalize.apply(images, groups, eps)
    if weight is None or bias is None:
        return output
    return torch.addcmul(_per_channel(bias), output, _per_channel(weight))


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, groups: int, eps: float) -> Tensor:
        mean = _mean(images, groups)
        centred = images - mean
        # The mean is taken off before squares are summed: otherwise float32 loses what is small beside the mean.
        scale = _mean(centred.square(), groups).add_(eps).rsqrt_()
        # The input is kept, not the output, which MONAI's activations change in place.
        ctx.save_for_backward(images, mean, scale)
        ctx.groups = groups
        return centred.mul_(scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        images, mean, scale = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=LAYOUT)
        output = (images - mean).mul_(scale)
        along = _mean(gradient * output, ctx.groups)
        # What changes the mean or the scale of a group is lost in it.
        return (gradient - _mean(gradient, ctx.groups)).sub_(output.mul_(along)).mul_(scale), None, None


def _mean(images: Tensor, groups: int) -> Tensor:
    """The mean of each group of channels, for each of its channels: (batch, channels, 1, 1, 1)."""
    means = images.mean(SPACE, keepdim=True)
    channels = means.shape[1]
    if groups == channels:
        return means
    of_groups: Tensor = means.unflatten(1, (groups, -1)).mean(2)
    return of_groups.repeat_interleave(channels // groups, 1)


def _per_channel(values: Tensor) -> Tensor:
    return values[None, :, None, None, None]
