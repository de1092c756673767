"""Write the tables of the documents from the committed result files, or check that they agree.

    python Testing/Benchmarks/tables.py            # writes them
    python Testing/Benchmarks/tables.py --check    # ends with 1 where a document differs

A document holds a table between `<!-- table: FILE NAME -->` and `<!-- end of table -->`, where FILE is a file in
`results/` and NAME a table or a view in it. `results/README.md` describes the files.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).resolve().parent / "results"
DOCUMENTS = ("README.md", "docs/evaluation.md", "docs/cost.md")
REQUIRED = ("title", "command", "provenance", "machine", "versions", "seeds", "tables")
_PLACE = re.compile(
    r"(?P<start><!-- table: (?P<file>[\w-]+) (?P<name>[\w-]+) -->\n)(?P<table>.*?)(?P<end>\n<!-- end of table -->)",
    re.DOTALL,
)


class Mistake(Exception):
    """A document or a result file that does not hold what it should."""


def read_results(name: str, folder: Path = RESULTS) -> dict[str, Any]:
    """Read a result file.

    Raises:
        Mistake: when it is not there or lacks what every result file says.
    """
    try:
        content: dict[str, Any] = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Mistake(f"results/{name}.json cannot be read: {error}") from error
    missing = [key for key in REQUIRED if key not in content]
    if missing:
        raise Mistake(f"results/{name}.json lacks {', '.join(missing)}")
    return content


def markdown(results: Mapping[str, Any], name: str) -> str:
    """Lay out a table of a result file, or a view of one, as Markdown.

    Raises:
        Mistake: when there is no such table.
    """
    tables = results["tables"]
    if name in tables:
        columns, rows = tables[name]["columns"], tables[name]["rows"]
    elif name in results.get("views", {}):
        columns, rows = _view(results, results["views"][name])
    else:
        raise Mistake(f"'{results['title']}' has no table '{name}'")
    lines = ["| " + " | ".join(column["title"] for column in columns) + " |"]
    lines.append("|" + "|".join("---:" if column.get("number") else "---" for column in columns) + "|")
    for row in rows:
        cells = [cell_text(cell, column.get("digits")) for cell, column in zip(row, columns, strict=True)]
        lines.append("| " + " | ".join(cells) + " |")
    return re.sub(r"\|  (?=\|)", "| ", "\n".join(lines))


def cell_text(cell: Any, digits: int | None) -> str:
    """Write a cell: a text, a number, or a mapping with mean and sd, or difference with ci95 or p.

    >>> cell_text(575963, None), cell_text(0.5, 2), cell_text({"mean": 0.899, "sd": 0.004}, 3)
    ('575,963', '0.50', '0.899 ± 0.004')
    >>> cell_text({"difference": -0.0019, "ci95": [-0.0029, -0.001]}, 4)
    '-0.0019 (-0.0029 to -0.0010)'
    """

    def written(value: float, sign: str = "") -> str:
        return f"{value:{sign}g}" if digits is None else f"{value:{sign}.{digits}f}"

    if cell is None:
        return ""
    if isinstance(cell, str):
        return cell
    if isinstance(cell, int):
        return f"{cell:,}"
    if isinstance(cell, float):
        return written(cell)
    if "mean" in cell:
        return f"{written(cell['mean'])} ± {written(cell['sd'])}" if "sd" in cell else written(cell["mean"])
    difference = written(cell["difference"], "+")
    if "ci95" in cell:
        low, high = cell["ci95"]
        return f"{difference} ({written(low, '+')} to {written(high, '+')})"
    return f"{difference} (p {cell['p']:g})"


def _view(results: Mapping[str, Any], view: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[list[Any]]]:
    """Choose columns and name rows of a table in another way; the numbers stay those of the table."""
    table = results["tables"][view["of"]]
    titles = [column["title"] for column in table["columns"]]
    rows = {row[0]: row for row in table["rows"]}
    columns = [{**table["columns"][titles.index(column["from"])], **column} for column in view["columns"]]
    return columns, [
        [name, *(_viewed(rows[key][titles.index(column["from"])], column) for column in columns[1:])]
        for key, name in view["rows"].items()
    ]


def _viewed(cell: Any, column: Mapping[str, Any]) -> Any:
    if column.get("bytes") and isinstance(cell, int | float):
        return "" if not cell else f"{cell / 1000:.2g} MB" if cell >= 1000 else f"{cell:.0f} kB"
    if isinstance(cell, Mapping) and not cell.get("sd"):
        return {"mean": cell["mean"]} if "mean" in cell else cell
    return cell


def filled(text: str, folder: Path = RESULTS) -> str:
    """Return a document with its tables written anew from the result files.

    Raises:
        Mistake: when a table or a file is missing.
    """

    def put(match: re.Match[str]) -> str:
        return f"{match['start']}{markdown(read_results(match['file'], folder), match['name'])}{match['end']}"

    if text.count("<!-- table: ") != len(_PLACE.findall(text)):
        raise Mistake("a mark of a table is not closed, or not written as it should be")
    return _PLACE.sub(put, text)


def outdated(documents: Sequence[Path], folder: Path = RESULTS) -> list[str]:
    """Name the documents whose tables are not those of the result files, and what is wrong with the files."""
    problems = []
    for path in documents:
        text = path.read_text(encoding="utf-8")
        try:
            if filled(text, folder) != text:
                problems.append(f"{path.name}: its tables are not those of the result files")
        except Mistake as mistake:
            problems.append(f"{path.name}: {mistake}")
    return problems


def main() -> int:
    """Write or check the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; end with 1 where a document differs")
    documents = [ROOT / name for name in DOCUMENTS]
    if parser.parse_args().check:
        problems = outdated(documents)
        print("\n".join(problems) or "The tables agree with the result files.")
        return 1 if problems else 0
    for path in documents:
        path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8", newline="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
