"""The shelf of adapters on this computer: list, show, export, import, remove."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import sys
import tempfile
import time
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from tcurlora.errors import InputError, TCurLoraError
from tcurlora.runtime.atomic_files import put_in_place, whole_file
from tcurlora.runtime.events import write_json

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
REPORT = "report.json"
CARD = "README.md"
ADAPTER_FILES = (CONFIG, WEIGHTS, REPORT, CARD)
MAX_BYTES = 2**30
STALE_S = 3600.0
"""No import takes so long; what is older was left by a process that was killed."""

_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def data_folder() -> Path:
    """The folder for this program's data: `TCURLORA_HOME` where set, else where the platform keeps such things."""
    home = os.environ.get("TCURLORA_HOME")
    if home:
        return Path(home)
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return base / "TCurLoraSegment"


def library_folder() -> Path:
    """The folder that holds one folder for each adapter; it may not exist yet."""
    return data_folder() / "adapters"


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
        with zipfile.ZipFile(archive) as opened:
            members = _checked_members(archive, opened)
            library.mkdir(parents=True, exist_ok=True)
            _tidy(library)
            with tempfile.TemporaryDirectory(prefix=".import-", dir=library) as scratch:
                new, old = Path(scratch, "new"), Path(scratch, "old", name)
                new.mkdir()
                old.parent.mkdir()
                for file_name, info in members.items():
                    with opened.open(info) as source, (new / file_name).open("wb") as copy:
                        shutil.copyfileobj(source, copy)
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
    except (zipfile.BadZipFile, EOFError, zlib.error, UnicodeError, NotImplementedError, ValueError) as error:
        raise InputError(f"'{archive}' is not a readable zip file.", "Copy or export it anew.", "bad_zip") from error
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
        _tidy(library)
        # The folder leaves the list in one step, so that no half adapter is ever seen.
        with tempfile.TemporaryDirectory(prefix=".remove-", dir=library) as scratch:
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
        os.rename(folder, target)
        try:
            write_json(target / CONFIG, config)
        except OSError:
            os.rename(target, folder)
            raise
    except OSError as error:
        raise _cannot("rename", folder, error) from error
    return target


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


def _checked_members(archive: Path, opened: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The archive's files by name, once every entry has been found harmless."""

    def refuse(reason: str) -> InputError:
        return InputError(f"'{archive}' is refused: {reason}.", "Import only what `export` wrote.", "unsafe_zip")

    members: dict[str, zipfile.ZipInfo] = {}
    parents = set()
    for info in opened.infolist():
        entry = info.filename.replace("\\", "/")
        path = PurePosixPath(entry)
        if entry.startswith("/") or ".." in path.parts or ":" in entry:
            raise refuse(f"the entry '{info.filename}' points outside of the archive")
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise refuse(f"the entry '{info.filename}' is a link or a device")
        if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise refuse(f"the entry '{info.filename}' is encrypted or packed in an unusual way")
        is_folder = entry.endswith("/")  # ZipInfo.is_dir fails where there is no name
        if is_folder and len(path.parts) == 1:
            continue
        if is_folder or path.name not in ADAPTER_FILES or len(path.parts) > 2:
            raise refuse(f"the entry '{info.filename}' does not belong to an adapter")
        if path.name in members:
            raise refuse(f"it holds '{path.name}' twice")
        members[path.name] = info
        parents.add(path.parent)
    if sum(info.file_size for info in members.values()) > MAX_BYTES:
        raise refuse(f"its files would take more than {MAX_BYTES // 2**20} MiB")
    if len(parents) > 1:
        raise refuse("its files lie in several folders")
    return members


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
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path.name} in '{path.parent}' is not readable.", "Import it anew.", "bad_json") from error
    if not isinstance(content, dict):
        raise InputError(f"{path.name} in '{path.parent}' is not a JSON object.", "Import it anew.", "bad_json")
    return content


def _is_name(name: str) -> bool:
    """Whether a name is one plain folder name on every platform."""
    return bool(
        re.fullmatch(r'[^<>:"/\\|?*\x00-\x1f]+', name)
        and not name.startswith(".")
        and not name.endswith((".", " "))
        and not _RESERVED.fullmatch(name)
    )


def _cannot(verb: str, path: Path, error: OSError) -> TCurLoraError:
    reason = error.strerror or str(error)
    return TCurLoraError(f"Cannot {verb} '{path}': {reason}.", "Check permissions and free space.", "cannot_write")
