"""From a scan in any geometry to the array that the network takes, and a cache of such arrays on disk."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from monai.transforms import (
    Compose,
    NormalizeIntensity,
    ScaleIntensity,
    ScaleIntensityRange,
    ScaleIntensityRangePercentiles,
)

from tcurlora.cases import Case, read_case_labels
from tcurlora.errors import InputError
from tcurlora.geometry import label_array, to_array, to_model_grid
from tcurlora.images import not_written, read_image
from tcurlora.labels import Structure
from tcurlora.whole_files import whole_file

# The intensity transforms that a base model may ask for; nothing else is ever instantiated from its files.
INTENSITY = {
    cls.__name__: cls
    for cls in (NormalizeIntensity, ScaleIntensity, ScaleIntensityRange, ScaleIntensityRangePercentiles)
}


@dataclass(frozen=True)
class Preprocessing:
    """What a base model expects of its input.

    Attributes:
        spacing: voxel size in mm along R, A, S; None keeps that of the scan.
        roi_size: size of the window in voxels.
        intensity: MONAI intensity transforms, each a name from `INTENSITY` and its arguments.
    """

    spacing: tuple[float, float, float] | None
    roi_size: tuple[int, int, int]
    intensity: tuple[tuple[str, Mapping[str, Any]], ...]

    def normalize(self, array: np.ndarray) -> np.ndarray:
        """Apply the intensity transforms to a (c, x, y, z) array."""
        transform = Compose([INTENSITY[name](**arguments) for name, arguments in self.intensity])
        return np.ascontiguousarray(torch.as_tensor(transform(torch.from_numpy(array))).numpy(), dtype=np.float32)

    def apply(self, image: sitk.Image) -> tuple[np.ndarray, sitk.Image]:
        """Bring an image to the model's grid and intensities.

        Returns:
            The array, (c, x, y, z) float32, and the resampled image whose grid it lies on.
        """
        grid = to_model_grid(image, self.spacing)
        return self.normalize(to_array(grid)), grid

    def to_dict(self) -> dict[str, Any]:
        return {
            "spacing": None if self.spacing is None else list(self.spacing),
            "roi_size": list(self.roi_size),
            "intensity": [{"name": name, **arguments} for name, arguments in self.intensity],
        }


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
    array, _ = preprocessing.apply(read_image(case.image))
    values = label_array(to_model_grid(read_case_labels(case, structures), preprocessing.spacing, label=True))
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
