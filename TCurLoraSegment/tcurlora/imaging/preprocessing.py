"""From a scan in any geometry to the array that a network takes, and from its scores back to the scan's own grid."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import SimpleITK as sitk

from tcurlora.errors import InputError
from tcurlora.imaging.grids import Scores, index_of_largest


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

    def labels_to_scan(self, scores: Scores, prepared: Prepared, image: sitk.Image) -> sitk.Image:
        """Decide for each voxel of the scan which class has the highest score there, the first one in a tie.

        Classes are brought back one by one, so that memory holds two volumes of the scan and not one for each class.

        Args:
            scores: (class, *axes), the background first; probabilities or logits.
            prepared: the scan as it was prepared.
            image: the scan.

        Returns:
            Class indices as unsigned 16 bit integers, in exactly the geometry of the scan; the background where the
            prepared grid does not reach.
        """
        outside = (-np.inf if index else np.inf for index in range(scores.shape[0]))
        maps = (self._to_scan(scores[index], prepared, image, value) for index, value in enumerate(outside))
        labels = sitk.GetImageFromArray(index_of_largest(maps))
        labels.CopyInformation(image)
        return labels

    def region_to_scan(self, score: np.ndarray, above: float, prepared: Prepared, image: sitk.Image) -> np.ndarray:
        """Decide which voxels of the scan belong to a region, which may overlap others.

        Args:
            score: (*axes); a probability or a logit.
            above: what the score is greater than within the region.
            prepared: the scan as it was prepared.
            image: the scan.

        Returns:
            (z, y, x) of the scan, as SimpleITK has it; False where the prepared grid does not reach.
        """
        mask: np.ndarray = self._to_scan(score, prepared, image, -np.inf) > above
        return mask

    def _to_scan(self, values: np.ndarray, prepared: Prepared, image: sitk.Image, outside: float) -> np.ndarray:
        """Bring the scores of one class to the scan: (z, y, x)."""
        # A copy; a view would outlive its image here.
        return np.asarray(sitk.GetArrayFromImage(self.map_to_scan(values, prepared, image, outside)))

    @abstractmethod
    def map_to_scan(
        self, values: np.ndarray, prepared: Prepared, image: sitk.Image, outside: float = 0.0
    ) -> sitk.Image:
        """Bring a map, such as the scores of a class or an uncertainty, to the scan.

        Args:
            values: (*axes) float32.
            prepared: the scan as it was prepared.
            image: the scan.
            outside: the value where the prepared grid does not reach; may be infinite, so it must not be interpolated
                with others.

        Returns:
            32 bit floats in exactly the geometry of the scan.
        """

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Describe it as JSON types, for adapters and people."""


def require_finite(array: np.ndarray, scan: str) -> None:
    """Refuse a prepared scan with values that are no numbers.

    Finite intensities may become infinite when they are cast to 32 bits, resampled or normalized. A network makes
    nothing of them, or of anything that it sees together with them.

    Args:
        array: of a prepared scan.
        scan: what to call it.

    Raises:
        InputError: with one of the values and the number of voxels.
    """
    # A sum is quick and holds no mask; it is not finite where a value is not, or where it overflows by itself.
    if np.isfinite(np.sum(array, dtype=np.float64)):
        return
    wrong = ~np.isfinite(array)
    count = int(np.count_nonzero(wrong))
    if count:
        raise InputError(
            f"{scan} has {count} voxel{'' if count == 1 else 's'} whose intensity is {array[wrong][0]} after the "
            "model's normalization.",
            "Look for extreme intensities in the scan: clip or replace them, or export the scan again.",
            "non_finite",
        )
