"""Paired comparison: subjects are the unit, and missing structures and distances are treated alike for all methods."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from tcurlora.comparison import svg_plots
from tcurlora.evaluation.gain import MEAN, Gain, Key, Row, case_values, gain, spread
from tcurlora.evaluation.paired_statistics import holm, sign_flip_test


def row(method: str, case: str, dice: float | None, **changes: Any) -> Row:
    content: dict[str, Any] = {"part": "test", "split": 1, "seed": 0, "subject": case[0], "structure": "left"}
    content |= {"hd95_mm": 1.0, "surface_distance_mm": 1.0, "volume_ml": 1.0, "truth_volume_ml": 1.0, **changes}
    return Row(method=method, case=case, dice=dice, **content)


def compare(values: dict[Key, float], reference: dict[Key, float]) -> Gain:
    return gain({"x": values}, {"x": reference}, ["x"])


def test_runs_are_averaged_for_each_case_and_structures_in_the_mean() -> None:
    rows = [
        row("a", "p1", 0.6),
        row("a", "p1", 0.8, seed=1),
        row("a", "p1", 0.1, structure="right"),
        row("a", "q1", 0.5),
    ]
    values = case_values(rows, "dice")["a"]
    assert values["left"] == {("p", "p1"): pytest.approx(0.7), ("q", "q1"): 0.5}
    assert values[MEAN] == {("p", "p1"): pytest.approx(0.4), ("q", "q1"): 0.5}


def test_structure_that_is_rightly_left_out_counts_where_another_method_marks_it() -> None:
    rows = [row("a", "p1", None), row("b", "p1", 0.0), row("a", "q1", None), row("b", "q1", None)]
    values = case_values(rows, "dice")
    assert values["a"]["left"] == {("p", "p1"): 1.0} and values["b"]["left"] == {("p", "p1"): 0.0}


def test_distances_are_compared_where_both_have_one() -> None:
    rows = [
        row("a", "p1", 0.5),
        row("a", "q1", 0.5),
        row("b", "p1", 0.5, hd95_mm=3.0),
        row("b", "q1", 0.0, hd95_mm=None),
    ]
    values = case_values(rows, "hd95_mm")
    numbers = gain(values["b"], values["a"], ["left"])
    assert numbers.cases == 1 and numbers.difference == 2.0 and numbers.ci95 is numbers.p is None


def test_mean_of_distances_is_over_the_structures_that_both_have() -> None:
    """A model that misses a structure must not look better for it."""
    rows = [row(method, "p1", 0.5, hd95_mm=2.0) for method in "ab"]
    rows += [row("a", "p1", 0.5, structure="right", hd95_mm=9.0), row("b", "p1", 0.0, structure="right", hd95_mm=None)]
    values = case_values(rows, "hd95_mm")
    assert gain(values["a"], values["b"], ["left", "right"]).difference == 0.0


def test_subjects_are_the_unit_not_scans() -> None:
    """Ten more scans of the same subjects that say the same make nothing more certain."""
    gains = {"p": 0.05, "q": 0.01, "r": -0.01, "s": 0.03}
    few = {(s, f"{s}{n}"): 0.5 + gain for s, gain in gains.items() for n in range(1)}
    many = {(s, f"{s}{n}"): 0.5 + gain for s, gain in gains.items() for n in range(11)}
    a, b = (compare(values, dict.fromkeys(values, 0.5)) for values in (few, many))
    assert a.ci95 is not None and a.ci95 == pytest.approx(b.ci95) and a.p == b.p
    assert (a.subjects, b.subjects, a.cases, b.cases) == (4, 4, 4, 44)
    assert a.difference == pytest.approx(0.02) and (a.higher, a.lower) == (3, 1)
    assert a.ci95[0] < 0.02 < a.ci95[1] and min(gains.values()) <= a.ci95[0]


def test_a_subject_with_many_scans_weighs_no_more_than_another() -> None:
    values = {("p", f"p{n}"): 0.9 for n in range(9)} | {("q", "q0"): 0.5}
    assert compare(values, dict.fromkeys(values, 0.5)).difference == pytest.approx(0.2)


def test_sign_flip_test_by_hand() -> None:
    # Of the 8 ways to turn the signs, only all up and all down are as far from zero.
    assert sign_flip_test(np.array([0.1, 0.2, 0.3])) == 2 / 8
    # 3 - 1 = 2 and farther: +3 +1, +3 -1 and their mirror images, so all of them.
    assert sign_flip_test(np.array([3.0, -1.0])) == 1.0
    assert sign_flip_test(np.zeros(5)) == 1.0
    assert sign_flip_test(np.full(40, 0.01)) < 0.001
    exact, drawn = (sign_flip_test(np.random.default_rng(1).normal(0.3, 1, n)) for n in (13, 14))
    assert 0 < exact < 1 and 0 < drawn < 1  # type: ignore[operator]
    assert sign_flip_test(np.array([0.1])) is None


def test_sign_flip_test_rejects_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    rejected = np.mean([sign_flip_test(random.normal(0, 1, 8)) <= 0.05 for _ in range(400)])
    assert 0.02 < rejected < 0.08


def test_holm_by_hand() -> None:
    corrected = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": None})
    assert corrected == {"a": pytest.approx(0.03), "c": pytest.approx(0.06), "b": pytest.approx(0.06), "d": None}
    assert holm({"a": 0.7, "b": 0.6}) == {"a": 1.0, "b": 1.0}


def test_spread_is_over_runs() -> None:
    rows = [row("a", "p1", 0.5), row("a", "q1", 0.7), row("a", "p1", 0.7, seed=1), row("a", "q1", 0.9, seed=1)]
    assert spread(rows, ("seed",)) == pytest.approx(np.std([0.6, 0.8], ddof=1))
    assert spread(rows[:2], ("seed",)) is None


def test_ticks_are_round_and_span_the_values() -> None:
    for low, high in ((0.7, 0.9), (-0.0031, 0.0107), (1.23, 47.0), (0.0, 0.0), (0.5, 0.5), (1e-7, 2e-7)):
        marks = svg_plots.ticks(low, high)
        assert marks[0] <= low and marks[-1] >= high and 2 <= len(marks) <= 12
        steps = np.diff(marks)
        assert steps == pytest.approx(np.full(len(steps), steps[0]))


def test_plots_place_values_in_order_and_inside() -> None:
    colors = svg_plots.palette(["a & b", "a", "b", "c", "d"])
    assert len(set(colors.values())) == 5
    drawing = svg_plots.forest_plot({"a & b": (0.1, (0.05, 0.2)), "c": (-0.3, None), "d": (None, None)}, "Dice", colors)
    places = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', drawing)]
    assert len(places) == 2 and places[1] < places[0]
    assert all(svg_plots.LEFT <= x <= svg_plots.WIDTH - svg_plots.RIGHT for x in places)
    assert "a &amp; b" in drawing and "a & b" not in drawing
    dots = svg_plots.strip_plot({"a": [0.5, 0.5, 0.7], "b": []}, {"a": 0.55}, "Dice", colors)
    assert dots.count("<circle") == dots.count(colors["a"]) - 1 == 3
    assert svg_plots.strip_plot({}, {}, "Dice", colors) == ""
    assert svg_plots.line_plot({}, "x", "y", colors) == svg_plots.scatter_plot({}, "x", "y", colors) == ""
    one = svg_plots.scatter_plot({"a": (100.0, 0.5)}, "numbers", "Dice", colors)
    assert "nan" not in one and one.count("<circle") == 1
    near = svg_plots.scatter_plot(
        {"a": (100, 0.5), "b": (101, 0.5), "c": (99, 0.51), "d": (9e6, 0.5)}, "n", "y", colors
    )
    names = {m[2]: float(m[1]) for m in re.finditer(r'y="([\d.]+)" text-anchor="start" fill="#\w+">(\w)<', near)}
    assert names["d"] == min(names["a"], names["b"]) and abs(names["a"] - names["b"]) >= 13
    assert 'points="' in svg_plots.line_plot({"a": [(1, 0.5), (2, 0.5)]}, "step", "loss", colors)
