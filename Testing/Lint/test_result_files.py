"""Numbers in documents come from committed result files."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from project_files import ROOT

sys.path.insert(0, str(ROOT / "Testing/Benchmarks"))
from tables import DOCUMENTS, RESULTS, Mistake, cell_text, filled, outdated, read_results

MEASURED = ("docs/evaluation.md", "docs/cost.md")
"""Documents whose tables all hold measured numbers."""


def unmarked(text: str) -> list[str]:
    """Return the first line of each table that stands outside of the marks."""
    rest = re.sub(r"<!-- table: .*?<!-- end of table -->", "", text, flags=re.DOTALL)
    return re.findall(r"(?:\A|\n\n)(\|.*)", rest)


def test_tables_are_those_of_the_result_files() -> None:
    assert outdated([ROOT / name for name in DOCUMENTS]) == []


@pytest.mark.parametrize("name", MEASURED)
def test_every_table_of_measurements_comes_from_a_result_file(name: str) -> None:
    assert unmarked((ROOT / name).read_text(encoding="utf-8")) == []


def test_result_files_are_whole_and_used() -> None:
    texts = "".join((ROOT / name).read_text(encoding="utf-8") for name in DOCUMENTS)
    scripts = "".join(path.read_text(encoding="utf-8") for path in RESULTS.parent.glob("*.py"))
    for path in sorted(RESULTS.glob("*.json")):
        if f"results/{path.name}" in scripts:
            continue  # what a script writes as it measures, for a table that is not there yet
        results = read_results(path.stem)
        assert results["provenance"].get("how")
        for name, table in results["tables"].items():
            assert all(len(row) == len(table["columns"]) for row in table["rows"]), (path.name, name)
            assert f"<!-- table: {path.stem} {name} -->" in texts, (path.name, name)


def test_a_changed_number_is_found_and_put_right(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    content = {
        **dict.fromkeys(("title", "command", "provenance", "machine", "versions", "seeds"), ""),
        "tables": {
            "main": {
                "columns": [{"title": "a"}, {"title": "Dice", "number": True, "digits": 3}],
                "rows": [["x", {"mean": 0.5, "sd": 0.1}], ["y", None]],
            }
        },
        "views": {
            "short": {"of": "main", "columns": [{"from": "a"}, {"from": "Dice", "digits": 1}], "rows": {"y": "Y"}}
        },
    }
    (tmp_path / "results" / "one.json").write_text(json.dumps(content), encoding="utf-8")
    document = tmp_path / "doc.md"
    document.write_text("A\n<!-- table: one main -->\n| wrong |\n<!-- end of table -->\nB\n", encoding="utf-8")
    assert len(outdated([document], tmp_path / "results")) == 1
    text = filled(document.read_text(encoding="utf-8"), tmp_path / "results")
    assert "| a | Dice |\n|---|---:|\n| x | 0.500 ± 0.100 |\n| y | |\n<!--" in text and text.endswith("\nB\n")
    document.write_text(text, encoding="utf-8")
    assert outdated([document], tmp_path / "results") == []
    short = filled("<!-- table: one short -->\n\n<!-- end of table -->", tmp_path / "results")
    assert "| Y | |" in short
    for bad in (
        "<!-- table: one none -->\n\n<!-- end of table -->",
        "<!-- table: two main -->\n\n<!-- end of table -->",
    ):
        with pytest.raises(Mistake):
            filled(bad, tmp_path / "results")
    with pytest.raises(Mistake):
        filled("<!-- table: one main -->\n| never closed |", tmp_path / "results")
    assert unmarked("Text.\n\n| a |\n|---|\n\n" + text) == ["| a |"]


def test_cells() -> None:
    assert [cell_text(cell, 2) for cell in (None, "a", 1234, 0.5, {"mean": 1.0})] == ["", "a", "1,234", "0.50", "1.00"]
    assert cell_text({"difference": 0.0098, "p": 0.0004}, 4) == "+0.0098 (p 0.0004)"
