"""One run at a time in a folder: the second is told that the first is at work."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tcurlora.errors import InputError
from tcurlora_contract.job_files import LOCK


@contextmanager
def exclusive(folder: Path, remedy: str, wait_s: float = 0.0) -> Iterator[None]:
    """Keep other runs out of a folder while this one is at work.

    The operating system drops the lock when the process ends, however it ends. Where a file system has no locks, or
    the lock cannot be written, the work goes on without one: what it writes next says what is wrong.

    Args:
        folder: made if need be, and removed again where it is left empty.
        remedy: what the user can do when another run is at work there.
        wait_s: how long to wait for another run.

    Raises:
        InputError: `busy` when another run is at work in the folder.
    """
    from filelock import FileLock, Timeout  # `doctor` and the lists work where it is missing

    made = [path for path in (folder, *folder.parents) if not path.exists()]
    lock = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK, timeout=wait_s)
        lock.acquire()
    except Timeout as error:  # an OSError too
        raise InputError(f"Another run is at work in '{folder.name}'.", remedy, "busy") from error
    except (OSError, NotImplementedError):
        pass
    try:
        yield
    finally:
        if lock is not None and lock.is_locked:
            if os.name != "nt":  # where an open file can be deleted, it goes before another run can take it
                with suppress(OSError):
                    (folder / LOCK).unlink(missing_ok=True)
            lock.release()
        with suppress(OSError):
            if os.name == "nt":
                (folder / LOCK).unlink(missing_ok=True)
            for path in made:
                path.rmdir()
