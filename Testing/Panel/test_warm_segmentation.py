"""The panel's process for segmenting stays for the next time, and goes when it is in the way."""

from __future__ import annotations

import sys
from pathlib import Path

import harness
import slicer

sys.path.insert(0, str(Path(__file__).parent))

from engines import make_engine
from test_panel import PanelCase

from TCurLoraSegmentLib.installation import InstallPlan
from TCurLoraSegmentLib.jobs import jobs_folder
from TCurLoraSegmentLib.processes import start_of
from TCurLoraSegmentLib.self_test import add_scan


class WarmCase(PanelCase):
    def start_segmenting(self, name: str, seed: int = 1) -> None:
        self.panel.parameters.set_node("input", add_scan(name, seed, labeled=False)[0])
        self.panel.refresh()
        self.ui.segmentButton.click()
        self.assertTrue(self.panel.segment_section.running, self.ui.segmentStatus.text)

    def segment(self, name: str) -> None:
        before = self.results()
        self.start_segmenting(name)
        self.wait_for_end()
        self.assertEqual(self.results(), before + 1, self.ui.segmentStatus.text)

    def results(self) -> int:
        return len(slicer.util.getNodesByClass("vtkMRMLSegmentationNode"))

    def wait_for_process(self) -> int:
        harness.wait_until(lambda: self.panel.warm.pid is not None, timeout_s=30)
        return self.panel.warm.pid

    def assert_gone(self, pid: int) -> None:
        harness.wait_until(lambda: start_of(pid) is None, timeout_s=10)


class RealEngineTest(WarmCase):
    def test_two_clicks_use_one_process_and_closing_leaves_none(self) -> None:
        self.segment("eins")
        pid = self.panel.warm.pid
        self.assertIsNotNone(pid)
        self.segment("zwei 頭")
        self.assertEqual(self.panel.warm.pid, pid)
        self.assertEqual(list(jobs_folder().iterdir()), [])
        harness.close_module(self.widget)
        self.assertIsNone(start_of(pid))

    def test_quitting_ends_a_run(self) -> None:
        self.start_segmenting("eins")
        pid = self.wait_for_process()
        harness.quit_application()
        self.assertIsNone(start_of(pid))

    def test_installing_ends_it(self) -> None:
        self.segment("eins")
        pid = self.panel.warm.pid
        section = self.panel.environment_section
        section._plan = InstallPlan(Path(sys.executable), True, missing=("einops",))
        harness.expect("ok_cancel", True)
        section._on_install()
        self.assertIsNone(start_of(pid))
        self.assertTrue(harness.pip_calls)
        harness.wait_until(lambda: self.ui.checkEnvironmentButton.enabled, timeout_s=60)
        self.segment("zwei")


DONE = """
import SimpleITK as sitk
scan = arguments[arguments.index("--input") + 1]
labels = os.path.join(arguments[arguments.index("--job") + 1], "labels.nrrd")
sitk.WriteImage(sitk.Cast(sitk.ReadImage(scan) > 430, sitk.sitkUInt8), labels)
result = dict(written=[dict(scan=scan, labels=labels)], failed=[])
open(os.path.join(arguments[arguments.index("--job") + 1], "result.json"), "w").write(json.dumps(result))
emit(event="result", **result)
"""
DIES_ONCE = """
flag = os.path.join(os.environ["TCURLORA_HOME"], "flag")
if not os.path.exists(flag):
    open(flag, "w")
    emit(event="stage", name="segment", title="Segmenting")
    print("Größe: the driver is gone", file=sys.stderr, flush=True)
    os._exit(3)
"""


class CrashTest(WarmCase):
    engine = ("segment", DIES_ONCE + DONE)

    def test_crash_is_told_and_the_next_click_works(self) -> None:
        self.start_segmenting("eins")
        self.wait_for_end()
        self.assertIn("the driver is gone", self.ui.segmentStatus.text)
        self.assertEqual(self.results(), 0)
        self.segment("zwei")
        self.assertEqual(list(jobs_folder().iterdir()), [])


class WayTest(WarmCase):
    engine = ("segment", "time.sleep(0.5)\n" + DONE)

    def test_another_python_ends_it_at_once(self) -> None:
        self.segment("eins")
        pid = self.panel.warm.pid
        other = self.folder / "other"
        other.mkdir()
        self.ui.pythonPath.currentPath = make_engine(other, "segment", DONE)
        self.assert_gone(pid)
        self.segment("zwei")
        self.assertNotEqual(self.panel.warm.pid, pid)

    def test_another_python_lets_a_run_end_first(self) -> None:
        self.start_segmenting("eins")
        pid = self.wait_for_process()
        self.ui.pythonPath.currentPath = ""
        self.wait_for_end()
        self.assertEqual(self.results(), 1, self.ui.segmentStatus.text)
        self.assert_gone(pid)

    def test_adapting_takes_the_memory_that_it_held(self) -> None:
        self.segment("eins")
        pid = self.panel.warm.pid
        self.start_adapting()
        self.assert_gone(pid)


class CancelTest(WarmCase):
    engine = ("segment", 'emit(event="stage", name="s", title="Deaf")\ntime.sleep(600)')

    def test_one_that_does_not_hear_cancel_is_ended_and_leaves_nothing(self) -> None:
        self.start_segmenting("eins")
        pid = self.wait_for_process()
        harness.wait_until(lambda: self.ui.segmentStatus.text == "Deaf", timeout_s=30)
        self.panel.segment_section._task._worker.cancel(grace_s=0.5)
        self.ui.cancelSegmentButton.click()
        self.wait_for_end(30)
        self.assertEqual(self.ui.segmentStatus.text, "Cancelled.")
        self.assertIsNone(start_of(pid))
        self.assertEqual(list(jobs_folder().iterdir()), [])
