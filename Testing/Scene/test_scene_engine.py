from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import unittest
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import slicer

sys.path.insert(0, str(Path(__file__).resolve().parent))

from scenes import (
    LIVER,
    SIZE,
    SceneTest,
    add_labelmap,
    add_linear_transform,
    add_segmentation,
    add_study,
    add_volume,
    matrix_of,
    oblique,
    permuted,
    put_into_study,
    straight,
)

import TCurLoraSegmentLib
from TCurLoraSegmentLib.scene_cases import pair_scene
from TCurLoraSegmentLib.scene_export import export_cases
from TCurLoraSegmentLib.scene_import import capture, import_segmentation
from TCurLoraSegmentLib.self_test import foreign

EXTENSION = Path(TCurLoraSegmentLib.__file__).resolve().parents[1]

# What the engine makes of a folder of cases, and a result of its own for one of them.
ENGINE = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tcurlora.cases.checks import check_cases
from tcurlora.cases.dataset import find_cases
from tcurlora.cases.labels import read_case_labels, read_structures
from tcurlora.imaging.segmentations import write_segmentation
import SimpleITK as sitk
dataset = find_cases(Path(sys.argv[2]))
structures = read_structures(dataset)
findings = check_cases(dataset, structures)
voxels = {}
for case in dataset.cases:
    labels = read_case_labels(case, structures)
    array = sitk.GetArrayFromImage(labels)
    voxels[case.name] = {s.name: int((array == s.value).sum()) for s in structures}
    write_segmentation(labels, structures, Path(sys.argv[3]) / f"{case.name}.seg.nrrd")
print(json.dumps({
    "structures": [s.to_dict() for s in structures],
    "findings": [[f.case, f.code, f.severity] for f in findings],
    "subjects": {case.name: case.subject for case in dataset.cases},
    "voxels": voxels,
}))
"""


def python() -> str:
    """The Python of this Slicer, which is not what runs inside its main window."""
    return shutil.which("PythonSlicer") or sys.executable


class EngineTest(SceneTest):
    def engine(self, cases: Path, results: Path) -> dict:
        results.mkdir()
        command = [python(), "-X", "utf8", "-c", ENGINE, str(EXTENSION), str(cases), str(results)]
        return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)

    def test_the_way_there_and_back(self):
        study = add_study()
        truth = {}
        rng = np.random.default_rng(0)
        for number, matrix in enumerate((straight(), permuted(), oblique(), oblique(left_handed=True), straight())):
            volume = add_volume(f"Fall {number}", matrix)
            slicer.util.arrayFromVolume(volume)[:] = rng.integers(-500, 500, SIZE[::-1])
            head, tail = (np.zeros(SIZE[::-1], bool) for _ in range(2))
            head[2 + number : 7, 3:9, 3:9], tail[8:12, 3:9, 4:9] = True, True
            if number == 1:
                voxels = np.select([head, tail], [400, 3]).astype(np.uint16)
                labels = add_labelmap(f"Fall {number} label", voxels, matrix, {3: "Schwanz", 400: "kopf Ü 海馬"})
            else:
                masks = {"Schwanz": tail, "Kopf ü 海馬": head} if number % 2 else {"Kopf ü 海馬": head, "Schwanz": tail}
                entries = {"Schwanz": LIVER}
                labels = add_segmentation(f"Fall {number} seg", matrix, masks, volume, entries)
            if number == 3:
                for node in (volume, labels):
                    node.SetAndObserveTransformNodeID(add_linear_transform(f"t{number}").GetID())
                labels.SetAndObserveTransformNodeID(volume.GetTransformNodeID())
            if number < 2:
                put_into_study(volume, study)
            truth[volume.GetName()] = (volume, head, tail)
        pairs, notes = pair_scene()
        self.assertEqual((len(pairs), notes), (5, []))
        export = export_cases(pairs, self.folder / foreign("cases ü", "cases"))
        self.assertEqual(export.problems, ())
        seen = self.engine(export.folder, self.folder / foreign("results 海", "results"))
        self.assertEqual(seen["findings"], [])
        self.assertEqual([s["name"] for s in seen["structures"]], ["Kopf ü 海馬", "Schwanz"])
        self.assertEqual(seen["structures"][1]["terminology"].strip(), LIVER)
        self.assertEqual(len(set(seen["subjects"].values())), 4)
        for case, node_name in export.node_names.items():
            volume, head, tail = truth[node_name]
            self.assertEqual(seen["voxels"][case], {"Kopf ü 海馬": head.sum(), "Schwanz": tail.sum()})
            file = self.folder / foreign("results 海", "results") / f"{case}.seg.nrrd"
            placement = capture(volume)
            as_labelmap = case == "case-02"
            imported = import_segmentation(file, placement, seen["structures"], "neu", as_labelmap=as_labelmap)
            self.assertEqual(imported.warnings, ())
            self.assertEqual(imported.node.GetTransformNodeID(), volume.GetTransformNodeID())
            if as_labelmap:
                values = {s["name"]: s["value"] for s in seen["structures"]}
                voxels = slicer.util.arrayFromVolume(imported.node)
                np.testing.assert_array_equal(voxels == values["Kopf ü 海馬"], head)
                np.testing.assert_allclose(matrix_of(imported.node), matrix_of(volume), atol=1e-9)
                continue
            segmentation = imported.node.GetSegmentation()
            for name, mask in (("Kopf ü 海馬", head), ("Schwanz", tail)):
                segment_id = segmentation.GetSegmentIdBySegmentName(name)
                found = slicer.util.arrayFromSegmentBinaryLabelmap(imported.node, segment_id, volume)
                np.testing.assert_array_equal(found != 0, mask)

    def test_the_engine_names_what_is_wrong_by_case(self):
        mask = np.zeros(SIZE[::-1], bool)
        mask[3:6] = True
        for number, filled in enumerate((True, False)):
            volume = add_volume(f"v{number}")
            slicer.util.arrayFromVolume(volume)[0, 0, 0] = number
            add_segmentation(f"s{number}", straight(), {"A": mask & filled, "nie": mask & False}, volume)
        pairs, _notes = pair_scene()
        export = export_cases(pairs, self.folder / "cases")
        seen = self.engine(export.folder, self.folder / "results")
        self.assertIn(["case-02", "empty_label", "warning"], seen["findings"])
        self.assertIn(["", "structure_never_labeled", "warning"], seen["findings"])

    @unittest.skipUnless(importlib.util.find_spec("monai"), "the engine's own needs are not installed")
    def test_check_command_accepts_the_folder(self):
        rng = np.random.default_rng(0)
        for number in range(4):
            volume = add_volume(f"v{number}", oblique(left_handed=True))
            slicer.util.arrayFromVolume(volume)[:] = rng.integers(0, 500, SIZE[::-1])
            mask = np.zeros(SIZE[::-1], bool)
            mask[3 : 6 + number] = True
            add_segmentation(f"s{number}", matrix_of(volume), {"Hippocampus": mask}, volume)
        export = export_cases(pair_scene()[0], self.folder / foreign("Fälle", "cases"))
        command = [python(), str(EXTENSION / "tcurlora" / "__main__.py"), "check", "--base", "hippocampus_t1_unetr"]
        done = subprocess.run([*command, "--data", str(export.folder), "--json"], capture_output=True, check=False)
        text = done.stdout.decode() + done.stderr.decode()
        self.assertEqual(done.returncode, 0, text)
        events = [json.loads(line) for line in done.stdout.decode().splitlines()]
        self.assertEqual([f for f in events[-1]["findings"] if f["severity"] != "note"], [])


class SpeedTest(SceneTest):
    def test_a_large_volume_is_written_in_little_time(self):
        import time

        from TCurLoraSegmentLib.scene_export import export_volume

        volume = slicer.util.addVolumeFromArray(np.zeros((256, 256, 256), np.int16), ijkToRAS=oblique())
        start = time.process_time()
        export_volume(volume, self.folder / "scan.nrrd")
        self.assertLess(time.process_time() - start, 2.0)
        self.assertEqual(sitk.ReadImage(str(self.folder / "scan.nrrd")).GetSize(), (256, 256, 256))


if __name__ == "__main__":
    unittest.main()
