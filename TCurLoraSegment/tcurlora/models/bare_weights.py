"""Bare weights: a file without configs becomes a bundle, described by another model or by its user."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tcurlora.errors import InputError
from tcurlora.imaging.structures import BACKGROUND, Structure
from tcurlora.models.base_model import Activation, Windowing
from tcurlora.models.bundle_config import has_expression
from tcurlora.models.merged_bundles import inference_config
from tcurlora.models.monai_bundle import ANTIALIASED, RESAMPLING, MonaiBundle, open_bundle, write_bundle
from tcurlora.models.monai_networks import NETWORKS, as_config, network_class
from tcurlora.models.monai_preprocessing import MonaiPreprocessing
from tcurlora.models.monai_transforms import ORIENTATION, MonaiTransforms, Step
from tcurlora.models.opening import load_base_model
from tcurlora.models.weights_files import read_weights


@dataclass(frozen=True)
class Description:
    """What a weights file does not say; what is empty is taken from a similar model.

    Attributes:
        network: class of the network, one of MONAI's.
        arguments: of the class, as JSON or the path of a JSON file; they go before those of the similar model.
        like: name or folder of the similar model.
        structures: name of each output channel, separated by commas, the background first; of regions all of them.
        regions: whether the channels are regions that may overlap (sigmoid).
        inputs: name of each input channel, separated by commas.
        spacing: voxel size in mm, such as `1.5,1.5,2`, or `none` to keep that of each scan.
        intensity: `zscore`, `minmax`, `none`, or the range that becomes 0 to 1, such as `-175,250`.
        window: size of the window in voxels, such as `96,96,96`.
    """

    network: str = ""
    arguments: str = ""
    like: str = ""
    structures: str = ""
    regions: bool = False
    inputs: str = ""
    spacing: str = ""
    intensity: str = ""
    window: str = ""


def write_described(weights: Path, folder: Path, description: Description) -> MonaiBundle:
    """Make a bundle of a weights file, and try it.

    Args:
        weights: a state dict in any of the forms that are read.
        folder: of the bundle; must not exist.
        description: what the file does not say.

    Raises:
        InputError: when the file cannot be read, something is not said, or weights do not fit the network; the message
            names those that do not.
    """
    if not weights.is_file():
        raise InputError(f"There is no file '{weights}'.", "Give the weights file.", "not_found")
    state = read_weights(weights)
    like = _similar(description.like)
    channels = _channels(description, like)
    inputs = _names(description.inputs) or list(like.input_channels if like else ())
    network_def = _network_def(description, like, len(channels), inputs)
    count = network_def.get("in_channels", 1)
    if not inputs:
        inputs = [f"channel {number + 1}" if count != 1 else "image" for number in range(int(count))]
    preprocessing = _preprocessing(description, like)
    windows = _windows(description, like)
    structures = _structures(channels, like)
    activation: Activation = (
        "sigmoid" if description.regions or (like and _takes_regions(description, like)) else "softmax"
    )
    metadata = _metadata(weights, channels, inputs, windows, structures, isinstance(preprocessing, MonaiPreprocessing))
    if has_expression(metadata):
        raise InputError("A name begins with '$', '@' or '%', which MONAI would execute.", "Rename it.", "expression")
    inference = inference_config(as_config(network_def), preprocessing, windows, channels, structures, activation)
    write_bundle(folder, {"metadata": metadata, "inference": inference}, _card(weights, like), state)
    base = open_bundle(folder)
    base.build()
    return base


def _similar(like: str) -> MonaiBundle | None:
    if not like:
        return None
    base = load_base_model(like)
    if not isinstance(base, MonaiBundle):
        raise InputError(
            f"'{base.name}' is a {base.kind}, and bare weights become a MONAI bundle.",
            "Name a MONAI bundle (--like), or describe the network (--arguments).",
            "not_a_bundle",
        )
    return base


def _takes_regions(description: Description, like: MonaiBundle) -> bool:
    return not description.structures and like.activation == "sigmoid"


def _channels(description: Description, like: MonaiBundle | None) -> list[str]:
    names = _names(description.structures) or list(like.channels if like else ())
    if not names:
        raise _missing("the names of its output channels", "--structures background,liver,spleen")
    names = [BACKGROUND if name.casefold() == BACKGROUND else name for name in names]
    if description.structures and not description.regions and names[0] != BACKGROUND:
        names.insert(0, BACKGROUND)
    return names


def _network_def(
    description: Description, like: MonaiBundle | None, outputs: int, inputs: Sequence[str]
) -> dict[str, Any]:
    class_name = network_class(description.network) if description.network else (like.network_name if like else None)
    if class_name is None:
        if description.network:
            raise InputError(
                f"'{description.network}' is not a network that is known.",
                f"Choose one of {', '.join(NETWORKS)}.",
                "unknown_network",
            )
        raise _missing("the class of its network", "--network SwinUNETR")
    given = _arguments(description.arguments)
    known = dict(like.network_def) if like is not None and like.network_name == class_name else {}
    if not known and not given:
        raise _missing(f"the arguments of its {class_name}", """--arguments '{"feature_size": 48}'""")
    defined = {"in_channels": len(inputs) or 1, **known, NETWORKS[class_name].outputs: outputs}
    if inputs:
        defined["in_channels"] = len(inputs)
    return {**defined, **given, "_target_": class_name}


def _arguments(text: str) -> dict[str, Any]:
    if not text:
        return {}
    try:
        if not text.lstrip().startswith("{"):
            text = Path(text).read_text(encoding="utf-8")
        content = json.loads(text)
        if not isinstance(content, dict):
            raise ValueError("it is not an object")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"The network's arguments cannot be read: {error}.",
            """Give JSON, such as --arguments '{"feature_size": 48}', or a file of it.""",
            "arguments",
        ) from error
    content.pop("_target_", None)
    return content


def _preprocessing(description: Description, like: MonaiBundle | None) -> MonaiPreprocessing | MonaiTransforms:
    own = like.preprocessing if like is not None else None
    assert own is None or isinstance(own, MonaiPreprocessing | MonaiTransforms)
    if own is not None and not description.spacing and not description.intensity:
        return own
    spacing = own.spacing if own is not None else None
    if description.spacing:
        spacing = None if description.spacing.casefold() == "none" else _three(description.spacing, "--spacing")
    elif own is None:
        raise _missing("the voxel size that it takes", "--spacing 1.5,1.5,2 (or none)")
    if not description.intensity and own is None:
        raise _missing("what becomes of intensities", "--intensity -175,250 (or zscore, minmax, none)")
    steps: list[Step] = [(ORIENTATION, {"axcodes": "RAS"})]
    if spacing is not None:
        steps.append(("Spacing", {"pixdim": list(spacing), "mode": "bilinear"}))
    steps += _intensity(description.intensity) if description.intensity or own is None else own.intensity
    return MonaiTransforms(spacing, tuple(steps))


def _intensity(text: str) -> list[Step]:
    usual: dict[str, list[Step]] = {
        "zscore": [("NormalizeIntensity", {"nonzero": True, "channel_wise": True})],
        "minmax": [("ScaleIntensity", {"minv": 0.0, "maxv": 1.0})],
        "none": [],
    }
    if text.casefold() in usual:
        return usual[text.casefold()]
    low, high = _numbers(text, 2, "--intensity")
    if not low < high:
        raise InputError(f"--intensity {text} is not a range.", "Give the lower value first.", "usage")
    return [("ScaleIntensityRange", {"a_min": low, "a_max": high, "b_min": 0.0, "b_max": 1.0, "clip": True})]


def _windows(description: Description, like: MonaiBundle | None) -> Windowing:
    if description.window:
        size = _three(description.window, "--window")
        if not all(value == int(value) and value <= 1024 for value in size):
            raise InputError(f"--window {description.window} is not a size in voxels.", "Such as 96,96,96.", "usage")
        return Windowing((int(size[0]), int(size[1]), int(size[2])), blend="logits")
    if like is None:
        raise _missing("the size of its window", "--window 96,96,96")
    return like.windows


def _structures(channels: Sequence[str], like: MonaiBundle | None) -> list[Structure]:
    known: dict[str, Structure] = {}
    if like is not None:
        with suppress(InputError):
            known = {structure.name: structure for structure in like.labelled_structures()}
    names = [name for name in dict.fromkeys(channels) if name != BACKGROUND]
    if names == list(known):
        return list(known.values())
    return [Structure(name, value) for value, name in enumerate(names, start=1)]


def _metadata(
    weights: Path,
    channels: Sequence[str],
    inputs: Sequence[str],
    windows: Windowing,
    structures: Sequence[Structure],
    antialiased: bool,
) -> dict[str, Any]:
    return {
        "name": weights.stem,
        "version": "1.0.0",
        "description": f"made of the weights file {weights.name}",
        **({RESAMPLING: ANTIALIASED} if antialiased else {}),
        "structures": [structure.to_dict() for structure in structures],
        "network_data_format": {
            "inputs": {
                "image": {
                    "num_channels": len(inputs),
                    "spatial_shape": list(windows.roi_size),
                    "channel_def": {str(number): name for number, name in enumerate(inputs)},
                }
            },
            "outputs": {
                "pred": {
                    "num_channels": len(channels),
                    "channel_def": {str(number): name for number, name in enumerate(channels)},
                }
            },
        },
    }


def _card(weights: Path, like: MonaiBundle | None) -> str:
    described = f", described like {like.name}" if like is not None else ""
    return f"# {weights.stem}\n\nMade of the weights file {weights.name}{described}.\n\nNot a medical device.\n"


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _three(text: str, option: str) -> tuple[float, float, float]:
    a, b, c = _numbers(text, 3, option)
    if min(a, b, c) <= 0:
        raise InputError(f"{option} {text} is not three sizes.", f"Such as {option} 1.5,1.5,2.", "usage")
    return a, b, c


def _numbers(text: str, count: int, option: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
        if len(numbers) != count or not all(abs(number) < 1e6 for number in numbers):
            raise ValueError
    except ValueError as error:
        raise InputError(f"{option} {text} is not {count} numbers.", "Separate them by commas.", "usage") from error
    return numbers


def _missing(what: str, option: str) -> InputError:
    return InputError(
        f"A weights file does not say {what}.",
        f"Name a model that is like it (--like), or say it: {option}.",
        "not_described",
    )
