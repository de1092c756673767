"""The files of the project, as the lints read them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODULE = ROOT / "TCurLoraSegment"
LIBRARY = MODULE / "TCurLoraSegmentLib"
ENGINE = MODULE / "tcurlora"
CONTRACT = MODULE / "tcurlora_contract"
MODULE_FILE = MODULE / "TCurLoraSegment.py"
FOLDERS = ("TCurLoraSegment", "Testing", "Resources", "docs", ".ci", ".github")
BINARY = {".png", ".jpg", ".jpeg", ".safetensors", ".pt"}


def all_files() -> Iterator[Path]:
    """Give every file of the project; what git ignores lies elsewhere, or is a cache of Python."""
    yield from (path for path in sorted(ROOT.iterdir()) if path.is_file() and path.name != ".git")
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts and not any(p.endswith("_cache") for p in path.parts):
                yield path


def text_files() -> Iterator[Path]:
    """Give every file that is not binary."""
    return (path for path in all_files() if path.suffix not in BINARY)


def python_files(*places: Path) -> Iterator[Path]:
    """Give the Python files among some files and folders; one that is not there yet is left out."""
    for place in places:
        yield from ([place] if place.is_file() else sorted(place.rglob("*.py")))


def tree_of(path: Path) -> ast.Module:
    """Parse a Python file."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def where(path: Path, node: ast.AST | None = None) -> str:
    """Say where a problem is, for a person."""
    name = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
    return f"{name}:{node.lineno}" if node is not None and hasattr(node, "lineno") else name
