"""Measure the memory that a model of 117 classes takes for a whole body, beside what is told of it beforehand.

    python Testing/Benchmarks/memory.py --machine ... [--size 512 512 600] [--spacing 0.8 0.8 1.0]

The network is one convolution, so that this takes minutes: its share of the memory is small, while scan, grid, scores
of all classes and labels are those of a real model. Linux only, because of how the highest mark is read.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from cost_measuring import PeakMemory, in_own_process
from record import measured
from torch import Tensor, nn

from tcurlora.imaging.structures import Structure
from tcurlora.inference.expected_memory import expected_bytes
from tcurlora.inference.segmenter import Segmenter
from tcurlora.models.base_model import Windowing
from tcurlora.models.monai_preprocessing import MonaiPreprocessing
from tcurlora.runtime.json_files import write_json

CPU = torch.device("cpu")
CLASSES = 117
WINDOW = 128
MODEL_SPACING = 1.5
LIMIT_GB = 8.0
RESULT = Path(__file__).resolve().parent / "results" / "memory.json"


class OneConvolution(nn.Module):
    """As many channels as a model of the whole body has."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv3d(1, CLASSES + 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(x)
        return result


def whole_body(size: tuple[int, int, int], spacing: tuple[float, float, float]) -> sitk.Image:
    """Return a cylinder of noise in air, as a CT of 16 bits."""
    across = np.hypot(*np.meshgrid(*(np.linspace(-1, 1, n) for n in size[1::-1]), indexing="ij")) < 0.7
    random = np.random.default_rng(0)
    voxels = np.full(size[::-1], -1000, np.int16)
    for plane in voxels:
        plane[across] = random.normal(40, 200, int(across.sum()))
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing(spacing)
    return image


def measure(size: tuple[int, int, int], spacing: tuple[float, float, float], blend: Any) -> dict[str, Any]:
    """Segment one scan in this process, whose memory nothing else has touched."""
    torch.manual_seed(0)
    names = [f"structure {number}" for number in range(1, CLASSES + 1)]
    structures = [Structure(name, number) for number, name in enumerate(names, start=1)]
    body = ("ScaleIntensityRange", {"a_min": -1000, "a_max": 1000, "b_min": -1, "b_max": 1, "clip": True})
    segmenter = Segmenter(
        OneConvolution(),
        ("background", *names),
        structures,
        MonaiPreprocessing((MODEL_SPACING,) * 3, (body,)),
        Windowing((WINDOW,) * 3, blend=blend),
        CPU,
    )
    image = whole_body(size, spacing)
    expected = expected_bytes(segmenter, image)
    peak, started = PeakMemory(CPU), time.monotonic()
    segmenter.segment(image)
    return {
        "blend": blend,
        "seconds": round(time.monotonic() - started),
        "peak_gb": round(peak.bytes() / 1e9, 2),
        "told_gb": round(expected.memory / 1e9, 2),
        "file_gb": round(expected.disk / 1e9, 2),
    }


def content(runs: Sequence[Mapping[str, Any]], size: Sequence[int], machine: str) -> dict[str, Any]:
    """Make the content of the result file."""
    columns = [
        {"title": "averaged"},
        {"title": "scan, voxels"},
        {"title": "peak memory, GB", "number": True, "digits": 1},
        {"title": "told beforehand, GB", "number": True, "digits": 1},
        {"title": "temporary file, GB", "number": True, "digits": 1},
    ]
    voxels = " x ".join(map(str, size))
    keys = ("peak_gb", "told_gb", "file_gb")
    rows = [[run["blend"], voxels, *(run[key] for key in keys)] for run in runs]
    return measured(
        "Memory of many classes",
        "python Testing/Benchmarks/memory.py --machine ...",
        machine,
        [0],
        f"{CLASSES} structures at {MODEL_SPACING} mm, windows of {WINDOW} voxels a side, one convolution as network",
        {"main": {"columns": columns, "rows": rows}},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=3, default=(512, 512, 600))
    parser.add_argument("--spacing", type=float, nargs=3, default=(0.8, 0.8, 1.0), help="in mm")
    parser.add_argument("--blend", nargs="+", default=["logits"], choices=["logits", "probabilities"])
    parser.add_argument("--machine", required=True, help="in words, such as 'two cores of a server processor'")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    size, spacing = tuple(options.size), tuple(options.spacing)
    runs = [in_own_process(measure, size, spacing, blend) for blend in options.blend]
    write_json(options.out, content(runs, size, options.machine))
    print(json.dumps(runs, indent=1))
    if any(run["peak_gb"] > LIMIT_GB for run in runs):
        raise SystemExit(f"more than {LIMIT_GB:g} GB")


if __name__ == "__main__":
    main()
