"""Write a datalist of the scans that the shipped base model never saw, for `tcurlora compare --own-data`.

    python Testing/Benchmarks/own_site.py --data ../shared/data/msd_hippocampus --out own.json

They are the test subjects of `configs/split.json`, from the hospital that the base was trained on: what a method scores
lower on them than the base is what it forgot.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

SPLIT = Path(__file__).resolve().parents[2] / "Resources/BaseModels/hippocampus_t1_unetr/configs/split.json"
LABELS = {"0": "background", "1": "anterior hippocampus", "2": "posterior hippocampus"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    data = options.data.resolve()
    with (data / "cases.csv").open(encoding="utf-8", newline="") as stream:
        subject_of = {row["file"]: row["subject"] for row in csv.DictReader(stream)}
    cases = [
        {"image": str(data / "images" / file), "label": str(data / "labels" / file), "subject": subject_of[file]}
        for file in json.loads(SPLIT.read_text(encoding="utf-8"))["test"]
    ]
    content = {"labels": LABELS, "training": cases}
    options.out.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
