"""The report of an adaptation as tables and a chart of the scene."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import slicer
import vtk
from slicer.i18n import tr as _

from TCurLoraSegmentLib.scene_import import unique_name

SUMMARY_ATTRIBUTE = "TCurLoraSegment.Summary"
"""Attribute of a table of cases: the result in words."""

_DECIMALS = 3
_ROOM_FOR_LEGEND = 0.2
_LEGEND_POINTS = 10
_BASE_COLOR = (0.55, 0.55, 0.55)
_ADAPTED_COLOR = (0.12, 0.47, 0.71)


@dataclass(frozen=True)
class ReportNodes:
    """Nodes that show base against adapted.

    Attributes:
        table: one row for each case and structure.
        summary_table: one row for each structure, and one for their mean.
        chart: Dice of base and adapted, case by case.
        series: the two series of the chart.
    """

    table: Any
    summary_table: Any
    chart: Any
    series: tuple[Any, ...]


def report_nodes(
    report: Mapping[str, Any], name: str, case_names: Mapping[str, str] | None = None
) -> ReportNodes | None:
    """Make tables and a chart of the numbers in a report.

    Args:
        report: content of the engine's `report.json`.
        name: title of the chart; the nodes get names that begin with it and are not taken.
        case_names: name of each exported case to the name of its volume, as in `CaseExport.node_names`. The report
            itself numbers the cases in the order of their names.

    Returns:
        The new nodes, in a folder of the subject hierarchy; None when nothing was compared.
    """
    validation = report.get("cross_validation")
    if not validation:
        return None
    rows = comparison_rows(validation, case_names or {})
    made: list[Any] = []
    try:
        table = _table(_("{name} cases").format(name=name), made)
        _fill_cases(table, rows)
        table.SetAttribute(SUMMARY_ATTRIBUTE, str(report.get("summary", "")))
        summary = _table(_("{name} summary").format(name=name), made)
        _fill_summary(summary, validation["comparison"])
        series = tuple(
            _series(title, column, color, table, made, _label_column(rows))
            for title, column, color in (
                (_("Base"), "Dice base", _BASE_COLOR),
                (_("Adapted"), "Dice adapted", _ADAPTED_COLOR),
            )
        )
        chart = _add("vtkMRMLPlotChartNode", _("{name} chart").format(name=name), made)
        chart.SetTitle(name)
        chart.SetYAxisTitle("Dice")
        chart.SetXAxisTitle(_("Case"))
        chart.SetYAxisRangeAuto(False)
        # Above the bars, which end at 1, and not over the last of them.
        chart.SetYAxisRange(0.0, 1.0 + _ROOM_FOR_LEGEND)
        if hasattr(chart, "SetLegendFontSize"):
            chart.SetLegendFontSize(_LEGEND_POINTS)
        for one in series:
            chart.AddAndObservePlotSeriesNodeID(one.GetID())
        _into_folder(name, made)
    except BaseException:
        for node in reversed(made):
            slicer.mrmlScene.RemoveNode(node)
        raise
    return ReportNodes(table, summary, chart, series)


@dataclass(frozen=True)
class ComparisonRow:
    """A structure of a case: what it is called, and the scores of base and adapted."""

    case: str
    structure: str
    label: str
    base: Mapping[str, Any]
    adapted: Mapping[str, Any]


def comparison_rows(validation: Mapping[str, Any], case_names: Mapping[str, str]) -> list[ComparisonRow]:
    """Pair the scores of base and adapted.

    Args:
        validation: `cross_validation` of a report.
        case_names: as in `report_nodes`.
    """
    base, adapted = (validation[side]["cases"] for side in ("base", "adapted"))
    other = {(score["case"], score["structure"]): score for score in adapted}
    reported = sorted({score["case"] for score in base})
    exported = sorted(case_names)
    title_of = {case: case_names.get(case, case) for case in reported}
    if len(exported) == len(reported) and not set(exported) & set(reported):
        title_of = {case: case_names[own] for case, own in zip(reported, exported, strict=True)}
    several = len({score["structure"] for score in base}) > 1
    rows = []
    for score in sorted(base, key=lambda s: reported.index(s["case"])):
        title = title_of[score["case"]]
        label = f"{title} · {score['structure']}" if several else title
        rows.append(
            ComparisonRow(title, score["structure"], label, score, other.get((score["case"], score["structure"]), {}))
        )
    return rows


def summary_of(table: Any) -> str:
    """Return the result in words that a table of cases was made with."""
    return str(table.GetAttribute(SUMMARY_ATTRIBUTE) or "")


def case_ticks(table: Any) -> list[str]:
    """Return what the bars of a table of cases are called, from left to right."""
    return _texts_in(table, "Label") or _texts_in(table, "Case")


def rows_of_table(table: Any) -> list[list[str]]:
    """Return the rows of a table of cases as texts: case, structure, Dice of base and adapted, and the change."""
    columns = [_texts_in(table, "Case"), _texts_in(table, "Structure")]
    if not all(columns):
        return []
    for title, form in (("Dice base", ".3f"), ("Dice adapted", ".3f"), ("Dice gain", "+.3f")):
        column = table.GetTable().GetColumnByName(title)
        numbers = [] if column is None else [column.GetVariantValue(n).ToDouble() for n in range(len(columns[0]))]
        columns.append(["" if math.isnan(number) else f"{number:{form}}" for number in numbers])
    return [list(row) for row in zip(*columns, strict=False)]


def _texts_in(table: Any, title: str) -> list[str]:
    column = table.GetTable().GetColumnByName(title)
    return [] if column is None else [str(column.GetValue(n)) for n in range(column.GetNumberOfValues())]


def _label_column(rows: Sequence[ComparisonRow]) -> str:
    """The column that names the bars; where there is one structure, the case does."""
    return "Label" if any(row.label != row.case for row in rows) else "Case"


def _fill_cases(table: Any, rows: Sequence[ComparisonRow]) -> None:
    _text_column(table, "Case", [row.case for row in rows])
    _text_column(table, "Structure", [row.structure for row in rows])
    _number_column(table, "Dice base", [row.base.get("dice") for row in rows])
    _number_column(table, "Dice adapted", [row.adapted.get("dice") for row in rows])
    _number_column(table, "Dice gain", [_difference(row, "dice") for row in rows])
    _number_column(table, "HD95 base (mm)", [row.base.get("hd95_mm") for row in rows])
    _number_column(table, "HD95 adapted (mm)", [row.adapted.get("hd95_mm") for row in rows])
    if _label_column(rows) == "Label":
        _text_column(table, "Label", [row.label for row in rows])


def _fill_summary(table: Any, comparison: Mapping[str, Any]) -> None:
    entries = dict(comparison["structures"])
    if len(entries) > 1:
        entries[_("mean")] = comparison["mean"]
    numbers = list(entries.values())
    intervals = [entry.get("dice_difference_ci95") or (None, None) for entry in numbers]
    _text_column(table, "Structure", list(entries))
    _number_column(table, "Cases", [entry["n"] for entry in numbers])
    _number_column(table, "Dice base", [entry["base_dice"] for entry in numbers])
    _number_column(table, "Dice adapted", [entry["adapted_dice"] for entry in numbers])
    _number_column(table, "Dice gain", [entry["dice_difference"] for entry in numbers])
    _number_column(table, "Gain from (95 %)", [low for low, _high in intervals])
    _number_column(table, "Gain to (95 %)", [high for _low, high in intervals])
    _number_column(table, "Improved", [entry["improved"] for entry in numbers])
    _number_column(table, "Worsened", [entry["worsened"] for entry in numbers])
    _number_column(table, "HD95 base (mm)", [entry["base_hd95_mm"] for entry in numbers])
    _number_column(table, "HD95 adapted (mm)", [entry["adapted_hd95_mm"] for entry in numbers])


def _difference(row: ComparisonRow, measure: str) -> float | None:
    before, after = row.base.get(measure), row.adapted.get(measure)
    return None if before is None or after is None else after - before


def _table(name: str, made: list[Any]) -> Any:
    node = _add("vtkMRMLTableNode", name, made)
    node.SetUseColumnTitleAsColumnHeader(True)
    node.SetLocked(True)
    return node


def _text_column(table: Any, title: str, texts: Sequence[str]) -> None:
    column = vtk.vtkStringArray()
    column.SetName(title)
    for text in texts:
        column.InsertNextValue(text)
    table.AddColumn(column)


def _number_column(table: Any, title: str, numbers: Sequence[float | None]) -> None:
    column = vtk.vtkDoubleArray()
    column.SetName(title)
    for number in numbers:
        column.InsertNextValue(math.nan if number is None else round(float(number), _DECIMALS))
    table.AddColumn(column)


def _series(
    title: str, column: str, color: tuple[float, float, float], table: Any, made: list[Any], labels: str
) -> Any:
    node = _add("vtkMRMLPlotSeriesNode", title, made)
    node.SetAndObserveTableNodeID(table.GetID())
    node.SetPlotType(slicer.vtkMRMLPlotSeriesNode.PlotTypeBar)
    node.SetYColumnName(column)
    node.SetLabelColumnName(labels)
    node.SetColor(*color)
    return node


def _add(class_name: str, name: str, made: list[Any]) -> Any:
    node = slicer.mrmlScene.AddNewNodeByClass(class_name, unique_name(name))
    made.append(node)
    return node


def _into_folder(name: str, nodes: Sequence[Any]) -> None:
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    scene = hierarchy.GetSceneItemID()
    folder = hierarchy.CreateFolderItem(scene, hierarchy.GenerateUniqueItemName(name))
    for node in nodes:
        item = hierarchy.GetItemByDataNode(node) or hierarchy.CreateItem(folder, node)
        hierarchy.SetItemParent(item, folder)
