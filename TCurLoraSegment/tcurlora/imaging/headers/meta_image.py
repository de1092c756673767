"""MetaImage headers: are they sound, what do they say about place and units, and does the file hold the voxels."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from tcurlora.errors import InputError
from tcurlora.imaging.affines import affine_of
from tcurlora.imaging.headers.nrrd import UNITS, to_millimeters
from tcurlora.imaging.headers.streams import ZLIB, inflates, numbers
from tcurlora.imaging.image_warnings import ImageWarning, OnWarning

_META_BYTES = {
    **{"MET_CHAR": 1, "MET_UCHAR": 1, "MET_SHORT": 2, "MET_USHORT": 2, "MET_INT": 4, "MET_UINT": 4, "MET_FLOAT": 4},
    **{"MET_LONG": 4, "MET_ULONG": 4, "MET_LONG_LONG": 8, "MET_ULONG_LONG": 8, "MET_DOUBLE": 8},
}


def read_fields(path: Path) -> tuple[dict[str, str], int]:
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


_PLACES, _TURNS = ("Offset", "Position", "Origin"), ("TransformMatrix", "Rotation", "Orientation")


def is_sound(path: Path) -> bool:
    """Tell whether there are as many numbers as there must be, and voxel sizes among them."""
    fields, _ = read_fields(path)
    axes = int(fields["NDims"])
    sizes = [int(word) for word in fields["DimSize"].split()]
    counts = {
        **dict.fromkeys(("Offset", "Position", "Origin", "ElementSpacing", "ElementSize", "CenterOfRotation"), axes),
        **dict.fromkeys(("TransformMatrix", "Rotation", "Orientation"), axes * axes),
    }
    geometry = {key: numbers(fields[key]) for key in counts if key in fields}
    words = [fields.get(key, "False") for key in ("BinaryData", "BinaryDataByteOrderMSB", "CompressedData")]
    return (
        1 <= axes <= 8
        and len(sizes) == axes
        and all(len(numbers) == counts[key] for key, numbers in geometry.items())
        and ("ElementSpacing" in geometry or "ElementSize" in geometry)
        and all(word.casefold() in ("true", "false", "1", "0") for word in words)
        and int(fields.get("ElementNumberOfChannels", "1")) >= 1
    )


def look(path: Path, on_warning: OnWarning) -> None:
    """Look for what a sound header does not say, or says twice.

    Raises:
        InputError: when nobody could say how the patient lies, or when the header says two things.
    """
    fields, _ = read_fields(path)
    if not any(key in fields for key in _TURNS):
        raise InputError(
            f"{path} does not say where left, front and top of the patient are: its header has no TransformMatrix.",
            "Open it in 3D Slicer, check that the patient lies right, and save it from there as .nrrd. If you know its "
            "orientation, write it into the header, for example 'TransformMatrix = 1 0 0 0 1 0 0 0 1'.",
            "no_orientation",
        )
    for names in (_PLACES, _TURNS):
        given = [key for key in names if key in fields]
        if any(not np.allclose(numbers(fields[key]), numbers(fields[given[0]]), atol=1e-3) for key in given[1:]):
            raise InputError(
                f"The header of {path} has two different values, {' and '.join(given)}, for one thing.",
                "Remove the one that is wrong.",
                "contradictory_header",
            )
    if not any(key in fields for key in _PLACES):
        message = f"{path} does not say where its first voxel is: it is taken to be at 0, 0, 0."
        on_warning(ImageWarning("no_position", message, "Results lie on the scan; nothing else is known to."))
    if "ElementSpacing" not in fields:
        message = f"{path} gives the size of its voxels (ElementSize) and not their distance, which is taken to be it."
        on_warning(ImageWarning("sizes_differ", message, "If there are gaps between the slices, correct the header."))
    elif "ElementSize" in fields:
        sizes, spacing = numbers(fields["ElementSize"]), numbers(fields["ElementSpacing"])
        if not np.allclose(sizes, spacing, rtol=1e-3):
            message = (
                f"{path} gives two voxel sizes: {fields['ElementSpacing']} mm (ElementSpacing), which is taken, and "
                f"{fields['ElementSize']} mm (ElementSize)."
            )
            on_warning(ImageWarning("sizes_differ", message, "If that is wrong, correct the header."))


def settle(path: Path, image: sitk.Image, on_warning: OnWarning) -> None:
    """Bring lengths to mm, and tell of words about the orientation that do not fit its numbers."""
    fields, _ = read_fields(path)
    unit = fields.get("DistanceUnits", "mm").strip().lower()
    if unit not in (*UNITS, "?", ""):
        raise InputError(
            f"{path} gives lengths in {unit}.", "Save it with lengths in mm (DistanceUnits).", "bad_geometry"
        )
    to_millimeters(path, image, unit if unit in UNITS else "mm", on_warning)
    said = fields.get("AnatomicalOrientation", "").strip().upper()
    if re.fullmatch(r"[RLAPIS]{3}", said):
        affine = affine_of(image)[:3, :3]
        axes = np.abs(affine).argmax(0)
        toward = "".join("LPS"[axis] if affine[axis, i] > 0 else "RAI"[axis] for i, axis in enumerate(axes))
        # Some programs name where an axis points, others where it comes from.
        origins = toward.translate(str.maketrans("LPSRAI", "RAILPS"))
        if said not in (toward, origins):
            message = (
                f"{path} says two things about its orientation: '{said}' (AnatomicalOrientation), and its "
                f"TransformMatrix, which is taken, says that its axes point to {', '.join(toward)}."
            )
            remedy = "Compare left and right, front and back in 3D Slicer; if they are wrong, correct the matrix."
            on_warning(ImageWarning("orientation_differs", message, remedy))


def is_complete(path: Path) -> bool:
    """Tell whether the file, or the one that it names, holds all voxels."""
    fields, offset = read_fields(path)
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
        return inflates(stream, expected, ZLIB, length)
