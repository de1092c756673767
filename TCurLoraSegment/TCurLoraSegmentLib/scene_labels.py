"""Labels of the scene: what a segmentation or label map node holds, by name.

Nothing here changes a node.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import slicer
import vtk
from slicer.i18n import tr as _
from vtk.util.numpy_support import vtk_to_numpy

from TCurLoraSegmentLib.errors import UserError

BACKGROUND = "background"

_UNTELLING = re.compile(
    r"(?:class|foreground|label|labels|labelmap|mask|masks|new|object|region|roi|seg|segment|segments|segmentation|"
    r"structure|unnamed|untitled|value)?\d*"
)

_TISSUE = ("SCT^85756007", "SRT^T-D0050")
"""What Slicer gives to every new segment, so that it tells nothing."""

_TABLE_SIZE = 2**16


@dataclass(frozen=True)
class Label:
    """One segment of a segmentation, or one value of a label map.

    Attributes:
        name: in one line, never empty.
        color: red, green and blue from 0 to 1.
        terminology: Slicer's terminology entry, or an empty string.
        filled: whether it has voxels or a surface.
    """

    name: str
    color: tuple[float, float, float]
    terminology: str
    filled: bool


@dataclass(frozen=True)
class LabelLayer:
    """Label values on a grid, and what they mean; other values are background.

    Attributes:
        image: the image that owns the voxels.
        voxels: values in the order k, j, i; a view of the image.
        first: index of the first voxel along i, j and k.
        ijk_to_ras: 4 x 4 matrix from index to the frame of the node.
        meanings: label value to label.
    """

    image: vtk.vtkImageData
    voxels: npt.NDArray[Any]
    first: tuple[int, int, int]
    ijk_to_ras: npt.NDArray[np.float64]
    meanings: Mapping[int, Label]


def normalized(name: str) -> str:
    """Lower case, words separated by one space, as the engine compares names of structures.

    A name without any letter or digit stays as it is.
    """
    text = unicodedata.normalize("NFKC", name).replace("_", " ").casefold()
    return " ".join(re.findall(r"\w+", text)) or name.strip()


def is_telling(name: str) -> bool:
    """Return whether a name tells a structure, which `Segment_1`, `label 2`, `mask` and plain numbers do not."""
    return not all(map(_UNTELLING.fullmatch, normalized(name).split()))


def terminology_key(entry: str) -> tuple[str, ...] | None:
    """Return what two terminology entries have in common when they mean the same structure.

    Args:
        entry: Slicer's text for it, with contexts, codes and meanings.

    Returns:
        The codes of category, type and region with their modifiers; None when they do not tell a structure.
    """
    parts = [part.strip(" |") for part in entry.split("~")]
    if len(parts) < 3:
        return None
    codes = ["^".join(part.split("^")[:2]).strip("^") for part in parts]
    codes += [""] * (7 - len(codes))
    category, kind, kind_modifier, region, region_modifier = (codes[i] for i in (1, 2, 3, 5, 6))
    if not kind or (kind in _TISSUE and not region):
        return None
    return category, kind, kind_modifier, region, region_modifier


def is_label_node(node: slicer.vtkMRMLNode | None) -> bool:
    """Tell whether a node is a segmentation or a label map."""
    return node is not None and (node.IsA("vtkMRMLSegmentationNode") or node.IsA("vtkMRMLLabelMapVolumeNode"))


def labels_of(node: slicer.vtkMRMLNode) -> list[Label]:
    """Return what a segmentation or label map is labeled with, hidden and empty segments included.

    Args:
        node: segmentation node, whose segments may be of any kind, or label map volume node.

    Raises:
        UserError: when a label map holds something other than label values.
    """
    if node.IsA("vtkMRMLLabelMapVolumeNode"):
        return [label for layer in layers_of(node) for label in layer.meanings.values()]
    segmentation = node.GetSegmentation()
    source = segmentation.GetSourceRepresentationName()
    present: dict[Any, set[int]] = {}
    labels = []
    for segment_id in segmentation.GetSegmentIDs():
        segment = segmentation.GetSegment(segment_id)
        shape = segment.GetRepresentation(source)
        filled = shape is not None and shape.GetNumberOfPoints() > 0
        if filled and has_binary_labels(segmentation):
            if shape not in present:  # segments that do not overlap share one image
                present[shape] = set(present_values(_voxels(shape)))
            filled = segment.GetLabelValue() in present[shape]
        labels.append(_label_of_segment(segment_id, segment, filled))
    return [label for label in labels if normalized(label.name) != BACKGROUND]


def state_of(node: slicer.vtkMRMLNode) -> Hashable:
    """Return a value that differs once the voxels, the geometry or the labels of a node have changed.

    Args:
        node: volume, label map or segmentation.
    """
    if node.IsA("vtkMRMLSegmentationNode"):
        segmentation = node.GetSegmentation()
        source = segmentation.GetSourceRepresentationName()
        segments = [segmentation.GetSegment(segment_id) for segment_id in segmentation.GetSegmentIDs()]
        shapes = [segment.GetRepresentation(source) for segment in segments]
        return source, *((s.GetMTime(), shape and shape.GetMTime()) for s, shape in zip(segments, shapes, strict=True))
    image, display = node.GetImageData(), node.GetDisplayNode()
    colors = display.GetColorNode() if display is not None and node.IsA("vtkMRMLLabelMapVolumeNode") else None
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    geometry = tuple(matrix.GetElement(row, column) for row in range(3) for column in range(4))
    return geometry, image and image.GetMTime(), colors and (colors.GetID(), colors.GetMTime())


def shape_of(node: slicer.vtkMRMLNode) -> str:
    """Return a text that differs when labels have other voxels; names, colors and saving do not change it.

    Args:
        node: segmentation or label map. Surfaces have no voxels and give an empty text.
    """
    if node.IsA("vtkMRMLSegmentationNode") and not has_binary_labels(node.GetSegmentation()):
        return ""
    parts = []
    for layer in layers_of(node):
        for value in sorted(layer.meanings):
            places = np.argwhere(layer.voxels == value)[:, ::-1] + np.array(layer.first)
            if len(places):
                center = layer.ijk_to_ras[:3, :3] @ places.mean(axis=0) + layer.ijk_to_ras[:3, 3]
                spread = places.astype(np.float64).var(axis=0).sum()
                parts.append(f"{len(places)}:{spread:.3f}:" + ",".join(f"{part:.2f}" for part in center))
    return ";".join(sorted(parts))


def has_binary_labels(segmentation: slicer.vtkSegmentation) -> bool:
    """Tell whether the voxels of a segmentation are what its owner drew, and not derived from surfaces."""
    return bool(segmentation.GetSourceRepresentationName() == _binary())


def layers_of(node: slicer.vtkMRMLNode) -> list[LabelLayer]:
    """Return the voxels of a label map, or of a segmentation that is made of voxels.

    Raises:
        UserError: when a label map holds something other than label values.
    """
    if node.IsA("vtkMRMLLabelMapVolumeNode"):
        return _labelmap_layers(node)
    return segmentation_layers(node.GetSegmentation())


def segmentation_layers(segmentation: slicer.vtkSegmentation) -> list[LabelLayer]:
    """Return the layers of label values in which a segmentation keeps its segments; empty ones are left out.

    Args:
        segmentation: one with binary label maps.
    """
    layers = []
    for number in range(segmentation.GetNumberOfLayers(_binary())):
        image = segmentation.GetLayerDataObject(number, _binary())
        if image is None or image.GetPointData().GetScalars() is None or min(image.GetDimensions()) < 1:
            continue
        voxels = _voxels(image)
        present = set(present_values(voxels))
        meanings = {}
        for segment_id in segmentation.GetSegmentIDsForLayer(number, _binary()):
            segment = segmentation.GetSegment(segment_id)
            value = segment.GetLabelValue()
            label = _label_of_segment(segment_id, segment, value in present)
            if normalized(label.name) != BACKGROUND:
                meanings[value] = label
        matrix = vtk.vtkMatrix4x4()
        image.GetImageToWorldMatrix(matrix)
        layers.append(_layer(image, voxels, matrix, meanings))
    return layers


def present_values(voxels: npt.NDArray[Any]) -> list[int]:
    """Return the label values that occur, in order, without 0."""
    if voxels.size == 0:
        return []
    if voxels.dtype.kind in "iu" and voxels.min() >= 0 and voxels.max() < _TABLE_SIZE:
        counts = np.zeros(int(voxels.max()) + 1, np.int64)
        for part in voxels:  # by slice, because bincount makes a wide copy
            counts += np.bincount(part.ravel(), minlength=len(counts))
        values = np.flatnonzero(counts)
    else:
        values = np.unique(voxels)
    return [int(value) for value in values if value != 0]


def _labelmap_layers(node: slicer.vtkMRMLLabelMapVolumeNode) -> list[LabelLayer]:
    image = node.GetImageData()
    if image is None or image.GetPointData().GetScalars() is None or min(image.GetDimensions()) < 1:
        return []
    voxels = _voxels(image)
    if voxels.ndim != 3 or (voxels.dtype.kind == "f" and not (np.rint(voxels) == voxels).all()) or voxels.min() < 0:
        raise UserError(
            _("The label map '{name}' holds values that are not label numbers.").format(name=node.GetName()),
            _("Give the label map, not the scan or a probability map."),
        )
    display = node.GetDisplayNode()
    colors = None if display is None else display.GetColorNode()
    meanings = {}
    for value in present_values(voxels):
        label = _label_of_value(value, colors)
        if normalized(label.name) != BACKGROUND:
            meanings[value] = label
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    return [_layer(image, voxels, matrix, meanings)]


def _layer(
    image: vtk.vtkImageData, voxels: npt.NDArray[Any], matrix: vtk.vtkMatrix4x4, meanings: Mapping[int, Label]
) -> LabelLayer:
    i, j, k = image.GetExtent()[::2]
    return LabelLayer(image, voxels, (i, j, k), slicer.util.arrayFromVTKMatrix(matrix), meanings)


def _voxels(image: vtk.vtkImageData) -> npt.NDArray[Any]:
    scalars = image.GetPointData().GetScalars()
    shape = image.GetDimensions()[::-1]
    if scalars.GetNumberOfComponents() > 1:
        shape = (*shape, scalars.GetNumberOfComponents())
    return np.asarray(vtk_to_numpy(scalars)).reshape(shape)


def _label_of_segment(segment_id: str, segment: slicer.vtkSegment, filled: bool) -> Label:
    name = _one_line(segment.GetName() or "") or segment_id
    entry = vtk.reference("")
    found = segment.GetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), entry)
    red, green, blue = segment.GetColor()
    return Label(name, (red, green, blue), str(entry.get()).strip() if found else "", filled)


def _label_of_value(value: int, colors: slicer.vtkMRMLColorNode | None) -> Label:
    name = ""
    if colors is not None and value < colors.GetNumberOfColors():
        name = _one_line(colors.GetColorName(value) or "")
    if colors is None or not name or not _is_defined(colors, value, name):
        return Label(f"label {value}", (0.5, 0.5, 0.5), "", True)
    rgba = [0.5, 0.5, 0.5, 1.0]
    colors.GetColor(value, rgba)
    # Color tables carry terminology from Slicer 5.9 on.
    entry = colors.GetTerminologyAsString(value) if hasattr(colors, "GetTerminologyAsString") else ""
    return Label(name, (rgba[0], rgba[1], rgba[2]), entry if terminology_key(entry) else "", True)


def _is_defined(colors: slicer.vtkMRMLColorNode, value: int, name: str) -> bool:
    if hasattr(colors, "GetColorDefined"):  # from Slicer 5.9 on; the other way warns of itself there
        return bool(colors.GetColorDefined(value))
    return bool(name != colors.GetNoName())


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _binary() -> str:
    return str(slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName())
