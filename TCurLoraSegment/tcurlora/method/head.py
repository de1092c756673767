"""The output convolution of a network: find it, lay its channels out again, and read classes from its logits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tcurlora.errors import InputError
from tcurlora.method.channels import Channel

# A structure that the base never saw starts at this much below the background's logit: 2 % of its probability. Of a
# region that has no background beside it, it is the logit itself: a probability of 2 %.
NEW_STRUCTURE_LOGIT = -4.0


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
            network.eval()(example.to(device_of(network)))
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


def device_of(network: nn.Module) -> torch.device:
    """Return the device that a network's parameters are on."""
    return next(network.parameters()).device


def laid_out(
    tensor: Tensor, channels: Sequence[Channel], is_bias: bool, activation: Literal["softmax", "sigmoid"] = "softmax"
) -> Tensor:
    """Lay the head's weight or bias out for other channels, each started from the base channel that is its source.

    A channel without a source starts with a low probability everywhere: with a softmax as the background does, but far
    below it; with a sigmoid, which has no background, from a bias alone.

    Args:
        tensor: (base channels, ...) weight or bias.
        channels: of the adapted network.
        is_bias: which of the two it is.
        activation: what turns logits into probabilities.
    """
    softmax = activation == "softmax"
    uses = {c.source: sum(other.source == c.source for other in channels) for c in channels}
    rows = []
    for channel in channels:
        if channel.source is None and not softmax:
            rows.append(torch.full_like(tensor[0], NEW_STRUCTURE_LOGIT if is_bias else 0.0))
            continue
        row = tensor[0 if channel.source is None else channel.source].clone()
        if is_bias and channel.source is None:
            row += NEW_STRUCTURE_LOGIT
        elif is_bias and softmax:
            # k copies of a channel share its probability, so their union is what the base said.
            row -= math.log(uses[channel.source])
        rows.append(row)
    return torch.stack(rows)


def class_logits(logits: Tensor, groups: Sequence[Sequence[int]]) -> Tensor:
    """Join channels that vote for one class: its softmax probability is the sum of theirs.

    Args:
        logits: (b, channels, ...).
        groups: channel indices of each class.

    Returns:
        (b, classes, ...); the input itself where each class has one channel, in order.
    """
    if [list(group) for group in groups] == [[i] for i in range(logits.shape[1])]:
        return logits
    return torch.stack([torch.logsumexp(logits[:, list(group)], 1) for group in groups], 1)


def region_logits(logits: Tensor, groups: Sequence[Sequence[int]]) -> Tensor:
    """Join channels that vote for one region, which is the union of theirs: the highest of their logits.

    Args:
        logits: (b, channels, ...).
        groups: channel indices of each region.

    Returns:
        (b, regions, ...); the input itself where each region has one channel, in order.
    """
    if [list(group) for group in groups] == [[i] for i in range(logits.shape[1])]:
        return logits
    return torch.stack([logits[:, list(group)].amax(1) for group in groups], 1)
