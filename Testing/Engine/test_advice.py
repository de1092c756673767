"""Advice for structures that were not learned, and patches that memory is expected to suffice for."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tcurlora.evaluation.reports import model_card
from tcurlora.evaluation.scores import Score
from tcurlora.training import adaptation
from tcurlora.training.adaptation import AdaptRequest, run_adapt
from tcurlora.training.advice import advice_on_structures


def score(case: str, dice: float | None, truth_ml: float, structure: str = "nucleus") -> Score:
    return Score(case, structure, dice, None, None, 0.0, truth_ml)


def advice(dice: float | None, truth_ml: float, cases: int = 2, method: str = "compact", new: bool = True) -> list[str]:
    scores = [score(str(number), dice, truth_ml) for number in range(cases)]
    subjects = {str(number): str(number) for number in range(cases)}
    given = advice_on_structures(scores, subjects, method, (1.5, 1.5, 2.0), ["nucleus"] if new else [])
    return given.get("nucleus", [])


def test_structure_that_was_learned_or_is_in_no_scan_gets_no_advice() -> None:
    assert advice(0.3, 5.0) == [] and advice(None, 0.0) == []


def test_advice_names_the_causes_that_apply() -> None:
    small = advice(0.0, 0.02)
    assert len(small) == 4 and "4 of its voxels of 1.5 x 1.5 x 2 mm" in small[0] and "2 subjects" in small[1]
    assert "full" in small[2] and "--steps" in small[3]
    large = advice(0.0, 5.0, cases=12, method="full")
    assert len(large) == 1 and "--steps" in large[0]
    assert "--map" in advice(0.0, 5.0, cases=12, method="full", new=False)[0]
    assert advice_on_structures([score("a", 0.0, 0.02)], {"a": "a"}, "full", None)["nucleus"]  # the scans' own voxels


def test_advice_reaches_events_report_and_card(
    tmp_path: Path, bundle: Path, make_site: Callable[..., Path], recorder: Any
) -> None:
    data, out, events = make_site(tmp_path / "site", names={"1": "amygdala"}), tmp_path / "adapter", recorder()
    run_adapt(AdaptRequest(str(bundle), str(data), str(out), steps=1, folds=2), tmp_path / "job", events)
    assert [event["code"] for event in events.of("warning") if event["code"] == "not_learned"] == ["not_learned"]
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert list(report["advice"]) == ["amygdala"]
    assert report["advice"]["amygdala"][0] in (out / "README.md").read_text(encoding="utf-8")
    report.pop("advice")  # as in reports of earlier versions
    assert "was not learned" not in model_card({}, report)


@pytest.mark.parametrize(
    ("free", "patch", "at_once"),
    [(2**40, [64, 64, 16], None), (28, [64, 64, 16], 1), (14, [32, 32, 16], None), (4, [32, 32, 16], 1)],
)
def test_patches_are_chosen_by_the_free_memory_of_the_computer(
    tmp_path: Path,
    make_bundle: Callable[..., Path],
    site: Path,
    recorder: Any,
    monkeypatch: pytest.MonkeyPatch,
    free: int,
    patch: list[int],
    at_once: int | None,
) -> None:
    """A small patch takes 4 bytes for two and 2 for one in this test, so that a large one takes four times as much."""
    bundle = make_bundle(tmp_path / "large windows")
    config = bundle / "configs" / "inference.json"
    content = json.loads(config.read_text(encoding="utf-8"))
    content["inferer"]["roi_size"] = [64, 64, 16]
    config.write_text(json.dumps(content), encoding="utf-8")
    tried = []

    def train(_model: Any, _cases: Any, _groups: Any, size: Any, settings: Any, *_: Any) -> None:
        tried.append((list(size), settings.at_once))

    def peak(work: Callable[[], Any], _device: Any) -> int:
        work()
        size, number = tried[-1]
        return (4 if number is None else 2) * (4 if max(size) == 64 else 1)

    monkeypatch.setattr(adaptation, "train", train)
    monkeypatch.setattr(adaptation, "peak_bytes", peak)
    monkeypatch.setattr(adaptation, "free_memory", lambda _: free)
    monkeypatch.setattr(adaptation, "MEMORY_SHARE", 0.5)
    events = recorder(lambda kind, fields: kind == "stage" and fields["name"] == "plan")
    request = AdaptRequest(str(bundle), str(site), str(tmp_path / "adapter"), steps=1, folds=0)
    with pytest.raises(KeyboardInterrupt):
        run_adapt(replace(request), tmp_path / "job", events)
    (plan,) = [event for event in events.of("stage") if event["name"] == "plan"]
    assert (plan["patch"], plan["at_once"]) == (patch, at_once)
    warned = [event for event in events.of("warning") if event.get("code") == "smaller_patches"]
    assert bool(warned) == (free != 2**40)
