"""What an image file promises in its header, and whether it holds that much.

ITK reads a file that was cut short without a word and fills the rest with zeros, takes memory for whatever size a
header claims, and overlooks broken checksums. So headers are read here too, before any voxel is.
"""

from __future__ import annotations

import bz2
import math
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

GZIP, ZLIB = 31, 15
LONGEST_HEADER = 2**24

_NIFTI_BYTES = {
    **{2: 1, 4: 2, 8: 4, 16: 4, 32: 8, 64: 8, 128: 3, 256: 1, 512: 2, 768: 4},
    **{1024: 8, 1280: 8, 1536: 16, 1792: 16, 2048: 32, 2304: 4},
}
_NRRD_BYTES = {
    1: ("signed char", "int8", "int8_t", "uchar", "unsigned char", "uint8", "uint8_t"),
    2: (
        *("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
        *("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    ),
    4: ("int", "signed int", "int32", "int32_t", "uint", "unsigned int", "uint32", "uint32_t", "float"),
    8: (
        *("longlong", "long long", "long long int", "signed long long", "signed long long int", "int64", "int64_t"),
        *("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t", "double"),
    ),
}


def is_complete(path: Path, elements: int, bits: int) -> bool:
    """Tell whether a file holds all that its header promises, with sound checksums where the format has them.

    Args:
        path: a NIfTI, NRRD, MetaImage or GIPL file; of other formats nothing is known, and they pass.
        elements: numbers in all voxels, by ITK's reading of the header.
        bits: size of each, by ITK's reading.
    """
    name = path.name.lower()
    try:
        if name.endswith((".nii", ".nii.gz", ".hdr", ".img", ".img.gz")):
            return _nifti_holds(path)
        if name.endswith((".nrrd", ".nhdr")):
            return _nrrd_holds(path)
        if name.endswith((".mha", ".mhd")):
            return _meta_image_holds(path, elements * bits // 8)
        if name.endswith((".gipl", ".gipl.gz")):
            return _holds(path, 256 + elements * bits // 8)
    except (ValueError, OverflowError, KeyError, struct.error, zlib.error, EOFError):
        return False
    return True


def _holds(path: Path, expected: int) -> bool:
    """Tell whether a file, compressed or not, holds at least so many bytes."""
    with path.open("rb") as stream:
        packed = stream.read(2) == b"\x1f\x8b"
        stream.seek(0)
        return _inflates(stream, expected, GZIP) if packed else path.stat().st_size >= expected


def _nifti_holds(path: Path) -> bool:
    pair = next((path.with_suffix(end) for end in (".hdr", ".HDR") if path.with_suffix(end).is_file()), None)
    is_voxels = path.name.lower().endswith((".img", ".img.gz"))
    header = _start(pair if is_voxels and pair is not None else path, 544)
    order = "<" if struct.unpack_from("<i", header)[0] in (348, 540) else ">"

    def field(code: str, offset: int) -> float:
        return float(struct.unpack_from(f"{order}{code}", header, offset)[0])

    if field("i", 0) == 540:
        sizes = struct.unpack_from(f"{order}8q", header, 16)
        kind, bits, offset = field("h", 12), field("h", 14), field("q", 168)
        scale, single = (field("d", 176), field("d", 184)), header[4:6] == b"n+"
    else:
        sizes = struct.unpack_from(f"{order}8h", header, 40)
        kind, bits, offset = field("h", 70), field("h", 72), field("f", 108)
        scale, single = (field("f", 112), field("f", 116)), header[344:346] == b"n+"
    each = _NIFTI_BYTES[int(kind)]
    # NaN is what some programs write where they mean no scaling.
    if bits != 8 * each or not math.isfinite(offset) or any(math.isinf(part) for part in scale):
        return False
    expected = math.prod(sizes[1 : 1 + sizes[0]]) * each
    if single:
        if 0 != offset < len(header[:348]):
            return False
        return _holds(path, max(int(offset), 352) + expected)
    candidates = [path.with_suffix(end) for end in (".img", ".IMG", ".img.gz")] if path.suffix.lower() == ".hdr" else []
    voxels = next((candidate for candidate in candidates if candidate.is_file()), path)
    return _holds(voxels, max(int(offset), 0) + expected)


def _start(path: Path, length: int) -> bytes:
    with path.open("rb") as stream:
        start = stream.read(2)
        stream.seek(0)
        if start != b"\x1f\x8b":
            return stream.read(length)
        return zlib.decompressobj(GZIP).decompress(stream.read(1 << 16), length)


def _nrrd_holds(path: Path) -> bool:
    with path.open("rb") as stream:
        fields, offset = _nrrd_header(stream)
    # By the format's definition; without directions the scan would be taken for one that lies straight.
    if ("space" in fields or "spacedimension" in fields) and "spacedirections" not in fields:
        return False
    sizes = [int(word) for word in fields["sizes"].split()]
    each = next((size for size, names in _NRRD_BYTES.items() if fields["type"].lower() in names), None)
    if each is None or any(size < 1 for size in sizes):
        return False
    expected = math.prod(sizes) * each
    if "datafile" in fields:
        path, offset = path.parent / fields["datafile"], 0
        if not path.is_file():
            return fields["datafile"].startswith("LIST") or "%" in fields["datafile"]
    skip = int(fields.get("byteskip", "0"))
    if int(fields.get("lineskip", "0")):
        return True
    encoding = fields["encoding"].lower()
    if encoding == "raw":
        return path.stat().st_size - (offset + max(skip, 0)) >= expected
    with path.open("rb") as stream:
        stream.seek(offset + max(skip, 0))
        if encoding in ("gzip", "gz"):
            return _inflates(stream, expected, GZIP)
        if encoding in ("bzip2", "bz2"):
            return _unpacks_bz2(stream, expected)
    each_character = 2 * each if encoding == "hex" else 1
    return path.stat().st_size - offset >= math.prod(sizes) * each_character


def _nrrd_header(stream: BinaryIO) -> tuple[dict[str, str], int]:
    """Read the fields, names without spaces, and where the voxels begin."""
    fields: dict[str, str] = {}
    if not stream.readline(100).startswith(b"NRRD"):
        raise ValueError("no NRRD")
    while stream.tell() < LONGEST_HEADER:
        line = stream.readline(LONGEST_HEADER)
        text = line.decode("utf-8", "replace").strip()
        if not text:
            break
        match = re.match(r"([^#:][^:]*):(?!=)\s*(.*)", text)
        if match:
            fields[re.sub(r"\s", "", match.group(1)).lower()] = match.group(2).strip()
    return fields, stream.tell()


def _meta_image_holds(path: Path, expected: int) -> bool:
    with path.open("rb") as stream:
        start = stream.read(1 << 16)
    header = re.match(rb"(?s).*?^ElementDataFile\s*=\s*([^\r\n]*)\r?\n?", start, re.MULTILINE)
    if header is None:
        return True
    name = header.group(1).decode("utf-8", "replace").strip()
    if name.upper().startswith("LIST") or "%" in name:
        return True
    payload, offset = (path, header.end()) if name.upper() == "LOCAL" else (path.parent / name, 0)
    if not payload.is_file():
        return False
    if not re.search(rb"(?im)^CompressedData\s*=\s*(True|1)", header.group(0)):
        return payload.stat().st_size - offset >= expected
    # ITK reads without an error, and wrongly, where this size is missing or not right.
    size = re.search(rb"(?m)^CompressedDataSize\s*=\s*(\d+)\s*$", header.group(0))
    if size is None or int(size.group(1)) > payload.stat().st_size - offset:
        return False
    with payload.open("rb") as stream:
        stream.seek(offset)
        return _inflates(stream, expected, ZLIB, int(size.group(1)))


def _inflates(stream: BinaryIO, expected: int, window: int, length: int | None = None) -> bool:
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


def _unpacks_bz2(stream: BinaryIO, expected: int) -> bool:
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
