"""Files and folders that appear whole or not at all, also when the process is killed or the power fails."""

from __future__ import annotations

import errno
import glob
import os
import platform
import shutil
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

DAY_S = 86_400
_NO_SYNC = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)
"""What file systems answer that cannot be asked to bring something to the disk, as some shared ones."""


@contextmanager
def whole_file(path: Path, ending: str = "") -> Iterator[Path]:
    """Give a temporary file beside `path` that becomes it when all went well, and is deleted otherwise.

    Args:
        path: the file that is to appear; one that exists is replaced.
        ending: of the temporary name, for writers that choose the format by it.

    Raises:
        OSError: when it cannot be written.
    """
    temporary = temporary_beside(path, ending)
    try:
        with naming(path):
            yield temporary
            put_in_place(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Give a temporary folder beside `folder` that becomes it when all went well, and is deleted otherwise.

    Args:
        folder: the folder that is to appear; must not exist.

    Raises:
        OSError: when it cannot be written.
    """
    # Always the same name, so that what a killed process left behind is cleared by the next one.
    temporary = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        put_in_place(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let what goes wrong while a file is written name the file, which the system does not do once it is open."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def put_in_place(written: Path, path: Path) -> None:
    """Give a written file or folder its final name, after its content has reached the disk.

    A disk may bring the new name to its platter before the content; after a power failure, an empty file would have it.

    Args:
        written: the file or folder, on the same file system as `path`.
        path: its final name.

    Raises:
        OSError: when the disk did not take the content, or the name cannot be given.
    """
    for part in [written, *written.rglob("*")] if written.is_dir() else [written]:
        _sync(part)
    os.replace(written, path)
    with suppress(OSError):  # it is there, and whole
        _sync(path.parent)


def _sync(path: Path) -> None:
    is_folder = path.is_dir()
    if is_folder and os.name == "nt":  # which opens no folders, and keeps their order itself
        return
    handle = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR | getattr(os, "O_BINARY", 0))
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(handle)


def temporary_beside(path: Path, ending: str = "") -> Path:
    """Name a file in the same folder, to be written and then renamed to `path`.

    What processes left there that were killed while they wrote the same file is removed.

    Args:
        path: the file that is to appear.
        ending: of the temporary name, for writers that choose the format by it; taken off the name first.
    """
    name = path.name.removesuffix(ending) if ending else path.name
    here = f"{zlib.crc32(platform.node().encode()):08x}"
    for left in path.parent.glob(f".{glob.escape(name)}.????????-*.tmp{ending}"):
        machine, _, process = left.name.removeprefix(f".{name}.").removesuffix(f".tmp{ending}").partition("-")
        # Another machine may be writing to the same shared folder: what is young there may be alive.
        if (machine == here and _has_ended(process)) or _is_old(left):
            with suppress(OSError):
                left.unlink(missing_ok=True)
    return path.with_name(f".{name}.{here}-{os.getpid()}.tmp{ending}")


def _has_ended(process: str) -> bool:
    if os.name == "nt" or not process.isdecimal():  # on Windows asking a process whether it lives would end it
        return False
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:
        return False
    return False


def _is_old(left: Path) -> bool:
    try:
        return time.time() - left.stat().st_mtime > DAY_S
    except OSError:
        return False
