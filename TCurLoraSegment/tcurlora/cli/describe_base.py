"""Describe a base model: what it segments, and which stacks of weights can be adapted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tcurlora.errors import InputError
from tcurlora.method.model import TensorCurModel
from tcurlora.method.stacks import find_stacks
from tcurlora.models.base_model import BaseModel
from tcurlora.models.catalogue import list_models
from tcurlora.models.opening import load_base_model
from tcurlora.runtime.plain_text import table, times
from tcurlora.training.presets import PRESETS, preset
from tcurlora.training.target_site import head_of


def describe_base(name_or_folder: str | Path) -> dict[str, Any]:
    """Collect what a base model is, its stacks, and how many numbers each method trains in it.

    Raises:
        InputError: when it is no base model.
    """
    base = load_base_model(name_or_folder)
    network = base.build()
    head = head_of(base, network)
    trained: dict[str, dict[str, Any]] = {}
    for method in PRESETS:
        try:
            trained[method] = TensorCurModel(network, preset(method, network, head=head)).trained_counts()
        except InputError as error:
            trained[method] = {"not_available": str(error)}
    return {
        "name": base.name,
        "description": base.metadata.get("description", ""),
        "version": base.metadata.get("version", ""),
        "licence": base.metadata.get("licence", base.metadata.get("license", "")),
        "kind": base.kind,
        "channels": list(base.channels),
        "input_channels": list(base.input_channels),
        "regions": base.activation == "sigmoid",
        "structures": base.structures,
        "spacing": None if base.preprocessing.spacing is None else list(base.preprocessing.spacing),
        "origin": _origin(base),
        "network": base.network_name,
        "in_channels": base.in_channels,
        "preprocessing": {**base.preprocessing.to_dict(), "roi_size": list(base.windows.roi_size)},
        "weights": base.weights.name,
        "sha256": base.sha256,
        "numbers": sum(p.numel() for p in network.parameters()),
        "stacks": [
            {"kind": s.kind, "shape": list(s.shape), "taps": s.taps, "slices": [str(part) for part in s.slices]}
            for s in find_stacks(network, kernels="taps")
        ],
        "trained": trained,
    }


def _origin(base: BaseModel) -> str:
    """Where the model comes from, as `list_models` says it; its folder for one that is not among them."""
    for entry in list_models():
        if entry["on_disk"] and Path(entry["path"]).resolve() == base.folder.resolve():
            return str(entry["origin"])
    return str(base.folder)


def describe_base_in_words(description: Mapping[str, Any]) -> str:
    """Lay out `describe_base` for the terminal."""
    spacing = description["preprocessing"]["spacing"]
    lines = [
        f"{description['name']} {description['version']}  {description['description']}".strip(),
        f"Kind: {description['kind']}, {description['origin']}",
        f"Structures: {', '.join(description['structures'])}"
        + (", which may overlap" if description["regions"] else ""),
        f"Input channels: {', '.join(description['input_channels'])}",
        f"Network: {description['network']}, {description['numbers']:,} numbers, "
        f"window {times(description['preprocessing']['roi_size'])} voxels"
        + (f" of {times(spacing)} mm" if spacing else ""),
        f"Licence: {description['licence']}",
        f"SHA-256: {description['sha256']}",
        "",
        "Stacks (weights of equal shape) that can be adapted:",
    ]
    rows = [
        [
            s["kind"],
            times(s["shape"]),
            str(s["taps"]),
            str(len(s["slices"])),
            s["slices"][0] + (" ..." if len(s["slices"]) > 1 else ""),
        ]
        for s in description["stacks"]
    ]
    lines.append(table(["kind", "out x in", "taps", "layers", "first"], rows))
    lines += ["", "Numbers that each method trains at its usual rank, for the structures above:"]
    lines += [
        f"  {method}: {counts['not_available'] if 'not_available' in counts else format(counts['total'], ',')}"
        for method, counts in description["trained"].items()
    ]
    return "\n".join(lines)
