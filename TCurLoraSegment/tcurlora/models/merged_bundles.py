"""Merge: adapter and base become one plain MONAI bundle, which MONAI runs without this package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch

from tcurlora.errors import InputError
from tcurlora.imaging.structures import Structure
from tcurlora.method.channels import channel_groups
from tcurlora.models.adapter_files import (
    REPORT,
    WEIGHTS,
    load_adapter,
    new_folder,
    read_adapter_config,
    read_adapter_structures,
    require_absent,
)
from tcurlora.models.base_model import Activation, BaseModel, Windowing
from tcurlora.models.bundle_config import has_expression
from tcurlora.models.merged_nnunet import merge_into_nnunet
from tcurlora.models.monai_bundle import MonaiBundle, open_bundle, write_bundle
from tcurlora.models.monai_networks import NETWORKS, as_config
from tcurlora.models.monai_preprocessing import MonaiPreprocessing
from tcurlora.models.monai_transforms import MonaiTransforms
from tcurlora.models.nnunet import Nnunet
from tcurlora.runtime.hashing import sha256_of_file
from tcurlora.runtime.json_files import read_object

# What describes the base and stays true of the merged model.
INHERITED = (
    "authors",
    "copyright",
    "licence",
    "license",
    "data_source",
    "data_type",
    "intended_use",
    "references",
    "resampling",
)


def merge_adapter(adapter_folder: Path, out: Path, base: BaseModel) -> None:
    """Write adapter and base as one MONAI bundle, or as a trained nnU-Net where the base is one.

    Args:
        adapter_folder: the adapter.
        out: the bundle's folder; must not exist.
        base: the base model that the adapter was made for.

    Raises:
        InputError: when the adapter is damaged or was made for another base, its layout does not fit a network that
            MONAI can make from its arguments, or `out` exists.
        TCurLoraError: when the bundle cannot be written.
    """
    require_absent(out)
    if isinstance(base, Nnunet):
        merge_into_nnunet(adapter_folder, out, base)
        return
    if not isinstance(base, MonaiBundle) or not isinstance(base.preprocessing, MonaiPreprocessing | MonaiTransforms):
        raise InputError(
            f"'{base.name}' is a {base.kind}, whose adapters cannot be merged into a MONAI bundle.",
            "Segment with the adapter as it is.",
            "not_a_bundle",
        )
    model = load_adapter(base.build(), adapter_folder)
    structures = read_adapter_structures(adapter_folder)
    channels = [channel.name for channel in model.config.channels or ()] or list(base.channels)
    name = str(read_adapter_config(adapter_folder).get("name") or adapter_folder.name)
    outputs = NETWORKS[base.network_def["_target_"]].outputs
    network_def = as_config({**base.network_def, outputs: len(channels)})
    origin = {
        "adapter": {"name": name, "sha256": sha256_of_file(adapter_folder / WEIGHTS)},
        "base_model": {"name": base.name, "sha256": base.sha256},
    }
    metadata = _metadata(name, base, channels, structures, origin)
    if has_expression(metadata):
        raise InputError(
            f"The adapter '{adapter_folder.name}' or its base model has a name or a text that MONAI would execute.",
            "Texts in them must not begin with '$', '@' or '%'.",
            "expression",
        )
    configs = {
        "metadata": metadata,
        "inference": inference_config(
            network_def, base.preprocessing, base.windows, channels, structures, base.activation
        ),
    }
    with new_folder(out) as folder:
        card = _card(name, base, structures, origin, adapter_folder)
        write_bundle(folder, configs, card, model.merged().state_dict())
        # A bundle that does not load again must not appear.
        open_bundle(folder).build()


def inference_config(
    network_def: Mapping[str, Any],
    preprocessing: MonaiPreprocessing | MonaiTransforms,
    windows: Windowing,
    channels: Sequence[str],
    structures: Sequence[Structure],
    activation: Activation = "softmax",
) -> dict[str, Any]:
    """Make configs/inference.json, which `python -m monai.bundle run` takes as it is.

    MONAI blends the logits of overlapping windows, as this package does with bundles of MONAI's, but not with models
    that were trained with its own resampling; of those it blends the probabilities.

    Args:
        network_def: class and arguments of the network.
        preprocessing: what the network expects.
        windows: how the network is run over a scan.
        channels: name of each output channel; the probabilities of channels of one name are added.
        structures: with the label values that are written.
        activation: of classes, or of regions, which MONAI writes as one volume for each.
    """
    return {
        "imports": ["$import glob", "$import numpy as np", "$import torch"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/images'",
        "output_dir": "$@bundle_root + '/eval'",
        "datalist": "$sorted(glob.glob(@dataset_dir + '/*.nii*'))",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": dict(network_def),
        "network": "$@network_def.to(@device)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                _step("LoadImaged"),
                _step("EnsureChannelFirstd"),
                *_before(preprocessing),
            ],
        },
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': path} for path in @datalist]",
            "transform": "@preprocessing",
        },
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": list(windows.roi_size),
            "sw_batch_size": 1,
            "overlap": windows.overlap,
            "mode": windows.mode,
            "sigma_scale": windows.sigma_scale,
            "padding_mode": windows.padding_mode,
        },
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                *_behind(preprocessing, channels, structures, activation),
                _step(
                    "SaveImaged",
                    "pred",
                    output_dir="@output_dir",
                    output_postfix="seg",
                    output_dtype="$np.int32",
                    separate_folder=False,
                    resample=False,
                ),
            ],
        },
        "handlers": [
            {
                "_target_": "CheckpointLoader",
                "load_path": "$@bundle_root + '/models/model.pt'",
                "load_dict": {"model": "@network"},
                "map_location": "@device",
            }
        ],
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": "@handlers",
        },
        "run": ["$@evaluator.run()"],
    }


def _before(preprocessing: MonaiPreprocessing | MonaiTransforms) -> list[dict[str, Any]]:
    """The steps from a scan to the network."""
    if isinstance(preprocessing, MonaiTransforms):
        more = {"CropForeground": {"source_key": "image"}}
        return [_step(f"{name}d", **more.get(name, {}), **arguments) for name, arguments in preprocessing.steps]
    steps = [_step("Orientationd", axcodes="RAS")]
    if preprocessing.spacing is not None:
        steps.append(_step("Spacingd", pixdim=list(preprocessing.spacing), mode="bilinear"))
    return steps + [_step(f"{name}d", **arguments) for name, arguments in preprocessing.intensity]


def _behind(
    preprocessing: MonaiPreprocessing | MonaiTransforms,
    channels: Sequence[str],
    structures: Sequence[Structure],
    activation: Activation,
) -> list[dict[str, Any]]:
    """The steps from the network's output to labels on the scan, in the order in which the base does them."""
    back = preprocessing.back if isinstance(preprocessing, MonaiTransforms) else "probabilities"
    largest = isinstance(preprocessing, MonaiTransforms) and preprocessing.largest_only
    groups = channel_groups(channels, [structure.name for structure in structures])
    wanted = groups if activation == "softmax" else groups[1:]
    function: dict[str, Any] = {activation: True}
    if wanted != [[i] for i in range(len(channels))]:
        joined = ", ".join(f"x[{group}].{'sum(0)' if activation == 'softmax' else 'amax(0)'}" for group in wanted)
        function["other"] = f"$lambda x: torch.stack([{joined}])"
    activate = _step("Activationsd", "pred", **function)
    nearest = back == "labels"
    invert = _step("Invertd", "pred", transform="@preprocessing", orig_keys="image", nearest_interp=nearest)
    decide = _step("AsDiscreted", "pred", **({"argmax": True} if activation == "softmax" else {"threshold": 0.5}))
    keep = [_step("KeepLargestConnectedComponentd", "pred")] if largest else []
    values = [structure.value for structure in structures]
    classes = list(range(1, len(values) + 1))
    renumber = []
    if activation == "softmax" and values != classes:
        renumber = [_step("MapLabelValued", "pred", orig_labels=classes, target_labels=values)]
    if back == "labels":
        return [activate, decide, *keep, invert, *renumber]
    return [*([activate, invert] if back == "probabilities" else [invert, activate]), decide, *keep, *renumber]


def _step(target: str, keys: str = "image", /, **arguments: Any) -> dict[str, Any]:
    return {"_target_": target, "keys": keys, **arguments}


def _metadata(
    name: str,
    base: BaseModel,
    channels: Sequence[str],
    structures: Sequence[Structure],
    origin: Mapping[str, Any],
) -> dict[str, Any]:
    base_input = base.metadata.get("network_data_format", {}).get("inputs", {}).get("image", {})
    roi = list(base.windows.roi_size)
    pred = {
        "type": "image",
        "format": "segmentation",
        "num_channels": len(channels),
        "spatial_shape": roi,
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": True,
        "channel_def": {str(i): channel for i, channel in enumerate(channels)},
    }
    return {
        "name": name,
        "version": "1.0.0",
        "changelog": {"1.0.0": "adapter merged into its base model"},
        "monai_version": monai.__version__,
        "pytorch_version": torch.__version__.partition("+")[0],
        "numpy_version": np.__version__,
        "required_packages_version": {"nibabel": "5.0.0", "pytorch-ignite": "0.4.11"},
        "task": f"Segmentation of {', '.join(s.name for s in structures)}",
        "description": f"{base.name}, adapted to a site's own scans with a tensor-CUR low-rank adapter",
        **{key: base.metadata[key] for key in INHERITED if key in base.metadata},
        "merged_from": dict(origin),
        "structures": [structure.to_dict() for structure in structures],
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": "magnitude",
                    "dtype": "float32",
                    "value_range": [],
                    "is_patch_data": True,
                    "channel_def": {str(i): "image" for i in range(base.in_channels)},
                    **base_input,
                    "num_channels": base.in_channels,
                    "spatial_shape": roi,
                }
            },
            "outputs": {"pred": pred},
        },
    }


def _card(
    name: str, base: BaseModel, structures: Sequence[Structure], origin: Mapping[str, Any], adapter_folder: Path
) -> str:
    rows = "\n".join(f"| {structure.value} | {structure.name} |" for structure in structures)
    licence = base.metadata.get("licence") or base.metadata.get("license") or "see the base model"
    return f"""# {name}

A segmentation model as a plain MONAI bundle: the base model {base.name}, adapted to a site's own scans with a
tensor-CUR low-rank adapter that has been merged into its weights.

| label | structure |
|---|---|
{rows}

{_summary(adapter_folder)}

## Use

With MONAI, nibabel and pytorch-ignite installed:

    python -m monai.bundle run --config_file configs/inference.json --bundle_root . --dataset_dir SCANS --output_dir OUT

or `tcurlora segment --model FOLDER --input scan.nii.gz --out scan.seg.nrrd`.
Channels of equal name in `channel_def` vote for one structure together: their probabilities are added.

## Origin

- base model: {base.name}, SHA-256 {origin["base_model"]["sha256"]}
- adapter: {name}, SHA-256 {origin["adapter"]["sha256"]}
- licence of the base model: {licence}

Not a medical device. Check every result before use.
"""


def _summary(adapter_folder: Path) -> str:
    """What the adapter's report says in its first line."""
    try:
        return str(read_object(adapter_folder / REPORT).get("summary") or "")
    except (OSError, ValueError):
        return ""
