"""The preprocessing of models that were trained with this program: RAS axes, antialiased resampling, intensities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from monai.transforms import Compose

from tcurlora.imaging.grids import Scores, label_array, labels_from_grid, map_from_grid, to_array, to_model_grid
from tcurlora.imaging.preprocessing import Prepared, Preprocessing
from tcurlora.models.monai_transforms import INTENSITY


@dataclass(frozen=True)
class MonaiPreprocessing(Preprocessing):
    """What a bundle expects of its input that says `resampling: antialiased` in its metadata.

    Attributes:
        spacing: voxel size in mm along R, A, S; None keeps that of the scan.
        intensity: MONAI intensity transforms, each a name from `INTENSITY` and its arguments.
    """

    spacing: tuple[float, float, float] | None
    intensity: tuple[tuple[str, Mapping[str, Any]], ...] = ()

    def normalize(self, array: np.ndarray) -> np.ndarray:
        """Apply the intensity transforms to a (c, x, y, z) array."""
        transform = Compose([INTENSITY[name](**arguments) for name, arguments in self.intensity])
        return np.ascontiguousarray(torch.as_tensor(transform(torch.from_numpy(array))).numpy(), dtype=np.float32)

    def prepare(self, image: sitk.Image) -> Prepared:
        """Resample linearly onto RAS axes; the grid is the resampled image."""
        grid = to_model_grid(image, self.spacing)
        return Prepared(self.normalize(to_array(grid)), grid)

    def prepare_labels(self, labels: sitk.Image, prepared: Prepared) -> np.ndarray:
        """Give each voxel of the grid the label with the largest share of it."""
        return label_array(to_model_grid(labels, self.spacing, label=True))

    def labels_to_scan(self, scores: Scores, prepared: Prepared, image: sitk.Image) -> sitk.Image:
        """Interpolate class by class, and let the largest win."""
        return labels_from_grid(scores, prepared.grid, image)

    def map_to_scan(
        self, values: np.ndarray, prepared: Prepared, image: sitk.Image, outside: float = 0.0
    ) -> sitk.Image:
        """Interpolate linearly."""
        return map_from_grid(values, prepared.grid, image, outside)

    def to_dict(self) -> dict[str, Any]:
        """Describe it as JSON types."""
        return {
            "spacing": None if self.spacing is None else list(self.spacing),
            "intensity": [{"name": name, **arguments} for name, arguments in self.intensity],
        }
