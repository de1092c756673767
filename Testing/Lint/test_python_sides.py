"""Slicer's process knows nothing of torch, and the engine nothing of Slicer."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from project_files import CONTRACT, ENGINE, LIBRARY, MODULE_FILE, python_files, tree_of, where

WIDGETS = LIBRARY / "widgets"
NOT_IN_SLICERS_PROCESS = {"torch", "monai", "tcurlora", "safetensors", "einops", "peft", "PySide6", "harness", "imp"}
NOT_IN_THE_ENGINE = {"slicer", "vtk", "qt", "ctk", "PySide6", "TCurLoraSegmentLib", "SampleData", "PyTorchUtils", "imp"}
AT_FILE_SCOPE = {
    *sys.stdlib_module_names,
    "slicer",
    "vtk",
    "SimpleITK",
    "numpy",
    "scipy",
    "TCurLoraSegmentLib",
    "tcurlora_contract",
}
# The worker process and what surrounds it can be had in any Python, to run a job on another machine.
WITHOUT_SLICER = ("engine_process.py", "worker.py", "warm_worker.py", "engine.py", "jobs.py")


def imports(tree: ast.AST) -> Iterator[tuple[ast.AST, str, bool]]:
    """Give every import as its node, the top of the module's name, and whether it runs when the file is imported."""

    def walk(node: ast.AST, at_import: bool) -> Iterator[tuple[ast.AST, str, bool]]:
        for child in ast.iter_child_nodes(node):
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                yield from walk(child, False)
                continue
            if isinstance(child, ast.Import):
                yield from ((child, alias.name.split(".")[0], at_import) for alias in child.names)
            elif isinstance(child, ast.ImportFrom) and not child.level:
                yield child, (child.module or "").split(".")[0], at_import
            elif isinstance(child, ast.Call) and ast.unparse(child.func).split(".")[-1] in (
                "import_module",
                "__import__",
            ):
                for argument in child.args[:1]:
                    if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                        yield child, argument.value.split(".")[0], at_import
            yield from walk(child, at_import and not inside)

    yield from walk(tree, True)


def forbidden_imports(path: Path, tree: ast.AST, forbidden: set[str], only_at_import: bool = False) -> list[str]:
    """Say which of the forbidden modules a file imports."""
    return [
        f"{where(path, node)}: imports {name}"
        for node, name, at_import in imports(tree)
        if name in forbidden and (at_import or not only_at_import)
    ]


def strange_imports(path: Path, tree: ast.AST, allowed: set[str]) -> list[str]:
    """Say what a file imports at file scope beyond what it may."""
    return [
        f"{where(path, node)}: imports {name} at file scope"
        for node, name, at_import in imports(tree)
        if at_import and name not in allowed
    ]


def clean(problems: list[str]) -> None:
    assert not problems, "\n".join(problems)


def test_the_engine_knows_nothing_of_slicer() -> None:
    files = list(python_files(ENGINE))
    assert len(files) > 30
    clean([problem for path in files for problem in forbidden_imports(path, tree_of(path), NOT_IN_THE_ENGINE)])


def test_slicers_process_knows_nothing_of_torch() -> None:
    files = list(python_files(MODULE_FILE, LIBRARY))
    clean([problem for path in files for problem in forbidden_imports(path, tree_of(path), NOT_IN_SLICERS_PROCESS)])


def test_qt_is_imported_only_by_widgets() -> None:
    problems = []
    for path in python_files(LIBRARY):
        if WIDGETS not in path.parents:
            problems += forbidden_imports(path, tree_of(path), {"qt", "ctk"})
    clean(problems + forbidden_imports(MODULE_FILE, tree_of(MODULE_FILE), {"qt", "ctk"}, only_at_import=True))


def test_widgets_are_not_imported_where_there_may_be_no_qt() -> None:
    problems = []
    for path in python_files(MODULE_FILE, LIBRARY):
        tree = tree_of(path)
        for node in ast.walk(tree):
            of_widgets = isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
                "TCurLoraSegmentLib.widgets"
            )
            # The module file may, inside the functions of its widget class.
            if of_widgets and WIDGETS not in path.parents and (path != MODULE_FILE or node in tree.body):
                problems.append(f"{where(path, node)}: imports {ast.unparse(node)}")
    clean(problems)


def test_nothing_strange_is_imported_at_file_scope() -> None:
    problems = strange_imports(MODULE_FILE, tree_of(MODULE_FILE), AT_FILE_SCOPE)
    for path in python_files(LIBRARY):
        allowed = AT_FILE_SCOPE | ({"qt", "ctk"} if WIDGETS in path.parents else set())
        problems += strange_imports(path, tree_of(path), allowed)
    clean(problems)


@pytest.mark.parametrize("name", WITHOUT_SLICER)
def test_the_worker_needs_no_slicer(name: str) -> None:
    path = LIBRARY / name
    only_standard = {*sys.stdlib_module_names, "TCurLoraSegmentLib", "tcurlora_contract"}
    clean(
        strange_imports(path, tree_of(path), only_standard) + forbidden_imports(path, tree_of(path), {"slicer", "vtk"})
    )


def test_the_contract_needs_nothing() -> None:
    files = list(python_files(CONTRACT))
    assert len(files) > 5
    allowed = {*sys.stdlib_module_names, "tcurlora_contract"}
    for path in files:
        found = [
            f"{where(path, node)}: imports {name}" for node, name, _ in imports(tree_of(path)) if name not in allowed
        ]
        clean(found)


def test_bad_imports_are_found() -> None:
    bad = ast.parse(
        "import torch.nn\n"
        "def f():\n  from monai.data import x\n  import qt\n"
        "class A:\n  import qt\n"
        "import importlib\nimportlib.import_module('tcurlora.cli.commands')\n"
        "try:\n  import imp\nexcept ImportError:\n  import pandas\n"
    )
    path = Path("bad.py")
    found = forbidden_imports(path, bad, NOT_IN_SLICERS_PROCESS)
    assert [line.split("imports ")[1] for line in found] == ["torch", "monai", "tcurlora", "imp"]
    assert len(forbidden_imports(path, bad, {"qt"})) == 2
    assert forbidden_imports(path, bad, {"qt"}, only_at_import=True) == ["bad.py:6: imports qt"]
    assert strange_imports(path, bad, AT_FILE_SCOPE | {"torch", "tcurlora", "imp"}) == [
        "bad.py:6: imports qt at file scope",
        "bad.py:12: imports pandas at file scope",
    ]
    assert forbidden_imports(path, ast.parse("from slicer.util import x\nimport vtk"), NOT_IN_THE_ENGINE) == [
        "bad.py:1: imports slicer",
        "bad.py:2: imports vtk",
    ]
    typed = ast.parse("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n  import qt\n")
    assert forbidden_imports(path, typed, {"qt"}, only_at_import=True) == []
