"""Choose the device and its precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from tcurlora.errors import InputError, MemoryExhausted, is_out_of_memory
from tcurlora.runtime import distributed


def choose_device(name: str = "auto") -> torch.device:
    """Turn `auto`, `cpu`, `cuda`, `cuda:1` or `mps` into a device; each process of a shared run has a card of its own.

    Raises:
        InputError: when the device is unknown or not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.partition(":")[0] == "cuda" and distributed.active():
        name = f"cuda:{distributed.local_rank()}"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"There is no device '{name}'.", "Choose auto, cpu or cuda.", "unknown_device") from error
    missing = (device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()) or (
        device.type == "mps" and not torch.backends.mps.is_available()
    )
    if missing or device.type not in ("cpu", "cuda", "mps"):
        raise InputError(
            f"The device '{name}' is not available here.",
            "Choose another device (--device auto or cpu; 'tcurlora doctor' shows what is there).",
            "unknown_device",
        )
    return device


def half_precision(device: torch.device) -> torch.dtype | None:
    """The type for automatic mixed precision on a device; None on a CPU, which computes in float32."""
    if device.type != "cuda":
        return None
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def autocast(device: torch.device) -> AbstractContextManager[None]:
    """Automatic mixed precision where the device gains by it."""
    dtype = half_precision(device)
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


@contextmanager
def out_of_memory_as_error(device: torch.device) -> Iterator[None]:
    """Turn the device's out-of-memory error into one that speaks to the person."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, torch.OutOfMemoryError) and not is_out_of_memory(error):
            raise
        raise _exhausted(device) from error


def _exhausted(device: torch.device) -> MemoryExhausted:
    where = "The computer" if device.type == "cpu" else "The graphics card"
    return MemoryExhausted(
        f"{where} ran out of memory.",
        "Close other programs, compute on the processor (--device cpu), or choose a smaller base model.",
    )
