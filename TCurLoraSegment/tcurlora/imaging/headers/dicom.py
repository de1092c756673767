"""DICOM files element by element: nothing may reach beyond the file, and all voxels must be there."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import BinaryIO, NamedTuple

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
NATIVE = {
    "1.2.840.10008.1.2": _IMPLICIT,
    "1.2.840.10008.1.2.1": _Encoding("<", True),
    "1.2.840.10008.1.2.2": _Encoding(">", True),
}


def is_sound(path: Path) -> bool:
    """Walk over the elements after the preamble: none may reach beyond the file, and all voxels must be there.

    Files from before there was a preamble pass.

    Raises:
        ValueError, struct.error: when the elements cannot be told apart.
    """
    with path.open("rb") as stream:
        return stream.read(132)[128:] != b"DICM" or _dicom_is_sound(stream, path.stat().st_size)


def _dicom_is_sound(stream: BinaryIO, end: int) -> bool:
    syntax, kind = _dicom_group_2(stream, end)
    if syntax not in NATIVE:  # compressed slices: their decoder finds what is missing
        return True
    start, encoding = stream.tell(), NATIVE[syntax]
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
