"""Labelmaps in which structures may overlap: images of one component for each layer.

Within a layer each voxel has one label, as in a file of 3D Slicer. A label value lies in one layer only. A labelmap
without overlaps is a plain image of one component, so whoever knows nothing of layers meets one only where there are
overlaps.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

Mask = npt.NDArray[np.bool_]


def in_layers(masks: Iterable[tuple[int, Mask]], geometry: sitk.Image) -> sitk.Image:
    """Lay masks into as few layers as they need when each goes into the first one in which it overlaps nothing.

    Args:
        masks: label value and voxels, (z, y, x), of each structure; one at a time is asked for.
        geometry: an image of the same grid.

    Returns:
        A labelmap of one component, or of one for each layer.
    """
    layers: list[npt.NDArray[Any]] = [np.zeros(geometry.GetSize()[::-1], np.uint8)]
    for value, mask in masks:
        if value > np.iinfo(layers[0].dtype).max:
            layers = [layer.astype(np.uint16 if value < 2**16 else np.int32) for layer in layers]
        free = next((layer for layer in layers if not layer[mask].any()), None)
        if free is None:
            free = np.zeros_like(layers[0])
            layers.append(free)
        free[mask] = value
    return layered_image(layers, geometry)


def layered_image(layers: Sequence[npt.NDArray[Any]], geometry: sitk.Image) -> sitk.Image:
    """Make an image of layers, each (z, y, x)."""
    several = len(layers) > 1
    image = sitk.GetImageFromArray(np.stack(layers, -1) if several else layers[0], isVector=several)
    image.CopyInformation(geometry)
    return image


def layers_of(labels: sitk.Image) -> list[npt.NDArray[Any]]:
    """Return the layers of a labelmap, each (z, y, x)."""
    voxels = sitk.GetArrayFromImage(labels)
    return [voxels] if voxels.ndim == 3 else [voxels[..., layer] for layer in range(voxels.shape[-1])]


def has_overlaps(labels: sitk.Image) -> bool:
    """Return whether a labelmap has several layers."""
    return bool(labels.GetNumberOfComponentsPerPixel() > 1)


def mask_of(labels: sitk.Image, value: int) -> Mask:
    """Return the voxels of a structure, (z, y, x)."""
    mask: Mask = np.logical_or.reduce([layer == value for layer in layers_of(labels)])
    return mask


def flattened(labels: sitk.Image, order: Sequence[int]) -> sitk.Image:
    """Bring a labelmap into one layer.

    Args:
        labels: in one layer or in several.
        order: the label values in the order in which they are written; later ones overwrite earlier ones.
    """
    if not has_overlaps(labels):
        return labels
    layers = layers_of(labels)
    flat = np.zeros_like(layers[0])
    for value in order:
        for layer in layers:
            flat[layer == value] = value
    return layered_image([flat], labels)
