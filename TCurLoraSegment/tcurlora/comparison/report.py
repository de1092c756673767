"""The files of a comparison's report: JSON, CSV, and one HTML page that needs nothing from elsewhere."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import fields
from html import escape
from pathlib import Path
from typing import Any

from tcurlora.comparison import svg_plots
from tcurlora.comparison.results import MEASURES, number, overview, summary_words
from tcurlora.errors import TCurLoraError
from tcurlora.evaluation.gain import ESTIMAND, MEAN, Row
from tcurlora.runtime.atomic_files import whole_file
from tcurlora.runtime.json_files import write_json

TITLES = {"dice": "Dice", "hd95_mm": "HD95, mm"}
STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .7rem; border-bottom: 1px solid #8886; text-align: right; }
th:first-child, td:first-child, .words { text-align: left; }
tr.reference td { font-weight: 600; }
svg { width: 100%; max-width: 760px; font: 12px system-ui, sans-serif; }
.wide { overflow-x: auto; }
"""


def write_report(folder: Path, results: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, str]:
    """Write results.json, results.csv, report.html, and names.csv, which stays at the site.

    Args:
        folder: where to.
        results: from `build_results`.
        names: the real name behind each number of a case.

    Raises:
        TCurLoraError: when a file cannot be written.
    """
    columns = [field.name for field in fields(Row)]
    scores = [[_cell(score[column]) for column in columns] for score in results["scores"]]
    texts = {
        "results.csv": _csv([columns, *scores]),
        "names.csv": _csv([["case", "name"], *names.items()]),
        "report.html": html_page(results),
    }
    try:
        write_json(folder / "results.json", results)
        for name, text in texts.items():
            with whole_file(folder / name) as temporary:
                temporary.write_text(text, encoding="utf-8", newline="")
    except OSError as error:
        raise TCurLoraError(
            f"The report could not be written to '{folder}' ({error.strerror or error}).",
            "Free some space, or close the file in other programs, and give the same command again.",
            "cannot_write",
        ) from error
    return {
        "report": str(folder / "report.html"),
        "table": str(folder / "results.csv"),
        "results": str(folder / "results.json"),
    }


def html_page(results: Mapping[str, Any]) -> str:
    """Write the report as one page with inline plots; no script, and no address of anything outside."""
    settings = results["settings"]
    colors = svg_plots.palette(results["methods"])
    reference, structures = settings["reference"], ", ".join(settings["structures"])
    sections = [
        f"<h1>Methods compared: {escape(structures)}</h1>",
        f"<p>{escape(summary_words(results))}</p>",
        "<h2>Overview</h2>",
        _html_table(*overview(results), marked=reference),
        svg_plots.scatter_plot(_trade_off(results), "trained parameters", "mean Dice", colors),
        *_part_html(results["test"], "Test cases", colors),
    ]
    if results["own"]:
        sections += [
            *_part_html(results["own"], "The base's own data", colors),
            "<p>A lower Dice or a larger distance than the base's is what is lost there, where an adapter is used; the "
            "base itself stays as it is.</p>",
        ]
    if courses := results["dice_by_step"]:
        lines = {name: [(p["step"], p["dice"]) for p in course] for name, course in courses.items()}
        steps = sorted({step for line in lines.values() for step, _ in line})
        rows = [[name, *(number(dict(line).get(step), 4) for step in steps)] for name, line in lines.items()]
        sections += [
            "<h2>Dice against steps</h2>",
            svg_plots.line_plot(lines, "step", "mean Dice of the test cases", colors),
            _html_table(["method", *(f"step {step:g}" for step in steps)], rows),
            "<p>Scored on the way of one training, whose learning rate falls to its end: a shorter training that ends "
            "at a step has more there.</p>",
        ]
    curves = {name: [(p["step"], p["monitor_loss"]) for p in line] for name, line in results["curves"].items()}
    if curves:
        sections += [
            "<h2>Course of the trainings</h2>",
            svg_plots.line_plot(curves, "step", "loss on training patches", colors),
            "<p>Mean over runs, on fixed patches of the training cases. A method whose line still falls at its end was "
            "not trained to its end.</p>",
        ]
    sections += ["<h2>Methods</h2>", _methods_html(results), "<h2>How it was done</h2>", _rules_html(settings)]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Methods compared: {escape(structures)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(section for section in sections if section)
        + "\n</body>\n</html>\n"
    )


def _part_html(part: Mapping[str, Any], title: str, colors: Mapping[str, str]) -> list[str]:
    sections = [f"<h2>{escape(title)}</h2>", _summary_html(part)]
    for measure in MEASURES:
        entries = {
            name: (entry[measure][MEAN]["difference"], entry[measure][MEAN]["ci95"])
            for name, entry in part["differences"].items()
        }
        sections.append(f"<h3>{TITLES[measure]}: paired differences</h3>")
        sections.append(
            svg_plots.forest_plot(entries, f"{TITLES[measure]} less {part['against']}, mean over structures", colors)
        )
        sections.append(_differences_html(part, measure))
        sections.append(f"<h3>{TITLES[measure]} of each case</h3>")
        structures = list(dict.fromkeys(s for group in part["cases"][measure].values() for s in group if s != MEAN))
        for structure in structures:
            series = {
                name: list(part["cases"][measure].get(name, {}).get(structure, {}).values()) for name in part["summary"]
            }
            means = {
                name: numbers[measure]["mean"]
                for name, summary in part["summary"].items()
                if measure in (numbers := summary.get(structure, {}))
            }
            sections.append(svg_plots.strip_plot(series, means, f"{TITLES[measure]}, {structure}", colors))
    sections.append(_cases_html(part))
    return sections


def _summary_html(part: Mapping[str, Any]) -> str:
    structures = [name for name in next(iter(part["summary"].values())) if name != MEAN]
    header = ["method", *(f"{TITLES[m]} {s}" for s in structures for m in MEASURES), "without a distance"]
    rows = []
    for name, summary in part["summary"].items():
        cells = []
        for structure in structures:
            for measure, digits in zip(MEASURES, (4, 2), strict=True):
                numbers = summary[structure].get(measure, {})
                sd = numbers.get("sd")
                cells.append(number(numbers.get("mean"), digits) + ("" if sd is None else f" ± {sd:.{digits}f}"))
        rows.append([name, *cells, str(summary[MEAN]["without_distance"])])
    return (
        _html_table(header, rows)
        + f"<p>Mean and standard deviation over subjects. {ESTIMAND} A scan's score is the mean of its runs.</p>"
    )


def _differences_html(part: Mapping[str, Any], measure: str) -> str:
    header = ["method", "structure", "difference", "95 % interval", "p", "p, corrected", "higher / lower", "subjects"]
    rows = []
    digits = 4 if measure == "dice" else 2
    for name, entry in part["differences"].items():
        for structure, numbers in entry[measure].items():
            if structure == MEAN and len(entry[measure]) == 2:
                continue  # the mean over one structure is that structure
            corrected = entry[measure][MEAN]["p_holm"] if structure == MEAN or len(entry[measure]) == 2 else None
            interval = numbers["ci95"]
            rows.append(
                [
                    name,
                    structure,
                    _signed(numbers["difference"], digits),
                    "-" if interval is None else f"{interval[0]:+.{digits}f} to {interval[1]:+.{digits}f}",
                    _p(numbers["p"]),
                    _p(corrected),
                    f"{numbers['higher']} / {numbers['lower']}",
                    str(numbers["subjects"]),
                ]
            )
    return _html_table(header, rows)


def _cases_html(part: Mapping[str, Any]) -> str:
    """A folded table of every case, with one column for each method."""
    tables = []
    for measure, digits in zip(MEASURES, (4, 2), strict=True):
        values = part["cases"][measure]
        structures = list(dict.fromkeys(s for group in values.values() for s in group if s != MEAN))
        for structure in structures:
            cases = sorted({case for group in values.values() for case in group.get(structure, {})})
            methods = list(part["summary"])
            rows = [
                [case, *(number(values.get(m, {}).get(structure, {}).get(case), digits) for m in methods)]
                for case in cases
            ]
            tables.append(f"<h4>{TITLES[measure]}, {escape(structure)}</h4>{_html_table(['case', *methods], rows)}")
    return f"<details><summary>All cases as numbers</summary>{''.join(tables)}</details>"


def _methods_html(results: Mapping[str, Any]) -> str:
    rows = []
    for name, entry in results["methods"].items():
        rates = entry["rates"]
        cores = sorted({rate["lr_core"] for rate in rates if rate["lr_core"]})
        whole = sorted({rate["lr_whole"] for rate in rates if rate["lr_whole"]})
        words = "; ".join(
            f"{title} {' or '.join(f'{rate:.2g}' for rate in found)}"
            for title, found in (("cores", cores), ("whole", whole))
            if found
        )
        edge = "edge of the grid" if any(rate["at_edge"] for rate in rates) else ""
        tuned = "chosen" if any(rate["trials"] for rate in rates) else "preset" if rates else ""
        rows.append([name, entry["title"], str(entry["rank"]), words, ", ".join(filter(None, (tuned, edge)))])
    return _html_table(["method", "what it is", "rank", "learning rates", "how found"], rows)


def _rules_html(settings: Mapping[str, Any]) -> str:
    kinds = {
        "folds": "Cross-validation: the cases of a fold are tested by models trained on the other folds.",
        "draws": "Each draw trains on subjects drawn at random and tests on the test cases.",
        "test": "Trained on all cases, tested on a set of its own.",
    }
    factors = ", ".join(f"{factor:.2g}" for factor in settings["rate_factors"])
    if len(settings["rate_factors"]) > 1:
        rule = (
            f"Learning rates: for each method and split, a third of the subjects that it trains on is set aside; the "
            f"method's own rates times {factors} are each tried on the rest, with {settings['rate_steps']} steps; the "
            "factor with the highest mean Dice on the third is taken, the smaller of two that are equal. Test cases "
            "have no part in it. With one subject to train on nothing can be set aside, and the method's own rates are "
            "taken. 'Edge of the grid' warns that a rate beyond the grid might be better."
        )
    else:
        rule = "Learning rates: each method's own, without a search."
    new = settings.get("new_structures", ())
    splits = [
        f"split {s['number']}: {s['training_cases']} cases of {s['training_subjects']} subjects to train on, "
        f"{s['test_cases']} of {s['test_subjects']} to test on"
        for s in settings["splits"]
    ]
    versions = ", ".join(f"{name} {version}" for name, version in settings["versions"].items())
    items = [
        f"Base model: {settings['base']['name']} (SHA-256 of its weights {settings['base']['sha256']}).",
        f"{kinds[settings['kind']]} {'; '.join(splits)}. All cases of a subject stand on one side.",
        f"Every method: {settings['steps']} steps of {settings['batch']} patches, the same patches and augmentation "
        f"for the same seed, AdamW, one cycle; seeds {', '.join(map(str, settings['seeds']))}. The weights that are "
        "kept are those with the lowest loss on fixed patches of the training cases.",
        rule,
        f"{ESTIMAND} A difference is the mean over subjects of the difference of two methods; its interval is a "
        "bootstrap over subjects (9,999 resamples, percentiles), the test a two-sided sign-flip permutation test on "
        "the subjects' differences. A structure counts in a scan that has it, or where a method marks it although it "
        "is absent: Dice 0 for that method, 1 for one that leaves it out. Distances are compared where both have one. "
        "Corrected: Holm, over the methods. Both say how it would be with other patients, not with other training "
        "cases; '± runs' is the standard deviation over trainings. An interval from few subjects is too narrow.",
        *([f"The base model has no output for {', '.join(new)}; its means are over the rest."] if new else ()),
        "Adapter size: the numbers and index sets that are stored, in float32 and int64. Time: median of a step; peak "
        "memory: held at most in two steps, beyond the base's weights. Both on "
        f"{settings['device']} with {settings['threads']} thread(s), on a machine that may have had other work.",
        "LoRA is peft's; it has no transposed convolutions. LoRA with as many numbers: the largest rank at which all "
        "layers fit into compact's number, or else rank 1 in the layers nearest to the output that fit.",
        "Cases are numbered; names.csv, which is not part of this page, says which is which.",
        f"{settings['created']}; {versions}.",
    ]
    return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"


def _trade_off(results: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    points = {}
    for name, entry in results["methods"].items():
        mean = results["test"]["summary"][name][MEAN].get("dice", {}).get("mean")
        if entry["trained"] and mean is not None:
            points[name] = (float(entry["trained"]), mean)
    return points


def _html_table(header: Sequence[str], rows: Sequence[Sequence[str]], marked: str = "") -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    lines = []
    for row in rows:
        style = ' class="reference"' if marked and row[0] == marked else ""
        lines.append(f"<tr{style}>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>")
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _csv(rows: Sequence[Sequence[Any]]) -> str:
    stream = io.StringIO()
    csv.writer(stream).writerows(rows)
    return stream.getvalue()


def _cell(value: Any) -> str:
    return "" if value is None else str(value)


def _signed(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:+.{digits}f}"


def _p(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}" if value >= 0.001 else "< 0.001"
