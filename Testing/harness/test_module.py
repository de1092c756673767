"""A scripted module with a .ui file lives in the stand-in as it lives in Slicer."""

from __future__ import annotations

import logging
import shutil
import sys
import tempfile
import unittest
from pathlib import Path

import qt
import slicer

import harness

SOURCE = """
import slicer
from slicer.i18n import tr as _
from slicer.ScriptedLoadableModule import *
from slicer.util import VTKObservationMixin


class Sample(ScriptedLoadableModule):
    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        parent.title = _("Sample")
        parent.categories = ["Segmentation"]
        slicer.app.connect("startupCompleted()", register)


def register():
    import SampleData

    SampleData.SampleDataLogic.registerCustomSampleDataSource(category="c", sampleName="s", uris=["u"], nodeNames=["n"])


class SampleWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.log = []

    def setup(self):
        ScriptedLoadableModuleWidget.setup(self)
        widget = slicer.util.loadUI(self.resourcePath("UI/Sample.ui"))
        self.layout.addWidget(widget)
        self.ui = slicer.util.childWidgetVariables(widget)
        widget.setMRMLScene(slicer.mrmlScene)
        self.logic = SampleLogic()
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndCloseEvent, self.on_closed)
        self.ui.button.connect("clicked(bool)", self.on_click)

    def on_click(self):
        with slicer.util.tryWithErrorDisplay(_("It failed."), waitCursor=True):
            if self.ui.path.currentPath == "bad":
                raise ValueError("a bad path")
            self.logic.getParameterNode().SetParameter("path", self.ui.path.currentPath)

    def on_closed(self, caller, event):
        self.log.append(("closed", self.parent.isEntered))

    def enter(self):
        self.log.append("enter")

    def exit(self):
        self.log.append("exit")

    def cleanup(self):
        self.log.append("cleanup")
        self.removeObservers()


class SampleLogic(ScriptedLoadableModuleLogic):
    pass


class SampleTest(ScriptedLoadableModuleTest):
    ran = []

    def setUp(self):
        self.ran.append("setUp")

    def test_one(self):
        self.ran.append("one")
"""

UI = """<ui version="4.0"><class>Sample</class><widget class="qMRMLWidget" name="Sample">
<layout class="QVBoxLayout" name="all">
<item><widget class="qMRMLNodeComboBox" name="selector"><property name="nodeTypes"><stringlist notr="true">
<string>vtkMRMLScalarVolumeNode</string></stringlist></property>
<property name="noneEnabled"><bool>true</bool></property>
<property name="SlicerParameterName" stdset="0"><string>volume</string></property></widget></item>
<item><widget class="ctkCollapsibleButton" name="section"><property name="text"><string>Größe 頭</string></property>
<property name="collapsed"><bool>true</bool></property><layout class="QFormLayout" name="form"><item row="0" column="1">
<widget class="ctkPathLineEdit" name="path"><property name="filters">
<set>ctkPathLineEdit::Files|ctkPathLineEdit::Readable</set>
</property></widget></item></layout></widget></item>
<item><widget class="QPushButton" name="button"><property name="text"><string>Apply</string></property></widget></item>
</layout></widget><resources/><connections><connection><sender>Sample</sender>
<signal>mrmlSceneChanged(vtkMRMLScene*)</signal><receiver>selector</receiver><slot>setMRMLScene(vtkMRMLScene*)</slot>
</connection></connections></ui>"""


class ModuleTest(unittest.TestCase):
    def setUp(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="Modul ü 頭 "))
        self.addCleanup(shutil.rmtree, self.folder)
        self.addCleanup(lambda: sys.path.remove(str(self.folder)) if str(self.folder) in sys.path else None)
        (self.folder / "Resources/UI").mkdir(parents=True)
        (self.folder / "Sample.py").write_text(SOURCE, encoding="utf-8")
        self.ui_file = self.folder / "Resources/UI/Sample.ui"
        self.ui_file.write_text(UI, encoding="utf-8")

    def test_life_of_a_module(self) -> None:
        widget = harness.open_module("Sample", self.folder)
        self.assertEqual(slicer.modules.sample.title, "Sample")
        self.assertIs(slicer.util.getModuleWidget("Sample"), widget)
        self.assertIn("s", [entry["sampleName"] for entry in harness.sample_data])
        self.assertTrue(widget.ui.selector.enabled)
        self.assertEqual(widget.ui.section.text, "Größe 頭")
        self.assertFalse(widget.ui.path.visible)
        harness.show(widget, 300, 300)
        picture = self.folder / "panel.png"
        harness.grab(widget, picture)
        self.assertGreater(picture.stat().st_size, 1000)

        widget.ui.path.currentPath = "/daten/ü"
        widget.ui.button.click()
        node = widget.logic.getParameterNode()
        self.assertEqual(node.GetParameter("path"), "/daten/ü")
        self.assertIs(widget.logic.getParameterNode(), node)
        slicer.mrmlScene.Clear(0)
        harness.leave_module(widget)
        slicer.mrmlScene.Clear(0)
        harness.close_module(widget)
        self.assertEqual(widget.log, ["enter", ("closed", True), "exit", ("closed", False), "cleanup"])
        self.assertFalse(hasattr(slicer.modules, "sample"))

    def test_an_error_is_shown_and_then_raised_in_the_slot(self) -> None:
        widget = harness.open_module("Sample", self.folder)
        widget.ui.path.currentPath = "bad"
        harness.expect("error")
        logging.disable(logging.CRITICAL)
        self.addCleanup(logging.disable, logging.NOTSET)
        widget.ui.button.click()
        self.assertIn("a bad path", harness.shown[0].text)
        with self.assertRaisesRegex(AssertionError, "a bad path"):
            harness.fail_on_errors()

    def test_reload(self) -> None:
        widget = harness.open_module("Sample", self.folder)
        widget.onReload()
        again = slicer.modules.SampleWidget
        self.assertIsNot(again, widget)
        self.assertIn("cleanup", widget.log)
        again.ui.button.click()

    def test_own_test_class_runs(self) -> None:
        harness.open_module("Sample", self.folder)
        slicer.selfTests["Sample"]()
        self.assertEqual(sys.modules["Sample"].SampleTest.ran, ["setUp", "one"])

    def test_ui_files_with_unknown_things_are_refused(self) -> None:
        for old, new in (
            ('name="noneEnabled"', 'name="noneEnable"'),
            ('class="qMRMLNodeComboBox"', 'class="qMRMLNodesComboBox"'),
            ("mrmlSceneChanged(vtkMRMLScene*)", "mrmlSceneChange(vtkMRMLScene*)"),
            ("setMRMLScene(vtkMRMLScene*)", "setScene(vtkMRMLScene*)"),
        ):
            self.assertIn(old, UI)
            self.ui_file.write_text(UI.replace(old, new), encoding="utf-8")
            with self.assertRaises((ValueError, RuntimeError), msg=new):
                slicer.util.loadUI(str(self.ui_file))
            harness.errors.clear()

    def test_modules_take_their_fields_only(self) -> None:
        module = slicer.qSlicerScriptedLoadableModule("x", "x.py")
        with self.assertRaises(AttributeError):
            module.tittle = "x"
        with self.assertRaises(AttributeError):
            module.categories = "Segmentation"
        module.icon = qt.QIcon()

    def test_packages_are_recorded_and_not_installed(self) -> None:
        slicer.packaging.pip_ensure(["nonsense>=1"], requester="Sample")
        self.assertEqual(harness.pip_calls[0][:2], ("pip_ensure", ["nonsense>=1"]))
        harness.pip_failure.append(RuntimeError("declined"))
        with self.assertRaises(RuntimeError):
            slicer.util.pip_install("nonsense")
        with self.assertRaises(TypeError):
            slicer.packaging.pip_ensure("x", ask=True)
        self.assertTrue(slicer.packaging.pip_check("numpy>=1.20"))
        self.assertFalse(slicer.packaging.pip_check(["numpy>=99"]))

    def test_the_end_of_the_application_is_heard(self) -> None:
        heard: list[str] = []

        def on_end() -> None:
            heard.append("end")

        slicer.app.connect("aboutToQuit()", on_end)
        harness.quit_application()
        slicer.app.disconnect("aboutToQuit()", on_end)
        self.assertEqual(heard, ["end"])
