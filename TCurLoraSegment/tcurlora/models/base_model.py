"""What a base model is to the rest of the program, whatever its kind.

`adapt`, `segment`, `compare`, `merge` and the panel know only this. Each kind (a MONAI bundle, an nnU-Net, ...) is a
module beside this one.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import nn

from tcurlora.errors import InputError
from tcurlora.imaging.preprocessing import Preprocessing
from tcurlora.imaging.structures import BACKGROUND, Structure
from tcurlora.runtime.hashing import sha256_of_file

Activation = Literal["softmax", "sigmoid"]
WindowWeights = Literal["gaussian", "gaussian_peak", "constant"]
Padding = Literal["constant", "reflect", "replicate", "circular"]


@dataclass(frozen=True)
class Windowing:
    """How a network is run over a scan that is larger than its window.

    Attributes:
        roi_size: size of the window in voxels, along the axes of the prepared array.
        overlap: of neighboring windows, as a fraction of their size.
        mode: weights within a window: `constant`, `gaussian` (MONAI's: about the middle, never below 0.001), or
            `gaussian_peak` (nnU-Net's: about the voxel size // 2, as small as it gets).
        sigma_scale: standard deviation of a gaussian, as a fraction of the window's size.
        padding_mode: how a scan is filled up on both sides that is smaller than the window.
        blend: what is averaged where windows overlap: `probabilities`, or `logits`.
        mirror_axes: axes of the prepared array along which windows are mirrored as well, in all combinations, and the
            logits averaged; none by default.
        placement: `step` goes on by a fixed step and moves the last window back to the edge, as MONAI does; `even`
            spreads as many windows as that takes evenly, as nnU-Net does.
    """

    roi_size: tuple[int, int, int]
    overlap: float = 0.5
    mode: WindowWeights = "gaussian"
    padding_mode: Padding = "constant"
    blend: Literal["probabilities", "logits"] = "probabilities"
    mirror_axes: tuple[int, ...] = ()
    placement: Literal["step", "even"] = "step"
    sigma_scale: float = 0.125


@dataclass(frozen=True)
class BaseModel(ABC):
    """A base model on disk.

    Attributes:
        folder: where it is.
        name: of its folder or catalogue entry.
        metadata: what it says of itself: version, description, license, structures.
        channels: name of each output channel. With a softmax the first is the background, and channels of equal name
            vote for one structure together; with a sigmoid each is a region, and regions may overlap.
        input_channels: name of each input channel.
        preprocessing: how a scan is brought to the network, and its output back.
        windows: how the network is run over a scan.
        weights: the weights file.
        activation: what turns logits into probabilities.
    """

    folder: Path
    name: str
    metadata: Mapping[str, Any]
    channels: tuple[str, ...]
    input_channels: tuple[str, ...]
    preprocessing: Preprocessing
    windows: Windowing
    weights: Path
    activation: Activation

    kind: ClassVar[str]

    @abstractmethod
    def build(self, trial: bool = True) -> nn.Module:
        """Make the network and load its weights.

        Args:
            trial: also put a window without numbers through it. It loads torch's compiler, which takes longer than
                making the network, so whoever computes a window at once leaves it out, and asks for it when that fails.

        Raises:
            InputError: when the weights cannot be read or do not fit the network, or it fails in the trial.
        """

    @property
    @abstractmethod
    def network_name(self) -> str:
        """The class of the network, for people."""

    @property
    @abstractmethod
    def files(self) -> tuple[Path, ...]:
        """All files that the model is made from."""

    @property
    def in_channels(self) -> int:
        """Components that a voxel of a scan must have."""
        return len(self.input_channels)

    @property
    def structures(self) -> list[str]:
        """Names of the structures, without the background, each once."""
        return list(dict.fromkeys(name for name in self.channels if name != BACKGROUND))

    @property
    def label_values(self) -> tuple[int, ...]:
        """Label value of each structure, unless the metadata names another; 1, 2, ... unless a kind has its own.

        Regions are written in the order of the structures to formats that hold one label for each voxel: later ones
        overwrite earlier ones. An nnU-Net's `regions_class_order` holds these values.
        """
        return tuple(range(1, len(self.structures) + 1))

    @property
    def notes(self) -> tuple[str, ...]:
        """What its user ought to know, in a sentence each."""
        return ()

    @property
    def mirror_axes(self) -> tuple[int, ...]:
        """Axes of the prepared array along which windows may be mirrored as well; none unless the model says so."""
        return ()

    def labelled_structures(self) -> list[Structure]:
        """The structures with label values, colors and terminology where the metadata has them."""
        try:
            known = {entry["name"]: entry for entry in self.metadata.get("structures") or () if "name" in entry}
            return [
                Structure.from_dict({"value": value, **known.get(name, {}), "name": name})
                for name, value in zip(self.structures, self.label_values, strict=True)
            ]
        except (TypeError, ValueError, IndexError, KeyError) as error:
            raise self.bad("has 'structures' in its metadata that cannot be read") from error

    @cached_property
    def sha256(self) -> str:
        """The model's identity: SHA-256 of the weights file."""
        return _sha256(file_state(self.weights))

    def takes_window(self, network: nn.Module, size: Sequence[int]) -> bool:
        """Return whether the network computes windows of another size than its usual one, as far as can be told."""
        try:
            return self._outputs(network, size) == len(self.channels)
        except Exception:  # networks fail in many ways on a size that they were not made for
            return False

    def bad(self, what: str, remedy: str = "Choose another model, or correct this one.") -> InputError:
        """Return an error that says what is wrong with this model."""
        return InputError(f"The base model '{self.name}' {what}.", remedy, "bad_bundle")

    def _outputs(self, network: nn.Module, size: Sequence[int]) -> int:
        """Put a window through the network without memory and numbers, and count the channels that come out."""
        # Of a copy, because some networks keep what they computed last.
        weightless = {id(tensor): tensor.to("meta") for tensor in (*network.parameters(), *network.buffers())}
        window = torch.empty(1, self.in_channels, *size, device="meta")
        with torch.no_grad():
            return int(copy.deepcopy(network, weightless)(window).shape[1])

    def _try(self, network: nn.Module, where: str) -> None:
        """Know at once what cannot be computed.

        Args:
            network: with its weights.
            where: what to correct where it fails.

        Raises:
            InputError: when the network fails, or votes for another number of structures than the model names.
        """
        size = " x ".join(map(str, self.windows.roi_size))
        try:
            found = self._outputs(network, self.windows.roi_size)
        except Exception as error:
            if isinstance(error, NotImplementedError) or "meta" in str(error):
                return  # It cannot be computed in this way, which says nothing about the network.
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise self.bad(f"has a network that fails on its window of {size} voxels: {first}", where) from error
        if found != len(self.channels):
            raise self.bad(f"has {found} output channels, but names {len(self.channels)}", where)


class FileState(NamedTuple):
    """Changes whenever a file is replaced or written to."""

    path: Path
    inode: int
    size: int
    changed_ns: int


def file_state(path: Path) -> FileState:
    """Return a file's state."""
    status = path.stat()
    return FileState(path.resolve(), status.st_ino, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _sha256(state: FileState) -> str:
    """Hash a file, once for each of its states."""
    return sha256_of_file(state.path)
