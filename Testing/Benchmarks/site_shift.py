"""Adapt the shipped hippocampus model to another hospital, by several methods, and measure what it gains and loses.

Base: trained on MSD (one hospital). Site: IXI, Hammersmith (another scanner, automatic labels). Each draw takes four
IXI subjects (eight crops) for adaptation and tests on all other subjects; what is lost on the base's own site is
measured on the MSD subjects that the base never saw. Whole hippocampus; Dice, and 95 % Hausdorff distance in mm.

    python Testing/Benchmarks/site_shift.py --data ../shared/data --out DIR
    python Testing/Benchmarks/site_shift.py --data ../shared/data --out DIR --table

What DIR holds already is not computed again, so several processes may share the methods.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import statistics
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from tcurlora.cases.case import Case
from tcurlora.cases.dataset import find_cases
from tcurlora.evaluation.scores import Score
from tcurlora.imaging.structures import Structure
from tcurlora.method.model import TensorCurModel
from tcurlora.models.adapter_files import WEIGHTS, load_adapter
from tcurlora.models.opening import load_base_model
from tcurlora.runtime.events import ConsoleEvents
from tcurlora.runtime.json_files import write_json
from tcurlora.training.adaptation import AdaptRequest, run_adapt
from tcurlora.training.target_site import Site, open_site, score_cases

METHODS = ("base", "decoder", "full", "paper", "compact")
SUBJECTS = 4
HIPPOCAMPUS = Structure("hippocampus", 1)


def draw_subjects(cases: tuple[Case, ...], draw: int) -> set[str]:
    """Choose the subjects of a draw."""
    return set(random.Random(1000 + draw).sample(sorted({case.subject for case in cases}), SUBJECTS))


def write_datalist(path: Path, cases: list[Case]) -> None:
    """Write the chosen cases as a datalist for `adapt`."""
    training = [{"image": str(c.image.resolve()), "label": str(c.label.resolve()), "subject": c.subject} for c in cases]
    write_json(path, {"labels": {"0": "background", "1": "hippocampus"}, "training": training})


def held_out_of_base(base: str, msd: Path) -> list[Case]:
    """The MSD cases that the base model was neither trained nor selected on."""
    split = json.loads((load_base_model(base).folder / "configs" / "split.json").read_text(encoding="utf-8"))
    return [case for case in find_cases(msd).cases if case.image.name in split["test"]]


def merge_labels(cases: list[Case], folder: Path) -> list[Case]:
    """Copy labels with anterior and posterior merged into one structure."""
    import SimpleITK as sitk

    merged = []
    for case in cases:
        path = folder / case.label.name
        sitk.WriteImage(sitk.Cast(sitk.ReadImage(case.label) > 0, sitk.sitkUInt8), path)
        merged.append(replace(case, label=path))
    return merged


def scores_of(site: Site, model: TensorCurModel, cases: list[Case]) -> list[dict[str, Any]]:
    """Score the whole hippocampus, case by case."""
    scores: list[Score] = score_cases(site.segmenter(model, torch.device("cpu")), cases, [HIPPOCAMPUS])
    return [asdict(score) for score in scores]


def measure(method: str, draw: int, args: argparse.Namespace, own_site: list[Case], folder: Path) -> dict[str, Any]:
    """Adapt with one method on one draw, and test."""
    cases = find_cases(args.data / "ixi_hh_hippocampus_1mm").cases
    chosen = draw_subjects(cases, draw)
    datalist = folder / "datalist.json"
    write_datalist(datalist, [case for case in cases if case.subject in chosen])
    request = AdaptRequest(args.base, str(datalist), str(folder / "adapter"), folds=0, steps=args.steps, seed=draw)
    site = open_site(args.base, datalist)
    network = site.base.build()
    if method == "base":
        model = TensorCurModel(network, site.config(network, request.method))
        size = 0
    else:
        run_adapt(replace(request, method=method), folder / "job", ConsoleEvents())
        size = (folder / "adapter" / WEIGHTS).stat().st_size
        model = load_adapter(network, folder / "adapter")
    return {
        "method": method,
        "draw": draw,
        "subjects": sorted(chosen),
        "trained": 0 if method == "base" else model.trained_counts()["total"],
        "bytes": size,
        "site": scores_of(site, model, [case for case in cases if case.subject not in chosen]),
        "own": scores_of(site, model, own_site),
    }


def table(folder: Path) -> str:
    """Lay out the mean over draws, with the standard deviation over draws, as Markdown."""
    rows = ["| trained | numbers | adapter, kB | IXI Dice | IXI HD95, mm | MSD Dice | MSD HD95, mm |"]
    rows.append("|---|---:|---:|---:|---:|---:|---:|")
    for method in METHODS:
        runs = [json.loads(p.read_text(encoding="utf-8")) for p in sorted(folder.glob(f"{method}-*.json"))]
        if not runs:
            continue
        cells = [over_draws(runs, part, key) for part in ("site", "own") for key in ("dice", "hd95_mm")]
        size = f"{runs[0]['bytes'] / 1000:.0f}"
        rows.append(f"| {method} | {runs[0]['trained']:,} | {size} | {' | '.join(cells)} |")
    return "\n".join(rows)


def paired(folder: Path, method: str, other: str) -> str:
    """Compare two methods crop by crop: mean difference of Dice in each draw, and how many crops are better."""
    lines = []
    for part, site in (("site", "IXI"), ("own", "MSD")):
        means, better, crops = [], 0, 0
        for path in sorted(folder.glob(f"{method}-*.json")):
            rival = path.with_name(path.name.replace(method, other))
            if not rival.exists():
                continue
            a, b = (
                {s["case"]: s["dice"] for s in json.loads(p.read_text(encoding="utf-8"))[part]} for p in (path, rival)
            )
            means.append(statistics.mean(a[case] - b[case] for case in a))
            better += sum(a[case] > b[case] for case in a)
            crops += len(a)
        if means:
            draws = ", ".join(f"{mean:+.4f}" for mean in means)
            lines.append(f"{method} against {other}, {site}: {draws} Dice; better in {better} of {crops} crops")
    return "\n".join(lines)


def over_draws(runs: list[dict[str, Any]], part: str, key: str) -> str:
    """Mean and standard deviation over draws of the mean over cases."""
    means = [statistics.mean(s[key] for s in run[part] if s[key] is not None) for run in runs]
    digits = 4 if key == "dice" else 2
    spread = f" ± {statistics.stdev(means):.{digits}f}" if len(means) > 1 else ""
    return f"{statistics.mean(means):.{digits}f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--base", default="hippocampus_t1_unetr")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--draws", default="0,1,2")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--table", action="store_true", help="only show what is there")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    if not args.table:
        with tempfile.TemporaryDirectory() as labels:
            own_site = merge_labels(held_out_of_base(args.base, args.data / "msd_hippocampus"), Path(labels))
            for draw in map(int, args.draws.split(",")):
                for method in args.methods.split(","):
                    result = args.out / f"{method}-{draw}.json"
                    if not result.exists():
                        with tempfile.TemporaryDirectory() as folder:
                            write_json(result, measure(method, draw, args, own_site, Path(folder)))
                        print(result.name, table(args.out), sep="\n", flush=True)
    with (args.out / "table.csv").open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows(
            [c.strip() for c in line.strip("|").split("|")] for line in table(args.out).split("\n")
        )
    print(table(args.out))
    for other in ("full", "decoder", "paper", "base"):
        print(paired(args.out, "compact", other))


if __name__ == "__main__":
    main()
