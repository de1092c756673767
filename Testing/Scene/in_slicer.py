"""All tests that run inside of Slicer as one suite: those of the scene, and the module's own where it is loaded.

Slicer runs this file (see Testing/CMakeLists.txt); outside of it pytest runs the same tests file by file.
"""

from __future__ import annotations

import unittest
from pathlib import Path

import slicer


def load_tests(loader: unittest.TestLoader, _tests: unittest.TestSuite, _pattern: str | None) -> unittest.TestSuite:
    """Collect the tests, as unittest asks for them."""
    suite = unittest.TestSuite()
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        suite.addTests(loader.loadTestsFromName(path.stem))
    if hasattr(slicer.modules, "tcurlorasegment"):
        from TCurLoraSegmentLib.self_test import PanelTest

        suite.addTests(loader.loadTestsFromTestCase(PanelTest))
    return suite
