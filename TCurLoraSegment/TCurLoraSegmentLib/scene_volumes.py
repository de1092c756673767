"""Volumes of the scene: their geometry, and why one cannot be used."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
import slicer
import vtk
from slicer.i18n import tr as _

TOLERANCE_MM = 1e-4
"""Two grids are the same when no corner is farther off than this."""

Matrix = npt.NDArray[np.float64]

_LPS_OF_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_SHEAR = 1e-3


@dataclass(frozen=True)
class Geometry:
    """The grid of a volume in its own frame, parent transforms left out.

    Attributes:
        ijk_to_ras: 4 x 4 matrix, row by row, from the index of a voxel to its centre in mm.
        size: number of voxels along i, j and k.
    """

    ijk_to_ras: tuple[float, ...]
    size: tuple[int, int, int]

    @property
    def matrix(self) -> Matrix:
        """The 4 x 4 matrix from index to right-anterior-superior."""
        return np.array(self.ijk_to_ras).reshape(4, 4)

    def distance(self, other: Geometry) -> float:
        """Return how far the two grids are apart at the worst corner, in mm; infinite for grids of other sizes."""
        if self.size != other.size:
            return math.inf
        return float(np.linalg.norm(self._corners() - other._corners(), axis=1).max())

    def shares_voxels(self, other: Geometry) -> bool:
        """Tell whether two grids have their voxels at the same places, whichever corner they are counted from.

        Slicer counts those of a left-handed volume from another corner when it loads it again.
        """
        if sorted(self.size) != sorted(other.size):
            return False
        gaps = np.linalg.norm(self._corners()[:, None] - other._corners(), axis=2)
        return bool(max(gaps.min(axis=0).max(), gaps.min(axis=1).max()) <= TOLERANCE_MM)

    def _corners(self) -> Matrix:
        indices = np.array([*itertools.product(*((0, n - 1) for n in self.size))], float)
        return indices @ self.matrix[:3, :3].T + self.matrix[:3, 3]

    def apply_to(self, image: sitk.Image) -> None:
        """Give an image of this size this geometry, in the left-posterior-superior convention of image files."""
        matrix = _LPS_OF_RAS @ self.matrix
        spacing = np.linalg.norm(matrix[:3, :3], axis=0)
        image.SetSpacing(spacing.tolist())
        image.SetDirection((matrix[:3, :3] / spacing).ravel().tolist())
        image.SetOrigin(matrix[:3, 3].tolist())

    @classmethod
    def of_image(cls, image: sitk.Image) -> Geometry:
        """Return the geometry of an image that was read from a file."""
        matrix = np.eye(4)
        matrix[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
        matrix[:3, 3] = image.GetOrigin()
        return cls(tuple((_LPS_OF_RAS @ matrix).ravel().tolist()), image.GetSize())

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON takes it."""
        return {"ijk_to_ras": list(self.ijk_to_ras), "size": list(self.size)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Geometry:
        """Return what `to_dict` wrote."""
        i, j, k = (int(n) for n in content["size"])
        return cls(tuple(float(x) for x in content["ijk_to_ras"]), (i, j, k))


def geometry_of(volume: slicer.vtkMRMLScalarVolumeNode) -> Geometry:
    """Return the grid of a volume that has voxels.

    Args:
        volume: scalar or label map volume; its parent transforms are left out.
    """
    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    ijk_to_ras = slicer.util.arrayFromVTKMatrix(matrix)
    extent = volume.GetImageData().GetExtent()
    # Voxels need not be counted from 0; the first one stored is the first one in a file.
    ijk_to_ras[:3, 3] += ijk_to_ras[:3, :3] @ np.array(extent[::2])
    return Geometry(tuple(ijk_to_ras.ravel().tolist()), volume.GetImageData().GetDimensions())


def volume_problem(node: slicer.vtkMRMLNode | None) -> str | None:
    """Say why a node cannot be used as a scan.

    Args:
        node: any node of the scene, or None.

    Returns:
        A sentence about the node and one with a remedy; None when the node can be used.
    """
    if node is None or node.GetScene() is None:
        return _("The volume is no longer in the scene. Choose another one.")
    name = node.GetName()
    if not node.IsA("vtkMRMLScalarVolumeNode"):
        return _("'{name}' is not a volume. Choose a scan.").format(name=name)
    if node.IsA("vtkMRMLLabelMapVolumeNode"):
        return _("'{name}' is a label map, not a scan. Choose the scan that it was drawn on.").format(name=name)
    image = node.GetImageData()
    if image is None or image.GetPointData().GetScalars() is None or min(image.GetDimensions()) < 1:
        return _("The volume '{name}' has no voxels. Load it again.").format(name=name)
    if image.GetNumberOfScalarComponents() != 1:
        return _(
            "The volume '{name}' has {count} values in each voxel (color, or several time points), but one is needed. "
            "Extract the channel or time point that is meant, for example with 'Vector to Scalar Volume'."
        ).format(name=name, count=image.GetNumberOfScalarComponents())
    matrix = geometry_of(node).matrix
    with np.errstate(all="ignore"):
        axes = matrix[:3, :3] / np.linalg.norm(matrix[:3, :3], axis=0)
        angles = np.abs(axes.T @ axes - np.eye(3))
    if not np.isfinite(matrix).all() or not np.isfinite(angles).all() or abs(np.linalg.det(axes)) < _SHEAR:
        return _(
            "The volume '{name}' has no usable voxel size or orientation. Correct them in the module 'Volumes', "
            "or load the scan again."
        ).format(name=name)
    if angles.max() > _SHEAR:
        return _(
            "The axes of the volume '{name}' are not at right angles to each other (sheared). "
            "Resample it onto a straight grid with the module 'Resample Scalar Volume'."
        ).format(name=name)
    return None
