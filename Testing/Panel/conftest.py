"""Tests of the panel have Slicer's widgets, and fail by what a slot raised and by a dialog that nobody expected."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import harness

harness.start_panel()


@pytest.fixture(autouse=True)
def fresh_slicer(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TCURLORA_HOME", str(tmp_path_factory.mktemp("home")))
    harness.begin_test()
    yield
    harness.end_test()
