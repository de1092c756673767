"""Engines that misbehave: interpreters that run a script of the test in the place of one command of the real engine."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

_SCRIPT = """#!{python}
import os, sys
if sys.argv[2] != {command!r}:
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
import json, time
arguments = sys.argv[3:]
def emit(**event):
    print(json.dumps(event, ensure_ascii=False), flush=True)
{body}
"""


def make_engine(folder: Path, command: str, body: str) -> str:
    """Write an interpreter that runs `body` when the engine's command is started with it.

    Args:
        folder: where to write it.
        command: the command that misbehaves, such as `adapt`.
        body: Python code; it has `arguments` and `emit(event=..., ...)`.

    Returns:
        Path of the interpreter.
    """
    path = folder / "python"
    path.write_text(_SCRIPT.format(python=sys.executable, command=command, body=body), encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)
