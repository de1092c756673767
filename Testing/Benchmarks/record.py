"""Record a comparison that `tcurlora compare` has made as a result file, for the tables of the documents.

    python Testing/Benchmarks/record.py FOLDER/results.json --name NAME --title "..." --command "..." --machine "..."

The table `main` gets a row for each method: trained parameters, size, Dice (mean, and standard deviation over runs) and
HD95 on the test cases, Dice on the base's own data, and the difference from the reference.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tables import RESULTS, ROOT

from tcurlora.runtime.json_files import read_object, write_json
from tcurlora.training.adaptation import versions


def recorded(results: Mapping[str, Any], title: str, command: str, machine: str, commit: str) -> dict[str, Any]:
    """Turn the results of a comparison into the content of a result file.

    Args:
        results: content of the comparison's results.json.
        title: of the section that it belongs to.
        command: that makes it again.
        machine: on what it ran, in words.
        commit: that it was made with.
    """
    settings, test, own = results["settings"], results["test"], results["own"]
    reference = settings["reference"]
    columns: list[dict[str, Any]] = [
        {"title": "trained"},
        {"title": "parameters", "number": True},
        {"title": "adapter, kB", "number": True},
        {"title": "Dice", "number": True, "digits": 4},
        {"title": "HD95, mm", "number": True, "digits": 2},
        *([{"title": "Dice, base's own data", "number": True, "digits": 4}] if own else []),
        {"title": f"against {reference}", "number": True, "digits": 4},
        {"title": "p, corrected", "number": True},
    ]
    rows = []
    for name, entry in results["methods"].items():
        mean = test["summary"][name]["mean"]
        spread = mean["dice_spread_over_runs"]
        dice = {"mean": mean["dice"]["mean"], "sd": mean["dice"]["sd"] if spread is None else spread}
        difference = test["differences"].get(name, {}).get("dice", {}).get("mean")
        rows.append(
            [
                name,
                entry["trained"],
                round(entry["adapter_bytes"] / 1000),
                dice if dice["sd"] is not None else {"mean": dice["mean"]},
                mean["hd95_mm"]["mean"] if "hd95_mm" in mean else None,
                *([own["summary"][name]["mean"].get("dice", {}).get("mean")] if own else []),
                {key: difference[key] for key in ("difference", "ci95")} if difference and difference["ci95"] else None,
                float(f"{difference['p_holm']:.2g}") if difference and difference["p_holm"] is not None else None,
            ]
        )
    return {
        "title": title,
        "command": command,
        "provenance": {"how": "recorded from the comparison's results.json", "commit": commit},
        "machine": machine,
        "versions": settings["versions"],
        "seeds": settings["seeds"],
        "note": f"{len(settings['splits'])} {settings['kind']}, {settings['steps']} steps",
        "tables": {"main": {"columns": columns, "rows": rows}},
    }


def measured(
    title: str, command: str, machine: str, seeds: Sequence[int], note: str, tables: Mapping[str, Any]
) -> dict[str, Any]:
    """Make the content of a result file of what a benchmark has measured.

    Args:
        title: of the section that it belongs to.
        command: that makes it again.
        machine: on what it ran, in words.
        seeds: of everything random.
        note: with which settings.
        tables: by name, as `results/README.md` describes them.
    """
    return {
        "title": title,
        "command": command,
        "provenance": {"how": "written by the script", "commit": commit()},
        "machine": machine,
        "versions": versions(),
        "seeds": list(seeds),
        "note": note,
        "tables": dict(tables),
    }


def commit() -> str:
    """Return the commit that is checked out."""
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    return head.stdout.strip()


def main() -> None:
    """Record what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--title", required=True)
    parser.add_argument("--command", required=True)
    parser.add_argument("--machine", required=True, help="in words, such as 'two cores of a server processor'")
    args = parser.parse_args()
    content = recorded(read_object(args.results), args.title, args.command, args.machine, commit())
    write_json(RESULTS / f"{args.name}.json", content)
    print(json.dumps(content["tables"]["main"]["rows"], indent=1))


if __name__ == "__main__":
    main()
