"""Open what segments: an adapter on its base model, or a base model; and keep it open for the next time."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from tcurlora.errors import InputError
from tcurlora.imaging.structures import Structure
from tcurlora.inference.segmenter import Segmenter
from tcurlora.method.model import Places, TensorCurModel, find_places, fingerprint
from tcurlora.models.adapter_files import CONFIG, WEIGHTS, load_adapter, read_adapter_config, read_adapter_structures
from tcurlora.models.adapter_library import find_adapter, is_adapter, list_adapters
from tcurlora.models.base_model import BaseModel, Windowing, file_state
from tcurlora.models.catalogue import list_models
from tcurlora.models.opening import load_base_model
from tcurlora.runtime.devices import choose_device

CPU = torch.device("cpu")
KEPT_BYTES = 512 * 2**20
"""Weights that are kept besides those in use."""


class AdaptedNetwork(nn.Module):
    """A network that computes with an adapter's weights in place of its own, without a copy of the network.

    Args:
        network: the base, on the device where it is run; it is shared with others and never changed.
        weights: the adapted weights by the names of the network's parameters.
        places: of all parameters, from `find_places`.
    """

    def __init__(self, network: nn.Module, weights: Mapping[str, Tensor], places: Places) -> None:
        super().__init__()
        self._shared = (network,)  # not as a part of this module, which is moved to a device without the others
        self._places: list[tuple[str, str]] = []
        own = dict(network.named_parameters())
        for number, (name, weight) in enumerate(weights.items()):
            self.register_buffer(f"weight_{number}", _laid_out_like(own[name], weight))
            self._places += [(place, f"weight_{number}") for place in places[name]]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        values = {place: getattr(self, name) for place, name in self._places}
        # Without torch's own tying, which swaps a layer of several names twice.
        return functional_call(self._shared[0], values, args, kwargs, tie_weights=False)

    def folded(self) -> nn.Module:
        """Give the weights to the network itself, for whoever has it alone."""
        for place, name in self._places:
            module, _, parameter = place.rpartition(".")
            layer = self._shared[0].get_submodule(module)
            setattr(layer, parameter, nn.Parameter(getattr(self, name), requires_grad=False))
        return self._shared[0]


def _laid_out_like(parameter: Tensor, weight: Tensor) -> Tensor:
    """Give a weight the memory layout of another one, on which it depends how torch computes with it."""
    # A parameter is copied in any case, because it is somebody's, who may change it.
    if weight.shape != parameter.shape or weight.stride() == parameter.stride():
        return weight.detach().clone() if isinstance(weight, nn.Parameter) else weight.detach()
    return torch.empty_like(parameter).copy_(weight.detach())


@dataclass
class _OpenBase:
    """A base model, its network on each device where it has been run, and on the processor in any case.

    Attributes:
        spare: what the last adapter was opened with, for the next one.
    """

    key: Hashable
    description: BaseModel
    networks: dict[torch.device, nn.Module]
    spare: TensorCurModel | None = None

    def on(self, device: torch.device) -> nn.Module:
        if device not in self.networks:
            self.networks[device] = copy.deepcopy(self.networks[CPU]).to(device)
        return self.networks[device]

    @cached_property
    def identity(self) -> str:
        return fingerprint(self.networks[CPU])

    @cached_property
    def places(self) -> Places:
        return find_places(self.networks[CPU])

    @cached_property
    def bytes(self) -> int:
        return _bytes(self.networks[CPU])


class _Open(NamedTuple):
    segmenter: Segmenter
    base: _OpenBase
    own_bytes: int


class SegmenterCache:
    """Opens segmenters and keeps those used last, as long as no file changes that they were made from.

    All segmenters of one base share its network; an adapter keeps what it changes.

    Args:
        kept_bytes: weights that are kept besides those of the base and of the segmenter opened last.
    """

    def __init__(self, kept_bytes: int = KEPT_BYTES) -> None:
        self._kept_bytes = kept_bytes
        self._open: OrderedDict[Hashable, _Open] = OrderedDict()
        self._base: _OpenBase | None = None

    def open(
        self,
        model: str,
        base: str = "",
        device: str = "auto",
        overlap: float | None = None,
        mirror: bool = False,
        fold: str = "",
    ) -> Segmenter:
        """Load an adapter on its base, or a plain base model, or find it still open.

        Args:
            model: adapter (folder or name in the library) or base model (folder or name in the catalogue).
            base: base model of an adapter where it is not in the catalogue.
            device: `auto`, `cpu`, `cuda`, ...
            overlap: of neighboring windows; None takes the model's own.
            mirror: also mirror each window along the axes that the model allows.
            fold: of an nnU-Net, whose weights to use; not of an adapter, which was made for one.

        Raises:
            InputError: when the model is neither, the adapter's base is not found, or it has no such folds or axes.
        """
        where = choose_device(device)
        folder = find_adapter_or_path(model)
        adapter = folder if is_adapter(folder) else None
        if adapter and fold:
            raise InputError(
                f"'{adapter.name}' is an adapter, which was made for one fold of its base.",
                "Leave out --fold.",
                "no_fold",
            )
        found = base_of_model(model, base, fold)
        base_key = tuple(file_state(file) for file in found.files)
        adapter_key = tuple(file_state(adapter / name) for name in (CONFIG, WEIGHTS)) if adapter else ()
        key = (base_key, adapter_key, where, overlap, mirror)
        if key not in self._open:
            opened = self._open_base(found.folder, base_key, fold)
            network, channels, structures = _adapted(opened, where, adapter) if adapter else _plain(opened, where)
            description = opened.description
            segmenter = Segmenter(
                network,
                channels,
                structures,
                description.preprocessing,
                _windows(description, overlap, mirror),
                where,
                description.in_channels,
                description.build,  # whose trial says what is wrong with a model that fails
                description.activation,
            )
            self._open[key] = _Open(segmenter, opened, _bytes(network) if adapter else 0)
        self._open.move_to_end(key)
        self._let_go()
        return self._open[key].segmenter

    def clear(self) -> None:
        """Let go of everything."""
        self._open.clear()
        self._base = None

    def _open_base(self, folder: Path, key: Hashable, fold: str) -> _OpenBase:
        if self._base is None or self._base.key != key:
            self._base = None  # before the next one is loaded, not after
            # Read anew after the state of the files has been taken, so that a change in between is not missed.
            description = load_base_model(folder, fold)
            self._base = _OpenBase(key, description, {CPU: description.build(trial=False)})
        return self._base

    def _let_go(self) -> None:
        last = next(reversed(self._open))
        bases, kept = {id(self._base), id(self._open[last].base)}, 0
        for key, opened in reversed(list(self._open.items())[:-1]):
            kept += opened.own_bytes + (0 if id(opened.base) in bases else opened.base.bytes)
            bases.add(id(opened.base))
            if kept > self._kept_bytes:
                del self._open[key]


def _adapted(
    base: _OpenBase, device: torch.device, adapter: Path
) -> tuple[nn.Module, Sequence[str], Sequence[Structure]]:
    model = load_adapter(base.networks[CPU], adapter, base.identity, base.spare)
    base.spare = model
    channels = [channel.name for channel in model.config.channels or ()] or base.description.channels
    with torch.no_grad():
        network = AdaptedNetwork(base.on(device), model.adapted_parameters(), base.places)
    return network, channels, read_adapter_structures(adapter)


def _plain(base: _OpenBase, device: torch.device) -> tuple[nn.Module, Sequence[str], Sequence[Structure]]:
    return base.on(device), base.description.channels, base.description.labelled_structures()


def _windows(base: BaseModel, overlap: float | None, mirror: bool) -> Windowing:
    windows = base.windows if overlap is None else replace(base.windows, overlap=overlap)
    if not mirror:
        return windows
    if not base.mirror_axes:
        raise InputError(
            f"The base model '{base.name}' was not trained for mirrored windows.", "Leave out --mirror.", "no_mirroring"
        )
    return replace(windows, mirror_axes=base.mirror_axes)


def open_once(
    model: str,
    base: str = "",
    device: str = "auto",
    overlap: float | None = None,
    mirror: bool = False,
    fold: str = "",
) -> Segmenter:
    """Open a segmenter that no other one is opened beside, so that only the weights in use are kept.

    Args:
        model: as in `SegmenterCache.open`.
        base: as there.
        device: as there.
        overlap: as there.
        mirror: as there.
        fold: as there.

    Raises:
        InputError: as there.
    """
    segmenter = SegmenterCache().open(model, base, device, overlap, mirror, fold)
    if isinstance(segmenter.network, AdaptedNetwork):
        segmenter.network = segmenter.network.folded()
    return segmenter


def _bytes(network: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers()))


def release_device_memory() -> None:
    """Give memory that nothing uses back to the graphics card, for whoever else draws or computes on it."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def find_adapter_or_path(model: str) -> Path:
    """The adapter of that name in the library, or the path itself."""
    try:
        return find_adapter(model)
    except InputError:
        return Path(model)


def base_of_model(model: str, base: str = "", fold: str = "") -> BaseModel:
    """Find the base model that an adapter was made for, or the base model itself.

    Args:
        model: as in `SegmenterCache.open`.
        base: as there.
        fold: as there.

    Raises:
        InputError: when the model is neither, or the adapter's base is not found.
    """
    folder = find_adapter_or_path(model)
    return base_of_adapter(folder, base) if is_adapter(folder) else _base_named(model, fold)


def _base_named(model: str, fold: str) -> BaseModel:
    try:
        return load_base_model(model, fold)
    except InputError as error:
        if error.code != "unknown_base":
            raise
        adapters = ", ".join(f"'{entry['name']}'" for entry in list_adapters()) or "none"
        raise InputError(
            f"'{model}' is neither an adapter nor a base model.",
            f"Give a folder or a name. {error.remedy} Adapters in the library: {adapters}.",
            "unknown_model",
        ) from error


def base_of_adapter(adapter: Path, given: str = "") -> BaseModel:
    """Find the base model that an adapter was made for, by the identity of its weights.

    Args:
        adapter: the adapter's folder.
        given: name or folder of the base, where it is not in the catalogue.

    Raises:
        InputError: when no installed base has these weights.
    """
    if given:
        return load_base_model(given)
    wanted = read_adapter_config(adapter).get("base_model", {})
    # That of the same name first: to know a model by its weights, all of its file has to be read.
    for entry in sorted(list_models(), key=lambda entry: entry["name"] != wanted.get("name")):
        if entry["on_disk"]:
            try:
                base = load_base_model(entry["path"])
            except InputError:
                continue  # another model that is damaged is no reason to refuse this one
            if base.sha256 == wanted.get("sha256"):
                return base
    raise InputError(
        f"The base model '{wanted.get('name')}' of the adapter '{adapter.name}' is not on this computer, "
        "or its file has changed.",
        "Add it to your base models (with 'tcurlora models add FOLDER', or name its folder with --base).",
        "base_not_found",
    )
