from __future__ import annotations

import io
import json
import sys
import tarfile
import tempfile
import types
import unittest
from pathlib import Path
from unittest import mock

import numpy as np
import SimpleITK as sitk
import slicer

from TCurLoraSegmentLib import sample_data
from TCurLoraSegmentLib.errors import UserError
from TCurLoraSegmentLib.scene_cases import pair_scene, structures_of
from TCurLoraSegmentLib.scene_subjects import subject_of
from TCurLoraSegmentLib.self_test import foreign


class RecordedLogic:
    """Slicer's Sample Data module is in no wheel: this takes what that takes, and keeps it at the same place."""

    @staticmethod
    def registerCustomSampleDataSource(category: str = "Custom", **arguments: object) -> None:  # noqa: N802
        source = types.SimpleNamespace(**arguments)
        slicer.modules.sampleDataSources.setdefault(category, []).append(source)


class SampleDataTest(unittest.TestCase):
    def setUp(self) -> None:
        slicer.mrmlScene.Clear(0)
        scratch = tempfile.TemporaryDirectory(prefix=foreign("Beispiel ü 例 ", "sample "))
        self.addCleanup(scratch.cleanup)
        self.addCleanup(slicer.mrmlScene.Clear, 0)
        self.folder = Path(scratch.name)

    def archive(self, leave_out: str = "") -> Path:
        """An archive as the Decathlon's is made, with other voxels."""
        path = self.folder / sample_data.FILE_NAME
        with tarfile.open(path, "w") as opened:
            for number in (*sample_data.LABELED, *sample_data.NEW, 1):
                for kind in ("imagesTr", "labelsTr"):
                    name = f"{kind}/hippocampus_{number:03d}.nii.gz"
                    if name != leave_out:
                        self.add(opened, f"Task04_Hippocampus/{name}", self.voxels(kind, number))
                        self.add(opened, f"Task04_Hippocampus/{kind}/._hippocampus_{number:03d}.nii.gz", b"Mac OS X")
        return path

    def voxels(self, kind: str, number: int) -> bytes:
        values = np.zeros((9, 8, 7), np.uint8 if kind == "labelsTr" else np.int16)
        if kind == "labelsTr":
            values[2:4, 2:6, 2:5], values[4:7, 2:6, 2:5] = 1, 2
        else:
            values[:] = number
        file = self.folder / "one.nii.gz"
        sitk.WriteImage(sitk.GetImageFromArray(values), str(file))
        return file.read_bytes()

    @staticmethod
    def add(opened: tarfile.TarFile, name: str, content: bytes) -> None:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        opened.addfile(info, io.BytesIO(content))

    def test_ten_scans_eight_with_labels(self) -> None:
        volumes = sample_data.load_sample(self.archive())
        self.assertEqual(len(volumes), 10)
        self.assertEqual([int(slicer.util.arrayFromVolume(volume).max()) for volume in volumes[:2]], [89, 90])
        segmentations = slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
        self.assertEqual(len(segmentations), 8)
        self.assertEqual(slicer.util.getNodesByClass("vtkMRMLLabelMapVolumeNode"), [])
        self.assertEqual([node.GetDisplayNode().GetVisibility() for node in segmentations], [1] + 7 * [0])
        for volume, node in zip(volumes, segmentations, strict=False):
            self.assertEqual(node.GetNodeReference(node.GetReferenceImageGeometryReferenceRole()), volume)
        segmentation = segmentations[3].GetSegmentation()
        sizes = {}
        for index in range(segmentation.GetNumberOfSegments()):
            voxels = slicer.util.arrayFromSegmentBinaryLabelmap(
                segmentations[3], segmentation.GetNthSegmentID(index), volumes[3]
            )
            sizes[segmentation.GetNthSegment(index).GetName()] = int(voxels.sum())
        self.assertEqual(sizes, {"anterior hippocampus": 2 * 4 * 3, "posterior hippocampus": 3 * 4 * 3})

    def test_both_sides_of_a_person_lie_together_with_their_labels(self) -> None:
        volumes = sample_data.load_sample(self.archive())
        items = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)

        def person(node: slicer.vtkMRMLNode) -> int:
            return items.GetItemAncestorAtLevel(items.GetItemByDataNode(node), "Patient")

        people = [person(volume) for volume in volumes]
        self.assertNotIn(0, people)
        self.assertEqual(people[0::2], people[1::2])
        self.assertEqual(len(set(people)), 5)
        segmentations = slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
        self.assertEqual([person(node) for node in segmentations], people[:8])

    def test_they_are_paired_as_the_tutorial_says(self) -> None:
        volumes = sample_data.load_sample(self.archive())
        pairs, messages = pair_scene()
        self.assertEqual(sorted(pair.volume_id for pair in pairs), sorted(volume.GetID() for volume in volumes[:8]))
        labels = [slicer.mrmlScene.GetNodeByID(pair.labels_id).GetName() for pair in pairs]
        names = [slicer.mrmlScene.GetNodeByID(pair.volume_id).GetName() for pair in pairs]
        self.assertEqual(labels, [f"{name} labels" for name in names])
        for volume in volumes[8:]:
            self.assertIn(volume.GetName(), " ".join(messages))
        self.assertEqual(len({subject_of(volume) for volume in volumes}), 5)
        self.assertEqual({one.name for one in structures_of(pairs)}, {"anterior hippocampus", "posterior hippocampus"})

    def test_an_archive_without_a_scan_is_refused_by_name(self) -> None:
        with self.assertRaisesRegex(UserError, "no labelsTr/hippocampus_124"):
            sample_data.load_sample(self.archive(leave_out="labelsTr/hippocampus_124.nii.gz"))
        self.assertEqual(slicer.util.getNodesByClass("vtkMRMLVolumeNode"), [])

    def test_a_damaged_archive_is_refused(self) -> None:
        path = self.folder / sample_data.FILE_NAME
        path.write_bytes(b"<html>sign in to the network of this hospital</html>")
        with self.assertRaisesRegex(UserError, "cannot be read.*Delete the file"):
            sample_data.load_sample(path)

    def test_the_offer_names_its_hash_and_downloads_nothing(self) -> None:
        if not hasattr(sys.modules.get("SampleData"), "SampleDataSource"):  # no full Slicer
            module = types.ModuleType("SampleData")
            module.SampleDataLogic = RecordedLogic
            replaced = mock.patch.dict(sys.modules, {"SampleData": module})
            replaced.start()
            self.addCleanup(replaced.stop)
        for _ in range(2):
            sample_data.register_sample_data(self.folder / "icon.png")
        (source,) = slicer.modules.sampleDataSources[sample_data.CATEGORY]
        self.assertEqual(source.sampleName, sample_data.SAMPLE_NAME)
        self.assertIn(sample_data.SHA256, str(source.checksums))
        self.assertIn("https://", str(source.uris))
        self.assertTrue(callable(source.customDownloader))
        self.assertEqual(slicer.util.getNodesByClass("vtkMRMLVolumeNode"), [])

    def test_pressing_the_button_loads_what_was_downloaded(self) -> None:
        archive = self.archive()
        module = types.ModuleType("SampleData")
        module.SampleDataLogic = lambda: types.SimpleNamespace(downloadFileIntoCache=lambda *source: str(archive))
        source = types.SimpleNamespace(uris=["https://x"], fileNames=["x.tar"], checksums=["SHA256:0"])
        with mock.patch.dict(sys.modules, {"SampleData": module}):
            self.assertEqual(len(sample_data._download_and_load(source)), 10)

    def test_the_scans_are_those_that_the_base_model_never_saw(self) -> None:
        module = Path(sample_data.__file__).resolve().parents[1]
        # In Slicer's build tree the base models lie beside the module, in the repository one folder further out.
        inside = "Resources/BaseModels/hippocampus_t1_unetr/configs/split.json"
        path = next(folder / inside for folder in (module, module.parent) if (folder / inside).exists())
        split = path.read_text(encoding="utf-8")
        test = set(json.loads(split)["test"])
        self.assertLessEqual({f"hippocampus_{n:03d}.nii.gz" for n in sample_data.LABELED + sample_data.NEW}, test)
