"""Files that appear whole or not at all: the name that one has while it is written, and the end of forgotten ones."""

from __future__ import annotations

import glob
import os
import platform
import time
import zlib
from contextlib import suppress
from pathlib import Path

DAY_S = 86_400


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
