"""Instance normalization in the memory layout that convolutions on a processor are fastest in.

torch computes it there by way of the other layout, which copies every image twice and takes several times as long.
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
        if input.device.type != "cpu" or input.dim() != 5 or not input.is_contiguous(memory_format=LAYOUT):
            return super().forward(input)
        output: Tensor = _Normalize.apply(input, self.eps)
        if self.weight is None:
            return output
        return torch.addcmul(_per_channel(self.bias), output, _per_channel(self.weight))


def replace_instance_norms(network: nn.Module) -> None:
    """Let a network normalize in this way where it normalizes images by their own statistics."""
    for module in network.modules():
        if type(module) is nn.InstanceNorm3d and not module.track_running_stats:
            module.__class__ = InstanceNorm


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, eps: float) -> Tensor:
        mean = images.mean(SPACE, keepdim=True)
        centred = images - mean
        # The mean is taken off before squares are summed: otherwise float32 loses what is small beside the mean.
        scale = centred.square().mean(SPACE, keepdim=True).add_(eps).rsqrt_()
        # The input is kept, not the output, which MONAI's activations change in place.
        ctx.save_for_backward(images, mean, scale)
        return centred.mul_(scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        images, mean, scale = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=LAYOUT)
        output = (images - mean).mul_(scale)
        along = (gradient * output).mean(SPACE, keepdim=True)
        # What changes the mean or the scale of an image is lost in it.
        return (gradient - gradient.mean(SPACE, keepdim=True)).sub_(output.mul_(along)).mul_(scale), None


def _per_channel(values: Tensor) -> Tensor:
    return values[None, :, None, None, None]
