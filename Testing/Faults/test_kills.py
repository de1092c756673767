"""A few of the kills that `kills.py` does by dozens."""

from __future__ import annotations

import os
import time
from pathlib import Path

import kills
import pytest
from children import in_child

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL")]


@pytest.fixture(autouse=True)
def undisturbed_runs_need_no_new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what is killed must load torch by itself."""

    def run(*arguments: str) -> float:
        began = time.monotonic()
        done = in_child(lambda: None, [*arguments, "--json"])
        assert done.code == 0, done.err
        return time.monotonic() - began

    monkeypatch.setattr(kills, "run", run)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return kills.make_inputs(tmp_path_factory.mktemp("kill inputs"))


def test_killed_adaptations_end_as_an_unbroken_one(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    length = ("--steps=24", "--folds=0")
    assert sum(kills.kill_adaptations(*inputs, tmp_path, count=1, seed=3, length=length).values()) == 1


def test_killed_segmentations_leave_a_whole_result_or_none(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    scan = inputs[1] / "images" / "scan0.nii.gz"
    assert sum(kills.kill_segmentations(inputs[0], scan, tmp_path, count=1).values()) == 1
