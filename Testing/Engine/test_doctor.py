"""The doctor tells what works and what to do about the rest."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tcurlora.cli import doctor
from tcurlora.runtime.system_memory import memory


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "Heim ü"
    monkeypatch.setenv("TCURLORA_HOME", str(folder))
    return folder


def items(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {item["name"]: item for item in report["items"]}


def hide(monkeypatch: pytest.MonkeyPatch, package: str, version: bool = False, files: bool = False) -> None:
    """Take a package's entry, or its files, from Python's sight."""
    real_version, real_spec = importlib.metadata.version, importlib.util.find_spec

    def hidden_version(name: str) -> str:
        if name == package:
            raise importlib.metadata.PackageNotFoundError(name)
        return real_version(name)

    if version:
        monkeypatch.setattr(importlib.metadata, "version", hidden_version)
    if files:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else real_spec(name))


def test_reports_the_installed_versions_and_the_device(home: Path) -> None:
    report = doctor.examine(["hippocampus"])
    found = items(report)
    for name in doctor.PACKAGES:
        assert found[name]["value"] == importlib.metadata.version(name)
        assert found[name]["ok"]
    assert "threads" in found["device cpu"]["value"]
    assert found["base models"] == {"name": "base models", "value": "hippocampus", "ok": True, "remedy": ""}
    assert found["adapters folder"]["value"] == str(home / "adapters")
    assert found["adapters folder"]["ok"]
    assert not home.exists(), "looking must not create folders"
    assert set(found["memory"]) == {"name", "value", "ok", "remedy"}


def test_a_missing_package_is_a_problem_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "monai", version=True, files=True)
    report = doctor.examine()
    assert not report["ok"]
    assert not items(report)["monai"]["ok"]
    words = doctor.describe(report)
    assert "pip install monai" in words
    assert "found, see above." in words


def test_half_a_package_is_told_from_a_whole_one(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "SimpleITK", version=True)
    hide(monkeypatch, "einops", files=True)
    found = items(doctor.examine())
    assert found["SimpleITK"] == {"name": "SimpleITK", "value": "of unknown version", "ok": True, "remedy": ""}
    assert not found["einops"]["ok"] and "without its files" in found["einops"]["value"]
    assert found["einops"]["remedy"].startswith("Uninstall it")


def test_works_in_a_python_that_has_nothing(home: Path) -> None:
    main = Path(doctor.__file__).parents[1] / "__main__.py"
    command = [sys.executable, "-I", "-S", str(main), "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", env={**os.environ, "PYTHONPATH": ""})
    assert done.returncode == 1 and done.stderr == ""
    found = items(json.loads(done.stdout))
    assert {found[name]["value"] for name in doctor.PACKAGES} == {"missing"}
    assert "No module named 'torch'" in found["device"]["value"]


def test_a_torch_that_does_not_start_is_reported_not_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    report = doctor.examine()
    assert "torch does not start" in items(report)["device"]["value"]
    assert not report["ok"]


def test_no_base_model_little_memory_and_an_unusable_folder_are_problems(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    blocked = tmp_path / "a file"
    blocked.write_text("", encoding="utf-8")
    monkeypatch.setenv("TCURLORA_HOME", str(blocked))
    monkeypatch.setattr(doctor, "memory", lambda: (2**30, 2**29))
    report = doctor.examine([])
    wrong = {item["name"]: item for item in report["items"] if not item["ok"]}
    assert {"base models", "memory", "memory free", "adapters folder"} <= set(wrong)
    assert all(item["remedy"] for item in wrong.values())
    words = doctor.describe(report)
    assert all(item["remedy"] in words for item in wrong.values())


def test_description_of_a_sound_computer() -> None:
    words = doctor.describe({"ok": True, "items": [{"name": "Python", "value": "3.12", "ok": True, "remedy": ""}]})
    assert words == "ok       Python  3.12\n\nEverything works here."


def test_memory_is_plausible() -> None:
    total, available = memory()
    assert total is not None
    assert 2**28 < total < 2**50
    assert available is None or 0 < available <= total
