"""Base models: MONAI bundle folders, read as data. What a bundle's config may instantiate is an allow-list."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.networks import nets
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from tcurlora.errors import InputError
from tcurlora.imaging.structures import BACKGROUND
from tcurlora.models.base_model import BaseModel, Windowing
from tcurlora.models.channels_last_norms import replace_norms
from tcurlora.models.monai_preprocessing import INTENSITY, MonaiPreprocessing

NETWORKS = ("UNETR", "SwinUNETR", "SegResNet", "DynUNet")
LARGEST_ARGUMENT = 8192
"""No size, width or count in a network's arguments is larger than this."""

# Steps of a bundle's preprocessing that this program does in its own way, or that change nothing here.
UNDERSTOOD = (
    "LoadImage",
    "EnsureChannelFirst",
    "AddChannel",
    "Orientation",
    "Spacing",
    "EnsureType",
    "ToTensor",
    "CastToType",
)
_ACTIVATIONS = ("Activations", "Activationsd", "ActivationsD", "ActivationsDict")
# Arguments that change nothing in what a network computes, but how it is trained. The outputs of deep supervision have
# the base's channels, and what is computed again in the backward pass is so with the base's weights.
_SWITCHED_OFF = ("deep_supervision", "use_checkpoint")
_NEVER_RUN = re.compile(r"\.(norm_)?cross_attn\.|(^|\.)(deep_supervision_heads|super_head)\.")


@dataclass(frozen=True)
class MonaiBundle(BaseModel):
    """A MONAI bundle folder.

    Attributes:
        network_def: class name and arguments of the network, without what only helps to train it whole.
    """

    network_def: Mapping[str, Any]

    kind = "MONAI bundle"

    @property
    def network_name(self) -> str:
        """The class of the network, for people."""
        return str(self.network_def["_target_"])

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that the model is made from."""
        configs = self.folder / "configs"
        return (configs / "metadata.json", configs / "inference.json", self.weights)

    def build(self, trial: bool = True) -> nn.Module:
        """Make the network and load its weights, as `BaseModel.build` says."""
        arguments = {key: value for key, value in self.network_def.items() if key != "_target_"}
        class_name = self.network_def["_target_"]
        state = read_weights(self.weights)
        numbers = sum(tensor.numel() for tensor in state.values())
        try:
            # First without memory, for those that can be made so: what the config asks for may be anything.
            with suppress(NotImplementedError, RuntimeError), torch.device("meta"), _Unfilled(), _of_size(numbers):
                getattr(nets, class_name)(**arguments)
            with _of_size(numbers):
                network: nn.Module = getattr(nets, class_name)(**arguments)
        except Exception as error:  # MONAI's networks raise many kinds of errors on arguments that do not fit.
            raise InputError(
                f"The base model '{self.name}' describes a {class_name} that cannot be made: {error}.",
                "Correct network_def in its configs/inference.json.",
                "bad_bundle",
            ) from error
        try:
            network.load_state_dict(_of_any_release(state, network.state_dict()))
        except RuntimeError as error:
            raise InputError(
                f"The weights in '{self.weights.name}' of base model '{self.name}' do not fit its network.",
                "Use the weights and the configs/inference.json of the same release of the model.",
                "bad_bundle",
            ) from error
        # The layout that convolutions run fastest in, on processors and on graphics cards.
        network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        replace_norms(network)
        network.eval()
        if trial:
            self._try(network, "Correct network_def or inferer.roi_size in its configs/inference.json.")
        return network


def _of_any_release(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leave out weights that are never run here, and fit the rest to the installed MONAI.

    Some releases of it make layers for cross-attention all the same.

    Args:
        state: weights of a file.
        own: weights of a network that was just made.
    """
    if any(".cross_attn." in name for name in own):
        return dict(state)  # here they may be run
    norms = {name: tensor for name, tensor in own.items() if ".norm_cross_attn." in name}
    kept = {name: tensor for name, tensor in state.items() if not (_NEVER_RUN.search(name) and name not in own)}
    return norms | kept


class _Unfilled(TorchFunctionMode):
    """Leave parameters as they are that a network fills while it is made.

    On a device without numbers there is nothing to fill, but torch loads its compiler for some functions that fill.
    """

    def __torch_function__(
        self, function: Callable[..., Any], _types: Any, args: tuple[Any, ...] = (), named: Any = None
    ) -> Any:
        name = getattr(function, "__name__", "")
        if name.endswith("_") and not name.endswith("__") and args and isinstance(args[0], nn.Parameter):
            return args[0]
        return function(*args, **(named or {}))


@contextmanager
def _of_size(numbers: int) -> Iterator[None]:
    """Break off while a network is made that would have far more parameters or layers than its weights file."""
    made = 0

    def count(_module: nn.Module, _name: str, parameter: nn.Parameter) -> None:
        nonlocal made
        made += 0 if parameter is None else parameter.numel()
        if made > 2 * numbers + 1000:
            raise ValueError("it would be larger than its weights")

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def open_bundle(folder: Path) -> MonaiBundle:
    """Read a MONAI bundle's description; the weights are read by `build`.

    Raises:
        InputError: when it is no bundle, or asks for something that is not on the allow-list.
    """
    metadata = _read_json(folder / "configs" / "metadata.json")
    inference = _read_json(folder / "configs" / "inference.json")
    network_def = _network_def(inference, folder)
    _require_softmax(inference, folder)
    channels = _channels(metadata, folder)
    in_channels = network_def.get("in_channels", 1)
    if not isinstance(in_channels, int) or in_channels < 1:
        raise _bad(folder, f"has {in_channels!r} input channels, which is no number of channels")
    out_channels = network_def.get("out_channels")
    if out_channels is not None and out_channels != len(channels):
        raise _bad(folder, f"has {out_channels} output channels, but channel_def names {len(channels)}")
    weights = next((p for p in (folder / "models" / n for n in ("model.safetensors", "model.pt")) if p.is_file()), None)
    if weights is None:
        raise _bad(folder, "has no models/model.safetensors and no models/model.pt")
    preprocessing, roi_size = _preprocessing(inference, metadata, network_def, folder)
    base = MonaiBundle(
        folder=folder,
        name=str(metadata.get("name") or folder.name),
        metadata=metadata,
        channels=channels,
        input_channels=_input_channels(metadata, in_channels),
        preprocessing=preprocessing,
        windows=Windowing(roi_size),
        weights=weights,
        activation="softmax",
        network_def=network_def,
    )
    _require_intensities(base, preprocessing)
    return base


def _input_channels(metadata: Mapping[str, Any], count: int) -> tuple[str, ...]:
    """Name the input channels as metadata.json does, or by their numbers."""
    with suppress(KeyError, TypeError, AttributeError):
        definition = metadata["network_data_format"]["inputs"]["image"]["channel_def"]
        if len(definition) == count:
            return tuple(str(definition[str(number)]) for number in range(count))
    return tuple(f"channel {number + 1}" if count > 1 else "image" for number in range(count))


def _require_intensities(base: MonaiBundle, preprocessing: MonaiPreprocessing) -> None:
    """Try the intensity transforms on a few voxels, because MONAI looks at most of their arguments only then."""
    if base.in_channels > 64:
        return  # It would take its time, channel by channel, for what its weights will hardly bear out.
    try:
        example = np.linspace(0, 1, base.in_channels * 4**3, dtype=np.float32).reshape(base.in_channels, 4, 4, 4)
        normalized = preprocessing.normalize(example)
        if normalized.shape != example.shape or not np.isfinite(normalized).all():
            raise ValueError("what comes out is no image")
    except Exception as error:  # MONAI's transforms, too, raise many kinds of errors.
        names = ", ".join(name for name, _ in preprocessing.intensity)
        raise _bad(base.folder, f"has intensity transforms ({names}) that cannot be done: {error}") from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict as float32 tensors; a pickle in it is never executed.

    Raises:
        InputError: when the file is damaged or holds anything but tensors.
    """
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
        for key in ("state_dict", "model"):
            if isinstance(state.get(key), dict):
                state = state[key]
        if not state or not all(isinstance(name, str) for name in state):
            raise ValueError("there are no names, or one is no text")
        weights = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
        # A network with any other value has no opinion on any voxel, and does not say so.
        if not all(bool(torch.isfinite(tensor).all()) for tensor in weights.values()):
            raise ValueError("a weight is no number")
        return weights
    except (OSError, SafetensorError, RuntimeError, ValueError, EOFError, AttributeError, KeyError) as error:
        raise _unreadable(path) from error
    except Exception as error:  # pickle.UnpicklingError and whatever else a hostile file provokes
        raise _unreadable(path) from error


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


def _network_def(inference: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    network_def = inference.get("network_def")
    if not isinstance(network_def, dict) or not isinstance(network_def.get("_target_"), str):
        raise _bad(folder, "has no network_def with a _target_ in configs/inference.json")
    target = network_def["_target_"]
    class_name = target.rpartition(".")[2]
    if class_name not in NETWORKS or not re.fullmatch(r"(monai\.networks\.nets\.(\w+\.)?)?\w+", target):
        raise _bad(folder, f"asks for the network '{target}', which is not one of {', '.join(NETWORKS)}")
    for key, value in network_def.items():
        if has_expression(value) or (key.startswith("_") and key != "_target_"):
            raise _bad(folder, f"has an expression or a reference in network_def ('{key}'), which is never executed")
    if not _is_modest(network_def):
        raise _bad(folder, f"has a number above {LARGEST_ARGUMENT} in network_def")
    return {**network_def, "_target_": class_name, **{key: False for key in _SWITCHED_OFF if key in network_def}}


def _is_modest(value: Any) -> bool:
    """Say whether no number, or list of numbers, in a network's arguments could make it absurdly large."""
    if isinstance(value, dict):
        return all(_is_modest(v) for v in value.values())
    if isinstance(value, list):
        return len(value) <= 64 and all(_is_modest(v) for v in value)
    return not isinstance(value, int | float) or abs(value) <= LARGEST_ARGUMENT


def _channels(metadata: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
    try:
        definition = metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
        names = [str(definition[str(i)]) for i in range(max(1, len(definition)))]
    except (KeyError, TypeError) as error:
        raise _bad(
            folder, "does not name its output channels (channel_def, from 0 on) in configs/metadata.json"
        ) from error
    channels = tuple(BACKGROUND if name.casefold() == BACKGROUND else name for name in names)
    # Without it every voxel would be labeled, and a new structure starts from it.
    if channels[0] != BACKGROUND:
        raise _bad(
            folder,
            f"has '{channels[0]}' as its first output channel, not the background",
            f"Choose a model whose channel 0 is the background; if it is, name it '{BACKGROUND}' in channel_def in "
            "configs/metadata.json.",
        )
    return channels


def _require_softmax(inference: Mapping[str, Any], folder: Path) -> None:
    """Refuse a model whose channels are no classes that exclude each other."""
    postprocessing = inference.get("postprocessing")
    transforms = postprocessing.get("transforms") if isinstance(postprocessing, dict) else None
    for entry in transforms if isinstance(transforms, list) else []:
        if not isinstance(entry, dict) or _is_disabled(entry):
            continue
        if str(entry.get("_target_", "")).rpartition(".")[2] in _ACTIVATIONS:
            sigmoid = entry.get("sigmoid")
            if True in (sigmoid if isinstance(sigmoid, list) else [sigmoid]):
                raise _bad(
                    folder,
                    "puts a sigmoid behind its network, so its structures may overlap, which is not supported",
                    "Choose a model whose channels exclude each other: the background and one for each structure, "
                    "with a softmax.",
                )


def _preprocessing(
    inference: Mapping[str, Any], metadata: Mapping[str, Any], network_def: Mapping[str, Any], folder: Path
) -> tuple[MonaiPreprocessing, tuple[int, int, int]]:
    spacing = None
    intensity: list[tuple[str, dict[str, Any]]] = []
    for entry in _transforms(inference, folder):
        name = str(entry.get("_target_", "")).rpartition(".")[2].removesuffix("d")
        arguments = {k: v for k, v in entry.items() if k not in ("_target_", "keys") and not k.startswith("_")}
        if name == "Spacing":
            pixdim = arguments.get("pixdim")
            if (
                not isinstance(pixdim, list)
                or len(pixdim) != 3
                or not all(isinstance(v, int | float) and v > 0 for v in pixdim)
            ):
                raise _bad(folder, f"has the voxel size {pixdim!r} in its preprocessing, which is not three numbers")
            spacing = (float(pixdim[0]), float(pixdim[1]), float(pixdim[2]))
        elif name == "Orientation" and arguments.get("axcodes", "RAS") != "RAS":
            raise _bad(folder, f"wants the orientation {arguments['axcodes']}; only RAS is supported")
        elif name in INTENSITY:
            if has_expression(arguments):
                raise _bad(folder, f"has an expression in its preprocessing ('{name}'), which is never executed")
            intensity.append((name, arguments))
        elif name not in UNDERSTOOD:
            raise _bad(folder, f"has the preprocessing step '{name}', which is not supported")
    inferer = inference.get("inferer")
    roi = inferer.get("roi_size") if isinstance(inferer, dict) else None
    roi = roi or network_def.get("img_size")
    with suppress(KeyError, TypeError):  # It is optional there.
        roi = roi or metadata["network_data_format"]["inputs"]["image"]["spatial_shape"]
    if isinstance(roi, int):
        roi = [roi] * 3
    if not isinstance(roi, list) or len(roi) != 3 or not all(isinstance(v, int) and 0 < v <= 1024 for v in roi):
        raise _bad(folder, "does not say the window size (inferer.roi_size) in configs/inference.json")
    return MonaiPreprocessing(spacing, tuple(intensity)), (roi[0], roi[1], roi[2])


def _transforms(inference: Mapping[str, Any], folder: Path) -> list[dict[str, Any]]:
    preprocessing = inference.get("preprocessing", {})
    transforms = preprocessing.get("transforms", []) if isinstance(preprocessing, dict) else None
    if not isinstance(transforms, list) or not all(isinstance(entry, dict) for entry in transforms):
        raise _bad(folder, "has a preprocessing in configs/inference.json that is no list of transforms")
    return [entry for entry in transforms if not _is_disabled(entry)]


def _is_disabled(entry: Mapping[str, Any]) -> bool:
    """Whether MONAI would leave this step out."""
    disabled = entry.get("_disabled_", False)
    return disabled.strip().casefold() == "true" if isinstance(disabled, str) else bool(disabled)


def has_expression(value: Any) -> bool:
    """Say whether MONAI's config parser would execute or resolve anything in a value."""
    if isinstance(value, str):
        return value.startswith(("$", "@", "%"))
    if isinstance(value, dict):
        return "_target_" in value or any(has_expression(v) for v in value.values())
    return isinstance(value, list) and any(has_expression(v) for v in value)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"'{path.parent.parent.name}' is no base model: its configs/{path.name} cannot be read.",
            "Choose a MONAI bundle folder with configs/metadata.json and configs/inference.json.",
            "bad_bundle",
        ) from error
    if not isinstance(content, dict):
        raise _bad(path.parent.parent, f"has no object in configs/{path.name}")
    return content


def _bad(folder: Path, what: str, remedy: str = "Choose another bundle, or correct this one.") -> InputError:
    return InputError(f"The base model '{folder.name}' {what}.", remedy, "bad_bundle")


def _unreadable(path: Path) -> InputError:
    return InputError(
        f"The weights file '{path.name}' is damaged or holds more than tensors; nothing in it was executed.",
        "Get the file again from its source.",
        "bad_weights",
    )
