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
from typing import Any, BinaryIO, NamedTuple

GZIP, ZLIB = 31, 15
LONGEST_HEADER = 2**24

_NIFTI_BYTES = {
    **{2: 1, 4: 2, 8: 4, 16: 4, 32: 8, 64: 8, 128: 3, 256: 1, 512: 2, 768: 4},
    **{1024: 8, 1280: 8, 1536: 16, 1792: 16, 2048: 32, 2304: 4},
}
_GIPL_BYTES = {1: 1, 7: 1, 8: 1, 15: 2, 16: 2, 31: 4, 32: 4, 64: 4, 65: 8}
_META_BYTES = {
    **{"MET_CHAR": 1, "MET_UCHAR": 1, "MET_SHORT": 2, "MET_USHORT": 2, "MET_INT": 4, "MET_UINT": 4, "MET_FLOAT": 4},
    **{"MET_LONG": 4, "MET_ULONG": 4, "MET_LONG_LONG": 8, "MET_ULONG_LONG": 8, "MET_DOUBLE": 8},
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


def has_sound_header(path: Path) -> bool:
    """Tell whether the numbers in a header are numbers, and as many as there must be.

    Where they are not, ITK may crash, take memory without bound, or put a scan in a place that nobody wrote down. Of
    formats without such a risk, and of files that are of another format than their name says, nothing is said.
    """
    name = path.name.lower()
    try:
        if name.endswith((".nii", ".nii.gz", ".hdr", ".img", ".img.gz")):
            return _nifti_is_sound(path)
        if name.endswith((".nrrd", ".nhdr")):
            return _nrrd_is_sound(path)
        if name.endswith((".mha", ".mhd")):
            return _meta_image_is_sound(path)
        with path.open("rb") as stream:
            if stream.read(132)[128:] == b"DICM":
                return _dicom_is_sound(stream, path.stat().st_size)
    except (ValueError, KeyError, struct.error, zlib.error):
        return False
    return True


def is_complete(path: Path) -> bool:
    """Tell whether a file holds all that its header promises, with sound checksums where the format has them.

    Args:
        path: a NIfTI, NRRD, MetaImage or GIPL file with a sound header; others pass.
    """
    name = path.name.lower()
    try:
        if name.endswith((".nii", ".nii.gz", ".hdr", ".img", ".img.gz")):
            return _nifti_holds(path)
        if name.endswith((".nrrd", ".nhdr")):
            return _nrrd_holds(path)
        if name.endswith((".mha", ".mhd")):
            return _meta_image_holds(path)
        if name.endswith((".gipl", ".gipl.gz")):
            *sizes, kind = struct.unpack(">5H", _start(path, 10))
            return _holds(path, 256 + math.prod(max(size, 1) for size in sizes) * _GIPL_BYTES[kind])
    except (ValueError, OverflowError, KeyError, struct.error, zlib.error, EOFError):
        return False
    return True


def _holds(path: Path, expected: int) -> bool:
    """Tell whether a file, compressed or not, holds at least so many bytes."""
    with path.open("rb") as stream:
        packed = stream.read(2) == b"\x1f\x8b"
        stream.seek(0)
        return _inflates(stream, expected, GZIP) if packed else path.stat().st_size >= expected


class _Nifti(NamedTuple):
    sizes: tuple[int, ...]
    kind: int
    bits: int
    offset: float
    spacings: tuple[float, ...]
    scale: tuple[float, ...]
    turn: tuple[float, ...]
    places: tuple[float, ...]
    magic: bytes


def _nifti_header(path: Path) -> _Nifti:
    """Read the header of NIfTI 1 and 2, and of Analyze, whose first fields are the same."""
    pair = next((path.with_suffix(end) for end in (".hdr", ".HDR") if path.with_suffix(end).is_file()), None)
    is_voxels = path.name.lower().endswith((".img", ".img.gz"))
    header = _start(pair if is_voxels and pair is not None else path, 544)
    order = "<" if struct.unpack_from("<i", header)[0] in (348, 540) else ">"

    def fields(code: str, offset: int) -> tuple[Any, ...]:
        return struct.unpack_from(f"{order}{code}", header, offset)

    if fields("i", 0) == (540,):
        return _Nifti(
            sizes=fields("8q", 16),
            kind=fields("h", 12)[0],
            bits=fields("h", 14)[0],
            offset=fields("q", 168)[0],
            spacings=fields("3d", 112),
            scale=fields("2d", 176),
            turn=fields("3d", 352) if fields("i", 344)[0] > 0 else (),
            places=fields("18d", 352),
            magic=header[4:8],
        )
    magic = header[344:348]
    is_nifti = magic in (b"n+1\0", b"ni1\0")
    return _Nifti(
        sizes=fields("8h", 40),
        kind=fields("h", 70)[0],
        bits=fields("h", 72)[0],
        offset=fields("f", 108)[0],
        spacings=fields("3f", 80),
        scale=fields("2f", 112) if is_nifti else (),
        turn=fields("3f", 256) if is_nifti and fields("h", 252)[0] > 0 else (),
        places=fields("18f", 256) if is_nifti else (),
        magic=magic,
    )


def _nifti_is_sound(path: Path) -> bool:
    header = _nifti_header(path)
    used = header.sizes[1 : 1 + header.sizes[0]]
    return (
        # Without its mark ITK would take the file for one of an older format, which has no orientation.
        (header.magic[:2] == b"n+" or not path.name.lower().endswith((".nii", ".nii.gz")))
        and (header.magic[:2] not in (b"n+", b"ni") or header.magic[2:] in (b"1\0", b"2\0"))
        and min(used) >= 1
        and header.bits == 8 * _NIFTI_BYTES[header.kind]
        and not any(math.isinf(part) for part in header.scale)
        and not (header.scale and 0 < abs(header.scale[0]) < 1e-15)  # ITK would take it for 0, which means 1
        # A factor that is NaN is how some programs say: no scaling.
        and not (header.scale and math.isfinite(header.scale[0]) and math.isnan(header.scale[1]))
        and all(1e-9 < abs(spacing) < math.inf for spacing in header.spacings[: len(used)])
        and all(math.isfinite(number) for number in header.places)  # ITK would go on forever
        and sum(part * part for part in header.turn) < 1.01  # parts of a unit quaternion
        # ITK would take the end of the header for voxels.
        and (header.offset >= 352 or (header.magic[:2] != b"n+" and header.offset >= 0))
    )


def _nifti_holds(path: Path) -> bool:
    header = _nifti_header(path)
    expected = math.prod(header.sizes[1 : 1 + header.sizes[0]]) * _NIFTI_BYTES[header.kind] + int(header.offset)
    if header.magic[:2] == b"n+":
        return _holds(path, expected)
    candidates = [path.with_suffix(end) for end in (".img", ".IMG", ".img.gz")] if path.suffix.lower() == ".hdr" else []
    voxels = next((candidate for candidate in candidates if candidate.is_file()), path)
    return _holds(voxels, expected)


def _start(path: Path, length: int) -> bytes:
    with path.open("rb") as stream:
        start = stream.read(2)
        stream.seek(0)
        if start != b"\x1f\x8b":
            return stream.read(length)
        return zlib.decompressobj(GZIP).decompress(stream.read(1 << 16), length)


def _nrrd_is_sound(path: Path) -> bool:
    with path.open("rb") as stream:
        fields, _ = _nrrd_header(stream)
    axes = int(fields["dimension"])
    if not 1 <= axes <= 16 or len([int(word) for word in fields["sizes"].split()]) != axes:
        return False
    # Without directions a scan would be taken for one that lies straight, with voxels of 1 mm.
    if "spacedirections" not in fields:
        return "space" not in fields and "spacings" in fields and len(_numbers(fields["spacings"])) == axes
    if "space" not in fields:  # nobody could say which side is left
        return False
    vectors = re.sub(r"none", "(0)", fields["spacedirections"], flags=re.IGNORECASE)
    words = re.findall(r"\(([^()]*)\)", vectors)
    if len(words) != axes or re.sub(r"\([^()]*\)", "", vectors).strip():
        return False
    return all(_numbers(vector) for vector in (*words, fields.get("spaceorigin", "(0)").strip("()")))


def _numbers(text: str) -> list[float]:
    """Read numbers between spaces and commas.

    Raises:
        ValueError: when one is none; NaN is one here, as the mark of an axis without spacing.
    """
    numbers = [float(word) for word in text.replace(",", " ").split()]
    if any(math.isinf(number) for number in numbers):
        raise ValueError("infinite")
    return numbers


def _nrrd_holds(path: Path) -> bool:
    with path.open("rb") as stream:
        fields, offset = _nrrd_header(stream)
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


def _meta_image_header(path: Path) -> tuple[dict[str, str], int]:
    """Read the fields, and where the voxels begin if they are in the same file."""
    with path.open("rb") as stream:
        start = stream.read(1 << 16)
    header = re.match(rb"(?s).*?^[ \t]*ElementDataFile\s*=[^\r\n]*\r?\n?", start, re.MULTILINE)
    if header is None:
        raise ValueError("no MetaImage")
    lines = header.group(0).decode("utf-8", "replace").splitlines()
    if any(line.strip() and "=" not in line for line in lines):  # ITK would leave out what comes after it, too
        raise ValueError("a line without a value")
    pairs = (line.partition("=") for line in lines)
    return {key.strip(): value.strip() for key, _, value in pairs}, header.end()


def _meta_image_is_sound(path: Path) -> bool:
    fields, _ = _meta_image_header(path)
    axes = int(fields["NDims"])
    sizes = [int(word) for word in fields["DimSize"].split()]
    counts = {
        **dict.fromkeys(("Offset", "Position", "Origin", "ElementSpacing", "ElementSize", "CenterOfRotation"), axes),
        **dict.fromkeys(("TransformMatrix", "Rotation", "Orientation"), axes * axes),
    }
    geometry = {key: _numbers(fields[key]) for key in counts if key in fields}
    words = [fields.get(key, "False") for key in ("BinaryData", "BinaryDataByteOrderMSB", "CompressedData")]
    return (
        1 <= axes <= 8
        and len(sizes) == axes
        and all(len(numbers) == counts[key] for key, numbers in geometry.items())
        and ("ElementSpacing" in geometry or "ElementSize" in geometry)
        and all(word.casefold() in ("true", "false", "1", "0") for word in words)
        and int(fields.get("ElementNumberOfChannels", "1")) >= 1
    )


def _meta_image_holds(path: Path) -> bool:
    fields, offset = _meta_image_header(path)
    sizes = [int(word) for word in fields["DimSize"].split()]
    channels = int(fields.get("ElementNumberOfChannels", "1"))
    expected = math.prod(sizes) * channels * _META_BYTES[fields["ElementType"].removesuffix("_ARRAY")]
    name = fields["ElementDataFile"]
    if name.upper().startswith("LIST") or "%" in name:
        return True
    payload, offset = (path, offset) if name.upper() == "LOCAL" else (path.parent / name, 0)
    if not payload.is_file() or expected < 1:
        return False
    if fields.get("CompressedData", "False").casefold() not in ("true", "1"):
        return payload.stat().st_size - offset >= expected
    # ITK reads without an error, and wrongly, where this size is missing or not right.
    length = int(fields["CompressedDataSize"])
    if not 0 < length <= payload.stat().st_size - offset:
        return False
    with payload.open("rb") as stream:
        stream.seek(offset)
        return _inflates(stream, expected, ZLIB, length)


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


# DICOM

_SHORT_LENGTHS = (
    *(b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL", b"SS"),
    *(b"ST", b"TM", b"UI", b"UL", b"US"),
)
_LONG_LENGTHS = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
_UNDEFINED = 0xFFFFFFFF
# Classes of objects that hold pixels; spectra (4.2) do not, though their class is among those of magnetic resonance.
_PICTURES = re.compile(
    r"1\.2\.840\.10008\.5\.1\.4\.1\.1\.((?!4\.2$)([1-7]|1[234]|20|30|77|128|130)(\..*)?|66\.4|481\.[12])"
)


class _Encoding(NamedTuple):
    """How elements are written: the order of bytes, and whether each says its kind of value."""

    order: str
    explicit: bool


_IMPLICIT = _Encoding("<", False)
_NATIVE = {
    "1.2.840.10008.1.2": _IMPLICIT,
    "1.2.840.10008.1.2.1": _Encoding("<", True),
    "1.2.840.10008.1.2.2": _Encoding(">", True),
}


def _dicom_is_sound(stream: BinaryIO, end: int) -> bool:
    """Walk over the elements after the preamble: none may reach beyond the file, and all voxels must be there."""
    syntax, kind = _dicom_group_2(stream, end)
    if syntax not in _NATIVE:  # compressed slices: their decoder finds what is missing
        return True
    start, encoding = stream.tell(), _NATIVE[syntax]
    try:
        return _dicom_holds(stream, end, kind, encoding, _IMPLICIT)
    except (ValueError, struct.error):
        # Items of unknown kind are to be written in one way only (PS3.5, 6.2.2), but some are written like the rest.
        stream.seek(start)
        return _dicom_holds(stream, end, kind, encoding, encoding)


def _dicom_holds(stream: BinaryIO, end: int, kind: str, encoding: _Encoding, of_unknown: _Encoding) -> bool:
    found: dict[str, int] = {}
    while stream.tell() + 8 <= end:
        tag, value, length = _dicom_element(stream, encoding)
        if tag == (0x7FE0, 0x0010):
            samples = found.get("samples", 1)
            frames = found.get("frames", 1)
            voxels = found["rows"] * found["columns"] * samples * frames
            if (
                samples != (3 if found["colors"] else 1)
                or frames < 1
                or not 1 <= found.get("stored", 1) <= found["bits"]
            ):
                return False  # where ITK would read beyond the voxels, or other bits than are meant
            return length != _UNDEFINED and length >= voxels * found["bits"] // 8 and stream.tell() + length <= end
        if length == _UNDEFINED:
            _skip_items(stream, of_unknown if value == b"UN" else encoding, of_unknown, end)
            continue
        if stream.tell() + length > end:
            return False
        key = _DICOM_KEYS.get(tag)
        if key is None:
            stream.seek(length, 1)
        elif key == "frames":
            found[key] = int(stream.read(length).strip(b" \0") or b"1")
        elif key == "colors":
            word = stream.read(length)
            found[key] = int(word.startswith((b"RGB", b"YBR")))
            if not word.startswith((b"RGB", b"YBR", b"MONOCHROME1", b"MONOCHROME2", b"PALETTE COLOR")):
                return False
        else:
            found[key] = struct.unpack(f"{encoding.order}H", stream.read(length)[:2])[0]
    # A report, say, has no voxels, and ITK passes it over. So would it pass over a slice without them.
    return stream.tell() == end and bool(kind) and not _PICTURES.fullmatch(kind)


_DICOM_KEYS = {
    (0x0028, 0x0002): "samples",
    (0x0028, 0x0004): "colors",
    (0x0028, 0x0008): "frames",
    (0x0028, 0x0010): "rows",
    (0x0028, 0x0011): "columns",
    (0x0028, 0x0100): "bits",
    (0x0028, 0x0101): "stored",
}


def _dicom_group_2(stream: BinaryIO, end: int) -> tuple[str, str]:
    """Read the file meta information, and stand at the first element after it.

    Returns:
        The transfer syntax, and the class of the object.
    """
    texts = {(2, 0x10): "", (2, 2): ""}
    while stream.tell() + 8 <= end:
        group = stream.read(2)
        stream.seek(-2, 1)
        if group != b"\2\0":
            return texts[2, 0x10], texts[2, 2]
        tag, _, length = _dicom_element(stream, _Encoding("<", True))
        if stream.tell() + length > end:
            break
        value = stream.read(length)
        if tag in texts:
            texts[tag] = value.strip(b" \0").decode("ascii", "replace")
    raise ValueError("nothing after the file meta information")


def _dicom_element(stream: BinaryIO, encoding: _Encoding) -> tuple[tuple[int, int], bytes, int]:
    """Read tag, kind of value and length of the element at which the stream stands."""
    order = encoding.order
    group, element = struct.unpack(f"{order}2H", stream.read(4))
    if not encoding.explicit or group == 0xFFFE:
        return (group, element), b"", struct.unpack(f"{order}I", stream.read(4))[0]
    kind = stream.read(2)
    if kind in _LONG_LENGTHS:
        return (group, element), kind, struct.unpack(f"{order}2xI", stream.read(6))[0]
    if kind not in _SHORT_LENGTHS:
        raise ValueError("no value representation")
    return (group, element), kind, struct.unpack(f"{order}H", stream.read(2))[0]


def _skip_items(stream: BinaryIO, encoding: _Encoding, of_unknown: _Encoding, end: int) -> None:
    """Go to the end of items; what is nested is counted and not recursed into.

    Args:
        stream: stands at the first item.
        encoding: of the items.
        of_unknown: encoding in elements of the kind UN.
        end: size of the file.
    """
    open_ones = [encoding]
    while open_ones:
        tag, kind, length = _dicom_element(stream, open_ones[-1])
        if tag in ((0xFFFE, 0xE0DD), (0xFFFE, 0xE00D)):
            open_ones.pop()
        elif length == _UNDEFINED:
            open_ones.append(of_unknown if kind == b"UN" else open_ones[-1])
        elif tag != (0xFFFE, 0xE000):
            # An item of known length is entered, because what is in it may be of unknown length or not.
            if stream.tell() + length > end:
                raise ValueError("an element reaches beyond the file")
            stream.seek(length, 1)
