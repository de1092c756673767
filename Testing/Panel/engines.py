"""Engines that misbehave: interpreters that run a script of the test in the place of one command of the real engine."""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path

from TCurLoraSegmentLib.installation import MINIMUM_VERSIONS

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


_QUICK = """#!{python}
import json, os, sys, time
arguments = [word for word in sys.argv[2:] if word not in ("--json", "--attached")]

def emit(**event):
    print(json.dumps(event, ensure_ascii=False), flush=True)

bodies = {bodies!r}
body = bodies.get(" ".join(arguments[:2])) or bodies.get(arguments[0])
if body is None:
    sys.exit("this engine knows nothing of " + arguments[0])
exec(body, dict(globals(), arguments=arguments[1:]))
"""

MODEL = {
    "name": "hippocampus_t1_unetr",
    "title": "Hippocampus in T1 MRI",
    "structures": ["anterior hippocampus", "posterior hippocampus"],
    "on_disk": True,
    "origin": "shipped",
    "licence": "CC BY-SA 4.0",
    "size": 14e6,
    "terminology": {},
}
DOCTOR = {
    "ok": True,
    "items": [
        {"name": name, "value": value, "ok": True, "remedy": ""}
        for name, value in {"Python": "3.12.1", "device cpu": "4 threads", **MINIMUM_VERSIONS}.items()
    ],
}


def make_quick_engine(folder: Path, **bodies: str) -> str:
    """Write an interpreter that answers at once, because no test needs the real engine to see what the panel does.

    Args:
        folder: where to write it.
        bodies: Python code for each command, with `_` in place of a space; what lists and looks is there already.

    Returns:
        Path of the interpreter.
    """
    answers = {"models list": [MODEL], "adapters list": [], "doctor": DOCTOR}
    code = {command: f"print({json.dumps(json.dumps(answer))})" for command, answer in answers.items()}
    code |= {command.replace("_", " "): body for command, body in bodies.items()}
    path = folder / "python"
    path.write_text(_QUICK.format(python=sys.executable, bodies=code), encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)
