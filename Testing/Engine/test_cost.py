"""The cost benchmark runs as its documentation says; no figure is asserted, because machines differ."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "Testing" / "Benchmarks" / "cost.py"


def run(out: Path) -> str:
    command = [sys.executable, str(SCRIPT), "--out", str(out), "--only", "adapters", "--quick", "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "TCurLoraSegment"), "PYTHONIOENCODING": "utf-8"}
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True, encoding="utf-8").stdout


def test_a_section_is_measured_once_and_told_as_tables_and_json(tmp_path: Path) -> None:
    out = tmp_path / "Kosten 費用"
    printed = run(out)
    measured = (out / "adapters.json").read_bytes()
    assert run(out) == printed
    assert (out / "adapters.json").read_bytes() == measured
    assert (out / "cost.md").read_text(encoding="utf-8").strip() == printed.strip()
    (section,) = json.loads((out / "cost.json").read_text(encoding="utf-8"))
    figures = {figure["name"]: figure for figure in section["figures"]}
    assert 0 < figures["compact, on disk"]["value"] < figures["base, on disk"]["value"] / 100
    goals = [figure for figure in figures.values() if figure["goal"] is not None]
    assert len(goals) == printed.count("| met |") + printed.count("| missed |") == 2
