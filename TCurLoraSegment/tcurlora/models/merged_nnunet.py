"""Merge: an adapter and its nnU-Net become one trained model again, which nnU-Net runs without this package."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tcurlora.errors import InputError
from tcurlora.imaging.structures import BACKGROUND, Structure
from tcurlora.method.channels import Channel, channel_groups
from tcurlora.method.head import laid_out
from tcurlora.models.adapter_files import (
    load_adapter,
    new_folder,
    read_adapter_config,
    read_adapter_structures,
)
from tcurlora.models.nnunet import Nnunet, network_weights, open_nnunet, read_checkpoint, whole_network
from tcurlora.models.nnunet_files import CHECKPOINT, DATASET, PLANS, SETTINGS, model_name

FOLD = "fold_0"


def merge_into_nnunet(adapter_folder: Path, out: Path, base: Nnunet) -> None:
    """Write adapter and base as a trained model of nnU-Net: OUT/TRAINER__PLANS__CONFIGURATION.

    Its labels are the site's, numbered from 1 in the order of their values, because nnU-Net writes the number of the
    output channel.

    Args:
        adapter_folder: the adapter.
        out: must not exist.
        base: the nnU-Net that the adapter was made for.

    Raises:
        InputError: when the adapter is damaged or was made for another base, or several output channels vote for one
            of its structures, which nnU-Net cannot add up.
        TCurLoraError: when it cannot be written.
    """
    model = load_adapter(base.build(), adapter_folder)
    structures = sorted(read_adapter_structures(adapter_folder), key=lambda structure: structure.value)
    channels = list(model.config.channels or ()) or [
        Channel(channel, number) for number, channel in enumerate(base.channels)
    ]
    order = _order(channels, structures, base, adapter_folder.name)
    name = model_name(str(read_adapter_config(adapter_folder).get("name") or adapter_folder.name), "3d_fullres")
    checkpoint = read_checkpoint(base.weights)
    state = _state(base, model.merged().state_dict(), network_weights(checkpoint, base.weights), channels, order)
    plans = {**base.trained.plans, "dataset_name": name}
    dataset = _dataset_json(base, structures)
    content = {
        "network_weights": state,
        "optimizer_state": {},
        "grad_scaler_state": None,
        "logging": {},
        "_best_ema": None,
        "current_epoch": 0,
        "init_args": {
            "plans": plans,
            "configuration": base.trained.configuration,
            "fold": 0,
            "dataset_json": dataset,
            "device": torch.device("cpu"),
        },
        "trainer_name": checkpoint.get("trainer_name") or base.trained.trainer or "nnUNetTrainer",
        "inference_allowed_mirroring_axes": base.mirror_axes or None,
    }
    with new_folder(out) as folder:
        inside = folder / base.trained.folder.resolve().name
        (inside / FOLD).mkdir(parents=True)
        settings = {"orientation": base.trained.orientation}
        for file, values in ((PLANS, plans), (DATASET, dataset), (SETTINGS, settings)):
            (inside / file).write_text(json.dumps(values, indent=4, ensure_ascii=False) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(_card(name, base, structures, inside.name), encoding="utf-8")
        buffer = io.BytesIO()  # torch's own writer reports a full disk as a bare RuntimeError
        torch.save(content, buffer)
        (inside / FOLD / CHECKPOINT).write_bytes(buffer.getbuffer())
        # A model that does not load again must not appear.
        open_nnunet(folder).build()


def _order(channels: Sequence[Channel], structures: Sequence[Structure], base: Nnunet, adapter: str) -> list[int]:
    """The adapted network's channels in the order in which nnU-Net needs them: one for each class."""
    groups = channel_groups([channel.name for channel in channels], [structure.name for structure in structures])
    classes = groups if base.activation == "softmax" else groups[1:]
    shared = [index for index, group in enumerate(classes) if len(group) != 1]
    if shared:
        names = (
            [BACKGROUND, *(s.name for s in structures)]
            if base.activation == "softmax"
            else [s.name for s in structures]
        )
        raise InputError(
            f"In the adapter '{adapter}' {len(classes[shared[0]])} output channels vote for '{names[shared[0]]}', "
            "and nnU-Net cannot add up their probabilities.",
            "Segment with the adapter as it is; or make one that matches each of the base's structures with one of "
            "yours (--map).",
            "joined_channels",
        )
    return [group[0] for group in classes]


def _state(
    base: Nnunet,
    merged: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    channels: Sequence[Channel],
    order: Sequence[int],
) -> dict[str, Tensor]:
    """The weights under all names that nnU-Net knows them by.

    Args:
        base: the nnU-Net.
        merged: weights of the adapted network.
        own: the base's weights, with the heads for deep supervision, which an adapted network does without.
        channels: of the adapted network.
        order: of these in the result.
    """
    network = whole_network(base.trained, len(order))
    wanted = dict(network.named_parameters()) | dict(network.named_buffers())
    last = max(int(name.split(".")[2]) for name in wanted if name.startswith("decoder.seg_layers."))
    weights: dict[str, Tensor] = {}
    for name in wanted:
        if name.startswith(f"decoder.seg_layers.{last}."):
            weights[name] = merged[name][list(order)]
        elif name.startswith("decoder.seg_layers.") and name in own:
            weights[name] = laid_out(own[name], channels, is_bias=name.endswith(".bias"))[list(order)]
        elif name in merged:
            weights[name] = merged[name]
    network.load_state_dict(weights, strict=False)  # under each of its other names a layer is the same one
    # The storages of a layer are shared among its names, in the file too.
    return {name: tensor.detach() for name, tensor in network.state_dict().items()}


def _dataset_json(base: Nnunet, structures: Sequence[Structure]) -> dict[str, Any]:
    """The base's dataset.json with the site's labels."""
    kept = ("channel_names", "modality", "file_ending", "overwrite_image_reader_writer", "licence", "license")
    content: dict[str, Any] = {key: base.trained.dataset_json[key] for key in kept if key in base.trained.dataset_json}
    content |= {"numTraining": 0, "description": f"{base.name}, adapted to a site's own scans"}
    numbers = {structure.name: number for number, structure in enumerate(structures, start=1)}
    if base.activation == "softmax":
        return {**content, "labels": {BACKGROUND: 0, **numbers}}
    known = base.trained.dataset_json["labels"]
    regions = {name: known.get(name, number) for name, number in numbers.items()}
    return {**content, "labels": {BACKGROUND: 0, **regions}, "regions_class_order": list(numbers.values())}


def _card(name: str, base: Nnunet, structures: Sequence[Structure], folder: str) -> str:
    rows = "\n".join(f"| {number} | {structure.name} |" for number, structure in enumerate(structures, start=1))
    licence = base.metadata.get("licence") or base.metadata.get("license") or "see the base model"
    return f"""# {name}

A trained model of nnU-Net v2: the base model {base.name}, adapted to a site's own scans with a tensor-CUR low-rank
adapter that has been merged into its weights.

| label | structure |
|---|---|
{rows}

## Use

    nnUNetv2_predict_from_modelfolder -i SCANS -o OUT -m {folder} -f 0 --disable_tta

or `tcurlora segment --model FOLDER --input scan.nii.gz --out scan.seg.nrrd`.

## Origin

- base model: {base.name}, SHA-256 {base.sha256}
- license of the base model: {licence}

Not a medical device. Check every result before use.
"""
