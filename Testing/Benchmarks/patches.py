"""Measure what a training patch costs, for scans of several sizes.

    python Testing/Benchmarks/patches.py --out Testing/Benchmarks/results/patches.json --machine ...

Only ratios within a run mean something on another computer: the time of a patch from each scan against that from the
smallest, and the time to list a scan's voxels, which is spent once a case. Everything runs in one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from record import measured

from tcurlora.cases.cached_case import CachedCase, list_voxels, save_case
from tcurlora.runtime.json_files import write_json
from tcurlora.training.patches import CutPatch, patch_transform

SIDES = (96, 200, 300, 400, 512)
PATCH = (96, 96, 96)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--machine", required=True, help="in words, such as 'one core of a server processor'")
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--sides", type=int, nargs="+", default=SIDES)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        made = {side: make_case(Path(folder) / str(side), side) for side in options.sides}
        times = measure({side: case for side, (case, _) in made.items()}, options.repeats)
    smallest = times[options.sides[0]]["patch_s"]
    columns = [
        {"title": "voxels of the scan"},
        {"title": "to list its voxels, once, s", "number": True, "digits": 2},
        {"title": "to cut a patch, s", "number": True, "digits": 4},
        {"title": "to cut and vary one, s", "number": True, "digits": 3},
        {"title": "against the smallest", "number": True, "digits": 2},
    ]
    rows = [
        [f"{side} x {side} x {side}", made[side][1], times[side]["cut_s"], times[side]["patch_s"], ratio]
        for side in options.sides
        for ratio in [times[side]["patch_s"] / smallest]
    ]
    content = measured(
        "Patches",
        "python Testing/Benchmarks/patches.py --out FILE --machine ...",
        options.machine,
        [0],
        f"patches of {PATCH[0]} x {PATCH[1]} x {PATCH[2]} voxels, medians of {options.repeats}",
        {"scans": {"columns": columns, "rows": rows}},
    )
    write_json(options.out, content)
    print(json.dumps(rows, indent=1))


def measure(cases: Mapping[int, CachedCase], repeats: int) -> dict[int, dict[str, float]]:
    """Median seconds to cut a patch from each case, and to cut and augment one; the cases take turns."""
    transforms = {"cut_s": CutPatch(PATCH), "patch_s": patch_transform(PATCH)}
    times: dict[int, dict[str, list[float]]] = {side: {name: [] for name in transforms} for side in cases}
    for seed in range(repeats + 1):
        for side, case in cases.items():
            for name, transform in transforms.items():
                transform.set_random_state(seed)
                started = time.perf_counter()
                transform(case)
                times[side][name].append(time.perf_counter() - started)
    # The first patch warms up.
    return {side: {name: round(median(v[1:]), 4) for name, v in of.items()} for side, of in times.items()}


def make_case(folder: Path, side: int) -> tuple[CachedCase, float]:
    """Write a cube with a structure in its middle, as preparing a case does; give the seconds of listing its voxels."""
    image = np.random.default_rng(0).random((1, side, side, side), dtype=np.float32)
    label = np.zeros((side, side, side), np.uint8)
    inside = slice(side // 2 - 20, side // 2 + 20)
    label[inside, inside, inside] = 1
    started = time.perf_counter()
    list_voxels(label)
    listing = time.perf_counter() - started
    return save_case("cube", image, label, folder, "cube"), listing


if __name__ == "__main__":
    main()
