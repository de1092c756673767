"""What an adapter costs on disk, and what it costs to switch to it on a base that is loaded."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import torch
from cost_results import Figure, Section

from tcurlora.imaging.structures import Structure
from tcurlora.inference.segmenter_cache import SegmenterCache
from tcurlora.method.channels import Channel
from tcurlora.method.head import find_head
from tcurlora.method.model import TensorCurModel
from tcurlora.models.adapter_files import WEIGHTS, save_adapter
from tcurlora.models.opening import load_base_model
from tcurlora.training.presets import preset


def measure(folder: Path, rounds: int) -> Section:
    """Save adapters of the small model and open one after the other.

    Args:
        folder: for the adapters.
        rounds: switches, of which the median counts.
    """
    base = load_base_model("hippocampus_t1_unetr")
    network = base.build()
    head = find_head(network, torch.zeros(1, 1, *base.windows.roi_size), len(base.channels))
    channels = tuple(Channel(name, number) for number, name in enumerate(base.channels))
    structures = [Structure(name, value).to_dict() for value, name in enumerate(base.channels) if value]
    details = {"base_model": {"name": base.name, "sha256": base.sha256}, "structures": structures}
    sizes = {}
    for method in ("compact", "paper"):
        model = TensorCurModel(network, preset(method, network, head=head, channels=channels))
        for number in range(rounds + 1 if method == "compact" else 1):
            save_adapter(model, folder / f"{method}-{number}", details)
        sizes[method] = (folder / f"{method}-0" / WEIGHTS).stat().st_size / 1024
    cache = SegmenterCache()
    cache.open(str(folder / "compact-0"), device="cpu")
    new: list[float] = []
    known: list[float] = []
    for number in range(1, rounds + 1):
        for times, adapter in ((new, f"compact-{number}"), (known, "compact-0")):
            started = time.process_time()
            cache.open(str(folder / adapter), device="cpu")
            times.append(1000 * (time.process_time() - started))
    return Section(
        "Adapters of the shipped model",
        [
            Figure("compact, on disk", sizes["compact"], "KiB"),
            Figure("paper, on disk", sizes["paper"], "KiB"),
            Figure("base, on disk", base.weights.stat().st_size / 1024, "KiB"),
            Figure("switch to an adapter used before, processor time", statistics.median(known), "ms", 50.0),
            Figure("switch to an adapter not used before, processor time", statistics.median(new), "ms", 50.0),
        ],
    )
