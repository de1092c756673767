"""Adapt to a site that labels one of the base's structures, and see what becomes of the other.

    python Testing/Benchmarks/partial_labels.py --data ../shared/data --out FILE --machine ...

The base that ships segments the anterior and the posterior hippocampus. The site is a few subjects of the Medical
Segmentation Decathlon that the base never saw, labeled with the anterior part only; the posterior part is scored on
other subjects that it never saw, whose labels have both. Four ways to train, with the same patches and steps:

- kept: what `adapt` does. A voxel without a label is taught to be the background or the posterior part, and which of
  the two as the base says.
- marginal: the first half of that only.
- background: such a voxel is taught to be background, as if the posterior part were in none of the scans.
- complete: `adapt --labels-complete`. The posterior part counts as background, and is in no result.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import SimpleITK as sitk
import torch
from record import measured

from tcurlora.cases.cached_case import cache_case
from tcurlora.cases.case import Case, Dataset
from tcurlora.evaluation.scores import Score
from tcurlora.imaging.structures import Structure
from tcurlora.method.model import TensorCurModel
from tcurlora.models.opening import load_base_model
from tcurlora.runtime.events import NullEvents
from tcurlora.runtime.json_files import write_json
from tcurlora.training.presets import training_settings
from tcurlora.training.target_site import Site, score_cases
from tcurlora.training.trainer import train

BASE = "hippocampus_t1_unetr"
SPLIT = Path(__file__).resolve().parents[2] / f"Resources/BaseModels/{BASE}/configs/split.json"
ANTERIOR, POSTERIOR = Structure("anterior hippocampus", 1), Structure("posterior hippocampus", 2)
WAYS = ("kept", "marginal", "background", "complete")
NAMES = (ANTERIOR.name, POSTERIOR.name)
CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--machine", required=True, help="in words, such as 'one core of a server processor'")
    parser.add_argument("--subjects", type=int, default=4)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--draws", type=int, default=2)
    options = parser.parse_args()
    rows = []
    for draw in range(options.draws):
        with tempfile.TemporaryDirectory() as folder:
            rows += run(options.data / "msd_hippocampus", Path(folder), options.subjects, options.steps, draw)
        print(json.dumps(rows[-len(WAYS) - 1 :], indent=1))
    columns = [{"title": "trained"}, *({"title": f"{name} Dice", "number": True, "digits": 4} for name in NAMES)]
    content = measured(
        "Structures that a site does not label",
        "python Testing/Benchmarks/partial_labels.py --data ../shared/data --out FILE --machine ...",
        options.machine,
        list(range(options.draws)),
        f"{options.subjects} subjects, {options.steps} steps, {options.draws} draws of the subjects",
        {"main": {"columns": columns, "rows": means(rows)}},
    )
    write_json(options.out, content)


def run(data: Path, folder: Path, subjects: int, steps: int, draw: int) -> list[dict[str, Any]]:
    """Adapt to some subjects in each way, and score both structures on the others."""
    everyone = unseen_cases(data)
    names = sorted({case.subject for case in everyone})
    chosen = set(random.Random(draw).sample(names, subjects))
    training = [labeled_in_part(case, folder) for case in everyone if case.subject in chosen]
    test = [case for case in everyone if case.subject not in chosen]
    base = load_base_model(BASE)
    matched = {ANTERIOR.name: [ANTERIOR.name]}
    site = Site(base, Dataset(data, tuple(training), (ANTERIOR,)), (ANTERIOR,), matched)
    network = base.build()
    cached = [cache_case(case, site.structures, base.preprocessing, folder / "cache") for case in training]
    settings = replace(training_settings("compact", draw), steps=steps)
    rows = []
    for way in ("base", *WAYS):
        of_way = replace(site, labels_complete=way == "complete")
        config = of_way.config(network, "compact")
        model = TensorCurModel(network, config)
        # Each channel a class of its own, of which the posterior part never occurs.
        groups = [[0], [1], [2]] if way == "background" else of_way.groups(config)
        if way != "base":
            kept = of_way.kept_channels(network, config) if way == "kept" else None
            train(model, cached, groups, base.windows.roi_size, settings, CPU, NullEvents(), None, None, kept)
        scores = score_cases(of_way.segmenter(model, CPU), test, (ANTERIOR, POSTERIOR))
        rows.append({"draw": draw, "way": way, "crops": len(test), **dice(scores)})
    return rows


def unseen_cases(data: Path) -> list[Case]:
    with (data / "cases.csv").open(encoding="utf-8", newline="") as stream:
        subject_of = {row["file"]: row["subject"] for row in csv.DictReader(stream)}
    files = json.loads(SPLIT.read_text(encoding="utf-8"))["test"]
    return [Case(file, data / "images" / file, data / "labels" / file, subject_of[file]) for file in files]


def labeled_in_part(case: Case, folder: Path) -> Case:
    """Copy a case with the labels of the anterior part alone."""
    labels = sitk.ReadImage(case.label)
    path = folder / case.name
    sitk.WriteImage(sitk.Cast(labels == ANTERIOR.value, sitk.sitkUInt8), path)
    return replace(case, label=path)


def dice(scores: list[Score]) -> dict[str, float]:
    """Mean Dice of each structure over the scans."""
    return {name: fmean(s.dice or 0.0 for s in scores if s.structure == name) for name in NAMES}


def means(rows: list[dict[str, Any]]) -> list[list[Any]]:
    """Mean over the draws and standard deviation, of each way and structure."""
    table: list[list[Any]] = []
    for way in ("base", *WAYS):
        of_way = [row for row in rows if row["way"] == way]
        table.append([way])
        for name in NAMES:
            values = [row[name] for row in of_way]
            table[-1].append({"mean": fmean(values), **({"sd": stdev(values)} if len(values) > 1 else {})})
    return table


if __name__ == "__main__":
    main()
