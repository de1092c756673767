"""What torchrun starts in the tests: the command line, with a fault in one process the first time it is started."""

from __future__ import annotations

import os
import signal
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tcurlora.cli.commands import LOADS_MONAI, main
from tcurlora.errors import MemoryExhausted
from tcurlora.runtime.monai_import import import_monai

PLACE = Path(os.environ["TORCHRUN_TEST_PLACE"])
FAULTY = os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"


def on_call(number: int, function: Callable[..., Any], fault: Callable[[], None]) -> Callable[..., Any]:
    """Let a function fail when it is called for that time."""
    calls = 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number and FAULTY:
            fault()
        return function(*args, **kwargs)

    return counted


def run_out_of_memory() -> None:
    raise MemoryExhausted("The computer ran out of memory.")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def logged(function: Callable[..., Any]) -> Callable[..., Any]:
    """Note which scans are segmented by which process."""

    def write(labels: Any, structures: Any, path: Path) -> None:
        # When the other process dies this one is ended too, and then not between writing and noting it. To block the
        # signal would not do: it may reach one of the group's threads.
        ended: list[int] = []
        before = signal.signal(signal.SIGTERM, lambda number, _frame: ended.append(number))
        function(labels, structures, path)
        with (PLACE / "written.txt").open("a", encoding="utf-8") as log:
            log.write(f"{os.environ['RANK']} {path.name}\n")
        signal.signal(signal.SIGTERM, before)
        if ended:
            os.kill(os.getpid(), signal.SIGTERM)

    return write


def leaving_nothing(leave: Callable[[bool], None]) -> Callable[[bool], None]:
    """See that the group of processes, whose threads must not run while Python ends, is gone when it was left."""

    def watched(failed: bool) -> None:
        from torch.distributed import group

        left = weakref.ref(group.WORLD)
        leave(failed)
        if left() is not None:
            os.abort()  # the threads would do so, now and then

    return watched


def adapt() -> None:
    from tcurlora.runtime import distributed
    from tcurlora.training import adaptation

    # Three patches cannot be shared equally by two processes.
    settings = adaptation.training_settings
    adaptation.training_settings = lambda *given: replace(settings(*given), batch=3, check_every=2)  # type: ignore[assignment]
    # Four steps are taken to measure, so this is the training's fourth.
    distributed.sum_gradients = on_call(8, distributed.sum_gradients, run_out_of_memory)


def segment() -> None:
    from tcurlora.inference import scans as segmentation

    segmentation.write_segmentation = logged(segmentation.write_segmentation)  # type: ignore[assignment]
    segmentation.read_channels = on_call(2, segmentation.read_channels, die)


if __name__ == "__main__":
    from tcurlora.runtime import distributed

    distributed.leave = leaving_nothing(distributed.leave)
    command = sys.argv[1]
    import_monai(LOADS_MONAI[command])
    {"adapt": adapt, "segment": segment}[command]()
    sys.exit(main())
