"""Adapters on disk: adapter_config.json, adapter_model.safetensors, report.json and README.md.

Only what the base does not hold is saved: index sets, cores, the head, and the decoder where the preset trains it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from tcurlora.errors import InputError, TCurLoraError
from tcurlora.imaging.structures import Structure
from tcurlora.method.config import TensorCurConfig
from tcurlora.method.model import TensorCurModel, fingerprint
from tcurlora.runtime.atomic_files import whole_folder
from tcurlora.runtime.hashing import sha256_of_bytes
from tcurlora.runtime.json_files import read_object, write_json

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
REPORT = "report.json"
CARD = "README.md"
WHOLE = "whole."


def save_adapter(
    model: TensorCurModel,
    folder: Path,
    details: Mapping[str, Any] | None = None,
    report: Mapping[str, Any] | None = None,
    card: str = "# Adapter\n",
) -> None:
    """Write an adapter folder, whole or not at all.

    Args:
        model: the trained model.
        folder: must not exist.
        details: further content of adapter_config.json, such as the base's name and the labels.
        report: content of report.json.
        card: content of README.md.

    Raises:
        InputError: when the folder exists.
    """
    details = dict(details or {})
    base = {**details.pop("base_model", {}), "fingerprint": fingerprint(model.network)}
    with new_folder(folder) as temporary:
        # Not by save_file, which hides the file from everybody but its owner; an adapter may lie on a shared drive.
        weights = save(model.trained_state())
        (temporary / WEIGHTS).write_bytes(weights)
        details["weights_sha256"] = sha256_of_bytes(weights)
        write_json(temporary / CONFIG, {**_resolved_config(model), "base_model": base, **details})
        write_json(temporary / REPORT, dict(report or {}))
        (temporary / CARD).write_text(card, encoding="utf-8")


def _resolved_config(model: TensorCurModel) -> dict[str, Any]:
    """Describe the configuration with the names of parameters in place of regular expressions.

    The stacks are in it already, so that no expression is needed to find them again.
    """
    return {
        **model.config.to_dict(),
        "target_modules": None,
        "modules_to_save": _trained_whole(model.config, model.trained_state()),
    }


def _trained_whole(config: TensorCurConfig, state: Mapping[str, Tensor]) -> list[str]:
    """Name the parameters that are trained as they are, besides the head, which the configuration names itself."""
    names = (key.removeprefix(WHOLE) for key in state if key.startswith(WHOLE))
    return sorted(name for name in names if name.rpartition(".")[0] != config.head)


def _named(config: TensorCurConfig, state: Mapping[str, Tensor]) -> TensorCurConfig:
    """Let a configuration from a file name exactly the parameters that the file of weights holds.

    Adapters of early versions have regular expressions there. They are not used: an expression from a file may take
    years.
    """
    names = tuple(f"^{re.escape(name)}$" for name in _trained_whole(config, state))
    return replace(config, target_modules=None, modules_to_save=names)


def weights_bytes(state: Mapping[str, Tensor]) -> int:
    """Size of the file of weights that this state makes, in bytes."""
    return len(save(dict(state)))


def load_adapter(
    network: nn.Module, folder: str | Path, identity: str | None = None, spare: TensorCurModel | None = None
) -> TensorCurModel:
    """Put a saved adapter on its base network.

    Args:
        network: the base, with its own weights.
        folder: the adapter.
        identity: the network's fingerprint, where it is known already.
        spare: a model of this network that nobody uses any more. Where it has the same layers and index sets, it takes
            the adapter and is returned, which spares making a model and its factors.

    Raises:
        InputError: when the folder is no adapter, is damaged, or was made for another base.
    """
    folder = Path(folder)
    content = read_adapter_config(folder)
    try:
        state = _read_state(folder, content.get("weights_sha256"))
    except InputError:
        # It may have been replaced by another one in between; a second look meets both files of one adapter.
        content = read_adapter_config(folder)
        state = _read_state(folder, content.get("weights_sha256"))
    config = TensorCurConfig.from_dict(content)
    if content.get("base_model", {}).get("fingerprint") != (identity or fingerprint(network)):
        name = content.get("base_model", {}).get("name", "another one")
        raise InputError(
            f"The adapter '{folder.name}' was made for another base model ({name}), whose weights differ.",
            "Use the base model that is named in the adapter's README.md.",
            "other_base",
        )
    if config.stacks is None:
        raise _damaged(folder)
    stacks = len(config.stacks)
    config = _named(config, state)
    try:
        index_sets = [(state[f"rows.{i}"].long(), state[f"columns.{i}"].long()) for i in range(stacks)]
        if any(rows.dim() != 1 or rows.shape != columns.shape for rows, columns in index_sets):
            raise _damaged(folder)
        if spare is not None and spare.network is network and _fits(spare, config, state):
            model, spare.config = spare, config
        else:
            model = TensorCurModel(network, config, index_sets)
    except (KeyError, IndexError, RuntimeError, AttributeError, TypeError, re.error) as error:
        raise _damaged(folder) from error
    if state.keys() != model.trained_state().keys():
        raise _damaged(folder)
    model.load_trained_state(state)
    return model


def _fits(model: TensorCurModel, config: TensorCurConfig, state: Mapping[str, Tensor]) -> bool:
    """Say whether a model would differ from one made for this configuration and state in what is trained only."""
    # The channels say how the head begins, which the state replaces, and the seed how rows and columns were chosen.
    if replace(config, channels=None, seed=0) != replace(model.config, channels=None, seed=0):
        return False
    own = model.trained_state()
    return own.keys() == state.keys() and all(
        torch.equal(value, state[name]) if name.startswith(("rows.", "columns.")) else value.shape == state[name].shape
        for name, value in own.items()
    )


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """Read adapter_config.json.

    Raises:
        InputError: when the folder is no adapter or the file is damaged.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise InputError(
            f"'{folder.name}' is no adapter: it has no {CONFIG}.", "Choose an adapter's folder.", "not_an_adapter"
        )
    try:
        content = read_object(path)
    except (OSError, ValueError) as error:
        raise _damaged(folder) from error
    if not isinstance(content.get("base_model", {}), dict):
        raise _damaged(folder)
    return content


def read_adapter_structures(folder: Path) -> list[Structure]:
    """Read from adapter_config.json what the adapter segments.

    Raises:
        InputError: when the folder is no adapter, or does not say so.
    """
    try:
        return [Structure.from_dict(entry) for entry in read_adapter_config(folder)["structures"]]
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise InputError(
            f"The adapter '{folder.name}' does not say which structures it segments.",
            "Use another copy of it, or adapt the model again.",
            "damaged_adapter",
        ) from error


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Give a temporary folder beside `folder` that becomes it when all went well, and is deleted otherwise.

    Raises:
        InputError: when the folder exists.
        TCurLoraError: when it cannot be written.
    """
    require_absent(folder)
    try:
        with whole_folder(folder) as temporary:
            yield temporary
    except OSError as error:
        raise TCurLoraError(
            f"'{folder.name}' could not be written ({getattr(error, 'strerror', None) or error}).",
            "Check the free space and the permissions of its folder.",
            "cannot_write",
        ) from error


def require_absent(path: Path) -> None:
    """Refuse to write over something, or where nothing can be written, before any work is done for it.

    Raises:
        InputError: when the path exists, or its folder cannot be made or written to.
    """
    if path.exists():
        raise InputError(
            f"'{path.name}' exists already in '{path.parent.name or path.parent}' and is not overwritten.",
            "Choose another name for the output, or remove it first.",
            "output_exists",
        )
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise InputError(f"'{path.name}' cannot be written in '{above}'.", "Choose another folder.", "cannot_write")


def _read_state(folder: Path, sha256: str | None) -> dict[str, Tensor]:
    try:
        # The bytes, because a file that is mapped into memory cannot be replaced or deleted on Windows.
        content = (folder / WEIGHTS).read_bytes()
        if sha256 is not None and sha256 != sha256_of_bytes(content):
            raise _damaged(folder)
        state: dict[str, Tensor] = load(content)
        if not all(bool(torch.isfinite(tensor).all()) for tensor in state.values()):
            raise _damaged(folder)
    except (OSError, SafetensorError, ValueError, RuntimeError, KeyError) as error:  # the last for an unknown type
        raise _damaged(folder) from error
    return state


def _damaged(folder: Path) -> InputError:
    return InputError(
        f"The adapter '{folder.name}' is damaged.",
        "Use another copy of it, or adapt the model again.",
        "damaged_adapter",
    )
