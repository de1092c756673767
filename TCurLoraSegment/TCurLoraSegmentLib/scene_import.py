"""Results of the engine, brought into the scene where the scan was when the work began.

Nodes are made only when everything about a result is known to be right. An existing node is changed only when it was
given as the output, and then it keeps its ID, name, display and place in the subject hierarchy.
"""

from __future__ import annotations

import colorsys
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
import slicer
import vtk
from slicer.i18n import tr as _
from vtk.util.numpy_support import numpy_to_vtk

from TCurLoraSegmentLib.errors import UserError
from TCurLoraSegmentLib.scene_cases import ACCEPTED_ATTRIBUTE, RESULT_ATTRIBUTE, SHAPE_ATTRIBUTE
from TCurLoraSegmentLib.scene_labels import normalized, present_values, shape_of
from TCurLoraSegmentLib.scene_volumes import TOLERANCE_MM, Geometry, geometry_of, volume_problem

_UNCERTAINTY_COLORS = ("vtkMRMLColorTableNodeFileInferno.txt", "vtkMRMLColorTableNodeIron", "vtkMRMLColorTableNodeGrey")
_COLORS_ATTRIBUTE = "TCurLoraSegment.Colors"


@dataclass(frozen=True)
class Placement:
    """Where a scan was when the work on it began; a job keeps it, so that nodes may change meanwhile.

    Attributes:
        volume_id: ID of the volume's node.
        volume_name: its name.
        geometry: its grid.
        transform_id: ID of its parent transform; None without one.
        transform_name: name of that.
        parent_item: ID of the branch of the subject hierarchy that it is in.
        parent_name: name of that; empty for the scene itself.
    """

    volume_id: str
    volume_name: str
    geometry: Geometry
    transform_id: str | None
    transform_name: str
    parent_item: int
    parent_name: str

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON takes it."""
        return {**self.__dict__, "geometry": self.geometry.to_dict()}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Placement:
        """Return what `to_dict` wrote."""
        return cls(**{**content, "geometry": Geometry.from_dict(content["geometry"])})


@dataclass(frozen=True)
class Imported:
    """A node with a result, and sentences on what the user should know about it."""

    node: Any
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Meaning:
    name: str
    value: int
    color: tuple[float, float, float] | None
    terminology: str


def capture(volume_node: slicer.vtkMRMLScalarVolumeNode) -> Placement:
    """Note where a volume is, before work on it begins.

    Raises:
        UserError: when the volume cannot be used.
    """
    problem = volume_problem(volume_node)
    if problem:
        raise UserError(problem)
    transform = volume_node.GetParentTransformNode()
    hierarchy = _hierarchy()
    item = hierarchy.GetItemByDataNode(volume_node)
    parent = hierarchy.GetItemParent(item) if item else hierarchy.GetSceneItemID()
    return Placement(
        volume_id=volume_node.GetID(),
        volume_name=volume_node.GetName(),
        geometry=geometry_of(volume_node),
        transform_id=None if transform is None else transform.GetID(),
        transform_name="" if transform is None else transform.GetName(),
        parent_item=int(parent),
        parent_name="" if parent == hierarchy.GetSceneItemID() else hierarchy.GetItemName(parent),
    )


def import_segmentation(
    labels_file: Path,
    placement: Placement,
    structures: Sequence[Mapping[str, Any]],
    name: str,
    output_node: slicer.vtkMRMLNode | None = None,
    as_labelmap: bool = False,
) -> Imported:
    """Bring labels from a file into the scene.

    Names, colors and terminology come from the file; what it lacks, from the structures of the same name.

    Args:
        labels_file: what the engine wrote for the scan.
        placement: where the scan was, from `capture`.
        structures: dicts with name, value, and where known color and terminology.
        name: for a new node; a number is added when it is taken.
        output_node: segmentation or label map to replace the content of; a new node when None.
        as_labelmap: make a label map rather than a segmentation; with an output node its kind decides.

    Returns:
        The node, and what to know about it.

    Raises:
        UserError: when the file is no label map on the grid of the scan, or the output node can hold no labels. The
            scene is then as before.
    """
    image = _read(Path(labels_file), placement)
    voxels = sitk.GetArrayFromImage(image)
    if voxels.dtype.kind not in "iu" or voxels.min(initial=0) < 0:
        raise UserError(
            _("The result '{path}' holds no label numbers.").format(path=labels_file), _("Segment the scan again.")
        )
    warnings: list[str] = []
    meanings = _meanings(image, structures, present_values(voxels), warnings)
    highest = max([int(voxels.max(initial=0)), *(m.value for m in meanings)])
    voxels = voxels.astype(np.uint8 if highest < 2**8 else np.uint16 if highest < 2**16 else np.int32)
    if output_node is not None and output_node.GetScene() is None:
        warnings.append(_("The chosen output is no longer in the scene, so a new node was made."))
        output_node = None
    if output_node is not None:
        _refuse_as_output(output_node, placement)
        as_labelmap = bool(output_node.IsA("vtkMRMLLabelMapVolumeNode"))
    volume = _volume_now(placement, warnings)
    with _new_nodes() as new_nodes:
        if as_labelmap:
            node = output_node or _new_node("vtkMRMLLabelMapVolumeNode", name, new_nodes)
            _fill_labelmap(node, voxels, placement.geometry, meanings, new_nodes)
        else:
            node = output_node or _new_node("vtkMRMLSegmentationNode", name, new_nodes)
            _fill_segmentation(node, voxels, placement.geometry, meanings, volume)
            if output_node is None:
                display = node.GetDisplayNode()
                display.SetOpacity2DFill(0.5)
                display.SetOpacity2DOutline(1.0)
                display.SetVisibility2DOutline(True)
        node.SetAttribute(RESULT_ATTRIBUTE, placement.volume_name)
        node.RemoveAttribute(ACCEPTED_ATTRIBUTE)
        node.SetAttribute(SHAPE_ATTRIBUTE, shape_of(node))
        _place(node, placement, volume, output_node is None, warnings)
    return Imported(node, tuple(warnings))


def import_uncertainty(file: Path, placement: Placement, name: str) -> Imported:
    """Bring a map of uncertainty into the scene; the slice views go on showing what they show.

    Args:
        file: what the engine wrote for the scan: 0 (certain) to 1 (undecided).
        placement: where the scan was, from `capture`.
        name: for the new node; a number is added when it is taken.

    Returns:
        The scalar volume node, and what to know about it.

    Raises:
        UserError: when the file is no image on the grid of the scan. The scene is then as before.
    """
    voxels = sitk.GetArrayFromImage(_read(Path(file), placement)).astype(np.float32)
    warnings: list[str] = []
    volume = _volume_now(placement, warnings)
    with _new_nodes() as new_nodes:
        node = _new_node("vtkMRMLScalarVolumeNode", name, new_nodes)
        _fill_volume(node, voxels, placement.geometry)
        display = node.GetDisplayNode()
        display.SetAutoWindowLevel(False)
        display.SetWindowLevelMinMax(0.0, 1.0)
        colors = next((c for c in _UNCERTAINTY_COLORS if slicer.mrmlScene.GetNodeByID(c) is not None), None)
        if colors is not None:
            display.SetAndObserveColorNodeID(colors)
        _place(node, placement, volume, True, warnings)
    return Imported(node, tuple(warnings))


def unique_name(name: str) -> str:
    """Return the name, or with `_1`, `_2`, ... the first that no node of the scene has."""
    taken = {node.GetName() for node in slicer.util.getNodesByClass("vtkMRMLNode")}
    candidates = (f"{name}_{number}" for number in range(1, len(taken) + 2))
    return name if name not in taken else next(one for one in candidates if one not in taken)


# Reading


def _read(path: Path, placement: Placement) -> sitk.Image:
    """Read an image with one value in each voxel on the grid of the scan."""
    if not path.is_file():
        raise UserError(_("There is no result '{path}'.").format(path=path), _("Segment the scan again."))
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise UserError(
            _("The result '{path}' cannot be read: it is damaged or incomplete.").format(path=path),
            _("Segment the scan again."),
        ) from error
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise UserError(_("The result '{path}' is not one 3D image.").format(path=path), _("Segment the scan again."))
    found = Geometry.of_image(image)
    tolerance = TOLERANCE_MM
    if path.name.lower().endswith((".nii", ".nii.gz")):  # which keeps half the digits and no axes that are askew
        tolerance = max(TOLERANCE_MM, 0.1 * min(image.GetSpacing()))
    distance = found.distance(placement.geometry)
    if distance > tolerance:
        sizes = ["x".join(map(str, geometry.size)) for geometry in (found, placement.geometry)]
        what = (
            _("it lies up to {distance:.3g} mm beside it").format(distance=distance)
            if sizes[0] == sizes[1]
            else _("it has {found} voxels instead of {expected}").format(found=sizes[0], expected=sizes[1])
        )
        raise UserError(
            _("The result '{path}' does not fit the volume '{volume}': {what}.").format(
                path=path, volume=placement.volume_name, what=what
            ),
            _("Segment the scan again."),
        )
    return image


def _meanings(
    image: sitk.Image, structures: Sequence[Mapping[str, Any]], present: Sequence[int], warnings: list[str]
) -> list[_Meaning]:
    """What the labels mean: as the file says, completed by name; a file without names counts by the given values."""
    given = {normalized(str(s["name"])): s for s in structures}
    listed = _header_segments(image) or [{"name": s["name"], "value": s["value"]} for s in structures]
    meanings = []
    for entry in listed:
        known = given.get(normalized(str(entry["name"])), {})
        color = known.get("color") or entry.get("color")
        meanings.append(
            _Meaning(
                str(entry["name"]),
                int(entry["value"]),
                None if color is None else (float(color[0]), float(color[1]), float(color[2])),
                str(known.get("terminology") or entry.get("terminology") or "").strip(" |"),
            )
        )
    nameless = sorted(set(present) - {m.value for m in meanings})
    if nameless:
        warnings.append(
            _("The result has labels without a name: {values}.").format(values=", ".join(map(str, nameless)))
        )
    return meanings + [_Meaning(f"label {value}", value, None, "") for value in nameless]


def _header_segments(image: sitk.Image) -> list[dict[str, Any]]:
    keys = set(image.GetMetaDataKeys())
    segments = []
    number = 0
    while f"Segment{number}_Name" in keys and f"Segment{number}_LabelValue" in keys:
        prefix = f"Segment{number}_"
        fields = {k.removeprefix(prefix): image.GetMetaData(k).strip() for k in keys if k.startswith(prefix)}
        tags = re.findall(r"TerminologyEntry:([^|]*)", fields.get("Tags", ""))
        color = fields.get("Color", "").split()
        segments.append(
            {
                "name": fields["Name"],
                "value": int(fields["LabelValue"]),
                "color": [float(part) for part in color] if len(color) == 3 else None,
                "terminology": tags[0] if tags else None,
            }
        )
        number += 1
    return segments


# Nodes


@contextmanager
def _new_nodes() -> Iterator[list[Any]]:
    """Collect the nodes that are made, and take them out of the scene again when something goes wrong."""
    nodes: list[Any] = []
    try:
        yield nodes
    except BaseException:
        for node in reversed(nodes):
            slicer.mrmlScene.RemoveNode(node)
        raise


def _new_node(class_name: str, name: str, new_nodes: list[Any]) -> Any:
    node = slicer.mrmlScene.AddNewNodeByClass(class_name, unique_name(name))
    new_nodes.append(node)
    node.CreateDefaultDisplayNodes()
    new_nodes.append(node.GetDisplayNode())
    return node


def _refuse_as_output(node: Any, placement: Placement) -> None:
    if not (node.IsA("vtkMRMLSegmentationNode") or node.IsA("vtkMRMLLabelMapVolumeNode")):
        raise UserError(
            _("'{name}' can hold no labels.").format(name=node.GetName()),
            _("Choose a segmentation or label map as output, or let a new one be made."),
        )


def _fill_segmentation(
    node: Any, voxels: npt.NDArray[Any], geometry: Geometry, meanings: Sequence[_Meaning], volume: Any | None
) -> None:
    """Replace all segments; those of a known name keep their ID and color, and with the ID what the display has."""
    before = node.GetSegmentation()
    known = {}
    for segment_id in reversed(before.GetSegmentIDs()):
        known[normalized(before.GetSegment(segment_id).GetName() or segment_id)] = segment_id
    image = slicer.vtkOrientedImageData()
    image.SetDimensions(*geometry.size)
    image.GetPointData().SetScalars(_scalars(voxels))
    image.SetImageToWorldMatrix(slicer.util.vtkMatrixFromArray(geometry.matrix))
    converter = slicer.vtkSegmentationConverter
    binary = converter.GetSegmentationBinaryLabelmapRepresentationName()
    surface = converter.GetSegmentationClosedSurfaceRepresentationName()
    after = slicer.vtkSegmentation()
    after.SetSourceRepresentationName(binary)
    after.CopyConversionParameters(before)
    grid = converter.SerializeImageGeometry(slicer.util.vtkMatrixFromArray(geometry.matrix), image)
    after.SetConversionParameter(converter.GetReferenceImageGeometryParameterName(), grid)
    kept = set(known.values())
    for meaning in meanings:
        segment = slicer.vtkSegment()
        segment.SetName(meaning.name)
        segment.SetLabelValue(meaning.value)
        segment.AddRepresentation(binary, image)
        segment_id = known.get(normalized(meaning.name))
        if segment_id is None:
            numbers = iter(range(meaning.value, meaning.value + len(kept) + 1))
            segment_id = next(one for one in (f"Segment_{n}" for n in numbers) if one not in kept)
            segment.SetColor(*(meaning.color or _color_of(meaning.name)))
        else:
            segment.SetColor(*before.GetSegment(segment_id).GetColor())
        kept.add(segment_id)
        if meaning.terminology:
            segment.SetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), meaning.terminology)
        after.AddSegment(segment, segment_id)
    if before.ContainsRepresentation(surface):
        after.CreateRepresentation(surface, True)  # what is shown in 3D stays shown
    node.SetAndObserveSegmentation(after)
    # An exchange is no event of any segment, so the Data module would go on listing those of before.
    after.InvokeEvent(slicer.vtkSegmentation.SegmentModified)
    role = slicer.vtkMRMLSegmentationNode.GetReferenceImageGeometryReferenceRole()
    node.SetNodeReferenceID(role, None if volume is None else volume.GetID())
    if node.GetDisplayNode() is None:
        node.CreateDefaultDisplayNodes()


def _fill_labelmap(
    node: Any, voxels: npt.NDArray[Any], geometry: Geometry, meanings: Sequence[_Meaning], new_nodes: list[Any]
) -> None:
    _fill_volume(node, voxels, geometry)
    if node.GetDisplayNode() is None:
        node.CreateDefaultDisplayNodes()
    display = node.GetDisplayNode()
    colors = display.GetColorNode()
    own = colors is not None and colors.GetAttribute(_COLORS_ATTRIBUTE)
    if colors is not None and not own and _names(colors, meanings):
        return
    if not own:
        colors = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLColorTableNode", unique_name(f"{node.GetName()} colors"))
        new_nodes.append(colors)
        colors.SetAttribute(_COLORS_ATTRIBUTE, "1")
    colors.SetTypeToUser()
    colors.SetNumberOfColors(max((m.value for m in meanings), default=0) + 1)
    colors.SetColor(0, "background", 0.0, 0.0, 0.0, 0.0)
    for meaning in meanings:
        colors.SetColor(meaning.value, meaning.name, *(meaning.color or _color_of(meaning.name)), 1.0)
        if meaning.terminology and hasattr(colors, "SetTerminologyFromString"):  # from Slicer 5.9 on
            colors.SetTerminologyFromString(meaning.value, meaning.terminology)
    display.SetAndObserveColorNodeID(colors.GetID())


def _names(colors: Any, meanings: Sequence[_Meaning]) -> bool:
    """Tell whether a color table of the user names the labels already."""
    return all(
        m.value < colors.GetNumberOfColors() and normalized(colors.GetColorName(m.value) or "") == normalized(m.name)
        for m in meanings
    )


def _fill_volume(node: Any, voxels: npt.NDArray[Any], geometry: Geometry) -> None:
    image = vtk.vtkImageData()
    image.SetDimensions(*geometry.size)
    image.GetPointData().SetScalars(_scalars(voxels))
    node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(geometry.matrix))
    node.SetAndObserveImageData(image)


def _scalars(voxels: npt.NDArray[Any]) -> vtk.vtkDataArray:
    scalars = numpy_to_vtk(np.ascontiguousarray(voxels).ravel(), deep=True)
    scalars.SetName("ImageScalars")
    return scalars


def _color_of(name: str) -> tuple[float, float, float]:
    """A color that depends on the name only."""
    code = zlib.crc32(normalized(name).encode())
    return colorsys.hsv_to_rgb(code % 360 / 360, 0.55 + 0.35 * (code >> 9 & 1), 0.75 + 0.2 * (code >> 10 & 1))


# Places


def _volume_now(placement: Placement, warnings: list[str]) -> Any | None:
    """Find the volume again; None, with a warning, when it is gone or is not as it was."""
    node = slicer.mrmlScene.GetNodeByID(placement.volume_id)
    if _is_as_it_was(node, placement):
        return node
    # A scene that was closed and loaded again may number its nodes anew.
    others = slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")
    found = [v for v in others if v.GetName() == placement.volume_name and _is_as_it_was(v, placement)]
    if len(found) == 1:
        return found[0]
    if node is not None and node.GetName() == placement.volume_name:
        warnings.append(
            _("The volume '{name}' was changed meanwhile; the result lies where it was before.").format(
                name=placement.volume_name
            )
        )
    else:
        warnings.append(
            _("The volume '{name}' is no longer in the scene; the result lies where it was.").format(
                name=placement.volume_name
            )
        )
    return None


def _is_as_it_was(node: Any, placement: Placement) -> bool:
    return volume_problem(node) is None and geometry_of(node).shares_voxels(placement.geometry)


def _place(node: Any, placement: Placement, volume: Any | None, new: bool, warnings: list[str]) -> None:
    """Put a node under the transform of the volume, and a new one under its study."""
    hierarchy = _hierarchy()
    if volume is not None:
        node.SetAndObserveTransformNodeID(volume.GetTransformNodeID())
        item = hierarchy.GetItemByDataNode(volume)
        parent = hierarchy.GetItemParent(item) if item else 0
    else:
        transform = None if placement.transform_id is None else slicer.mrmlScene.GetNodeByID(placement.transform_id)
        if transform is not None and transform.GetName() != placement.transform_name:
            transform = None
        node.SetAndObserveTransformNodeID(None if transform is None else transform.GetID())
        if transform is None and placement.transform_id is not None:
            warnings.append(
                _("Its transform '{name}' is gone too, so the result is not transformed.").format(
                    name=placement.transform_name
                )
            )
        items = vtk.vtkIdList()
        hierarchy.GetItemChildren(hierarchy.GetSceneItemID(), items, True)
        known = {items.GetId(n) for n in range(items.GetNumberOfIds())}
        same = placement.parent_item in known and hierarchy.GetItemName(placement.parent_item) == placement.parent_name
        parent = placement.parent_item if same else 0
    if new and parent:
        # In Slicer the node has an item by now; without its application nobody made one.
        item = hierarchy.GetItemByDataNode(node) or hierarchy.CreateItem(parent, node)
        hierarchy.SetItemParent(item, parent)


def _hierarchy() -> Any:
    return slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
