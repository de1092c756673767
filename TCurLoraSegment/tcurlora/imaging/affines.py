"""Maps from voxel indices to places, as 4 x 4 matrices in left-posterior-superior mm: compared, and straightened."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

Matrix = npt.NDArray[np.float64]

ROUNDING = 2e-4
"""Cosine between two axes up to which they are at right angles as far as single precision can tell."""

STRAIGHTENED = 0.25
"""Voxels by which straightening may move one; half a voxel would change which tissue it lies in."""


class Straight(NamedTuple):
    """Axes at right angles that lie nearest to given ones, about the same center.

    Attributes:
        affine: (4, 4).
        moved: how far a corner of the volume is from where it was, in voxels (of the finest spacing).
        cosine: the largest cosine between two of the given axes; 0 where they are at right angles.
    """

    affine: Matrix
    moved: float
    cosine: float


def affine_of(image: sitk.Image | sitk.ImageFileReader) -> Matrix:
    """Return the map of an image, or of what a reader has found in a header; of its first three axes."""
    dimension = image.GetDimension()
    matrix = np.eye(4)
    direction = np.array(image.GetDirection(), float).reshape(dimension, dimension)[:3, :3]
    matrix[:3, :3] = direction * np.array(image.GetSpacing()[:3])
    matrix[:3, 3] = image.GetOrigin()[:3]
    return matrix


def set_affine(image: sitk.Image, affine: Matrix) -> None:
    """Place a 3D image; the axes of the map are at right angles."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image.SetSpacing([float(size) for size in spacing])
    image.SetDirection([float(part) for part in (affine[:3, :3] / spacing).ravel()])
    image.SetOrigin([float(part) for part in affine[:3, 3]])


def farthest(a: Matrix, b: Matrix, size: Sequence[int]) -> float:
    """Return the largest distance, in mm, between the places that two maps give to a voxel of a volume."""
    corners = np.array([[i, j, k, 1] for i in (0, size[0] - 1) for j in (0, size[1] - 1) for k in (0, size[2] - 1)])
    return float(np.linalg.norm(corners @ (a - b).T, axis=1).max())


def straightened(affine: Matrix, size: Sequence[int]) -> Straight:
    """Return the nearest axes at right angles, by the polar decomposition of the directions."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    direction = affine[:3, :3] / spacing
    products = np.abs(direction.T @ direction - np.eye(3))
    left, _, right = np.linalg.svd(direction)
    straight = np.eye(4)
    straight[:3, :3] = (left @ right) * spacing
    center = (np.array(size[:3], float) - 1) / 2
    straight[:3, 3] = affine[:3, 3] + (affine[:3, :3] - straight[:3, :3]) @ center
    return Straight(straight, farthest(affine, straight, size) / float(spacing.min()), float(products.max()))
