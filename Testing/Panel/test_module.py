"""The module's own tests, which a full Slicer runs too."""

from __future__ import annotations

import unittest

import harness
import slicer
from slicer.ScriptedLoadableModule import ScriptedLoadableModuleTest


class ModuleTest(unittest.TestCase):
    def test_module_runs_its_tests(self) -> None:
        harness.open_module("TCurLoraSegment")
        import TCurLoraSegment

        test = TCurLoraSegment.TCurLoraSegmentTest()
        self.assertIsInstance(test, ScriptedLoadableModuleTest)
        test.runTest()
        self.assertEqual(slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode"), [])
