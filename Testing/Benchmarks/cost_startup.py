"""What starting the program costs: the help, and a segmentation before its first window."""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from cost_results import Figure, Section

BASE = "hippocampus_t1_unetr"


def measure(folder: Path, rounds: int) -> Section:
    """Start the program as a user does, in turns with the imports that it cannot do without.

    Args:
        folder: for a scan and its results.
        rounds: runs of each, of which the median counts.
    """
    scan = folder / "crop.nii.gz"
    sitk.WriteImage(sitk.GetImageFromArray(np.random.default_rng(0).normal(100, 15, (48, 48, 48))), scan)
    works = {
        "tcurlora --help": lambda: _whole("-m", "tcurlora", "--help"),
        "import torch, monai": lambda: _whole("-c", "import torch, monai"),
        "import torch": lambda: _whole("-c", "import torch"),
        "segment, until its first window": lambda: _until_first_window(scan, folder / "out.nii.gz"),
    }
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            taken[name].append(work())
    wall, processor = ({name: statistics.median(t[part] for t in taken[name]) for name in works} for part in (0, 1))
    rows = [{"process": name, "wall, s": wall[name], "processor, s": processor[name]} for name in works]
    segment = "segment, until its first window"
    return Section(
        "Start-up",
        [
            Figure("tcurlora --help, processor time", processor["tcurlora --help"], "s", 0.3),
            Figure("segment before its first window, processor time", processor[segment], "s", 3.0),
            Figure("the same against importing torch and MONAI", processor[segment] / processor["import torch, monai"]),
        ],
        rows,
    )


def _whole(*arguments: str) -> tuple[float, float]:
    """Wall and processor time of a process of Python."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _until_first_window(scan: Path, out: Path) -> tuple[float, float]:
    """The same until the program says that it begins with the first window; the rest is not waited for."""
    command = [sys.executable, "-m", "tcurlora", "segment", "--model", BASE, "--input", str(scan), "--out", str(out)]
    started = time.perf_counter()
    with subprocess.Popen(
        [*command, "--json"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout
        if not any(json.loads(line)["event"] == "progress" for line in process.stdout):
            raise RuntimeError("the segmentation ended before its first window")
        wall = time.perf_counter() - started
        # Fields 14 and 15 of the line, counted from after the name, which may hold spaces.
        fields = Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        process.kill()
    return wall, (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
