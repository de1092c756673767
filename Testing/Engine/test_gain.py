"""One definition of the gain: every place that reports it says the same number."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from typing import Any

import pytest

from tcurlora.comparison.report import html_page
from tcurlora.comparison.results import build_results, overview, summary_words
from tcurlora.evaluation.gain import MEAN, Row, compare_scores, mean_dice, rows_of, spread, summarize
from tcurlora.evaluation.reports import build_report, comparison_table, model_card
from tcurlora.evaluation.scores import Score

# A subject with three scans, which gain much, and three subjects with one scan, which gain little.
GAINS = {"anna 1": 0.16, "anna 2": 0.16, "anna 3": 0.16, "ben": 0.02, "cleo": 0.03, "dora": 0.02}
SUBJECTS = {case: case.split()[0] for case in GAINS}
BY_HAND = (0.16 + 0.02 + 0.03 + 0.02) / 4
OVER_CASES = sum(GAINS.values()) / 6


def score(case: str, structure: str, dice: float | None) -> Score:
    there = dice is not None
    return Score(case, structure, dice, 2.0 if there else None, 1.0 if there else None, 1.0, 1.0 if there else 0.0)


BASE = [score(case, "hippocampus", 0.7) for case in GAINS]
ADAPTED = [score(case, "hippocampus", 0.7 + gain) for case, gain in GAINS.items()]

# One structure is missing in two of three cases: of its cases' means 0.70, and over the structures' means 0.833.
MISSING_BASE = [score("a", "x", 0.9), score("a", "y", 0.5), *(s for c in "bc" for s in (score(c, "x", 0.9),))]
MISSING_BASE += [score(c, "y", None) for c in "bc"]
MISSING_ADAPTED = [Score(**{**asdict(s), "dice": s.dice and s.dice + 0.05}) for s in MISSING_BASE]


def results_of(base: list[Score], adapted: list[Score], subjects: dict[str, str], new: tuple[str, ...] = ()) -> Any:
    """The results of a comparison with the same scores, in two runs each that lie as far above as below them."""
    rows = []
    for method, scores in (("base", base), ("compact", adapted)):
        for seed, shift in ((0, 0.01), (1, -0.01)):
            for row in rows_of(scores, subjects, method):
                dice = None if row.dice is None else row.dice + shift
                rows.append(Row(**{**asdict(row), "part": "test", "seed": seed, "dice": dice}))
    entry = {"title": "", "rank": 4, "trained": 9, "trained_cores": 9, "adapter_bytes": 99, "step_seconds": None}
    methods = {name: {**entry, "peak_memory_bytes": None, "rates": []} for name in ("base", "compact")}
    settings = {
        "reference": "base",
        "kind": "folds",
        "structures": ["hippocampus"],
        "new_structures": list(new),
        "steps": 1,
        "batch": 2,
        "seeds": [0, 1],
        "rate_factors": [1.0],
        "rate_steps": 1,
        "splits": [],
        "base": {"name": "b", "sha256": ""},
        "device": "cpu",
        "threads": 1,
        "created": "",
        "versions": {},
    }
    return build_results(settings, methods, rows, {})


def cells(table: str, row: str) -> list[str]:
    """The cells of a row of a table for the terminal or of a Markdown table."""
    line = next(line for line in table.splitlines() if line.strip("| ").startswith(row))
    return line.replace("|", " ").replace(" ± ", "±").split()


def test_a_subject_with_three_scans_counts_once_everywhere() -> None:
    assert pytest.approx(0.0575) == BY_HAND and pytest.approx(0.0917, abs=1e-4) == OVER_CASES
    # What adapt, the demo and the panel report.
    comparison = compare_scores(BASE, ADAPTED, SUBJECTS)
    report = json.loads(json.dumps(build_report(BASE, ADAPTED, [], {}, {}, SUBJECTS)))
    reported = report["cross_validation"]["comparison"]
    for found in (comparison, reported):
        for numbers in (found[MEAN], found["structures"]["hippocampus"]):
            assert numbers["dice_difference"] == pytest.approx(BY_HAND)
            assert numbers["adapted_dice"] - numbers["base_dice"] == pytest.approx(BY_HAND)
            assert (numbers["n"], numbers["subjects"], numbers["improved"]) == (6, 4, 6)
    assert report["summary"].startswith(
        "On your 6 scans of 4 subjects the adapter raises hippocampus Dice from 0.70 to 0.76"
    )
    # The tables of the command, of the adapter's card and of `evaluate`.
    card = model_card({"structures": []}, report)
    for table in (comparison_table(comparison), card):
        before, after = (cells(table, "hippocampus")[i].split("±")[0] for i in (1, 2))
        assert (before, after) == ("0.700", f"{0.7 + BY_HAND:.3f}")
    assert summarize(ADAPTED, SUBJECTS)[MEAN]["dice_mean"] == pytest.approx(0.7 + BY_HAND)
    assert mean_dice(ADAPTED, SUBJECTS) == pytest.approx(0.7 + BY_HAND)
    # What compare reports.
    results = results_of(BASE, ADAPTED, SUBJECTS)
    difference = results["test"]["differences"]["compact"]["dice"]
    for entry in (difference[MEAN], difference["hippocampus"]):
        assert entry["difference"] == pytest.approx(BY_HAND)
        assert entry["ci95"] == pytest.approx(reported[MEAN]["dice_difference_ci95"])
        assert entry["p"] == reported[MEAN]["dice_difference_p"]
        assert (entry["cases"], entry["subjects"]) == (6, 4)
    summary = results["test"]["summary"]
    assert summary["compact"][MEAN]["dice"]["mean"] == pytest.approx(0.7 + BY_HAND)
    assert [row[3] for row in overview(results)[1]] == ["0.7000", f"{0.7 + BY_HAND:.4f}"]
    assert f"{BY_HAND:+.4f}" in summary_words(results) and f"{BY_HAND:+.4f}" in html_page(results)


def test_a_structure_that_is_missing_in_some_cases_enters_alike_everywhere() -> None:
    cases_first = ((0.9 + 0.5) / 2 + 0.9 + 0.9) / 3
    assert cases_first == pytest.approx(0.8333, abs=1e-4)
    comparison = compare_scores(MISSING_BASE, MISSING_ADAPTED)
    report = build_report(MISSING_BASE, MISSING_ADAPTED, [], {}, {})
    summary = results_of(MISSING_BASE, MISSING_ADAPTED, {})["test"]["summary"]
    assert comparison[MEAN]["base_dice"] == pytest.approx(cases_first)
    assert comparison[MEAN]["dice_difference"] == pytest.approx(0.05)
    assert summarize(MISSING_BASE)[MEAN]["dice_mean"] == pytest.approx(cases_first)
    assert mean_dice(MISSING_BASE) == pytest.approx(cases_first)
    assert summary["base"][MEAN]["dice"]["mean"] == pytest.approx(cases_first)
    assert "from 0.83 to 0.88" in report["summary"]
    for table in (comparison_table(comparison), model_card({}, report)):
        assert [cell.split("±")[0] for cell in cells(table, "mean")[1:3]] == ["0.833", "0.883"]
        assert cells(table, "y")[1:3] == ["0.500", "0.550"]  # of one case
    assert "0.700" not in json.dumps(report)


def test_a_false_alarm_costs_the_same_everywhere() -> None:
    base = [score("a", "x", 0.8), score("a", "y", None), score("b", "x", 0.8), score("b", "y", None)]
    adapted = [score("a", "x", 0.8), score("a", "y", 0.0), score("b", "x", 0.8), score("b", "y", None)]
    expected = -((0.8 + 1) / 2 - (0.8 + 0) / 2) / 2
    assert compare_scores(base, adapted)[MEAN]["dice_difference"] == pytest.approx(expected)
    results = results_of(base, adapted, {})
    # The runs shift the Dice of what was scored, and a rightly missing structure stays at 1.
    assert results["test"]["differences"]["compact"]["dice"][MEAN]["difference"] == pytest.approx(expected)


def test_the_base_has_no_score_for_what_it_cannot_segment() -> None:
    base = [score(case, name, dice) for case in "abc" for name, dice in (("old", 0.8), ("new", 0.0))]
    adapted = [score(case, name, 0.9) for case in "abc" for name in ("old", "new")]
    results = results_of(base, adapted, {}, ("new",))
    expected = compare_scores(base, adapted, new=("new",))[MEAN]
    difference = results["test"]["differences"]["compact"]["dice"]
    assert difference[MEAN]["difference"] == pytest.approx(expected["dice_difference"]) == pytest.approx(0.1)
    assert difference["new"]["difference"] is None
    assert "dice" not in results["test"]["summary"]["base"]["new"]
    assert "no output for new" in html_page(results)
    only = results_of(base[1::2], adapted[1::2], {}, ("new",))
    assert (
        summary_words(only) == "base cannot segment these structures; the best is compact with a mean Dice of 0.9000."
    )
    assert "0.9000" in html_page(only)


def test_spread_over_runs_is_of_the_same_means() -> None:
    rows = []
    for seed, shift in ((0, 0.0), (1, 0.1)):
        rows += [
            Row(**{**asdict(row), "seed": seed, "dice": row.dice + shift})
            for row in rows_of(ADAPTED, SUBJECTS)
            if row.dice is not None
        ]
    assert spread(rows, ("seed",)) == pytest.approx(0.1 / 2**0.5)


def test_listing_does_not_wait_for_scipy() -> None:
    code = (
        "import sys, tcurlora.comparison.report, tcurlora.evaluation.reports, tcurlora.evaluation.folders;"
        "assert not any(name.split('.')[0] == 'scipy' for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
