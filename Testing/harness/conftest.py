"""The stand-in's own tests have it with Qt, and fail by what its slots raise."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import harness

harness.start_panel()


@pytest.fixture(autouse=True)
def fresh_slicer() -> Iterator[None]:
    harness.begin_test()
    yield
    harness.end_test()
