"""The kinds of base models: how each is recognized, described, copied and opened; without torch.

Whoever adds a kind adds a line to `KINDS`. What opens a model may import torch, and is imported when one is opened.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from tcurlora.errors import InputError
from tcurlora.models import bundle_files, nnunet_files

if TYPE_CHECKING:
    from tcurlora.models.base_model import BaseModel


@dataclass(frozen=True)
class AddOptions:
    """What the user says of a model that is added.

    Attributes:
        fold: of an nnU-Net, those to keep, such as `0,1,2`; the usual one when empty.
        orientation: of an nnU-Net's training data, such as `RAS`; what can be found out when empty.
    """

    fold: str = ""
    orientation: str = ""


@dataclass(frozen=True)
class Kind:
    """A kind of base model.

    Attributes:
        name: for people.
        recognizes: whether a path leads to a model of this kind.
        describe: what lists say of one: kind, title, structures and the like; never raises for a damaged one.
        name_of: what one is called when it is added without a name.
        files: the files of one that are copied, each with its place in the copy; raises for one that is none.
        settings: files that are written into the copy, by their place in it.
        opener: `module:function` that opens one, given its path.
        folds: whether it has folds, and an orientation of its own; the opener takes a fold then.
    """

    name: str
    recognizes: Callable[[Path], bool]
    describe: Callable[[Path], dict[str, Any]]
    name_of: Callable[[Path], str]
    files: Callable[[Path, AddOptions], list[tuple[Path, PurePosixPath]]]
    settings: Callable[[Path, AddOptions], dict[PurePosixPath, str]]
    opener: str
    folds: bool = False

    def open(self, path: Path, fold: str = "") -> BaseModel:
        """Open a model of this kind.

        Raises:
            InputError: when it cannot be used, or has no folds and one is asked for.
        """
        module, _, function = self.opener.partition(":")
        opener: Callable[..., BaseModel] = getattr(importlib.import_module(module), function)
        if self.folds:
            return opener(path, fold)
        if fold:
            raise no_folds(path.name, self.name)
        return opener(path)


def no_folds(name: str, kind: str) -> InputError:
    """Return the error for options that a kind does not have."""
    return InputError(
        f"'{name}' is a {kind}, which has no folds and no orientation to choose.",
        "Leave out --fold, --mirror and --orientation.",
        "no_fold",
    )


def _bundle_files(folder: Path, options: AddOptions) -> list[tuple[Path, PurePosixPath]]:
    if options != AddOptions():
        raise no_folds(folder.name, bundle_files.KIND)
    inside = [(path, PurePosixPath(path.relative_to(folder).as_posix())) for path in sorted(folder.rglob("*"))]
    return [(path, place) for path, place in inside if bundle_files.belongs(place) and path.is_file()]


KINDS = (
    Kind(
        bundle_files.KIND,
        bundle_files.is_bundle,
        bundle_files.describe_bundle,
        lambda path: path.resolve().name,
        _bundle_files,
        lambda _path, _options: {},
        "tcurlora.models.monai_bundle:open_bundle",
    ),
    Kind(
        nnunet_files.KIND,
        nnunet_files.is_nnunet,
        nnunet_files.describe_trained,
        nnunet_files.name_of,
        lambda path, options: nnunet_files.files_to_copy(path, options.fold),
        lambda path, options: nnunet_files.settings_of_copy(path, options.orientation),
        "tcurlora.models.nnunet:open_nnunet",
        folds=True,
    ),
)


def kind_of(path: Path) -> Kind | None:
    """The kind of model that a path leads to; None where it leads to none."""
    for kind in KINDS:
        if kind.recognizes(path):
            return kind
    return None
