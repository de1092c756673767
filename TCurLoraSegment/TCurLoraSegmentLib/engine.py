"""How the engine is started: in which Python, with which arguments and environment."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from TCurLoraSegmentLib.errors import UserError
from TCurLoraSegmentLib.translation import tr as _

ENGINE_MAIN = Path(__file__).resolve().parent.parent / "tcurlora" / "__main__.py"
"""The engine's command line, started by its path, so that it need not be installed in the Python that runs it."""

_SAVED_BY_LAUNCHER = "APPLAUNCHER_0_"
_SLICERS_OWN = frozenset(
    {
        "PATH",
        "LD_LIBRARY_PATH",
        "LD_PRELOAD",
        "QT_PLUGIN_PATH",
        "QTWEBENGINEPROCESS_PATH",
        "SSL_CERT_FILE",
        "ITK_AUTOLOAD_PATH",
        "TCL_LIBRARY",
        "TK_LIBRARY",
    }
)


@dataclass(frozen=True)
class Engine:
    """A Python that runs the engine.

    Attributes:
        python: the interpreter.
        own: whether it is Slicer's own Python; another one of the user's choice must not see Slicer's libraries.
    """

    python: Path
    own: bool

    def command(self, *arguments: str, attached: bool = True) -> list[str]:
        """Put together the list of arguments that starts a command of the engine.

        Args:
            arguments: the command and its options, such as `"check", "--base", "hippocampus"`.
            attached: whether the run ends when its stdin closes or says `cancel`, as `Worker` wants it.
        """
        return [str(self.python), str(ENGINE_MAIN), *arguments, "--json", *(["--attached"] if attached else [])]

    def environment(self) -> dict[str, str]:
        """The environment of the engine's process; that of this process stays as it is."""
        environment = _with_utf8(os.environ) if self.own else _without_slicer(os.environ)
        # Paths may hold any character, and an event is of use only when it comes at once.
        # Threads that wait for each other in a loop bring a busy computer to a standstill, so they sleep instead.
        waiting = {"OMP_WAIT_POLICY": environment.get("OMP_WAIT_POLICY", "passive")}
        return environment | waiting | {"PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1"}


def default_engine() -> Engine:
    """The engine in Slicer's own Python.

    Raises:
        UserError: when that is not found.
    """
    found = shutil.which("PythonSlicer")
    if found is None and Path(sys.executable or "").stem.lower().startswith("python"):
        found = sys.executable
    if found is None:
        raise UserError(
            _("Slicer's own Python was not found."),
            _("Choose another Python under Environment, or install Slicer again."),
        )
    return Engine(Path(found), own=True)


def engine_of(python: str) -> Engine:
    """The engine in a Python of the user's choice.

    Args:
        python: path of an interpreter or of a virtual environment; empty for Slicer's own.

    Raises:
        UserError: when there is no Python at that place.
    """
    if not python.strip():
        return default_engine()
    path = Path(python.strip()).expanduser()
    if path.is_dir():
        inside = [path / name for name in ("bin/python", "bin/python3", "Scripts/python.exe", "python.exe")]
        path = next((candidate for candidate in inside if candidate.is_file()), path)
    if not path.is_file() or not os.access(path, os.X_OK):
        what = (
            _("There is no Python in the folder '{path}'.") if path.is_dir() else _("There is no Python at '{path}'.")
        )
        raise UserError(
            what.format(path=path),
            _(
                "Choose the file of the interpreter, such as bin/python or python.exe, "
                "or leave it empty for Slicer's own."
            ),
        )
    # Not resolved: the link is what makes a virtual environment.
    return Engine(path.absolute(), own=False)


def _with_utf8(environment: Mapping[str, str]) -> dict[str, str]:
    """Give the launcher of Slicer's Python a locale in which it hands on arguments of any characters."""
    locale = environment.get("LC_ALL") or environment.get("LC_CTYPE") or environment.get("LANG") or ""
    bare = sys.platform == "linux" and "utf" not in locale.lower()
    return {**environment, **({"LC_ALL": "C.UTF-8"} if bare else {})}


def _without_slicer(environment: Mapping[str, str]) -> dict[str, str]:
    """Undo what Slicer's launcher did; it keeps what it found under names of its own."""
    scrubbed = {}
    for name, value in environment.items():
        upper = name.upper()
        if upper.startswith(("PYTHON", "DYLD_", "APPLAUNCHER_")):
            continue
        before: str | None = value
        if upper in _SLICERS_OWN:
            # A path that was not kept was not changed; of the others nothing is left but what was kept.
            before = environment.get(_SAVED_BY_LAUNCHER + name, value if upper == "PATH" else None)
        if before is not None:
            scrubbed[name] = before
    return scrubbed
