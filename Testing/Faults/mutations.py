"""Damage for files: blind damage to bytes, and damage that knows the format. Everything follows from the generator."""

from __future__ import annotations

import copy
import gzip
import io
import json
import random
import struct
import zlib
from collections.abc import Callable
from typing import Any

Mutator = Callable[[random.Random, bytes], bytes]

NUMBERS = ["0", "-1", "nan", "inf", "-inf", "1e308", "1e-320", "2147483648", "99999999999", "-0.5", "", "x", "1.5"]
NASTY: list[Any] = [
    None,
    True,
    0,
    -1,
    10**9,
    10**30,
    1.5,
    float("nan"),
    float("inf"),
    "",
    "\0",
    "x" * 5000,
    "../../../etc/passwd",
    "$__import__('os')",
    "@network_def",
    [],
    [[]],
    [None],
    [-1, 0, 1],
    [10**9] * 3,
    {},
    {"a": 1},
    "(a+)+$",
]


def damaged(rng: random.Random, data: bytes) -> bytes:
    """Damage bytes blindly in one of several ways."""
    n = max(1, len(data))
    way = rng.randrange(8)
    content = bytearray(data)
    if way == 0:
        return data[: rng.randrange(n)]
    if way in (1, 2):  # flips, mostly few of them, near the start as often as anywhere
        for _ in range(rng.choice((1, 1, 2, 8, 64))):
            place = rng.randrange(min(n, 400) if rng.random() < 0.5 else n)
            if content:
                content[place] ^= 1 << rng.randrange(8)
        return bytes(content)
    start, length = rng.randrange(n), rng.choice((1, 4, 16, 256))
    if way == 3:
        content[start : start + length] = rng.choice((b"\0", b"\xff", b"\x80")) * length
    elif way == 4:
        content[start:start] = rng.randbytes(length)
    elif way == 5:
        del content[start : start + length]
    elif way == 6:
        content[start:start] = content[start : start + length]
    else:
        return rng.randbytes(rng.choice((0, 1, 7, 400, 5000)))
    return bytes(content)


def nifti(rng: random.Random, data: bytes) -> bytes:
    """Set fields of a NIfTI header, compressed or not, to what they should not be."""
    packed = data[:2] == b"\x1f\x8b"
    raw = bytearray(gzip.decompress(data) if packed else data)

    def put(code: str, offset: int, *values: Any) -> None:
        struct.pack_into(f"<{code}", raw, offset, *values)

    odd = rng.choice([float("nan"), float("inf"), 0.0, -1.0, 1e30, 1e-30, -1e-3])
    for _ in range(rng.choice((1, 1, 2, 3))):
        way = rng.randrange(10)
        if way == 0:
            put("h", 40 + 2 * rng.randrange(8), rng.choice((0, -1, 1, 2, 3, 4, 5, 7, 8, 300, 32767)))
        elif way == 1:
            put("8h", 40, 3, 32767, 32767, 32767, 1, 1, 1, 1)
        elif way == 2:
            put("h", 70, rng.choice((0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 768, 1024, 1280, 1536, 1792, 2304, 99)))
        elif way == 3:
            put("h", 72, rng.choice((0, 1, 8, 16, 32, 64, 128, -8)))
        elif way == 4:
            put("f", 76 + 4 * rng.randrange(8), odd)
        elif way == 5:
            put("f", 108, rng.choice((0.0, 1.0, 351.0, 400.0, 1e9, -5.0, float("nan"))))
        elif way == 6:
            put("f", rng.choice((112, 116)), odd)
        elif way == 7:
            put("h", rng.choice((252, 254)), rng.choice((0, 1, 2, 5, -1)))
        elif way == 8:
            put("f", 256 + 4 * rng.randrange(18), rng.choice((odd, 0.5)))
        else:
            put("f", 352 + 4 * rng.randrange(max(1, (len(raw) - 356) // 4)), odd)
    if rng.random() < 0.2:
        raw = raw[: rng.randrange(348, len(raw))]
    return gzip.compress(bytes(raw), 1) if packed else bytes(raw)


def text_header(rng: random.Random, data: bytes, end: bytes) -> bytes:
    """Change lines of a text header that is followed by voxels; `end` ends the header."""
    place = data.find(end)
    if place < 0:
        return damaged(rng, data)
    lines = data[:place].split(b"\n")
    for _ in range(rng.choice((1, 1, 2))):
        at = rng.randrange(len(lines))
        separator = b"=" if b"=" in lines[at] else b":"
        key, found, value = lines[at].partition(separator)
        way = rng.randrange(7)
        if way == 0:
            del lines[at]
        elif way == 1:
            lines.insert(rng.randrange(len(lines)), lines[at])
        elif way in (2, 3, 4) and found:
            words = value.replace(b",", b" , ").replace(b"(", b"( ").replace(b")", b" )").split()
            if words:
                words[rng.randrange(len(words))] = rng.choice(NUMBERS).encode()
            lines[at] = key + found + b" " + b" ".join(words)
        elif way == 5 and found:
            count = rng.choice((1, 2, 3, 4, 5, 9))
            lines[at] = key + found + b" " + b" ".join(rng.choice(NUMBERS).encode() for _ in range(count))
        elif found:
            other = rng.choice(lines).partition(separator)[2]
            lines[at] = key + found + other
        if not lines:
            break
    return b"\n".join(lines) + data[place:]


def nrrd(rng: random.Random, data: bytes) -> bytes:
    return text_header(rng, data, b"\n\n")


def meta_image(rng: random.Random, data: bytes) -> bytes:
    return text_header(rng, data, b"\nElementDataFile")


def absurd_nrrd(rng: random.Random, data: bytes) -> bytes:
    """Claim a size that is not absurd enough to be refused by itself, in every encoding."""
    place = data.find(b"\n\n")
    lines = data[:place].split(b"\n")
    big = rng.choice((b"1200 1200 1200", b"2000 1000 1000", b"40000 40000 40000", b"60 60 600000"))
    lines = [b"sizes: " + big if line.startswith(b"sizes") and line.count(b" ") == 3 else line for line in lines]
    if rng.random() < 0.5:
        lines = [b"type: double" if line.startswith(b"type") else line for line in lines]
    body = data[place:]
    if rng.random() < 0.3:
        lines = [b"encoding: gzip" if line.startswith(b"encoding") else line for line in lines]
        body = b"\n\n" + gzip.compress(bytes(1000))
    return b"\n".join(lines) + body


def absurd_meta_image(rng: random.Random, data: bytes) -> bytes:
    """Claim a great size or very many channels."""
    lines = data.split(b"\n")
    for i, line in enumerate(lines):
        if line.startswith(b"DimSize"):
            lines[i] = b"DimSize = " + rng.choice((b"1200 1200 1200", b"60 60 600000", b"10 10 -10"))
            if rng.random() < 0.3:
                lines.insert(i, b"ElementNumberOfChannels = " + rng.choice((b"100000000", b"0", b"-3", b"3")))
            break
    return b"\n".join(lines)


_EXPRESSIONS = (
    b"$__import__('os').system('touch canary')",
    b"$open('canary', 'w')",
    b"$[0] * 999999999",
    b"$().__class__.__base__.__subclasses__()",
    b"$2 ** 9999999",
    b"@first",
    b"@display::window::0",
    b"@@",
    b"%first",
    b"%other.json::x",
    b"$@keys + @keys",
    b"$len(@display)",
    b"$@classes if @highres else @nowhere",
    b"$torch.load('models/model.pt')['x']",
    b"*a",
)


def config_text(rng: random.Random, data: bytes) -> bytes:
    """Exchange values of a config for references and expressions, so that they lead in circles or ask for too much."""
    lines = data.split(b"\n")
    for _ in range(rng.choice((1, 1, 2, 3))):
        number = rng.randrange(len(lines))
        key, colon, value = lines[number].partition(b": ")
        comma = b"," if value.endswith(b",") else b""
        way = rng.randrange(5)
        text = rng.choice(_EXPRESSIONS)
        if way == 0:
            lines.insert(rng.randrange(len(lines)), lines[number])
        elif way == 1:
            del lines[number]
            lines = lines or [b""]
        elif colon:
            lines[number] = key + colon + b'"' + text + b'"' + comma
        else:
            lines[number] = b' "' + text + b'"' + comma
    return b"\n".join(lines)


def json_text(rng: random.Random, data: bytes) -> bytes:
    """Replace, add or remove values anywhere in a JSON document; sometimes nest one absurdly deep."""
    try:
        content = json.loads(data)
    except ValueError:
        return damaged(rng, data)
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            entries: Any = node.items()
        elif isinstance(node, list):
            entries = enumerate(node)
        else:
            return
        for key, value in entries:
            places.append((node, key))
            walk(value)

    walk(content)
    for _ in range(rng.choice((1, 1, 2, 3))):
        if not places or rng.random() < 0.02:
            content = rng.choice(NASTY)
            break
        node, key = rng.choice(places)
        way = rng.randrange(6)
        try:
            if way == 0:
                del node[key]
            elif way == 1 and isinstance(node, dict):
                node[rng.choice(["", "x", "_target_", "$x", str(key) + "2", "-1"])] = copy.deepcopy(node[key])
            elif way == 2:
                node[key] = copy.deepcopy(rng.choice(places)[0])
            elif way == 3 and isinstance(node[key], int | float) and not isinstance(node[key], bool):
                node[key] = node[key] * rng.choice((-1, 0, 2, 1000, 10**6, 0.5))
            else:
                node[key] = copy.deepcopy(rng.choice(NASTY))
        except (KeyError, IndexError):
            continue
    try:
        text = json.dumps(content)
    except (ValueError, RecursionError):
        text = "{}"
    if rng.random() < 0.03:
        deep = 100_000
        text = text[:-1] + ', "deep": ' + "[" * deep + "]" * deep + "}"
    return text.encode()


def csv_text(rng: random.Random, data: bytes) -> bytes:
    """Move columns, quotes and lines of a table about."""
    lines = data.split(b"\n")
    for _ in range(rng.choice((1, 2))):
        at = rng.randrange(len(lines))
        way = rng.randrange(6)
        if way == 0:
            lines[at] = b",".join(reversed(lines[at].split(b",")))
        elif way == 1:
            lines[at] = lines[at].split(b",")[0]
        elif way == 2:
            lines[at] += b',"'
        elif way == 3:
            lines[at] = rng.choice((b"\0", b"\xff\xfe", b",,,,", b";", b"subject,file", b"x" * 200_000))
        elif way == 4:
            lines = [b",".join(reversed(line.split(b","))) for line in lines]
            lines[at] = lines[at].split(b",")[0]
        else:
            del lines[at]
        if not lines:
            break
    return b"\n".join(lines)


def safetensors(rng: random.Random, data: bytes) -> bytes:
    """Change the header of a safetensors file: names, shapes, types and places; or numbers in its tensors."""
    length = int.from_bytes(data[:8], "little")
    if rng.random() < 0.1:
        return rng.choice((0, 2**63, 2**40, length + 1, len(data))).to_bytes(8, "little") + data[8:]
    header = json.loads(data[8 : 8 + length])
    body = bytearray(data[8 + length :])
    names = [name for name in header if name != "__metadata__"]
    for _ in range(rng.choice((1, 1, 2))):
        name = rng.choice(names)
        entry = header.get(name)
        way = rng.randrange(8)
        if entry is None:
            continue
        if way == 0:
            del header[name]
        elif way == 1:
            header[rng.choice(("x", "", name + ".x", "rows.0", "whole.x"))] = header.pop(name)
        elif way == 2 and entry["shape"]:
            entry["shape"][rng.randrange(len(entry["shape"]))] = rng.choice((0, 1, -1, 2**62, 10**9))
        elif way == 3:
            entry["shape"] = entry["shape"][::-1]
        elif way == 4:
            entry["dtype"] = rng.choice(("F64", "F16", "BF16", "I64", "I32", "BOOL", "U8", "F8_E4M3", "Q3"))
        elif way == 5:
            entry["data_offsets"] = rng.choice(([0, 0], [0, 2**62], [5, 1], [-4, 4], header[names[0]]["data_offsets"]))
        elif way == 6 and len(body) >= 4:
            place = 4 * rng.randrange(len(body) // 4)
            body[place : place + 4] = struct.pack("<f", rng.choice((float("nan"), float("inf"), 1e38, -1.0)))
        elif "__metadata__" in header:
            meta = header["__metadata__"]
            key = rng.choice(list(meta))
            meta[key] = json_text(rng, meta[key].encode()).decode(errors="replace")
        if not [n for n in header if n != "__metadata__"]:
            break
        names = [n for n in header if n != "__metadata__"]
    packed = json.dumps(header).encode()
    return len(packed).to_bytes(8, "little") + packed + bytes(body)


def repacked_gzip(rng: random.Random, data: bytes) -> bytes:
    """Damage what a compressed NRRD or MHA holds, and pack it again soundly."""
    place = data.find(b"\n\n") + 2
    if place < 2 or data[place : place + 2] != b"\x1f\x8b":
        return damaged(rng, data)
    inner = gzip.decompress(data[place:])
    way = rng.randrange(3)
    if way == 0:
        inner = inner[: rng.randrange(len(inner))]
    elif way == 1:
        inner = inner + rng.randbytes(100)
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as stream:
        stream.write(inner)
    return data[:place] + packed.getvalue()


def repacked_zlib(rng: random.Random, data: bytes) -> bytes:
    """Shorten what a compressed MHA holds, and pack it again soundly."""
    place = data.find(b"ElementDataFile = LOCAL\n") + len(b"ElementDataFile = LOCAL\n")
    try:
        inner = zlib.decompress(data[place:])
    except zlib.error:
        return damaged(rng, data)
    return data[:place] + zlib.compress(inner[: rng.randrange(len(inner))])


def dicom(rng: random.Random, data: bytes) -> bytes:
    """Set elements of a DICOM file to what they should not be."""
    import warnings

    import pydicom

    warnings.simplefilter("ignore")
    dataset = pydicom.dcmread(io.BytesIO(data))
    for _ in range(rng.choice((1, 1, 2))):
        keyword, values = rng.choice(
            [
                ("Rows", (0, 1, 65535, 7)),
                ("Columns", (0, 1, 65535, 7)),
                ("BitsAllocated", (0, 1, 8, 12, 16, 32, 64)),
                ("BitsStored", (0, 8, 12, 16, 40)),
                ("PixelRepresentation", (0, 1, 2)),
                ("SamplesPerPixel", (0, 1, 3, 4)),
                ("PhotometricInterpretation", ("RGB", "MONOCHROME1", "PALETTE COLOR", "")),
                ("NumberOfFrames", ("0", "1", "2", "100000", "-1")),
                ("PixelSpacing", (["0", "0"], ["-1", "1"], ["0.8", "1e30"], ["1"], [])),
                ("ImageOrientationPatient", (["0"] * 6, ["1", "0", "0", "1", "0", "0"], ["1", "0", "0"])),
                ("ImagePositionPatient", (["1e30", "0", "0"], ["0", "0"], ["0", "0", "0"])),
                ("SliceThickness", ("0", "-1", "1e9")),
                ("RescaleSlope", ("0", "-1", "1e30", "2")),
                ("RescaleIntercept", ("5", "-1e30")),
                ("SeriesInstanceUID", ("", "1.2", "x" * 64)),
                ("PixelData", (b"", b"\0", bytes(7), bytes(10_000))),
            ]
        )
        try:
            setattr(dataset, keyword, rng.choice(values))
            if rng.random() < 0.15:
                delattr(dataset, keyword)
        except (ValueError, TypeError, AttributeError):
            continue
    stream = io.BytesIO()
    try:
        dataset.save_as(stream, enforce_file_format=True)
    except Exception:  # pydicom itself refuses to write some of this
        return damaged(rng, data)
    return stream.getvalue()


def dicom_frames(rng: random.Random, data: bytes) -> bytes:
    """Change, exchange, remove or double what single frames of a multi-frame DICOM file say of themselves."""
    import warnings

    import pydicom
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    warnings.simplefilter("ignore")
    dataset = pydicom.dcmread(io.BytesIO(data))
    frames = dataset.PerFrameFunctionalGroupsSequence
    odd = (*NUMBERS[:6], "1.5", "-7", "2")
    for _ in range(rng.choice((1, 1, 2))):
        way = rng.randrange(8)
        source = rng.choice([*frames, dataset.SharedFunctionalGroupsSequence[0]])
        groups = [element for element in source if element.VR == "SQ" and element.value]
        try:
            if way == 0:
                a, b = rng.randrange(len(frames)), rng.randrange(len(frames))
                frames[a].PlanePositionSequence = frames[b].PlanePositionSequence
            elif way == 1:
                frame = rng.choice(list(frames))
                place = [float(x) for x in frame.PlanePositionSequence[0].ImagePositionPatient]
                place[rng.randrange(3)] += rng.choice((-2, 0.01, 0.3, 1, 2, 2000))
                frame.PlanePositionSequence[0].ImagePositionPatient = [f"{x:g}" for x in place]
            elif way == 2:
                dataset.PerFrameFunctionalGroupsSequence = Sequence(
                    [*frames, copy.deepcopy(frames[0])] if rng.random() < 0.5 else list(frames)[:-1]
                )
            elif way == 3:
                for index, frame in enumerate(frames):
                    keyword = rng.choice(("TemporalPositionIndex", "StackID", "InStackPositionNumber"))
                    setattr(
                        frame.FrameContentSequence[0], keyword, str(index % 2) if keyword == "StackID" else index % 2
                    )
            elif way == 4 and groups:
                delattr(source, rng.choice(groups).keyword)
            elif way == 5:
                frame = rng.choice(list(frames))
                item = Dataset()
                item.RescaleSlope, item.RescaleIntercept = rng.choice(odd), rng.choice(odd)
                frame.PixelValueTransformationSequence = Sequence([item])
            elif groups:
                item = rng.choice(groups).value[0]
                element = rng.choice(list(item))
                if element.VM > 1:
                    values = list(element.value)
                    values[rng.randrange(len(values))] = rng.choice(odd)
                    element.value = values if rng.random() < 0.8 else values[:-1]
                else:
                    element.value = rng.choice(odd)
        except (ValueError, TypeError, AttributeError, OverflowError):
            continue
    stream = io.BytesIO()
    try:
        dataset.save_as(stream, enforce_file_format=True)
    except Exception:  # pydicom itself refuses to write some of this
        return damaged(rng, data)
    return stream.getvalue()


def dicom_labels(rng: random.Random, data: bytes) -> bytes:
    """Set elements anywhere in a DICOM segmentation or structure set to what they should not be, or remove them."""
    import warnings

    import pydicom

    warnings.simplefilter("ignore")
    dataset = pydicom.dcmread(io.BytesIO(data))
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for element in node:
            places.append((node, element.tag))
            if element.VR == "SQ":
                for item in element.value:
                    walk(item)

    walk(dataset)
    for _ in range(rng.choice((1, 1, 2))):
        node, tag = rng.choice(places)
        if tag not in node:
            continue
        element = node[tag]
        way = rng.randrange(4)
        try:
            if way == 0:
                del node[tag]
            elif element.VR == "SQ":
                element.value = pydicom.Sequence(list(element.value)[: rng.randrange(len(element.value) + 1)])
            elif element.VR in ("DS", "IS", "US", "FD", "UL") and element.VM == 1:
                element.value = element.value * rng.choice((0, 2, 3, -1)) + rng.choice((0, 1))
            elif element.VM > 1:
                values = list(element.value)
                values[rng.randrange(len(values))] = rng.choice((0, 1, values[0]))
                element.value = values if way > 1 else values[:-1]
            else:
                element.value = rng.choice(("", "liver", "x"))
        except Exception:
            continue
    stream = io.BytesIO()
    try:
        dataset.save_as(stream, enforce_file_format=False)
    except Exception:
        return damaged(rng, data)
    return stream.getvalue()
