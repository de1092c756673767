"""Models of other programs on this computer: TotalSegmentator's, and those in nnUNet_results. They are only read."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tcurlora.models import nnunet_files

# TotalSegmentator's tasks by the numbers of their data sets.
TASKS = {
    8: "liver_vessels",
    117: "lung_vessels",
    150: "cerebral_bleed",
    258: "lung_vessels",
    260: "hip_implant",
    291: "total, organs",
    292: "total, vertebrae",
    293: "total, cardiac",
    294: "total, muscles",
    295: "total, ribs",
    297: "total --fast",
    298: "total --fastest",
    299: "body",
    300: "body --fast",
    315: "pleural_pericard_effusion",
    409: "brain_structures",
    570: "liver_segments",
    576: "liver_segments_mr",
    756: "vertebrae_mr",
    789: "kidney_cysts",
    831: "total_v3, organs",
    832: "total_v3, vertebrae",
    833: "total_v3, cardiac",
    834: "total_v3, muscles",
    835: "total_v3, ribs",
    836: "total_v3 --fast",
    837: "total_v3 --fastest",
    850: "total_mr, organs",
    851: "total_mr, muscles",
    852: "total_mr --fast",
    853: "total_mr --fastest",
    913: "lung_nodules",
}
TOTALSEGMENTATOR, RESULTS = "TotalSegmentator", "nnUNet_results"


def places() -> list[tuple[str, Path]]:
    """The folders that other programs keep their models in, by the program's name; they may not exist."""
    results = os.environ.get("nnUNet_results")  # noqa: SIM112 - nnU-Net's own spelling
    return [
        (TOTALSEGMENTATOR, nnunet_files.totalsegmentator_folder()),
        *([(RESULTS, Path(results))] if results else []),
    ]


def found_models() -> list[dict[str, Any]]:
    """Describe the trained 3D models of other programs whose weights are there, each once.

    Returns:
        For each what `nnunet_files.describe_trained` says, with `name`, `path` and `source`, the program's name. Those
        that cannot be used here, such as 2D models and cascades, are left out.
    """
    entries: list[dict[str, Any]] = []
    names: set[str] = set()
    for source, folder in _trained():
        described = nnunet_files.describe_trained(folder)
        if "problem" in described or not described["folds"]:
            continue
        name = nnunet_files.name_of(folder)
        if name in names:
            name = f"{name}-{folder.name.partition('__')[0]}"
        if name in names:
            continue  # the same trainer with other plans: its folder can still be named
        names.add(name)
        if source == TOTALSEGMENTATOR:
            described["title"] = _title(folder, described)
        entries.append({"name": name, **described, "path": str(folder), "source": source})
    return sorted(entries, key=lambda entry: (entry["source"] != TOTALSEGMENTATOR, entry["name"]))


def _trained() -> Iterator[tuple[str, Path]]:
    seen: set[Path] = set()
    for source, place in places():
        for folder in nnunet_files.trained_folders(place):
            resolved = folder.resolve()
            if resolved not in seen:
                seen.add(resolved)
                yield source, folder


def _title(folder: Path, described: dict[str, Any]) -> str:
    """The task that a model of TotalSegmentator serves, and its voxel size."""
    number = re.match(r"Dataset(\d+)_", folder.parent.name)
    task = TASKS.get(int(number[1]), "") if number else ""
    spacing = max(described["spacing"])
    return f"{TOTALSEGMENTATOR} {task or folder.parent.name} ({spacing:g} mm)"
