"""The CMake files are configured, built and installed against a stub of Slicer."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from project_files import ENGINE, LIBRARY, MODULE, ROOT, python_files

STUB = Path(__file__).resolve().parent / "SlicerStub"
SCRIPTED_MODULES = "lib/Slicer-5.10/qt-scripted-modules"


def program(name: str) -> str:
    """Find a program, first among those that pip installed beside this Python."""
    beside = shutil.which(name, path=str(Path(sys.executable).parent))
    found = beside or shutil.which(name)
    assert found, f"{name} is missing; pip installs it with this project's extra [tests]"
    return found


def cmake(*arguments: str) -> str:
    ran = subprocess.run([program("cmake"), *arguments], capture_output=True, text=True, encoding="utf-8")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with the build tree `build` and the package `package`."""
    folder = tmp_path_factory.mktemp("extension")
    # Slicer's project() looks for compilers, which copying Python files does not need.
    no_compiler = folder / "no-compiler.cmake"
    python = Path(sys.executable).as_posix()
    settings = "\n".join(
        f'set(CMAKE_{language}_COMPILER "{python}")\nset(CMAKE_{language}_COMPILER_FORCED TRUE)'
        for language in ("C", "CXX")
    )
    no_compiler.write_text(settings, encoding="utf-8")
    build = folder / "build"
    cmake(
        *("-S", str(ROOT), "-B", str(build), "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={program('ninja')}"),
        *(f"-DSlicer_DIR={STUB}", f"-DCMAKE_TOOLCHAIN_FILE={no_compiler}", "-DBUILD_TESTING=ON"),
    )
    cmake("--build", str(build))
    cmake("--install", str(build), "--prefix", str(folder / "package"))
    return folder


@pytest.mark.parametrize("tree", ["build", "package"])
def test_everything_arrives(built: Path, tree: str) -> None:
    modules = built / tree / SCRIPTED_MODULES
    expected = [path.relative_to(MODULE) for path in python_files(MODULE / "TCurLoraSegment.py", LIBRARY, ENGINE)]
    expected += [path.relative_to(MODULE) for path in (MODULE / "Resources").rglob("*") if path.is_file()]
    expected += [path.relative_to(ROOT) for path in (ROOT / "Resources/BaseModels").rglob("*") if path.is_file()]
    missing = [str(path) for path in sorted(set(expected)) if not (modules / path).is_file()]
    assert not missing, "\n".join(missing)
    assert len(expected) > 60


@pytest.mark.parametrize("tree", ["build", "package"])
def test_the_engine_finds_the_base_models_there(built: Path, tree: str) -> None:
    modules = built / tree / SCRIPTED_MODULES
    code = (
        "from tcurlora.models.catalogue import catalogue_file as file, list_models; print(file()); print(list_models())"
    )
    environment = {**os.environ, "PYTHONPATH": str(modules), "TCURLORA_HOME": str(built / "home")}
    ran = subprocess.run([sys.executable, "-c", code], cwd=built, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    catalogue, models = ran.stdout.splitlines()
    assert Path(catalogue) == modules / "Resources/BaseModels/catalogue.json"
    assert "'on_disk': True" in models


def test_the_tests_are_registered_without_a_main_window(built: Path) -> None:
    lines = (built / "build/unittests.txt").read_text(encoding="utf-8").splitlines()
    scripts = dict(line.split("|") for line in lines)
    names = {Path(script).name for script in scripts}
    assert names == {"in_slicer.py"}
    assert set(scripts.values()) == {"--no-main-window;--disable-cli-modules"}


def test_the_stub_refuses_a_missing_file_as_slicer_does(tmp_path: Path) -> None:
    copy = tmp_path / "TCurLoraSegment"
    copy.mkdir()
    (copy / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.16)\nproject(Bad NONE)\nfind_package(Slicer REQUIRED)\n"
        "include(${Slicer_USE_FILE})\nslicerMacroBuildScriptedModule(NAME Bad SCRIPTS Missing.py)\n",
        encoding="utf-8",
    )
    with pytest.raises(AssertionError, match=r"nonexistent file 'Missing\.py'"):
        cmake(*("-S", str(copy), "-B", str(tmp_path / "build"), "-G", "Ninja", f"-DSlicer_DIR={STUB}"))
