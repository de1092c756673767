"""What the operating systems do differently about processes: a tree of them ended, one recognised later."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any


def own_group() -> dict[str, Any]:
    """Options of `subprocess.Popen` that give a process a group of its own, and no console window on Windows."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
    return {"start_new_session": True}


def end_tree(process: subprocess.Popen[bytes]) -> None:
    """End a process that was started with `own_group`, and all that it has started, at once.

    Ending the process alone would leave its children behind with the GPU's memory. On Windows those of a process that
    has ended already are not found any more.
    """
    if sys.platform == "win32":
        if process.poll() is None:
            command = ["taskkill", "/T", "/F", "/PID", str(process.pid)]
            with suppress(OSError, subprocess.TimeoutExpired):
                subprocess.run(
                    command, capture_output=True, timeout=10, creationflags=subprocess.CREATE_NO_WINDOW, check=False
                )
            process.kill()
    else:
        # The group bears the number of its first process, also after that one has ended. macOS refuses with a
        # permission error when nothing but ended processes are left in it.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)


def start_of(pid: int) -> str | None:
    """When a living process was started, in the system's own terms; None when there is no such process.

    Numbers of processes are used again. Number and start together tell whether it is still the same one.
    """
    if sys.platform == "win32":
        return _windows_start_of(pid)
    try:
        # After the name in parentheses, which may hold anything: the state, and 19 fields later the start.
        state, *fields = (
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        )
        return None if state in "ZX" else fields[18]
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return None
    except (OSError, ValueError, IndexError):
        pass
    listed = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return listed.stdout.strip() or None


def _windows_start_of(pid: int) -> str | None:
    kernel = ctypes.windll.kernel32  # type: ignore[attr-defined,unused-ignore]
    kernel.OpenProcess.restype = ctypes.c_void_p
    query_limited_information, still_active = 0x1000, 259
    handle = kernel.OpenProcess(query_limited_information, False, pid)
    if not handle:
        return None
    try:
        code = ctypes.c_ulong()
        times = [ctypes.c_ulonglong() for _ in range(4)]
        known = kernel.GetExitCodeProcess(ctypes.c_void_p(handle), ctypes.byref(code))
        known = known and kernel.GetProcessTimes(ctypes.c_void_p(handle), *(ctypes.byref(time) for time in times))
        return str(times[0].value) if known and code.value == still_active else None
    finally:
        kernel.CloseHandle(ctypes.c_void_p(handle))
