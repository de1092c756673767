"""The shelf of adapters on this computer: list, show, export, import, remove."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from tcurlora.errors import InputError, TCurLoraError
from tcurlora.runtime.archives import Archive, is_file_name, open_archive
from tcurlora.runtime.atomic_files import put_in_place, whole_file
from tcurlora.runtime.folder_lock import exclusive
from tcurlora.runtime.json_files import read_object, write_json
from tcurlora_contract.folders import adapters_folder as library_folder
from tcurlora_contract.folders import data_folder as data_folder

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
REPORT = "report.json"
CARD = "README.md"
ADAPTER_FILES = (CONFIG, WEIGHTS, REPORT, CARD)
MAX_BYTES = 2**30
STALE_S = 3600.0
"""No import takes so long; what is older was left by a process that was killed."""
WAIT_S = 30.0
"""How long a change of the library waits for another one."""
BUSY = "Another program is changing the library; try again when it has finished."


def is_adapter(folder: Path) -> bool:
    """Whether the folder holds an adapter's config and weights."""
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()


def list_adapters(library: Path | None = None) -> list[dict[str, Any]]:
    """Describe every adapter of the library, by name.

    Returns:
        For each a dict with name, path, bytes (all files together), base_model, structures (names), created (date),
        cases (how many it was trained on), base_dice and adapted_dice (cross-validated means), summary (the report's
        first line), each None where it is not known, and problem: None, or why it cannot be used.
    """
    library = library or library_folder()
    folders = sorted(library.iterdir()) if library.is_dir() else []
    entries = []
    for folder in folders:
        # Another process may remove or replace an adapter while it is looked at.
        with suppress(FileNotFoundError, InputError):
            if not folder.name.startswith(".") and (folder / CONFIG).is_file():
                entry = _entry(folder)
                if entry["problem"] is None or (folder / CONFIG).is_file():
                    entries.append(entry)
    return entries


def show_adapter(name: str | Path, library: Path | None = None) -> dict[str, Any]:
    """Describe one adapter fully.

    Returns:
        The dict of `list_adapters` with `config` and `report` (None where there is none) as they are in the files.

    Raises:
        InputError: when there is no such adapter or its config cannot be read.
    """
    folder = find_adapter(name, library)
    config = _read_json(folder / CONFIG)
    report = _read_json(folder / REPORT) if (folder / REPORT).is_file() else None
    return {**_entry(folder), "config": config, "report": report}


def find_adapter(name: str | Path, library: Path | None = None) -> Path:
    """Find an adapter by the path of its folder, or by its name in the library.

    Raises:
        InputError: when neither is one.
    """
    library = library or library_folder()
    if is_adapter(Path(name)):
        return Path(name)
    if _is_name(str(name)) and is_adapter(library / name):
        return library / name
    names = ", ".join(f"'{entry['name']}'" for entry in list_adapters(library)) or "none yet"
    raise InputError(
        f"'{name}' is neither an adapter's folder nor the name of an adapter in the library.",
        f"The library has {names}.",
        "unknown_adapter",
    )


def export_adapter(folder: Path, target: Path, force: bool = False) -> Path:
    """Pack an adapter into a zip file that `import_adapter` takes; the file appears whole or not at all.

    Args:
        folder: the adapter.
        target: the zip file to write.
        force: replace the file when it exists.

    Raises:
        InputError: when the folder is not an adapter, or the file exists.
        TCurLoraError: when the file cannot be written.
    """
    if not is_adapter(folder):
        raise InputError(f"'{folder}' is not an adapter.", f"It needs {CONFIG} and {WEIGHTS}.", "not_an_adapter")
    if target.exists() and not force:
        raise InputError(f"'{target}' exists already.", "Choose another name, or replace it (--force).", "exists")
    try:
        with (
            whole_file(target) as temporary,
            zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, strict_timestamps=False) as archive,
        ):
            for name in ADAPTER_FILES:
                if (folder / name).is_file():
                    archive.write(folder / name, name)
    except OSError as error:
        raise _cannot("write", target, error) from error
    return target


def import_adapter(archive: Path, library: Path | None = None, name: str | None = None, force: bool = False) -> Path:
    """Unpack an adapter into the library; it appears there whole or not at all.

    Nothing in the archive decides where a file goes: only the four known files are taken, into the adapter's folder.

    Args:
        archive: the zip file, with the files at the top or in one folder; or an adapter's folder, which is copied.
        library: the library; the user's own when None.
        name: the adapter's name in the library; the zip file's name when None.
        force: replace an adapter of that name.

    Returns:
        The adapter's new folder.

    Raises:
        InputError: when the archive is damaged, holds anything but an adapter, or the name is taken or unusable.
        TCurLoraError: when the library cannot be written.
    """
    if is_adapter(archive):
        # By way of a zip file, so that a folder is checked as strictly as what comes from elsewhere.
        with tempfile.TemporaryDirectory() as scratch:
            zipped = export_adapter(archive, Path(scratch) / "adapter.zip")
            return import_adapter(zipped, library, archive.name if name is None else name, force)
    if not archive.is_file():
        raise InputError(
            f"'{archive}' is neither an adapter's folder nor a file.",
            "Give the zip file that `export` wrote.",
            "no_file",
        )
    library = library or library_folder()
    name = archive.stem if name is None else name
    if not _is_name(name):
        raise InputError(f"'{name}' cannot be an adapter's name.", "Choose letters, digits and dashes.", "bad_name")
    target = library / name
    if target.exists() and not force:
        raise InputError(
            f"The library has an adapter '{name}' already.",
            "Choose another name (--name), or replace it (--force).",
            "exists",
        )
    try:
        if target.exists():
            _require_removable(target)
        with open_archive(archive, MAX_BYTES) as opened:
            members = _members(archive, opened)
            with _scratch(library, "import") as scratch:
                new, old = Path(scratch, "new"), Path(scratch, "old", name)
                old.parent.mkdir()
                for file_name, inside in members.items():
                    opened.extract(inside, new / file_name)
                if _problem(new):
                    raise InputError(f"'{archive}' is not a usable adapter: {_problem(new)}.", "", "not_an_adapter")
                if target.exists():
                    os.replace(target, old)
                try:
                    put_in_place(new, target)
                except OSError:
                    if old.exists() and not target.exists():
                        os.replace(old, target)
                    raise
    except OSError as error:
        where = archive if error.filename == str(archive) else library
        raise _cannot("read" if where == archive else f"import '{name}' into", where, error) from error
    return target


def remove_adapter(name: str, library: Path | None = None) -> None:
    """Delete an adapter from the library: its known files, then its folder, and nothing else.

    Raises:
        InputError: when there is no such adapter, or its folder holds anything else.
        TCurLoraError: when it cannot be deleted.
    """
    library = library or library_folder()
    folder = library / name
    if not _is_name(name) or not (folder / CONFIG).is_file():
        raise InputError(f"The library has no adapter '{name}'.", "See `tcurlora adapters list`.", "unknown_adapter")
    try:
        _require_removable(folder)
        # The folder leaves the list in one step, so that no half adapter is ever seen.
        with _scratch(library, "remove") as scratch:
            os.replace(folder, Path(scratch, "old"))
    except OSError as error:
        raise _cannot("remove", folder, error) from error


def rename_adapter(name: str, new_name: str, library: Path | None = None) -> Path:
    """Give an adapter of the library another name.

    Returns:
        The adapter's new folder.

    Raises:
        InputError: when there is no such adapter, its config is damaged, or the new name is taken or unusable.
        TCurLoraError: when it cannot be written.
    """
    library = library or library_folder()
    folder, target = library / name, library / new_name
    if not _is_name(name) or not (folder / CONFIG).is_file():
        raise InputError(f"The library has no adapter '{name}'.", "See `tcurlora adapters list`.", "unknown_adapter")
    if not _is_name(new_name):
        raise InputError(f"'{new_name}' cannot be an adapter's name.", "Choose letters, digits and dashes.", "bad_name")
    # A name that differs in its case only is the same folder on some systems, and may be changed all the same.
    if target.exists() and not target.samefile(folder):
        raise InputError(f"The library has an adapter '{new_name}' already.", "Choose another name.", "exists")
    config = {**_read_json(folder / CONFIG), "name": new_name}
    try:
        with exclusive(library, BUSY, WAIT_S):
            os.rename(folder, target)
            try:
                write_json(target / CONFIG, config)
            except OSError:
                os.rename(target, folder)
                raise
    except OSError as error:
        raise _cannot("rename", folder, error) from error
    return target


@contextmanager
def _scratch(library: Path, work: str) -> Iterator[Path]:
    """Give a hidden folder in the library for a change of it, while nobody else changes it."""
    with exclusive(library, BUSY, WAIT_S):
        library.mkdir(parents=True, exist_ok=True)
        _tidy(library)
        with tempfile.TemporaryDirectory(prefix=f".{work}-", dir=library) as scratch:
            yield Path(scratch)


def _tidy(library: Path) -> None:
    """Clear what killed processes left; an adapter that one of them was about to replace gets its place back."""
    for scratch in library.glob(".*-*"):
        with suppress(OSError):
            if not scratch.name.startswith((".import-", ".remove-")) or time.time() - scratch.stat().st_mtime < STALE_S:
                continue
            for old in scratch.glob("old/*") if scratch.name.startswith(".import-") else ():
                if is_adapter(old) and not (library / old.name).exists():
                    os.replace(old, library / old.name)
            shutil.rmtree(scratch, ignore_errors=True)


def _members(archive: Path, opened: Archive) -> dict[str, PurePosixPath]:
    """Return where each of an adapter's files lies in the archive: at the top, or in one folder."""

    def refuse(reason: str) -> InputError:
        return InputError(f"'{archive}' is refused: {reason}.", "Import only what `export` wrote.", "unsafe_zip")

    for path in (*opened.files, *opened.folders):
        is_file = path in opened.files
        if len(path.parts) > 1 + is_file or (is_file and path.name not in ADAPTER_FILES):
            raise refuse(f"the entry '{path}' does not belong to an adapter")
    if len({path.parent for path in opened.files}) > 1:
        raise refuse("its files lie in several folders")
    return {path.name: path for path in opened.files}


def _require_removable(folder: Path) -> None:
    if folder.is_symlink() or not folder.is_dir() or not (folder / CONFIG).is_file():
        raise InputError(f"'{folder}' is not an adapter's folder.", "Delete it by hand.", "not_an_adapter")
    others = sorted(
        p.name for p in folder.iterdir() if p.name not in ADAPTER_FILES or (p.is_dir() and not p.is_symlink())
    )
    if others:
        raise InputError(
            f"'{folder}' also holds '{others[0]}', which does not belong to an adapter.",
            "Move it away first.",
            "not_an_adapter",
        )


def _entry(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = {}
    report: dict[str, Any] = {}
    problem = _problem(folder)
    if problem is None:
        config = _read_json(folder / CONFIG)
        report = _read_json(folder / REPORT) if (folder / REPORT).is_file() else {}
    return {
        "name": folder.name,
        "path": str(folder),
        "bytes": sum((folder / name).stat().st_size for name in ADAPTER_FILES if (folder / name).is_file()),
        "base_model": config.get("base_model", {}).get("name"),
        "structures": [entry["name"] for entry in config.get("structures", [])],
        "created": _at(config, "created"),
        "cases": _at(config, "training", "cases"),
        "base_dice": _at(report, "cross_validation", "comparison", "mean", "base_dice"),
        "adapted_dice": _at(report, "cross_validation", "comparison", "mean", "adapted_dice"),
        "summary": report.get("summary"),
        "problem": problem,
    }


def _at(content: Any, *keys: str) -> Any:
    """What lies under the keys, None where a part of the way is missing."""
    for key in keys:
        content = content.get(key) if isinstance(content, dict) else None
    return content


def _problem(folder: Path) -> str | None:
    """Why the folder is not a usable adapter, or None."""
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            return f"{name} is missing"
    for name in (REPORT, CONFIG):
        try:
            config = _read_json(folder / name) if (folder / name).is_file() else {}
        except InputError:
            return f"{name} is not readable"
    structures, base = config.get("structures", []), config.get("base_model", {})
    if (
        config.get("peft_type") != "TCURLORA"
        or not isinstance(base, dict)
        or not isinstance(structures, list)
        or not all(isinstance(entry, dict) and "name" in entry for entry in structures)
    ):
        return f"{CONFIG} does not describe a TCURLORA adapter"
    # A safetensors file starts with the length of its header: a quick look, the whole is checked when it is loaded.
    size = (folder / WEIGHTS).stat().st_size
    with (folder / WEIGHTS).open("rb") as stream:
        header = int.from_bytes(stream.read(8), "little")
    return None if size > 8 and 0 < header <= size - 8 else f"{WEIGHTS} is damaged"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return read_object(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path.name} in '{path.parent}' is not readable.", "Import it again.", "bad_json") from error


def _is_name(name: str) -> bool:
    """Return whether a name is one plain folder name on every platform, and not a hidden one."""
    return is_file_name(name) and not name.startswith(".")


def _cannot(verb: str, path: Path, error: OSError) -> TCurLoraError:
    reason = error.strerror or str(error)
    return TCurLoraError(f"Cannot {verb} '{path}': {reason}.", "Check permissions and free space.", "cannot_write")
