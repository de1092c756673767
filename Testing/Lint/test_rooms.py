"""The engine's rooms: imports run one way, and each room says what it knows."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest
from project_files import ENGINE, ROOT, python_files, tree_of, where

# Each room may import from those before it. `imaging` comes before `method`, whose channels name structures.
ROOMS = (
    "errors",
    "runtime",
    "imaging",
    "method",
    "models",
    "inference",
    "cases",
    "evaluation",
    "training",
    "comparison",
    "demo",
    "cli",
)


def room_of(module: str) -> str:
    """Name the room of a module `tcurlora.room.file`; of the package itself, an empty one."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def uphill(path: Path, tree: ast.AST, room: str) -> list[str]:
    """Return the imports of a file that lead to a room after its own, wherever in the file they are."""
    problems = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "tcurlora":
            names = [
                f"{node.module}.{alias.name}" if node.module == "tcurlora" else node.module for alias in node.names
            ]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.split(".")[0] == "tcurlora"]
        else:
            continue
        for name in dict.fromkeys(str(name) for name in names):
            if room_of(name) in ROOMS and ROOMS.index(room_of(name)) > ROOMS.index(room):
                problems.append(f"{where(path, node)}: {room} imports {name}, which is in a later room")
    return problems


def test_imports_run_one_way() -> None:
    problems = []
    for path in python_files(ENGINE):
        inside = path.relative_to(ENGINE)
        room = inside.parts[0].removesuffix(".py")
        if room not in ("__init__", "__main__"):
            problems += uphill(path, tree_of(path), room)
    assert not problems, "\n".join(problems)


def test_every_room_is_known_and_says_what_it_is() -> None:
    folders = {entry.name for entry in ENGINE.iterdir() if entry.is_dir() and entry.name != "__pycache__"}
    assert folders == set(ROOMS) - {"errors"}
    for folder in folders:
        assert ast.get_docstring(tree_of(ENGINE / folder / "__init__.py")), f"{folder} has no docstring"
        assert folder not in sys.stdlib_module_names


def test_every_room_is_in_the_wheel() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for room in ROOMS[1:]:
        assert f'"tcurlora.{room}",' in text


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from tcurlora.cli.commands import main", 1),
        ("def f():\n  from tcurlora import training", 1),
        ("import tcurlora.demo.run", 1),
        ("from tcurlora.imaging.images import read_image\nimport torch", 0),
    ],
)
def test_imports_that_lead_back_up_are_found(source: str, expected: int) -> None:
    assert len(uphill(Path("x.py"), ast.parse(source), "models")) == expected
