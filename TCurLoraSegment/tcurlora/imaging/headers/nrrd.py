"""NRRD headers: are they sound, what do they say about place and units, and does the file hold the voxels."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import BinaryIO

import SimpleITK as sitk

from tcurlora.errors import InputError
from tcurlora.imaging.affines import affine_of, set_affine
from tcurlora.imaging.headers.streams import GZIP, LONGEST_HEADER, inflates, numbers, unpacks_bz2
from tcurlora.imaging.image_warnings import ImageWarning, OnWarning

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


_ANATOMICAL = (
    *("right-anterior-superior", "ras", "left-anterior-superior", "las", "left-posterior-superior", "lps"),
    *("right-anterior-superior-time", "rast", "left-anterior-superior-time", "last"),
    *("left-posterior-superior-time", "lpst"),
)
UNITS = {
    **dict.fromkeys(("mm", "millimeter", "millimeters", "millimetre", "millimetres"), 1.0),
    **dict.fromkeys(("um", "µm", "μm", "micron", "microns", "micrometer", "micrometers"), 1e-3),
    **dict.fromkeys(("cm", "centimeter", "centimeters"), 10.0),
    **dict.fromkeys(("m", "meter", "meters", "metre", "metres"), 1e3),
}
"""Millimeters in a unit."""


def is_sound(path: Path) -> bool:
    """Tell whether there are as many numbers as there must be, and voxel sizes among them."""
    with path.open("rb") as stream:
        fields, _ = read_fields(stream)
    axes = int(fields["dimension"])
    if not 1 <= axes <= 16 or len([int(word) for word in fields["sizes"].split()]) != axes:
        return False
    # Without directions a scan would be taken for one that lies straight, with voxels of 1 mm.
    if "spacedirections" not in fields:
        return "space" not in fields and "spacings" in fields and len(numbers(fields["spacings"])) == axes
    if "space" not in fields and "spacedimension" not in fields:
        return False
    vectors = re.sub(r"none", "(0)", fields["spacedirections"], flags=re.IGNORECASE)
    words = re.findall(r"\(([^()]*)\)", vectors)
    if len(words) != axes or re.sub(r"\([^()]*\)", "", vectors).strip():
        return False
    return all(numbers(vector) for vector in (*words, fields.get("spaceorigin", "(0)").strip("()")))


def look(path: Path, on_warning: OnWarning) -> None:
    """Look for what a sound header does not say.

    Raises:
        InputError: when nobody could say how the patient lies.
    """
    with path.open("rb") as stream:
        fields, _ = read_fields(stream)
    space = fields.get("space", "").lower()
    if space not in _ANATOMICAL or "spacedirections" not in fields:
        said = (
            f"its space is '{fields['space']}'" if "space" in fields else "it has voxel sizes and no anatomical space"
        )
        raise InputError(
            f"{path} does not say where left, front and top of the patient are: {said}.",
            "Open it in 3D Slicer, check that the patient lies right, and save it from there as .nrrd. If you know its "
            "orientation, write 'space: left-posterior-superior' (or what it is) and 'space directions' into the "
            "header.",
            "no_orientation",
        )
    if "spaceorigin" not in fields:
        message = f"{path} does not say where its first voxel is: it is taken to be at 0, 0, 0."
        on_warning(ImageWarning("no_position", message, "Results lie on the scan; nothing else is known to."))


def settle(path: Path, image: sitk.Image, on_warning: OnWarning) -> None:
    """Bring a volume whose header gives lengths in another unit to mm, which ITK does not do."""
    with path.open("rb") as stream:
        fields, _ = read_fields(stream)
    units = {unit.strip().lower() for unit in re.findall(r'"([^"]*)"', fields.get("spaceunits", ""))} - {""}
    if units - set(UNITS) or len({UNITS[unit] for unit in units}) > 1:
        raise InputError(
            f"{path} gives lengths in {' and '.join(sorted(units))}.",
            "Save it with lengths in mm ('space units').",
            "bad_geometry",
        )
    to_millimeters(path, image, units.pop() if units else "mm", on_warning)


def to_millimeters(path: Path, image: sitk.Image, unit: str, on_warning: OnWarning) -> None:
    """Change the geometry of a volume from a unit to mm, and tell it."""
    if UNITS[unit] == 1.0:
        return
    affine = affine_of(image)
    affine[:3] *= UNITS[unit]
    set_affine(image, affine)
    sizes = "x".join(f"{size:.4g}" for size in image.GetSpacing())
    message = f"{path} gives lengths in {unit}: its voxels are taken to be {sizes} mm. Other programs take them for mm."
    on_warning(ImageWarning("unit", message, "If that is wrong, correct the unit in the header to mm."))


def is_complete(path: Path) -> bool:
    """Tell whether the file, or the one that it names, holds all voxels."""
    with path.open("rb") as stream:
        fields, offset = read_fields(stream)
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
            return inflates(stream, expected, GZIP)
        if encoding in ("bzip2", "bz2"):
            return unpacks_bz2(stream, expected)
    each_character = 2 * each if encoding == "hex" else 1
    return path.stat().st_size - offset >= math.prod(sizes) * each_character


def read_fields(stream: BinaryIO) -> tuple[dict[str, str], int]:
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
