"""The .ui files hold only widgets and properties that Slicer's Qt, CTK and qMRML have, under Qt 5.15 and Qt 6."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from project_files import MODULE
from PySide6 import QtWidgets

UI_FILES = sorted((MODULE / "Resources/UI").glob("*.ui"))

QT_WIDGETS = {
    *(
        "QWidget",
        "QFrame",
        "QLabel",
        "QPushButton",
        "QToolButton",
        "QCheckBox",
        "QRadioButton",
        "QComboBox",
        "QSpinBox",
    ),
    *("QDoubleSpinBox", "QLineEdit", "QPlainTextEdit", "QTextBrowser", "QTextEdit", "QProgressBar", "QTableWidget"),
    *("QTableView", "QListWidget", "QTreeWidget", "QGroupBox", "QStackedWidget", "QTabWidget", "QSplitter", "QSlider"),
    *("QScrollArea", "QDialogButtonBox", "QDialog"),
}
LAYOUTS = {"QVBoxLayout", "QHBoxLayout", "QFormLayout", "QGridLayout"}
# What Qt's uic takes for layouts and spacers besides their Q_PROPERTYs.
LAYOUT_PROPERTIES = {
    *("leftMargin", "topMargin", "rightMargin", "bottomMargin", "margin", "spacing", "horizontalSpacing"),
    *("verticalSpacing", "sizeConstraint", "fieldGrowthPolicy", "rowWrapPolicy", "labelAlignment", "formAlignment"),
}
SPACER_PROPERTIES = {"orientation", "sizeHint", "sizeType"}
HEADER_ATTRIBUTES = {
    f"{side}Header{what}"
    for side in ("horizontal", "vertical")
    for what in ("Visible", "StretchLastSection", "DefaultSectionSize", "MinimumSectionSize", "CascadingSectionResizes")
}
# From the headers of CTK and of Slicer's MRML widgets: the class that each extends, and its own properties.
SLICER_WIDGETS = {
    "qMRMLWidget": ("QWidget", set()),
    "qMRMLNodeComboBox": (
        "QWidget",
        {
            *("nodeTypes", "showHidden", "showChildNodeTypes", "hideChildNodeTypes", "baseName", "noneEnabled"),
            *("addEnabled", "removeEnabled", "editEnabled", "renameEnabled", "interactionNodeSingletonTag"),
            *("selectNodeUponCreation", "noneDisplay", "sizeAdjustPolicy"),
        },
    ),
    "ctkCollapsibleButton": (
        "QAbstractButton",
        {
            *("collapsed", "collapsedHeight", "flat", "contentsFrameShape", "contentsFrameShadow", "contentsLineWidth"),
            *("contentsMidLineWidth", "buttonTextAlignment", "indicatorAlignment"),
        },
    ),
    "ctkCollapsibleGroupBox": ("QGroupBox", {"collapsed", "collapsedHeight"}),
    "ctkPathLineEdit": (
        "QWidget",
        {
            *("label", "filters", "currentPath", "options", "settingKey", "showBrowseButton", "showHistoryButton"),
            *("sizeAdjustPolicy", "minimumContentsLength", "nameFilters"),
        },
    ),
}
# Properties that Qt 6 has and Qt 5.15 has not.
ONLY_QT_6 = {"QComboBox": {"labelDrawingMode"}, "QAbstractButton": set()}
SIGNALS = {"qMRMLWidget": {"mrmlSceneChanged(vtkMRMLScene*)"}, "qMRMLNodeComboBox": {"nodeAdded(vtkMRMLNode*)"}}
SLOTS = {"qMRMLNodeComboBox": {"setMRMLScene(vtkMRMLScene*)"}}
STYLING = {"styleSheet", "font", "palette"}


def _properties_of_qt() -> dict[str, set[str]]:
    found = {}
    for name in dir(QtWidgets):
        kind = getattr(QtWidgets, name)
        if isinstance(kind, type) and hasattr(kind, "staticMetaObject"):
            meta = kind.staticMetaObject
            found[name] = {meta.property(index).name() for index in range(meta.propertyCount())}
    return found


# Asked for once and at the start: PySide may forget a class's description when its last widget has gone.
QT_PROPERTIES = _properties_of_qt()


def qt_properties(name: str) -> set[str]:
    """Give the properties of one of Qt's widget classes."""
    return QT_PROPERTIES[name] - ONLY_QT_6.get(name, set())


def properties_of(widget: str) -> set[str]:
    """Give the properties of a widget class that may stand in a .ui file, without those that style it."""
    base, own = SLICER_WIDGETS.get(widget, (widget, set()))
    return (qt_properties(base) | own) - STYLING


def problems_of(root: ElementTree.Element) -> list[str]:
    """Say what in a .ui file Slicer would not take, or would take otherwise than it is meant."""
    problems = []
    names = [element.get("name") for tag in ("widget", "layout", "spacer") for element in root.iter(tag)]
    problems += [f"two things are named {name}" for name in sorted({n for n in names if n and names.count(n) > 1})]
    widgets = {element.get("name"): element.get("class", "") for element in root.iter("widget")}
    for tag in ("widget", "layout", "spacer"):
        for element in root.iter(tag):
            problems += _problems_of_element(tag, element)
    for value in (*root.iter("enum"), *root.iter("set")):
        if (value.text or "").split("|")[0].count("::") != 1:
            problems.append(f"{value.text}: Qt 5 knows enumerators only as Class::Name")
    declared = {element.findtext("class") for element in root.iter("customwidget")}
    used = {name for name in widgets.values() if name in SLICER_WIDGETS}
    problems += [f"{name} is not among the custom widgets" for name in sorted(used - declared)]
    problems += [f"{name} is declared and not used" for name in sorted(declared - used)]
    connected = set()
    for connection in root.iter("connection"):
        sender, signal, receiver, slot = (
            connection.findtext(part, "") for part in ("sender", "signal", "receiver", "slot")
        )
        if signal not in SIGNALS.get(widgets.get(sender, ""), set()):
            problems.append(f"{sender} has no signal {signal}")
        if slot not in SLOTS.get(widgets.get(receiver, ""), set()):
            problems.append(f"{receiver} has no slot {slot}")
        connected.add((receiver, slot))
    problems += [
        f"{name} never gets the scene"
        for name, kind in widgets.items()
        if kind == "qMRMLNodeComboBox" and (name, "setMRMLScene(vtkMRMLScene*)") not in connected
    ]
    return problems


def _problems_of_element(tag: str, element: ElementTree.Element) -> list[str]:
    name, kind = element.get("name"), element.get("class", "")
    if tag == "spacer":
        allowed = SPACER_PROPERTIES
    elif tag == "layout":
        if kind not in LAYOUTS:
            return [f"{name}: {kind} is no layout that may be used"]
        allowed = LAYOUT_PROPERTIES
    else:
        if kind not in QT_WIDGETS | set(SLICER_WIDGETS):
            return [f"{name}: {kind} is no widget that may be used"]
        allowed = properties_of(kind)
    problems = [
        f"{name}: {kind or tag} has no property {one.get('name')}"
        for one in element.findall("property")
        # A property that is not of the class (stdset="0") is a note for Slicer, such as SlicerParameterName.
        if one.get("name") not in allowed
        and not (tag == "widget" and one.get("stdset") == "0" and one.get("name", "").startswith("Slicer"))
    ]
    if tag == "widget" and kind in ("QTableWidget", "QTableView", "QTreeWidget"):
        problems += [
            f"{name}: {kind} has no attribute {one.get('name')}"
            for one in element.findall("attribute")
            if one.get("name") not in HEADER_ATTRIBUTES
        ]
    return problems


@pytest.mark.parametrize("path", UI_FILES, ids=lambda path: path.name)
def test_slicer_takes_the_panel(path: Path) -> None:
    problems = problems_of(ElementTree.parse(path).getroot())
    assert not problems, "\n".join(problems)


def test_there_is_a_panel() -> None:
    assert MODULE / "Resources/UI/TCurLoraSegment.ui" in UI_FILES


BAD = """<ui><widget class="qMRMLWidget" name="root">
  <widget class="QLabel" name="one"><property name="colour"/></widget>
  <widget class="QLabel" name="one"><property name="styleSheet"/></widget>
  <widget class="QKnob" name="two"/>
  <widget class="ctkPathLineEdit" name="three"><property name="dirs"/><property name="filters"><set>ctkPathLineEdit::Filter::Dirs</set></property></widget>
  <widget class="qMRMLNodeComboBox" name="four"><property name="nodeType" stdset="0"/></widget>
  <layout class="QBoxLayout" name="five"/>
  <spacer name="six"><property name="width"/></spacer>
  <widget class="QTableWidget" name="seven"><attribute name="headerHidden"/></widget>
  </widget>
  <customwidgets><customwidget><class>ctkPathLineEdit</class></customwidget>
    <customwidget><class>qMRMLWidget</class></customwidget><customwidget><class>ctkSliderWidget</class></customwidget>
  </customwidgets>
  <connections><connection><sender>root</sender><signal>sceneChanged()</signal><receiver>one</receiver>
    <slot>setScene()</slot></connection></connections></ui>"""  # noqa: E501


def test_bad_panels_are_found() -> None:
    found = "\n".join(problems_of(ElementTree.fromstring(BAD)))
    for expected in (
        "two things are named one",
        "one: QLabel has no property colour",
        "one: QLabel has no property styleSheet",
        "two: QKnob is no widget",
        "three: ctkPathLineEdit has no property dirs",
        "ctkPathLineEdit::Filter::Dirs: Qt 5",
        "four: qMRMLNodeComboBox has no property nodeType",
        "five: QBoxLayout is no layout",
        "six: spacer has no property width",
        "seven: QTableWidget has no attribute headerHidden",
        "qMRMLNodeComboBox is not among the custom widgets",
        "ctkSliderWidget is declared and not used",
        "root has no signal sceneChanged()",
        "one has no slot setScene()",
        "four never gets the scene",
    ):
        assert expected in found
    assert len(found.splitlines()) == 15
