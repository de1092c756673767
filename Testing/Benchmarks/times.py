"""Time what a user waits for, as whole processes: help, segment, adapt with and without cross-validation, demo; and
in a warm worker: a crop, and the switch to another adapter of a base that is loaded.

    python Testing/Benchmarks/times.py --data ../shared/data --out DIR

Adaptation and segmentation use the first draw of `site_shift.py`. Times depend on the machine and on what else it does;
the table says how many processors torch used.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from site_shift import draw_subjects, write_datalist

from tcurlora.cases.dataset import find_cases
from tcurlora.inference.segmenter_cache import SegmenterCache

BASE = "hippocampus_t1_unetr"


def timed(*arguments: str) -> float:
    """Run the command once and return its wall time in seconds."""
    started = time.monotonic()
    subprocess.run([sys.executable, "-m", "tcurlora", *arguments], check=True, capture_output=True)
    return time.monotonic() - started


def warm(model: str, scan: str, out: Path, runs: int) -> float:
    """Median time of a request to a worker that has done one already."""
    command = [sys.executable, "-m", "tcurlora", "serve"]
    seconds = []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdin and worker.stdout
        for run in range(runs + 1):
            arguments = ["--model", model, "--input", scan, "--out", str(out / f"warm-{run}.seg.nrrd")]
            started = time.monotonic()
            worker.stdin.write(json.dumps({"id": str(run), "command": "segment", "arguments": arguments}) + "\n")
            worker.stdin.flush()
            end = next(event for line in worker.stdout if (event := json.loads(line))["event"] == "end")
            assert end["exit_code"] == 0
            seconds.append(time.monotonic() - started)
        worker.stdin.close()
    return statistics.median(seconds[1:])


def switches(adapter: str, copy: Path, runs: int) -> tuple[float, float]:
    """Median times to switch to an adapter that has been open before, and to one that has not, on a loaded base."""
    again: list[float] = []
    anew: list[float] = []
    cache = SegmenterCache()
    cache.open(adapter)
    for run in range(runs):
        other = shutil.copytree(adapter, copy / f"adapter-{run}")
        for times, model in ((anew, str(other)), (again, adapter)):
            started = time.monotonic()
            cache.open(model)
            times.append(time.monotonic() - started)
    return statistics.median(again), statistics.median(anew)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--runs", type=int, default=5, help="runs of the short commands, of which the median counts")
    args = parser.parse_args()
    args.out.mkdir(parents=True)
    cases = find_cases(args.data / "ixi_hh_hippocampus_1mm").cases
    chosen = draw_subjects(cases, 0)
    datalist, adapter = args.out / "datalist.json", str(args.out / "adapter")
    write_datalist(datalist, [case for case in cases if case.subject in chosen])
    scan = str(next(case.image for case in cases if case.subject not in chosen))
    adapt = ("adapt", "--base", BASE, "--data", str(datalist))
    times = {"help": statistics.median(timed("--help") for _ in range(args.runs))}
    times["adapt, 8 crops, no cross-validation"] = timed(*adapt, "--folds", "0", "--out", adapter)
    segment = ("segment", "--model", adapter, "--input", scan, "--out")
    times["segment one crop"] = statistics.median(
        timed(*segment, str(args.out / f"{run}.seg.nrrd")) for run in range(args.runs)
    )
    times["segment one crop, warm worker"] = warm(adapter, scan, args.out, args.runs)
    again, anew = switches(adapter, args.out, args.runs)
    times["switch to an adapter used before"], times["switch to an adapter not used before"] = again, anew
    times["demo"] = timed("demo", "--out", str(args.out / "demo"))
    times["adapt, 8 crops, 3-fold cross-validation"] = timed(*adapt, "--out", str(args.out / "validated"))
    threads = torch.get_num_threads()
    (args.out / "times.json").write_text(json.dumps({"threads": threads, **times}, indent=1) + "\n", encoding="utf-8")
    print(f"| command | seconds, {threads} threads |\n|---|---:|")
    print("\n".join(f"| {name} | {seconds:.{1 if seconds >= 1 else 3}f} |" for name, seconds in times.items()))


if __name__ == "__main__":
    main()
