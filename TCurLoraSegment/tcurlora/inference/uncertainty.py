"""How uncertain a model is in each voxel."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch

from tcurlora.imaging.grids import Scores
from tcurlora.models.base_model import Activation

SMALLEST = 1e-7
"""Probabilities are not taken for smaller, whose logarithm would be infinite."""


def normalized_entropy(probabilities: Scores) -> np.ndarray:
    """Entropy over classes, divided by log(classes): (classes, x, y, z) to (x, y, z), from 0 to 1."""
    classes = probabilities.shape[0]
    total = np.zeros(probabilities.shape[1:], np.float32)
    for index in range(classes):
        p = np.clip(probabilities[index], SMALLEST, 1.0)
        total -= p * np.log(p)
    total /= np.float32(math.log(classes))
    return total


def uncertainty_map(scores: Scores, activation: Activation, blend: Literal["probabilities", "logits"]) -> np.ndarray:
    """Return the uncertainty of averaged scores, one class at a time in memory.

    Args:
        scores: (classes, *axes), the background first; (regions, *axes) with a sigmoid.
        activation: what makes probabilities of logits.
        blend: what the scores are.

    Returns:
        (*axes), 0 (certain) to 1: the normalized entropy of the classes, or that of the least certain region.
    """
    if activation == "softmax":
        return normalized_entropy(scores if blend == "probabilities" else _Softmax(scores))
    worst = np.zeros(scores.shape[1:], np.float32)
    for index in range(scores.shape[0]):
        p = scores[index] if blend == "probabilities" else as_probabilities(scores[index], "sigmoid")
        np.maximum(worst, normalized_entropy(np.stack([p, 1 - p])), out=worst)
    return worst


def as_probabilities(logits: np.ndarray, activation: Activation) -> np.ndarray:
    """Turn logits, (classes, ...) for a softmax, into probabilities."""
    tensor = torch.from_numpy(logits)
    result: np.ndarray = (tensor.softmax(0) if activation == "softmax" else tensor.sigmoid()).numpy()
    return result


class _Softmax:
    """Probabilities of logits, one class at a time."""

    def __init__(self, logits: Scores) -> None:
        self.shape = logits.shape
        self._logits = logits
        self._log_sum = np.full(logits.shape[1:], -np.inf, np.float32)
        for index in range(logits.shape[0]):
            np.logaddexp(self._log_sum, logits[index], out=self._log_sum)

    def __getitem__(self, index: int, /) -> np.ndarray:
        probabilities: np.ndarray = np.exp(self._logits[index] - self._log_sum)
        return probabilities
