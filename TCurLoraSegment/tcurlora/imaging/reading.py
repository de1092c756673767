"""What readers of all formats share: the sentences about files that cannot be read, and checks of size and axes."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from tcurlora.errors import InputError
from tcurlora.imaging.affines import ROUNDING, STRAIGHTENED, Matrix, Straight, straightened
from tcurlora.imaging.headers import is_complete
from tcurlora.imaging.image_warnings import ImageWarning, OnWarning

MAX_VOXELS = 2**31
COPY_AGAIN = "Copy or export the file again, and check that it opens in 3D Slicer."

_STRAIGHTEN = (
    "Resample it onto a straight grid; in Python: import nibabel as nib, nibabel.processing; "
    "nib.save(nibabel.processing.resample_to_output(nib.load(old)), new)"
)
_STRAIGHTEN_WITH_ITK = (
    "Resample it onto a straight grid; in Python: import SimpleITK as sitk; i = sitk.ReadImage(old); "
    "sitk.WriteImage(sitk.Resample(i, i.GetSize(), sitk.Transform(), sitk.sitkLinear, i.GetOrigin(), i.GetSpacing()), "
    "new), with a size that covers the scan"
)


def damaged_header(path: Path) -> InputError:
    """Say that a header makes no sense."""
    return InputError(f"The header of {path} is damaged, or gives no voxel size.", COPY_AGAIN, "unreadable")


def require_file(path: Path) -> None:
    """Refuse what is not there, may not be read, or is empty.

    Raises:
        InputError: saying which.
    """
    if not path.exists():
        raise InputError(f"There is no file {path}.", "Check the path.", "not_found")
    if not os.access(path, os.R_OK):
        raise InputError(f"The file {path} may not be read.", "Ask for permission to read it.", "no_permission")
    if path.stat().st_size == 0:
        raise InputError(f"The file {path} is empty.", COPY_AGAIN, "unreadable")


def guarded(path: Path, action: Callable[[], Any]) -> Any:
    """Run a step of SimpleITK, and turn what it throws into a sentence about the file.

    Raises:
        InputError: when the step fails.
    """
    try:
        return action()
    except MemoryError:
        raise
    except Exception as error:
        text = str(error)
        if "rthonormal" in text:
            raise sheared(path, None) from error
        if "bad_alloc" in text or "allocate memory" in text:
            raise InputError(
                f"The image {path} does not fit into memory.",
                "Crop it, or use a machine with more memory.",
                "too_large",
            ) from error
        raise InputError(
            f"{path} cannot be read: it is damaged, incomplete or not an image.", COPY_AGAIN, "unreadable"
        ) from error


def sheared(path: Path, straight: Straight | None) -> InputError:
    """Say that axes are not at right angles, and how to change that."""
    by = f" by up to {math.degrees(math.asin(min(1.0, straight.cosine))):.3g} degrees" if straight else ""
    is_nifti = path.name.lower().endswith((".nii", ".nii.gz", ".hdr", ".img"))
    return InputError(
        f"The axes of {path} are not at right angles to each other (sheared){by}.",
        _STRAIGHTEN if is_nifti else _STRAIGHTEN_WITH_ITK,
        "sheared",
    )


def require_straight(path: Path, affine: Matrix, size: tuple[int, ...], on_warning: OnWarning) -> Straight:
    """Straighten axes that are sheared by no more than rounding does, and tell it.

    Raises:
        InputError: when they are sheared by more.
    """
    straight = straightened(affine, size)
    if straight.cosine <= ROUNDING:
        return straight
    if straight.moved > STRAIGHTENED or straight.cosine > 10 * ROUNDING:
        raise sheared(path, straight)
    moved = straight.moved * float(np.linalg.norm(affine[:3, :3], axis=0).min())
    message = (
        f"The axes of {path} are not quite at right angles to each other, as from rounding: it is read with the "
        f"nearest that are, which moves no voxel by more than {moved:.2g} mm."
    )
    on_warning(ImageWarning("straightened", message, "Nothing needs to be done."))
    return straight


def require_sound_information(reader: sitk.ImageFileReader, path: Path, slices: int = 1) -> None:
    """Refuse what ITK has found in a header: other than 3D, complex, too large, or without a usable geometry.

    Args:
        reader: has read the header.
        path: the file.
        slices: how many such files there are.

    Raises:
        InputError: saying which.
    """
    size, dimension = reader.GetSize(), reader.GetDimension()
    if dimension < 3 or dimension > 4 or (dimension == 4 and size[3] != 1):
        several = dimension == 4 and size[3] > 1
        raise InputError(
            f"{path} is not a 3D image but {dimension}D, of size {'x'.join(map(str, size))}"
            + (f": it holds {size[3]} volumes, such as time points." if several else "."),
            "Save the one volume that is meant in a file of its own; in Python, for the first: "
            "import SimpleITK as sitk; sitk.WriteImage(sitk.ReadImage(old)[:, :, :, 0], new)"
            if several
            else "Give a 3D volume.",
            "not_3d",
        )
    if "complex" in sitk.GetPixelIDValueAsString(reader.GetPixelID()):
        raise InputError(f"{path} holds complex numbers.", "Save the magnitude image.", "complex_values")
    require_possible_size(path, (*size[:3], slices))
    spacing, origin = np.array(reader.GetSpacing()[:3]), np.array(reader.GetOrigin()[:3])
    direction = np.array(reader.GetDirection()).reshape(dimension, dimension)[:3, :3]
    finite = all(bool(np.isfinite(part).all()) for part in (spacing, origin, direction))
    lengths = np.linalg.norm(direction, axis=0) if finite else np.zeros(3)
    if (
        not finite
        or spacing.min() <= 0
        or abs(np.linalg.det(direction)) < 1e-3
        or np.abs(lengths - 1).max() > 1e-2  # factors of the voxel size that some programs leave out
    ):
        raise InputError(
            f"The header of {path} gives no usable voxel size or orientation.",
            "Export the scan again from its source, with its geometry.",
            "bad_geometry",
        )


def require_possible_size(path: Path, sizes: tuple[int, ...]) -> None:
    """Refuse more voxels than a scan has.

    Raises:
        InputError: naming the size.
    """
    voxels = math.prod(sizes)
    if voxels < 1 or voxels > MAX_VOXELS:
        raise InputError(
            f"{path} claims to have {'x'.join(map(str, sizes))} voxels, which cannot be right or is too many.",
            COPY_AGAIN,
            "too_large",
        )


def require_complete(path: Path) -> None:
    """Refuse a file that holds fewer bytes than its header promises, or whose compressed stream is broken.

    Raises:
        InputError: saying so.
    """
    if not is_complete(path):
        raise InputError(
            f"{path} is damaged or was cut short: it holds less than its header says.", COPY_AGAIN, "unreadable"
        )
