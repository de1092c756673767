"""One stack of weights with its frozen factors and its trained core."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor, nn

from tcurlora.method.config import TensorCurConfig
from tcurlora.method.stacks import StackSpec
from tcurlora.method.tensor_cur import (
    Factors,
    apply_change,
    cur_factors,
    layer_blocks,
    low_rank_change,
    random_rows_and_columns,
    real_factors,
    select_rows_and_columns,
)

Addition: TypeAlias = Callable[[Tensor], Tensor]


class CoreStack(nn.Module):
    """One stack's frozen factors and its trained core U, (n, r, r), which starts at zero.

    Args:
        spec: which weights are stacked.
        stack: the base's weights, (n, out, in).
        config: rank, alpha, factors and selection.
        index: number of the stack, for the seed of the random selection.
        chosen: the index sets of rows and columns; selected from the weights when None.
    """

    def __init__(
        self,
        spec: StackSpec,
        stack: Tensor,
        config: TensorCurConfig,
        index: int = 0,
        chosen: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.alpha = config.alpha
        rank = min(config.r, *spec.shape)
        if chosen is None:
            chosen = (
                select_rows_and_columns(stack, rank)
                if config.selection == "cur"
                else random_rows_and_columns(stack, rank, config.seed * 1000 + index)
            )
        rows, columns = chosen
        factors = cur_factors(stack, rows, columns, config.factors)
        self.rows: Tensor
        self.columns: Tensor
        self.rows_factor: Tensor
        self.columns_factor: Tensor
        self.register_buffer("rows", rows)
        self.register_buffer("columns", columns)
        # The factors come from the base, so they are not part of the state that is saved. Real and imaginary parts are
        # kept apart because moving a module to another dtype would drop the imaginary part of a complex buffer.
        for name, factor in factors._asdict().items():
            self.register_buffer(f"{name}_factor", torch.view_as_real(factor), persistent=False)
        self.core = nn.Parameter(torch.zeros(spec.depth, len(rows), len(rows)))

    def change(self) -> Tensor:
        """Compute alpha * C * U * R for all matrices of the stack: (n, out, in)."""
        return low_rank_change(self._factors(), self.alpha * self.core)

    def suits_factors(self) -> bool:
        """Say whether applying the factors to the inputs of the layers takes less than forming the change."""
        # Per token, factors and their gradients take at most what the gradient of the dense weights would.
        return self.spec.kind == "linear" and 2 * self.core.shape[0] * self.core.shape[1] <= min(self.spec.shape)

    def additions(self) -> dict[str, Addition]:
        """Give, by parameter, what the change adds to the output of a linear layer as a function of its input."""
        factors, blocks = real_factors(self._factors()), layer_blocks(self.alpha * self.core)
        numbers: dict[str, list[int]] = {}
        for number, part in enumerate(self.spec.slices):
            numbers.setdefault(part.parameter, []).append(number)
        return {
            name: partial(apply_change, factors=factors, blocks=blocks[own[0]][None] if len(own) == 1 else blocks[own])
            for name, own in numbers.items()
        }

    def _factors(self) -> Factors:
        return Factors(torch.view_as_complex(self.columns_factor), torch.view_as_complex(self.rows_factor))
