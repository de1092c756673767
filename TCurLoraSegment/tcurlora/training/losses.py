"""The loss of a training: Dice and cross-entropy of the voxels that somebody labeled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from monai.losses import DiceCELoss
from monai.losses.dice import MaskedDiceLoss
from torch import Tensor, nn
from torch.nn import functional

from tcurlora.method.config import Activation
from tcurlora.method.head import class_logits, region_logits


@dataclass(frozen=True)
class KeptChannels:
    """What of the base is kept while it is adapted to a site that does not label it.

    Attributes:
        base: the base's network, which says what is kept.
        channels: of the adapted network, the background first; with a sigmoid, which has none, regions alone.
        sources: the base's channel of each.
    """

    base: nn.Module
    channels: tuple[int, ...]
    sources: tuple[int, ...]


def segmentation_loss(
    logits: Tensor, label: Tensor, groups: Sequence[Sequence[int]], activation: Activation = "softmax"
) -> Tensor:
    """Dice loss of the structures plus cross-entropy, of the voxels that somebody labeled.

    With a softmax, channels of the base's structures that the site does not label may stand in the first group, beside
    the background: then a voxel without a label is taught to be *either the background or one of those*, and not which
    of them. That is the marginal loss for partially labeled data (Fang and Yan, 2020, doi:10.1109/TMI.2020.3001036; Shi
    et al., 2021, doi:10.1016/j.media.2021.101979): the probability of the union is the sum of their probabilities.

    With a sigmoid each group is a region for itself; channels in no group have no loss.

    Each sample counts equally, however many of its voxels are labeled, so that a batch may be computed in parts.

    Args:
        logits: (b, channels, x, y, z).
        label: (b, 1, x, y, z) class indices, or with a sigmoid a bit for each region; negative where nobody labeled.
        groups: channel indices of each class, the background first; with a sigmoid of each region.
        activation: what turns logits into probabilities.
    """
    counted = label >= 0
    if activation == "sigmoid":
        return _region_loss(region_logits(logits, groups), label.long(), counted)
    joined = class_logits(logits, groups)
    if bool(counted.all()):
        whole: Tensor = DiceCELoss(to_onehot_y=True, softmax=True, include_background=False)(joined, label)
        return whole
    dice = MaskedDiceLoss(to_onehot_y=True, softmax=True, include_background=False)
    entropy = functional.cross_entropy(joined, label[:, 0].clamp(min=0).long(), reduction="none")[:, None]
    masked: Tensor = dice(joined, label.clamp(min=0), counted) + _mean_of(entropy, counted)
    return masked


def kept_loss(
    logits: Tensor, of_base: Tensor, label: Tensor, kept: KeptChannels, activation: Activation = "softmax"
) -> Tensor:
    """Dice loss and cross-entropy against what the base says of the structures that the site does not label.

    The marginal loss leaves open which of them a voxel is, so they would drift. This is the distillation of incremental
    segmentation (Cermelli et al., 2020, doi:10.1109/CVPR42600.2020.00925): in voxels without a label the adapted
    network is to share its probability out among background and kept structures as the base does, however large it is.
    With a sigmoid each kept region is compared for itself, in all voxels.

    Args:
        logits: (b, channels, x, y, z) of the adapted network.
        of_base: the same of the base, with its own channels.
        label: (b, 1, x, y, z) as `segmentation_loss` takes it.
        kept: the channels that are compared.
        activation: what turns logits into probabilities.
    """
    own, wanted = logits[:, list(kept.channels)], of_base[:, list(kept.sources)]
    if activation == "sigmoid":
        everywhere, truth = torch.ones_like(label, dtype=torch.bool), wanted.sigmoid()
        entropy = functional.binary_cross_entropy_with_logits(own, truth, reduction="none").mean(1, keepdim=True)
        regions: Tensor = MaskedDiceLoss(sigmoid=True, soft_label=True)(own, truth, everywhere)
        return regions + _mean_of(entropy, everywhere)
    unlabeled, truth = label == 0, wanted.softmax(1)
    entropy = -(truth * own.log_softmax(1)).sum(1, keepdim=True)
    dice = MaskedDiceLoss(softmax=True, include_background=False, soft_label=True)
    loss: Tensor = dice(own, truth, unlabeled) + _mean_of(entropy, unlabeled)
    return loss


def _region_loss(logits: Tensor, label: Tensor, counted: Tensor) -> Tensor:
    bits = torch.arange(logits.shape[1], device=label.device).view(1, -1, 1, 1, 1)
    truth = ((label.clamp(min=0) >> bits) & 1).to(logits.dtype)
    entropy = functional.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean(1, keepdim=True)
    loss: Tensor = MaskedDiceLoss(sigmoid=True)(logits, truth, counted) + _mean_of(entropy, counted)
    return loss


def _mean_of(values: Tensor, counted: Tensor) -> Tensor:
    """Mean over the voxels that count, of each sample, and then over the samples; 0 where none counts."""
    inside = torch.where(counted, values, torch.zeros_like(values)).flatten(1).sum(1)
    return (inside / counted.flatten(1).sum(1).clamp(min=1)).mean()
