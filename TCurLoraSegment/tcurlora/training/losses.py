"""The loss of a training: Dice and cross-entropy of the voxels that somebody labeled."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.losses import DiceCELoss
from monai.losses.dice import MaskedDiceLoss
from torch import Tensor
from torch.nn import functional

from tcurlora.method.config import Activation
from tcurlora.method.head import class_logits, region_logits


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
