from __future__ import annotations

import sys
import unittest
from pathlib import Path
from unittest import mock

import numpy as np
import SimpleITK as sitk
import slicer
import vtk

sys.path.insert(0, str(Path(__file__).resolve().parent))

from scenes import (
    LEFT_KIDNEY,
    LIVER,
    RIGHT_KIDNEY,
    SIZE,
    TISSUE,
    SceneTest,
    add_bent_transform,
    add_labelmap,
    add_linear_transform,
    add_segmentation,
    add_volume,
    ball,
    matrix_of,
    oblique,
    permuted,
    straight,
    world_points,
)

from TCurLoraSegmentLib.errors import UserError
from TCurLoraSegmentLib.scene_cases import CasePair
from TCurLoraSegmentLib.scene_export import export_cases, export_labels, export_volume, volume_problem

GRIDS = {
    "straight": straight(),
    "permuted": permuted(),
    "oblique": oblique(),
    "left-handed": oblique(left_handed=True),
}


class ExportVolumeTest(SceneTest):
    def test_every_voxel_is_where_it_was(self):
        for name, matrix in GRIDS.items():
            with self.subTest(name):
                volume = add_volume(f"Kopf ü 海馬 {name}", matrix)
                file = self.folder / "scan.nrrd"
                geometry = self.assertSceneUntouched(lambda: export_volume(volume, file))  # noqa: B023
                image = sitk.ReadImage(str(file))
                np.testing.assert_array_equal(sitk.GetArrayFromImage(image), slicer.util.arrayFromVolume(volume))
                for index in ((0, 0, 0), (23, 0, 0), (0, 19, 0), (0, 0, 15), (23, 19, 15)):
                    left, posterior, superior = image.TransformIndexToPhysicalPoint(index)
                    expected = matrix @ [*index, 1]
                    np.testing.assert_allclose((-left, -posterior, superior), expected[:3], atol=1e-6)
                np.testing.assert_allclose(geometry.matrix, matrix)
                self.assertEqual(geometry.size, SIZE)

    def test_keeps_the_values_of_every_type(self):
        for dtype in (np.int8, np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64):
            with self.subTest(dtype):
                volume = add_volume(dtype=dtype)
                slicer.util.arrayFromVolume(volume)[0, 0, 0] = np.iinfo(dtype).min if dtype(0.5) == 0 else -0.125
                export_volume(volume, self.folder / "scan.nrrd")
                voxels = sitk.GetArrayFromImage(sitk.ReadImage(str(self.folder / "scan.nrrd")))
                self.assertEqual(voxels.dtype, dtype)
                np.testing.assert_array_equal(voxels, slicer.util.arrayFromVolume(volume))

    def test_leaves_out_parent_transforms(self):
        volume = add_volume(matrix=oblique())
        volume.SetAndObserveTransformNodeID(add_linear_transform().GetID())
        self.assertSceneUntouched(lambda: export_volume(volume, self.folder / "scan.nrrd"))
        image = sitk.ReadImage(str(self.folder / "scan.nrrd"))
        np.testing.assert_allclose(image.GetOrigin(), oblique()[:3, 3] * (-1, -1, 1), atol=1e-6)

    def test_first_voxel_may_have_another_index_than_zero(self):
        volume = add_volume(matrix=oblique())
        volume.GetImageData().SetExtent(5, 28, -3, 16, 2, 17)
        geometry = export_volume(volume, self.folder / "scan.nrrd")
        expected = oblique() @ [5, -3, 2, 1]
        np.testing.assert_allclose(geometry.matrix[:3, 3], expected[:3])
        image = sitk.ReadImage(str(self.folder / "scan.nrrd"))
        np.testing.assert_allclose(image.GetOrigin(), expected[:3] * (-1, -1, 1), atol=1e-6)

    def test_keeps_what_was_there_when_writing_fails(self):
        file = self.folder / "scan.nrrd"
        file.write_text("before")
        volume = add_volume()
        # As on a full disk, which ITK does not notice.
        with mock.patch("SimpleITK.WriteImage", lambda image, path, **_: Path(path).write_bytes(b"NRRD")):
            self.assertRaisesRegex(UserError, "cannot be written", export_volume, volume, file)
        self.assertEqual(file.read_text(), "before")
        self.assertEqual([entry.name for entry in self.folder.iterdir()], ["scan.nrrd"])
        with self.assertRaisesRegex(UserError, "cannot be written"):
            export_volume(volume, self.folder / "missing" / "scan.nrrd")

    def test_says_that_a_folder_is_write_protected(self):
        # Permissions do not bind every account that runs tests, so the answer of the system is given here.
        with mock.patch("os.access", return_value=False), self.assertRaisesRegex(UserError, "write-protected"):
            export_volume(add_volume(), self.folder / "missing" / "scan.nrrd")

    def test_says_why_a_volume_cannot_be_used(self):
        empty = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Leer")
        colored = slicer.util.addVolumeFromArray(
            np.zeros((4, 5, 6, 3), np.uint8), name="Bunt", nodeClassName="vtkMRMLVectorVolumeNode"
        )
        sheared, flat, endless = straight(), straight(), straight()
        sheared[0, 1] = 0.3
        flat[:3, 2] = flat[:3, 1]
        endless[0, 3] = np.nan
        cases = {
            "no voxels": empty,
            "3 values in each voxel": colored,
            "sheared": add_volume("Schief", sheared),
            "no usable voxel size or orientation": add_volume("Flach", flat),
            "no usable voxel": add_volume("Endlos", endless),
            "is a label map": add_labelmap("Karte", np.ones((4, 5, 6), np.uint8), straight()),
            "is not a volume": slicer.mrmlScene.AddNewNodeByClass("vtkMRMLModelNode", "Modell"),
        }
        for words, node in cases.items():
            with self.subTest(words):
                self.assertIn(words, volume_problem(node))
                self.assertIn(f"'{node.GetName()}'", volume_problem(node))
                with self.assertRaises(UserError):
                    export_volume(node, self.folder / "scan.nrrd")
        gone = add_volume("Weg")
        slicer.mrmlScene.RemoveNode(gone)
        self.assertIn("no longer in the scene", volume_problem(gone))
        self.assertIn("no longer in the scene", volume_problem(None))
        self.assertIsNone(volume_problem(add_volume("Gut", oblique(left_handed=True))))
        self.assertEqual(list(self.folder.iterdir()), [])


class ExportLabelsTest(SceneTest):
    def exported(self, labels, volume, values):
        file = self.folder / "labels.seg.nrrd"
        self.assertSceneUntouched(lambda: export_labels(labels, volume, file, values))
        image = sitk.ReadImage(str(file))
        scan = self.folder / "scan.nrrd"
        export_volume(volume, scan)
        scan_image = sitk.ReadImage(str(scan))
        self.assertEqual(image.GetSize(), scan_image.GetSize())
        for a, b in (
            (image.GetOrigin(), scan_image.GetOrigin()),
            (image.GetSpacing(), scan_image.GetSpacing()),
            (image.GetDirection(), scan_image.GetDirection()),
        ):
            np.testing.assert_allclose(a, b, atol=1e-9)
        return sitk.GetArrayFromImage(image)

    def test_same_grid_is_copied_voxel_by_voxel(self):
        rng = np.random.default_rng(1)
        for name, matrix in GRIDS.items():
            with self.subTest(name):
                volume = add_volume(matrix=matrix)
                a = rng.random(SIZE[::-1]) < 0.3
                b = (rng.random(SIZE[::-1]) < 0.3) & ~a
                labels = add_segmentation("seg", matrix, {"A": a, "B": b}, volume)
                np.testing.assert_array_equal(self.exported(labels, volume, {"B": 7, "A": 2}), 2 * a + 7 * b)

    def test_cropped_and_overhanging_segments_lie_where_they_were_drawn(self):
        volume = add_volume(matrix=oblique())
        mask = np.random.default_rng(1).random((10, 12, 9)) < 0.5  # k, j, i
        labels = add_segmentation("seg", oblique(), {"A": mask}, volume, first=(-4, 15, 3))
        expected = np.zeros(SIZE[::-1], np.uint8)
        expected[3:13, 15:20, 0:5] = mask[:, :5, 4:]
        np.testing.assert_array_equal(self.exported(labels, volume, {"A": 1}), expected)
        # The same voxels, counted from another one.
        moved = oblique()
        moved[:, 3] = oblique() @ [3, -7, 2, 1]
        labels = add_segmentation("seg", moved, {"A": mask}, volume, first=(-7, 22, 1))
        np.testing.assert_array_equal(self.exported(labels, volume, {"A": 1}), expected)

    def test_voxels_outside_of_the_volume_are_counted(self):
        file = self.folder / "labels.seg.nrrd"
        volume = add_volume(matrix=oblique())
        mask = np.random.default_rng(1).random((10, 12, 9)) < 0.5  # k, j, i
        kept = int(mask[:, :5, 4:].sum())
        labels = add_segmentation("seg", oblique(), {"A": mask, "left out": mask}, volume, first=(-4, 15, 3))
        self.assertEqual(export_labels(labels, volume, file, {"A": 1}), mask.sum() - kept)
        inside = add_segmentation("seg", oblique(), {"A": np.ones(SIZE[::-1], bool)}, volume)
        self.assertEqual(export_labels(inside, volume, file, {"A": 1}), 0)
        # On a grid of half the size, whose voxels lie on both sides of the volume's first face.
        fine = oblique() @ np.diag([0.5, 0.5, 0.5, 1.0])
        fine[:, 3] = oblique() @ [-2.75, 4.25, 4.25, 1]
        labels = add_segmentation("seg", fine, {"A": np.ones((8, 8, 16), bool)}, volume)
        self.assertEqual(export_labels(labels, volume, file, {"A": 1}), 8 * 8 * 5)
        for node in (volume, labels):  # one bent transform above both, which changes nothing
            node.SetAndObserveTransformNodeID(add_bent_transform((0, 0, 0), name=node.GetName()).GetID())
        labels.SetAndObserveTransformNodeID(volume.GetTransformNodeID())
        self.assertEqual(export_labels(labels, volume, file, {"A": 1}), 8 * 8 * 5)

    def test_voxels_of_a_surface_outside_of_the_volume_are_counted(self):
        volume = add_volume(matrix=straight())
        source = vtk.vtkSphereSource()
        source.SetCenter(*(straight() @ [0, 10, 8, 1])[:3])  # in the middle of the volume's first face
        source.SetRadius(6)
        source.SetPhiResolution(24)
        source.SetThetaResolution(24)
        source.Update()
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Kugel")
        node.SetSourceRepresentationToClosedSurface()
        node.AddSegmentFromClosedSurfaceRepresentation(source.GetOutput(), "A", [1, 0, 0])
        half = 2 / 3 * np.pi * 6**3 / (1.25 * 1.25 * 1.5)
        lost = export_labels(node, volume, self.folder / "labels.seg.nrrd", {"A": 1})
        self.assertLess(abs(lost / half - 1), 0.25)

    def test_shared_layers_and_values_above_255(self):
        volume = add_volume()
        voxels = np.random.default_rng(1).integers(0, 3, SIZE[::-1]) * 500
        labelmap = add_labelmap("map", voxels.astype(np.int16), straight(), {500: "A", 1000: "B"})
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "seg")
        slicer.modules.segmentations.logic().ImportLabelmapToSegmentationNode(labelmap, node)
        self.assertEqual(node.GetSegmentation().GetNumberOfLayers(), 1)
        for labels in (labelmap, node):
            exported = self.exported(labels, volume, {"A": 300, "B": 70_000})
            np.testing.assert_array_equal(exported, np.select([voxels == 500, voxels == 1000], [300, 70_000]))

    def check_ball(self, volume, labels_for, margin):
        """Labels drawn as a ball in the world must be a ball in the world after export."""
        center = world_points(volume, matrix_of(volume), SIZE)[8, 10, 12]
        labels = labels_for(center)
        exported = self.exported(labels, volume, {"Kugel": 3})
        points = world_points(volume, matrix_of(volume), SIZE)
        self.assertGreater(ball(points, center, 9 - margin).sum(), 100)
        self.assertTrue((exported[ball(points, center, 9 - margin)] == 3).all())
        self.assertTrue((exported[~ball(points, center, 9 + margin)] == 0).all())
        self.assertLessEqual(set(np.unique(exported).tolist()), {0, 3})

    def drawn(self, parent=None, surface=False):
        """A segmentation on a finer grid of its own that holds a ball around a place in the world."""

        def make(center):
            node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "eigenes Gitter")
            if parent is not None:
                node.SetAndObserveTransformNodeID(parent.GetID())
            matrix = np.diag([0.8, 0.9, -1.0, 1.0])
            size = (50, 48, 46)
            local = [0.0, 0.0, 0.0]
            node.TransformPointFromWorld(list(center), local)
            matrix[:3, 3] = np.array(local) - matrix[:3, :3] @ (np.array(size) / 2)
            mask = ball(world_points(node, matrix, size), center, 9)
            first = (31, -12, 40)  # counted from a voxel that is not there
            matrix[:3, 3] -= matrix[:3, :3] @ first
            made = add_segmentation("Vorlage", matrix, {"Kugel": mask}, first=first)
            node.GetSegmentation().DeepCopy(made.GetSegmentation())
            slicer.mrmlScene.RemoveNode(made)
            if surface:
                # Its own voxels, if it were given some, would be far too coarse.
                coarse = slicer.util.vtkMatrixFromArray(np.diag([9.0, 9.0, 9.0, 1.0]))
                converter = slicer.vtkSegmentationConverter
                grid = converter.SerializeImageGeometry(coarse, [-500, 500, -500, 500, -500, 500])
                parameter = converter.GetReferenceImageGeometryParameterName()
                node.GetSegmentation().SetConversionParameter("Smoothing factor", "0.0")
                node.CreateClosedSurfaceRepresentation()
                node.GetSegmentation().SetSourceRepresentationName("Closed surface")
                node.GetSegmentation().RemoveRepresentation("Binary labelmap")
                node.GetSegmentation().SetConversionParameter(parameter, grid)
            return node

        return make

    def test_other_grid_is_resampled(self):
        for name, matrix in GRIDS.items():
            with self.subTest(name):
                self.check_ball(add_volume(matrix=matrix), self.drawn(), 1.0)

    def test_labels_follow_hidden_linear_transforms_of_both(self):
        for on_volume in (False, True):
            for on_labels in (False, True):
                for surface in (False, True):
                    with self.subTest(volume=on_volume, labels=on_labels, surface=surface):
                        volume = add_volume(matrix=oblique(left_handed=True))
                        if on_volume:
                            volume.SetAndObserveTransformNodeID(add_linear_transform("a").GetID())
                        parent = None
                        if on_labels:
                            outer = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "outer")
                            outer.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(np.diag([1, 1.2, 0.9, 1])))
                            parent = add_linear_transform("b")
                            parent.SetAndObserveTransformNodeID(outer.GetID())
                        self.check_ball(volume, self.drawn(parent, surface), 1.5)

    def test_labels_follow_hidden_bent_transforms_of_both(self):
        center = (oblique() @ [12, 10, 8, 1])[:3]
        for on_volume, on_labels in ((False, True), (True, False), (True, True)):
            for surface in (False, True):
                with self.subTest(volume=on_volume, labels=on_labels, surface=surface):
                    volume = add_volume(matrix=oblique())
                    if on_volume:
                        volume.SetAndObserveTransformNodeID(add_bent_transform(center + 2, "a").GetID())
                    parent = add_bent_transform(center, "b") if on_labels else None
                    self.check_ball(volume, self.drawn(parent, surface), 1.5)

    def test_one_bent_transform_above_both_changes_no_voxel(self):
        volume = add_volume(matrix=oblique())
        mask = np.random.default_rng(1).random(SIZE[::-1]) < 0.3
        labels = add_segmentation("seg", oblique(), {"A": mask}, volume)
        bent = add_bent_transform((oblique() @ [12, 10, 8, 1])[:3])
        inner = add_linear_transform("inner")
        inner.SetAndObserveTransformNodeID(bent.GetID())
        for node, parent in ((volume, bent), (labels, bent)):
            node.SetAndObserveTransformNodeID(parent.GetID())
        np.testing.assert_array_equal(self.exported(labels, volume, {"A": 1}), mask)
        for node in (volume, labels):
            node.SetAndObserveTransformNodeID(inner.GetID())
        np.testing.assert_array_equal(self.exported(labels, volume, {"A": 1}), mask)

    def test_a_slight_turn_is_not_taken_for_no_turn(self):
        size = (100, 100, 100)
        volume = add_volume(matrix=np.eye(4), size=size)
        mask = np.random.default_rng(1).random(size) < 0.5
        labels = add_segmentation("seg", np.eye(4), {"A": mask}, volume)
        turn = vtk.vtkTransform()
        turn.RotateWXYZ(0.9, 1, 1, 1)  # which leaves the first and the last voxel where they are
        parent = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "turned")
        parent.SetMatrixTransformToParent(turn.GetMatrix())
        labels.SetAndObserveTransformNodeID(parent.GetID())
        file = self.folder / "labels.seg.nrrd"
        export_labels(labels, volume, file, {"A": 1})
        inverse = np.linalg.inv(slicer.util.arrayFromTransformMatrix(parent))
        k, j, i = np.indices(size).reshape(3, -1)
        there = inverse[:3, :3] @ np.stack([i, j, k]) + inverse[:3, 3:]
        source = np.rint(there).astype(int)
        sure = ((source >= 0) & (source < 100) & (np.abs(there - source) < 0.49)).all(axis=0)
        exported = sitk.GetArrayFromImage(sitk.ReadImage(str(file))).ravel()
        x, y, z = source[:, sure]
        np.testing.assert_array_equal(exported[sure], mask[z, y, x])
        self.assertGreater((exported[sure] != mask.ravel()[sure]).mean(), 0.1)

    def test_labelmap_under_a_transform(self):
        volume = add_volume(matrix=oblique())
        parent = add_linear_transform()

        def make(center):
            matrix = np.diag([1.0, 1.0, 1.0, 1.0])
            local = (np.linalg.inv(slicer.util.arrayFromTransformMatrix(parent)) @ [*center, 1])[:3]
            matrix[:3, 3] = local - 20
            node = add_labelmap("map", np.zeros((40, 40, 40), np.uint16), matrix, {900: "Kugel"})
            node.SetAndObserveTransformNodeID(parent.GetID())
            slicer.util.arrayFromVolume(node)[ball(world_points(node, matrix, (40, 40, 40)), center, 9)] = 900
            return node

        self.check_ball(volume, make, 1.2)

    def test_hidden_segmentation_with_all_segments_off_counts(self):
        volume = add_volume()
        mask = np.zeros(SIZE[::-1], bool)
        mask[3:6, 4:9, 2:5] = True
        labels = add_segmentation("seg", straight(), {"A": mask}, volume)
        for node in (volume, labels):
            node.SetHideFromEditors(True)
        labels.GetDisplayNode().SetVisibility(False)
        labels.GetDisplayNode().SetAllSegmentsVisibility(False)
        np.testing.assert_array_equal(self.exported(labels, volume, {"A": 1}), mask)

    def test_empty_missing_and_unwanted_segments(self):
        volume = add_volume()
        mask = np.zeros(SIZE[::-1], bool)
        mask[3:6, 4:9, 2:5] = True
        labels = add_segmentation("seg", straight(), {"A": mask, "leer": mask & False, "weg": ~mask}, volume)
        labels.GetSegmentation().AddEmptySegment("neu", "neu")
        exported = self.exported(labels, volume, {"A": 1, "leer": 2, "neu": 3, "nirgends": 4})
        np.testing.assert_array_equal(exported, mask)
        empty = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "ohne Segmente")
        self.assertFalse(self.exported(empty, volume, {"A": 1}).any())

    def test_refuses_overlapping_structures_by_name_and_number_of_voxels(self):
        volume = add_volume()
        a, b, c = (np.zeros(SIZE[::-1], bool) for _ in range(3))
        a[2:8, 3:9, 3:9] = b[7:9, 3:9, 3:9] = c[12:14] = True
        labels = add_segmentation("Überlappung", straight(), {"Kopf": a, "Körper": b, "Schwanz": c}, volume)
        values = {"Kopf": 1, "Körper": 2, "Schwanz": 3}
        file = self.folder / "labels.seg.nrrd"
        with self.assertRaisesRegex(UserError, r"'Überlappung'.*'Kopf' and 'Körper' in 36 voxels\."):
            self.assertSceneUntouched(lambda: export_labels(labels, volume, file, values))
        self.assertFalse(file.exists())
        # Nothing to refuse where the two are one structure, or one of them is not wanted.
        np.testing.assert_array_equal(self.exported(labels, volume, {"Kopf": 1, "Körper": 1}), a | b)
        np.testing.assert_array_equal(self.exported(labels, volume, {"Körper": 2}), 2 * b)

    def test_pieces_of_one_name_are_one_structure_unless_terminology_differs(self):
        volume = add_volume()
        a, b = (np.zeros(SIZE[::-1], bool) for _ in range(2))
        a[2:5], b[8:10] = True, True
        labels = add_segmentation("seg", straight(), {"kidney 1": a, "kidney 2": b}, volume)
        first, second = (labels.GetSegmentation().GetNthSegment(n) for n in (0, 1))
        for segment, name in ((first, "Kidney"), (second, "kidney")):
            segment.SetName(name)
        np.testing.assert_array_equal(self.exported(labels, volume, {"Kidney": 1}), a | b)
        tag = slicer.vtkSegment.GetTerminologyEntryTagName()
        for segment, entry in ((first, LEFT_KIDNEY), (second, RIGHT_KIDNEY)):
            segment.SetTag(tag, entry)
        with self.assertRaisesRegex(UserError, "'seg' has two segments 'kidney' whose terminology differs"):
            export_labels(labels, volume, self.folder / "labels.seg.nrrd", {"Kidney": 1})

    def test_refuses_labels_that_lie_beside_the_volume(self):
        volume = add_volume("T1")
        mask = np.ones(SIZE[::-1], bool)
        away = straight()
        away[0, 3] += 500
        for labels in (
            add_segmentation("fort", away, {"A": mask}),
            add_labelmap("fort", mask.astype(np.uint8), away, {1: "A"}),
        ):
            with self.assertRaisesRegex(UserError, "'fort' lies outside of the volume 'T1'"):
                export_labels(labels, volume, self.folder / "labels.seg.nrrd", {"A": 1})

    def test_refuses_what_holds_no_labels(self):
        volume = add_volume()
        halves = add_labelmap("halb", np.full(SIZE[::-1], 0.5, np.float32), straight())
        negative = add_labelmap("minus", np.full(SIZE[::-1], -1, np.int16), straight())
        for node in (halves, negative):
            with self.assertRaisesRegex(UserError, f"'{node.GetName()}' holds values that are not label numbers"):
                export_labels(node, volume, self.folder / "labels.seg.nrrd", {"A": 1})
        for node in (None, volume):
            with self.assertRaisesRegex(UserError, "segmentation"):
                export_labels(node, volume, self.folder / "labels.seg.nrrd", {"A": 1})
        gone = add_segmentation("weg", straight(), {"A": np.ones(SIZE[::-1])})
        slicer.mrmlScene.RemoveNode(gone)
        with self.assertRaisesRegex(UserError, "no longer in the scene"):
            export_labels(gone, volume, self.folder / "labels.seg.nrrd", {"A": 1})

    def test_refuses_a_transform_without_inverse(self):
        volume = add_volume()
        labels = add_segmentation("seg", straight(), {"A": np.ones(SIZE[::-1])}, volume)
        flat = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "flach")
        flat.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(np.diag([1.0, 1.0, 0.0, 1.0])))
        labels.SetAndObserveTransformNodeID(flat.GetID())
        with self.assertRaisesRegex(UserError, "cannot be inverted"):
            export_labels(labels, volume, self.folder / "labels.seg.nrrd", {"A": 1})

    def test_file_opens_in_slicer_with_names_colors_and_terminology(self):
        volume = add_volume(matrix=oblique(left_handed=True))
        a, b = (np.zeros(SIZE[::-1], bool) for _ in range(2))
        a[2:5], b[8:10, :, 3:7] = True, True
        labels = add_segmentation("seg", matrix_of(volume), {"Leber ü": a, "海馬 2": b}, volume, {"Leber ü": LIVER})
        self.exported(labels, volume, {"Leber ü": 4, "海馬 2": 9})
        loaded = slicer.util.loadSegmentation(str(self.folder / "labels.seg.nrrd"), {})
        for name, mask in (("Leber ü", a), ("海馬 2", b)):
            segment_id = loaded.GetSegmentation().GetSegmentIdBySegmentName(name)
            segment = loaded.GetSegmentation().GetSegment(segment_id)
            own = labels.GetSegmentation().GetSegment(labels.GetSegmentation().GetSegmentIdBySegmentName(name))
            np.testing.assert_allclose(segment.GetColor(), own.GetColor())
            found = slicer.util.arrayFromSegmentBinaryLabelmap(loaded, segment_id, volume)
            np.testing.assert_array_equal(found != 0, mask)
            tag = vtk.reference("")
            segment.GetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), tag)
            self.assertEqual(tag.get() == LIVER, name == "Leber ü")


class ExportCasesTest(SceneTest):
    def test_no_cases(self):
        with self.assertRaisesRegex(UserError, "no labeled cases"):
            export_cases([], self.folder)

    def test_a_case_that_fails_does_not_stop_the_others(self):
        mask = np.zeros(SIZE[::-1], bool)
        mask[3:6] = True
        pairs = []
        for name in ("erster", "zweiter", "dritter", "vierter"):
            volume = add_volume(name)
            labels = add_segmentation(f"{name} seg", straight(), {"A": mask, "B": mask[::-1]}, volume)
            pairs.append(CasePair(volume.GetID(), labels.GetID()))
        overlapping = slicer.mrmlScene.GetNodeByID(pairs[1].labels_id).GetSegmentation()
        overlapping.GetNthSegment(1).GetRepresentation("Binary labelmap").DeepCopy(
            overlapping.GetNthSegment(0).GetRepresentation("Binary labelmap")
        )
        slicer.mrmlScene.RemoveNode(slicer.mrmlScene.GetNodeByID(pairs[2].volume_id))
        steps = []
        folder = self.folder / "neu" / "cases"
        export = self.assertSceneUntouched(lambda: export_cases(pairs, folder, progress=lambda *s: steps.append(s)))
        self.assertEqual([problem.pair for problem in export.problems], pairs[1:3])
        self.assertIn("overlap", export.problems[0].message)
        self.assertIn("no longer in the scene", export.problems[1].message)
        self.assertEqual(dict(export.node_names), {"case-01": "erster", "case-04": "vierter"})
        self.assertEqual(steps, [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)])
        written = sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file())
        expected = ["cases.csv", "dataset.json", "images/case-01.nrrd", "images/case-04.nrrd"]
        self.assertEqual(written, [*expected, "labels/case-01.seg.nrrd", "labels/case-04.seg.nrrd"])

    def test_a_case_that_loses_labels_is_named_and_written(self):
        mask = np.ones(SIZE[::-1], bool)
        pairs = []
        for name, first in (("ganz", (0, 0, 0)), ("halb ü", (12, 0, 0))):
            volume = add_volume(name)
            labels = add_segmentation(f"{name} seg", straight(), {"A": mask}, volume, first=first)
            pairs.append(CasePair(volume.GetID(), labels.GetID()))
        export = export_cases(pairs, self.folder / "cases")
        self.assertEqual((len(export.cases), export.problems), (2, ()))
        (warning,) = export.warnings
        self.assertEqual(warning.pair, pairs[1])
        self.assertIn(f"{mask.size // 2} labeled voxels of 'halb ü seg'", warning.message)
        self.assertIn("outside of the volume 'halb ü'", warning.message)

    def test_a_scan_that_cannot_be_written_leaves_no_labels_behind(self):
        volume = add_volume()
        labels = add_segmentation("seg", straight(), {"A": np.ones(SIZE[::-1])}, volume)
        write = sitk.WriteImage

        def fail(image, path, **options):
            if "images" in path:
                raise RuntimeError("disk full")
            write(image, path, **options)

        with mock.patch("SimpleITK.WriteImage", fail):
            export = export_cases([CasePair(volume.GetID(), labels.GetID())], self.folder)
        self.assertIn("cannot be written", export.problems[0].message)
        self.assertEqual(list(self.folder.rglob("*.nrrd")), [])

    def test_numbers_differ_but_names_decide(self):
        first, second = add_volume("a"), add_volume("b")
        left, right = (np.zeros(SIZE[::-1], np.uint16) for _ in range(2))
        left[2:4], left[8:10] = 1, 300
        right[2:4], right[8:10] = 2, 1
        pairs = [
            CasePair(first.GetID(), add_labelmap("x", left, straight(), {1: "head", 300: "tail"}).GetID()),
            CasePair(second.GetID(), add_labelmap("y", right, straight(), {1: "Tail", 2: "HEAD"}).GetID()),
        ]
        export = export_cases(pairs, self.folder)
        arrays = [sitk.GetArrayFromImage(sitk.ReadImage(str(case.label))) for case in export.cases]
        np.testing.assert_array_equal(arrays[0], arrays[1])
        np.testing.assert_array_equal(arrays[0], np.select([left == 1, left == 300], [1, 2]))

    def test_structures_that_are_left_out(self):
        volume = add_volume()
        mask = np.zeros(SIZE[::-1], bool)
        mask[3:6] = True
        labels = add_segmentation("seg", straight(), {"A": mask, "B": mask, "C": ~mask}, volume)
        pairs = [CasePair(volume.GetID(), labels.GetID())]
        self.assertIn("overlap", export_cases(pairs, self.folder).problems[0].message)
        export = export_cases(pairs, self.folder, leave_out=["A"])
        self.assertEqual([s.name for s in export.structures], ["B", "C"])
        image = sitk.ReadImage(str(export.cases[0].label))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(image), np.where(mask, 1, 2))

    def test_one_terminology_under_two_names_is_one_structure(self):
        pairs = []
        mask = np.zeros(SIZE[::-1], bool)
        mask[3:6] = True
        for name, title in (("a", "Leber"), ("b", "liver"), ("c", "liver")):
            volume = add_volume(name)
            labels = add_segmentation("s", straight(), {title: mask, f"T {name}": ~mask}, volume,
                                      {title: LIVER, f"T {name}": TISSUE})  # fmt: skip
            pairs.append(CasePair(volume.GetID(), labels.GetID()))
        export = export_cases(pairs, self.folder)
        self.assertEqual([s.name for s in export.structures], ["liver", "T a", "T b", "T c"])
        for case in export.cases:
            image = sitk.ReadImage(str(case.label))
            np.testing.assert_array_equal(sitk.GetArrayFromImage(image) == 1, mask)
            self.assertEqual(image.GetMetaData("Segment0_Name"), "liver")
            self.assertIn(LIVER, image.GetMetaData("Segment0_Tags"))

    def test_folder_names_no_node_and_no_patient(self):
        from scenes import add_study, hierarchy, put_into_study

        mask = np.zeros(SIZE[::-1], bool)
        mask[3:6] = True
        study = add_study("Müller^Hans")
        hierarchy().SetItemUID(hierarchy().GetItemParent(study), "DICOM", "PID-4711")
        volume = add_volume("Müller Hans 1950")
        put_into_study(volume, study)
        labels = add_segmentation("Müller Hans seg", straight(), {"A": mask}, volume)
        export = export_cases([CasePair(volume.GetID(), labels.GetID())], self.folder)
        for file in (f for f in self.folder.rglob("*") if f.is_file()):
            for word in ("Müller", "Hans", "4711"):
                self.assertNotIn(word.encode(), file.read_bytes())
                self.assertNotIn(word, file.name)
        self.assertEqual(export.node_names, {"case-01": "Müller Hans 1950"})


if __name__ == "__main__":
    unittest.main()
