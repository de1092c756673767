"""What is said of an adapter: honest first lines, readable tables, nothing that names a patient."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tcurlora.evaluation.gain import ESTIMAND, compare_scores, summarize
from tcurlora.evaluation.reports import build_report, comparison_table, first_line, model_card, summary_table
from tcurlora.evaluation.scores import Score
from tcurlora.runtime.plain_text import table


def scores(**structures: list[float]) -> list[Score]:
    return [
        Score(f"Müller^Anna {i}", name.replace("_", " "), dice, 3.0, 1.0, 1.0, 1.0)
        for name, values in structures.items()
        for i, dice in enumerate(values)
    ]


def line(base: list[Score], adapted: list[Score], new: tuple[str, ...] = ()) -> str:
    return first_line(compare_scores(base, adapted, new=new))


def test_first_line_of_an_adapter_that_helps() -> None:
    said = line(scores(hippocampus=[0.84] * 8), scores(hippocampus=[0.90] * 7 + [0.83]))
    assert said == "On your 8 scans the adapter raises hippocampus Dice from 0.84 to 0.89; 7 of 8 scans improve."


def test_first_line_of_an_adapter_that_does_not_help() -> None:
    said = line(scores(hippocampus=[0.84] * 4), scores(hippocampus=[0.80] * 4))
    assert said == (
        "The adapter does not help on your 4 scans: it lowers hippocampus Dice from 0.84 to 0.80; "
        "0 of 4 scans improve. Keep using the base model."
    )
    same = line(scores(hippocampus=[0.84] * 4), scores(hippocampus=[0.84] * 4))
    assert same.startswith("The adapter does not help")
    assert "Keep using the base model." in same


def test_first_line_does_not_sell_chance_as_a_gain() -> None:
    said = line(scores(hippocampus=[0.80] * 6), scores(hippocampus=[0.90, 0.71, 0.92, 0.70, 0.91, 0.72]))
    assert "does not help reliably" in said
    assert "3 of 6 scans improve" in said
    assert "raises hippocampus Dice from 0.80 to 0.81" in said


def test_first_line_names_the_weakest_structure_and_the_losers() -> None:
    said = line(
        scores(hippocampus=[0.8] * 4, amygdala=[0.5] * 4, left_caudate=[0.9] * 4),
        scores(hippocampus=[0.9] * 4, amygdala=[0.7] * 4, left_caudate=[0.88] * 4),
    )
    assert "the mean Dice from 0.73 to 0.83" in said
    assert "weakest: amygdala, from 0.50 to 0.70" in said
    assert "worse than before: left caudate" in said


def test_first_line_shows_small_changes_with_the_decimals_they_need() -> None:
    said = line(scores(hippocampus=[0.8411] * 4), scores(hippocampus=[0.8434] * 4))
    assert "from 0.841 to 0.843" in said


def test_first_line_without_cross_validation() -> None:
    assert "unknown" in first_line(None)


def test_first_line_of_a_structure_that_the_base_cannot_segment() -> None:
    """There is nothing to raise or improve: what counts is what the adapter reaches."""
    said = line(scores(tumor=[0.0] * 4), scores(tumor=[0.7, 0.8, 0.6, 0.7]), ("tumor",))
    assert said == ("On your 4 scans the adapter reaches a tumor Dice of 0.70; the base model cannot segment it.")
    both = line(scores(tumor=[0.0] * 4, edema=[0.0] * 4), scores(tumor=[0.7] * 4, edema=[0.5] * 4), ("tumor", "edema"))
    assert "reaches a mean Dice of 0.60" in both and "weakest: edema, 0.50" in both
    for words in (said, both):
        assert not any(verb in words for verb in ("raise", "improve", "help", "lower", "gain"))


def test_new_structures_have_no_part_in_the_gain_over_the_base() -> None:
    base = scores(hippocampus=[0.8] * 4, tumor=[0.0] * 4)
    adapted = scores(hippocampus=[0.7] * 4, tumor=[0.9] * 4)
    said = line(base, adapted, ("tumor",))
    assert "does not help on your 4 scans: it lowers hippocampus Dice from 0.80 to 0.70" in said
    assert "Keep using the base model for hippocampus. New to the base model: tumor, Dice 0.90." in said
    comparison = compare_scores(base, adapted, new=("tumor",))
    assert comparison["structures"]["tumor"]["base_dice"] is None
    assert comparison["structures"]["tumor"]["adapted_dice"] == comparison["structures"]["tumor"]["adapted_dice"] == 0.9
    shown = comparison_table(comparison).splitlines()
    assert [" ".join(row.split()) for row in shown[2:]] == [
        "hippocampus 0.800 ± 0.000 0.700 ± 0.000 3.00 ± 0.00 3.00 ± 0.00",
        "tumor - 0.900 ± 0.000 - 3.00 ± 0.00",
    ]


def test_first_line_counts_subjects_where_they_are_fewer_than_scans() -> None:
    base, adapted = scores(x=[0.5] * 4), scores(x=[0.6, 0.6, 0.6, 0.9])
    subjects = {score.case: "b" if score.case.endswith("3") else "a" for score in base}
    said = first_line(compare_scores(base, adapted, subjects))
    assert said.startswith("On your 4 scans of 2 subjects the adapter raises x Dice from 0.50 to 0.75")


def test_uncorrected_cases_prove_nothing() -> None:
    base, adapted = scores(x=[0.5, 0.5, 1.0]), scores(x=[0.6, 0.7, 1.0])
    report = build_report(base, adapted, [], {}, {}, uncorrected=[base[2].case])
    comparison = report["cross_validation"]["comparison"]
    assert comparison["mean"]["n"] == 2 and comparison["mean"]["dice_difference"] == pytest.approx(0.15)
    assert report["cross_validation"]["uncorrected"] == ["case 03"]
    assert "2 of 2 scans improve" in report["summary"] and "1 scan is not counted" in report["summary"]
    none = build_report(base, adapted, [], {}, {}, uncorrected=[score.case for score in base])
    assert "unknown" in none["summary"] and "3 scans are not counted" in none["summary"]


def test_tables() -> None:
    assert table(["name", "n"], [["a", "10"], ["long name", "5"]]) == (
        "name        n\n---------  --\na          10\nlong name   5"
    )
    assert table(["a", "b"], [["x|y", "1"]], markdown=True) == "| a | b |\n| --- | ---: |\n| x\\|y | 1 |"
    shown = summary_table(
        {"base": summarize(scores(x=[0.8, 0.6], y=[0.5, 0.5])), "adapted": summarize(scores(x=[0.9, 0.9]))}
    ).splitlines()
    assert " ".join(shown[0].split()) == "structure Dice base Dice adapted HD95 mm base HD95 mm adapted"
    assert " ".join(shown[2].split()) == "x 0.700 ± 0.141 0.900 ± 0.000 3.00 ± 0.00 3.00 ± 0.00"
    assert " ".join(shown[3].split()) == "y 0.500 ± 0.000 - 3.00 ± 0.00 -"
    assert shown[4].startswith("mean")


BASE, ADAPTED = scores(hippocampus=[0.8, 0.7, 0.6]), scores(hippocampus=[0.9, 0.8, 0.7])
FOLDS = [{"train": ["Müller^Anna 0", "Müller^Anna 1"], "test": ["Müller^Anna 2"]}]
TRAINING = {"steps": 160, "seed": 0, "cache": "/home/anna/cache", "best_case": "Müller^Anna 1"}
CONFIG = {
    "peft_type": "TCURLORA",
    "r": 8,
    "method": "compact",
    "seed": 0,
    "base_model": {"name": "hippocampus_unetr", "sha256": "ab" * 32},
    "structures": [{"name": "hippocampus", "value": 1}],
    "versions": {"torch": "2.13.0"},
    "data_folder": "/home/anna/secret",
}


def test_report_holds_every_score_and_no_name() -> None:
    report = json.loads(json.dumps(build_report(BASE, ADAPTED, FOLDS, TRAINING, {"adapter_bytes": 9000})))
    validation = report["cross_validation"]
    assert report["schema"] == 1
    assert report["summary"].startswith("On your 3 scans the adapter raises")
    assert [case["case"] for case in validation["adapted"]["cases"]] == ["case 01", "case 02", "case 03"]
    assert [case["dice"] for case in validation["adapted"]["cases"]] == [0.9, 0.8, 0.7]
    assert validation["adapted"]["cases"][0]["structure"] == "hippocampus"
    assert validation["comparison"]["structures"]["hippocampus"]["n"] == 3
    assert validation["comparison"]["cases"][2]["case"] == "case 03"
    assert validation["folds"] == [{"train": ["case 01", "case 02"], "test": ["case 03"]}]
    assert report["training"]["best_case"] == "case 02"
    assert "ller" not in json.dumps(report, ensure_ascii=False)
    assert validation["subjects"] == {f"case 0{n}": f"subject 0{n}" for n in (1, 2, 3)}


def test_a_structure_named_like_a_case_keeps_its_name() -> None:
    base = [Score("x", "x", 0.5, None, None, 1, 1)]
    report = build_report(base, base, [], {}, {})
    assert report["cross_validation"]["base"]["cases"][0]["structure"] == "x"
    assert list(report["cross_validation"]["comparison"]["structures"]) == ["x"]


def test_model_card_tells_what_is_needed_and_nothing_private() -> None:
    card = model_card(CONFIG, build_report(BASE, ADAPTED, FOLDS, TRAINING, {"adapter_bytes": 9000}))
    for words in (
        "hippocampus_unetr",
        "ab" * 32,
        "On your 3 scans the adapter raises",
        "tcurlora segment --model FOLDER --input scan.nii.gz --out scan.seg.nrrd",
        "| hippocampus | 0.700 ± 0.100 | 0.800 ± 0.100 |",
        "| steps | 160 |",
        ESTIMAND,
        "| torch | 2.13.0 |",
        "| adapter bytes | 9000 |",
    ):
        assert words in card, words
    assert "/home" not in card
    assert "ller" not in card


def test_model_card_without_cross_validation_says_so() -> None:
    report = build_report(None, None, None, TRAINING, {})
    assert report["cross_validation"] is None
    assert "No cross-validation was run" in model_card(CONFIG, report)


def test_reports_need_no_torch() -> None:
    code = "import sys, tcurlora.evaluation.reports; assert not {'torch', 'monai'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
