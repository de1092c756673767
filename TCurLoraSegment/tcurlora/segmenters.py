"""Open what segments: an adapter merged into its base model, or a base model; and keep it open for the next time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from pathlib import Path

import torch
from torch import nn

from tcurlora.adapter import fingerprint
from tcurlora.adapter_files import CONFIG, WEIGHTS, load_adapter, read_adapter_config
from tcurlora.adapter_library import find_adapter, is_adapter
from tcurlora.base_models import BaseModel, file_state, load_base_model
from tcurlora.catalogue import list_models
from tcurlora.devices import choose_device
from tcurlora.errors import InputError
from tcurlora.inference import Segmenter
from tcurlora.labels import Structure

KEPT_BYTES = 512 * 2**20
"""Weights that are kept besides those in use."""


class SegmenterCache:
    """Opens segmenters and keeps those used last, as long as no file changes that they were made from.

    Args:
        kept_bytes: weights that are kept besides those of the segmenter opened last.
    """

    def __init__(self, kept_bytes: int = KEPT_BYTES) -> None:
        self._kept_bytes = kept_bytes
        self._segmenters: OrderedDict[Hashable, Segmenter] = OrderedDict()
        self._base: tuple[Hashable, nn.Module, str] | None = None

    def open(self, model: str, base: str = "", device: str = "auto", overlap: float = 0.5) -> Segmenter:
        """Load an adapter merged into its base, or a plain base model, or find it still open.

        Args:
            model: adapter (folder or name in the library) or base model (folder or name in the catalogue).
            base: base model of an adapter where it is not in the catalogue.
            device: `auto`, `cpu`, `cuda`, ...
            overlap: of neighbouring windows.

        Raises:
            InputError: when the model is neither, or the adapter's base is not found.
        """
        where = choose_device(device)
        folder = find_adapter_or_path(model)
        adapter = folder if is_adapter(folder) else None
        found = base_of_adapter(adapter, base) if adapter else load_base_model(model)
        base_key = tuple(file_state(file) for file in found.files)
        adapter_key = tuple(file_state(adapter / name) for name in (CONFIG, WEIGHTS)) if adapter else ()
        key = (base_key, adapter_key, where, overlap)
        if key not in self._segmenters:
            # Read anew after the state of the files has been taken, so that a change in between is not missed.
            found = load_base_model(found.folder)
            opened = self._adapted(found, base_key, adapter) if adapter else _plain(found)
            network, channels, structures = opened
            self._segmenters[key] = Segmenter(
                network, channels, structures, found.preprocessing, where, found.in_channels, overlap
            )
        self._segmenters.move_to_end(key)
        self._let_go()
        return self._segmenters[key]

    def clear(self) -> None:
        """Let go of everything."""
        self._segmenters.clear()
        self._base = None

    def _adapted(self, base: BaseModel, key: Hashable, adapter: Path) -> tuple[nn.Module, list[str], list[Structure]]:
        if self._base is None or self._base[0] != key:
            self._base = None  # before the next one is loaded, not after
            network = base.build()
            self._base = (key, network, fingerprint(network))
        _, network, identity = self._base
        model = load_adapter(network, adapter, identity)
        channels = [channel.name for channel in model.config.channels or ()] or list(base.channels)
        return model.merged(), channels, _structures_of(adapter)

    def _let_go(self) -> None:
        kept = 0
        for key, segmenter in reversed(list(self._segmenters.items())[:-1]):
            kept += sum(tensor.nbytes for tensor in segmenter.network.state_dict().values())
            if kept > self._kept_bytes:
                del self._segmenters[key]


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
    for entry in list_models():
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
        "Name its folder with --base, or add it with 'tcurlora models add FOLDER'.",
        "base_not_found",
    )


def _plain(base: BaseModel) -> tuple[nn.Module, list[str], list[Structure]]:
    return base.build(), list(base.channels), base.labelled_structures()


def _structures_of(adapter: Path) -> list[Structure]:
    try:
        return [Structure.from_dict(entry) for entry in read_adapter_config(adapter)["structures"]]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise InputError(
            f"The adapter '{adapter.name}' does not say which structures it segments.",
            "Use another copy of it, or adapt the model again.",
            "damaged_adapter",
        ) from error
