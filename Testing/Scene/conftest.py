"""Each test of the scene starts with an empty one, in a running Slicer's likeness, without Qt."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import harness

harness.start()


@pytest.fixture(autouse=True)
def empty_scene(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TCURLORA_HOME", str(tmp_path_factory.mktemp("home")))
    harness.clear_scene()
    yield
    harness.clear_scene()
