"""The stand-in for Slicer's scene does what a running Slicer does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from typing import Any

import numpy as np
import slicer
import vtk


def make_volume(name: str = "Schädel 頭部") -> object:
    matrix = np.array([[0.9, -0.1, 0, 5], [0.1, 0.9, 0, -7], [0, 0, 2.0, 11], [0, 0, 0, 1]])
    return slicer.util.addVolumeFromArray(np.arange(24.0).reshape(2, 3, 4), matrix, name)


class SceneTest(unittest.TestCase):
    def setUp(self) -> None:
        slicer.mrmlScene.Clear(0)
        self.folder = Path(tempfile.mkdtemp(prefix="mit Leerzeichen ü 頭 "))
        self.addCleanup(shutil.rmtree, self.folder)
        self.items = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)

    def test_volume_round_trip(self) -> None:
        volume = make_volume()
        for number, ending in enumerate(("nrrd", "nii.gz", "mha")):
            file = str(self.folder / f"Bild {number} 頭.{ending}")
            self.assertTrue(slicer.util.saveNode(volume, file, {}))
            loaded = slicer.util.loadVolume(file, {})
            self.assertEqual(loaded.GetName(), f"Bild {number} 頭")
            np.testing.assert_allclose(slicer.util.arrayFromVolume(loaded), slicer.util.arrayFromVolume(volume))
            a, b = vtk.vtkMatrix4x4(), vtk.vtkMatrix4x4()
            volume.GetIJKToRASMatrix(a)
            loaded.GetIJKToRASMatrix(b)
            np.testing.assert_allclose(slicer.util.arrayFromVTKMatrix(b), slicer.util.arrayFromVTKMatrix(a), atol=1e-4)

    def test_export_leaves_the_storage_node_alone(self) -> None:
        volume = make_volume()
        self.assertTrue(slicer.util.exportNode(volume, str(self.folder / "a.nrrd"), {}))
        self.assertTrue((self.folder / "a.nrrd").is_file())
        self.assertIsNone(volume.GetStorageNode())

    def test_a_missing_file_is_an_error(self) -> None:
        with self.assertRaises(RuntimeError):
            slicer.util.loadVolume(str(self.folder / "nothing.nrrd"), {})

    def test_a_path_object_is_no_file_name(self) -> None:
        with self.assertRaises(TypeError):
            slicer.util.saveNode(make_volume(), self.folder / "a.nrrd", {})

    def test_segmentation_round_trip(self) -> None:
        volume = make_volume()
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Ränder")
        node.CreateDefaultDisplayNodes()
        node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
        segment = node.GetSegmentation().AddEmptySegment("", "海馬", (1, 0, 0))
        array = np.zeros((2, 3, 4), np.uint8)
        array[1, 1, 1:3] = 1
        slicer.util.updateSegmentBinaryLabelmapFromArray(array, node, segment, volume)
        file = str(self.folder / "x.seg.nrrd")
        self.assertTrue(slicer.util.saveNode(node, file, {}))
        loaded = slicer.util.loadSegmentation(file, {})
        self.assertEqual(loaded.GetSegmentation().GetNthSegment(0).GetName(), "海馬")
        found = slicer.util.arrayFromSegmentBinaryLabelmap(loaded, loaded.GetSegmentation().GetNthSegmentID(0), volume)
        np.testing.assert_array_equal(found, array)

    def test_labelmap_becomes_a_segmentation_with_names(self) -> None:
        colors = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLColorTableNode")
        colors.SetTypeToUser()
        colors.SetNumberOfColors(2)
        colors.SetColor(0, "background", 0, 0, 0, 0)
        colors.SetColor(1, "Hippokampus ü", 0, 1, 0, 1)
        label = slicer.util.addVolumeFromArray(np.ones((2, 2, 2), np.uint8), None, "l", "vtkMRMLLabelMapVolumeNode")
        label.CreateDefaultDisplayNodes()
        label.GetDisplayNode().SetAndObserveColorNodeID(colors.GetID())
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
        self.assertTrue(slicer.modules.segmentations.logic().ImportLabelmapToSegmentationNode(label, node))
        self.assertEqual(node.GetSegmentation().GetNthSegment(0).GetName(), "Hippokampus ü")

    def test_items_of_the_subject_hierarchy_come_and_go(self) -> None:
        volume = make_volume()
        item = self.items.GetItemByDataNode(volume)
        self.assertTrue(item)
        self.assertEqual(self.items.GetItemParent(item), self.items.GetSceneItemID())
        hidden = slicer.vtkMRMLScalarVolumeNode()
        hidden.SetHideFromEditors(True)
        slicer.mrmlScene.AddNode(hidden)
        self.assertFalse(self.items.GetItemByDataNode(hidden))
        slicer.mrmlScene.RemoveNode(volume)
        self.assertFalse(self.items.GetItemByDataNode(volume))

    def segments_listed(self, node: Any) -> list[str]:
        children = vtk.vtkIdList()
        self.items.GetItemChildren(self.items.GetItemByDataNode(node), children)
        return [self.items.GetItemName(children.GetId(number)) for number in range(children.GetNumberOfIds())]

    def test_items_of_segments_come_and_go_with_events_of_the_segmentation(self) -> None:
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
        node.CreateDefaultDisplayNodes()
        segmentation = node.GetSegmentation()
        first = segmentation.AddEmptySegment("", "海馬")
        segmentation.AddEmptySegment("", "b")
        self.assertEqual(self.segments_listed(node), ["海馬", "b"])
        segmentation.RemoveSegment(first)
        segmentation.GetNthSegment(0).SetName("c")
        self.assertEqual(self.segments_listed(node), ["c"])
        other = slicer.vtkSegmentation()
        other.AddEmptySegment("", "d")
        node.SetAndObserveSegmentation(other)
        self.assertEqual(self.segments_listed(node), ["c"])
        other.InvokeEvent(other.SegmentModified)
        self.assertEqual(self.segments_listed(node), ["d"])

    def test_closing_the_scene_is_heard_and_leaves_nothing(self) -> None:
        heard: list[str] = []
        scene = slicer.mrmlScene
        tags = [
            scene.AddObserver(event, lambda _o, e: heard.append(e))
            for event in (scene.StartCloseEvent, scene.EndCloseEvent)
        ]
        make_volume()
        scene.Clear(0)
        for tag in tags:
            scene.RemoveObserver(tag)
        self.assertEqual(len(heard), 2)
        self.assertEqual(scene.GetNumberOfNodesByClass("vtkMRMLVolumeNode"), 0)
        items = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
        self.assertEqual(items.GetNumberOfItems(), 0)

    def test_scene_bundle_keeps_the_study(self) -> None:
        volume = make_volume()
        study = self.items.CreateStudyItem(self.items.GetSceneItemID(), "Studie ü")
        self.items.SetItemParent(self.items.GetItemByDataNode(volume), study)
        parameters = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScriptedModuleNode", "P")
        parameters.SetParameter("key", "頭")
        parameters.SetNodeReferenceID("in", volume.GetID())
        file = str(self.folder / "Szene 頭.mrb")
        self.assertTrue(slicer.util.saveScene(file, {}))
        slicer.mrmlScene.Clear(0)
        slicer.util.loadScene(file, {})
        volume = slicer.util.getNode("Schädel 頭部")
        items = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
        self.assertEqual(items.GetItemName(items.GetItemParent(items.GetItemByDataNode(volume))), "Studie ü")
        parameters = slicer.util.getNode("P")
        self.assertEqual(parameters.GetParameter("key"), "頭")
        self.assertEqual(parameters.GetNodeReference("in").GetID(), volume.GetID())
        self.assertEqual(slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSubjectHierarchyNode"), 1)

    def test_colors_and_terminologies(self) -> None:
        colors = slicer.mrmlScene.GetNodeByID(slicer.modules.colors.logic().GetDefaultLabelMapColorNodeID())
        self.assertEqual(colors.GetColorName(1), "tissue 1")
        names: list[str] = []
        slicer.modules.terminologies.logic().GetLoadedTerminologyNames(names)
        self.assertTrue(names)

    def test_tables_and_charts(self) -> None:
        chart = slicer.util.plot(np.arange(6.0).reshape(3, 2), 0, show=False)
        self.assertEqual(chart.GetNumberOfPlotSeriesNodes(), 1)

    def test_python_slicer_is_this_python(self) -> None:
        program = shutil.which("PythonSlicer")
        self.assertTrue(program)
        run = subprocess.run(
            [str(program), "-c", "import sys, SimpleITK; print(sys.prefix)"], capture_output=True, text=True, check=True
        )
        self.assertEqual(run.stdout.strip(), sys.prefix)

    def test_what_only_the_wheel_offers_is_not_there(self) -> None:
        with self.assertRaises(AttributeError):
            slicer.addVolumeFromArray  # noqa: B018
        with self.assertRaises(AttributeError):
            slicer.modules.dicom  # noqa: B018

    def test_without_a_main_window_there_is_no_layout(self) -> None:
        self.assertIsNone(slicer.app.layoutManager())
        self.assertIsNone(slicer.util.mainWindow())
        self.assertTrue(os.path.isdir(slicer.app.temporaryPath))
