"""Files of weights, in the forms in which people save them; nothing in them is executed."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.dtypes import BoolDType, Float32DType, Float64DType, Int8DType, Int32DType, Int64DType, UInt8DType
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tcurlora.errors import InputError

STATE_KEYS = ("state_dict", "model_state_dict", "network_weights", "model", "net", "network", "params")
"""Where a checkpoint keeps the weights, beside its epoch, its optimizer and the like."""

_PREFIXES = ("module.", "_orig_mod.")
_OTHER_PREFIXES = ("model.", "net.", "network.", "_model.")
_DTYPES = [np.dtype, BoolDType, Float32DType, Float64DType, Int8DType, Int32DType, Int64DType, UInt8DType]


def _scalar(dtype: np.dtype[Any], content: bytes = b"") -> Any:
    """Make what a pickle holds of a numpy number; without objects, which would be pickles again."""
    if not isinstance(dtype, np.dtype) or dtype.hasobject or not isinstance(content, bytes):
        raise pickle.UnpicklingError("this is not a number")
    return np.frombuffer(content, dtype, 1)[0]


def _empty_array(_cls: Any, _shape: Any, _kind: Any) -> np.ndarray:
    """Begin an array that the pickle then fills."""
    return np.ndarray((0,), "b")


# Numbers beside the weights, such as the best score. The names are those of numpy 1 and of numpy 2.
_NUMBERS = [
    *_DTYPES,
    (_scalar, "numpy.core.multiarray.scalar"),
    (_scalar, "numpy._core.multiarray.scalar"),
]
# Arrays, which the architecture of a searched network is stored in.
_ARRAYS = [
    *_NUMBERS,
    np.ndarray,
    (_empty_array, "numpy.core.multiarray._reconstruct"),
    (_empty_array, "numpy._core.multiarray._reconstruct"),
]


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict as float32 tensors; a pickle in it is never executed.

    The state dict may lie in a checkpoint under one of `STATE_KEYS`; prefixes of `DataParallel` and `torch.compile`
    are left out of its names.

    Raises:
        InputError: when the file is damaged or holds no state dict; the message says what it is.
    """
    content = _read(path, _NUMBERS)
    try:
        state = _state_in(content)
        weights = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
        # A network with any other value has no opinion on any voxel, and does not say so.
        finite = all(bool(torch.isfinite(tensor).all()) for tensor in weights.values())
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise _bad(path, f"holds no state dict ({error}); nothing in it was executed") from error
    if not finite:
        raise _bad(path, "has weights that are not numbers (NaN or infinite)")
    return weights


def read_arrays(path: Path, names: Sequence[str]) -> dict[str, list[Any]]:
    """Read small arrays, such as the architecture of a searched network, as lists.

    Raises:
        InputError: when the file is damaged, or one is missing or is not small.
    """
    content = _read(path, _ARRAYS)
    found: dict[str, list[Any]] = {}
    for name in names:
        array = content.get(name) if isinstance(content, dict) else None
        if isinstance(array, Tensor):
            array = array.numpy()
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf" or not 0 < array.size <= 2**16:
            raise _bad(path, f"has no array '{name}' of a network's architecture")
        found[name] = array.tolist()
    return found


def without_prefixes(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leave out of the names what `DataParallel` and `torch.compile` put before them."""
    names = list(state)
    while any(all(name.startswith(prefix) for name in names) for prefix in _PREFIXES):
        names = [name.partition(".")[2] for name in names]
    # torch.compile of a part of a network.
    names = [name.replace("._orig_mod.", ".") for name in names]
    if len(set(names)) < len(names):
        raise ValueError("two weights have one name")
    return dict(zip(names, state.values(), strict=True))


def named_as(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leave out of the names a prefix that frameworks put before all of them, where the network's have none.

    Args:
        state: weights of a file.
        own: weights of a network that was just made.
    """
    for prefix in _OTHER_PREFIXES:
        if state and all(name.startswith(prefix) for name in state) and not any(n.startswith(prefix) for n in own):
            return {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return dict(state)


def misfits(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """Say which weights of a file do not fit a network; an empty text where all do.

    Args:
        state: weights of a file.
        own: weights of the network.
    """
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    other = [
        f"{name} is {_times(state[name])} instead of {_times(own[name])}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    found = [("missing", missing), ("not in the network", unexpected), ("of another shape", other)]
    return "; ".join(f"{len(names)} {what} ({_few(names)})" for what, names in found if names)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _times(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"


def _read(path: Path, allowed: list[Any]) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if _is_torchscript(path):
            raise _bad(
                path,
                "is TorchScript, a program with its weights, which would have to be executed; nothing in it was",
                "Get the plain weights of the model, which mostly lie beside it as model.pt.",
            )
        with torch.serialization.safe_globals(allowed):
            return torch.load(path, "cpu", weights_only=True)
    except InputError:
        raise
    except pickle.UnpicklingError as error:
        raise _pickled(path, str(error)) from error
    except (OSError, SafetensorError, RuntimeError, ValueError, EOFError) as error:
        raise _bad(path, "is damaged; nothing in it was executed") from error
    except Exception as error:  # whatever else a hostile file provokes
        raise _bad(path, "is damaged; nothing in it was executed") from error


def _is_torchscript(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") or "/code/" in name for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False


def _pickled(path: Path, message: str) -> InputError:
    """Say what a file asks for that is not read."""
    found = re.search(r"GLOBAL ([\w.]+)", message)
    name = found.group(1) if found else ""
    if name.startswith(("torch.nn.", "monai.networks.", "torch.fx.")) and not name.startswith("torch.nn.parameter"):
        return _bad(
            path,
            f"is a whole pickled network ('{name}') and not its weights; reading it would execute it, which was not "
            "done",
            "Where it was saved, save network.state_dict() instead.",
        )
    holds = f" ('{name}')" if name else ""
    return _bad(
        path,
        f"holds more than weights{holds}, or is damaged; nothing in it was executed",
        "Get the file again from its source, or save network.state_dict() alone.",
    )


def _state_in(content: Any) -> dict[str, Tensor]:
    for _ in range(3):
        if not isinstance(content, dict):
            raise ValueError("it holds no dictionary")
        inner = next((key for key in STATE_KEYS if isinstance(content.get(key), dict)), None)
        if inner is None:
            break
        content = content[inner]
    if not content or not all(isinstance(name, str) for name in content):
        raise ValueError("there are no names, or one is not a text")
    if not all(isinstance(tensor, Tensor) for tensor in content.values()):
        name = next(name for name, tensor in content.items() if not isinstance(tensor, Tensor))
        raise ValueError(f"'{name[:60]}' is not a tensor")
    if any(tensor.is_sparse or tensor.is_quantized or tensor.is_meta for tensor in content.values()):
        raise ValueError("a weight is not stored number by number")
    return without_prefixes(content)


def _bad(path: Path, what: str, remedy: str = "Get the file again from its source.") -> InputError:
    return InputError(f"The weights file '{path.name}' {what}.", remedy, "bad_weights")
