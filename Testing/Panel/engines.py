"""Engines that misbehave: interpreters that run a script of the test in the place of one command of the real engine."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

_SCRIPT = """#!{python}
import json, os, sys, time
command, asked = {command!r}, sys.argv[2]
if asked != command and (asked, command) != ("serve", "segment"):
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])

def run(arguments, **common):
    def emit(**event):
        print(json.dumps(event | common, ensure_ascii=False), flush=True)
    exec({body!r}, dict(globals(), arguments=arguments, emit=emit))
    return emit

if asked == command:
    run(sys.argv[3:])
    sys.exit()
for line in sys.stdin:
    request = json.loads(line)
    if "cancel" not in request:
        run(request["arguments"], id=request["id"])(event="end", exit_code=0)
"""


def make_engine(folder: Path, command: str, body: str) -> str:
    """Write an interpreter that runs `body` when the engine's command is started with it, or `serve` is asked for it.

    Args:
        folder: where to write it.
        command: the command that misbehaves, such as `adapt`.
        body: Python code; it has `arguments` and `emit(event=..., ...)`. Where it ends the process, no end is said.

    Returns:
        Path of the interpreter.
    """
    path = folder / "python"
    path.write_text(_SCRIPT.format(python=sys.executable, command=command, body=body), encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)
