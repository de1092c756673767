"""Measure work so that figures of a shared machine can be compared: in turns, with processor time, in own processes."""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import torch

T = TypeVar("T")
MIB = 2**20
RETURNING_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536"}


@dataclass
class Times:
    """What several runs of the same work took; `ratio_to` compares them with the runs that took turns with them."""

    wall: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Median wall time."""
        return statistics.median(self.wall)

    @property
    def processor_seconds(self) -> float:
        """Median processor time of all threads."""
        return statistics.median(self.processor)

    def ratio_to(self, other: Times) -> float:
        """Median over rounds of the ratio of wall times: what slows the machine down slows both down."""
        return statistics.median(a / b for a, b in zip(self.wall, other.wall, strict=True))

    def processor_ratio_to(self, other: Times) -> float:
        """The same of processor times, in which other people's programs hardly show."""
        return statistics.median(a / b for a, b in zip(self.processor, other.processor, strict=True))


def in_turns(
    works: Mapping[str, Callable[[], object]], rounds: int, device: torch.device | None = None
) -> dict[str, Times]:
    """Time several works A, B, A, B, ...; each is done once before, which is not counted."""
    times = {name: Times() for name in works}
    for turn in range(rounds + 1):
        for name, work in works.items():
            gc.collect()
            _finish(device)
            wall, processor = time.perf_counter(), time.process_time()
            work()
            _finish(device)
            if turn:
                times[name].wall.append(time.perf_counter() - wall)
                times[name].processor.append(time.process_time() - processor)
    return times


def in_own_process(work: Callable[..., T], *arguments: Any, returning_memory: bool = False) -> T:
    """Do the work in a new process, whose memory nothing else has touched.

    Args:
        work: what to do; a function of a module.
        arguments: for it.
        returning_memory: whether freed blocks go back to the system at once (by glibc). Growth is then what is held;
            otherwise it is also what the allocator happens to keep for later.
    """
    changes = RETURNING_MEMORY if returning_memory else {}
    with patch.dict(os.environ, changes), ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


class PeakMemory:
    """Most memory of this process, or of the graphics card, since the object was made.

    On a processor it is resident memory, libraries and allocator included; the system keeps the highest mark.
    """

    def __init__(self, device: torch.device) -> None:
        gc.collect()
        self._device = device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
        else:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the mark starts again from now
        self.before = held_memory(device)

    def bytes(self) -> int:
        """The highest mark."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            return int(torch.cuda.max_memory_allocated(self._device))
        return _status("VmHWM")


def held_memory(device: torch.device) -> int:
    """Memory that the process, or the graphics card for it, holds now."""
    return int(torch.cuda.memory_allocated(device)) if device.type == "cuda" else _status("VmRSS")


def matmul_rate(device: torch.device, size: int = 1536) -> float:
    """Floating-point operations a second of a large float32 matrix product: what this machine can do."""
    a, b = torch.randn(2, size, size, device=device).unbind()
    times = in_turns({"matmul": lambda: a @ b}, rounds=7, device=device)["matmul"]
    return 2 * size**3 / min(times.wall)


def _status(name: str) -> int:
    """A figure of this process in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def _finish(device: torch.device | None) -> None:
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
