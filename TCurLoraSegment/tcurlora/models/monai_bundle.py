"""Base models: MONAI bundle folders, as MONAI's Model Zoo writes them, read as data."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tcurlora.errors import InputError
from tcurlora.imaging.structures import BACKGROUND
from tcurlora.models.base_model import Activation, BaseModel, Windowing
from tcurlora.models.bundle_config import (
    BundleConfig,
    StoredEntry,
    Unknown,
    first_unknown,
    has_component,
    read_config,
)
from tcurlora.models.bundle_files import KIND, METADATA, in_models, inference_file, weights_candidates
from tcurlora.models.bundle_steps import (
    Bad,
    Postprocessing,
    Steps,
    read_inferer,
    read_postprocessing,
    read_steps,
)
from tcurlora.models.monai_networks import (
    LARGEST_ARGUMENT,
    NETWORKS,
    REFUSED,
    give_weights,
    is_modest,
    make_network,
    network_class,
    spatial_dims,
    usual_arguments,
)
from tcurlora.models.monai_preprocessing import MonaiPreprocessing
from tcurlora.models.monai_transforms import ORIENTATION, MonaiTransforms
from tcurlora.models.weights_files import read_arrays, read_weights

RESAMPLING, ANTIALIASED = "resampling", "antialiased"
"""In the metadata of models that were trained with this program's own resampling and not with MONAI's."""

_SUMS = re.compile(r"\$lambda x: torch\.stack\(\[(x\[\[[\d, ]*\]\]\.(sum|amax)\(0\)(, )?)+\]\)")


@dataclass(frozen=True)
class MonaiBundle(BaseModel):
    """A MONAI bundle folder.

    Attributes:
        config: its inference config.
        network_def: class name and arguments of the network, without what only helps to train it whole.
        others: further files that the network is made from.
    """

    config: Path
    network_def: Mapping[str, Any]
    others: tuple[Path, ...] = ()

    kind = KIND

    @property
    def network_name(self) -> str:
        """The class of the network, for people."""
        return str(self.network_def["_target_"])

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that the model is made from."""
        return (self.config.with_name(METADATA), self.config, self.weights, *self.others)

    def build(self, trial: bool = True) -> nn.Module:
        """Make the network and load its weights, as `BaseModel.build` says."""
        state = read_weights(self.weights)
        where = f"configs/{self.config.name}"
        try:
            network = make_network(self.network_def, sum(tensor.numel() for tensor in state.values()))
        except Exception as error:  # MONAI's networks raise many kinds of errors on arguments that do not fit.
            raise InputError(
                f"The base model '{self.name}' describes a {self.network_name} that cannot be made: {error}.",
                f"Correct network_def in its {where}.",
                "bad_bundle",
            ) from error
        wrong = give_weights(network, state)
        if wrong:
            raise InputError(
                f"The weights in '{self.weights.name}' of base model '{self.name}' do not fit its network: {wrong}.",
                f"Use the weights and the {where} of the same release of the model.",
                "bad_bundle",
            )
        if trial:
            self._try(network, f"Correct network_def or inferer.roi_size in its {where}.")
        return network


def open_bundle(folder: Path) -> MonaiBundle:
    """Read a MONAI bundle's description; the weights are read by `build`.

    Raises:
        InputError: when it is not a bundle, or asks for something that is not on the allow-list.
    """
    metadata = read_config(folder / "configs" / METADATA)
    path = inference_file(folder)
    config = BundleConfig(read_config(path), folder.name)

    def bad(what: str, remedy: str = "Choose another bundle, or correct this one.") -> InputError:
        return InputError(f"The base model '{folder.name}' {what}.", remedy, "bad_bundle")

    network_def, others = _network_def(config, folder, path, bad)
    after = read_postprocessing(config, lambda text: _SUMS.fullmatch(text) is not None, bad)
    steps = read_steps(config, bad)
    channels = _channels(metadata, after.activation, bad)
    if steps.image_channels is not None:
        # Nobody clicks here, and the channels for clicks, which come last, are zero.
        network_def["in_channels"] = steps.image_channels
    in_channels = network_def.get("in_channels", 1)
    if isinstance(in_channels, bool) or not isinstance(in_channels, int) or in_channels < 1:
        raise bad(f"has {in_channels!r} input channels, which is not a number of channels")
    out_channels = network_def.get(NETWORKS[network_def["_target_"]].outputs)
    if out_channels is not None and out_channels != len(channels):
        raise bad(f"has {out_channels} output channels, but channel_def names {len(channels)}")
    preprocessing, windows = _preprocessing(config, metadata, network_def, steps, after, bad)
    base = MonaiBundle(
        folder=folder,
        name=str(metadata.get("name") or folder.name),
        metadata=metadata,
        channels=channels,
        input_channels=_input_channels(metadata, in_channels, steps.joined),
        preprocessing=preprocessing,
        windows=windows,
        weights=_weights(config, folder, bad),
        activation=after.activation,
        config=path,
        network_def=network_def,
        others=others,
    )
    _require_intensities(base, preprocessing, bad)
    return base


def write_bundle(
    folder: Path, configs: Mapping[str, Mapping[str, Any]], card: str, state: Mapping[str, Tensor]
) -> None:
    """Write a bundle folder: configs, docs/README.md and models/model.pt.

    The weights are a plain state dict for torch.load(weights_only=True): MONAI's own loaders read nothing else.
    """
    for name in ("configs", "models", "docs"):
        (folder / name).mkdir(parents=True)
    for name, content in configs.items():
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (folder / "configs" / f"{name}.json").write_text(text, encoding="utf-8")
    (folder / "docs" / "README.md").write_text(card, encoding="utf-8")
    buffer = io.BytesIO()  # torch's own writer reports a full disk as a bare RuntimeError
    torch.save({key: value.detach().cpu().contiguous() for key, value in state.items()}, buffer)
    (folder / "models" / "model.pt").write_bytes(buffer.getbuffer())


def _network_def(config: BundleConfig, folder: Path, path: Path, bad: Bad) -> tuple[dict[str, Any], tuple[Path, ...]]:
    """Read class and arguments of the network, and the further files that they come from."""
    network_def = config.get("network_def")
    if isinstance(network_def, Unknown):
        named = next((why for name, why in REFUSED.items() if name in network_def.text), None)
        if named:
            raise _unsupported(named, bad)
        raise bad(f"has a network_def that {network_def.why} ('{network_def.text}'); expressions are never executed")
    if not isinstance(network_def, dict) or not isinstance(network_def.get("_target_"), str):
        raise bad(f"has no network_def with a _target_ in configs/{path.name}")
    target = network_def["_target_"]
    short = target.rpartition(".")[2]
    if short in REFUSED:
        raise _unsupported(REFUSED[short], bad)
    class_name = network_class(target)
    if class_name is None:
        raise bad(f"asks for the network '{target}', which is not one of {', '.join(NETWORKS)}")
    others: tuple[Path, ...] = ()
    if class_name == "DiNTS":
        network_def, others = _with_architecture(network_def, folder, bad)
    plain = {key: value for key, value in network_def.items() if key not in ("dints_space", "_target_")}
    unknown = first_unknown(plain)
    component = next((key for key, value in plain.items() if key.startswith("_") or has_component(value)), None)
    if unknown is not None or component is not None:
        what = f"'{unknown.text}', which {unknown.why}" if unknown is not None else f"a component ('{component}')"
        raise bad(f"has {what}, in network_def; what is not plain data there is never executed")
    if not is_modest(network_def, 2048 if class_name == "DiNTS" else 64):
        raise bad(f"has a number above {LARGEST_ARGUMENT} in network_def")
    if spatial_dims({**plain, "_target_": class_name}) != 3:
        raise bad("has a network for 2D images", "Choose a model for volumes.")
    return usual_arguments(class_name, network_def), others


def _unsupported(what: str, bad: Bad) -> InputError:
    return bad(f"has the network {what}", "Choose a model with one of MONAI's own networks for volumes.")


def _with_architecture(
    network_def: Mapping[str, Any], folder: Path, bad: Bad
) -> tuple[dict[str, Any], tuple[Path, ...]]:
    """Read the architecture that was searched for a DiNTS from the file that the config names."""
    space = network_def.get("dints_space")
    target = space.get("_target_") if isinstance(space, dict) else None
    if not isinstance(space, dict) or str(target).rpartition(".")[2] != "TopologyInstance":
        raise bad("has a DiNTS without the architecture that was searched for it (TopologyInstance)")
    space = {**{key: value for key, value in space.items() if key != "device"}, "_target_": "TopologyInstance"}
    codes = space.get("arch_code")
    wanted = [*(codes if isinstance(codes, list) else []), network_def.get("node_a")]
    files: dict[str, Path] = {}
    read: list[Any] = []
    for value in wanted:
        if isinstance(value, StoredEntry) and value.entry is not None:
            found = in_models(value.file, folder)
            if found is None or not found.is_file():
                raise bad(f"has no {value.file.removeprefix('./')}, in which the architecture of its network is")
            files[value.file] = found
            read.append(read_arrays(found, [value.entry])[value.entry])
        else:
            read.append(value)
    if len(read) != 3 or not all(isinstance(value, list) for value in read) or first_unknown(space | {"arch_code": 0}):
        raise bad("has a DiNTS whose architecture cannot be read; expressions are never executed")
    *codes, node_a = read
    return {**network_def, "dints_space": {**space, "arch_code": codes}, "node_a": node_a}, tuple(files.values())


def _weights(config: BundleConfig, folder: Path, bad: Bad) -> Path:
    """Find the weights: the file that the config loads, or the same as safetensors."""
    candidates = weights_candidates(config, folder)
    found = next((path for path in candidates if path.is_file()), None)
    if found is not None:
        return found
    first, wanted = (path.relative_to(folder).as_posix() for path in candidates)
    if any((folder / "models").glob("*.ts")):
        raise bad(
            f"has no {wanted}, but only TorchScript (.ts), a program that would have to be executed",
            f"Get {wanted} of the same release, which holds the plain weights.",
        )
    raise bad(f"has no {first} and no {wanted}, which holds its weights")


def _channels(metadata: Mapping[str, Any], activation: Activation, bad: Bad) -> tuple[str, ...]:
    try:
        pred = metadata["network_data_format"]["outputs"]["pred"]
        definition = pred["channel_def"] if "channel_def" in pred else pred["label_def"]
        names = [str(definition[str(i)]) for i in range(max(1, len(definition)))]
    except (KeyError, TypeError) as error:
        raise bad("does not name its output channels (channel_def, from 0 on) in configs/metadata.json") from error
    channels = tuple(BACKGROUND if name.casefold() == BACKGROUND else name for name in names)
    # Without it every voxel would be labeled, and a new structure starts from it.
    if activation == "softmax" and channels[0] != BACKGROUND:
        raise bad(
            f"has '{channels[0]}' as its first output channel, not the background",
            f"Choose a model whose channel 0 is the background; if it is, name it '{BACKGROUND}' in channel_def in "
            "configs/metadata.json.",
        )
    if set(channels) == {BACKGROUND}:
        raise bad("has no structure in channel_def in its configs/metadata.json")
    return channels


def _input_channels(metadata: Mapping[str, Any], count: int, joined: tuple[str, ...]) -> tuple[str, ...]:
    """Name the input channels as the config or metadata.json does, or by their numbers."""
    if len(joined) == count:
        return joined
    with suppress(KeyError, TypeError, AttributeError):
        definition = metadata["network_data_format"]["inputs"]["image"]["channel_def"]
        if len(definition) == count:
            return tuple(str(definition[str(number)]) for number in range(count))
    return tuple(f"channel {number + 1}" if count > 1 else "image" for number in range(count))


def _preprocessing(
    config: BundleConfig,
    metadata: Mapping[str, Any],
    network_def: Mapping[str, Any],
    steps: Steps,
    after: Postprocessing,
    bad: Bad,
) -> tuple[MonaiPreprocessing | MonaiTransforms, Windowing]:
    size = next((arguments["spatial_size"] for name, arguments in steps.steps if name == "Resize"), None)
    size = size or network_def.get("img_size")
    with suppress(KeyError, TypeError):  # It is optional there.
        size = size or metadata["network_data_format"]["inputs"]["image"]["spatial_shape"]
    windows = read_inferer(config, size, bad)
    if metadata.get(RESAMPLING) != ANTIALIASED:
        return MonaiTransforms(steps.spacing, steps.steps, after.back, after.largest_only), windows
    names = [name for name, _ in steps.steps]
    oriented = all(arguments["axcodes"] == "RAS" for name, arguments in steps.steps if name == ORIENTATION)
    if not oriented or names.count("Spacing") > 1 or {"CropForeground", "Resize"} & set(names) or after.largest_only:
        raise bad(f"has the {RESAMPLING} '{ANTIALIASED}', but steps that do not go with it")
    preprocessing = MonaiTransforms(steps.spacing, steps.steps)
    own = Windowing(windows.roi_size, windows.overlap, windows.mode, windows.padding_mode)
    return MonaiPreprocessing(steps.spacing, preprocessing.intensity), own


def _require_intensities(base: MonaiBundle, preprocessing: MonaiPreprocessing | MonaiTransforms, bad: Bad) -> None:
    """Try the intensity transforms on a few voxels, because MONAI looks at most of their arguments only then."""
    if base.in_channels > 64:
        return  # It would take its time, channel by channel, for what its weights will hardly bear out.
    try:
        example = np.linspace(0, 1, base.in_channels * 4**3, dtype=np.float32).reshape(base.in_channels, 4, 4, 4)
        normalized = preprocessing.normalize(example)
        if normalized.shape != example.shape or not np.isfinite(normalized).all():
            raise ValueError("what comes out is not an image")
    except Exception as error:  # MONAI's transforms, too, raise many kinds of errors.
        names = ", ".join(name for name, _ in preprocessing.intensity)
        raise bad(f"has intensity transforms ({names}) that cannot be done: {error}") from error
