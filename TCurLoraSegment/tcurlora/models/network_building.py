"""Make a network as large as its weights and not larger, whatever its description asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode


def build_within(make: Callable[[], nn.Module], parameters: int) -> nn.Module:
    """Make a network, first without memory where that is possible, and break off when it would be far too large.

    Args:
        make: makes it.
        parameters: in its weights file.

    Raises:
        ValueError: when it would have far more parameters than its weights file.
    """
    with suppress(NotImplementedError, RuntimeError), torch.device("meta"), Unfilled(), of_size(parameters):
        make()
    with of_size(parameters):
        return make()


class Unfilled(TorchFunctionMode):
    """Leave parameters as they are that a network fills while it is made.

    On a device without numbers there is nothing to fill, but torch loads its compiler for some functions that fill.
    """

    def __torch_function__(
        self, function: Callable[..., Any], _types: Any, args: tuple[Any, ...] = (), named: Any = None
    ) -> Any:
        name = getattr(function, "__name__", "")
        if name.endswith("_") and not name.endswith("__") and args and isinstance(args[0], nn.Parameter):
            return args[0]
        return function(*args, **(named or {}))


@contextmanager
def of_size(parameters: int) -> Iterator[None]:
    """Break off while a network is made that would have far more parameters or layers than its weights file."""
    made = 0

    def count(_module: nn.Module, _name: str, parameter: nn.Parameter) -> None:
        nonlocal made
        made += 0 if parameter is None else parameter.numel()
        if made > 2 * parameters + 1000:
            raise ValueError("it would be larger than its weights")

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()
