"""Open a base model of any kind, by its name or by where it is."""

from __future__ import annotations

from pathlib import Path

from tcurlora.models.base_model import BaseModel
from tcurlora.models.catalogue import find_base_folder
from tcurlora.models.monai_bundle import open_bundle


def load_base_model(name_or_folder: str | Path) -> BaseModel:
    """Read a base model's description; the weights are read by its `build`.

    Args:
        name_or_folder: a name from the catalogue, or the model's folder.

    Raises:
        InputError: when it is no base model of a known kind, or asks for something that is not on an allow-list.
    """
    return open_bundle(find_base_folder(name_or_folder))
