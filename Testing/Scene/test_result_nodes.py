from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import unittest
from pathlib import Path
from unittest import mock

import numpy as np
import slicer

sys.path.insert(0, str(Path(__file__).resolve().parent))

from scenes import SceneTest, hierarchy

from TCurLoraSegmentLib.result_nodes import case_ticks, report_nodes, rows_of_table, summary_of
from TCurLoraSegmentLib.self_test import foreign

# The report comes from the engine itself, in a process of its own as always.
REPORT = """
import json
from tcurlora.evaluation.scores import Score
from tcurlora.evaluation.reports import build_report
cases, structures = ["case-01", "case-02", "case-04"], ["Kopf ü", "海馬"]
def scores(gain):
    made = [Score(c, s, 0.5 + 0.1 * i + 0.05 * j + gain, 3.0 + i - gain, 1.0, 2.0, 2.0)
            for i, c in enumerate(cases) for j, s in enumerate(structures)]
    made[-1] = Score("case-04", structures[1], None, None, None, 0.0, 0.0)
    return made
print(json.dumps(build_report(scores(0.0), scores(0.125), [], {}, {})))
"""
NODE_NAMES = {"case-01": "T1 Müller", "case-02": "T1 Ärztin", "case-04": "T1 海"}


class ReportNodesTest(SceneTest):
    @classmethod
    def setUpClass(cls):
        import TCurLoraSegmentLib

        folder = str(Path(TCurLoraSegmentLib.__file__).resolve().parents[1])
        code = f"import sys; sys.path.insert(0, {folder!r})\n{REPORT}"
        python = shutil.which("PythonSlicer") or sys.executable
        text = subprocess.run([python, "-X", "utf8", "-c", code], capture_output=True, check=True).stdout
        cls.report = json.loads(text)

    def column(self, table, name) -> list:
        column = table.GetTable().GetColumnByName(name)
        return [column.GetValue(row) for row in range(column.GetNumberOfValues())]

    def test_one_row_for_each_case_and_structure(self):
        nodes = report_nodes(self.report, "hippocampus Standort Ä", NODE_NAMES)
        self.assertEqual(
            list(zip(self.column(nodes.table, "Case"), self.column(nodes.table, "Structure"), strict=True)),
            [(case, structure) for case in NODE_NAMES.values() for structure in ("Kopf ü", "海馬")],
        )
        dice = np.array([self.column(nodes.table, name) for name in ("Dice base", "Dice adapted", "Dice gain")])
        np.testing.assert_allclose(dice[0, :5], [0.5, 0.55, 0.6, 0.65, 0.7])
        np.testing.assert_allclose(dice[1, :5], dice[0, :5] + 0.125)
        np.testing.assert_allclose(dice[2, :5], 0.125)
        self.assertTrue(np.isnan(dice[:, 5]).all())
        self.assertEqual(self.column(nodes.table, "HD95 base (mm)")[2], 4.0)
        self.assertEqual(self.column(nodes.table, "HD95 adapted (mm)")[2], 3.875)

    def test_summary_has_the_means_and_their_interval(self):
        nodes = report_nodes(self.report, "hippocampus", NODE_NAMES)
        comparison = self.report["cross_validation"]["comparison"]
        self.assertEqual(self.column(nodes.summary_table, "Structure"), ["Kopf ü", "海馬", "mean"])
        self.assertAlmostEqual(self.column(nodes.summary_table, "Dice gain")[0], 0.125)
        self.assertEqual(self.column(nodes.summary_table, "Improved"), [3.0, 2.0, 3.0])
        low, high = comparison["structures"]["Kopf ü"]["dice_difference_ci95"]
        self.assertEqual(self.column(nodes.summary_table, "Gain from (95 %)")[0], low)
        self.assertEqual(self.column(nodes.summary_table, "Gain to (95 %)")[0], high)
        self.assertTrue(math.isnan(self.column(nodes.summary_table, "Gain from (95 %)")[1]))

    def test_chart_shows_both_series_of_the_table(self):
        nodes = report_nodes(self.report, "hippocampus", NODE_NAMES)
        ids = [nodes.chart.GetNthPlotSeriesNodeID(n) for n in range(nodes.chart.GetNumberOfPlotSeriesNodes())]
        self.assertEqual(ids, [series.GetID() for series in nodes.series])
        for series, column in zip(nodes.series, ("Dice base", "Dice adapted"), strict=True):
            self.assertIs(series.GetTableNode(), nodes.table)
            self.assertEqual(series.GetYColumnName(), column)
            self.assertIsNotNone(nodes.table.GetTable().GetColumnByName(series.GetLabelColumnName()))
        self.assertEqual(self.column(nodes.table, "Label")[3], "T1 Ärztin · 海馬")

    def test_nodes_are_together_and_never_replace_earlier_ones(self):
        names = []
        for _run in range(2):
            nodes = report_nodes(self.report, "hippocampus", NODE_NAMES)
            everything = [nodes.table, nodes.summary_table, nodes.chart, *nodes.series]
            names += [node.GetName() for node in everything]
            tree = hierarchy()
            parents = {tree.GetItemParent(tree.GetItemByDataNode(node)) for node in everything}
            self.assertEqual(len(parents), 1)
            self.assertNotEqual(parents, {tree.GetSceneItemID()})
        self.assertEqual(len(set(names)), 10)

    def test_cases_keep_the_names_of_the_report_where_no_others_are_known(self):
        nodes = report_nodes(self.report, "hippocampus")
        self.assertEqual(self.column(nodes.table, "Case")[::2], ["case 01", "case 02", "case 03"])
        # Names that do not fit the cases one by one are not guessed.
        nodes = report_nodes(self.report, "hippocampus", {"case-01": "a", "case-02": "b"})
        self.assertEqual(self.column(nodes.table, "Case")[::2], ["case 01", "case 02", "case 03"])

    def test_one_structure_needs_no_mean_and_short_labels(self):
        comparison = dict(self.report["cross_validation"]["comparison"])
        comparison["structures"] = {"Kopf ü": comparison["structures"]["Kopf ü"]}
        sides = {
            side: {"cases": [s for s in self.report["cross_validation"][side]["cases"] if s["structure"] == "Kopf ü"]}
            for side in ("base", "adapted")
        }
        nodes = report_nodes({"cross_validation": {**sides, "comparison": comparison}}, "h", NODE_NAMES)
        self.assertEqual(self.column(nodes.summary_table, "Structure"), ["Kopf ü"])
        self.assertEqual(case_ticks(nodes.table), list(NODE_NAMES.values()))
        self.assertIsNone(nodes.table.GetTable().GetColumnByName("Label"), "it would repeat the cases")
        self.assertEqual({series.GetLabelColumnName() for series in nodes.series}, {"Case"})

    def test_numbers_have_the_decimals_that_mean_something(self):
        report = json.loads(json.dumps(self.report))
        for score in report["cross_validation"]["adapted"]["cases"]:
            score["dice"] = None if score["dice"] is None else score["dice"] + 1 / 3
        nodes = report_nodes(report, "h", NODE_NAMES)
        gains = [gain for gain in self.column(nodes.table, "Dice gain") if not math.isnan(gain)]
        self.assertEqual(gains, [round(gain, 3) for gain in gains])

    def test_legend_has_room_above_the_bars(self):
        nodes = report_nodes(self.report, "h", NODE_NAMES)
        self.assertGreater(nodes.chart.GetYAxisRange()[1], 1.1)

    def test_table_tells_the_result_again(self):
        nodes = report_nodes({**self.report, "summary": "It helps."}, "h", NODE_NAMES)
        self.assertEqual(summary_of(nodes.table), "It helps.")
        rows = rows_of_table(nodes.table)
        self.assertEqual(rows[0], ["T1 Müller", "Kopf ü", "0.500", "0.625", "+0.125"])
        self.assertEqual(rows[5][2:], ["", "", ""])

    def test_nothing_is_made_when_nothing_was_compared(self):
        for report in ({}, {"cross_validation": None}):
            self.assertIsNone(self.assertSceneUntouched(lambda: report_nodes(report, "h")))  # noqa: B023

    def test_nothing_is_left_when_the_report_is_damaged(self):
        before = slicer.mrmlScene.GetNumberOfNodes()
        broken = {"cross_validation": {**self.report["cross_validation"], "comparison": {"structures": {"a": {}}}}}
        self.assertRaises(KeyError, report_nodes, broken, "h")
        with mock.patch("TCurLoraSegmentLib.result_nodes._into_folder", side_effect=RuntimeError):
            self.assertRaises(RuntimeError, report_nodes, self.report, "h")
        self.assertEqual(slicer.mrmlScene.GetNumberOfNodes(), before)

    def test_survives_a_scene_bundle(self):
        nodes = report_nodes(self.report, "hippocampus Ä", NODE_NAMES)
        names = (nodes.table.GetName(), nodes.chart.GetName())
        gains = self.column(nodes.table, "Dice gain")
        bundle = self.folder / foreign("Bericht ü.mrb", "report.mrb")
        self.assertTrue(slicer.util.saveScene(str(bundle), {}))
        slicer.mrmlScene.Clear(0)
        slicer.util.loadScene(str(bundle), {})
        table, chart = (slicer.util.getNode(name) for name in names)
        np.testing.assert_allclose(self.column(table, "Dice gain"), gains)
        self.assertEqual(self.column(table, "Case")[0], "T1 Müller")
        self.assertEqual(chart.GetNumberOfPlotSeriesNodes(), 2)
        self.assertIs(chart.GetNthPlotSeriesNode(0).GetTableNode(), table)


if __name__ == "__main__":
    unittest.main()
