"""What segmenting costs: an adapter beside its base, and a whole brain beside MONAI's sliding window."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from cost_measuring import MIB, PeakMemory, Times, in_own_process, in_turns
from cost_results import Figure, Section
from monai.inferers import sliding_window_inference
from torch import Tensor, nn

from tcurlora.inference.segmenter import Segmenter
from tcurlora.method.head import find_head
from tcurlora.method.model import TensorCurModel
from tcurlora.models.base_model import BaseModel
from tcurlora.models.opening import load_base_model
from tcurlora.training.presets import preset

BRAIN = (182, 218, 182)
PART = (72, 128, 72)


def measure(device: torch.device, rounds: int, quick: bool) -> Section:
    """Segment with the shipped model.

    Args:
        device: where.
        rounds: of one window with base and adapter.
        quick: a part of the brain, and memory of up to two scans instead of four.
    """
    section = Section("Inference, shipped model")
    _one_window(section, device, rounds)
    _whole_brain(section, device, PART if quick else BRAIN)
    counts = (1, 2) if quick else (1, 2, 4)
    peaks = {count: in_own_process(memory, count, str(device), returning_memory=True) / MIB for count in counts}
    many = max(peaks)
    section.figures.append(Figure(f"peak memory of {many} scans against 1", peaks[many] / peaks[1], "", 1.05))
    return section


def brain(shape: tuple[int, int, int]) -> np.ndarray:
    """Smooth noise in an ellipsoid, zero around it as in a scan without its skull; (1, x, y, z)."""
    grid = np.meshgrid(*(np.linspace(-1, 1, size, dtype=np.float32) for size in shape), indexing="ij")
    noise = np.random.default_rng(0).normal(0, 1, shape).astype(np.float32)
    inside = sum(axis**2 for axis in grid) < 0.8
    return ((noise + np.sin(9 * grid[0]) + np.cos(7 * grid[1])) * inside)[None]


def memory(scans: int, device_name: str) -> int:
    """Peak memory of segmenting some scans one after the other; for a process of its own."""
    device = torch.device(device_name)
    segmenter, array = _segmenter(load_base_model("hippocampus_t1_unetr"), device), brain(PART)
    during = PeakMemory(device)
    for _ in range(scans):
        segmenter.probabilities(array)
    return during.bytes() - during.before


def _segmenter(base: BaseModel, device: torch.device) -> Segmenter:
    return Segmenter.of_base(base, device)


def _one_window(section: Section, device: torch.device, rounds: int) -> None:
    base = load_base_model("hippocampus_t1_unetr")
    network = base.build().to(device).eval()
    window = torch.randn(1, 1, *base.windows.roi_size).to(device)
    head = find_head(network, window, len(base.channels))
    model = TensorCurModel(network, preset("compact", network, head=head)).to(device).eval()
    for core in model.cores():
        nn.init.normal_(core, std=0.01)
    merged = model.merged().eval()

    def run(module: nn.Module) -> Callable[[], Tensor]:
        def once() -> Tensor:
            with torch.inference_mode():
                result: Tensor = module(window)
            return result

        return once

    times = in_turns({"base": run(network), "merged": run(merged), "unmerged": run(model)}, rounds, device)
    for name in ("merged", "unmerged"):
        goal = 1.05 if name == "merged" else None
        ratio = times[name].processor_ratio_to(times["base"])
        section.figures.append(Figure(f"{name} adapter against base, processor time", ratio, "", goal))


def _whole_brain(section: Section, device: torch.device, shape: tuple[int, int, int]) -> None:
    base = load_base_model("hippocampus_t1_unetr")
    segmenter, array = _segmenter(base, device), brain(shape)
    # In the memory layout that MONAI makes it in; ours is another.
    network = base.build().to(device)
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]

    def as_in_examples(overlap: float, mode: str) -> np.ndarray:
        with torch.inference_mode():
            result = sliding_window_inference(
                torch.from_numpy(array)[None].to(device),
                base.windows.roi_size,
                4,
                lambda windows: network(windows).softmax(1),
                overlap=overlap,
                mode=mode,
            )
        probabilities: np.ndarray = result[0].cpu().numpy()
        return probabilities

    works = {
        "ours": lambda: segmenter.probabilities(array),
        "MONAI, our overlap and weights": lambda: as_in_examples(segmenter.windows.overlap, "gaussian"),
        "MONAI, its defaults": lambda: as_in_examples(0.25, "constant"),
    }
    results: dict[str, np.ndarray] = {}

    def keep(name: str) -> Callable[[], None]:
        return lambda: results.update({name: works[name]()})

    times = in_turns({name: keep(name) for name in works}, rounds=1, device=device)
    for name, taken in times.items():
        voxels = " x ".join(map(str, shape))
        row = {
            "segmentation": name,
            "voxels": voxels,
            "wall, s": taken.seconds,
            "processor, s": taken.processor_seconds,
        }
        section.rows.append(row)
    ours, same, default = (times[name] for name in works)
    ratio_to = Times.ratio_to if device.type == "cuda" else Times.processor_ratio_to
    difference = float(np.abs(results["ours"] - results["MONAI, our overlap and weights"]).max())
    section.figures += [
        Figure("ours against MONAI's sliding window, same overlap and weights", ratio_to(ours, same), "", 0.8),
        Figure("ours against MONAI's sliding window, its defaults", ratio_to(ours, default)),
        Figure("largest difference in probability, same overlap and weights", difference, "", 1e-4),
    ]
