"""Files from the network: only from addresses that are safe, resumed, cut off when too large, and verified."""

from __future__ import annotations

import hashlib
import http.client
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from tcurlora.errors import InputError, TCurLoraError
from tcurlora.models.bundle_files import belongs
from tcurlora.runtime.events import EventSink

ALGORITHMS = ("sha256", "sha1", "md5")
"""Checksums that publishers give, the strongest first. What is downloaded is data, whatever its checksum."""

BLOCK_BYTES = 2**20
TIMEOUT_S = 60
GONE = (401, 403, 404, 410)


class NotThere(TCurLoraError):
    """The server answers, but does not have the file."""


@dataclass(frozen=True)
class Hash:
    """A checksum that was published.

    Attributes:
        algorithm: one of `ALGORITHMS`.
        value: in hexadecimal digits.
    """

    algorithm: str
    value: str

    def is_of(self, path: Path) -> bool:
        """Return whether a file has this checksum."""
        digest = hashlib.new(self.algorithm, usedforsecurity=False)
        with path.open("rb") as stream:
            while block := stream.read(BLOCK_BYTES):
                digest.update(block)
        return digest.hexdigest() == self.value


@dataclass(frozen=True)
class RemoteFile:
    """A file on a server.

    Attributes:
        url: its address.
        path: its place in the bundle, with slashes; empty for an archive.
        promised: its checksum, where one was published.
    """

    url: str
    path: str
    promised: Hash | None

    @property
    def part_name(self) -> str:
        """What its unfinished download is called."""
        return self.path.replace("/", ".") or "zip"


@dataclass(frozen=True)
class Source:
    """Where a bundle can be fetched from.

    Attributes:
        files: one archive, or the bundle's files.
        archive: whether it is an archive.
    """

    files: tuple[RemoteFile, ...]
    archive: bool

    def verifiable(self, weights: Mapping[str, Hash]) -> bool:
        """Return whether nothing of it would be used that has no checksum."""
        if self.archive:
            return self.files[0].promised is not None or bool(weights)
        return all(remote.promised is not None for remote in self.files)


def source_of(entry: Mapping[str, Any]) -> Source:
    """Read a source of a catalogue: `archive`, an address with its checksum, or `files` with path, url and checksum.

    Raises:
        KeyError, TypeError, ValueError: when it is damaged.
    """
    if "archive" in entry:
        return Source((RemoteFile(str(entry["archive"]), "", _hash_in(entry)),), archive=True)
    files = tuple(RemoteFile(str(file["url"]), str(file["path"]), _hash_in(file)) for file in entry["files"])
    for remote in files:
        path = PurePosixPath(remote.path)
        if path.is_absolute() or ".." in path.parts or any(c in remote.path for c in "\\:\0") or not belongs(path):
            raise ValueError(f"{remote.path} is not a file of a bundle")
    if not files:
        raise ValueError("there are no files")
    return Source(files, archive=False)


def hash_of(entry: Mapping[str, Any]) -> Hash:
    """Read a checksum, such as `{"md5": "..."}`.

    Raises:
        ValueError: when there is none.
    """
    found = _hash_in(entry)
    if found is None:
        raise ValueError("there is no checksum")
    return found


def _hash_in(entry: Mapping[str, Any]) -> Hash | None:
    return next((Hash(name, str(entry[name]).lower()) for name in ALGORITHMS if entry.get(name)), None)


def require_safe(url: str) -> None:
    """Refuse an address on whose way a file could be exchanged.

    Raises:
        InputError: when it is not https, nor on this computer.
    """
    parts = urllib.parse.urlsplit(url)
    # A file, or a server on this computer, cannot be tampered with on the way.
    local = parts.scheme == "file" or (parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost"))
    if parts.scheme != "https" and not local:
        raise InputError(f"The address {url} is not https.", "Only https addresses are fetched.", "unsafe_url")


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        require_safe(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def download(url: str, part: Path, limit: int, events: EventSink) -> None:
    """Fill `part` from the address, from where it ends.

    Args:
        url: the address.
        part: the unfinished file.
        limit: bytes that it must not exceed.
        events: told of the progress.

    Raises:
        NotThere: when the server does not have it.
        TCurLoraError: when it breaks off.
        InputError: when it is larger than it may be, or leads to an address that is not safe.
    """
    start = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "tcurlora", **({"Range": f"bytes={start}-"} if start else {})}
    opener = urllib.request.build_opener(_SafeRedirects)
    try:
        with opener.open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S) as response:
            resumed = response.status == 206 and _begins_at(response, start)
            done = start if resumed else 0
            length = response.headers.get("Content-Length")
            total = done + int(length) if length and length.isdecimal() else None
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
        raise _broken_off(url, f"the server answers {error.code} {error.reason}", error.code in GONE) from error
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


def _broken_off(url: str, reason: str, gone: bool = False) -> TCurLoraError:
    return (NotThere if gone else TCurLoraError)(
        f"The download of {url} broke off: {reason}.",
        "Check the connection and give the command again; it goes on where it stopped.",
        "download_failed",
    )
