"""MONAI bundles on disk: recognized, described and copied; without torch and MONAI."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

KIND = "MONAI bundle"
WEIGHTS = ("model.safetensors", "model.pt")


def is_bundle(path: Path) -> bool:
    """Return whether a folder is a bundle's; it may still lack its weights."""
    return is_folder(path / "configs")


def weights_of(folder: Path) -> Path | None:
    """The weights file of a bundle."""
    return next((path for name in WEIGHTS if (path := folder / "models" / name).is_file()), None)


def describe_bundle(folder: Path) -> dict[str, Any]:
    """Describe a bundle for lists, as far as its files can be read."""
    metadata, structures = read_metadata(folder), []
    with suppress(KeyError, TypeError, AttributeError):
        channels = metadata["network_data_format"]["outputs"]["pred"]["channel_def"].values()
        structures = [name for name in dict.fromkeys(map(str, channels)) if name.casefold() != "background"]
    title = str(metadata.get("name") or folder.name)
    return {"kind": KIND, "title": title, "structures": structures, "terminology": terminology_of(metadata)}


def read_metadata(folder: Path) -> dict[str, Any]:
    """What a bundle says of itself; nothing where it is damaged: it stays in the list, and loading it says why."""
    try:
        metadata = json.loads((folder / "configs" / "metadata.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return metadata if isinstance(metadata, dict) else {}


def terminology_of(metadata: Mapping[str, Any]) -> dict[str, str]:
    """The terminology entry of each structure that a bundle's metadata gives one."""
    entries = metadata.get("structures")
    return {
        str(entry["name"]): entry["terminology"]
        for entry in (entries if isinstance(entries, list) else ())
        if isinstance(entry, dict) and isinstance(entry.get("terminology"), str) and "name" in entry
    }


def belongs(inside: PurePosixPath) -> bool:
    """Return whether a file, by its path inside a bundle, is one that this program keeps."""
    top = inside.parts[0]
    if len(inside.parts) == 1:
        return top.upper().startswith(("LICENSE", "LICENCE"))
    if top == "docs":
        return True
    return len(inside.parts) == 2 and (
        (top == "configs" and inside.suffix == ".json") or (top == "models" and inside.name in WEIGHTS)
    )


def is_folder(path: Path) -> bool:
    """Return whether a path is a folder's; False for what no path can be."""
    try:
        return path.is_dir()
    except (OSError, ValueError):  # too long, or with characters that no path has
        return False
