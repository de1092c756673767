"""What an image file promises in its header, and whether it holds that much.

ITK reads a file that was cut short without a word and fills the rest with zeros, takes memory for whatever size a
header claims, overlooks broken checksums, and takes one reading where a header says nothing or two things. So headers
are read here too, before any voxel is.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

from tcurlora.imaging.headers import dicom, meta_image, nifti, nrrd
from tcurlora.imaging.headers.formats import format_of

HEADERS = {"nifti": nifti, "nrrd": nrrd, "meta_image": meta_image}
"""Readers of the headers of one file each, by format."""


def has_sound_header(path: Path) -> bool:
    """Tell whether the numbers in a header are numbers, and as many as there must be.

    Where they are not, ITK may crash, take memory without bound, or put a scan in a place that nobody wrote down.

    Args:
        path: a NIfTI, NRRD, MetaImage or DICOM file; others pass.
    """
    kind = format_of(path)
    try:
        return dicom.is_sound(path) if kind == "dicom" else kind not in HEADERS or HEADERS[kind].is_sound(path)
    except (ValueError, OverflowError, KeyError, struct.error, zlib.error, EOFError):
        return False


def is_complete(path: Path) -> bool:
    """Tell whether a file holds all that its header promises, with sound checksums where the format has them.

    Args:
        path: a NIfTI, NRRD or MetaImage file with a sound header; others pass.
    """
    kind = format_of(path)
    try:
        return kind not in HEADERS or HEADERS[kind].is_complete(path)
    except (ValueError, OverflowError, KeyError, struct.error, zlib.error, EOFError):
        return False
