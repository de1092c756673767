"""Share one run among the processes that torchrun starts; in a process of its own, everything here is done by it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from tcurlora.errors import TCurLoraError

PATIENCE = timedelta(days=7)
"""How long a process waits for another that is at work; one that has died is noticed at once."""

DROPOUTS = (functional.dropout, functional.dropout1d, functional.dropout2d, functional.dropout3d)

Item = TypeVar("Item")
Result = TypeVar("Result")


def join() -> None:
    """Meet the other processes, as torchrun's environment says: over nccl for graphics cards, and gloo for the rest."""
    # Not every build of torch has these. The functions of the first take the group of the time of their import as a
    # default: imported later, as torch does for some work, they would keep its threads alive beyond `leave`, and a
    # thread that lets go of a tensor while Python ends takes the process down with it.
    import torch.distributed.nn.functional
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    if local_rank() < torch.cuda.device_count():
        torch.cuda.set_device(local_rank())
    with _others_needed():
        store, number, count = next(rendezvous("env://"))
        # The store may be that of processes that were started before and have died; their addresses must not be taken.
        store = PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        distributed.init_process_group(store=store, rank=number, world_size=count, timeout=PATIENCE)


def leave(failed: bool) -> None:
    """Part from the other processes when all work is done, or when this process has `failed`."""
    # nccl would wait for the others, who may never come.
    if active() and not (failed and torch.cuda.is_available()):
        distributed.destroy_process_group()


def active() -> bool:
    """Whether the run is shared."""
    return distributed.is_available() and distributed.is_initialized()


def rank() -> int:
    """Number of this process; 0 leads: it tells of the work and writes what all have done together."""
    return distributed.get_rank() if active() else 0


def world() -> int:
    """How many processes share the run."""
    return distributed.get_world_size() if active() else 1


def local_rank() -> int:
    """Number of this process on its computer, and so of its graphics card."""
    return int(os.environ.get("LOCAL_RANK", 0))


def is_restart() -> bool:
    """Whether torchrun has started the processes anew after one of them failed."""
    return active() and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


def shared(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Apply a function to each item in one of the processes, and give all results, in order, to all of them.

    An error in one process is raised in all.
    """
    items = list(items)
    if not active():
        return [function(item) for item in items]
    own: list[Result] = []
    error: Exception | None = None
    try:
        own += [function(item) for item in items[rank() :: world()]]
    except (TCurLoraError, OSError) as problem:
        error = problem
    gathered: list[Any] = [None] * world()
    with _others_needed():
        distributed.all_gather_object(gathered, (own, error))
    for _, error in gathered:
        if error is not None:
            raise error
    return [gathered[i % world()][0][i // world()] for i in range(len(items))]


def first(function: Callable[[], Result]) -> Result:
    """Call a function in the leading process, and give its result to all."""
    return shared(lambda _: function(), [None])[0]


def own_rows(batch: int) -> range:
    """The samples of a batch that are this process's; there may be none."""
    return range(rank(), batch, world())


def sum_gradients(parameters: Sequence[nn.Parameter], loss: float, device: torch.device) -> float:
    """Add up the gradients of all processes in each of them, and their parts of the loss.

    What is trained is little beside the network, so one sum at the end of a step costs less than the hooks of
    `DistributedDataParallel`, and a process without a sample of its own takes part like any other.
    """
    if not active():
        return loss
    used = [parameter.grad is not None for parameter in parameters]
    parts = [torch.tensor([loss, *used], device=device)]
    parts += [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in parameters]
    total = torch.cat(parts)
    with _others_needed():
        distributed.all_reduce(total)
    summed, *counts = total[: 1 + len(parameters)].tolist()
    gradients = total[1 + len(parameters) :].split([p.numel() for p in parameters])
    for parameter, gradient, count in zip(parameters, gradients, counts, strict=True):
        # A parameter that no process used has no gradient, and the optimizer leaves it alone.
        parameter.grad = gradient.view_as(parameter) if count else None
    return float(summed)


class DropoutOfBatch(TorchFunctionMode):
    """Draws dropout for all samples of a batch, and takes what belongs to those at hand.

    So a batch that is computed in parts, one after the other or in several processes, is the same batch.

    Args:
        rows: which samples of the batch are at hand.
        batch: samples in the whole batch.
    """

    def __init__(self, rows: Sequence[int], batch: int) -> None:
        super().__init__()
        self.rows, self.batch = list(rows), batch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in DROPOUTS and kwargs["training"]:
            (x,) = args
            return x * self._part(lambda full: func(full, p=kwargs["p"]), x)
        if func is Tensor.bernoulli_:
            x, *others = args
            return x.copy_(self._part(lambda full: full.bernoulli_(*others, **kwargs), x))
        return func(*args, **kwargs)

    def _part(self, draw: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        # Random numbers go to the elements in the order of their memory. A sample may have several places on the
        # first axis, such as its windows.
        order = sorted(range(x.ndim), key=x.stride, reverse=True)
        places = len(x) // len(self.rows)
        shape = [self.batch * places if axis == 0 else x.shape[axis] for axis in order]
        full = draw(x.detach().new_ones(shape).permute([order.index(axis) for axis in range(x.ndim)]))
        part: Tensor = full.unflatten(0, (self.batch, places))[self.rows].flatten(0, 1)
        return part


@contextmanager
def _others_needed() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise TCurLoraError(
            f"Another process of this run has ended ({str(error).splitlines()[0][:200]}).",
            "If it said why, help that; then go on (with --resume).",
            "process_lost",
        ) from error
