"""The numbers of a comparison: summaries, paired differences, and their short form in words."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from tcurlora.evaluation.gain import MEAN, Row, average, case_values, counted, gain, spread
from tcurlora.evaluation.paired_statistics import holm
from tcurlora.runtime.plain_text import table

SCHEMA = 1
BASE = "base"
MEASURES = ("dice", "hd95_mm")


def build_results(
    settings: Mapping[str, Any],
    methods: Mapping[str, Mapping[str, Any]],
    rows: Sequence[Row],
    curves: Mapping[str, Sequence[Sequence[Mapping[str, float]]]],
    rows_at: Mapping[int, Sequence[Row]] | None = None,
) -> dict[str, Any]:
    """Put together what `results.json` holds.

    Args:
        settings: how the comparison was made; `reference` names the method that the others are compared with,
            `new_structures` what the base model cannot segment: there it has no score.
        methods: what each method is and costs.
        rows: the scores of all runs.
        curves: for each method the curve of each run.
        rows_at: scores of the test cases on the way, by step.

    Returns:
        schema, settings, methods, `test` and `own` (summary of each method by structure, and differences from the
        reference; on the base's own data from the base), curves, mean Dice by step, and scores.
    """
    reference = settings["reference"]
    # The runs that a spread is taken over must be tested on the same cases: folds are not, draws nearly are.
    runs = ("seed",) if settings["kind"] == "folds" else ("split", "seed")
    parts = {}
    for part, against in (("test", reference), ("own", BASE)):
        mine = [row for row in rows if row.part == part and not _cannot_be_had(row, settings)]
        parts[part] = _part(mine, list(methods), against, runs) if mine else None
    return {
        "schema": SCHEMA,
        "settings": dict(settings),
        "methods": {name: dict(entry) for name, entry in methods.items()},
        **parts,
        "curves": {name: _mean_curve(lines) for name, lines in curves.items() if any(lines)},
        "dice_by_step": _dice_by_step(test, settings["steps"], rows_at) if (test := parts["test"]) and rows_at else {},
        "scores": [asdict(row) for row in rows],
    }


def summary_words(results: Mapping[str, Any]) -> str:
    """Say in one line which method is best, and how far the reference is from it."""
    summary, reference = results["test"]["summary"], results["settings"]["reference"]
    means = {name: summary[name][MEAN]["dice"]["mean"] for name in summary if "dice" in summary[name].get(MEAN, {})}
    if not means:
        return "No case could be scored."
    best = max(means, key=lambda name: means[name])
    if reference not in means:
        return f"{reference} cannot segment these structures; the best is {best} with a mean Dice of {means[best]:.4f}."
    own = f"{reference} reaches a mean Dice of {means[reference]:.4f}"
    if best == reference:
        return f"{own}, more than every other method."
    numbers = results["test"]["differences"][best]["dice"][MEAN]
    if numbers["difference"] is None:
        return f"{own}; {best} has {means[best]:.4f}, on other structures."
    interval = numbers["ci95"]
    words = "" if interval is None else f", 95 % interval {interval[0]:+.4f} to {interval[1]:+.4f}"
    words = f"{numbers['difference']:+.4f}{words}, {numbers['subjects']} subjects"
    return f"{own}; the best is {best} with {means[best]:.4f} ({words})."


def table_words(results: Mapping[str, Any]) -> str:
    """The methods and their means, as a table for the terminal."""
    return table(*overview(results))


def overview(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and one row for each method: what it costs and what it reaches."""
    header = ["method", "trained", "adapter kB", "Dice", "± runs", "HD95 mm", "s/step", "peak MB"]
    header += ["own Dice"] if results["own"] else []
    rows = []
    for name, entry in results["methods"].items():
        mean = results["test"]["summary"][name][MEAN]
        peak = entry["peak_memory_bytes"]
        row = [
            name,
            f"{entry['trained']:,}",
            f"{entry['adapter_bytes'] / 1000:,.0f}",
            number(mean.get("dice", {}).get("mean"), 4),
            number(mean["dice_spread_over_runs"], 4),
            number(mean.get("hd95_mm", {}).get("mean"), 2),
            number(entry["step_seconds"], 2),
            number(None if peak is None else peak / 1e6, 0),
        ]
        if results["own"]:
            row.append(number(results["own"]["summary"][name][MEAN].get("dice", {}).get("mean"), 4))
        rows.append(row)
    return header, rows


def _cannot_be_had(row: Row, settings: Mapping[str, Any]) -> bool:
    return row.method == BASE and row.structure in settings.get("new_structures", ())


def _part(rows: Sequence[Row], methods: Sequence[str], against: str, runs: Sequence[str]) -> dict[str, Any]:
    """Summaries by method and structure, differences from a method, and the values of the cases."""
    values = {measure: case_values(rows, measure) for measure in MEASURES}
    names = list(dict.fromkeys(row.structure for row in rows))
    counting = counted(rows)
    summary: dict[str, Any] = {}
    differences: dict[str, Any] = {}
    for method in methods:
        mine = [row for row in rows if row.method == method]
        summary[method] = {
            structure: {
                measure: {"mean": found.mean, "sd": found.sd, "subjects": found.subjects, "cases": found.cases}
                for measure in MEASURES
                if (found := average(values[measure].get(method, {}).get(structure, {})))
            }
            for structure in (*names, MEAN)
        }
        summary[method][MEAN]["dice_spread_over_runs"] = spread(mine, runs, counting)
        # Where the truth has the structure and the result has not, there is no distance to average.
        summary[method][MEAN]["without_distance"] = sum(row.hd95_mm is None and row.truth_volume_ml > 0 for row in mine)
        if method != against:
            differences[method] = {
                measure: {
                    structure: asdict(
                        gain(
                            values[measure].get(method, {}),
                            values[measure].get(against, {}),
                            names if structure == MEAN else [structure],
                        )
                    )
                    for structure in (*names, MEAN)
                }
                for measure in MEASURES
            }
    for measure in MEASURES:
        corrected = holm({name: entry[measure][MEAN]["p"] for name, entry in differences.items()})
        for name, p in corrected.items():
            differences[name][measure][MEAN]["p_holm"] = p
    cases = {
        measure: {
            method: {
                structure: {case: value for (_, case), value in sorted(group.items(), key=lambda item: item[0][1])}
                for structure, group in by_structure.items()
            }
            for method, by_structure in values[measure].items()
        }
        for measure in MEASURES
    }
    return {"against": against, "summary": summary, "differences": differences, "cases": cases}


def _dice_by_step(
    test: Mapping[str, Any], steps: int, rows_at: Mapping[int, Sequence[Row]]
) -> dict[str, list[dict[str, float]]]:
    """Mean Dice of the test cases on the way and at the end, where the weights are those that were kept."""
    courses: dict[str, list[dict[str, float]]] = {}
    for step, rows in sorted(rows_at.items()):
        for method, group in case_values(rows, "dice").items():
            if found := average(group.get(MEAN, {})):
                courses.setdefault(method, []).append({"step": step, "dice": found.mean})
    for method, course in courses.items():
        mean = test["summary"][method][MEAN].get("dice")
        if mean:
            course.append({"step": steps, "dice": mean["mean"]})
    return courses


def _mean_curve(curves: Sequence[Sequence[Mapping[str, float]]]) -> list[dict[str, float]]:
    by_step: dict[float, list[float]] = {}
    for curve in curves:
        for point in curve:
            by_step.setdefault(point["step"], []).append(point["monitor_loss"])
    return [{"step": step, "monitor_loss": statistics.fmean(losses)} for step, losses in sorted(by_step.items())]


def number(value: float | None, digits: int) -> str:
    """Write a number, or a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"
