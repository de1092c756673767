"""Comparison: the same chances for every method, test cases used once, a report to trust and to pass on."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import SimpleITK as sitk

from tcurlora.cases.case import Case
from tcurlora.cli import commands as cli
from tcurlora.cli.commands import main
from tcurlora.comparison import run as compare
from tcurlora.comparison.methods import METHODS as METHODS_THERE_ARE
from tcurlora.comparison.plan import DEFAULT_METHODS, CompareRequest, make_splits, rate_candidates
from tcurlora.comparison.report import html_page, write_report
from tcurlora.comparison.results import build_results
from tcurlora.comparison.run import run_compare
from tcurlora.errors import InputError
from tcurlora.evaluation.gain import Row
from tcurlora.runtime.events import NullEvents
from tcurlora.runtime.job_folder import JobFolder

pytestmark = pytest.mark.slow

METHODS = ("lora", "compact")
pytest.importorskip("peft")


@dataclass
class Call:
    """A training or a scoring that a comparison did."""

    what: str
    stage: str
    cases: list[str]
    settings: Any = None
    roi_size: Any = None


class Watched:
    """Runs a comparison and keeps what it trained and scored."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.stage = ""

    def emit(self, kind: str, **fields: Any) -> None:
        self.events.append((kind, fields))
        self.stage = fields["name"] if kind == "stage" else self.stage

    def run(self, request: CompareRequest) -> dict[str, Any]:
        train, score = compare.train, compare.score_cases

        def watched_train(model: Any, cases: Any, groups: Any, roi: Any, settings: Any, *rest: Any) -> Any:
            self.calls.append(Call("train", self.stage, [case.name for case in cases], settings, roi))
            return train(model, cases, groups, roi, settings, *rest)

        def watched_score(segmenter: Any, cases: Any, structures: Any) -> Any:
            self.calls.append(Call("score", self.stage, [case.name for case in cases]))
            return score(segmenter, cases, structures)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(compare, "train", watched_train)
            patch.setattr(compare, "score_cases", watched_score)
            return run_compare(request, self)

    def of(self, what: str, stage: str) -> list[Call]:
        return [call for call in self.calls if call.what == what and call.stage.startswith(stage)]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("Vergleich 比較")


@pytest.fixture(scope="module")
def data(workplace: Path, make_site: Callable[..., Path]) -> Path:
    return make_site(workplace / "site", subjects=4)


@pytest.fixture(scope="module")
def own(workplace: Path, make_scan: Callable[..., Any]) -> Path:
    """Scans of the base's own site, labeled with the base's two structures, under other numbers than the base's."""
    folder = workplace / "own"
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for number in range(2):
        image, labels = make_scan(100 + number)
        array = sitk.GetArrayFromImage(labels)
        array[:, :, :10] *= 5
        halves = sitk.GetImageFromArray(array)
        halves.CopyInformation(labels)
        sitk.WriteImage(image, folder / "images" / f"own{number}.nii.gz")
        sitk.WriteImage(halves, folder / "labels" / f"own{number}.nii.gz")
    return folder


@pytest.fixture(scope="module")
def request_for(bundle: Path, data: Path, own: Path) -> Callable[..., CompareRequest]:
    def make(out: Path, **changes: Any) -> CompareRequest:
        content: dict[str, Any] = {
            "base": str(bundle),
            "data": str(data),
            "out": str(out),
            "methods": METHODS,
            "steps": 4,
            "folds": 2,
            "lr_trials": 2,
            "own_data": str(own),
            "own_labels": "1=anterior hippocampus,5=posterior hippocampus",
        }
        return CompareRequest(**{**content, **changes})

    return make


@pytest.fixture(scope="module")
def watched() -> Watched:
    return Watched()


@pytest.fixture(scope="module")
def finished(workplace: Path, request_for: Callable[..., CompareRequest], watched: Watched) -> Path:
    out = workplace / "finished"
    watched.run(request_for(out))
    return out


def results_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return content


def scores_of(folder: Path) -> list[dict[str, Any]]:
    return list(results_of(folder)["scores"])


# The same chances for all


def test_every_method_trains_on_the_same_cases_steps_and_seeds(finished: Path, watched: Watched) -> None:
    for split in (1, 2):
        runs = {name: watched.of("train", f"run-{name}-{split}-0") for name in METHODS}
        assert [len(calls) for calls in runs.values()] == [1, 1]
        first = runs["compact"][0]
        assert len(first.cases) == 4
        for (call,) in runs.values():
            assert (call.cases, call.roi_size) == (first.cases, first.roi_size)
            alike = ("steps", "batch", "seed", "warmup", "weight_decay", "patience")
            assert [getattr(call.settings, f) for f in alike] == [getattr(first.settings, f) for f in alike]
            assert call.settings.steps == 4 and call.settings.patience >= 4
    assert watched.of("train", "run-compact-1-0")[0].cases != watched.of("train", "run-compact-2-0")[0].cases
    assert not watched.of("train", "run-base")


def test_every_method_is_scored_on_the_same_cases_that_it_never_saw(finished: Path, watched: Watched) -> None:
    tested: list[str] = []
    for split in (1, 2):
        (base,) = watched.of("score", f"run-base-{split}")
        tested += base.cases
        for name in METHODS:
            (scored,) = watched.of("score", f"run-{name}-{split}")
            (trained,) = watched.of("train", f"run-{name}-{split}")
            assert scored.cases == base.cases and not set(scored.cases) & set(trained.cases)
    assert sorted(tested) == [f"scan{n}" for n in range(1, 9)]


def test_learning_rates_are_chosen_without_the_test_cases(finished: Path, watched: Watched) -> None:
    for split in (1, 2):
        (test,) = watched.of("score", f"run-base-{split}")
        (final,) = watched.of("train", f"run-compact-{split}")
        for name in METHODS:
            trials = watched.of("train", f"rate-{name}-{split}-")
            judged = watched.of("score", f"rate-{name}-{split}-")
            assert len(trials) == len(judged) == 2 and {call.settings.steps for call in trials} == {2}
            for call in (*trials, *judged):
                assert not set(call.cases) & set(test.cases)
            for trial, judge in zip(trials, judged, strict=True):
                assert sorted(trial.cases + judge.cases) == sorted(final.cases)
            assert trials[0].settings.lr_whole / trials[1].settings.lr_whole == pytest.approx(10**-0.5)


def test_rate_with_the_highest_dice_is_taken_and_the_smaller_of_equal_ones(
    workplace: Path, request_for: Callable[..., CompareRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    dice = {"decoder": (0.2, 0.6, 0.4), "compact": (0.5, 0.5, 0.5)}

    def pretend(self: Any, name: str, _training: Any, _held_out: Any, factor: float, _seed: int) -> float:
        return dice[name][rate_candidates(3).index(factor)]

    monkeypatch.setattr(compare._Comparison, "_try_rate", pretend)
    out = workplace / "rates"
    run_compare(request_for(out, methods=("decoder", "compact"), steps=1, lr_trials=3, own_data=""), NullEvents())
    methods = results_of(out)["methods"]
    for rate in methods["decoder"]["rates"]:
        assert rate["factor"] == 1 and rate["lr_whole"] == 1e-3 and not rate["at_edge"]
        assert [trial["dice"] for trial in rate["trials"]] == [0.2, 0.6, 0.4]
    for rate in methods["compact"]["rates"]:
        assert rate["lr_core"] == pytest.approx(6e-3 * 10**-0.5) and rate["at_edge"]
    assert "edge of the grid" in (out / "report.html").read_text(encoding="utf-8")


def test_rates_of_another_comparison_are_taken_as_they_are(
    workplace: Path, request_for: Callable[..., CompareRequest], finished: Path
) -> None:
    out, watched = workplace / "longer", Watched()
    watched.run(request_for(out, steps=6, own_data="", rates_of=str(finished)))
    assert not watched.of("train", "rate-")
    before, after = results_of(finished), results_of(out)
    for name in METHODS:
        assert after["methods"][name]["rates"] == before["methods"][name]["rates"]
        for split in (1, 2):
            (trained,) = watched.of("train", f"run-{name}-{split}")
            assert trained.settings.lr_whole == after["methods"][name]["rates"][split - 1]["lr_whole"]
            assert trained.settings.steps == 6
    for key in ("rate_steps", "rate_factors"):
        assert after["settings"][key] == before["settings"][key]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"folds": 3}, "folds"),
        ({"subjects": 2}, "subjects"),
        ({"methods": ("compact", "decoder")}, "'decoder'"),
        ({"rates_of": "nowhere"}, "nowhere"),
    ],
)
def test_rates_of_other_splits_or_methods_are_refused(
    workplace: Path, request_for: Callable[..., CompareRequest], finished: Path, changes: dict[str, Any], words: str
) -> None:
    out = workplace / "refused"
    with pytest.raises(InputError, match=words) as refusal:
        run_compare(request_for(out, **{"rates_of": str(finished), **changes}), NullEvents())
    assert "--rates-of" in refusal.value.message and refusal.value.remedy
    assert not out.exists()


def cases_of(*subjects: str) -> list[Case]:
    return [Case(f"{s}-{n}", Path(f"{s}-{n}"), Path(f"{s}-{n}"), s) for n in (1, 2) for s in subjects]


def test_splits_keep_subjects_on_one_side() -> None:
    cases, foreign = cases_of("a", "b", "c", "d", "e"), cases_of("x", "y")
    for splits, count in (
        (make_splits(cases, folds=2), 2),
        (make_splits(cases, subjects=2, folds=4), 4),
        (make_splits(cases, subjects=1), 3),
    ):
        assert [split.number for split in splits] == list(range(1, count + 1))
        for split in splits:
            assert not {case.subject for case in split.training} & {case.subject for case in split.test}
            assert sorted((*split.training, *split.test), key=lambda c: c.name) == sorted(cases, key=lambda c: c.name)
    draws = make_splits(cases, subjects=2, folds=4)
    assert all(len({case.subject for case in draw.training}) == 2 for draw in draws)
    assert len({tuple(case.name for case in draw.training) for draw in draws}) > 1
    (whole,) = make_splits(cases, foreign)
    assert whole.training == tuple(cases) and whole.test == tuple(foreign)
    assert all(draw.test == tuple(foreign) for draw in make_splits(cases, foreign, subjects=5))
    for bad in ({"subjects": 5}, {"folds": 1}, {"test": foreign, "folds": 3}):
        with pytest.raises(InputError):
            make_splits(cases, **bad)  # type: ignore[arg-type]


# Going on


def test_finished_comparison_is_not_computed_again(finished: Path, request_for: Any) -> None:
    before = {name: (finished / name).read_bytes() for name in ("results.csv", "report.html")}
    again = Watched()
    again.run(request_for(finished))
    assert not again.calls
    assert {name: (finished / name).read_bytes() for name in before} == before


def test_only_what_is_missing_is_computed(finished: Path, workplace: Path, request_for: Any) -> None:
    before = scores_of(finished)
    (finished / "done" / "run-lora-2-0.json").unlink()
    again = Watched()
    again.run(request_for(finished))
    assert [(call.what, call.stage) for call in again.calls] == [("train", "run-lora-2-0"), ("score", "run-lora-2-0")]
    assert scores_of(finished) == before


def test_methods_and_seeds_can_be_added(finished: Path, request_for: Any) -> None:
    before = scores_of(finished)
    more = Watched()
    more.run(request_for(finished, methods=(*METHODS, "random@2"), reference="lora"))
    assert {call.stage.split("-")[1] for call in more.calls} == {"random@2"}
    results = results_of(finished)
    assert results["methods"]["random@2"]["rank"] == 2
    assert set(results["test"]["differences"]) == {"base", "compact", "random@2"}
    assert [score for score in results["scores"] if score["method"] != "random@2"] == before
    run_compare(request_for(finished), NullEvents())
    assert scores_of(finished) == before


def test_broken_off_in_a_training_it_ends_like_an_unbroken_one(
    finished: Path, workplace: Path, request_for: Any, recorder: Any
) -> None:
    out, stage = workplace / "broken", [""]

    def stop(kind: str, fields: dict[str, Any]) -> bool:
        stage[0] = fields["name"] if kind == "stage" else stage[0]
        return kind == "progress" and stage[0] == "run-lora-1-0" and fields["step"] == 3

    request = request_for(out, methods=("lora",))
    with pytest.raises(KeyboardInterrupt):
        run_compare(request, recorder(stop))
    assert not (out / "report.html").exists()
    rest = Watched()
    rest.run(request)
    assert not rest.of("score", "run-base-1") and not rest.of("train", "rate-lora-1")
    assert scores_of(out) == [score for score in scores_of(finished) if score["method"] != "compact"]
    assert not list(out.rglob("*.safetensors")) and not list(out.rglob("*.tmp"))


def test_comparison_of_an_earlier_version_goes_on(finished: Path, request_for: Any) -> None:
    """One that was begun before an option came lacks it; whoever does not use it can go on."""
    file = finished / "job.json"
    before = file.read_bytes()
    content = json.loads(before)
    for later in ("rates_of", "score_at"):
        del content["request"][later]
    file.write_text(json.dumps(content), encoding="utf-8")
    again = Watched()
    try:
        again.run(request_for(finished))
        assert not again.calls
        with pytest.raises(InputError, match="other options"):
            run_compare(request_for(finished, score_at=(2,)), NullEvents())
    finally:
        file.write_bytes(before)


def test_dice_on_the_way_is_told_and_changes_nothing(
    finished: Path, workplace: Path, request_for: Any, recorder: Any
) -> None:
    out, stage = workplace / "on the way", [""]

    def stop(kind: str, fields: dict[str, Any]) -> bool:
        stage[0] = fields["name"] if kind == "stage" else stage[0]
        return kind == "progress" and stage[0] == "run-lora-2-0" and fields["step"] == 4

    request = request_for(out, score_at=(1, 3))
    with pytest.raises(KeyboardInterrupt):
        run_compare(request, recorder(stop))
    rest = Watched()
    rest.run(request)
    # The training is done again from its start, as no checkpoint was due, but what was scored is not scored again.
    assert len(rest.of("score", "run-lora-2-0")) == 1 and len(rest.of("score", "run-compact-2-0")) == 3
    assert scores_of(out) == scores_of(finished)
    courses = results_of(out)["dice_by_step"]
    assert set(courses) == set(METHODS)
    for method, course in courses.items():
        assert [point["step"] for point in course] == [1, 3, 4]
        means = []
        for split in (1, 2):
            done = json.loads((out / "done" / f"run-{method}-{split}-0-at-3.json").read_text(encoding="utf-8"))
            means += [score["dice"] for score in done["value"]]
        assert course[1]["dice"] == pytest.approx(sum(means) / len(means))
        assert course[2]["dice"] == results_of(out)["test"]["summary"][method]["mean"]["dice"]["mean"]
    page = assert_self_contained((out / "report.html").read_text(encoding="utf-8"))
    assert "Dice against steps" in page.text and "step 3" in page.text
    assert "Dice against steps" not in (finished / "report.html").read_text(encoding="utf-8")


def test_another_comparison_in_the_folder_is_left_alone(
    finished: Path, workplace: Path, request_for: Any, tree: Callable[[Path], Any]
) -> None:
    before = tree(finished)
    with pytest.raises(InputError, match="other options"):
        run_compare(request_for(finished, steps=5), NullEvents())
    foreign = workplace / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="not the folder of a comparison"):
        run_compare(request_for(foreign), NullEvents())
    assert tree(finished) == before and [path.name for path in foreign.iterdir()] == ["thesis.txt"]
    JobFolder.start(workplace / "adaptation", "adapt", {"method": "compact"}, {})
    with pytest.raises(InputError, match="not the folder of a comparison"):
        run_compare(request_for(workplace / "adaptation"), NullEvents())


def test_comparison_does_not_go_on_with_other_names_of_labels(
    workplace: Path, data: Path, request_for: Any, recorder: Any
) -> None:
    site, out = workplace / "renamed", workplace / "renamed.out"
    shutil.copytree(data, site)
    request = request_for(out, data=str(site))
    with pytest.raises(KeyboardInterrupt):
        run_compare(request, recorder(lambda kind, fields: kind == "progress"))
    (site / "dataset.json").write_text(json.dumps({"labels": {"1": "anterior hippocampus"}}), encoding="utf-8")
    with pytest.raises(InputError, match="has changed since: structures") as caught:
        run_compare(request, NullEvents())
    assert caught.value.code == "other_job" and "--out" in caught.value.remedy


def test_adaptation_does_not_take_the_folder_of_a_comparison(
    finished: Path, bundle: Path, data: Path, workplace: Path, tree: Callable[[Path], Any]
) -> None:
    before = tree(finished)
    command = ["adapt", "--base", str(bundle), "--data", str(data), "--out", str(workplace / "adapter")]
    assert main([*command, "--steps", "1", "--folds", "0", "--job", str(finished)]) == 2
    assert tree(finished) == before


# The report


def test_csv_and_json_agree(finished: Path) -> None:
    scores = scores_of(finished)
    with (finished / "results.csv").open(encoding="utf-8", newline="") as stream:
        table = list(csv.DictReader(stream))
    assert len(table) == len(scores) == 3 * (8 + 2 * 2)
    for row, score in zip(table, scores, strict=True):
        assert list(row) == list(score)
        assert row == {key: "" if value is None else str(value) for key, value in score.items()}
    results = results_of(finished)
    for name in ("base", *METHODS):
        dice = [float(row["dice"]) for row in table if row["method"] == name and row["part"] == "test"]
        assert results["test"]["summary"][name]["mean"]["dice"]["mean"] == pytest.approx(sum(dice) / 8)
        assert len(dice) == 8 and all(0 < value <= 1 for value in dice)


def test_report_says_what_methods_cost_and_gain(finished: Path) -> None:
    results = results_of(finished)
    methods = results["methods"]
    assert methods["base"]["trained"] == methods["base"]["adapter_bytes"] == 0
    # A file of float32, with its header.
    assert 0 < methods["lora"]["adapter_bytes"] - 4 * methods["lora"]["trained"] < 20_000
    # The cores, and eight rows and columns of each stack (fewer in small ones), are stored.
    assert 0 < methods["compact"]["trained"] * 4 < methods["compact"]["adapter_bytes"]
    for name in METHODS:
        assert methods[name]["step_seconds"] > 0 and methods[name]["peak_memory_bytes"] > 100_000
        difference = results["test"]["differences"].get(name, {}).get("dice", {}).get("mean")
        assert (difference is None) == (name == "compact")
        assert difference is None or (difference["subjects"], difference["cases"]) == (4, 8)
    assert results["test"]["against"] == "compact" and results["own"]["against"] == "base"


def test_own_data_joins_the_structures_that_the_base_splits(finished: Path, own: Path, bundle: Path) -> None:
    """The base sees the whole there, although its labels have the halves, so it scores as on whole labels."""
    from tcurlora.method.model import TensorCurModel
    from tcurlora.training.target_site import open_site, score_cases

    whole = own.parent / "whole"
    (whole / "labels").mkdir(parents=True)
    (whole / "images").symlink_to(own / "images")
    for path in (own / "labels").iterdir():
        sitk.WriteImage(sitk.Cast(sitk.ReadImage(path) > 0, sitk.sitkUInt8), whole / "labels" / path.name)
    site = open_site(str(bundle), whole, "1=hippocampus")
    network = site.base.build()
    segmenter = site.segmenter(TensorCurModel(network, site.config(network, "compact")), compare.torch.device("cpu"))
    expected = [score.dice for score in score_cases(segmenter, site.dataset.cases, site.structures)]
    scores = [s for s in scores_of(finished) if s["method"] == "base" and s["part"] == "own" and s["split"] == 1]
    assert [score["structure"] for score in scores] == ["hippocampus"] * 2
    assert [score["dice"] for score in scores] == pytest.approx(expected)


def test_names_of_cases_stay_at_the_site(finished: Path, data: Path) -> None:
    for name in ("report.html", "results.csv", "results.json"):
        text = (finished / name).read_text(encoding="utf-8")
        for secret in ("scan1", "subject1", "own0", str(data.parent)):
            assert secret not in text, (name, secret)
    with (finished / "names.csv").open(encoding="utf-8", newline="") as stream:
        names = {row["case"]: row["name"] for row in csv.DictReader(stream)}
    assert {score["case"] for score in scores_of(finished)} == set(names)
    assert names["case 001"] == "scan1" and names["own case 002"] == "own1"


class Page(HTMLParser):
    """Reads a page, and notes what it holds and whether every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in ("meta", "line", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def assert_self_contained(text: str) -> Page:
    page = Page(text)
    assert not page.open
    assert not page.tags & {"script", "link", "iframe", "img", "object", "embed", "base", "a", "image", "use"}
    for name, value in page.attributes:
        assert name not in ("src", "href", "xlink:href", "style", "onload", "onclick") and "//" not in value
    assert "//" not in text and "url(" not in text and "@import" not in text
    return page


def test_page_needs_nothing_from_elsewhere(finished: Path) -> None:
    page = assert_self_contained((finished / "report.html").read_text(encoding="utf-8"))
    assert {"svg", "circle", "polyline", "table"} <= page.tags
    for words in (*METHODS, "HD95, mm: paired differences", "The base's own data", "Test cases have no part in it"):
        assert words in page.text


@pytest.fixture
def odd_results(finished: Path) -> Iterator[dict[str, Any]]:
    """The results of two structures with odd names; a case lacks one of them, a result lacks the other."""
    rows = []
    for method, gain in (("base", 0.0), ("compact", 0.1)):
        for number in range(1, 5):
            for structure in ("<b>l&r\"'", "//evil.example/x"):
                dice: float | None = 0.5 + gain + number / 100
                dice = None if structure.startswith("//") and number == 1 else dice
                hd95 = None if dice is None or (method == "base" and number == 2) else 2.0
                truth = 0.0 if dice is None else 1.0
                row = Row("test", method, 1, 0, f"s{number}", f"c{number}", structure, dice, hd95, hd95, 1.0, truth)
                rows.append(row)
    real = results_of(finished)
    settings = {
        **real["settings"],
        "structures": ["<b>l&r\"'"],
        "base": {"name": "<script>alert(1)</script>", "sha256": ""},
    }
    methods = {name: real["methods"][name] for name in ("base", "compact")}
    yield build_results(settings, methods, rows, {"compact": [], "base": []})


def test_page_escapes_names(odd_results: dict[str, Any], tmp_path: Path) -> None:
    text = html_page(odd_results)
    page = Page(text)
    assert not page.open and not page.tags & {"script", "b"}
    assert "<b>l&r\"'" in page.text and "<script>alert(1)</script>" in page.text
    write_report(tmp_path, odd_results, {"c1": "=cmd()"})
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == text


def test_results_without_a_structure_or_a_distance(odd_results: dict[str, Any]) -> None:
    test = odd_results["test"]
    structure = "//evil.example/x"
    assert test["summary"]["base"][structure]["dice"]["cases"] == 3
    assert test["summary"]["base"]["mean"]["without_distance"] == 2
    difference = test["differences"]["base"]
    assert difference["dice"][structure]["subjects"] == 3
    assert difference["dice"][structure]["difference"] == pytest.approx(-0.1)
    assert difference["hd95_mm"][structure]["cases"] == 2 and difference["hd95_mm"][structure]["ci95"] is None
    assert not any(isinstance(v, float) and math.isnan(v) for s in odd_results["scores"] for v in s.values())


# The command


BAD = {
    "unknown method": ("--methods base,magic", "magic"),
    "method twice": ("--methods lora,lora", "lora"),
    "bad rank": ("--methods lora@x", "'x'"),
    "reference": ("--methods decoder --reference lora", "lora"),
    "seeds": ("--seeds 1,one", "1,one"),
    "no seeds": ("--seeds=", "--seeds"),
    "no number of steps": ("--score-at 2,x", "2,x"),
    "scored before the start": ("--score-at 0", "step 0"),
    "scored beyond the end": ("--score-at 2,9 --steps 9", "step 9"),
    "steps and minutes": ("--steps 3 --minutes 3", "--minutes"),
    "one fold": ("--folds 1", "--folds"),
    "too many subjects": ("--subjects 4", "--subjects 4"),
    "test is missing": ("--test {place}/nothing", "nothing"),
    "test has the same subjects": ("--test {data}", "subject1"),
    "own data are missing": ("--own-data {place}/nothing", "nothing"),
    "own data have other structures": ("--own-data {data} --own-labels 1=liver", "'liver'"),
    "out below a file": ("--out {data}/cases.csv/new", "cases.csv"),
    "unknown device": ("--device quantum", "quantum"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told_and_leaves_no_trace(
    case: str, bundle: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options, culprit = BAD[case]
    command = ["compare", "--base", str(bundle), "--data", str(data), "--out", str(tmp_path / "new"), "--json"]
    command += ["--methods", "base,compact", "--folds", "2"] if "folds" not in options else ["--methods", "base"]
    if "--test" in options or "own" in options:
        command = command[:-2] if "--test" in options else command
    command += [part.format(place=tmp_path, data=data) for part in options.split()]
    assert main(command) == 2
    said = capsys.readouterr()
    assert culprit in said.err and "Traceback" not in said.err
    assert json.loads(said.out.splitlines()[-1])["remedy"]
    assert not list(tmp_path.iterdir())


def test_command_reports_like_the_others(
    bundle: Path, data: Path, tmp_path: Path, make_site: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Trains on subjects drawn from one folder and tests on another folder."""
    test = make_site(tmp_path / "test", subjects=2)
    rows = (test / "cases.csv").read_text(encoding="utf-8").replace("subject", "other")
    (test / "cases.csv").write_text(rows.replace("file,other", "file,subject"), encoding="utf-8")
    for number in range(1, 5):
        path = test / "images" / f"scan{number}.nii.gz"
        sitk.WriteImage(sitk.ReadImage(path) + number, path)
    out = tmp_path / "out"
    command = ["compare", "--base", str(bundle), "--data", str(data), "--test", str(test), "--out", str(out)]
    command += ["--methods", "compact", "--subjects", "1", "--folds", "2", "--steps", "2", "--seeds", "3"]
    assert main([*command, "--json"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {event["event"] for event in events} >= {"stage", "progress", "metric", "result"}
    assert events[-1]["report"] == str(out / "report.html") and "compact" in events[-1]["summary"]
    results = results_of(out)
    assert {(s["split"], s["seed"]) for s in results["scores"] if s["method"] == "compact"} == {(1, 3), (2, 3)}
    assert [s["training_cases"] for s in results["settings"]["splits"]] == [2, 2]
    # One subject cannot be parted, so the method's own rates are taken, and the report says so.
    assert all(rate["factor"] == 1 and not rate["trials"] for rate in results["methods"]["compact"]["rates"])
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "compact" in said and f"Report: {out / 'report.html'}" in said


def test_help_offers_the_methods_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.COMPARED == DEFAULT_METHODS
    with pytest.raises(SystemExit):
        main(["compare", "--help"])
    shown = re.sub(r"-\n\s+", "-", capsys.readouterr().out)  # a name may be broken at its hyphen
    offered = re.split(r"[\s,;()]+", shown)
    assert set(METHODS_THERE_ARE) <= set(offered)


def test_usual_methods_that_do_not_suit_the_base_are_left_out_and_named_ones_refused(
    workplace: Path, request_for: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "DEFAULT_METHODS", ("paper", "decoder"))
    usual = {"methods": (), "reference": "", "steps": 1, "folds": 2, "seeds": (0,), "lr_trials": 1}
    watched = Watched()
    watched.run(request_for(workplace / "usual", **usual))
    results = json.loads((workplace / "usual" / "results.json").read_text(encoding="utf-8"))
    assert list(results["methods"]) == ["base", "decoder"]
    (warning,) = [fields for kind, fields in watched.events if kind == "warning"]
    assert warning["message"].startswith("'paper' is left out: SegResNet has no linear layers")
    with pytest.raises(InputError, match="reference 'paper' is not among the methods"):
        run_compare(request_for(workplace / "named", **{**usual, "reference": "paper"}), NullEvents())
    with pytest.raises(InputError, match="SegResNet has no linear layers"):
        run_compare(request_for(workplace / "named", **{**usual, "methods": ("paper", "decoder")}), NullEvents())
    assert not (workplace / "named").exists()


def test_minutes_set_the_steps_once(workplace: Path, request_for: Any) -> None:
    out = workplace / "minutes"
    request = request_for(
        out, methods=("decoder",), steps=None, minutes=0.001, own_data="", lr_trials=1, subjects=3, folds=1
    )
    watched = Watched()
    watched.run(request)
    assert any(kind == "warning" and fields["code"] == "too_short" for kind, fields in watched.events)
    assert results_of(out)["settings"]["steps"] == 20
    again = Watched()
    again.run(replace(request, seeds=(0, 1)))
    assert {call.settings.steps for call in again.calls if call.what == "train"} == {20}
    assert {call.stage for call in again.calls} == {"run-decoder-1-1"}
