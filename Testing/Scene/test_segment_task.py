"""Segmenting without a panel, as a script does it, by an engine that fails."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
import unittest
from pathlib import Path
from unittest import mock

import numpy as np
import slicer

from TCurLoraSegmentLib.engine import engine_of
from TCurLoraSegmentLib.errors import UserError
from TCurLoraSegmentLib.jobs import jobs_folder
from TCurLoraSegmentLib.requests import SegmentSettings
from TCurLoraSegmentLib.segment_task import SegmentTask


class SegmentTaskTest(unittest.TestCase):
    def setUp(self) -> None:
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        # In Slicer the folder of jobs is the user's own, and may hold some.
        home = mock.patch.dict(os.environ, TCURLORA_HOME=str(Path(scratch.name) / "home"))
        home.start()
        self.addCleanup(home.stop)
        self.python = Path(scratch.name) / "python"
        self.volume = slicer.util.addVolumeFromArray(np.zeros((4, 5, 6), np.float32), name="scan")

    def task(self, body: str) -> SegmentTask:
        self.python.write_text(f"#!{sys.executable}\n{body}\n", encoding="utf-8")
        self.python.chmod(self.python.stat().st_mode | stat.S_IXUSR)
        return SegmentTask(engine_of(str(self.python)), SegmentSettings("model"), [self.volume])

    def test_after_a_crash_the_log_is_kept_and_the_scan_is_not(self) -> None:
        task = self.task("import sys; sys.exit('out of luck 頭')")
        task.start()
        finished = task.wait(60)
        self.assertEqual(finished.nodes, {})
        self.assertIn("out of luck 頭", finished.messages[0])
        self.assertIn("out of luck 頭", task.job.log.read_text(encoding="utf-8"))
        self.assertEqual(list(task.job.path.rglob("*.nrrd")), [])

    def test_a_killed_task_leaves_nothing(self) -> None:
        task = self.task("import time; time.sleep(600)")
        task.start()
        task.kill()
        self.assertFalse(task.job.path.exists())

    def test_bad_requests_leave_nothing(self) -> None:
        empty = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "empty")
        for volumes, settings in (([empty], SegmentSettings("model")), ([], SegmentSettings("model"))):
            with self.assertRaises(UserError):
                SegmentTask(engine_of(sys.executable), settings, volumes)
        with self.assertRaisesRegex(UserError, "adapter"):
            SegmentTask(engine_of(sys.executable), SegmentSettings(""), [self.volume])
        self.assertEqual(list(jobs_folder().iterdir()) if jobs_folder().is_dir() else [], [])
