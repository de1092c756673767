"""From a scan in any geometry to the array that a network takes, and from its scores back to the scan's own grid."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import SimpleITK as sitk


@dataclass(frozen=True)
class Prepared:
    """A scan as a network takes it.

    Attributes:
        array: (c, *axes) float32, the axes in the network's own order.
        grid: whatever the preprocessing needs to find the way back to the scan.
    """

    array: np.ndarray
    grid: Any


class Preprocessing(ABC):
    """What a base model expects of its input, and where its output belongs.

    A kind of base model brings its own: orientation, spacing, resampling, cropping and normalization in the order in
    which the network was trained. Arrays are in the network's order of axes; nothing outside of a preprocessing may
    assume what they mean in space.

    Attributes:
        spacing: voxel size in mm along the array's axes; None where that of the scan is kept.
    """

    spacing: tuple[float, float, float] | None

    @abstractmethod
    def prepare(self, image: sitk.Image) -> Prepared:
        """Bring a scan to the model's grid and intensities.

        Args:
            image: 3D; one component a voxel for each input channel of the model.

        Raises:
            InputError: when the scan cannot be brought there, such as one with an impossible voxel size.
        """

    @abstractmethod
    def prepare_labels(self, labels: sitk.Image, prepared: Prepared) -> np.ndarray:
        """Bring a labelmap, in the geometry of its scan, to the grid of the prepared scan: (*axes) label values."""

    @abstractmethod
    def labels_to_scan(self, scores: np.ndarray, prepared: Prepared, image: sitk.Image) -> sitk.Image:
        """Decide for each voxel of the scan which class has the highest score there.

        Args:
            scores: (class, *axes), the background first; any monotone score serves.
            prepared: the scan as it was prepared.
            image: the scan.

        Returns:
            Class indices as unsigned 16 bit integers, in exactly the geometry of the scan.
        """

    @abstractmethod
    def map_to_scan(
        self, values: np.ndarray, prepared: Prepared, image: sitk.Image, outside: float = 0.0
    ) -> sitk.Image:
        """Bring a map, such as an uncertainty, to the scan.

        Args:
            values: (*axes).
            prepared: the scan as it was prepared.
            image: the scan.
            outside: the value where the prepared grid does not reach.

        Returns:
            32 bit floats in exactly the geometry of the scan.
        """

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Describe it as JSON types, for adapters and people."""
