"""A preprocessed case, kept as arrays on disk."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tcurlora.cases.dataset import Case, read_case_labels
from tcurlora.errors import InputError
from tcurlora.imaging.images import not_written, read_image
from tcurlora.imaging.intensities import require_finite, require_finite_array
from tcurlora.imaging.preprocessing import Preprocessing
from tcurlora.imaging.structures import Structure
from tcurlora.runtime.atomic_files import whole_file


@dataclass(frozen=True)
class CachedCase:
    """A preprocessed case on disk: `image` is (c, x, y, z) float32, `label` (x, y, z) class indices."""

    name: str
    image: Path
    label: Path

    def load(self) -> tuple[np.ndarray, np.ndarray]:
        """Map the arrays into memory; only what is read is loaded."""
        return np.load(self.image, mmap_mode="r"), np.load(self.label, mmap_mode="r")


def cache_case(case: Case, structures: Sequence[Structure], preprocessing: Preprocessing, folder: Path) -> CachedCase:
    """Preprocess a case into `folder`, or find it there.

    The label becomes class indices: 0 for the background, then the structures in their order. The files are named by a
    hash of the scan's path: names of cases may be those of patients, or no names for files, or differ in case only.

    Raises:
        InputError: when the image or the label cannot be used.
        TCurLoraError: when the folder cannot be written to.
    """
    key = hashlib.sha256(os.fsencode(case.image.absolute())).hexdigest()[:16]
    cached = CachedCase(case.name, folder / f"{key}.image.npy", folder / f"{key}.label.npy")
    # The label is written last: where it exists, the case is whole.
    if cached.label.exists():
        return cached
    image = read_image(case.image)
    require_finite(image, str(case.image))
    prepared = preprocessing.prepare(image)
    require_finite_array(prepared.array, str(case.image), "after the model's normalization")
    array, values = prepared.array, preprocessing.prepare_labels(read_case_labels(case, structures, image), prepared)
    if values.shape != array.shape[1:]:
        raise InputError(
            f"'{case.label.name}' has {values.shape} voxels on the model's grid, its image {array.shape[1:]}.",
            "Give image and label the same geometry.",
            "geometry_mismatch",
        )
    label = np.zeros(values.shape, np.uint8 if len(structures) < 2**8 else np.uint16)
    for index, structure in enumerate(structures, start=1):
        label[values == structure.value] = index
    folder.mkdir(parents=True, exist_ok=True)
    for path, content in ((cached.image, array), (cached.label, label)):
        try:
            with whole_file(path, ".npy") as temporary:
                np.save(temporary, content)
        except OSError as error:
            raise not_written(path) from error
    return cached
