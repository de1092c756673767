"""Measure how much memory a piece of work holds at most."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from tcurlora.runtime import system_memory


class _LiveTensors(TorchDispatchMode):
    """Adds up the storages of all tensors that operations return while they are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._see, result)
        return result

    def _see(self, tensor: Tensor) -> None:
        if tensor.device.type == "meta":
            return
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return

        def forget(_reference: Any) -> None:
            self._known.pop(key, None)
            self.live -= size

        self._known[key] = weakref.ref(storage, forget)
        self.live += size
        self.peak = max(self.peak, self.live)


def peak_bytes(work: Callable[[], Any], device: torch.device) -> int:
    """Run some work and say how many bytes it held at most, beyond what was held before.

    On a graphics card it is the allocator's own figure. On other devices the tensors that are alive are added up, which
    leaves out what libraries take inside of an operation, but does not depend on what ran before in the process.

    Args:
        work: what to run.
        device: where it computes.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device)) - before
    with _LiveTensors() as tensors:
        work()
    return int(tensors.peak)


def free_memory(device: torch.device) -> int | None:
    """Return how many bytes of the computer's memory work on a device may take; None where only trying tells.

    Args:
        device: where it computes.
    """
    return system_memory.memory()[1] if device.type == "cpu" else None
