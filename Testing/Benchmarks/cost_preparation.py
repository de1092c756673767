"""What preparing cases costs: time and memory a case, for few and for many."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from cost_measuring import MIB, PeakMemory, in_own_process
from cost_results import Figure, Section

from tcurlora.cases.cached_case import cache_case
from tcurlora.cases.case import Case
from tcurlora.imaging.structures import Structure
from tcurlora.models.opening import load_base_model

SIZE = (64, 64, 64)


def measure(folder: Path, counts: tuple[int, ...]) -> Section:
    """Prepare as many cases as each count says, each time in a process of its own.

    Args:
        folder: for scans and what is made of them.
        counts: ascending.
    """
    rows = []
    for count in counts:
        first, again, peak = in_own_process(prepare, folder / str(count), count, returning_memory=True)
        rows.append(
            {"cases": count, "first, processor s a case": first, "cached, s a case": again, "peak, MiB": peak / MIB}
        )
    few, many = rows[0], rows[-1]
    time_name, peak_name = "first, processor s a case", "peak, MiB"
    return Section(
        "Preparation",
        [
            Figure(f"time a case, {counts[-1]} against {counts[0]} cases", many[time_name] / few[time_name], "", 1.2),
            Figure("cached against first", many["cached, s a case"] / many[time_name], "", 0.1),
            # A case of this size takes 2 MiB.
            Figure(
                f"peak memory of {counts[-1]} cases beyond {counts[0]}", many[peak_name] - few[peak_name], "MiB", 5.0
            ),
        ],
        rows,
    )


def prepare(folder: Path, count: int) -> tuple[float, float, int]:
    """Make cases, and prepare them twice; gives processor seconds a case for both, and the peak of memory."""
    base = load_base_model("hippocampus_t1_unetr")
    structures = [Structure("hippocampus", 1)]
    cases = [_make_case(folder, number) for number in range(count)]
    cache_case(_make_case(folder, count), structures, base.preprocessing, folder / "cache")  # loads libraries
    memory, seconds = PeakMemory(torch.device("cpu")), []
    for _ in range(2):
        started = time.process_time()
        for case in cases:
            cache_case(case, structures, base.preprocessing, folder / "cache")
        seconds.append((time.process_time() - started) / count)
    return seconds[0], seconds[1], memory.bytes() - memory.before


def _make_case(folder: Path, number: int) -> Case:
    folder.mkdir(parents=True, exist_ok=True)
    case = Case(f"case-{number}", folder / f"{number}.image.nrrd", folder / f"{number}.label.nrrd", str(number))
    voxels = np.random.default_rng(number).normal(100, 15, SIZE).astype(np.float32)
    for path, array in ((case.image, voxels), (case.label, (voxels > 110).astype(np.uint8))):
        sitk.WriteImage(sitk.GetImageFromArray(array), path)
    return case
