"""The panel's sections, driven as a user would, with real nodes and the real engine or one that misbehaves."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
import unittest
import zipfile
from pathlib import Path
from typing import Any
from unittest import mock

import harness
import numpy as np
import slicer
import vtk

sys.path.insert(0, str(Path(__file__).parent))

from engines import make_engine

from TCurLoraSegmentLib import scene_labels, segment_task
from TCurLoraSegmentLib.jobs import data_folder, jobs_folder
from TCurLoraSegmentLib.processes import start_of
from TCurLoraSegmentLib.self_test import STRUCTURE, add_scan
from TCurLoraSegmentLib.widgets import environment_section
from TCurLoraSegmentLib.widgets.cases_section import STATE
from TCurLoraSegmentLib.widgets.environment_section import PYTHON_SETTING


class PanelCase(unittest.TestCase):
    """Opens the module for each test."""

    engine: tuple[str, str] | None = None

    def setUp(self) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="Prüfung 頭 ")
        self.addCleanup(self._scratch.cleanup)
        self.folder = Path(self._scratch.name)
        if self.engine:
            slicer.app.userSettings().setValue(PYTHON_SETTING, make_engine(self.folder, *self.engine))
        self.open()

    def open(self) -> None:
        self.widget = harness.open_module("TCurLoraSegment")
        self.ui, self.panel = self.widget.ui, self.widget.panel
        harness.wait_until(lambda: self.panel.models and len(self.panel.devices) > 1, timeout_s=120)

    def set(self, **values: Any) -> None:
        for key, value in values.items():
            self.panel.parameters.set(key, value)
        self.panel.refresh()

    def cell(self, table: Any, row: int, column: int) -> str:
        return str(table.item(row, column).text())

    def start_adapting(self, name: str = "a") -> None:
        for seed in range(2):
            add_scan(f"scan {seed}", seed)
        self.ui.addFromSceneButton.click()
        self.set(name=name, minutes=0, steps=3, cross_validation=False)
        self.ui.adaptButton.click()
        self.assertTrue(self.panel.adapt_section.running, self.ui.stageLabel.text)

    def wait_for_end(self, timeout_s: float = 120) -> None:
        harness.wait_until(
            lambda: not (self.panel.adapt_section.running or self.panel.segment_section.running), timeout_s=timeout_s
        )

    def make_adapter(self, name: str) -> Path:
        folder = data_folder() / "adapters" / name
        folder.mkdir(parents=True)
        config = {"peft_type": "TCURLORA", "base_model": {"name": "base"}, "structures": [{"name": "x", "value": 1}]}
        config |= {"created": "2026-01-02", "training": {"cases": 5}}
        (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
        (folder / "adapter_model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}" + bytes(16))
        (folder / "README.md").write_text("# Card of 頭", encoding="utf-8")
        return folder


def move_away(volume: Any) -> None:
    """Shift a simulated scan so far that a part of its labels lies outside of it."""
    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    for axis in range(3):
        matrix.SetElement(axis, 3, matrix.GetElement(axis, 3) + 20 * matrix.GetElement(axis, 1))
    volume.SetIJKToRASMatrix(matrix)


def ends(pid: int, timeout_s: float = 20) -> bool:
    """Wait for a process to end."""
    deadline = time.monotonic() + timeout_s
    while start_of(pid) is not None and time.monotonic() < deadline:
        time.sleep(0.05)
    return start_of(pid) is None


class LifeTest(PanelCase):
    def test_reload_gives_a_new_panel_and_ends_what_runs(self) -> None:
        self.start_adapting()
        harness.wait_until(lambda: list(jobs_folder().glob("*/worker.pid")), timeout_s=60)
        pid = json.loads(next(jobs_folder().glob("*/worker.pid")).read_text())["pid"]
        loaded = {name: module for name, module in sys.modules.items() if name.startswith("TCurLoraSegmentLib")}
        self.addCleanup(sys.modules.update, loaded)  # other tests have imported these
        self.widget.onReload()
        self.assertTrue(ends(pid))
        reloaded = slicer.util.getModuleWidget("TCurLoraSegment")
        self.assertIsNot(reloaded, self.widget)
        self.assertIsNot(type(reloaded.panel), type(self.panel))
        reloaded.enter()
        harness.wait_until(lambda: reloaded.panel.models, timeout_s=60)

    def test_nodes_that_come_while_another_module_is_open_are_shown_later(self) -> None:
        harness.leave_module(self.widget)
        add_scan("late", 1)
        harness.process_events(0.1)
        self.assertEqual(self.ui.scansTable.rowCount, 0)
        harness.enter_module(self.widget)
        self.assertEqual(self.ui.scansTable.rowCount, 1)

    def test_a_scene_that_is_read_into_this_one_brings_its_choices(self) -> None:
        volume, _labels = add_scan("scan 1", 1)
        harness.choose_node(self.ui.inputSelector, volume)
        harness.process_events()
        file = str(self.folder / "scene.mrb")
        self.assertTrue(slicer.util.saveScene(file, {}))
        slicer.util.loadScene(file, {})
        harness.process_events()
        self.assertEqual(len(slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")), 2)
        chosen = self.panel.parameters.get_node("input")
        self.assertIsNotNone(chosen)
        self.assertEqual(self.ui.inputSelector.currentNode(), chosen)
        harness.choose_node(self.ui.inputSelector, None)
        harness.process_events()
        self.assertIsNone(self.panel.parameters.get_node("input"))


class ChoiceTest(PanelCase):
    def test_deleting_the_chosen_node_chooses_no_other(self) -> None:
        drawn = add_scan("drawn", 1)
        earlier = add_scan("earlier", 2)
        harness.choose_node(self.ui.inputSelector, earlier[0])
        harness.choose_node(self.ui.outputSelector, earlier[1])
        harness.process_events()
        self.assertEqual(self.panel.parameters.get_node("output"), earlier[1])
        harness.leave_module(self.widget)
        for node in earlier:
            slicer.mrmlScene.RemoveNode(node)
        harness.process_events()
        harness.enter_module(self.widget)
        harness.process_events()
        for role, selector, other in zip(
            ("input", "output"), (self.ui.inputSelector, self.ui.outputSelector), drawn, strict=True
        ):
            self.assertIsNone(self.panel.parameters.get_node(role))
            self.assertIsNone(selector.currentNode())
            self.assertIsNotNone(other)

    def test_saved_model_stays_chosen_whichever_list_comes_first(self) -> None:
        self.make_adapter("My hospital")
        self.set(model="My hospital")
        self.panel.reload()
        self.panel._models_listed(self.panel.models)
        self.assertEqual(self.panel.parameters.get("model"), "My hospital")
        harness.wait_until(lambda: self.panel.listed, timeout_s=60)
        self.assertEqual(self.panel.parameters.get("model"), "My hospital")
        self.assertIn("My hospital", self.ui.modelCombo.currentText)

    def test_model_that_is_not_on_this_computer_is_said_so(self) -> None:
        harness.wait_until(lambda: self.panel.listed, timeout_s=60)
        self.assertEqual(self.panel.parameters.get("model"), "hippocampus_t1_unetr")
        self.set(model="Elsewhere")
        self.panel.reload()
        harness.wait_until(lambda: self.panel.listed, timeout_s=60)
        self.assertEqual(self.panel.parameters.get("model"), "Elsewhere")
        self.assertEqual(self.ui.modelCombo.currentIndex, -1)
        self.assertIn("'Elsewhere' is not on this computer", self.ui.segmentButton.toolTip)

    def test_base_model_that_is_not_on_this_computer_is_said_so(self) -> None:
        self.set(base="elsewhere")
        self.panel.reload()
        harness.wait_until(lambda: self.panel.listed, timeout_s=60)
        self.assertEqual(self.panel.parameters.get("base"), "elsewhere")
        for text in (self.ui.baseModelSummary.text, self.ui.adaptButton.toolTip):
            self.assertIn("'elsewhere' is not on this computer", text)

    def test_device_and_method_that_there_are_not_here_are_shown_and_sent_as_the_usual_ones(self) -> None:
        self.set(device="cuda:7", method="magic")
        self.assertEqual(self.ui.deviceCombo.currentText, "automatic")
        self.assertEqual(self.panel.adapt_settings().device, "auto")
        self.assertEqual(self.panel.segment_section._settings().device, "auto")
        self.assertEqual(self.panel.adapt_settings().method, "compact")
        self.set(device="cpu")
        self.assertEqual(self.panel.adapt_settings().device, "cpu")

    def test_result_has_the_whole_name_of_its_adapter(self) -> None:
        self.make_adapter("Ward 3 (1.5T)")
        self.panel.reload_adapters()
        harness.wait_until(lambda: self.panel.adapters, timeout_s=60)
        self.set(model="Ward 3 (1.5T)")
        self.assertEqual(self.panel.segment_section._settings().title, "Ward 3 (1.5T)")


class BaseModelTest(PanelCase):
    def test_shipped_model_is_chosen_and_described(self) -> None:
        self.assertEqual(self.panel.parameters.get("base"), "hippocampus_t1_unetr")
        for words in ("anterior hippocampus", "CC BY-SA 4.0", "14 MB", "comes with this extension"):
            self.assertIn(words, self.ui.baseModelSummary.text)
        self.assertFalse(self.ui.removeBundleButton.enabled)
        self.assertFalse(self.ui.fetchModelButton.isVisibleTo(self.ui.adaptTab))

    def test_details_come_on_demand(self) -> None:
        self.assertEqual(self.ui.baseModelDetails.plainText, "")
        self.ui.modelsTable.selectRow(0)
        harness.wait_until(lambda: "SHA-256" in self.ui.baseModelDetails.plainText, timeout_s=60)
        self.assertIn("6,970,555 parameters", self.ui.baseModelDetails.plainText)

    def test_a_folder_that_is_no_bundle_is_refused_with_a_sentence(self) -> None:
        harness.expect("message", lambda box: box.buttons()[0].click())
        harness.expect("folder", str(self.folder))
        before = len(self.panel.models)
        self.ui.addBundleButton.click()
        harness.wait_until(lambda: "configs" in self.ui.baseModelSummary.text, timeout_s=60)
        self.assertEqual(len(self.panel.models), before)


MODELS = """
if arguments[0] == "list" and os.path.exists(os.path.join(os.environ["TCURLORA_HOME"], "broken")):
    sys.exit("no catalogue")
elif arguments[0] == "list":
    there = os.path.exists(os.path.join(os.environ["TCURLORA_HOME"], "fetched"))
    model = dict(name="far", title="Far away", structures=["x"], on_disk=there, origin="downloaded", licence="", size=9)
    print(json.dumps([model]))
elif arguments[0] == "fetch":
    for step in (1, 2):
        emit(event="progress", step=step, total=4)
        while not os.path.exists(os.path.join(os.environ["TCURLORA_HOME"], f"go {step}")):
            time.sleep(0.02)
    open(os.path.join(os.environ["TCURLORA_HOME"], "fetched"), "w")
    print(json.dumps(dict(path="there")))
"""


class FetchTest(PanelCase):
    engine = ("models", MODELS)

    def test_download_tells_how_far_it_is(self) -> None:
        self.ui.fetchModelButton.click()
        for step, part in ((1, "25 %"), (2, "50 %")):
            harness.wait_until(lambda part=part: part in self.ui.baseModelSummary.text, timeout_s=30)
            self.panel.refresh()
            self.assertIn(part, self.ui.baseModelSummary.text)
            self.assertIn("Segments x", self.ui.baseModelSummary.text)
            (data_folder() / f"go {step}").touch()
        harness.wait_until(lambda: "on this computer" in self.ui.baseModelSummary.text, timeout_s=30)
        self.assertNotIn("Downloading", self.ui.baseModelSummary.text)

    def test_what_went_wrong_is_told_until_the_list_is_there_again(self) -> None:
        broken = data_folder() / "broken"
        broken.touch()
        self.panel.reload_models()
        harness.wait_until(lambda: "no catalogue" in self.ui.modelsMessage.text, timeout_s=30)
        self.panel.refresh()
        self.assertIn("no catalogue", self.ui.modelsMessage.text)
        broken.unlink()
        self.panel.reload_models()
        harness.wait_until(lambda: "no catalogue" not in self.ui.modelsMessage.text, timeout_s=30)


class CasesTest(PanelCase):
    def test_every_problem_of_every_case_is_shown_at_once(self) -> None:
        add_scan("good", 1)
        constant, _ = add_scan("constant", 2)
        slicer.util.updateVolumeFromArray(constant, np.ones((40, 56, 40), np.float32))
        _, empty = add_scan("empty", 3)
        segment = empty.GetSegmentation().GetNthSegmentID(0)
        slicer.util.updateSegmentBinaryLabelmapFromArray(np.zeros((40, 56, 40), np.uint8), empty, segment)
        lone = slicer.util.addVolumeFromArray(np.ones((4, 4, 4)), name="lone")
        cut, _ = add_scan("cut", 4)
        move_away(cut)
        self.ui.addFromSceneButton.click()
        self.assertIn(lone.GetName(), self.ui.casesMessage.text)
        self.assertEqual(self.ui.casesTable.rowCount, 4)
        self.ui.checkCasesButton.click()
        harness.wait_until(lambda: self.ui.checkCasesButton.enabled, timeout_s=120)
        table = self.ui.casesTable
        states = {self.cell(table, row, 1): self.cell(table, row, STATE) for row in range(4)}
        self.assertEqual(states, {"good": "ready", "cut": "remark", "constant": "problem", "empty": "remark"})
        tooltips = {self.cell(table, row, 1): str(table.item(row, STATE).toolTip()) for row in range(4)}
        self.assertRegex(tooltips["cut"], r"\d+ labeled voxels of 'cut segmentation' lie outside of the volume 'cut'")
        self.assertIn("'constant'", tooltips["constant"])
        self.assertIn("'empty", tooltips["empty"])
        self.assertIn("3 of 4 cases are ready; 1 cannot be used", self.ui.casesMessage.text)
        self.assertEqual(list(jobs_folder().iterdir()), [], "exported scans were left behind")

    def test_what_the_engine_advises_names_no_options(self) -> None:
        _, labels = add_scan("a", 1)
        segment = labels.GetSegmentation().GetNthSegmentID(0)
        slicer.util.updateSegmentBinaryLabelmapFromArray(np.zeros((40, 56, 40), np.uint8), labels, segment)
        self.ui.addFromSceneButton.click()
        self.ui.checkCasesButton.click()
        harness.wait_until(lambda: self.ui.checkCasesButton.enabled, timeout_s=120)
        self.assertIn("No case has a labeled voxel.", self.ui.casesMessage.text)
        self.assertNotIn("--", self.ui.casesMessage.text)

    def test_mapping_goes_by_name_and_can_be_corrected(self) -> None:
        add_scan("a", 1)
        self.ui.addFromSceneButton.click()
        self.assertEqual(self.cell(self.ui.structuresTable, 0, 0), STRUCTURE)
        combo = self.ui.structuresTable.cellWidget(0, 1)
        titles = [combo.itemText(index) for index in range(combo.count)]
        combo.setCurrentIndex(titles.index("anterior hippocampus + posterior hippocampus"))
        wanted = {STRUCTURE: ["anterior hippocampus", "posterior hippocampus"]}
        self.assertEqual(self.panel.parameters.get("mapping"), wanted)
        harness.process_events(0.1)
        arguments = self.panel.adapt_settings().arguments(Path("d"), Path("o"), Path("j"))
        self.assertIn(f"--map={STRUCTURE}=anterior hippocampus+posterior hippocampus", arguments)
        combo = self.ui.structuresTable.cellWidget(0, 1)
        combo.setCurrentIndex(titles.index("leave out"))
        harness.process_events(0.1)
        arguments = self.panel.adapt_settings().arguments(Path("d"), Path("o"), Path("j"))
        self.assertFalse([argument for argument in arguments if argument.startswith("--map")])

    def test_mapping_goes_by_terminology_where_the_base_model_has_one(self) -> None:
        terminology = self.panel.models[0]["terminology"]
        _volume, labels = add_scan("a", 1)
        segment = labels.GetSegmentation().GetNthSegment(0)
        segment.SetName("Struktur 1")
        segment.SetTag(segment.GetTerminologyEntryTagName(), terminology["posterior hippocampus"])
        self.ui.addFromSceneButton.click()
        combo = self.ui.structuresTable.cellWidget(0, 1)
        self.assertEqual(combo.currentText, "by terminology: posterior hippocampus")
        self.assertEqual(dict(self.panel.adapt_settings().mapping), {"Struktur 1": ["posterior hippocampus"]})
        combo.setCurrentIndex(combo.findText("anterior hippocampus"))
        harness.process_events(0.1)
        self.assertEqual(dict(self.panel.adapt_settings().mapping), {"Struktur 1": ["anterior hippocampus"]})
        self.ui.casesTable.selectRow(0)
        self.ui.removeCaseButton.click()
        self.assertEqual(dict(self.panel.adapt_settings().mapping), {}, "a structure of no case is not mapped")

    def test_unchecked_and_deleted_cases_are_not_used(self) -> None:
        first, _ = add_scan("a", 1)
        add_scan("b", 2)
        self.ui.addFromSceneButton.click()
        self.assertEqual(len(self.panel.cases_section.chosen()), 2)
        import qt

        self.ui.casesTable.item(1, 0).setCheckState(qt.Qt.Unchecked)
        harness.process_events(0.1)
        self.assertEqual(len(self.panel.cases_section.chosen()), 1)
        slicer.mrmlScene.RemoveNode(first)
        harness.process_events(0.1)
        self.assertEqual(self.panel.cases_section.chosen(), [])
        self.assertEqual(self.cell(self.ui.casesTable, 0, STATE), "gone")
        self.assertIn("2 labeled cases", self.ui.adaptButton.toolTip)

    def test_what_a_check_found_is_forgotten_when_the_case_changes(self) -> None:
        volume, labels = add_scan("a", 1)
        add_scan("b", 2)
        self.ui.addFromSceneButton.click()

        def states() -> list[str]:
            return [self.cell(self.ui.casesTable, row, STATE) for row in range(self.ui.casesTable.rowCount)]

        self.ui.checkCasesButton.click()
        harness.wait_until(lambda: self.ui.checkCasesButton.enabled, timeout_s=60)
        self.assertEqual(states(), ["ready", "ready"], self.ui.casesMessage.text)
        segment = labels.GetSegmentation().GetNthSegmentID(0)
        slicer.util.updateSegmentBinaryLabelmapFromArray(np.zeros((40, 50, 40), np.uint8), labels, segment, volume)
        self.panel.refresh()
        self.assertEqual(states(), ["", "ready"])
        self.assertNotIn("ready", self.ui.casesMessage.text)
        slicer.mrmlScene.Clear(0)
        for seed, name in enumerate("cd", start=3):
            add_scan(name, seed)
        self.ui.addFromSceneButton.click()
        self.assertEqual(states(), ["", ""])

    def test_voxels_are_counted_again_only_where_something_changed(self) -> None:
        _volume, labels = add_scan("a", 1)
        self.ui.addFromSceneButton.click()
        with mock.patch.object(scene_labels, "present_values", wraps=scene_labels.present_values) as counted:
            self.set(name="b")
            self.assertEqual(counted.call_count, 0)
            labels.GetSegmentation().GetNthSegment(0).SetName("other")
            self.panel.refresh()
            self.assertGreater(counted.call_count, 0)
        self.assertEqual(self.cell(self.ui.structuresTable, 0, 0), "other")

    def test_explanation_stays_until_the_next_one(self) -> None:
        greeting = self.ui.casesMessage.text
        self.assertIn("Add from scene", greeting)
        add_scan("bare", 1, labeled=False)
        self.ui.addFromSceneButton.click()
        add_scan("another", 2, labeled=False)
        harness.process_events(0.1)
        self.assertIn("'bare' has no segmentation", self.ui.casesMessage.text)
        slicer.mrmlScene.Clear(0)
        harness.process_events(0.1)
        self.assertEqual(self.ui.casesMessage.text, greeting)


class UncheckedTest(PanelCase):
    engine = ("check", "time.sleep(600)")

    def test_closing_the_panel_during_a_check_leaves_no_scan(self) -> None:
        add_scan("a", 1)
        self.ui.addFromSceneButton.click()
        self.ui.checkCasesButton.click()
        self.assertEqual(len(list(jobs_folder().iterdir())), 1)
        harness.close_module(self.widget)
        self.assertEqual(list(jobs_folder().iterdir()), [])


class AdaptTest(PanelCase):
    def test_tooltip_lists_what_is_missing(self) -> None:
        for name in ("a/b", "-1.5T"):
            self.set(name=name)
            for words in ("labeled cases", f"'{name}' cannot be"):
                self.assertIn(words, self.ui.adaptButton.toolTip)
        self.make_adapter("Taken")
        self.panel.reload_adapters()
        harness.wait_until(lambda: self.panel.adapters, timeout_s=60)
        self.set(name="taken")
        self.assertIn("already", self.ui.adaptButton.toolTip)

    def test_settings_are_kept_and_sent(self) -> None:
        self.ui.minutesSpin.value = 0
        self.ui.stepsSpin.value = 70
        self.ui.rankSpin.value = 4
        self.ui.seedSpin.value = 9
        self.ui.methodCombo.setCurrentIndex(1)
        self.ui.foldsSpin.value = 5
        arguments = self.panel.adapt_settings().arguments(Path("d"), Path("o"), Path("j"))
        for words in ("--steps 70", "--rank 4", "--seed 9", "--method paper", "--folds 5"):
            self.assertIn(words, " ".join(arguments))
        self.assertNotIn("--minutes", arguments)
        self.ui.crossValidationCheck.setChecked(False)
        self.assertFalse(self.ui.foldsSpin.enabled)
        self.assertIn("--folds 0", " ".join(self.panel.adapt_settings().arguments(Path("d"), Path("o"), Path("j"))))

    def test_quitting_ends_the_worker(self) -> None:
        self.start_adapting()
        harness.wait_until(lambda: list(jobs_folder().glob("*/worker.pid")), timeout_s=60)
        pid = json.loads(next(jobs_folder().glob("*/worker.pid")).read_text())["pid"]
        harness.quit_application()
        self.assertTrue(ends(pid))


class RefusedTest(PanelCase):
    engine = ("adapt", 'emit(event="error", code="x", message="No.", remedy=""); sys.exit(2)')

    def test_run_that_never_began_leaves_no_scan(self) -> None:
        import qt

        self.start_adapting()
        self.assertIsNone(qt.QApplication.overrideCursor(), "the cursor still waits")
        self.wait_for_end()
        self.assertEqual(self.ui.stageLabel.text, "No.")
        self.assertFalse(self.ui.unfinishedFrame.isVisibleTo(self.widget.parent))
        self.assertEqual(list(jobs_folder().glob("*/inputs")), [])


REPORT = {
    "summary": "The adapter does not help on your 2 scans: it lowers Dice from 0.90 to 0.80.",
    "cross_validation": {
        side: {
            "summary": {},
            "cases": [{"case": f"case {n:02d}", "structure": "x", "dice": d, "hd95_mm": 1.0} for n in (1, 2)],
        }
        for side, d in (("base", 0.9), ("adapted", 0.8))
    },
}
ADAPTED = """
out = arguments[arguments.index("--out") + 1]
job = arguments[arguments.index("--job") + 1]
os.makedirs(out)
report = json.loads({report!r})
numbers = dict(n=2, base_dice=0.9, adapted_dice=0.8, dice_difference=-0.1, dice_difference_ci95=[-0.2, 0.0], improved=0,
               worsened=2, base_hd95_mm=1.0, adapted_hd95_mm=1.0)
report["cross_validation"]["comparison"] = dict(structures=dict(x=numbers), mean=numbers)
open(os.path.join(out, "report.json"), "w").write(json.dumps(report))
emit(event="warning", code="few", severity="warning", case="", message="Few cases. Add some (with --data).")
emit(event="warning", code="new", severity="note", case="", message="A note.")
emit(event="warning", code="one", severity="warning", case="case01", message="Case one.")
emit(event="warning", message="Memory ran out.")
emit(event="stage", name="fold-1", title="Cross-validation 1 of 2")
for step in range(1, 200):
    emit(event="metric", name="loss", step=step, value=1 / step, training=1)
    emit(event="progress", step=step, total=200, eta_s=61, loss=1 / step)
emit(event="metric", name="base_dice", value=0.9, fold=1)
emit(event="metric", name="adapted_dice", value=0.8, fold=1)
result = dict(adapter=out, summary=report["summary"], table="", bytes=1, trained=1)
open(os.path.join(job, "result.json"), "w").write(json.dumps(result))
emit(event="result", **result)
"""


class ResultTest(PanelCase):
    engine = ("adapt", ADAPTED.format(report=json.dumps(REPORT)))

    def test_an_adapter_that_does_not_help_is_said_so(self) -> None:
        self.start_adapting("worse")
        self.wait_for_end()
        self.assertIn("does not help", self.ui.resultSummary.text)
        self.assertEqual(self.ui.resultTable.rowCount, 2)
        rows = [[self.cell(self.ui.resultTable, row, column) for column in range(5)] for row in range(2)]
        self.assertEqual(rows[0], ["scan 0", "x", "0.900", "0.800", "-0.100"])
        (chart,) = slicer.util.getNodesByClass("vtkMRMLPlotChartNode")
        self.assertIn("worse", chart.GetName())
        self.ui.showTableButton.click()
        tables = [node.GetID() for node in slicer.util.getNodesByClass("vtkMRMLTableNode")]
        self.assertIn(slicer.app.applicationLogic().GetSelectionNode().GetActiveTableID(), tables)
        self.assertEqual(self.panel.parameters.get("name"), "worse 2")
        self.assertFalse(self.ui.plotLabel.pixmap.isNull())

    def test_labels_that_were_cut_off_are_told_with_the_result(self) -> None:
        cut, _labels = add_scan("cut", 4)
        move_away(cut)
        self.start_adapting("a")
        self.wait_for_end()
        self.assertIn("'a' is ready", self.ui.stageLabel.text)
        self.assertIn("labeled voxels of 'cut segmentation'", self.ui.stageLabel.text)
        self.assertNotIn("'scan 0", self.ui.stageLabel.text)

    def test_what_the_engine_warned_of_is_told_with_the_result(self) -> None:
        self.start_adapting("a")
        self.wait_for_end()
        self.assertEqual(self.ui.stageLabel.text.split("\n")[1:], ["Few cases. Add some.", "Memory ran out."])

    def test_a_scene_closed_meanwhile_gets_no_nodes_of_the_old_one(self) -> None:
        self.start_adapting("worse")
        slicer.mrmlScene.Clear(0)
        self.wait_for_end()
        self.assertEqual(slicer.util.getNodesByClass("vtkMRMLTableNode"), [])
        self.assertNotIn("scan 0", [self.cell(self.ui.resultTable, row, 0) for row in range(2)])


FLOOD = """
emit(event="stage", name="train", title="Flood")
for number in range(200000):
    emit(event="progress", step=number, total=200000, eta_s=1)
    if number % 1000 == 0:
        os.write(1, b"no event \\xff\\xfe" + b"x" * 100000 + b"\\n")
        os.write(2, b"y" * 100000)
emit(event="error", code="x", message="Es war zu viel 頭.", remedy="Ask for less.")
os.write(1, b'{"event": "metric", "na')
sys.exit(1)
"""


class FloodTest(PanelCase):
    engine = ("adapt", FLOOD)

    def test_panel_answers_while_the_worker_floods_it_and_ends_in_a_true_state(self) -> None:
        self.start_adapting()
        longest, last = 0.0, time.monotonic()
        deadline = last + 120
        while self.panel.adapt_section.running:
            self.assertLess(time.monotonic(), deadline)
            slicer.app.processEvents()
            now = time.monotonic()
            longest, last = max(longest, now - last), now
        self.assertLess(longest, 2.0, "the event loop was blocked")
        self.assertEqual(self.ui.stageLabel.text, "Es war zu viel 頭. Ask for less.")
        self.assertTrue(self.ui.adaptButton.enabled)


class SilentTest(PanelCase):
    engine = ("adapt", "time.sleep(3600)")

    def test_worker_that_never_answers_is_ended_after_a_grace(self) -> None:
        self.start_adapting()
        harness.process_events(0.5)
        self.panel.adapt_section._task._worker.cancel(grace_s=0.5)
        self.ui.cancelAdaptButton.click()
        self.wait_for_end(30)
        self.assertIn("Cancelled", self.ui.stageLabel.text)


class BrokenTest(PanelCase):
    engine = ("doctor", 'sys.exit("ModuleNotFoundError: half a torch")')

    def open(self) -> None:
        self.widget = harness.open_module("TCurLoraSegment")
        self.ui, self.panel = self.widget.ui, self.widget.panel
        harness.wait_until(lambda: self.ui.noticeFrame.isVisibleTo(self.widget.parent), timeout_s=60)

    def test_an_engine_that_does_not_start_is_said_at_the_top(self) -> None:
        self.assertIn("half a torch", self.ui.noticeLabel.text)
        self.assertFalse(self.ui.adaptButton.enabled)
        self.assertIn("half a torch", self.ui.adaptButton.toolTip)
        self.ui.noticeButton.click()
        self.assertFalse(self.ui.environmentSection.collapsed)
        self.assertTrue(self.ui.environmentSection.isVisibleTo(self.widget.parent))
        self.assertEqual(self.ui.environmentTable.rowCount, 0)
        said = [name for name, words in harness.words_of(self.ui.tabs).items() if "half a torch" in words]
        self.assertEqual(set(said) & {"baseModelSummary", "adaptersMessage", "modelsMessage"}, set())


LACKING = """
def item(name, value):
    return dict(name=name, value=value, ok=value != "missing", remedy="")
found = {"Python": "3.12.1", "numpy": "2.0.1", "SimpleITK": "2.5", "scipy": "1.14", "torch": "2.9.0"}
found |= {"device cpu": "4 threads", "monai": "missing", "safetensors": "missing", "einops": "missing"}
print(json.dumps(dict(ok=False, items=[item(*entry) for entry in found.items()])))
sys.exit(1)
"""


class InstallTest(PanelCase):
    engine = ("doctor", LACKING)

    def test_what_is_missing_is_said_and_another_python_is_not_altered(self) -> None:
        self.assertIn("monai", self.ui.noticeLabel.text)
        self.assertIn("pip install", self.ui.environmentSummary.text)
        self.assertFalse(self.ui.installButton.enabled)
        self.assertFalse(self.ui.adaptButton.enabled)

    def test_slicers_own_python_is_completed_after_consent_only(self) -> None:
        section = self.panel.environment_section
        section._plan = dataclasses.replace(section._plan, own=True)
        harness.expect("ok_cancel", False)
        section._on_install()
        self.assertEqual(harness.pip_calls, [])
        harness.expect("ok_cancel", True)
        section._on_install()
        self.assertEqual(len(harness.pip_calls), 1)
        self.assertIn("monai", str(harness.pip_calls[0]))
        self.assertNotIn("torch", str(harness.pip_calls[0]).replace("torch.txt", ""))
        harness.wait_until(lambda: self.ui.checkEnvironmentButton.enabled, timeout_s=60)

    def test_one_installation_at_a_time_and_it_is_seen(self) -> None:
        section = self.panel.environment_section
        section._plan = dataclasses.replace(section._plan, own=True)
        seen, before = [], self.ui.environmentSummary.text

        def install(_plan: Any, agreed: Any, _wheels: Any) -> bool:
            self.assertTrue(agreed("?"))
            section._on_install()  # Slicer handles clicks while pip runs
            seen.append((self.ui.environmentSummary.text, self.ui.installButton.enabled, self.ui.adaptButton.toolTip))
            return False

        harness.expect("ok_cancel", True)
        with mock.patch.object(environment_section, "install", install):
            section._on_install()
        ((summary, enabled, tooltip),) = seen
        self.assertIn("Installing", summary)
        self.assertFalse(enabled)
        self.assertIn("being installed", tooltip)
        self.assertTrue(self.ui.installButton.enabled)
        self.assertEqual(self.ui.environmentSummary.text, before)
        self.assertNotIn("being installed", self.ui.adaptButton.toolTip)

    def test_reason_of_a_failed_installation_is_told(self) -> None:
        section = self.panel.environment_section
        section._plan = dataclasses.replace(section._plan, own=True)
        harness.pip_failure.append(RuntimeError("No space left on device"))
        harness.expect("ok_cancel", True)
        section._on_install()
        self.assertIn("No space left", self.ui.environmentSummary.text)


class LateTest(PanelCase):
    engine = ("doctor", "time.sleep(2)" + LACKING)

    def test_late_answer_of_another_python_is_not_taken_for_this_ones(self) -> None:
        self.assertIn("monai", self.ui.noticeLabel.text)
        self.panel.reload()
        self.ui.pythonPath.currentPath = sys.executable
        harness.wait_until(lambda: not self.panel.engine_problems(), timeout_s=60)
        harness.process_events(3)
        self.assertEqual(self.panel.engine_problems(), [])
        self.assertNotIn("monai", self.ui.environmentSummary.text)


class HangingTest(PanelCase):
    engine = ("check", "time.sleep(600)")

    def test_engine_that_never_answers_is_ended_and_told(self) -> None:
        told: list[Any] = []
        query = self.panel.query(
            "check",
            on_answer=told.append,
            on_error=lambda error: told.append(str(error)),
            on_end=lambda: told.append("end"),
            timeout_s=0.5,
        )
        harness.wait_until(lambda: not query.running, timeout_s=30)
        self.assertEqual(told[0], "end")
        self.assertIn("did not answer", told[1])
        self.assertEqual(len(told), 2)


class AdaptersTest(PanelCase):
    def setUp(self) -> None:
        super().setUp()
        self.make_adapter("Jülich 1")
        self.panel.reload_adapters()
        harness.wait_until(lambda: self.ui.adaptersTable.rowCount == 1, timeout_s=60)
        self.ui.adaptersTable.selectRow(0)

    def names(self) -> list[str]:
        return [self.cell(self.ui.adaptersTable, row, 0) for row in range(self.ui.adaptersTable.rowCount)]

    def test_list_says_base_date_and_cases(self) -> None:
        row = [self.cell(self.ui.adaptersTable, 0, column) for column in range(4)]
        self.assertEqual(row, ["Jülich 1", "base", "2026-01-02", "5"])
        self.ui.cardButton.click()
        self.assertEqual(self.ui.adapterCard.plainText.strip(), "Card of 頭")
        self.ui.useAdapterButton.click()
        self.assertEqual(self.panel.parameters.get("model"), "Jülich 1")
        self.assertIn("Jülich 1", self.ui.modelCombo.currentText)

    def test_rename_export_import_delete(self) -> None:
        harness.expect("text", "病院 2")
        self.ui.renameAdapterButton.click()
        harness.wait_until(lambda: self.names() == ["病院 2"], timeout_s=60)
        self.ui.adaptersTable.selectRow(0)
        target = self.folder / "export ä.zip"
        harness.expect("save_file", str(target))
        self.ui.exportAdapterButton.click()
        harness.wait_until(lambda: "Exported" in self.ui.adaptersMessage.text, timeout_s=60)
        self.assertIn("adapter_config.json", zipfile.ZipFile(target).namelist())
        harness.expect("ok_cancel", True)
        self.ui.deleteAdapterButton.click()
        harness.wait_until(lambda: self.names() == [], timeout_s=60)
        harness.expect("open_file", str(target))
        self.ui.importAdapterButton.click()
        harness.wait_until(lambda: self.names() == ["病院 2"], timeout_s=60)
        self.assertIn("Added '病院 2'", self.ui.adaptersMessage.text)

    def test_nothing_is_deleted_without_consent(self) -> None:
        harness.expect("ok_cancel", False)
        self.ui.deleteAdapterButton.click()
        harness.process_events(0.5)
        self.assertTrue((data_folder() / "adapters" / "Jülich 1").is_dir())


SEGMENTED = """
import shutil
time.sleep(0.5)
scans = arguments[arguments.index("--input") + 1 : ]
scans = [scan for scan in scans if scan.endswith(".nrrd")]
out = arguments[arguments.index("--out") + 1]
job = arguments[arguments.index("--job") + 1]
os.makedirs(out)
import SimpleITK as sitk
written = []
for scan in scans:
    labels = os.path.join(out, os.path.basename(scan))
    sitk.WriteImage(sitk.Cast(sitk.ReadImage(scan) > 430, sitk.sitkUInt8), labels)
    written.append(dict(scan=scan, labels=labels))
result = dict(written=written, failed=[])
open(os.path.join(job, "result.json"), "w").write(json.dumps(result))
emit(event="result", **result)
"""


class SegmentTest(PanelCase):
    engine = ("segment", SEGMENTED)

    def start(self, *names: str) -> list[Any]:
        volumes = [add_scan(name, seed, labeled=False)[0] for seed, name in enumerate(names)]
        self.panel.parameters.set_node("input", volumes[0])
        self.panel.parameters.set_nodes("scans", volumes[1:])
        self.panel.refresh()
        self.assertTrue(self.ui.segmentButton.enabled, self.ui.segmentButton.toolTip)
        self.ui.segmentButton.click()
        return volumes

    def results(self) -> list[Any]:
        return list(slicer.util.getNodesByClass("vtkMRMLSegmentationNode"))

    def test_many_volumes_get_a_result_each(self) -> None:
        self.start("eins", "zwei", "三")
        self.wait_for_end()
        names = " ".join(node.GetName() for node in self.results())
        self.assertEqual(len(self.results()), 3, self.ui.segmentStatus.text)
        for name in ("eins", "zwei", "三"):
            self.assertIn(name, names)
        self.assertEqual(list(jobs_folder().iterdir()), [])

    def test_a_volume_deleted_meanwhile_does_no_harm(self) -> None:
        (volume,) = self.start("gone")
        slicer.mrmlScene.RemoveNode(volume)
        self.wait_for_end()
        self.assertEqual(len(self.results()), 1)
        self.assertIn("gone", self.results()[0].GetName())

    def test_a_scene_closed_meanwhile_gets_no_result_and_says_so(self) -> None:
        self.start("old")
        slicer.mrmlScene.Clear(0)
        self.wait_for_end()
        self.assertEqual(self.results(), [])
        self.assertIn("scene was closed", self.ui.segmentStatus.text)

    def test_only_a_chosen_output_is_replaced(self) -> None:
        _, other = add_scan("other", 5)
        before = slicer.util.arrayFromSegmentBinaryLabelmap(other, other.GetSegmentation().GetNthSegmentID(0)).copy()
        _, chosen = add_scan("chosen", 6)
        self.panel.parameters.set_node("output", chosen)
        self.start("scan")
        self.wait_for_end()
        self.assertEqual(len(self.results()), 2)
        after = slicer.util.arrayFromSegmentBinaryLabelmap(other, other.GetSegmentation().GetNthSegmentID(0))
        self.assertTrue((before == after).all())
        self.assertIsNone(chosen.GetSegmentation().GetSegment(STRUCTURE))
        self.assertNotEqual(chosen.GetSegmentation().GetNthSegment(0).GetName(), STRUCTURE)

    def test_result_that_does_not_fit_into_memory_ends_the_run_all_the_same(self) -> None:
        with mock.patch.object(segment_task, "import_segmentation", side_effect=MemoryError("no 3 GB")):
            self.start("scan")
            self.wait_for_end()
        self.assertIn("'scan' could not be taken into the scene (no 3 GB)", self.ui.segmentStatus.text)
        self.assertTrue(self.ui.segmentButton.enabled)
        self.assertEqual(list(jobs_folder().iterdir()), [])

    def test_3d_is_shown_and_hidden(self) -> None:
        self.start("scan")
        self.wait_for_end()
        (node,) = self.results()
        self.ui.show3DButton.click()
        self.assertTrue(node.GetSegmentation().ContainsRepresentation("Closed surface"))
        self.assertTrue(node.GetDisplayNode().GetVisibility3D())
        self.ui.show3DButton.click()
        self.assertFalse(node.GetDisplayNode().GetVisibility3D())

    def test_edit_opens_the_segment_editor(self) -> None:
        self.start("scan")
        self.wait_for_end()
        with harness.main_window() as selector:
            self.ui.editButton.click()
        self.assertEqual(selector.selectedModule, "SegmentEditor")


class CrashedSegmentTest(PanelCase):
    engine = ("segment", 'print("Traceback: 頭", file=sys.stderr, flush=True); os.kill(os.getpid(), 9)')

    def test_a_crash_is_told_with_its_last_words_and_leaves_no_scan(self) -> None:
        self.panel.parameters.set_node("input", add_scan("scan", 1, labeled=False)[0])
        self.panel.refresh()
        self.ui.segmentButton.click()
        self.wait_for_end()
        self.assertIn("Traceback: 頭", self.ui.segmentStatus.text)
        self.assertEqual(list(jobs_folder().iterdir()), [])


APART = """
import sys, os
sys.path[:0] = sys.argv[1:]
import harness
harness.start_panel()
before = dict(os.environ)
widget = harness.open_module("TCurLoraSegment")
harness.wait_until(lambda: widget.panel.models and len(widget.panel.devices) > 1, timeout_s=120)
assert dict(os.environ) == before
harness.close_module(widget)
print(sorted({"torch", "monai", "tcurlora"} & set(sys.modules)))
"""


class ApartTest(unittest.TestCase):
    def test_slicer_loads_no_torch_and_keeps_its_environment(self) -> None:
        root = Path(__file__).resolve().parents[2]
        command = [sys.executable, "-c", APART, str(root / "Testing"), str(root / "TCurLoraSegment")]
        with tempfile.TemporaryDirectory() as home:
            environment = os.environ | {"TCURLORA_HOME": home}
            answer = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
        self.assertEqual(answer.stdout.strip().splitlines()[-1:], ["[]"], answer.stderr)
