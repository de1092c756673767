"""Base models: nnU-Net v2's trained models. Their checkpoints are read as data, and their networks come from a table.

The network classes are those of the package dynamic-network-architectures, in which the weights have nnU-Net's own
names, so that an adapted model can be written as one that nnU-Net runs.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tcurlora.errors import InputError
from tcurlora.models.base_model import BaseModel, Windowing
from tcurlora.models.channels_last_norms import replace_norms
from tcurlora.models.network_building import build_within
from tcurlora.models.nnunet_files import (
    DATASET,
    KIND,
    OPERATIONS,
    PLANS,
    SETTINGS,
    TrainedModel,
    choose_folds,
    read_trained,
)
from tcurlora.models.nnunet_preprocessing import NnunetPreprocessing

PACKAGE = "dynamic-network-architectures"
PREFIXES = ("module.", "_orig_mod.")
"""What DistributedDataParallel and torch.compile put before the names of weights."""
_ALIASES = re.compile(r"(^|\.)all_modules\.|^decoder\.encoder\.")
_HEAD = re.compile(r"decoder\.seg_layers\.(\d+)\.")


@dataclass(frozen=True)
class Nnunet(BaseModel):
    """A trained model of nnU-Net v2.

    Attributes:
        trained: what its files say.
        folds: whose weights are used; the logits of several are averaged.
    """

    trained: TrainedModel
    folds: tuple[str, ...]

    kind = KIND

    @property
    def network_name(self) -> str:
        """The class of the network, for people."""
        return self.trained.architecture

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that the model is made from."""
        settings = self.folder / SETTINGS
        return (
            self.folder / PLANS,
            self.folder / DATASET,
            *((settings,) if settings.is_file() else ()),
            *(self.trained.weights(fold) for fold in self.folds),
        )

    @property
    def label_values(self) -> tuple[int, ...]:
        """The value that nnU-Net writes for each structure; of regions, regions_class_order."""
        return self.trained.values if self.trained.regions else self.trained.values[1:]

    @property
    def notes(self) -> tuple[str, ...]:
        """What nnU-Net does not record of its training data."""
        if self.trained.orientation is not None:
            return ()
        return (
            "nnU-Net does not record how its training scans were oriented, so scans are taken as they are stored. "
            "If yours are stored in another orientation than those, the result is wrong: say the orientation of the "
            "training data when you add the model (--orientation).",
        )

    @property
    def mirror_axes(self) -> tuple[int, ...]:
        """Axes of the network along which nnU-Net mirrors its windows; none where it was not trained for that."""
        axes = read_checkpoint(self.weights).get("inference_allowed_mirroring_axes")
        if axes is None:
            return ()
        if not isinstance(axes, tuple | list) or not all(type(axis) is int and axis in (0, 1, 2) for axis in axes):
            raise self.bad("has mirroring axes in its checkpoint that are not axes")
        return tuple(dict.fromkeys(axes))

    def build(self, trial: bool = True) -> nn.Module:
        """Make the network and load its weights, as `BaseModel.build` says."""
        networks = [self._built(fold) for fold in self.folds]
        network = networks[0] if len(networks) == 1 else MeanOfFolds(networks)
        if trial:
            self._try(network, f"Correct the patch_size or the architecture in its {PLANS}.")
        return network

    def _built(self, fold: str) -> nn.Module:
        weights = self.trained.weights(fold)
        checkpoint = read_checkpoint(weights)
        self._require_own(checkpoint)
        state = network_weights(checkpoint, weights)
        network = self._network(sum(tensor.numel() for tensor in state.values()))
        own = {name for name, _ in (*network.named_parameters(), *network.named_buffers())}
        missing, more = sorted(own - state.keys()), sorted(state.keys() - own - _other_heads(state))
        if missing or more:
            what = f"lacks '{missing[0]}'" if missing else f"has '{more[0]}', which that has not"
            raise self.bad(
                f"has weights that are not those of the {self.network_name} of its plans: its checkpoint {what}",
                f"If its trainer '{self.trained.trainer}' makes a network of its own, choose a model of nnU-Net's own "
                "trainers; otherwise get the model again from its source.",
            )
        try:
            network.load_state_dict({name: state[name] for name in own}, strict=False)
        except RuntimeError as error:
            raise self.bad(
                f"has weights that do not fit its plans: {str(error).strip().splitlines()[-1].strip().rstrip('.')}",
                f"Use the {PLANS}, the {DATASET} and the checkpoint of the same training.",
            ) from error
        # The layout that convolutions run fastest in, on processors and on graphics cards.
        network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        replace_norms(network)
        return network.eval()

    def _require_own(self, checkpoint: Mapping[str, Any]) -> None:
        """Refuse a checkpoint that was made with another configuration of the plans."""
        arguments = checkpoint.get("init_args")
        made_as = arguments.get("configuration") if isinstance(arguments, dict) else None
        if made_as is not None and made_as != self.trained.configuration:
            raise self.bad(
                f"has the checkpoint of the configuration '{str(made_as)[:60]}' in the folder of "
                f"'{self.trained.configuration}'",
                "Get the model again from its source.",
            )

    def _network(self, parameters: int) -> nn.Module:
        try:
            return make_network(self.trained, parameters, len(self.channels))
        except InputError:
            raise
        except Exception as error:  # torch and the package raise many kinds of errors on what does not fit together.
            raise self.bad(
                f"describes a {self.network_name} that cannot be made: {error}", f"Correct its {PLANS}."
            ) from error


class MeanOfFolds(nn.Module):
    """The mean of the logits of several trained networks.

    Args:
        networks: of equal inputs and outputs.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, windows: Tensor) -> Tensor:
        """Average: (b, c, *axes) to (b, channels, *axes)."""
        total: Tensor = self.networks[0](windows)
        for network in self.networks[1:]:
            total = total + network(windows)
        return total / len(self.networks)


def open_nnunet(path: Path, fold: str = "") -> Nnunet:
    """Read a trained nnU-Net's description; the weights are read by `build`.

    Args:
        path: TRAINER__PLANS__CONFIGURATION, or a folder that leads to it.
        fold: such as `0`, `all` or `0,1,2`; fold 0, or else fold_all, when empty.

    Raises:
        InputError: when it is none, or is not done here as nnU-Net does it.
    """
    trained = read_trained(path)
    folds = choose_folds(trained, fold)
    return Nnunet(
        folder=trained.folder,
        name=trained.name,
        metadata=_metadata(trained),
        channels=trained.channels,
        input_channels=trained.input_channels,
        preprocessing=NnunetPreprocessing.of(trained),
        windows=Windowing(trained.patch, 0.5, "gaussian_peak", blend="logits", placement="even"),
        weights=trained.weights(folds[0]),
        activation="sigmoid" if trained.regions else "softmax",
        trained=trained,
        folds=folds,
    )


def with_folds(base: Nnunet, fold: str) -> Nnunet:
    """Use other folds of a model.

    Raises:
        InputError: when one is not there.
    """
    folds = choose_folds(base.trained, fold)
    return replace(base, folds=folds, weights=base.trained.weights(folds[0]))


def _metadata(trained: TrainedModel) -> dict[str, Any]:
    """What a model says of itself, in the words of `BaseModel.metadata`."""
    said = {key: trained.dataset_json[key] for key in ("description", "reference", "licence", "license", "release")
            if isinstance(trained.dataset_json.get(key), str)}  # fmt: skip
    return {
        "name": trained.name,
        "version": said.get("release", ""),
        "description": said.get("description") or f"nnU-Net, {trained.configuration}, {trained.trainer}",
        **{key: said[key] for key in ("licence", "license", "reference") if key in said},
    }


# The network


def make_network(trained: TrainedModel, parameters: int, channels: int) -> nn.Module:
    """Make a network without the heads that only deep supervision uses; its weights keep nnU-Net's names.

    Args:
        trained: which one.
        parameters: in its weights; a network that would be much larger is not made.
        channels: outputs.

    Raises:
        InputError: when the package is missing that it comes from.
        Exception: of many kinds, when its arguments do not fit together.
    """

    def make() -> nn.Module:
        network = whole_network(trained, channels)
        decoder: Any = network.decoder
        for number in range(len(decoder.seg_layers) - 1):
            decoder.seg_layers[number] = nn.Identity()
        # The decoder keeps the encoder for its sizes only, and would list all of its weights a second time.
        del decoder.encoder
        return network

    return build_within(make, parameters)


def whole_network(trained: TrainedModel, channels: int) -> nn.Module:
    """Make the network as nnU-Net does, with all of its heads and all names of its weights.

    Args:
        trained: which one.
        channels: outputs.

    Raises:
        InputError, Exception: as `make_network`.
    """
    arguments = {
        key: getattr(nn, value) if key in OPERATIONS and value is not None else value
        for key, value in trained.arguments.items()
    }
    network: nn.Module = _classes()[trained.architecture](
        input_channels=len(trained.input_channels), num_classes=channels, deep_supervision=False, **arguments
    )
    return network


def _classes() -> dict[str, type[nn.Module]]:
    try:
        from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
    except ImportError as error:
        raise InputError(
            f"nnU-Net's networks need the package '{PACKAGE}', which is not installed in this Python.",
            f"Install it with: python -m pip install --no-deps {PACKAGE}",
            "missing_package",
        ) from error
    return {"PlainConvUNet": PlainConvUNet, "ResidualEncoderUNet": ResidualEncoderUNet}


# Checkpoints


class _Ignored:
    """Stands for numpy's scalars in a checkpoint, such as the log of its training: read over, never made."""

    def __init__(self, *_arguments: Any) -> None:
        pass

    def __setstate__(self, _state: Any) -> None:
        pass


# The names that numpy's numbers have in pickles, under numpy 1 and 2. In their place something is made that does
# nothing, because no weight is among them.
_HARMLESS: list[Any] = [
    (_Ignored, name)
    for name in (
        "numpy._core.multiarray.scalar",
        "numpy.core.multiarray.scalar",
        "numpy.dtype",
        "numpy.dtypes.Float32DType",
        "numpy.dtypes.Float64DType",
        "numpy.dtypes.Int64DType",
    )
]


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of nnU-Net: tensors, texts and Python's own numbers; nothing in it is executed.

    Raises:
        InputError: when it is damaged, or holds anything else.
    """
    try:
        _require_plain_archive(path)
        with torch.serialization.safe_globals(_HARMLESS):
            checkpoint = torch.load(path, "cpu", weights_only=True)
        if not isinstance(checkpoint, dict):
            raise ValueError("it holds no dictionary")
        return checkpoint
    except Exception as error:  # pickle.UnpicklingError and whatever else a hostile file provokes
        raise _unreadable(path) from error


def _require_plain_archive(path: Path) -> None:
    """Refuse an archive that would unpack to more than it is; torch writes its own unpacked."""
    with zipfile.ZipFile(path) as archive:
        if sum(info.file_size for info in archive.infolist()) > path.stat().st_size:
            raise ValueError("it would unpack to more than it holds")


def network_weights(checkpoint: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """Take the weights of the network out of a checkpoint, each under one name, as float32.

    nnU-Net's networks list a convolution under up to six names.

    Args:
        checkpoint: from `read_checkpoint`.
        path: its file, for messages.

    Raises:
        InputError: when there are none, or one is not a finite number.
    """
    found = checkpoint.get("network_weights")
    try:
        if not isinstance(found, dict) or not found:
            raise ValueError("there are no network_weights")
        state: dict[str, Tensor] = {}
        for name, tensor in found.items():
            for prefix in PREFIXES:
                name = name.removeprefix(prefix)
            if _ALIASES.search(name):
                continue
            if (
                not isinstance(tensor, Tensor)
                or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes()
            ):
                raise ValueError(f"'{name}' is not a tensor with numbers of its own")
            tensor = tensor.float() if tensor.is_floating_point() else tensor
            # A network with any other value has no opinion on any voxel, and does not say so.
            if not bool(torch.isfinite(tensor).all()):
                raise ValueError(f"'{name}' is not finite")
            state[name] = tensor
        if not state:
            raise ValueError("there are no network_weights")
        return state
    except Exception as error:
        raise _unreadable(path) from error


def _other_heads(state: Mapping[str, Tensor]) -> set[str]:
    """Names of the heads for deep supervision: all but the last, which makes the output."""
    numbers = {name: int(match[1]) for name in state if (match := _HEAD.match(name))}
    return {name for name, number in numbers.items() if number < max(numbers.values())}


def _unreadable(path: Path) -> InputError:
    return InputError(
        f"The weights file '{path.parent.name}/{path.name}' is not a checkpoint of nnU-Net v2, or is damaged, or holds "
        "more than tensors and numbers; nothing in it was executed.",
        "Get the model again from its source.",
        "bad_weights",
    )
