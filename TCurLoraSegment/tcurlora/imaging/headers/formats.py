"""Which format a file has by its content, whatever its name says, and what to do with those that are not read."""

from __future__ import annotations

import re
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

from tcurlora.imaging.headers.streams import header_file, start

READABLE = {
    "nifti": ("NIfTI-1", (".nii", ".nii.gz", ".hdr", ".img", ".img.gz")),
    "nrrd": ("NRRD", (".nrrd", ".nhdr")),
    "meta_image": ("MetaImage", (".mha", ".mhd")),
    "dicom": ("DICOM", ()),
}
"""Formats that are read: their names, and how the names of their files end (any name where there is none)."""


class Foreign(NamedTuple):
    """A format that is not read: what it is, why it is not read, and what to do."""

    name: str
    reason: str
    remedy: str
    code: str = "unsupported_format"


_AS_NIFTI = "import nibabel as nib; i = nib.load(old); nib.save(nib.Nifti1Image(i.get_fdata(), i.affine), new)"
_FROM_SLICER = "Open it in 3D Slicer, check that the patient lies right, and save it from there as .nrrd."
_NOWHERE = "which does not say where left, front and top of the patient are"
_PICTURE = "Give the volume that the picture was made from: DICOM, NIfTI, NRRD or MetaImage."


def _picture(name: str) -> Foreign:
    return Foreign(name, "which is not a 3D image and has no voxel sizes", _PICTURE, "not_3d")


FOREIGN = {
    "nifti2": Foreign("a NIfTI-2 file", "which is not read here", f"Save it as NIfTI-1, in Python: {_AS_NIFTI}"),
    "analyze": Foreign(
        "an Analyze file", _NOWHERE, f"{_FROM_SLICER} Or get the scan as DICOM or NIfTI.", "no_orientation"
    ),
    "gipl": Foreign("a GIPL file", _NOWHERE, f"{_FROM_SLICER} Or get the scan as DICOM or NIfTI.", "no_orientation"),
    "mgh": Foreign(
        "a FreeSurfer volume",
        "which is not read here",
        f"Save it as NIfTI: mri_convert of FreeSurfer, or in Python: {_AS_NIFTI}",
    ),
    "minc": Foreign("a MINC or HDF5 file", "which is not read here", f"Save it as NIfTI, in Python: {_AS_NIFTI}"),
    "tiff": Foreign("a TIFF picture", _NOWHERE, _PICTURE),
    "vtk": Foreign("a VTK file", _NOWHERE, _FROM_SLICER, "no_orientation"),
    "png": _picture("a PNG picture"),
    "jpeg": _picture("a JPEG picture"),
    "jpeg2000": _picture("a JPEG 2000 picture"),
    "bmp": _picture("a BMP picture"),
    "gif": _picture("a GIF picture"),
    "zip": Foreign("a zip archive or a NumPy .npz file", "which is not a scan", "Unpack it, and give the scan in it."),
    "numpy": Foreign("a NumPy array", _NOWHERE, "Save it as NIfTI or NRRD, with its geometry."),
    "pdf": Foreign("a PDF document", "which is not a scan", _PICTURE),
    "matlab": Foreign("a MATLAB file", _NOWHERE, "Save the volume as NIfTI or NRRD, with its geometry."),
}
"""Formats that are known and not read."""

_MAGIC = (
    (b"NRRD", "nrrd"),
    (b"\x89PNG\r\n", "png"),
    (b"\xff\xd8\xff", "jpeg"),
    (b"\0\0\0\x0cjP  ", "jpeg2000"),
    (b"GIF8", "gif"),
    (b"BM", "bmp"),
    (b"\x89HDF\r\n", "minc"),
    (b"CDF\x01", "minc"),
    (b"# vtk DataFile", "vtk"),
    (b"<VTKFile", "vtk"),
    (b"PK\x03\x04", "zip"),
    (b"\x93NUMPY", "numpy"),
    (b"%PDF", "pdf"),
    (b"MATLAB 5", "matlab"),
)
_GIPL_MAGIC = (b"\xef\xff\xe9\xb0", b"\x2a\xe3\x89\xb8")


def format_of(path: Path) -> str:
    """Name the format of a file by its content: a key of `READABLE` or `FOREIGN`, or nothing where it is unknown."""
    try:
        head = start(header_file(path), 1024)
    except (OSError, zlib.error):
        return ""
    if head[128:132] == b"DICM":
        return "dicom"
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    return _binary(head, path.name.lower()) or _text(head)


def _binary(head: bytes, name: str) -> str:
    if len(head) >= 348:
        first = {struct.unpack_from(f"{order}i", head)[0] for order in "<>"}
        if 540 in first and head[4:7] in (b"n+2", b"ni2"):
            return "nifti2"
        if 348 in first and head[344:347] in (b"n+1", b"ni1"):
            return "nifti"
        if 348 in first and name.endswith((".hdr", ".img", ".img.gz")):
            return "analyze"
    if head[252:256] in _GIPL_MAGIC and name.endswith((".gipl", ".gipl.gz")):
        return "gipl"
    if name.endswith((".mgz", ".mgh")) and head[:4] == b"\0\0\0\x01":
        return "mgh"
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "tiff"
    # Slices from before there was a preamble begin with their first element, of group 8 (or 2).
    if head[:1] in (b"\x08", b"\x02") and head[1:2] == b"\0" and len(head) > 8 and head[3:4] == b"\0":
        return "dicom"
    return ""


def _text(head: bytes) -> str:
    return "meta_image" if re.match(rb"\s*(ObjectType|NDims|ObjectSubType|Comment)\s*=", head) else ""
