"""A preprocessed case, kept as arrays on disk, with places in it from which patches are cut."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from tcurlora.cases.case import Case
from tcurlora.cases.channels import read_case_image
from tcurlora.cases.labels import read_case_labels
from tcurlora.errors import InputError
from tcurlora.imaging.images import not_written
from tcurlora.imaging.intensities import require_finite_image
from tcurlora.imaging.preprocessing import Preprocessing, require_finite
from tcurlora.imaging.structures import Structure
from tcurlora.runtime.atomic_files import whole_file

LISTED_VOXELS = 2**17
"""Most voxels that are listed of a case's foreground, and of its background. Patches are drawn around them."""
MOST_REGIONS = 22
"""Most structures that may overlap: their bits are interpolated as 32 bit floats when a patch is turned."""
_SLAB_VOXELS = 2**22


@dataclass(frozen=True)
class CachedCase:
    """A preprocessed case on disk.

    Attributes:
        name: of the case.
        image: (c, x, y, z) float32.
        label: (x, y, z) class indices; 0 is the background, and the largest value of the type a voxel that nobody
            labeled. Where structures may overlap, bit i says whether a voxel belongs to structure i.
        foreground: (n) flat indices into the label, ascending: voxels of any structure, all of them or a random
            sample of `LISTED_VOXELS`.
        background: the same of voxels of the background.
    """

    name: str
    image: Path
    label: Path
    foreground: Path
    background: Path

    def load(self) -> tuple[np.ndarray, np.ndarray]:
        """Map image and label into memory; only what is read is loaded."""
        return np.load(self.image, mmap_mode="r"), np.load(self.label, mmap_mode="r")

    def voxels(self) -> tuple[np.ndarray, np.ndarray]:
        """Load the listed voxels of the foreground and of the background."""
        return np.load(self.foreground), np.load(self.background)


def cache_case(
    case: Case,
    structures: Sequence[Structure],
    preprocessing: Preprocessing,
    folder: Path,
    overlapping: bool = False,
) -> CachedCase:
    """Preprocess a case into `folder`, or find it there.

    The label becomes class indices: 0 for the background, then the structures in their order. The files are named by a
    hash of the scan's path: names of cases may be those of patients, or no names for files, or differ in case only.

    Args:
        case: the case.
        structures: what it is labeled with.
        preprocessing: of the base model.
        folder: where the files go.
        overlapping: whether a voxel may belong to several structures, as the regions of a model with a sigmoid do.

    Raises:
        InputError: when the image or the label cannot be used.
        TCurLoraError: when the folder cannot be written to.
    """
    files = b"\0".join(os.fsencode(path.absolute()) for path in (case.image, *case.channels))
    key = hashlib.sha256(files).hexdigest()[:16]
    cached = _cached_case(case.name, folder, key)
    # The label is written last: where it exists, the case is whole.
    if cached.label.exists():
        return cached
    image = read_case_image(case)
    require_finite_image(image, str(case.image))
    prepared = preprocessing.prepare(image)
    array = prepared.array
    require_finite(array, f"'{case.image.name}'")
    labels = read_case_labels(case, structures, image)
    count = labels.GetNumberOfComponentsPerPixel()
    if count > 1 and not overlapping:
        raise InputError(
            f"In '{case.label.name}' structures overlap, but each voxel of this base model has one class.",
            "Let each voxel belong to one structure, or choose a base model whose structures may overlap.",
            "overlap",
        )
    # One layer at a time: the values of several are not to be interpolated as one.
    layers = [labels] if count == 1 else [sitk.VectorIndexSelectionCast(labels, index) for index in range(count)]
    label = _encoded(
        [preprocessing.prepare_labels(layer, prepared) for layer in layers],
        [structure.value for structure in structures],
        case.ignore,
        overlapping,
    )
    if label.shape != array.shape[1:]:
        raise InputError(
            f"'{case.label.name}' has {label.shape} voxels on the model's grid, its image {array.shape[1:]}.",
            "Give image and label the same geometry.",
            "geometry_mismatch",
        )
    return save_case(case.name, array, label, folder, key)


def _encoded(
    layers: Sequence[np.ndarray], values: Sequence[int], ignore: Sequence[int], overlapping: bool
) -> np.ndarray:
    """Turn label values into class indices, or into bits.

    Args:
        layers: (x, y, z) label values; several where structures overlap.
        values: of the structures.
        ignore: values of voxels that nobody labeled.
        overlapping: whether to make bits.
    """
    if overlapping and len(values) > MOST_REGIONS:
        raise InputError(
            f"{len(values)} structures that may overlap are more than can be trained at once.",
            f"Adapt to at most {MOST_REGIONS} of them.",
            "too_many_regions",
        )
    codes = [2**index for index in range(len(values))] if overlapping else list(range(1, len(values) + 1))
    # The largest value of the type is kept for what nobody labeled.
    label = np.zeros(layers[0].shape, np.min_scalar_type(sum(codes) + 1 if overlapping else len(values) + 1))
    for layer in layers:
        for value, code in zip(values, codes, strict=True):
            if overlapping:
                label[layer == value] |= label.dtype.type(code)
            else:
                label[layer == value] = code
    for layer in layers:
        if ignore:
            label[np.isin(layer, ignore)] = unlabeled(label)
    return label


def unlabeled(label: np.ndarray) -> int:
    """Return the value that stands in a cached label for voxels that nobody labeled."""
    return int(np.iinfo(label.dtype).max)


def save_case(name: str, image: np.ndarray, label: np.ndarray, folder: Path, key: str) -> CachedCase:
    """Write a preprocessed case, and list its voxels.

    Args:
        name: of the case.
        image: (c, x, y, z) float32.
        label: (x, y, z), as a cached case has it.
        folder: where the files go.
        key: what their names begin with.

    Raises:
        TCurLoraError: when a file cannot be written.
    """
    cached = _cached_case(name, folder, key)
    folder.mkdir(parents=True, exist_ok=True)
    foreground, background = list_voxels(label)
    for path, content in (
        (cached.image, image),
        (cached.foreground, foreground),
        (cached.background, background),
        (cached.label, label),
    ):
        try:
            with whole_file(path, ".npy") as temporary:
                np.save(temporary, content)
        except OSError as error:
            raise not_written(path) from error
    return cached


def list_voxels(label: np.ndarray, most: int = LISTED_VOXELS) -> tuple[np.ndarray, np.ndarray]:
    """List the voxels of the foreground and of the background, or as large a random sample of each as is allowed.

    Voxels that nobody labeled are in neither.

    It goes through the label slab by slab, so that no list of all voxels is ever held. The sample is drawn without
    replacement, and is the same every time.

    Args:
        label: as a cached case has it.
        most: how many voxels each list may have.

    Returns:
        Flat indices, ascending.
    """
    nobody = unlabeled(label)
    masks = (lambda part: (part != 0) & (part != nobody)), (lambda part: part == 0)
    found = []
    for number, mask in enumerate(masks):
        total = sum(int(np.count_nonzero(mask(slab))) for _, slab in _slabs(label))
        wanted = np.arange(min(total, most))
        if total > most:
            wanted = np.sort(np.random.default_rng(number).choice(total, most, replace=False))
        parts, seen = [np.zeros(0, np.int64)], 0
        for start, slab in _slabs(label):
            flat = np.flatnonzero(mask(slab))
            first, last = np.searchsorted(wanted, (seen, seen + len(flat)))
            parts.append(start + flat[wanted[first:last] - seen])
            seen += len(flat)
        found.append(np.concatenate(parts))
    return found[0], found[1]


def _slabs(label: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Go through a contiguous array in pieces, each with the flat index that it begins at."""
    flat = label.reshape(-1)
    for start in range(0, flat.size, _SLAB_VOXELS):
        yield start, flat[start : start + _SLAB_VOXELS]


def _cached_case(name: str, folder: Path, key: str) -> CachedCase:
    parts = ("image", "label", "foreground", "background")
    return CachedCase(name, *(folder / f"{key}.{part}.npy" for part in parts))
