"""A file that CMake does not list is not packaged, and Slicer's macro fails on one that does not exist."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from cmake_lists import cmake_set, differences
from project_files import CONTRACT, ENGINE, LIBRARY, MODULE, MODULE_FILE, ROOT, python_files, tree_of, where

MODULE_LISTS = (MODULE / "CMakeLists.txt").read_text(encoding="utf-8")
TESTING_LISTS = (ROOT / "Testing/CMakeLists.txt").read_text(encoding="utf-8")
# In Slicer a test has Slicer's own Python: no pytest, and Slicer instead of the stand-in.
NOT_IN_SLICER = {"pytest", "harness", "_pytest", "PySide6", "torch", "monai", "tcurlora"}


def relative(paths: list[Path], folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in paths}


def agree(listed: list[str], there: set[str]) -> None:
    found = differences(listed, there)
    assert not found, "\n".join(found)


def test_every_script_is_listed() -> None:
    scripts = relative([MODULE_FILE, *python_files(LIBRARY, ENGINE, CONTRACT)], MODULE)
    agree(cmake_set(MODULE_LISTS, "MODULE_PYTHON_SCRIPTS"), scripts)


def test_every_resource_is_listed() -> None:
    resources = relative([path for path in (MODULE / "Resources").rglob("*") if path.is_file()], MODULE)
    agree(cmake_set(MODULE_LISTS, "MODULE_PYTHON_RESOURCES"), resources)


def test_every_file_of_the_base_models_is_listed() -> None:
    files = relative(
        [path for path in (ROOT / "Resources/BaseModels").rglob("*") if path.is_file()], ROOT / "Resources"
    )
    agree(cmake_set(MODULE_LISTS, "MODULE_BASE_MODEL_FILES"), files)


def unfit_for_slicer(path: Path, tree: ast.Module) -> list[str]:
    """Say why Slicer's own unittest runner could not run a test file as it is meant."""
    problems = []
    for node in tree.body:
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        elif isinstance(node, ast.FunctionDef) and node.name.startswith("test"):
            problems.append(f"{where(path, node)}: Slicer runs only methods of a unittest.TestCase, not {node.name}")
        problems += [
            f"{where(path, node)}: {name} is not there in Slicer"
            for name in names
            if name.split(".")[0] in NOT_IN_SLICER
        ]
    # The base may be a TestCase that several files share.
    if not any(isinstance(node, ast.ClassDef) and node.bases and _has_tests(node) for node in tree.body):
        problems.append(f"{where(path)}: has no unittest.TestCase with tests")
    return problems


def _has_tests(node: ast.ClassDef) -> bool:
    return any(isinstance(part, ast.FunctionDef) and part.name.startswith("test") for part in node.body)


def test_every_test_that_slicer_can_run_is_listed() -> None:
    testing = ROOT / "Testing"
    scene, panel = sorted((testing / "Scene").glob("test_*.py")), sorted((testing / "Panel").glob("test_*.py"))
    problems = [problem for path in scene for problem in unfit_for_slicer(path, tree_of(path))]
    assert not problems, "\n".join(problems)
    fit = [*scene, *(path for path in panel if not unfit_for_slicer(path, tree_of(path)))]
    agree(cmake_set(TESTING_LISTS, "SLICER_TESTS"), relative(fit, testing))


def test_unfit_tests_are_found() -> None:
    bad = "import pytest\nfrom harness import show\ndef test_a(): pass\n"
    assert len(unfit_for_slicer(Path("bad.py"), ast.parse(bad))) == 4
    good = "import unittest\nclass A(unittest.TestCase):\n  def test_a(self): pass\n"
    assert unfit_for_slicer(Path("good.py"), ast.parse(good)) == []


def test_names_of_tests_are_unique() -> None:
    # CTest knows a test by its file's name alone.
    names = [Path(test).name for test in cmake_set(TESTING_LISTS, "SLICER_TESTS")]
    assert len(names) == len(set(names))


def test_differences_are_found_both_ways() -> None:
    text = "# set(LIST no.py)\nset(LIST\n  a.py\n  b.py b.py\n  )\n"
    assert differences(cmake_set(text, "LIST"), {"a.py", "c.py"}) == [
        "b.py is listed and does not exist",
        "c.py exists and is not listed",
        "b.py is listed twice",
    ]
    assert cmake_set('set(TEXT "with spaces (and brackets)")', "TEXT") == ["with spaces (and brackets)"]
    with pytest.raises(LookupError):
        cmake_set(text, "OTHER")
