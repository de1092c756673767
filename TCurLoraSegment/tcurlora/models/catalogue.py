"""The shelf of base models: those that ship, those that can be downloaded, and the user's own bundles.

A download becomes a model only after its hashes have been verified, and no model is ever seen half written.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import shutil
import stat
import tempfile
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from tcurlora.errors import InputError, TCurLoraError
from tcurlora.models.adapter_library import data_folder
from tcurlora.runtime.atomic_files import whole_folder
from tcurlora.runtime.events import EventSink

CATALOGUE = "catalogue.json"
WEIGHTS = ("model.safetensors", "model.pt")
# What an archive or a bundle may hold besides its weights: configs, a card, a licence, and zip's own overhead.
MARGIN_BYTES = 16 * 2**20
BLOCK_BYTES = 2**20
TIMEOUT_S = 60

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
    """Describe all known base models: those of the catalogue in its order, then those that the user added, by name.

    Returns:
        For each the catalogue's entry (of an added model: name, title and structures) with `on_disk`, `path` (None
        where it is not on disk), `origin`: `shipped`, `downloaded` (also when it is still to be fetched) or `added`,
        and `terminology`: the terminology entry of each structure that its metadata.json gives one.

    Raises:
        InputError: when the catalogue is damaged.
    """
    entries = [_located(entry) for entry in _catalogue()]
    known = {entry["name"] for entry in entries}
    own = models_folder()
    for folder in sorted(own.iterdir()) if own.is_dir() else []:
        if _NAME.fullmatch(folder.name) and folder.name not in known and _is_bundle(folder):
            entries.append(_added(folder))
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
    """Find a base model's folder: an existing bundle folder first, then a name of `list_models`.

    Raises:
        InputError: when there is none; the message lists the names that there are.
    """
    text = str(name_or_folder)
    folder = Path(name_or_folder)
    if text and _is_folder(folder):
        if _is_folder(folder / "configs"):
            return folder
        if not _NAME.fullmatch(text):
            raise InputError(
                f"'{folder.name or folder}' is no base model: it has no folder 'configs'.",
                "Choose a MONAI bundle folder with configs/metadata.json and configs/inference.json.",
                "bad_bundle",
            )
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


def fetch_model(name: str, events: EventSink) -> Path:
    """Download a model of the catalogue; one that broke off goes on where it stopped.

    Returns:
        The model's folder; at once when it is there already.

    Raises:
        InputError: when the catalogue does not know it, or what arrived is not what the catalogue promises.
        TCurLoraError: when the download breaks off or cannot be written.
    """
    entry = show_model(name)
    if entry["on_disk"]:
        return Path(entry["path"])
    if "url" not in entry:
        raise InputError(f"The base model '{name}' has no address to fetch it from.", "Install it anew.", "no_url")
    try:
        url, archive_sha256, sha256 = str(entry["url"]), str(entry["archive_sha256"]), str(entry["sha256"])
        limit = int(entry["size"]) + MARGIN_BYTES
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged_catalogue() from error
    _require_safe(url)
    part = models_folder() / f".{name}.zip.part"
    events.emit("stage", name="fetch", title=f"Fetching the base model '{name}'")
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        _download(url, part, limit, events)
        if _sha256(part) != archive_sha256:
            part.unlink()
            raise _wrong_hash(f"The file at {url}")
        with whole_folder(models_folder() / name) as folder:
            _unpack(part, folder, limit)
            weights = _weights(folder)
            if weights is None or _sha256(weights) != sha256:
                part.unlink()
                raise _wrong_hash(f"The weights of '{name}'")
        part.unlink()
    except OSError as error:
        raise _cannot("fetch", name, error) from error
    return models_folder() / name


def add_model(folder: Path, check: Callable[[Path], object], name: str | None = None) -> Path:
    """Copy a MONAI bundle into the user's models, once it has been found usable.

    Only configs/*.json, the weights, docs/ and licence files are copied; a bundle's scripts are never used.

    Args:
        folder: the bundle.
        check: raises what is wrong with a bundle; it needs torch and MONAI, which listing models must not wait for.
        name: the model's name; that of the folder when None.

    Returns:
        The model's new folder.

    Raises:
        InputError: when it is no usable bundle, or the name is taken or unusable.
        TCurLoraError: when it cannot be copied.
    """
    if not _is_folder(folder / "configs"):
        raise InputError(
            f"'{folder}' is no MONAI bundle: it has no folder 'configs'.", "Give a bundle's folder.", "bad_bundle"
        )
    name = folder.resolve().name if name is None else name
    if not _NAME.fullmatch(name):
        raise InputError(f"'{name}' cannot be a model's name.", "Choose letters, digits and dashes.", "bad_name")
    if name in _names() or (models_folder() / name).exists():
        raise InputError(f"There is a base model '{name}' already.", "Choose another name, or remove it.", "exists")
    check(folder)
    try:
        models_folder().mkdir(parents=True, exist_ok=True)
        with whole_folder(models_folder() / name) as new:
            for path in sorted(folder.rglob("*")):
                inside = path.relative_to(folder)
                if path.is_file() and _belongs(PurePosixPath(inside.as_posix())):
                    (new / inside).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, new / inside)
    except OSError as error:
        raise _cannot("add", name, error) from error
    return models_folder() / name


def remove_model(name: str) -> None:
    """Delete a model that was downloaded or added; one that ships stays.

    Raises:
        InputError: when there is no such model on disk, or it ships.
        TCurLoraError: when it cannot be deleted.
    """
    entry = show_model(name)
    if entry["origin"] == "shipped":
        raise InputError(f"The base model '{name}' comes with this program.", "It cannot be removed.", "shipped")
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
    on_disk = _is_bundle(folder)
    origin = "shipped" if shipped else "downloaded"
    terminology = _terminology(_metadata(folder)) if on_disk else {}
    place = {"on_disk": on_disk, "path": str(folder) if on_disk else None, "origin": origin}
    return {**entry, **place, "terminology": terminology}


def _added(folder: Path) -> dict[str, Any]:
    metadata, structures = _metadata(folder), []
    with suppress(KeyError, TypeError, AttributeError):
        channels = metadata["network_data_format"]["outputs"]["pred"]["channel_def"].values()
        structures = [name for name in dict.fromkeys(map(str, channels)) if name.casefold() != "background"]
    entry = {"name": folder.name, "title": str(metadata.get("name") or folder.name), "structures": structures}
    place = {"on_disk": True, "path": str(folder), "origin": "added"}
    return {**entry, **place, "terminology": _terminology(metadata)}


def _metadata(folder: Path) -> dict[str, Any]:
    """What a bundle says of itself; nothing where it is damaged: it stays in the list, and loading it says why."""
    try:
        metadata = json.loads((folder / "configs" / "metadata.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return metadata if isinstance(metadata, dict) else {}


def _terminology(metadata: Mapping[str, Any]) -> dict[str, str]:
    entries = metadata.get("structures")
    return {
        str(entry["name"]): entry["terminology"]
        for entry in (entries if isinstance(entries, list) else ())
        if isinstance(entry, dict) and isinstance(entry.get("terminology"), str) and "name" in entry
    }


def _names() -> list[str]:
    return [entry["name"] for entry in list_models()]


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # too long, or with characters that no path has
        return False


def _is_bundle(folder: Path) -> bool:
    return _is_folder(folder / "configs") and _weights(folder) is not None


def _weights(folder: Path) -> Path | None:
    return next((path for name in WEIGHTS if (path := folder / "models" / name).is_file()), None)


def _belongs(inside: PurePosixPath) -> bool:
    """Whether a file, by its path inside a bundle, is one that this program keeps."""
    top = inside.parts[0]
    if len(inside.parts) == 1:
        return top.upper().startswith(("LICENSE", "LICENCE"))
    if top == "docs":
        return True
    return len(inside.parts) == 2 and (
        (top == "configs" and inside.suffix == ".json") or (top == "models" and inside.name in WEIGHTS)
    )


def _require_safe(url: str) -> None:
    parts = urllib.parse.urlsplit(url)
    # A file, or a server on this computer, cannot be tampered with on the way.
    local = parts.scheme == "file" or (parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost"))
    if parts.scheme != "https" and not local:
        raise InputError(f"The address {url} is not https.", "Only https addresses are fetched.", "unsafe_url")


def _download(url: str, part: Path, limit: int, events: EventSink) -> None:
    """Fill `part` from the address, from where it ends."""
    start = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "tcurlora", **({"Range": f"bytes={start}-"} if start else {})}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S) as response:
            resumed = response.status == 206 and _begins_at(response, start)
            done = start if resumed else 0
            length = response.headers.get("Content-Length")
            total = done + int(length) if length else None
            with part.open("ab" if resumed else "wb") as stream:
                while block := response.read(BLOCK_BYTES):
                    done += len(block)
                    if done > limit:
                        break
                    stream.write(block)
                    events.emit("progress", step=done // 1000, total=max(total or limit, done) // 1000)
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:  # Nothing is left to send: the hash decides whether the file is right.
            return
        raise _broken_off(url, f"the server answers {error.code} {error.reason}") from error
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        raise _broken_off(url, str(getattr(error, "reason", None) or error)) from error
    if done > limit:
        part.unlink()
        raise InputError(
            f"The file at {url} is larger than the catalogue says and was deleted.", "Report it.", "wrong_size"
        )
    if total is not None and done < total:
        raise _broken_off(url, f"{done} of {total} bytes arrived")


def _begins_at(response: Any, start: int) -> bool:
    return str(response.headers.get("Content-Range", "")).startswith(f"bytes {start}-")


def _unpack(archive: Path, folder: Path, limit: int) -> None:
    """Unpack a bundle's files, once every entry has been found harmless; other files are left out."""

    def refuse(reason: str) -> InputError:
        return InputError(f"The archive is refused: {reason}.", "Report it.", "unsafe_zip")

    try:
        with zipfile.ZipFile(archive) as opened:
            infos = [info for info in opened.infolist() if not info.is_dir()]
            for info in infos:
                parts = PurePosixPath(info.filename).parts
                if info.filename.startswith("/") or ".." in parts or any(c in info.filename for c in "\\:\0"):
                    raise refuse(f"the entry '{info.filename}' points outside of it")
                if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
                    raise refuse(f"the entry '{info.filename}' is a link or a device")
                if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise refuse(f"the entry '{info.filename}' is encrypted or packed in an unusual way")
            if sum(info.file_size for info in infos) > limit:
                raise refuse("it would unpack to more than the catalogue says")
            tops = {PurePosixPath(info.filename).parts[0] for info in infos}
            depth = 0 if "configs" in tops else 1
            for info in infos:
                parts = PurePosixPath(info.filename).parts[depth:]
                if not parts or not _belongs(PurePosixPath(*parts)):
                    continue
                target = folder.joinpath(*parts)
                target.parent.mkdir(parents=True, exist_ok=True)
                with opened.open(info) as source, target.open("xb") as copy:
                    shutil.copyfileobj(source, copy)
    except (zipfile.BadZipFile, EOFError, zlib.error, ValueError, FileExistsError, NotImplementedError) as error:
        raise refuse(f"it is no readable zip file ({error})") from error


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _unknown(name: str) -> InputError:
    names = ", ".join(f"'{known}'" for known in _names()) or "none"
    return InputError(
        f"'{name}' is neither a MONAI bundle folder nor the name of a base model.",
        f"Known base models: {names}.",
        "unknown_base",
    )


def _damaged_catalogue() -> InputError:
    return InputError(f"The file {CATALOGUE} of this program is damaged.", "Install it again.", "damaged_installation")


def _wrong_hash(what: str) -> InputError:
    return InputError(
        f"{what} is not what the catalogue promises (another SHA-256), and was deleted.",
        "Fetch it again; if that does not help, report it.",
        "wrong_hash",
    )


def _broken_off(url: str, reason: str) -> TCurLoraError:
    return TCurLoraError(
        f"The download of {url} broke off: {reason}.",
        "Check the connection and give the command again; it goes on where it stopped.",
        "download_failed",
    )


def _cannot(verb: str, name: str, error: OSError) -> TCurLoraError:
    return TCurLoraError(
        f"Cannot {verb} the base model '{name}': {error.strerror or error}.",
        "Check permissions and free space.",
        "cannot_write",
    )
