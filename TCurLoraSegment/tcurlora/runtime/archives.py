"""Zip files from elsewhere: every entry is checked before anything is unpacked, and only named files come out."""

from __future__ import annotations

import re
import shutil
import stat
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from tcurlora.errors import InputError

MAX_ENTRIES = 20_000
_UNUSUAL = re.compile(r'[<>:"|?*\x00-\x1f]')
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_NOT_A_ZIP = (zipfile.BadZipFile, EOFError, zlib.error, NotImplementedError, ValueError, OverflowError)
"""What zipfile raises for damaged files; UnicodeError is a ValueError."""


def is_file_name(name: str) -> bool:
    """Return whether a name is one plain file name on Linux, macOS and Windows."""
    return bool(
        name
        and not _UNUSUAL.search(name)
        and not any(separator in name for separator in "/\\")
        and not name.endswith((".", " "))
        and not _RESERVED.fullmatch(name)
    )


class Archive:
    """A zip file whose entries have all been found harmless.

    Attributes:
        files: the files by their path inside the archive.
        folders: the folders that have an entry of their own.
    """

    def __init__(self, path: Path, opened: zipfile.ZipFile, limit: int) -> None:
        self._path, self._opened = path, opened
        self.files: Mapping[PurePosixPath, zipfile.ZipInfo] = _checked_files(path, opened, limit)
        names = (info.filename.replace("\\", "/") for info in opened.infolist())
        self.folders = {PurePosixPath(name) for name in names if name.endswith("/")}

    def read(self, inside: PurePosixPath, limit: int = 2**24) -> bytes:
        """Return the content of a small file, such as a JSON file.

        Raises:
            InputError: when it is larger than `limit` bytes, or damaged.
        """
        if self.files[inside].file_size > limit:
            raise _refused(self._path, f"the entry '{inside}' is too large for its kind of file")
        with self._open(inside) as source, _readable(self._path):
            return source.read()

    def extract(self, inside: PurePosixPath, target: Path) -> None:
        """Write a file to `target`, which must not exist; its folder is made.

        Raises:
            InputError: when it is damaged.
            OSError: when it cannot be written.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        with self._open(inside) as source, target.open("xb") as copy, _readable(self._path):
            shutil.copyfileobj(source, copy, 2**20)

    def _open(self, inside: PurePosixPath) -> IO[bytes]:
        with _readable(self._path):
            return self._opened.open(self.files[inside])


@contextmanager
def open_archive(path: Path, limit: int) -> Iterator[Archive]:
    """Open a zip file after all its entries have been checked.

    Args:
        path: the zip file.
        limit: bytes that all its files together may take unpacked.

    Raises:
        InputError: `bad_zip` when it is not a readable zip file; `unsafe_zip` when an entry leads out of the archive,
            is a link or a device, is encrypted or packed in an unusual way, has a name that some system cannot hold,
            is there twice (also in letters of another case), or when it would take more than `limit` bytes.
        OSError: when the file cannot be opened.
    """
    with _readable(path):
        opened = zipfile.ZipFile(path)
    with opened:
        yield Archive(path, opened, limit)


def unpack(
    path: Path,
    folder: Path,
    limit: int,
    place: Callable[[PurePosixPath], PurePosixPath | None] = lambda inside: inside,
) -> list[PurePosixPath]:
    """Unpack a zip file into a folder; nothing is written before every entry has been checked.

    Unpack into a temporary folder (`atomic_files.whole_folder`), so that a damaged archive leaves nothing.

    Args:
        path: the zip file.
        folder: where to.
        limit: bytes that all its files together may take unpacked.
        place: path below `folder` for a path inside the archive; None leaves the file out.

    Returns:
        The paths below `folder` that were written.

    Raises:
        InputError: as `open_archive`, or when a file is damaged.
        OSError: when something cannot be read or written.
    """
    with open_archive(path, limit) as archive:
        places = {inside: where for inside in archive.files if (where := place(inside)) is not None}
        for inside, where in places.items():
            archive.extract(inside, folder.joinpath(*where.parts))
    return list(places.values())


def _checked_files(archive: Path, opened: zipfile.ZipFile, limit: int) -> dict[PurePosixPath, zipfile.ZipInfo]:
    files: dict[PurePosixPath, zipfile.ZipInfo] = {}
    folders: set[str] = set()
    taken: set[str] = set()
    infos = opened.infolist()
    if len(infos) > MAX_ENTRIES:
        raise _refused(archive, f"it has more than {MAX_ENTRIES} entries")
    for info in infos:
        name = info.filename.replace("\\", "/")
        path = PurePosixPath(name)
        if name.startswith("/") or ".." in path.parts or ":" in name:
            raise _refused(archive, f"the entry '{info.filename}' points outside of the archive")
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise _refused(archive, f"the entry '{info.filename}' is a link or a device")
        if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise _refused(archive, f"the entry '{info.filename}' is encrypted or packed in an unusual way")
        if not name:
            raise _refused(archive, "an entry has no name")
        if not all(is_file_name(part) for part in path.parts):
            raise _refused(archive, f"the entry '{info.filename}' has a name that not every system can hold")
        folders |= {_folded(parent) for parent in path.parents}
        if name.endswith("/") or not path.parts:
            folders.add(_folded(path))
            continue
        if _folded(path) in taken:
            raise _refused(archive, f"it holds '{path}' twice")
        taken.add(_folded(path))
        files[path] = info
    if both := taken & folders:
        raise _refused(archive, f"'{min(both)}' is a file and a folder in it")
    if sum(info.file_size for info in files.values()) > limit:
        raise _refused(archive, f"its files would take more than {limit / 2**20:.0f} MiB")
    return files


def _folded(path: PurePosixPath) -> str:
    """Return what the path is to a file system that ignores case and ways to write an accent."""
    return unicodedata.normalize("NFC", path.as_posix()).casefold()


@contextmanager
def _readable(archive: Path) -> Iterator[None]:
    try:
        yield
    except _NOT_A_ZIP as error:
        raise InputError(
            f"'{archive.name}' is not a readable zip file ({str(error) or type(error).__name__}).",
            "Copy or download it again.",
            "bad_zip",
        ) from error


def _refused(archive: Path, reason: str) -> InputError:
    return InputError(
        f"'{archive.name}' is refused: {reason}.", "Use only files from a source that you trust.", "unsafe_zip"
    )
