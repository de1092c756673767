"""The small Python modules that a Slicer has and the slicer-core wheel leaves out, as far as a module may need them."""
# ruff: noqa: N803

from __future__ import annotations

import importlib.metadata
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import slicer
from packaging.requirements import Requirement

# What was asked of slicer.packaging: (function, requirements, options). `pip_failure` is raised instead when set.
pip_calls: list[tuple[str, Any, dict[str, Any]]] = []
pip_failure: list[Exception] = []
# What was registered with the Sample Data module.
sample_data: list[dict[str, Any]] = []


def supply() -> None:
    """Put the modules where `import` and attributes of `slicer` find them."""
    _module("slicer.i18n", tr=_tr, translate=_translate, getContext=lambda path: Path(path).stem)
    _module(
        "slicer.packaging",
        pip_ensure=_pip_ensure,
        pip_install=_pip_install,
        pip_uninstall=_pip_uninstall,
        pip_check=_pip_check,
        isPipInstallInProgress=lambda: False,
        load_requirements=_load_requirements,
    )
    _module("slicer.testing", exitSuccess=lambda: None, exitFailure=_exit_failure)
    logic = type("SampleDataLogic", (), {"registerCustomSampleDataSource": staticmethod(_register)})
    _module("SampleData", SampleDataLogic=logic)


def _module(name: str, **contents: Any) -> None:
    module = types.ModuleType(name)
    vars(module).update(contents)
    sys.modules[name] = module
    if name.startswith("slicer."):
        setattr(slicer, name.removeprefix("slicer."), module)


def _tr(text: str) -> str:
    """Mark a text for translation: a plain text, as the tool that collects them reads the source."""
    if not isinstance(text, str):
        raise TypeError(f"_() takes a str, not {text!r}")
    return text


def _translate(context: str, text: str) -> str:
    return _tr(text)


def _pip(function: str, requirements: Any, options: dict[str, Any]) -> None:
    pip_calls.append((function, requirements, options))
    if pip_failure:
        raise pip_failure.pop(0)


def _pip_ensure(
    requirements: Any,
    constraints: str | Path | None = None,
    skip_packages: list[str] | None = None,
    prompt_install: bool = True,
    prompt_restart: bool = True,
    requester: str | None = None,
    skip_in_testing: bool = True,
    show_progress: bool = True,
) -> None:
    options = {key: value for key, value in locals().items() if key != "requirements"}
    _pip("pip_ensure", requirements, options)


def _pip_install(
    requirements: Any,
    constraints: str | Path | None = None,
    no_deps_requirements: Any = None,
    skip_packages: list[str] | None = None,
    blocking: bool = True,
    show_progress: bool = True,
    requester: str | None = None,
    logCallback: Callable[[str], None] | None = None,
    completedCallback: Callable[[int], None] | None = None,
) -> None:
    options = {key: value for key, value in locals().items() if key != "requirements"}
    _pip("pip_install", requirements, options)
    if completedCallback is not None and not blocking:
        completedCallback(0)


def _pip_uninstall(requirements: Any, **options: Any) -> None:
    _pip("pip_uninstall", requirements, options)


def _pip_check(req: Any) -> bool:
    for one in [req] if isinstance(req, (str, Requirement)) else req:
        requirement = Requirement(str(one))
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            return False
        if not requirement.specifier.contains(version, prereleases=True):
            return False
    return True


def _load_requirements(path: str | Path) -> list[Requirement]:
    lines = (line.split("#")[0].strip() for line in Path(path).read_text(encoding="utf-8").splitlines())
    return [Requirement(line) for line in lines if line]


def _exit_failure(message: str = "") -> None:
    raise AssertionError(message)


def _register(
    category: str = "Custom",
    sampleName: str | None = None,
    uris: Any = None,
    fileNames: Any = None,
    nodeNames: Any = None,
    customDownloader: Callable[..., Any] | None = None,
    thumbnailFileName: str | None = None,
    loadFileTypes: Any = None,
    loadFiles: Any = None,
    loadFileProperties: Any = None,
    checksums: Any = None,
    loadFileType: Any = None,
) -> None:
    sample_data.append(dict(locals()))
