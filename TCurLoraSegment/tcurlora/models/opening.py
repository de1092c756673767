"""Open a base model of any kind, by its name or by where it is."""

from __future__ import annotations

from pathlib import Path

from tcurlora.models.base_model import BaseModel
from tcurlora.models.catalogue import find_base_folder, not_a_model
from tcurlora.models.kinds import kind_of


def load_base_model(name_or_folder: str | Path, fold: str = "") -> BaseModel:
    """Read a base model's description; the weights are read by its `build`.

    Args:
        name_or_folder: a name from the catalogue, or the model's folder.
        fold: of an nnU-Net, whose weights to use: `0`, `all`, or several such as `0,1,2`; the usual one when empty.

    Raises:
        InputError: when it is not a base model of a known kind, or asks for something that is not on an allow-list.
    """
    path = find_base_folder(name_or_folder)
    kind = kind_of(path)
    if kind is None:  # it has gone since it was found
        raise not_a_model(path)
    return kind.open(path, fold)
