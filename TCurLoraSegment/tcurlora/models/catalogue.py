"""The shelf of base models: those that ship, those that can be downloaded, and the user's own bundles.

A download becomes a model only after its hashes have been verified, and no model is ever seen half written.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from tcurlora.errors import InputError, TCurLoraError
from tcurlora.models.adapter_library import data_folder
from tcurlora.models.bundle_files import KIND as BUNDLE
from tcurlora.models.bundle_files import belongs, is_bundle, is_folder, read_metadata, terminology_of, weights_of
from tcurlora.models.found_models import found_models
from tcurlora.models.kinds import AddOptions, Kind, kind_of
from tcurlora.models.model_archives import harmless_entries, refused, unpack_models
from tcurlora.models.model_downloads import Hash, NotThere, Source, download, hash_of, require_safe, source_of
from tcurlora.runtime.atomic_files import whole_folder
from tcurlora.runtime.events import EventSink

CATALOGUE = "catalogue.json"
# What an archive or a bundle may hold besides its weights: configs, a card, a licence, and zip's own overhead.
MARGIN_BYTES = 16 * 2**20
DEFAULT_OPTIONS = AddOptions()

_NAME = re.compile(r"\w(?:[\w .-]*\w)?")
_ENGINE = Path(__file__).resolve().parents[1]


def models_folder() -> Path:
    """The folder that holds downloaded and added models, one folder each; it may not exist yet."""
    return data_folder() / "models"


def catalogue_file() -> Path | None:
    """The catalogue that ships: in the wheel, in the source tree, or in Slicer's module folder."""
    folders = (
        _ENGINE / "bundles",
        _ENGINE.parent.parent / "Resources" / "BaseModels",
        _ENGINE.parent / "Resources" / "BaseModels",
    )
    return next((folder / CATALOGUE for folder in folders if (folder / CATALOGUE).is_file()), None)


def list_models() -> list[dict[str, Any]]:
    """Describe all known base models: those of the catalogue in its order, those that the user added, those found.

    Returns:
        For each the catalogue's entry (of another model: name, title and structures, and what its kind knows, such as
        `input_channels` and `spacing`) with `kind`, `on_disk`, `path` (None where it is not on disk), `origin`:
        `shipped`, `downloaded` (also when it is still to be fetched), `added`, or `found`, which is another program's,
        named in `source`; and `terminology`: the terminology entry of each structure that its metadata.json gives one.

    Raises:
        InputError: when the catalogue is damaged.
    """
    entries = [_located(entry) for entry in _catalogue()]
    known = {entry["name"] for entry in entries}
    own = models_folder()
    for folder in sorted(own.iterdir()) if own.is_dir() else []:
        if not _NAME.fullmatch(folder.name) or folder.name in known:
            continue
        kind = kind_of(folder)
        if kind is not None and (kind.name != BUNDLE or weights_of(folder) is not None):
            entries.append(_added(folder, kind))
    known = {entry["name"] for entry in entries}
    entries += [
        {**entry, "terminology": {}, "on_disk": True, "origin": "found"}
        for entry in found_models()
        if entry["name"] not in known
    ]
    return entries


def show_model(name: str) -> dict[str, Any]:
    """Return the entry of `list_models` with this name.

    Raises:
        InputError: when there is none.
    """
    for entry in list_models():
        if entry["name"] == name:
            return entry
    raise _unknown(name)


def find_base_folder(name_or_folder: str | Path) -> Path:
    """Find a base model's folder: an existing folder of a model first, then a name of `list_models`.

    Raises:
        InputError: when there is none; the message lists the names that there are.
    """
    text = str(name_or_folder)
    folder = Path(name_or_folder)
    if text and (is_folder(folder) or folder.suffix.lower() in (".pth", ".zip")):
        if kind_of(folder) is not None:
            return folder
        if not _NAME.fullmatch(text) or folder.suffix.lower() == ".zip":
            raise not_a_model(folder)
    entry = show_model(text)
    if entry["on_disk"]:
        return Path(entry["path"])
    if entry["origin"] == "shipped":
        raise InputError(
            f"The weights of the base model '{text}', which comes with this program, are missing.",
            "Install the program again.",
            "damaged_installation",
        )
    raise InputError(
        f"The base model '{text}' has not been downloaded yet.", f"Run 'tcurlora models fetch {text}'.", "not_fetched"
    )


def fetch_model(name: str, events: EventSink, accept_licence: bool = False) -> Path:
    """Download a model of the catalogue; one that broke off goes on where it stopped.

    Args:
        name: of the model.
        events: told of the progress.
        accept_licence: whether the user has accepted the licence of a model that may not be used for every purpose.

    Returns:
        The model's folder; at once when it is there already.

    Raises:
        InputError: when the catalogue does not know it, its licence has to be accepted first, or what arrived is not
            what the catalogue promises.
        TCurLoraError: when the download breaks off or cannot be written.
    """
    entry = show_model(name)
    if entry["on_disk"]:
        return Path(entry["path"])
    if "sources" not in entry:
        raise InputError(f"The base model '{name}' has no address to fetch it from.", "Install it again.", "no_url")
    if entry.get("restricted") and not accept_licence:
        raise InputError(
            f"The base model '{name}' may not be used for every purpose: {entry['restricted']}",
            f"If your use is allowed, accept its license: tcurlora models fetch {name} --accept-licence",
            "licence",
        )
    try:
        sources = [source_of(source) for source in entry["sources"]]
        promised = {str(path): hash_of(hashes) for path, hashes in entry.get("weights", {}).items()}
        limit = int(entry.get("limit") or int(entry["size"]) + MARGIN_BYTES)
        if not sources or not all(source.verifiable(promised) for source in sources):
            raise _damaged_catalogue()
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged_catalogue() from error
    for source in sources:
        for remote in source.files:
            require_safe(remote.url)
    events.emit("stage", name="fetch", title=f"Fetching the base model '{name}'")
    try:
        models_folder().mkdir(parents=True, exist_ok=True)
        for number, source in enumerate(sources, start=1):
            try:
                return _fetch_from(source, name, promised, limit, events)
            except NotThere:
                if number == len(sources):
                    raise
    except OSError as error:
        raise _cannot("fetch", name, error) from error
    raise _damaged_catalogue()


def _fetch_from(source: Source, name: str, promised: Mapping[str, Hash], limit: int, events: EventSink) -> Path:
    """Download the files of one source, verify them, and make them a model.

    Raises:
        NotThere: when the server does not have one of them.
    """
    parts = [models_folder() / f".{name}.{remote.part_name}.part" for remote in source.files]
    for part, remote in zip(parts, source.files, strict=True):
        download(remote.url, part, limit, events)
        if remote.promised is not None and not remote.promised.is_of(part):
            part.unlink()
            raise _wrong_hash(f"The file at {remote.url}")
    with whole_folder(models_folder() / name) as folder:
        if source.archive:
            _unpack(parts[0], folder, limit)
        else:
            for part, remote in zip(parts, source.files, strict=True):
                (folder / remote.path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(part, folder / remote.path)
        for path, promise in promised.items():
            if not (folder / path).is_file() or not promise.is_of(folder / path):
                for part in parts:
                    part.unlink()
                raise _wrong_hash(f"The weights of '{name}'")
        if weights_of(folder) is None:
            raise _wrong_hash(f"The model '{name}'")
    for part in parts:
        part.unlink()
    return models_folder() / name


def add_model(
    path: Path, check: Callable[[Path], object], name: str | None = None, options: AddOptions = DEFAULT_OPTIONS
) -> Path:
    """Copy a model into the user's models, once it has been found usable.

    Only the files that a model of its kind needs are copied, and licenses; a bundle's scripts are never used.

    Args:
        path: the model's folder, or a zip file of one.
        check: raises what is wrong with a model; it needs torch and MONAI, which listing models must not wait for.
        name: the model's name; that which its kind gives it when None.
        options: what the user says of it.

    Returns:
        The model's new folder.

    Raises:
        InputError: when it is not a usable model, or the name is taken or unusable.
        TCurLoraError: when it cannot be copied.
    """
    if path.suffix.lower() == ".zip" and path.is_file():
        return _add_zip(path, check, name, options)
    kind = kind_of(path)
    if kind is None:
        raise not_a_model(path)
    name = kind.name_of(path) if name is None else name
    _require_free(name)
    files, settings = kind.files(path, options), kind.settings(path, options)
    check(path)
    try:
        models_folder().mkdir(parents=True, exist_ok=True)
        with whole_folder(models_folder() / name) as new:
            for file, inside in files:
                (new / inside).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, new / inside)
            for inside, text in settings.items():
                (new / inside).write_text(text, encoding="utf-8")
    except OSError as error:
        raise _cannot("add", name, error) from error
    return models_folder() / name


def make_model(name: str, write: Callable[[Path], object]) -> Path:
    """Make a new model among the user's own; nothing is left of one that fails.

    Args:
        name: of the model.
        write: makes it, given its folder, which exists then, and raises what is wrong with it.

    Raises:
        InputError: when the name is taken or unusable, or as `write` does.
        TCurLoraError: when it cannot be written.
    """
    _require_free(name)
    try:
        models_folder().mkdir(parents=True, exist_ok=True)
        with whole_folder(models_folder() / name) as new:
            write(new)
    except OSError as error:
        raise _cannot("make", name, error) from error
    return models_folder() / name


def _require_free(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise InputError(f"'{name}' cannot be a model's name.", "Choose letters, digits and dashes.", "bad_name")
    # A bundle that the user has already may take the place of its entry that is still to be downloaded.
    taken = {entry["name"] for entry in list_models() if entry["origin"] != "found" and "sources" not in entry}
    if name in taken or (models_folder() / name).exists():
        raise InputError(f"There is a base model '{name}' already.", "Choose another name, or remove it.", "exists")


def _add_zip(path: Path, check: Callable[[Path], object], name: str | None, options: AddOptions) -> Path:
    """Unpack a zip file's models beside the user's own for as long as one of them is added."""
    try:
        models_folder().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".unpacked-", dir=models_folder()) as scratch:
            folder = Path(scratch, path.stem)
            unpack_models(path, folder)
            return add_model(folder, check, name, options)
    except OSError as error:
        raise _cannot("add", path.name, error) from error


def remove_model(name: str) -> None:
    """Delete a model that was downloaded or added; one that ships stays.

    Raises:
        InputError: when there is no such model on disk, or it ships.
        TCurLoraError: when it cannot be deleted.
    """
    entry = show_model(name)
    if entry["origin"] == "shipped":
        raise InputError(f"The base model '{name}' comes with this program.", "It cannot be removed.", "shipped")
    if entry["origin"] == "found":
        raise InputError(
            f"The base model '{name}' belongs to {entry['source']} and is only read here.",
            f"Remove it with {entry['source']}, if it is not needed there.",
            "found",
        )
    if not entry["on_disk"]:
        raise InputError(f"The base model '{name}' is not on disk.", "There is nothing to remove.", "not_fetched")
    try:
        # The folder leaves the list in one step, so that no half model is ever seen.
        with tempfile.TemporaryDirectory(prefix=".remove-", dir=models_folder()) as scratch:
            os.replace(entry["path"], Path(scratch, "old"))
    except OSError as error:
        raise _cannot("remove", name, error) from error


def _catalogue() -> list[dict[str, Any]]:
    path = catalogue_file()
    if path is None:
        return []
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        models = content["models"]
        if content["schema"] != 1 or not all(_NAME.fullmatch(entry["name"]) for entry in models):
            raise _damaged_catalogue()
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged_catalogue() from error
    return [dict(entry) for entry in models]


def _located(entry: dict[str, Any]) -> dict[str, Any]:
    path = catalogue_file()
    shipped = "folder" in entry and path is not None
    folder = path.parent / str(entry["folder"]) if shipped and path is not None else models_folder() / entry["name"]
    on_disk = is_bundle(folder) and weights_of(folder) is not None
    origin = "shipped" if shipped else "downloaded"
    terminology = terminology_of(read_metadata(folder)) if on_disk else {}
    place = {"on_disk": on_disk, "path": str(folder) if on_disk else None, "origin": origin}
    spacing = entry.get("input_spacing")
    return {"kind": BUNDLE, "spacing": spacing, **entry, **place, "terminology": terminology}


def _added(folder: Path, kind: Kind) -> dict[str, Any]:
    place = {"on_disk": True, "path": str(folder), "origin": "added"}
    return {"name": folder.name, "terminology": {}, **kind.describe(folder), **place}


def _names() -> list[str]:
    return [entry["name"] for entry in list_models()]


def not_a_model(path: Path) -> InputError:
    """Return the error for a path that leads to no base model."""
    name = path.name or str(path)
    if path.suffix.lower() == ".zip":
        return InputError(f"'{name}' is a zip file.", f"Add it first: tcurlora models add '{path}'.", "zip")
    return InputError(
        f"'{name}' is neither a MONAI bundle, which has a folder 'configs', nor a trained nnU-Net, which has a "
        "plans.json and a dataset.json.",
        "Choose a bundle's folder, or nnU-Net's folder TRAINER__PLANS__CONFIGURATION or one above it.",
        "bad_bundle",
    )


def _unpack(archive: Path, folder: Path, limit: int) -> None:
    """Unpack a bundle's files, once every entry has been found harmless; other files are left out."""

    try:
        with zipfile.ZipFile(archive) as opened:
            infos = harmless_entries(opened)
            if sum(info.file_size for info in infos) > limit:
                raise refused("it would unpack to more than the catalogue says", "Report it.")
            tops = {PurePosixPath(info.filename).parts[0] for info in infos}
            depth = 0 if "configs" in tops else 1
            for info in infos:
                parts = PurePosixPath(info.filename).parts[depth:]
                if not parts or not belongs(PurePosixPath(*parts)):
                    continue
                target = folder.joinpath(*parts)
                target.parent.mkdir(parents=True, exist_ok=True)
                with opened.open(info) as source, target.open("xb") as copy:
                    shutil.copyfileobj(source, copy)
    except (zipfile.BadZipFile, EOFError, zlib.error, ValueError, FileExistsError, NotImplementedError) as error:
        raise refused(f"it is not a readable zip file ({error})", "Report it.") from error


def _unknown(name: str) -> InputError:
    names = ", ".join(f"'{known}'" for known in _names()) or "none"
    return InputError(
        f"'{name}' is neither a folder of a base model nor the name of one.",
        f"Known base models: {names}.",
        "unknown_base",
    )


def _damaged_catalogue() -> InputError:
    return InputError(f"The file {CATALOGUE} of this program is damaged.", "Install it again.", "damaged_installation")


def _wrong_hash(what: str) -> InputError:
    return InputError(
        f"{what} is not what the catalogue promises (another checksum), and was deleted.",
        "Fetch it again; if that does not help, report it.",
        "wrong_hash",
    )


def _cannot(verb: str, name: str, error: OSError) -> TCurLoraError:
    return TCurLoraError(
        f"Cannot {verb} the base model '{name}': {error.strerror or error}.",
        "Check permissions and free space.",
        "cannot_write",
    )
