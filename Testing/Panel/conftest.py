"""Tests of the panel have Slicer's widgets, and fail by what a slot raised and by a dialog that nobody expected."""

from __future__ import annotations

import gc
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
    # Python may collect cycles in any thread, such as one that reads from a worker, and VTK objects do not survive that
    # outside of the main one. So it is done here, between tests.
    gc.collect()
    gc.disable()
    harness.begin_test()
    yield
    harness.end_test()
    gc.collect()
    gc.enable()
