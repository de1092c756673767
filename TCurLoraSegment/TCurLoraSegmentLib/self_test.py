"""The module's tests in Slicer: the panel is used as a user would use it, with real nodes and the real engine.

The scans are simulated: a bright bent ellipsoid in noise, which the base model does not know and an adapter learns in
a few steps. They take the place of a hippocampus, and say nothing about how well one is segmented.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
import unittest
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import slicer
import vtk

from TCurLoraSegmentLib.jobs import jobs_folder
from TCurLoraSegmentLib.processes import start_of
from TCurLoraSegmentLib.scene_cases import CasePair

SIZE = (40, 56, 40)
STEPS = 15
STRUCTURE = "Hippocampus Ä 海馬"
# Oblique and far from the origin, so that nothing is right by chance.
ORIENTATION = ((0.96, -0.28, 0.0, 31.0), (0.28, 0.96, 0.0, -17.0), (0.0, 0.0, 1.0, 8.5))


def run() -> None:
    """Run all tests.

    Raises:
        AssertionError: when one fails.
    """
    suite = unittest.defaultTestLoader.loadTestsFromTestCase(PanelTest)
    result = unittest.TextTestRunner(verbosity=2).run(suite)
    if not result.wasSuccessful():
        failed = [str(test) for test, _trace in (*result.failures, *result.errors)]
        raise AssertionError(f"Failed: {', '.join(failed)}")


def foreign(name: str, plain: str) -> str:
    """Choose a name of a file for a test: one that is not ASCII, except where Qt cannot take it.

    On Linux Qt 5 encodes names of files as the locale says, and in a bare container that is ASCII.

    Args:
        name: the name with characters of any kind.
        plain: what is taken instead.
    """
    in_slicer = type(slicer.app).__name__ == "qSlicerApplication"
    locale = os.environ.get("LC_ALL") or os.environ.get("LC_CTYPE") or os.environ.get("LANG") or ""
    return plain if in_slicer and sys.platform == "linux" and "utf" not in locale.lower() else name


def simulated_scan(seed: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """Make an image and its labels, both as (k, j, i) arrays; another seed gives another place and other noise."""
    random = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*(np.arange(n) - n / 2 for n in SIZE[::-1]), indexing="ij")
    x, y, z = (axis - shift for axis, shift in zip((x, y, z), random.uniform(-3, 3, 3), strict=True))
    inside = (x / 6) ** 2 + (y / 16) ** 2 + ((z - 0.015 * y**2 + 2) / 5) ** 2 < 1
    image = 400 + 60 * inside + 25 * random.normal(size=inside.shape)
    return image.astype(np.float32), inside.astype(np.uint8)


def add_scan(name: str, seed: int, labeled: bool = True) -> tuple[Any, Any]:
    """Add a simulated scan to the scene, with its segmentation where it is to have one."""
    image, labels = simulated_scan(seed)
    volume = slicer.util.addVolumeFromArray(image, name=name)
    matrix = vtk.vtkMatrix4x4()
    for row, values in enumerate(ORIENTATION):
        for column, value in enumerate(values):
            matrix.SetElement(row, column, value)
    volume.SetIJKToRASMatrix(matrix)
    volume.CreateDefaultDisplayNodes()
    if not labeled:
        return volume, None
    segmentation = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", f"{name} segmentation")
    segmentation.CreateDefaultDisplayNodes()
    segmentation.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    segment = segmentation.GetSegmentation().AddEmptySegment("", STRUCTURE)
    slicer.util.updateSegmentBinaryLabelmapFromArray(labels, segmentation, segment, volume)
    return volume, segmentation


def dice_of(segmentation: Any, volume: Any, seed: int) -> float:
    """Compare a result with what was simulated."""
    segment = segmentation.GetSegmentation().GetSegmentIdBySegmentName(STRUCTURE)
    found = slicer.util.arrayFromSegmentBinaryLabelmap(segmentation, segment, volume) > 0
    truth = simulated_scan(seed)[1] > 0
    return float(2 * (found & truth).sum() / (found.sum() + truth.sum()))


class PanelTest(unittest.TestCase):
    """From labeled volumes to a segmented one, by clicks."""

    def setUp(self) -> None:
        slicer.mrmlScene.Clear(0)
        self._home = os.environ.get("TCURLORA_HOME")
        self._scratch = tempfile.TemporaryDirectory(
            prefix=foreign("TCurLora Größe 頭 ", "TCurLora "), ignore_cleanup_errors=True
        )
        os.environ["TCURLORA_HOME"] = str(Path(self._scratch.name) / "home")
        self.widget = slicer.util.getModuleWidget("TCurLoraSegment")
        self.ui = self.widget.ui
        self.widget.enter()
        self.widget.panel.reload()
        panel = self.widget.panel
        self._wait(lambda: panel.models and (panel.devices != ["auto"] or panel.engine_problems()), 120)

    def tearDown(self) -> None:
        for button in (self.ui.cancelAdaptButton, self.ui.cancelSegmentButton):
            if button.enabled:
                button.click()
        self._wait(lambda: not self._busy(), 60)
        slicer.mrmlScene.Clear(0)
        if self._home is None:
            del os.environ["TCURLORA_HOME"]
        else:
            os.environ["TCURLORA_HOME"] = self._home
        self._scratch.cleanup()

    def test_adapt_then_segment_a_scan_that_was_not_trained_on(self) -> None:
        for seed in range(3):
            add_scan(f"Jürgen {seed} 頭", seed)
        self.assertFalse(self.ui.adaptButton.enabled)
        self.assertIn("labeled cases", self.ui.adaptButton.toolTip)
        self.ui.addFromSceneButton.click()
        self.assertEqual(self.ui.casesTable.rowCount, 3)
        combo = self.ui.structuresTable.cellWidget(0, 1)
        combo.setCurrentIndex(combo.findText("anterior hippocampus + posterior hippocampus"))
        slicer.app.processEvents()
        self._adapt("Köln 3 T 病院", steps=STEPS)
        self._wait(lambda: not self._busy(), 400)
        self.assertIn("is ready", self.ui.stageLabel.text)
        self._wait(lambda: self.ui.adaptersTable.rowCount == 1, 60)
        self.assertEqual(list(jobs_folder().iterdir()), [], "scans of patients were left on the disk")

        volume, _none = add_scan("New scan 新", seed=9, labeled=False)
        self.widget.panel.parameters.set_node("input", volume)
        self.widget.panel.refresh()
        nodes_before = set(slicer.util.getNodesByClass("vtkMRMLSegmentationNode"))
        self.ui.segmentButton.click()
        slicer.mrmlScene.RemoveNode(add_scan("Another", seed=5, labeled=False)[0])
        self._wait(lambda: not self._busy(), 200)
        (result,) = set(slicer.util.getNodesByClass("vtkMRMLSegmentationNode")) - nodes_before
        self.assertIn("New scan 新", result.GetName())
        self.assertIn("Köln 3 T 病院", result.GetName())
        self.assertGreater(dice_of(result, volume, seed=9), 0.8, self.ui.segmentStatus.text)
        self._correct(result, volume)
        self.ui.useAsCaseButton.click()
        self.assertEqual(self.ui.casesTable.rowCount, 4)

    def test_cancel_in_mid_training_leaves_no_process_and_can_be_resumed(self) -> None:
        for seed in range(2):
            add_scan(f"scan {seed}", seed)
        self.ui.addFromSceneButton.click()
        self._adapt("cancelled", steps=5000)
        self._wait(lambda: self.ui.adaptProgress.maximum == 5000 and self.ui.adaptProgress.value > 1, 300)
        pid = self._worker_pid()
        self.ui.cancelAdaptButton.click()
        self._wait(lambda: not self._busy(), 60)
        self.assertIsNone(start_of(pid), "the worker is still there")
        self.assertIn("Cancelled", self.ui.stageLabel.text)
        self.assertTrue(self.ui.adaptButton.enabled)
        self.assertTrue(self.ui.resumeButton.isVisibleTo(self.ui.adaptSection))
        self.ui.discardButton.click()
        self.assertEqual(list(jobs_folder().iterdir()), [])

    def test_a_crash_of_the_worker_is_told_and_the_next_run_works(self) -> None:
        for seed in range(2):
            add_scan(f"scan {seed}", seed)
        self.ui.addFromSceneButton.click()
        self._adapt("crashed", steps=5000)
        self._wait(lambda: self.ui.adaptProgress.maximum == 5000, 300)
        os.kill(self._worker_pid(), signal.SIGTERM if os.name == "nt" else signal.SIGKILL)
        self._wait(lambda: not self._busy(), 60)
        self.assertIn("ended", self.ui.stageLabel.text)
        self.assertFalse((Path(os.environ["TCURLORA_HOME"]) / "adapters" / "crashed").exists())
        self.ui.discardButton.click()
        self._adapt("crashed", steps=1)
        self._wait(lambda: not self._busy(), 300)
        self.assertIn("is ready", self.ui.stageLabel.text)

    def test_choices_are_saved_and_loaded_with_the_scene(self) -> None:
        volume, _segmentation = add_scan("scan 1", seed=1)
        self.ui.addFromSceneButton.click()
        self.widget.panel.parameters.set("name", "Zürich 病")
        self.widget.panel.parameters.set("minutes", 7)
        self.widget.panel.parameters.set_node("input", volume)
        file = str(Path(self._scratch.name) / "scene.mrb")
        self.assertTrue(slicer.util.saveScene(file))
        slicer.mrmlScene.Clear(0)
        slicer.app.processEvents()
        self.assertEqual(self.ui.casesTable.rowCount, 0)
        slicer.util.loadScene(file)
        slicer.app.processEvents()
        self.assertEqual(self.ui.adapterNameEdit.text, "Zürich 病")
        self.assertEqual(self.ui.minutesSpin.value, 7)
        (row,) = self.widget.panel.parameters.cases()
        wanted = CasePair(slicer.util.getNode("scan 1").GetID(), slicer.util.getNode("scan 1 segmentation").GetID())
        self.assertEqual(row.pair, wanted)
        self.assertEqual(self.ui.inputSelector.currentNode().GetName(), "scan 1")

    def _correct(self, result: Any, volume: Any) -> None:
        """Draw one voxel more; what was not corrected is asked about."""
        segment = result.GetSegmentation().GetNthSegmentID(0)
        voxels = slicer.util.arrayFromSegmentBinaryLabelmap(result, segment, volume).copy()
        voxels[0, 0, 0] = 1
        slicer.util.updateSegmentBinaryLabelmapFromArray(voxels, result, segment, volume)

    def _adapt(self, name: str, steps: int) -> None:
        if self.widget.panel.engine_problems():  # as where an extension is built, which installs no packages
            self.skipTest(" ".join(self.widget.panel.engine_problems()))
        parameters = self.widget.panel.parameters
        for key, value in (("name", name), ("minutes", 0), ("steps", steps), ("cross_validation", False)):
            parameters.set(key, value)
        self.widget.panel.refresh()
        self.assertTrue(self.ui.adaptButton.enabled, self.ui.adaptButton.toolTip)
        self.ui.adaptButton.click()
        self.assertTrue(self.widget.panel.adapt_section.running, self.ui.stageLabel.text)

    def _busy(self) -> bool:
        return bool(self.widget.panel.adapt_section.running or self.widget.panel.segment_section.running)

    def _worker_pid(self) -> int:
        (state,) = jobs_folder().glob("adapt-*/worker.pid")
        return int(json.loads(state.read_text(encoding="utf-8"))["pid"])

    def _wait(self, condition: Callable[[], Any], timeout_s: float) -> None:
        end = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > end:
                words = (self.ui.stageLabel.text, self.ui.segmentStatus.text, self.ui.environmentSummary.text)
                self.fail(f"nothing happened within {timeout_s} s; the panel says {words}")
            slicer.app.processEvents()
            time.sleep(0.02)
