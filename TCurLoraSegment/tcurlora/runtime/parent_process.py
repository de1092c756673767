"""A run that is attached to the program that started it: it ends when it is asked to, or when that program is gone."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from contextlib import suppress

from tcurlora.errors import Cancelled
from tcurlora_contract.warm_worker import CANCEL_LINE

CANCEL = CANCEL_LINE.encode()
PATIENCE_S = (5.0, 10.0, 15.0)
"""How long to wait for the end after asking the first, second and third time."""


def attach() -> threading.Event:
    """Watch stdin from now on: a line `cancel`, or its end, ends this process as SIGTERM does.

    The main thread is interrupted, so that it can close its files and say that it was cancelled. Where it does not
    listen within half a minute, such as in a driver that hangs, the process ends without it: what a job has written
    is whole at any moment.

    Returns:
        To be set when the work is done and there is nothing to cancel any more.
    """
    done = threading.Event()
    threading.Thread(target=_watch, args=(done,), name="attachment", daemon=True).start()
    return done


def _watch(done: threading.Event) -> None:
    with suppress(OSError):  # a stdin that cannot be read is one that nobody holds
        _wait_for_cancel()
    for patience in PATIENCE_S:
        if done.is_set():
            return
        _interrupt()
        # One interruption can get lost, because Python ignores exceptions in destructors and callbacks.
        done.wait(patience)
    if not done.is_set():
        os._exit(Cancelled.exit_code)


def _wait_for_cancel() -> None:
    pending = b""
    while True:
        wait_for_input()
        # Not sys.stdin: a thread that waits in it holds a lock that Python needs when it ends.
        received = os.read(0, 4096)
        *lines, pending = (pending + received).split(b"\n")
        if not received or any(line.strip() == CANCEL for line in lines):
            return
        pending = pending[-64:]  # an endless line is no message


def wait_for_input() -> None:
    """Wait until stdin has something to read, or has ended."""
    if sys.platform == "win32":
        # While a read waits there, every library hangs that looks at stdin when it is loaded, as numpy's do.
        import _winapi
        import msvcrt

        while _winapi.PeekNamedPipe(msvcrt.get_osfhandle(0))[0] == 0:
            time.sleep(0.1)


def _interrupt() -> None:
    if sys.platform == "win32":
        import _thread

        _thread.interrupt_main(signal.SIGTERM)
    else:
        # A real signal also ends a system call that waits.
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
