"""What training, scoring and merging ask of an adapted model, whatever the method."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tcurlora.method.config import TensorCurConfig


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
