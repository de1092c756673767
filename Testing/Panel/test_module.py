"""The module's own tests, which a full Slicer runs too."""

from __future__ import annotations

import unittest

import harness
import slicer
from slicer.ScriptedLoadableModule import ScriptedLoadableModuleTest


class ModuleTest(unittest.TestCase):
    def test_module_runs_its_tests(self) -> None:
        widget = harness.open_module("TCurLoraSegment")
        # The tests are skipped where the engine's packages are missing.
        harness.wait_until(lambda: len(widget.panel.devices) > 1, timeout_s=120)
        import TCurLoraSegment

        test = TCurLoraSegment.TCurLoraSegmentTest()
        self.assertIsInstance(test, ScriptedLoadableModuleTest)
        test.runTest()
        self.assertEqual(slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode"), [])
