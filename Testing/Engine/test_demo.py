"""The demonstration: the shipped base on real MRI, from patients to table and picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from matplotlib.image import imread

from tcurlora.cli.commands import main
from tcurlora.demo.patients import SIMULATION_NOTE
from tcurlora.demo.run import LABELED, NEW, run_demo
from tcurlora.errors import InputError
from tcurlora.runtime.events import NullEvents

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("demo") / "Vorführung デモ"
    return out, run_demo(out, NullEvents(), steps=12)


def test_a_few_steps_raise_the_dice_of_patients_that_were_not_trained_on(shown: tuple[Path, dict]) -> None:
    out, result = shown
    assert 0.5 < result["base_dice"] < 0.9
    assert result["adapted_dice"] > result["base_dice"] + 0.02
    scores = json.loads((out / "comparison.json").read_text(encoding="utf-8"))["scores"]
    trained_on = {path.name for path in (out / "labeled" / "images").iterdir()}
    assert len(trained_on) == LABELED and len(scores) == NEW
    assert not {f"{score['case']}.nii.gz" for score in scores} & trained_on


def test_it_says_what_it_did_and_shows_it(shown: tuple[Path, dict]) -> None:
    out, result = shown
    assert SIMULATION_NOTE in result["text"] and "Dice base" in result["text"]
    assert min(imread(out / "comparison.png").shape[:2]) > 300


def test_its_adapter_is_small_and_segments_a_scan(shown: tuple[Path, dict], tmp_path: Path) -> None:
    out, result = shown
    assert (out / "adapter" / "adapter_model.safetensors").stat().st_size < 64_000
    assert result["trained"] < 10_000
    scan = next((out / "new" / "images").iterdir())
    assert (
        main(["segment", "--model", str(out / "adapter"), "--input", str(scan), "--out", str(tmp_path / "s.seg.nrrd")])
        == 0
    )
    assert (tmp_path / "s.seg.nrrd").stat().st_size > 500


def test_it_does_not_write_into_a_folder_that_exists(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="exists"):
        run_demo(tmp_path, NullEvents())
