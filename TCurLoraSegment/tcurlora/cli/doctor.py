"""What works on this computer, and what to do about what does not."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tcurlora.runtime.system_memory import memory
from tcurlora_contract.folders import adapters_folder, data_folder

PACKAGES = (
    "torch",
    "monai",
    "SimpleITK",
    "numpy",
    "scipy",
    "safetensors",
    "einops",
    "filelock",
    "pydicom",
    "PyYAML",
)
_MODULES = {"PyYAML": "yaml"}
"""Packages that are imported under another name."""

MINIMUM_PYTHON = (3, 10)
MINIMUM_MEMORY = 4 * 2**30
MINIMUM_DISK = 2 * 2**30


def examine(base_models: Sequence[str] | None = None) -> dict[str, Any]:
    """Look at Python, packages, device, memory, disk and folders; nothing is changed and no network is used.

    Args:
        base_models: names of the base models that are installed; None leaves them out.

    Returns:
        `ok` (nothing stands in the way) and `items`, each with name, value, ok and remedy (empty when ok).
    """
    items = [
        _item(
            "Python",
            platform.python_version(),
            sys.version_info >= MINIMUM_PYTHON,
            "Install Python {}.{} or newer.".format(*MINIMUM_PYTHON),
        ),
        _item("system", f"{platform.system()} {platform.release()} {platform.machine()}"),
        _item("tcurlora", _version("tcurlora") or "run from source"),
        *(_package(name) for name in PACKAGES),
        *_devices(),
        *_memory(),
        _disk(),
        _adapters_folder(),
    ]
    if base_models is not None:
        value = ", ".join(base_models) or "none"
        items.append(_item("base models", value, bool(base_models), "Add one with `tcurlora models add`."))
    return {"ok": all(item["ok"] for item in items), "items": items}


def describe(report: Mapping[str, Any]) -> str:
    """Put the result of `examine` into lines for a person, the remedy under what is wrong."""
    width = max(len(item["name"]) for item in report["items"])
    lines = []
    for item in report["items"]:
        lines.append(f"{'ok     ' if item['ok'] else 'PROBLEM'}  {item['name'].ljust(width)}  {item['value']}")
        if not item["ok"]:
            lines.append(f"         {item['remedy']}")
    wrong = sum(not item["ok"] for item in report["items"])
    problems = "1 problem" if wrong == 1 else f"{wrong} problems"
    return "\n".join([*lines, "", "Everything works here." if report["ok"] else f"{problems} found, see above."])


def _item(name: str, value: str, ok: bool = True, remedy: str = "") -> dict[str, Any]:
    return {"name": name, "value": value, "ok": ok, "remedy": "" if ok else remedy}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _package(name: str) -> dict[str, Any]:
    version = _version(name)
    spec = importlib.util.find_spec(_MODULES.get(name, name))
    there = spec is not None and spec.origin is not None  # a folder that an uninstallation left has no origin
    if version is None and there:
        return _item(name, "of unknown version")  # as packages that were not installed by pip
    if version is not None and not there:
        return _item(name, f"{version}, without its files", False, f"Uninstall it, then install it: pip install {name}")
    return _item(name, version or "missing", there, f"Install it: pip install {name}")


def _devices() -> list[dict[str, Any]]:
    try:
        import torch
    except Exception as error:  # a broken installation fails in many ways, and each is worth telling
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return [_item("device", f"torch does not start: {reason}", False, "Install torch anew.")]
    items = [_item("device cpu", f"{torch.get_num_threads()} threads")]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(index)
            items.append(_item(f"device cuda:{index}", f"{device.name}, {_size(device.total_memory)}"))
    if torch.backends.mps.is_available():
        items.append(_item("device mps", "Apple GPU"))
    return items


def _memory() -> list[dict[str, Any]]:
    total, available = memory()
    if total is None:
        return [_item("memory", "unknown")]
    remedy = f"Adapting needs about {_size(MINIMUM_MEMORY)}; close other programs or use a larger machine."
    items = [_item("memory", _size(total), total >= MINIMUM_MEMORY, remedy)]
    if available is not None:
        items.append(_item("memory free", _size(available), available >= MINIMUM_MEMORY // 2, remedy))
    return items


def _disk() -> dict[str, Any]:
    folder = _existing(data_folder())
    free = shutil.disk_usage(folder).free
    return _item("disk free", f"{_size(free)} at {folder}", free >= MINIMUM_DISK, "Free some space on that disk.")


def _adapters_folder() -> dict[str, Any]:
    folder = adapters_folder()
    writable = True
    try:
        # A trial tells more than permission bits, which say little about network drives and Windows.
        with tempfile.TemporaryFile(dir=_existing(folder)):
            pass
    except OSError:
        writable = False
    remedy = "Allow writing there, or set TCURLORA_HOME to another folder."
    return _item("adapters folder", str(folder), writable, remedy)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
