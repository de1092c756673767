"""Showing a case in the slice views: its volume, its labels, centered on them."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

import slicer
import vtk

from TCurLoraSegmentLib.errors import UserError
from TCurLoraSegmentLib.scene_labels import has_binary_labels, layers_of


def show_case(
    volume: slicer.vtkMRMLNode | None,
    labels: slicer.vtkMRMLNode | None,
    others: Iterable[slicer.vtkMRMLNode] = (),
) -> None:
    """Show a volume with its labels.

    Args:
        volume: what the slice views show; None leaves them.
        labels: segmentation or labelmap that is shown over it.
        others: labels of other cases, which are hidden.
    """
    is_labelmap = labels is not None and bool(labels.IsA("vtkMRMLLabelMapVolumeNode"))
    fit = slicer.app.layoutManager() is not None  # without a main window there are no views to fit
    if volume is not None:
        slicer.util.setSliceViewerLayers(background=volume, label=labels if is_labelmap else None, fit=fit)
    for node in others:
        if node is not labels and node.IsA("vtkMRMLSegmentationNode") and node.GetDisplayNode() is not None:
            node.GetDisplayNode().SetVisibility(False)
    if labels is None:
        return
    if not is_labelmap:
        labels.CreateDefaultDisplayNodes()
        labels.GetDisplayNode().SetVisibility(True)
    center = center_of(labels)
    if center is not None:
        mode = slicer.vtkMRMLSliceNode.CenteredJumpSlice
        slicer.vtkMRMLSliceNode.JumpAllSlices(slicer.mrmlScene, *center, mode)


def center_of(labels: slicer.vtkMRMLNode) -> list[float] | None:
    """Return the middle of all labeled voxels, right, anterior and superior in mm; None where there are none."""
    boxes = []
    with suppress(UserError):
        voxels = labels.IsA("vtkMRMLLabelMapVolumeNode") or has_binary_labels(labels.GetSegmentation())
        for layer in layers_of(labels) if voxels else ():
            filled = layer.voxels != 0
            if not filled.any():
                continue
            ends = [
                filled.any(axis=tuple(other for other in range(3) if other != axis)).nonzero()[0] for axis in (2, 1, 0)
            ]
            middle = [first + (used[0] + used[-1]) / 2 for first, used in zip(layer.first, ends, strict=True)]
            boxes.append(layer.ijk_to_ras[:3, :3] @ middle + layer.ijk_to_ras[:3, 3])
    if not boxes:
        bounds = [0.0] * 6
        labels.GetRASBounds(bounds)
        return None if bounds[0] > bounds[1] else [(bounds[axis] + bounds[axis + 1]) / 2 for axis in (0, 2, 4)]
    place = [float(value) for value in sum(boxes) / len(boxes)]
    transform = labels.GetParentTransformNode()
    if transform is None:
        return place
    to_world = vtk.vtkGeneralTransform()
    slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(transform, None, to_world)
    return [float(value) for value in to_world.TransformPoint(place)]
