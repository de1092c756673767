"""The stand-in for PythonQt offers what PythonQt offers, and refuses what it refuses."""
# ruff: noqa: N802

from __future__ import annotations

import functools
import gc
import unittest
from pathlib import Path
from typing import Any

import ctk
import numpy as np
import qt
import slicer

import harness


class CollapsibleButtonTest(unittest.TestCase):
    def test_what_is_shown_while_it_is_closed_appears_when_it_is_opened(self) -> None:
        button = ctk.ctkCollapsibleButton()
        button.setLayout(qt.QVBoxLayout())
        label = qt.QLabel("1")
        button.layout().addWidget(label)
        label.setVisible(False)
        button.collapsed = True
        label.setVisible(True)
        self.assertFalse(label.isVisibleTo(button))
        button.collapsed = False
        self.assertTrue(label.isVisibleTo(button))


class PropertiesTest(unittest.TestCase):
    def test_a_property_is_a_value_and_its_setter_a_function(self) -> None:
        label = qt.QLabel("Größe")
        self.assertEqual(label.text, "Größe")
        label.text = "頭"
        self.assertEqual(label.text, "頭")
        label.setText("b")
        self.assertEqual(label.text, "b")
        label.enabled = False
        self.assertFalse(label.isEnabled())
        self.assertIsInstance(label.width, int)
        label.name = "label"
        self.assertEqual(label.objectName, "label")

    def test_a_property_is_no_function(self) -> None:
        with self.assertRaises(TypeError):
            qt.QLabel().text()
        with self.assertRaises(TypeError):
            qt.QComboBox().currentData()
        with self.assertRaises(TypeError):
            qt.QTableWidget(1, 1).rowCount()

    def test_properties_take_their_own_type_only(self) -> None:
        label, spin = qt.QLabel(), qt.QDoubleSpinBox()
        for value in (5, None, Path("a")):
            with self.assertRaises(AttributeError):
                label.text = value
            with self.assertRaises((ValueError, TypeError)):
                label.setText(value)
        for value in (1, None, np.bool_(True), "yes"):
            with self.assertRaises(AttributeError):
                label.enabled = value
            with self.assertRaises((ValueError, TypeError)):
                label.setEnabled(value)
        with self.assertRaises(AttributeError):
            qt.QSpinBox().value = 2.0
        with self.assertRaises(AttributeError):
            spin.value = np.int64(3)
        spin.value = 3
        spin.value = np.float64(4.5)
        self.assertEqual(spin.value, 4.5)

    def test_read_only_properties_stay(self) -> None:
        with self.assertRaisesRegex(AttributeError, "not writable"):
            qt.QComboBox().count = 3

    def test_a_timer_is_made_single_shot_by_its_function(self) -> None:
        timer = qt.QTimer()
        with self.assertRaises(AttributeError):
            timer.singleShot = True
        timer.setSingleShot(True)
        self.assertTrue(timer.isSingleShot())
        self.assertFalse(timer.active)

    def test_dynamic_properties(self) -> None:
        label = qt.QLabel()
        label.setProperty("SlicerParameterName", "x")
        self.assertEqual(label.property("SlicerParameterName"), "x")
        self.assertEqual(label.SlicerParameterName, "x")

    def test_items_are_no_objects_with_properties(self) -> None:
        item = qt.QTableWidgetItem("a")
        self.assertEqual(item.text(), "a")
        with self.assertRaises(AttributeError):
            item.text = "b"


class StrictnessTest(unittest.TestCase):
    def test_unknown_attributes(self) -> None:
        button = qt.QPushButton("x")
        with self.assertRaises(AttributeError):
            button.toolTop  # noqa: B018
        with self.assertRaisesRegex(AttributeError, "creating new attributes"):
            button.payload = 1
        with self.assertRaisesRegex(AttributeError, "overwritten"):
            button.setText = print
        with self.assertRaisesRegex(AttributeError, "overwritten"):
            button.clicked = print
        with self.assertRaises(AttributeError):
            qt.QPushButton.payload = 1

    def test_keyword_arguments(self) -> None:
        with self.assertRaisesRegex(TypeError, "keyword"):
            qt.QLabel(text="a")
        with self.assertRaisesRegex(TypeError, "keyword"):
            qt.QLabel().setText(text="a")

    def test_what_only_pyside_has(self) -> None:
        for name in ("Signal", "Slot", "Property", "QtCore", "SIGNAL"):
            self.assertFalse(hasattr(qt, name), name)
        for owner, name in (
            (qt.QLabel(), "screen"),
            (qt.QFormLayout(), "setRowVisible"),
            (qt.QCheckBox(), "checkStateChanged"),
            (qt.QDialog(), "exec"),
            (qt.QColor("red"), "toTuple"),
            (qt.QLabel("x"), "linkHoveredOver"),
        ):
            self.assertFalse(hasattr(owner, name), name)

    def test_enums(self) -> None:
        label = qt.QLabel()
        label.alignment = qt.Qt.AlignRight | qt.Qt.AlignTop
        self.assertEqual(label.alignment, qt.Qt.AlignTop | qt.Qt.AlignRight)
        with self.assertRaises(AttributeError):
            label.alignment = 2
        with self.assertRaises(TypeError):
            label.setAlignment(2)
        with self.assertRaises(AttributeError):
            label.focusPolicy = qt.Qt.AlignTop
        for scoped in (lambda: qt.QMessageBox.StandardButton.Ok, lambda: qt.Qt.AlignmentFlag.AlignTop):
            with self.assertRaises(AttributeError):
                scoped()
        with self.assertRaises(AttributeError):
            qt.Qt.AlignOnTop  # noqa: B018

    def test_lists_are_tuples(self) -> None:
        widget = qt.QWidget()
        qt.QLabel("a", widget)
        self.assertIsInstance(widget.children(), tuple)
        self.assertEqual(widget.findChildren("QLabel"), widget.findChildren(qt.QLabel))

    def test_a_deleted_widget(self) -> None:
        label = qt.QLabel()
        label.deleteLater()
        harness.process_events()
        self.assertFalse(label)
        with self.assertRaises(ValueError):
            label.text  # noqa: B018

    def test_paths_and_numbers_of_numpy_are_not_taken(self) -> None:
        with self.assertRaises(TypeError):
            qt.QIcon(Path("a.png"))
        with self.assertRaises((TypeError, ValueError)):
            qt.QProgressBar().setValue(np.int64(3))


class SignalsTest(unittest.TestCase):
    def setUp(self) -> None:
        self.button = qt.QPushButton("b")
        self.button.checkable = True
        self.heard: list[Any] = []

    def test_a_function_gets_what_it_names(self) -> None:
        heard, button = self.heard, self.button
        button.connect("clicked(bool)", lambda checked: heard.append(checked))
        button.connect("clicked()", lambda: heard.append("none"))
        button.clicked.connect(lambda: heard.append("trimmed"))
        button.clicked.connect(lambda *args: heard.append(args))
        button.connect("clicked(bool)", lambda value="mine": heard.append(value))
        button.click()
        self.assertEqual(heard, [True, "none", "trimmed", (True,), True])

    def test_methods_and_partials(self) -> None:
        class Listener:
            def __init__(self, heard: list[Any]) -> None:
                self.heard = heard

            def on_click(self) -> None:
                self.heard.append("method")

        listener = Listener(self.heard)
        self.button.clicked.connect(listener.on_click)
        del listener
        gc.collect()
        self.button.clicked.connect(functools.partial(lambda name, checked: self.heard.append((name, checked)), "p"))
        self.button.click()
        self.assertEqual(self.heard, ["method", ("p", True)])

    def test_disconnect(self) -> None:
        def listen() -> None:
            self.heard.append(1)

        self.button.connect("clicked()", listen)
        self.assertTrue(self.button.disconnect("clicked()", listen))
        self.button.click()
        self.assertEqual(self.heard, [])

    def test_a_wrong_signature_is_refused(self) -> None:
        with self.assertRaises(ValueError):
            self.button.connect("clickd()", print)
        with self.assertRaises(ValueError):
            qt.QComboBox().connect("currentIndexChanged(bool)", print)

    def test_an_exception_in_a_slot_fails_the_test(self) -> None:
        def fail() -> None:
            raise RuntimeError("in the slot")

        self.button.clicked.connect(fail)
        self.button.click()
        with self.assertRaisesRegex(AssertionError, "in the slot"):
            harness.fail_on_errors()

    def test_slot_of_another_object(self) -> None:
        label = qt.QLabel()
        edit = qt.QLineEdit()
        edit.connect("textChanged(QString)", label, "setText(QString)")
        edit.text = "ü"
        self.assertEqual(label.text, "ü")

    def test_timers(self) -> None:
        timer = qt.QTimer()
        timer.setInterval(5)
        timer.timeout.connect(lambda: self.heard.append("tick"))
        timer.start()
        qt.QTimer.singleShot(0, lambda: self.heard.append("once"))
        harness.wait_until(lambda: "tick" in self.heard and "once" in self.heard)
        timer.stop()


class SubclassTest(unittest.TestCase):
    def test_events_reach_a_class_written_in_python(self) -> None:
        class Plot(qt.QWidget):
            def __init__(self, parent: Any = None) -> None:
                qt.QWidget.__init__(self, parent)
                self.painted = 0

            def paintEvent(self, event: Any) -> None:
                self.painted += 1
                painter = qt.QPainter(self)
                painter.setPen(qt.QPen(qt.QColor("#d33")))
                painter.drawLine(0, 0, self.width, self.height)
                painter.end()

        holder = qt.QWidget()
        layout = qt.QVBoxLayout(holder)
        layout.addWidget(Plot(holder))
        harness.show(holder, 80, 80)
        plot = holder.findChild(qt.QWidget, "") or holder.children()[-1]
        self.assertIsInstance(plot, Plot)
        self.assertGreater(plot.painted, 0)
        self.assertEqual(plot.parent(), holder)

    def test_event_filter(self) -> None:
        class Filter(qt.QObject):
            def eventFilter(self, watched: Any, event: Any) -> bool:
                if event.type() == qt.QEvent.Resize:
                    seen.append(watched)
                return False

        seen: list[Any] = []
        widget, watcher = qt.QWidget(), Filter()
        widget.installEventFilter(watcher)
        harness.show(widget, 50, 50)
        self.assertIn(widget, seen)


class WidgetsTest(unittest.TestCase):
    def test_node_combo_box(self) -> None:
        heard: list[Any] = []
        combo = slicer.qMRMLNodeComboBox()
        combo.nodeTypes = ["vtkMRMLScalarVolumeNode"]
        combo.showChildNodeTypes = False
        combo.noneEnabled = True
        self.assertFalse(combo.enabled)
        combo.setMRMLScene(slicer.mrmlScene)
        self.assertTrue(combo.enabled)
        combo.connect("currentNodeChanged(vtkMRMLNode*)", heard.append)
        first = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "頭")
        volume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "頭")
        slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode")
        self.assertEqual(combo.nodeCount(), 2)
        self.assertIsNone(combo.currentNode())
        activated: list[Any] = []
        combo.connect("nodeActivated(vtkMRMLNode*)", activated.append)
        combo.setCurrentNode(volume)
        self.assertEqual(combo.currentNodeID, volume.GetID())
        self.assertEqual(activated, [])
        harness.choose_node(combo, first)
        harness.choose_node(combo, None)
        harness.choose_node(combo, volume)
        self.assertEqual(activated, [first, None, volume])
        # The box goes to the row above by itself.
        slicer.mrmlScene.RemoveNode(volume)
        self.assertEqual(combo.currentNode(), first)
        slicer.mrmlScene.RemoveNode(first)
        self.assertIsNone(combo.currentNode())
        self.assertEqual(heard, [volume, first, None, volume, first, None])
        self.assertEqual(activated, [first, None, volume])

    def test_node_combo_box_loses_its_node_when_a_scene_is_read_into_this_one(self) -> None:
        combo = slicer.qMRMLNodeComboBox()
        combo.nodeTypes = ["vtkMRMLScalarVolumeNode"]
        combo.noneEnabled = True
        combo.setMRMLScene(slicer.mrmlScene)
        combo.setCurrentNode(slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode"))
        heard: list[Any] = []
        combo.connect("currentNodeChanged(vtkMRMLNode*)", heard.append)
        slicer.mrmlScene.SetLoadFromXMLString(1)
        self.addCleanup(slicer.mrmlScene.SetLoadFromXMLString, 0)
        slicer.mrmlScene.SetSceneXMLString("<MRML></MRML>")
        slicer.mrmlScene.Import()
        self.assertEqual(heard, [None])
        self.assertEqual(combo.nodeCount(), 1)

    def test_collapsible_button(self) -> None:
        button = ctk.ctkCollapsibleButton()
        button.text = "Advanced"
        layout = qt.QVBoxLayout(button)
        label, hidden = qt.QLabel("inside"), qt.QLabel("hidden")
        layout.addWidget(label)
        layout.addWidget(hidden)
        hidden.visible = False
        harness.show(button)
        button.collapsed = True
        self.assertFalse(label.isVisible())
        button.collapsed = False
        self.assertTrue(label.isVisible())
        self.assertFalse(hidden.isVisible())

    def test_settings_are_empty_and_kept(self) -> None:
        slicer.app.userSettings().setValue("TCurLora/Python", "/a ü")
        self.assertEqual(slicer.util.settingsValue("TCurLora/Python", ""), "/a ü")
        self.assertEqual(slicer.util.settingsValue("TCurLora/Other", "default"), "default")


class DialogsTest(unittest.TestCase):
    def test_answers(self) -> None:
        harness.expect("yes_no", False)
        harness.expect("ok_cancel", True)
        harness.expect("error")
        harness.expect("save_file", "/a.zip")
        harness.expect("text", "name")
        self.assertFalse(slicer.util.confirmYesNoDisplay("Delete?"))
        self.assertTrue(slicer.util.confirmOkCancelDisplay("Go on?"))
        slicer.util.errorDisplay("It failed.", detailedText="why")
        self.assertEqual(qt.QFileDialog.getSaveFileName(None, "Save", "", "Zip (*.zip)"), "/a.zip")
        self.assertEqual(qt.QInputDialog.getText(None, "Rename", "Name"), "name")
        self.assertEqual([one.kind for one in harness.shown][:3], ["yes_no", "ok_cancel", "error"])
        self.assertEqual(harness.shown[2].details, "why")

    def test_an_unexpected_dialog_fails(self) -> None:
        with self.assertRaises(AssertionError):
            slicer.util.infoDisplay("Hello")
        with self.assertRaisesRegex(AssertionError, "Hello"):
            harness.fail_on_errors()

    def test_a_dialog_that_never_comes_fails(self) -> None:
        harness.expect("info")
        with self.assertRaisesRegex(AssertionError, "never came"):
            harness.end_test()
        harness.begin_test()

    def test_own_dialogs_and_message_boxes(self) -> None:
        dialog = qt.QDialog()
        harness.expect("dialog", lambda window: window.accept())
        self.assertEqual(dialog.exec_(), qt.QDialog.Accepted)
        harness.expect("message", qt.QMessageBox.Cancel)
        box = qt.QMessageBox()
        box.text = "Keep?"
        box.setStandardButtons(qt.QMessageBox.Ok | qt.QMessageBox.Cancel)
        self.assertEqual(box.exec_(), qt.QMessageBox.Cancel)
        own = box.addButton("Keep both", qt.QMessageBox.ActionRole)
        harness.expect("message", lambda window: own.click())
        box.exec_()
        self.assertEqual(box.clickedButton(), own)

    def test_nothing_leaves_the_process(self) -> None:
        qt.QDesktopServices.openUrl(qt.QUrl.fromLocalFile("/tmp/a b.html"))
        self.assertEqual(len(harness.opened_urls), 1)

    def test_testing_mode_skips_questions(self) -> None:
        with harness.testing_mode():
            # Slicer documents True; it compares True with the button, so that the answer is No.
            self.assertFalse(slicer.util.confirmYesNoDisplay("Delete?"))
        self.assertEqual(harness.shown, [])

    def test_main_window(self) -> None:
        with self.assertRaises(RuntimeError):
            slicer.util.selectModule("SegmentEditor")
        volume = slicer.util.addVolumeFromArray(np.zeros((3, 4, 5)))
        with harness.main_window() as selector:
            slicer.util.selectModule("SegmentEditor")
            self.assertEqual(selector.selectedModule, "SegmentEditor")
            slicer.util.setSliceViewerLayers(background=volume, fit=True)
            slicer.util.resetThreeDViews()
            red = slicer.app.layoutManager().sliceWidget("Red")
            self.assertEqual(red.mrmlSliceCompositeNode().GetBackgroundVolumeID(), volume.GetID())
        self.assertIsNone(slicer.util.mainWindow())
        self.assertIsNone(slicer.app.layoutManager())
