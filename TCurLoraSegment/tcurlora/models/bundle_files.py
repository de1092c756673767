"""MONAI bundles on disk: recognized, described and copied; without torch and MONAI."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from tcurlora.errors import InputError
from tcurlora.models.bundle_config import CONFIG_SUFFIXES, BundleConfig, first_unknown, read_config

KIND = "MONAI bundle"
METADATA = "metadata.json"
WEIGHTS_SUFFIXES = (".safetensors", ".pt", ".pth")


def is_bundle(path: Path) -> bool:
    """Return whether a folder is a bundle's; it may still lack its weights."""
    return is_folder(path / "configs")


def inference_file(folder: Path) -> Path:
    """Return a bundle's inference config, whatever its format; that of JSON when there is none."""
    paths = [folder / "configs" / f"inference{suffix}" for suffix in CONFIG_SUFFIXES]
    return next((path for path in paths if path.is_file()), paths[0])


def in_models(path: str, folder: Path) -> Path | None:
    """Find a file that a config names in the bundle's folder 'models', wherever it takes the bundle to be."""
    parts = PurePosixPath(path.replace("\\", "/")).parts
    if not parts or ".." in parts or any(":" in part or "\0" in part for part in parts):
        return None
    after = parts[len(parts) - parts[::-1].index("models") :] if "models" in parts else parts[-1:]
    return folder.joinpath("models", *after) if after else None


def weights_candidates(config: BundleConfig, folder: Path) -> tuple[Path, Path]:
    """The weights file that a config loads, as safetensors and as it says."""
    named = (config.resolve(loader.get("load_path")) for loader in config.components("CheckpointLoader"))
    paths = (in_models(text, folder) for text in named if isinstance(text, str))
    path = next((found for found in paths if found is not None and found.suffix in WEIGHTS_SUFFIXES), None)
    path = path or folder / "models" / "model.pt"
    return path.with_suffix(".safetensors"), path


def weights_of(folder: Path) -> Path | None:
    """The weights file of a bundle."""
    try:
        config = BundleConfig(read_config(inference_file(folder)), folder.name)
        candidates = weights_candidates(config, folder)
    except InputError:  # it stays in the list, and loading it says why
        candidates = weights_candidates(BundleConfig({}, folder.name), folder)
    return next((path for path in candidates if path.is_file()), None)


def describe_bundle(folder: Path) -> dict[str, Any]:
    """Describe a bundle for lists, as far as its files can be read."""
    metadata = read_metadata(folder)
    title = str(metadata.get("name") or folder.name)
    return {
        "kind": KIND,
        "title": title,
        "structures": [name for name in dict.fromkeys(_channels(metadata)) if name.casefold() != "background"],
        "terminology": terminology_of(metadata),
        "version": str(metadata.get("version", "")),
        **_from_config(folder, metadata),
    }


def _channels(metadata: Mapping[str, Any]) -> list[str]:
    with suppress(KeyError, TypeError, AttributeError):
        pred = metadata["network_data_format"]["outputs"]["pred"]
        return [str(name) for name in (pred["channel_def"] if "channel_def" in pred else pred["label_def"]).values()]
    return []


def _from_config(folder: Path, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Network, voxel size and input channels, where they can be told."""
    found: dict[str, Any] = {"network": "", "spacing": None, "input_channels": []}
    with suppress(InputError, KeyError, TypeError, AttributeError):
        config = BundleConfig(read_config(inference_file(folder)), folder.name)
        network_def = config.get("network_def")
        found["network"] = str(network_def["_target_"]).rpartition(".")[2]
        for step in config.get("preprocessing")["transforms"]:
            target = str(step["_target_"]).rpartition(".")[2]
            if target in ("Spacing", "Spacingd", "SpacingD", "SpacingDict") and first_unknown(step["pixdim"]) is None:
                found["spacing"] = step["pixdim"]
            if target in ("ConcatImages", "ConcatItemsd"):
                found["input_channels"] = step.get("keys_merge", step["keys"])
    with suppress(KeyError, TypeError, AttributeError):
        image = metadata["network_data_format"]["inputs"]["image"]
        names = [str(name) for name in image["channel_def"].values()]
        if len(names) == image["num_channels"]:
            found["input_channels"] = found["input_channels"] or names
    return found


def read_metadata(folder: Path) -> dict[str, Any]:
    """What a bundle says of itself; nothing where it is damaged: it stays in the list, and loading it says why."""
    try:
        metadata = json.loads((folder / "configs" / METADATA).read_text(encoding="utf-8"))
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
        (top == "configs" and inside.suffix in CONFIG_SUFFIXES)
        or (top == "models" and inside.suffix in WEIGHTS_SUFFIXES)
    )


def is_folder(path: Path) -> bool:
    """Return whether a path is a folder's; False for what no path can be."""
    try:
        return path.is_dir()
    except (OSError, ValueError):  # too long, or with characters that no path has
        return False
