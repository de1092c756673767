"""NIfTI-1 headers: are they sound, what do they say about place and units, and does the file hold the voxels.

The two forms, which map voxels to places, are described in nifti1.h of the NIfTI Data Format Working Group.
"""

from __future__ import annotations

import gzip
import math
import shutil
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import SimpleITK as sitk

from tcurlora.errors import InputError
from tcurlora.imaging.affines import ROUNDING, Matrix, affine_of, farthest, straightened
from tcurlora.imaging.headers.streams import header_file, holds, is_packed, start
from tcurlora.imaging.image_warnings import ImageWarning, OnWarning, unheard

_NIFTI_BYTES = {
    **{2: 1, 4: 2, 8: 4, 16: 4, 32: 8, 64: 8, 128: 3, 256: 1, 512: 2, 768: 4},
    **{1024: 8, 1280: 8, 1536: 16, 1792: 16, 2048: 32, 2304: 4},
}
_UNITS = {1: ("meters", 1e3), 2: ("millimeters", 1.0), 3: ("micrometers", 1e-3)}

SIZES_DIFFER = 1e-2
"""Relative difference of two voxel sizes from which a file is refused; a tenth of it is told."""

FORMS_DIFFER = 0.1
"""Voxels between the places of the two forms from which it is told."""

_MAKE_EQUAL = (
    "Find out which one is right, and write the file again with it; in Python, with the sform: "
    "import nibabel as nib; i = nib.load(old); nib.save(nib.Nifti1Image(i.dataobj, i.get_sform()), new); "
    "or i.get_qform() for the qform."
)


class NiftiHeader(NamedTuple):
    """The fields of a header that are looked at, as nifti1.h names them."""

    sizes: tuple[int, ...]
    kind: int
    bits: int
    offset: float
    pixdim: tuple[float, ...]
    scale: tuple[float, ...]
    units: int
    qform_code: int
    sform_code: int
    quaternion: tuple[float, ...]
    qoffset: tuple[float, ...]
    srow: tuple[float, ...]
    magic: bytes

    @property
    def volume(self) -> tuple[int, ...]:
        """The size along the three axes in space."""
        return (*self.sizes[1 : 1 + min(3, self.sizes[0])], 1, 1, 1)[:3]

    @property
    def unit(self) -> tuple[str, float]:
        """Name of the unit of lengths and how many mm it has; unknown units count as mm."""
        return _UNITS.get(self.units & 7, ("", 1.0))


def read_header(path: Path) -> NiftiHeader:
    """Read a header.

    Raises:
        struct.error: when the file is too short.
    """
    header = start(header_file(path), 352)
    order = "<" if struct.unpack_from("<i", header)[0] == 348 else ">"

    def fields(code: str, offset: int) -> tuple[Any, ...]:
        return struct.unpack_from(f"{order}{code}", header, offset)

    return NiftiHeader(
        sizes=fields("8h", 40),
        kind=fields("h", 70)[0],
        bits=fields("h", 72)[0],
        offset=fields("f", 108)[0],
        pixdim=fields("8f", 76),
        scale=fields("2f", 112),
        units=header[123],
        qform_code=fields("h", 252)[0],
        sform_code=fields("h", 254)[0],
        quaternion=fields("3f", 256),
        qoffset=fields("3f", 268),
        srow=fields("12f", 280),
        magic=header[344:348],
    )


def is_sound(path: Path) -> bool:
    """Tell whether the numbers of the header are possible, and none that ITK takes for another one."""
    header = read_header(path)
    used = header.sizes[1 : 1 + header.sizes[0]]
    slope, intercept = header.scale
    return (
        header.magic in (b"n+1\0", b"ni1\0")
        # Voxels in a file of their own, without which ITK would take those of the header.
        and (header.magic == b"n+1\0" or not path.name.lower().endswith((".nii", ".nii.gz")))
        and min(used) >= 1
        and header.bits == 8 * _NIFTI_BYTES[header.kind]
        and not any(math.isinf(part) for part in header.scale)
        and not 0 < abs(slope) < 1e-15  # ITK would take it for 0, which means 1
        # A factor that is NaN is how some programs say: no scaling.
        and not (math.isfinite(slope) and math.isnan(intercept))
        and all(1e-9 < abs(spacing) < math.inf for spacing in header.pixdim[1 : 1 + min(3, len(used))])
        # ITK would go on forever.
        and all(math.isfinite(number) for number in (*header.quaternion, *header.qoffset, *header.srow))
        # Parts of a unit quaternion.
        and (header.qform_code <= 0 or sum(part * part for part in header.quaternion) < 1.01)
        # ITK would take the end of the header for voxels.
        and (header.offset >= 352 or (header.magic == b"ni1\0" and header.offset >= 0))
    )


def is_complete(path: Path) -> bool:
    """Tell whether the file, or the one beside it, holds all voxels."""
    header = read_header(path)
    expected = math.prod(header.sizes[1 : 1 + header.sizes[0]]) * _NIFTI_BYTES[header.kind] + int(header.offset)
    if header.magic == b"n+1\0":
        return holds(path, expected)
    stem = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    candidates = [stem.with_suffix(end) for end in (".img", ".IMG", ".img.gz")]
    voxels = next((candidate for candidate in candidates if candidate.is_file()), None)
    return voxels is not None and holds(voxels, expected)


def forms(header: NiftiHeader) -> tuple[Matrix | None, Matrix | None]:
    """Return the qform and the sform, each None where its code says that there is none.

    Returns:
        (4, 4) maps from voxel index to left-posterior-superior mm.
    """
    to_lps = np.diag([-header.unit[1], -header.unit[1], header.unit[1], 1.0])
    qform = sform = None
    if header.qform_code > 0:
        qform = np.eye(4)
        zooms = np.array(header.pixdim[1:4]) * (1, 1, -1 if header.pixdim[0] < 0 else 1)
        qform[:3, :3] = _rotation(header.quaternion) * zooms
        qform[:3, 3] = header.qoffset
        qform = to_lps @ qform
    if header.sform_code > 0:
        sform = to_lps @ np.vstack([np.reshape(header.srow, (3, 4)), (0, 0, 0, 1)])
    return qform, sform


def _rotation(parts: tuple[float, ...]) -> Matrix:
    b, c, d = (float(part) for part in parts)
    a = math.sqrt(max(0.0, 1 - b * b - c * c - d * d))
    return np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )


def look(path: Path, on_warning: OnWarning) -> None:
    """Look for what a sound header does not say, or says twice.

    Raises:
        InputError: when nobody could say how the patient lies, or when two readings would show a network two things.
    """
    header = read_header(path)
    qform, sform = forms(header)
    if qform is None and sform is None:
        raise InputError(
            f"{path} does not say where left, front and top of the patient are: neither its sform nor its qform is "
            "set, and programs differ in what they take it for.",
            "Get the scan from its source with its orientation. If you know it, write it into the file; in Python, "
            "from a file with the same grid: import nibabel as nib; "
            "nib.save(nib.Nifti1Image(nib.load(old).dataobj, nib.load(other).affine), new)",
            "no_orientation",
        )
    if min(header.pixdim[1:4]) < 0:
        raise InputError(f"{path} has voxels of negative size (pixdim).", _MAKE_EQUAL, "contradictory_header")
    if sform is not None and straightened(sform, header.volume).cosine <= 10 * ROUNDING:  # else it is sheared
        _compare_sizes(path, header, sform, on_warning)
    if qform is not None and sform is not None:
        _compare_axes(path, qform, sform)
    if header.units & 7 not in (0, 2):
        name, factor = header.unit
        sizes = "x".join(f"{size * factor:.4g}" for size in header.pixdim[1:4])
        read = f"gives lengths in {name}" if name else "gives lengths in an unknown unit"
        message = f"{path} {read}: its voxels are taken to be {sizes} mm. Other programs (nibabel) take them for mm."
        remedy = "If that is wrong, set the unit of the file to mm (nibabel: header.set_xyzt_units('mm'))."
        on_warning(ImageWarning("unit", message, remedy))
    slope, intercept = header.scale
    if slope == 0 and math.isfinite(intercept) and intercept != 0:
        message = (
            f"{path} has a scale factor (scl_slope) of 0, which means no scaling, but an offset of {intercept:g}: it "
            "is read with a factor of 1 and that offset. Other programs (nibabel) leave out the offset."
        )
        on_warning(ImageWarning("scaling", message, "If that is wrong, export the scan again from its source."))


def _compare_sizes(path: Path, header: NiftiHeader, sform: Matrix, on_warning: OnWarning) -> None:
    plain, own = np.array(header.pixdim[1:4]) * header.unit[1], np.linalg.norm(sform[:3, :3], axis=0)
    apart = float(np.abs(plain / np.maximum(own, 1e-9) - 1).max())
    if apart <= SIZES_DIFFER / 10:
        return
    sizes = ["x".join(f"{size:.5g}" for size in both) for both in (plain, own)]
    message = f"{path} gives two voxel sizes: {sizes[0]} mm (pixdim) and {sizes[1]} mm (sform)"
    if apart > SIZES_DIFFER:
        raise InputError(f"{message}.", _MAKE_EQUAL, "contradictory_header")
    on_warning(ImageWarning("sizes_differ", f"{message}; the first is taken.", _MAKE_EQUAL))


def _compare_axes(path: Path, qform: Matrix, sform: Matrix) -> None:
    """Refuse forms whose axes point elsewhere, so that one of them would show a patient mirrored or lying down."""
    units = [form[:3, :3] / np.linalg.norm(form[:3, :3], axis=0) for form in (qform, sform)]
    cosines = (units[0] * units[1]).sum(0)
    if cosines.min() < math.cos(math.radians(45)):
        angle = math.degrees(math.acos(float(np.clip(cosines.min(), -1, 1))))
        raise InputError(
            f"The qform and the sform of {path} disagree about how the patient lies: an axis differs by {angle:.0f} "
            "degrees.",
            _MAKE_EQUAL,
            "contradictory_header",
        )


def other_form(path: Path, image: sitk.Image) -> tuple[str, str, Matrix] | None:
    """Return the form that was not taken, where the two disagree.

    Args:
        path: the file.
        image: what was read from it.

    Returns:
        Name of the form that was taken, name of the other, and the map of the other.
    """
    header = read_header(path)
    qform, sform = forms(header)
    if qform is None or sform is None:
        return None
    own, size = affine_of(image), header.volume
    to_q, to_s = farthest(own, qform, size), farthest(own, sform, size)
    if max(to_q, to_s) <= FORMS_DIFFER * min(image.GetSpacing()):
        return None
    return ("qform", "sform", sform) if to_q <= to_s else ("sform", "qform", qform)


def settle(path: Path, image: sitk.Image, on_warning: OnWarning) -> None:
    """Tell which of two forms was taken, and what was taken for a sign that is not given."""
    other = other_form(path, image)
    header = read_header(path)
    if on_warning is not unheard and (count := not_finite(path)):
        message = f"{path} has {count} voxels whose intensity is no number (NaN or infinite): they are read as 0."
        on_warning(ImageWarning("not_numbers", message, "If 0 is not their background, replace them first."))
    if other is not None:
        taken, name, affine = other
        apart = farthest(affine_of(image), affine, header.volume)
        message = (
            f"The qform and the sform of {path} place it up to {apart:.3g} mm apart. It is read with its {taken}, as "
            f"3D Slicer reads it; programs that take its {name} show it elsewhere, beside results."
        )
        on_warning(ImageWarning("forms_disagree", message, _MAKE_EQUAL))
    if header.sform_code <= 0 and header.pixdim[0] not in (1, -1):
        message = (
            f"{path} does not say whether its third axis is mirrored (pixdim[0], the qfac, is {header.pixdim[0]:g} and "
            f"not 1 or -1): it is read as {'mirrored' if header.pixdim[0] < 0 else 'not mirrored'}."
        )
        on_warning(ImageWarning("qfac", message, "Compare left and right, or top and bottom, in 3D Slicer."))


def not_finite(path: Path) -> int:
    """Count the voxels of a file of floating point numbers that are none, all of which ITK reads as 0."""
    header = read_header(path)
    dtype = {16: "f4", 64: "f8"}.get(header.kind)
    if dtype is None or header.magic != b"n+1\0":
        return 0
    with path.open("rb") as stream:
        order = "<" if struct.unpack("<i", start(path, 4))[0] == 348 else ">"
        each, count = np.dtype(order + dtype), 0
        with gzip.open(stream) if is_packed(path) else stream as voxels:
            voxels.read(int(header.offset))
            left = math.prod(header.sizes[1 : 1 + header.sizes[0]]) * each.itemsize
            while block := voxels.read(min(left, 1 << 20)):
                left -= len(block)
                part = np.frombuffer(block[: len(block) // each.itemsize * each.itemsize], each)
                count += int(np.count_nonzero(~np.isfinite(part)))
    return count


def without_forms(path: Path, target: Path) -> None:
    """Copy a file, unpacked, with the codes of its forms set to 0, so that ITK reads voxels that it would refuse.

    Args:
        path: a NIfTI file that holds its voxels itself.
        target: the copy.
    """
    with gzip.open(path) if is_packed(path) else path.open("rb") as source, target.open("wb") as copy:
        header = bytearray(source.read(348))
        header[252:256] = bytes(4)
        copy.write(header)
        shutil.copyfileobj(source, copy, 1 << 20)
