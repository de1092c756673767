"""Whether files hold what their headers promise: lengths, compressed streams and checksums."""

from __future__ import annotations

import bz2
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

GZIP, ZLIB = 31, 15
LONGEST_HEADER = 2**24


def header_file(path: Path) -> Path:
    """Return the file of the header: beside `NAME.img` or `NAME.img.gz` it is `NAME.hdr`."""
    name = path.name
    ending = next((end for end in (".img.gz", ".img") if name.lower().endswith(end)), "")
    candidates = [path.with_name(name[: len(name) - len(ending)] + end) for end in (".hdr", ".HDR")] if ending else []
    return next((candidate for candidate in candidates if candidate.is_file()), path)


def is_packed(path: Path) -> bool:
    """Tell whether a file is packed with gzip, whatever its name says."""
    with path.open("rb") as stream:
        return stream.read(2) == b"\x1f\x8b"


def start(path: Path, length: int) -> bytes:
    """Read the first bytes of a file; of what is in it where it is packed with gzip."""
    packed = is_packed(path)
    with path.open("rb") as stream:
        if not packed:
            return stream.read(length)
        return zlib.decompressobj(GZIP).decompress(stream.read(1 << 16), length)


def holds(path: Path, expected: int) -> bool:
    """Tell whether a file, compressed or not, holds at least so many bytes."""
    packed = is_packed(path)
    with path.open("rb") as stream:
        return inflates(stream, expected, GZIP) if packed else path.stat().st_size >= expected


def inflates(stream: BinaryIO, expected: int, window: int, length: int | None = None) -> bool:
    """Tell whether a compressed stream is sound, checksum included, and holds at least the expected bytes.

    Bytes after its end do no harm, and further gzip members count.
    """
    inflate = zlib.decompressobj(window)
    total = 0
    blocks = _blocks(stream, length)
    rest = b""
    try:
        while block := rest or next(blocks, b""):
            total += len(inflate.decompress(block))
            rest = inflate.unused_data
            if inflate.eof:
                if total >= expected:
                    return True
                inflate = zlib.decompressobj(window)
    except zlib.error:
        return False
    return False


def unpacks_bz2(stream: BinaryIO, expected: int) -> bool:
    """Tell whether a bzip2 stream is sound and holds at least the expected bytes."""
    total = 0
    try:
        with bz2.open(stream) as unpacked:
            while block := unpacked.read(1 << 20):
                total += len(block)
    except (OSError, EOFError):
        return False
    return total >= expected


def _blocks(stream: BinaryIO, length: int | None) -> Iterator[bytes]:
    left = length
    while left is None or left > 0:
        block = stream.read(1 << 16 if left is None else min(1 << 16, left))
        if not block:
            return
        left = None if left is None else left - len(block)
        yield block


def numbers(text: str) -> list[float]:
    """Read numbers between spaces and commas.

    Raises:
        ValueError: when one is none; NaN is one here, as the mark of an axis without spacing.
    """
    numbers = [float(word) for word in text.replace(",", " ").split()]
    if any(math.isinf(number) for number in numbers):
        raise ValueError("infinite")
    return numbers
