"""Scenes for the tests: volumes, labels and transforms of every awkward kind, made in the scene itself."""

from __future__ import annotations

import tempfile
import unittest
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from TCurLoraSegmentLib.self_test import foreign

LIVER = (
    "Segmentation category and type - 3D Slicer General Anatomy list~SCT^123037004^Anatomical Structure"
    "~SCT^10200004^Liver~^^~Anatomic codes - DICOM master list~^^~^^"
)
LEFT_KIDNEY, RIGHT_KIDNEY = (
    LIVER.replace("10200004^Liver~^^", f"64033007^Kidney~SCT^{code}^{side}")
    for code, side in (("7771000", "Left"), ("24028007", "Right"))
)
TISSUE = LIVER.replace("123037004^Anatomical Structure", "85756007^Tissue").replace("10200004^Liver", "85756007^Tissue")

SIZE = (24, 20, 16)


def oblique(left_handed: bool = False) -> np.ndarray:
    """A map from index to RAS that is rotated about all axes, with three different spacings."""
    rotation = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
    rotation[:, 0] *= np.sign(np.linalg.det(rotation)) * (-1 if left_handed else 1)
    matrix = np.eye(4)
    matrix[:3, :3] = rotation * (1.1, 1.3, 1.7)
    matrix[:3, 3] = (-90.123456789, 130.987654321, 1234.56789)
    return matrix


def straight() -> np.ndarray:
    matrix = np.diag([-1.25, -1.25, 1.5, 1.0])
    matrix[:3, 3] = (15.0, 12.5, -12.0)
    return matrix


def permuted() -> np.ndarray:
    matrix = np.zeros((4, 4))
    matrix[0, 2], matrix[1, 0], matrix[2, 1], matrix[3, 3] = 1.5, -1.2, 1.25, 1.0
    matrix[:3, 3] = (-12.0, 14.0, -12.0)
    return matrix


class SceneTest(unittest.TestCase):
    """Starts with an empty scene and a folder whose name is long, spaced and not ASCII."""

    def setUp(self) -> None:
        slicer.mrmlScene.Clear(0)
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder = Path(temporary.name) / foreign("Ordner für 海馬 scans", "folder of scans")
        self.folder.mkdir()

    def tearDown(self) -> None:
        slicer.mrmlScene.Clear(0)

    def assertSceneUntouched(self, action: Callable[[], Any]) -> Any:  # noqa: N802
        """Run an action that must neither add nor change a node, whether it succeeds or raises."""
        before = _state()
        try:
            return action()
        finally:
            self.assertEqual(before, _state())


def _state() -> list[tuple[Any, ...]]:
    nodes = [slicer.mrmlScene.GetNthNode(n) for n in range(slicer.mrmlScene.GetNumberOfNodes())]
    state: list[tuple[Any, ...]] = [("undo", slicer.mrmlScene.GetNumberOfUndoLevels())]
    for node in nodes:
        inside: tuple[Any, ...] = ()
        if node.IsA("vtkMRMLSegmentationNode"):
            segmentation = node.GetSegmentation()
            kinds = ("Binary labelmap", "Closed surface")
            inside = (segmentation.GetMTime(), *(segmentation.ContainsRepresentation(kind) for kind in kinds))
            inside += tuple(segmentation.GetSegment(s).GetMTime() for s in segmentation.GetSegmentIDs())
        elif node.IsA("vtkMRMLVolumeNode") and node.GetImageData():
            inside = (node.GetImageData().GetMTime(),)
        state.append((node.GetID(), node.GetName(), node.GetMTime(), *inside))
    return state


def add_volume(name: str = "T1", matrix: np.ndarray | None = None, size: Sequence[int] = SIZE, dtype: Any = np.int16):
    voxels = np.random.default_rng(0).integers(0, 100, size[::-1]).astype(dtype)
    return slicer.util.addVolumeFromArray(voxels, ijkToRAS=straight() if matrix is None else matrix, name=name)


def world_points(node: Any, matrix: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Where the voxels of a grid in the frame of a node are in the world; shape (k, j, i, 3)."""
    k, j, i = np.indices(size[::-1]).reshape(3, -1)
    local = (matrix @ np.stack([i, j, k, np.ones_like(i)]))[:3].T
    if node.GetParentTransformNode() is None:
        return local.reshape((*size[::-1], 3))
    points, world = vtk.vtkPoints(), vtk.vtkPoints()
    for one in (points, world):
        one.SetDataTypeToDouble()
    points.SetData(numpy_to_vtk(np.ascontiguousarray(local), deep=True))
    to_world = vtk.vtkGeneralTransform()
    node.GetParentTransformNode().GetTransformToWorld(to_world)
    to_world.TransformPoints(points, world)
    return vtk_to_numpy(world.GetData()).reshape((*size[::-1], 3))


def ball(points: np.ndarray, center: Sequence[float], radius: float) -> np.ndarray:
    return np.linalg.norm(points - np.asarray(center), axis=-1) < radius


def matrix_of(volume: Any) -> np.ndarray:
    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    return slicer.util.arrayFromVTKMatrix(matrix)


def oriented_image(voxels: np.ndarray, matrix: np.ndarray, first: Sequence[int] = (0, 0, 0)):
    """An image whose first voxel has the index `first`."""
    k, j, i = voxels.shape
    image = slicer.vtkOrientedImageData()
    ends = [end for start, n in zip(first, (i, j, k), strict=True) for end in (start, start + n - 1)]
    image.SetExtent(ends)
    scalars = numpy_to_vtk(voxels.ravel(), deep=True)
    image.GetPointData().SetScalars(scalars)
    image.SetImageToWorldMatrix(slicer.util.vtkMatrixFromArray(matrix))
    return image


def add_segmentation(
    name: str,
    matrix: np.ndarray,
    masks: dict[str, np.ndarray],
    volume: Any = None,
    terminology: dict[str, str] | None = None,
    first: Sequence[int] = (0, 0, 0),
):
    """A segmentation with a layer for each mask, so that segments may overlap; keys are names of segments."""
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
    node.CreateDefaultDisplayNodes()
    if volume is not None:
        node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    for number, (title, mask) in enumerate(masks.items()):
        segment = slicer.vtkSegment()
        segment.SetName(title)
        segment.SetColor(0.2, 0.1 * number, 0.9)
        if terminology and title in terminology:
            segment.SetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), terminology[title])
        segment.AddRepresentation("Binary labelmap", oriented_image(mask.astype(np.uint8), matrix, first))
        node.GetSegmentation().AddSegment(segment)
    return node


def add_labelmap(name: str, voxels: np.ndarray, matrix: np.ndarray, names: dict[int, str] | None = None):
    node = slicer.util.addVolumeFromArray(voxels, ijkToRAS=matrix, name=name, nodeClassName="vtkMRMLLabelMapVolumeNode")
    if names is not None:
        colors = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLColorTableNode", f"{name} colors")
        colors.SetTypeToUser()
        colors.SetNumberOfColors(max(names) + 1)
        for value, title in names.items():
            colors.SetColor(value, title, 0.1, 0.5, (value % 7) / 7, 1.0)
        node.GetDisplayNode().SetAndObserveColorNodeID(colors.GetID())
    return node


def add_linear_transform(name: str = "moved", hidden: bool = True):
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", name)
    transform = vtk.vtkTransform()
    transform.RotateWXYZ(25, 1, 2, 3)
    transform.Translate(7.3, -4.1, 11.9)
    node.SetMatrixTransformToParent(transform.GetMatrix())
    node.SetHideFromEditors(hidden)
    return node


def add_bent_transform(center: Sequence[float], name: str = "bent", hidden: bool = True):
    """A transform that is not linear: a spline that pushes points around a center by some mm."""
    source, target = vtk.vtkPoints(), vtk.vtkPoints()
    rng = np.random.default_rng(5)
    for corner in np.ndindex(2, 2, 2):
        place = np.asarray(center) + 60.0 * (np.array(corner) - 0.5)
        source.InsertNextPoint(place)
        target.InsertNextPoint(place + rng.normal(size=3))
    source.InsertNextPoint(center)
    target.InsertNextPoint(np.asarray(center) + np.array([4.0, -3.0, 2.0]))
    spline = vtk.vtkThinPlateSplineTransform()
    spline.SetSourceLandmarks(source)
    spline.SetTargetLandmarks(target)
    spline.SetBasisToR()
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode", name)
    node.SetAndObserveTransformToParent(spline)
    node.SetHideFromEditors(hidden)
    return node


def hierarchy() -> Any:
    return slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)


def put_into_study(node: Any, study: int) -> None:
    hierarchy().SetItemParent(hierarchy().GetItemByDataNode(node), study)


def add_study(patient: str = "Patient 1", study: str = "Study 1") -> int:
    tree = hierarchy()
    known = tree.GetItemChildWithName(tree.GetSceneItemID(), patient)
    return int(tree.CreateStudyItem(known or tree.CreateSubjectItem(tree.GetSceneItemID(), patient), study))
