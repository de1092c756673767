from __future__ import annotations

import json
import sys
import unittest
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import SimpleITK as sitk
import slicer
import vtk
from vtk.util.numpy_support import vtk_to_numpy

sys.path.insert(0, str(Path(__file__).resolve().parent))

from scenes import (
    LIVER,
    SIZE,
    SceneTest,
    add_bent_transform,
    add_labelmap,
    add_linear_transform,
    add_segmentation,
    add_study,
    add_volume,
    hierarchy,
    matrix_of,
    oblique,
    put_into_study,
    straight,
    world_points,
)

from TCurLoraSegmentLib.errors import UserError
from TCurLoraSegmentLib.scene_cases import RESULT_ATTRIBUTE
from TCurLoraSegmentLib.scene_export import export_labels, export_volume
from TCurLoraSegmentLib.scene_import import Placement, capture, import_segmentation, import_uncertainty
from TCurLoraSegmentLib.self_test import foreign

STRUCTURES = [
    {"name": "Leber ü", "value": 2, "color": [0.9, 0.1, 0.2], "terminology": LIVER},
    {"name": "海馬", "value": 300},
    {"name": "nie gefunden", "value": 7, "color": [0.0, 1.0, 0.0]},
]
NAME = "T1 hippocampus Standort Ä"


class ImportTest(SceneTest):
    def setUp(self):
        super().setUp()
        self.truth = np.zeros(SIZE[::-1], np.uint16)
        self.truth[3:7, 4:9, 5:8] = 2
        self.truth[9:12, 2:6, 3:15] = 300

    def result(self, volume, header=True, file="labels.seg.nrrd", voxels=None) -> Path:
        """What the engine writes for a scan: labels on exactly its grid."""
        scan = self.folder / "scan.nrrd"
        export_volume(volume, scan)
        image = sitk.GetImageFromArray(self.truth if voxels is None else voxels)
        image.CopyInformation(sitk.ReadImage(str(scan)))
        if header:
            for number, one in enumerate(STRUCTURES):
                fields = {"ID": f"Segment_{one['value']}", "Name": one["name"], "LabelValue": str(one["value"])}
                fields |= {"Layer": "0", "Extent": "0 23 0 19 0 15"}
                if "color" in one:
                    fields["Color"] = " ".join(map(str, one["color"]))
                if "terminology" in one:
                    fields["Tags"] = f"Segmentation.Status:inprogress|TerminologyEntry:{one['terminology']}|"
                for key, text in fields.items():
                    image.SetMetaData(f"Segment{number}_{key}", text)
        path = self.folder / file
        sitk.WriteImage(image, str(path))
        return path

    def segments(self, node) -> dict:
        segmentation = node.GetSegmentation()
        return {segmentation.GetSegment(s).GetName(): segmentation.GetSegment(s) for s in segmentation.GetSegmentIDs()}

    def terminology(self, segment) -> str:
        tag = vtk.reference("")
        segment.GetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), tag)
        return tag.get()

    def assertResult(self, node, matrix):  # noqa: N802
        """The node holds the truth by name, on the grid of the scan to 1e-4 mm."""
        for name, value in (("Leber ü", 2), ("海馬", 300)):
            if node.IsA("vtkMRMLLabelMapVolumeNode"):
                found = np.argwhere(slicer.util.arrayFromVolume(node) == value)[:, ::-1]
                own = matrix_of(node)
            else:
                segment = self.segments(node)[name]
                image = segment.GetRepresentation("Binary labelmap")
                to_ras = vtk.vtkMatrix4x4()
                image.GetImageToWorldMatrix(to_ras)
                own = slicer.util.arrayFromVTKMatrix(to_ras)
                voxels = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(image.GetDimensions()[::-1])
                found = np.argwhere(voxels == segment.GetLabelValue())[:, ::-1] + image.GetExtent()[::2]
            expected = np.argwhere(self.truth == value)[:, ::-1]
            self.assertEqual(len(found), len(expected))
            here, there = (p @ m[:3, :3].T + m[:3, 3] for m, p in ((own, found), (matrix, expected)))
            # Slicer may count the voxels from another corner when it loads them again.
            gaps = np.linalg.norm(here[:, None] - there, axis=2)
            self.assertLess(max(gaps.min(axis=0).max(), gaps.min(axis=1).max()), 1e-4)

    def listed(self, node) -> list[str]:
        """The segments that the Data module shows under the node."""
        tree, children = hierarchy(), vtk.vtkIdList()
        tree.GetItemChildren(tree.GetItemByDataNode(node), children)
        return [tree.GetItemName(children.GetId(number)) for number in range(children.GetNumberOfIds())]

    def node_ids(self) -> set:
        scene = slicer.mrmlScene
        return {scene.GetNthNode(n).GetID() for n in range(scene.GetNumberOfNodes())}


class ImportSegmentationTest(ImportTest):
    def test_segments_lie_on_the_scan_with_names_colors_and_terminology(self):
        for matrix in (straight(), oblique(), oblique(left_handed=True)):
            volume = add_volume("T1", matrix)
            imported = import_segmentation(self.result(volume), capture(volume), STRUCTURES, NAME)
            node = imported.node
            self.assertEqual(imported.warnings, ())
            self.assertEqual(list(self.segments(node)), ["Leber ü", "海馬", "nie gefunden"])
            self.assertEqual(self.listed(node), ["Leber ü", "海馬", "nie gefunden"])
            self.assertResult(node, matrix)
            liver = self.segments(node)["Leber ü"]
            np.testing.assert_allclose(liver.GetColor(), (0.9, 0.1, 0.2))
            self.assertEqual(self.terminology(liver), LIVER)
            self.assertEqual(node.GetNodeReferenceID(node.GetReferenceImageGeometryReferenceRole()), volume.GetID())
            display = node.GetDisplayNode()
            self.assertTrue(display.GetVisibility() and display.GetVisibility2DOutline())
            self.assertAlmostEqual(display.GetOpacity2DFill(), 0.5)

    def test_comes_back_as_it_went_out(self):
        volume = add_volume("T1", oblique(left_handed=True))
        imported = import_segmentation(self.result(volume), capture(volume), STRUCTURES, NAME)
        again = self.folder / "again.seg.nrrd"
        export_labels(imported.node, volume, again, {"Leber ü": 2, "海馬": 300, "nie gefunden": 7})
        np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(again))), self.truth)

    def test_what_the_file_lacks_comes_from_the_structure_of_that_name(self):
        volume = add_volume()
        file = self.result(volume)
        given = [{"name": "海馬", "value": 5, "color": [0.3, 0.4, 0.5], "terminology": "a~b^c^d~e^f^g"}]
        segment = self.segments(import_segmentation(file, capture(volume), given, NAME).node)["海馬"]
        self.assertEqual((segment.GetLabelValue(), self.terminology(segment)), (300, "a~b^c^d~e^f^g"))
        np.testing.assert_allclose(segment.GetColor(), (0.3, 0.4, 0.5))

    def test_what_the_structures_lack_comes_from_the_file(self):
        volume = add_volume()
        bare = [{"name": one["name"], "value": one["value"]} for one in STRUCTURES]
        segment = self.segments(import_segmentation(self.result(volume), capture(volume), bare, NAME).node)["Leber ü"]
        self.assertEqual(self.terminology(segment), LIVER)
        np.testing.assert_allclose(segment.GetColor(), (0.9, 0.1, 0.2))

    def test_new_segments_are_drawn_on_the_grid_of_the_scan(self):
        for keep in (True, False):
            volume = add_volume("T1", oblique(left_handed=True))
            file, placement = self.result(volume), capture(volume)
            if not keep:
                slicer.mrmlScene.RemoveNode(volume)
            node = import_segmentation(file, placement, STRUCTURES, NAME).node
            matrix, extent = vtk.vtkMatrix4x4(), [0] * 6
            converter = slicer.vtkSegmentationConverter
            grid = node.GetSegmentation().GetConversionParameter(converter.GetReferenceImageGeometryParameterName())
            self.assertTrue(converter.DeserializeImageGeometry(grid, matrix, extent))
            np.testing.assert_allclose(slicer.util.arrayFromVTKMatrix(matrix), oblique(left_handed=True), atol=1e-6)
            self.assertEqual(extent, [0, 23, 0, 19, 0, 15])

    def test_file_without_names(self):
        volume = add_volume(matrix=oblique())
        for file in ("labels.nrrd", "labels.nii.gz"):
            given = STRUCTURES[:1]
            imported = import_segmentation(self.result(volume, False, file), capture(volume), given, NAME)
            self.assertEqual(list(self.segments(imported.node)), ["Leber ü", "label 300"])
            self.assertIn("300", imported.warnings[0])

    def test_3d_can_be_shown(self):
        volume = add_volume(matrix=oblique(left_handed=True))
        node = import_segmentation(self.result(volume), capture(volume), STRUCTURES, NAME).node
        self.assertTrue(node.CreateClosedSurfaceRepresentation())
        surface = vtk.vtkPolyData()
        segment_id = node.GetSegmentation().GetSegmentIdBySegmentName("Leber ü")
        node.GetClosedSurfaceRepresentation(segment_id, surface)
        expected = (oblique(left_handed=True) @ [6, 6, 4.5, 1])[:3]
        self.assertLess(np.linalg.norm(np.array(surface.GetCenter()) - expected), 0.7)

    def test_new_names_are_never_taken_ones(self):
        volume = add_volume(NAME)
        file, placement = self.result(volume), capture(volume)
        names = [import_segmentation(file, placement, STRUCTURES, NAME).node.GetName() for _ in range(2)]
        self.assertEqual(names, [f"{NAME}_1", f"{NAME}_2"])
        self.assertEqual(import_segmentation(file, placement, STRUCTURES, "frei").node.GetName(), "frei")

    def test_lies_on_the_volume_in_the_world_under_hidden_transforms(self):
        center = (oblique() @ [12, 10, 8, 1])[:3]
        for parent in (add_linear_transform(), add_bent_transform(center)):
            volume = add_volume("T1", oblique())
            volume.SetAndObserveTransformNodeID(parent.GetID())
            for as_labelmap in (False, True):
                imported = import_segmentation(
                    self.result(volume), capture(volume), STRUCTURES, NAME, as_labelmap=as_labelmap
                )
                self.assertResult(imported.node, oblique())
                np.testing.assert_allclose(
                    world_points(imported.node, oblique(), SIZE), world_points(volume, oblique(), SIZE), atol=1e-9
                )

    def test_follows_a_volume_that_was_moved_or_renamed_meanwhile(self):
        volume = add_volume("T1", oblique())
        file, placement = self.result(volume), capture(volume)
        parent = add_linear_transform()
        volume.SetAndObserveTransformNodeID(parent.GetID())
        volume.SetName("anders")
        imported = import_segmentation(file, placement, STRUCTURES, NAME)
        self.assertEqual(imported.warnings, ())
        self.assertEqual(imported.node.GetTransformNodeID(), parent.GetID())

    def test_goes_into_the_study_of_the_volume(self):
        volume = add_volume("T1")
        study = add_study()
        put_into_study(volume, study)
        file, placement = self.result(volume), capture(volume)
        for as_labelmap in (False, True):
            node = import_segmentation(file, placement, STRUCTURES, NAME, as_labelmap=as_labelmap).node
            self.assertEqual(hierarchy().GetItemParent(hierarchy().GetItemByDataNode(node)), study)
        node = import_uncertainty(self.result(volume), placement, "u").node
        self.assertEqual(hierarchy().GetItemParent(hierarchy().GetItemByDataNode(node)), study)

    def test_volume_deleted_meanwhile(self):
        parent, study = add_linear_transform(hidden=False), add_study()
        volume = add_volume("T1", oblique())
        volume.SetAndObserveTransformNodeID(parent.GetID())
        put_into_study(volume, study)
        file, placement = self.result(volume), capture(volume)
        slicer.mrmlScene.RemoveNode(volume)
        imported = import_segmentation(file, placement, STRUCTURES, NAME)
        self.assertEqual(len(imported.warnings), 1)
        self.assertIn("'T1' is no longer in the scene", imported.warnings[0])
        self.assertResult(imported.node, oblique())
        self.assertEqual(imported.node.GetTransformNodeID(), parent.GetID())
        self.assertEqual(hierarchy().GetItemParent(hierarchy().GetItemByDataNode(imported.node)), study)

    def test_scene_closed_meanwhile(self):
        parent, study = add_linear_transform(hidden=False), add_study()
        volume = add_volume("T1", oblique())
        volume.SetAndObserveTransformNodeID(parent.GetID())
        put_into_study(volume, study)
        file, placement = self.result(volume), capture(volume)
        slicer.mrmlScene.Clear(0)
        # Another patient, whose nodes have the same IDs.
        other = add_volume("T2", straight())
        add_linear_transform("anderer", hidden=False)
        add_study("P2")
        self.assertEqual(other.GetID(), placement.volume_id)
        imported = import_segmentation(file, placement, STRUCTURES, NAME)
        self.assertResult(imported.node, oblique())
        self.assertIsNone(imported.node.GetTransformNodeID())
        self.assertIsNone(imported.node.GetNodeReferenceID(imported.node.GetReferenceImageGeometryReferenceRole()))
        tree = hierarchy()
        self.assertEqual(tree.GetItemParent(tree.GetItemByDataNode(imported.node)), tree.GetSceneItemID())
        self.assertIn("'T1' is no longer in the scene", imported.warnings[0])
        self.assertIn("transform 'moved' is gone", imported.warnings[1])

    def test_branch_of_another_name_is_not_the_study(self):
        volume = add_volume("T1", oblique())
        file, placement = self.result(volume), capture(volume)
        other = add_study("P2", "other study")
        slicer.mrmlScene.RemoveNode(volume)
        tree = hierarchy()
        for name, parent in (("Study 1", tree.GetSceneItemID()), ("other study", other)):
            there = replace(placement, parent_item=other, parent_name=name)
            node = import_segmentation(file, there, STRUCTURES, NAME).node
            self.assertEqual(tree.GetItemParent(tree.GetItemByDataNode(node)), parent)

    def test_volume_changed_meanwhile(self):
        volume = add_volume("T1", oblique())
        file, placement = self.result(volume), capture(volume)
        volume.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(straight()))
        imported = import_segmentation(file, placement, STRUCTURES, NAME)
        self.assertIn("'T1' was changed meanwhile", imported.warnings[0])
        self.assertResult(imported.node, oblique())

    def test_volume_loaded_again_under_another_id(self):
        volume = add_volume("T1", oblique())
        file, placement = self.result(volume), capture(volume)
        slicer.mrmlScene.RemoveNode(volume)
        add_volume("andere", straight())
        again = add_volume("T1", oblique())
        self.assertNotEqual(again.GetID(), placement.volume_id)
        imported = import_segmentation(file, placement, STRUCTURES, NAME)
        self.assertEqual(imported.warnings, ())
        self.assertEqual(
            imported.node.GetNodeReferenceID(imported.node.GetReferenceImageGeometryReferenceRole()), again.GetID()
        )

    def test_left_handed_volume_from_a_bundle_is_still_the_volume(self):
        volume = add_volume("T1", oblique(left_handed=True))
        file, placement = self.result(volume), capture(volume)
        bundle = self.folder / "scene.mrb"
        slicer.util.saveScene(str(bundle), {})
        slicer.mrmlScene.Clear(0)
        slicer.util.loadScene(str(bundle), {})
        imported = import_segmentation(file, placement, STRUCTURES, NAME)
        self.assertEqual(imported.warnings, ())
        self.assertResult(imported.node, oblique(left_handed=True))

    def test_placement_survives_json(self):
        volume = add_volume("T1 ü", oblique())
        volume.SetAndObserveTransformNodeID(add_linear_transform().GetID())
        put_into_study(volume, add_study())
        placement = self.assertSceneUntouched(lambda: capture(volume))
        self.assertEqual(Placement.from_dict(json.loads(json.dumps(placement.to_dict()))), placement)

    def test_refuses_a_result_of_another_grid_and_leaves_the_scene_alone(self):
        volume = add_volume("T1", oblique())
        placement = capture(volume)
        shifted = oblique()
        shifted[0, 3] += 2e-4
        files = [
            (self.result(add_volume("andere", shifted), file="shifted.seg.nrrd"), "0.0002 mm beside"),
            (self.folder / "fehlt.seg.nrrd", "no result"),
        ]
        small = add_volume("klein", oblique(), (24, 20, 15))
        files.append((self.result(small, voxels=self.truth[:15], file="small.seg.nrrd"), "24x20x15 voxels instead of"))
        damaged = self.folder / "damaged.seg.nrrd"
        damaged.write_bytes(self.result(volume).read_bytes()[:300])
        files.append((damaged, "cannot be read"))
        halves = self.truth.astype(np.float32) / 4
        files.append((self.result(volume, voxels=halves, file="halves.nrrd"), "no label numbers"))
        for file, words in files:
            with self.subTest(words), self.assertRaisesRegex(UserError, words):
                self.assertSceneUntouched(lambda: import_segmentation(file, placement, STRUCTURES, NAME))  # noqa: B023
        nearly = oblique()
        nearly[0, 3] += 5e-5
        file = self.result(add_volume("fast", nearly))
        self.assertResult(import_segmentation(file, placement, STRUCTURES, NAME).node, oblique())

    def test_nothing_is_left_when_something_fails_half_way(self):
        volume = add_volume("T1", oblique())
        file, placement = self.result(volume), capture(volume)
        before = self.node_ids()
        for as_labelmap in (False, True):
            with (
                mock.patch("TCurLoraSegmentLib.scene_import._place", side_effect=RuntimeError("half way")),
                self.assertRaisesRegex(RuntimeError, "half way"),
            ):
                import_segmentation(file, placement, STRUCTURES, NAME, as_labelmap=as_labelmap)
            self.assertEqual(self.node_ids(), before)

    def test_only_the_result_is_added(self):
        volume = add_volume("T1", oblique())
        bystander = add_segmentation("labels", oblique(), {"Leber ü": self.truth == 2}, volume)
        file, placement = self.result(volume), capture(volume)
        before, changed = self.node_ids(), (volume.GetMTime(), bystander.GetMTime())
        node = import_segmentation(file, placement, STRUCTURES, NAME).node
        self.assertEqual(self.node_ids() - before, {node.GetID(), node.GetDisplayNodeID()})
        self.assertEqual((volume.GetMTime(), bystander.GetMTime()), changed)
        self.assertEqual(node.GetAttribute(RESULT_ATTRIBUTE), "T1")

    def test_survives_a_scene_bundle(self):
        parent = add_linear_transform()
        for as_labelmap in (False, True):
            slicer.mrmlScene.Clear(0)
            parent = add_linear_transform("moved", hidden=False)
            volume = add_volume("T1", oblique(left_handed=True))
            volume.SetAndObserveTransformNodeID(parent.GetID())
            put_into_study(volume, add_study())
            import_segmentation(self.result(volume), capture(volume), STRUCTURES, NAME, as_labelmap=as_labelmap)
            bundle = self.folder / foreign("Szene ü.mrb", "scene.mrb")
            self.assertTrue(slicer.util.saveScene(str(bundle), {}))
            slicer.mrmlScene.Clear(0)
            slicer.util.loadScene(str(bundle), {})
            node = slicer.util.getNode(NAME)
            self.assertEqual(node.GetParentTransformNode().GetName(), "moved")
            self.assertEqual(node.GetAttribute(RESULT_ATTRIBUTE), "T1")
            tree = hierarchy()
            study = tree.GetItemParent(tree.GetItemByDataNode(node))
            self.assertEqual(tree.GetItemName(study), "Study 1")
            self.assertResult(node, oblique(left_handed=True))
            if as_labelmap:
                colors = node.GetDisplayNode().GetColorNode()
                self.assertEqual([colors.GetColorName(v) for v in (2, 300)], ["Leber ü", "海馬"])
            else:
                self.assertEqual(self.terminology(self.segments(node)["Leber ü"]), LIVER)
                np.testing.assert_allclose(self.segments(node)["Leber ü"].GetColor(), (0.9, 0.1, 0.2), atol=1e-6)


class OutputNodeTest(ImportTest):
    def test_segmentation_keeps_id_name_display_and_place(self):
        volume = add_volume("T1", oblique())
        old = add_segmentation(
            "von Hand", straight(), {"weg": self.truth > 0, "leber Ü": self.truth == 300}, terminology={"weg": LIVER}
        )
        folder = hierarchy().CreateFolderItem(hierarchy().GetSceneItemID(), "mein Ordner")
        put_into_study(old, folder)
        put_into_study(volume, add_study())
        display = old.GetDisplayNode()
        display.SetOpacity2DFill(0.2)
        kept_id = old.GetSegmentation().GetSegmentIdBySegmentName("leber Ü")
        color = self.segments(old)["leber Ü"].GetColor()
        display.SetSegmentOpacity3D(kept_id, 0.3)
        display.SetSegmentVisibility(kept_id, False)
        file, placement, before = self.result(volume), capture(volume), self.node_ids()
        identity = (old.GetID(), old.GetName(), old.GetDisplayNodeID())
        imported = import_segmentation(file, placement, STRUCTURES, NAME, output_node=old, as_labelmap=True)
        self.assertIs(imported.node, old)
        self.assertEqual(self.node_ids(), before)
        self.assertEqual((old.GetID(), old.GetName(), old.GetDisplayNodeID()), identity)
        self.assertEqual(list(self.segments(old)), ["Leber ü", "海馬", "nie gefunden"])
        self.assertCountEqual(self.listed(old), ["Leber ü", "海馬", "nie gefunden"])
        self.assertResult(old, oblique())
        self.assertEqual(old.GetSegmentation().GetSegmentIdBySegmentName("Leber ü"), kept_id)
        self.assertAlmostEqual(display.GetOpacity2DFill(), 0.2)
        self.assertAlmostEqual(display.GetSegmentOpacity3D(kept_id), 0.3)
        self.assertFalse(display.GetSegmentVisibility(kept_id))
        np.testing.assert_allclose(self.segments(old)["Leber ü"].GetColor(), color)
        self.assertEqual(hierarchy().GetItemParent(hierarchy().GetItemByDataNode(old)), folder)
        # The new segments have IDs of their own and can be edited and shown.
        self.assertEqual(old.GetSegmentation().GetNumberOfSegments(), len(set(old.GetSegmentation().GetSegmentIDs())))
        self.assertTrue(old.GetSegmentation().GetSegmentIDs())

    def test_segmentation_that_is_shown_in_3d_stays_shown(self):
        volume = add_volume("T1", oblique())
        old = add_segmentation("alt", straight(), {"Leber ü": self.truth == 300})
        old.GetSegmentation().SetConversionParameter("Smoothing factor", "0.25")
        old.CreateClosedSurfaceRepresentation()
        import_segmentation(self.result(volume), capture(volume), STRUCTURES, NAME, output_node=old)
        surface = vtk.vtkPolyData()
        segment_id = old.GetSegmentation().GetSegmentIdBySegmentName("Leber ü")
        self.assertTrue(old.GetClosedSurfaceRepresentation(segment_id, surface))
        self.assertEqual(old.GetSegmentation().GetConversionParameter("Smoothing factor"), "0.25")
        expected = (oblique() @ [6, 6, 4.5, 1])[:3]
        self.assertLess(np.linalg.norm(np.array(surface.GetCenter()) - expected), 0.7)

    def test_segmentation_moves_under_the_transform_of_the_volume(self):
        volume = add_volume("T1", oblique())
        volume.SetAndObserveTransformNodeID(add_linear_transform("a").GetID())
        old = add_segmentation("alt", straight(), {"A": self.truth > 0})
        old.SetAndObserveTransformNodeID(add_linear_transform("b").GetID())
        import_segmentation(self.result(volume), capture(volume), STRUCTURES, NAME, output_node=old)
        self.assertEqual(old.GetTransformNodeID(), volume.GetTransformNodeID())

    def test_labelmap_keeps_a_table_that_names_the_structures(self):
        volume = add_volume("T1", oblique())
        names = {one["value"]: one["name"] for one in STRUCTURES}
        old = add_labelmap("Karte", np.ones((4, 5, 6), np.uint8), straight(), names)
        own_colors = old.GetDisplayNode().GetColorNodeID()
        before = self.node_ids()
        imported = import_segmentation(self.result(volume), capture(volume), STRUCTURES, NAME, output_node=old)
        self.assertIs(imported.node, old)
        self.assertEqual(self.node_ids(), before)
        self.assertEqual(old.GetDisplayNode().GetColorNodeID(), own_colors)
        self.assertResult(old, oblique())

    def test_labelmap_gets_a_table_when_its_own_has_other_names(self):
        volume = add_volume("T1", oblique())
        old = add_labelmap("Karte", np.ones((4, 5, 6), np.uint8), straight(), {1: "Herz", 2: "Niere"})
        own = old.GetDisplayNode().GetColorNode()
        file, placement = self.result(volume), capture(volume)
        before = self.node_ids()
        for _run in range(2):  # the second run must not leave another table behind
            import_segmentation(file, placement, STRUCTURES, NAME, output_node=old)
            self.assertEqual(len(self.node_ids() - before), 1)
        self.assertEqual([own.GetColorName(1), own.GetColorName(2)], ["Herz", "Niere"])
        colors = old.GetDisplayNode().GetColorNode()
        self.assertEqual([colors.GetColorName(v) for v in (2, 300, 7)], ["Leber ü", "海馬", "nie gefunden"])
        rgba = [0.0] * 4
        colors.GetColor(2, rgba)
        np.testing.assert_allclose(rgba, (0.9, 0.1, 0.2, 1.0), atol=1 / 255)
        if hasattr(colors, "GetTerminologyAsString"):
            self.assertIn("10200004", colors.GetTerminologyAsString(2))

    def test_output_deleted_meanwhile(self):
        volume = add_volume("T1", oblique())
        old = add_segmentation("alt", straight(), {"A": self.truth > 0})
        file, placement = self.result(volume), capture(volume)
        slicer.mrmlScene.RemoveNode(old)
        imported = import_segmentation(file, placement, STRUCTURES, NAME, output_node=old)
        self.assertIsNot(imported.node, old)
        self.assertEqual(imported.node.GetName(), NAME)
        self.assertIn("chosen output is no longer in the scene", imported.warnings[0])

    def test_refuses_a_node_that_can_hold_no_labels(self):
        volume = add_volume("T1", oblique())
        file, placement = self.result(volume), capture(volume)
        with self.assertRaisesRegex(UserError, "'T1' can hold no labels"):
            self.assertSceneUntouched(lambda: import_segmentation(file, placement, STRUCTURES, NAME, volume))


class UncertaintyTest(ImportTest):
    def test_lies_on_the_scan_and_is_not_pushed_into_the_views(self):
        values = np.random.default_rng(0).random(SIZE[::-1]).astype(np.float32)
        logic = slicer.app.applicationLogic().GetSelectionNode()
        for matrix in (oblique(), oblique(left_handed=True)):
            volume = add_volume("T1", matrix)
            volume.SetAndObserveTransformNodeID(add_linear_transform().GetID())
            shown = logic.GetActiveVolumeID()
            file = self.result(volume, header=False, file="u.nii.gz", voxels=values)
            imported = import_uncertainty(file, capture(volume), "T1 Unsicherheit")
            node = imported.node
            np.testing.assert_allclose(slicer.util.arrayFromVolume(node), values)
            np.testing.assert_array_equal(matrix_of(node), matrix_of(volume))
            self.assertEqual(node.GetTransformNodeID(), volume.GetTransformNodeID())
            display = node.GetDisplayNode()
            self.assertEqual((display.GetWindowLevelMin(), display.GetWindowLevelMax()), (0.0, 1.0))
            self.assertNotEqual(display.GetColorNodeID(), "vtkMRMLColorTableNodeGrey")
            self.assertEqual(logic.GetActiveVolumeID(), shown)
            # Nothing to segment, and no case.
            self.assertTrue(node.IsA("vtkMRMLScalarVolumeNode"))

    def test_axes_that_a_nifti_file_cannot_hold(self):
        # Axes that are askew by less than a thousandth are common in DICOM; NIfTI sets them straight.
        matrix = oblique()
        matrix[:3, 0] += 5e-4 * matrix[:3, 1]
        volume = add_volume("T1", matrix, (240, 200, 16))
        voxels = np.zeros((16, 200, 240), np.float32)
        file = self.result(volume, header=False, file="u.nii.gz", voxels=voxels)
        node = import_uncertainty(file, capture(volume), "u").node
        np.testing.assert_allclose(matrix_of(node), matrix, atol=1e-12)

    def test_refuses_another_grid(self):
        volume = add_volume("T1", oblique())
        file = self.result(add_volume("andere", straight()), header=False, file="u.nii.gz")
        with self.assertRaisesRegex(UserError, "does not fit the volume 'T1'"):
            placement = capture(volume)
            self.assertSceneUntouched(lambda: import_uncertainty(file, placement, "u"))


if __name__ == "__main__":
    unittest.main()
