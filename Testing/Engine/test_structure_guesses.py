"""What a site's structures are in the base, guessed by overlap."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from tcurlora.cli.commands import main
from tcurlora.imaging.images import write_image
from tcurlora.inference.segmenter import Segmenter
from tcurlora.models.opening import load_base_model
from tcurlora.runtime.devices import choose_device
from tcurlora.training.structure_guesses import MOST_CANDIDATES, rank_unions


def test_best_union_is_that_of_all_unions() -> None:
    random = np.random.default_rng(3)
    for _ in range(50):
        found = random.integers(1, 1000, 6)
        overlap = np.array([random.integers(0, size + 1) for size in found])
        own = int(overlap.sum() + random.integers(0, 500))
        names = list("abcdef")
        dice = {
            union: 2 * sum(overlap[i] for i in union) / (own + sum(found[i] for i in union))
            for count in range(1, 7)
            for union in itertools.combinations(range(6), count)
        }
        ranked = rank_unions(names, own, overlap, found)
        assert ranked[0][1] == pytest.approx(max(dice.values()))
        assert len(ranked) <= MOST_CANDIDATES
        assert [value for _, value in ranked] == sorted((value for _, value in ranked), reverse=True)


def test_what_does_not_touch_the_structure_is_no_candidate() -> None:
    assert rank_unions(["a", "b"], 10, np.array([0, 5]), np.array([100, 5])) == ((("b",), pytest.approx(2 / 3)),)
    assert rank_unions(["a"], 10, np.array([0]), np.array([0])) == ()


def test_check_guesses_a_whole_from_its_parts(
    bundle: Path, make_scan: Callable[..., tuple[sitk.Image, sitk.Image]], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    base = load_base_model(bundle)
    segmenter = Segmenter.of_base(base, choose_device("cpu"))
    for part in ("images", "labels"):
        (tmp_path / part).mkdir()
    expected = set()
    for seed in range(2):
        image = make_scan(seed)[0]
        parts = segmenter.segment(image)[0]
        values = set(np.unique(sitk.GetArrayViewFromImage(parts)).tolist()) - {0}
        expected |= {s.name for s in base.labelled_structures() if s.value in values}
        write_image(image, tmp_path / "images" / f"{seed}.nrrd")
        write_image(sitk.Cast(parts > 0, sitk.sitkUInt8), tmp_path / "labels" / f"{seed}.nrrd")
    arguments = ["check", "--base", str(bundle), "--data", str(tmp_path), "--labels", "1=Segment_1", "--json"]
    main([*arguments, "--guess", "--device", "cpu"])
    *_, last = capsys.readouterr().out.strip().splitlines()
    (guess,) = json.loads(last)["guesses"]
    assert guess["structure"] == "Segment_1"
    assert guess["cases"] == 2
    assert set(guess["candidates"][0]["base"]) == expected
    assert guess["candidates"][0]["dice"] == 1.0
    main(arguments)
    assert "guesses" not in json.loads(capsys.readouterr().out.strip().splitlines()[-1])
