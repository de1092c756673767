"""Qt for a panel: `qt`, `ctk`, the widgets of `slicer`, and the opening of a module as Slicer does it."""
# ruff: noqa: N801, N802, N803, N815

from __future__ import annotations

import importlib.util
import logging
import os
import sys
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

import slicer
import slicer.util
from PySide6 import QtCore, QtGui, QtWidgets

from . import app, dialogs, layout, pythonqt, qt_facts, qt_loader, qt_widgets, scripted_module, supplied

_kept: list[Any] = []


class qSlicerApplication(QtWidgets.QApplication):
    """Qt's part of slicer.app."""

    startupCompleted = QtCore.Signal()
    aboutToExit = QtCore.Signal()

    def userSettings(self) -> QtCore.QSettings:
        return QtCore.QSettings()

    def settings(self) -> QtCore.QSettings:
        return QtCore.QSettings()


class qSlicerModuleManager(QtCore.QObject):
    """slicer.app.moduleManager(), with the modules that were opened here."""

    moduleAboutToBeUnloaded = QtCore.Signal(str)

    def __init__(self) -> None:
        super().__init__()
        self._modules: dict[str, Any] = {}

    def module(self, name: str) -> Any:
        return self._modules.get(name) or getattr(slicer.modules, name.lower(), None)


class qSlicerScriptedLoadableModule:
    """What a module's Python class gets as its parent, and what slicer.modules.<name> is."""

    _KINDS = types.MappingProxyType(
        {
            "title": str,
            "categories": list,
            "dependencies": list,
            "contributors": list,
            "associatedNodeTypes": list,
            "helpText": str,
            "acknowledgementText": str,
            "icon": pythonqt.Wrapper,
            "hidden": bool,
            "index": int,
        }
    )

    def __init__(self, name: str, path: str) -> None:
        vars(self).update(name=name, path=path, hidden=False, index=-1, associatedNodeTypes=[])

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            vars(self)[name] = value
            return
        kind = self._KINDS.get(name)
        if kind is None:
            raise AttributeError(f"qSlicerScriptedLoadableModule has no attribute named '{name}'")
        if not isinstance(value, kind) or (kind is list and not all(isinstance(one, str) for one in value)):
            raise AttributeError(f"Property '{name}' does not accept {value!r}")
        vars(self)[name] = value

    def widgetRepresentation(self) -> Any:
        if "_widget" not in vars(self):
            self._widget = _new_widget(self.name)
        return self._widget

    def logic(self) -> Any:
        return None


def start_panel() -> None:
    """Make `qt` and `ctk` importable and fill in what needs Qt in `slicer`; a second call does nothing."""
    app.start()
    if _kept:
        return
    folder = Path(slicer.app.slicerHome)
    QtCore.QSettings.setDefaultFormat(QtCore.QSettings.Format.IniFormat)
    for scope in (QtCore.QSettings.Scope.UserScope, QtCore.QSettings.Scope.SystemScope):
        QtCore.QSettings.setPath(QtCore.QSettings.Format.IniFormat, scope, str(folder / "settings"))
    QtCore.QCoreApplication.setOrganizationName("stand-in")
    QtCore.QCoreApplication.setApplicationName("Slicer")
    QtCore.qInstallMessageHandler(_on_qt_message)
    application = qSlicerApplication(["Slicer"])
    application.setStyle("Fusion")
    application.setQuitOnLastWindowClosed(False)
    manager = qSlicerModuleManager()
    _kept.extend((application, manager))

    _supply_qt()
    slicer.app._qt = pythonqt.wrap(application)
    slicer.app._manager = pythonqt.wrap(manager)
    for name, native in qt_widgets.MRML.items():
        setattr(slicer, name, pythonqt.class_for(native))
    slicer.qSlicerScriptedLoadableModule = qSlicerScriptedLoadableModule
    sys.modules["slicer.ScriptedLoadableModule"] = scripted_module
    slicer.ScriptedLoadableModule = scripted_module
    slicer.util._messageDisplay = _message_display
    slicer.util.delayDisplay = _delay_display


def _on_qt_message(kind: QtCore.QtMsgType, _context: Any, text: str) -> None:
    """Print what Qt has to say, except for what only concerns running without a screen."""
    if "This plugin does not support" not in text:
        print(f"Qt: {text}", file=sys.stderr)


def _supply_qt() -> None:
    qt, ctk = types.ModuleType("qt"), types.ModuleType("ctk")
    for name in qt_facts.CLASSES:
        native = next((getattr(part, name) for part in (QtCore, QtGui, QtWidgets) if hasattr(part, name)), None)
        setattr(qt, name, pythonqt.class_for(native) if name != "Qt" else _Namespace(QtCore.Qt))
    qt.QUiLoader = pythonqt.class_for(qt_loader.UiLoader)  # type: ignore[attr-defined]
    for name, native in qt_widgets.CTK.items():
        setattr(ctk, name, pythonqt.class_for(native))
    sys.modules["qt"], sys.modules["ctk"] = qt, ctk


class _Namespace:
    """qt.Qt: enum values only."""

    def __init__(self, native: Any) -> None:
        self._native = native

    def __getattr__(self, name: str) -> Any:
        value = pythonqt._enum_member(self._native, name)
        if value is None:
            raise AttributeError(f"Qt has no attribute named '{name}'")
        return value


# Dialogs of slicer.util

_KINDS = {logging.INFO: "info", logging.WARNING: "warning", logging.ERROR: "error"}


def _message_display(
    logLevel: int,
    text: str,
    testingReturnValue: Any,
    mainWindowNeeded: bool = False,
    parent: Any = None,
    windowTitle: str | None = None,
    **keywords: Any,
) -> Any:
    """Stand in for the one function through which slicer.util shows messages and questions."""
    import qt

    logging.log(logLevel, text)
    if slicer.app.testingEnabled():
        return testingReturnValue
    buttons, box = keywords["standardButtons"], qt.QMessageBox
    details = keywords.get("detailedText", "")
    for kind, yes, no in (
        ("ok_cancel", box.Ok, box.Cancel),
        ("yes_no", box.Yes, box.No),
        ("retry_close", box.Retry, box.Close),
    ):
        if buttons == yes | no:
            return yes if dialogs.ask(kind, windowTitle or "", text, details) else no
    dialogs.ask(_KINDS[logLevel], windowTitle or "", text, details)
    return box.Ok


def _delay_display(message: str, autoCloseMsec: int = 1000, parent: Any = None, **keywords: Any) -> None:
    logging.info(message)
    slicer.app.processEvents()


# Modules


def open_module(name: str = "TCurLoraSegment", folder: Path = app.EXTENSION) -> Any:
    """Load a scripted module as Slicer does at its start, and show its panel.

    Args:
        name: The module's name.
        folder: Where its file is.

    Returns:
        The object of the module's Python widget class, after setup() and enter().
    """
    path = str(folder / f"{name}.py")
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    source = importlib.util.module_from_spec(spec)
    sys.modules[name] = source
    spec.loader.exec_module(source)
    module = qSlicerScriptedLoadableModule(name, path)
    instance = getattr(source, name)(module)
    setattr(slicer.modules, name.lower(), module)
    setattr(slicer.modules, f"{name}Instance", instance)
    slicer.app.moduleManager()._native._modules[name] = module
    slicer.app.startupCompleted.emit()
    fail_on_errors()
    widget = module.widgetRepresentation().self()
    enter_module(widget)
    return widget


def _new_widget(name: str) -> Any:
    parent = slicer.qSlicerScriptedLoadableModuleWidget()
    native = parent._native

    def make() -> None:
        cls = getattr(sys.modules[name], f"{name}Widget")
        native._self = cls(parent)
        setattr(slicer.modules, f"{name}Widget", native._self)
        native._self.setup()

    native._reload = make
    make()
    parent.setMRMLScene(slicer.mrmlScene)
    return parent


def enter_module(widget: Any) -> None:
    """Let the user come to the module."""
    widget.parent._native._entered = True
    getattr(widget, "enter", lambda: None)()


def leave_module(widget: Any) -> None:
    """Let the user go to another module."""
    widget.parent._native._entered = False
    getattr(widget, "exit", lambda: None)()


def close_module(widget: Any) -> None:
    """End the module as the application's end does, and delete its panel."""
    name = widget.moduleName
    module = getattr(slicer.modules, name.lower())
    slicer.app.moduleManager().moduleAboutToBeUnloaded.emit(name)
    for attribute in (name.lower(), f"{name}Instance", f"{name}Widget"):
        delattr(slicer.modules, attribute)
    slicer.app.moduleManager()._native._modules.pop(name, None)
    module._widget.hide()
    module._widget.deleteLater()
    process_events()


@contextmanager
def main_window() -> Iterator[Any]:
    """Have a main window with views for a while: a layout manager, and slicer.util.selectModule."""
    window = slicer.qSlicerMainWindow()
    selector = layout.ModuleSelector()
    window._native._selector = selector
    slicer.app._layout = layout.LayoutManager()
    try:
        yield selector
    finally:
        slicer.app._layout.close()
        slicer.app._layout = None
        window.deleteLater()
        process_events()


@contextmanager
def testing_mode() -> Iterator[None]:
    """Be a Slicer that was started with --testing."""
    slicer.app._testing = True
    try:
        yield
    finally:
        slicer.app._testing = False


# Driving


def process_events(seconds: float = 0.0) -> None:
    """Let Qt work for a while."""
    end = time.monotonic() + seconds
    while True:
        QtWidgets.QApplication.processEvents()
        QtCore.QCoreApplication.sendPostedEvents(None, int(QtCore.QEvent.Type.DeferredDelete))
        if time.monotonic() >= end:
            return
        time.sleep(0.005)


def wait_until(condition: Callable[[], Any], timeout_s: float = 10.0) -> None:
    """Let Qt work until a condition holds.

    Raises:
        TimeoutError: If it does not come to hold in time.
        AssertionError: If a slot raised meanwhile.
    """
    end = time.monotonic() + timeout_s
    while not condition():
        fail_on_errors()
        if time.monotonic() > end:
            raise TimeoutError(f"waited {timeout_s} s in vain")
        process_events(0.01)


def choose_node(selector: Any, node: Any) -> None:
    """Choose a node in a selector, or None, as the user does."""
    pythonqt.unwrap(selector)._choose(node)


def visible_text(table: Any, row: int, column: int) -> str:
    """Give what is seen of a cell's text in the width that its column has: cut as the table cuts, or all of it."""
    native = pythonqt.unwrap(table)
    frame = native.style().pixelMetric(QtWidgets.QStyle.PixelMetric.PM_FocusFrameHMargin, None, native) + 1
    text = native.item(row, column).text()
    return str(native.fontMetrics().elidedText(text, native.textElideMode(), native.columnWidth(column) - 2 * frame))


def words_of(widget: Any) -> dict[str, str]:
    """Give every text that a widget and those within show, or would show as a tooltip, by the names of the widgets."""
    native = (widget if isinstance(widget, pythonqt.Wrapper) else widget.parent)._native
    found: dict[str, str] = {}
    for one in [native, *native.findChildren(QtWidgets.QWidget)]:
        texts = [one.toolTip(), one.windowTitle(), one.statusTip(), one.whatsThis()]
        for getter in ("text", "toPlainText", "title", "placeholderText", "currentText"):
            if callable(getattr(one, getter, None)):
                texts.append(str(getattr(one, getter)()))
        if isinstance(one, QtWidgets.QComboBox):
            texts += [one.itemText(index) for index in range(one.count())]
        if isinstance(one, QtWidgets.QTableWidget):
            cells = [one.item(r, c) for r in range(one.rowCount()) for c in range(one.columnCount())]
            texts += [text for cell in cells if cell is not None for text in (cell.text(), cell.toolTip())]
        joined = " ".join(filter(None, texts))
        if joined:
            found[one.objectName() or type(one).__name__] = found.get(one.objectName(), "") + joined
    return found


def show(widget: Any, width: int = 0, height: int = 0) -> None:
    """Show a widget, in its own size or in this one."""
    native = getattr(widget, "parent", widget)._native if not isinstance(widget, pythonqt.Wrapper) else widget._native
    native.show()
    if width or height:
        native.resize(width or native.sizeHint().width(), height or native.sizeHint().height())
    process_events(0.05)


def grab(widget: Any, file: Path | str) -> None:
    """Write a picture of a widget as it is shown."""
    native = widget._native if isinstance(widget, pythonqt.Wrapper) else widget.parent._native
    process_events(0.05)
    if not native.grab().save(str(file)):
        raise OSError(f"{file} could not be written")


def quit_application() -> None:
    """Tell everybody that the application is about to end."""
    slicer.app._qt._native.aboutToQuit.emit()


def fail_on_errors() -> None:
    """Fail if a slot raised or a dialog came that nobody expected."""
    if pythonqt.errors:
        found = list(pythonqt.errors)
        pythonqt.errors.clear()
        raise AssertionError("raised in a slot, where Slicer would only print it:\n" + "\n".join(found))
    if dialogs.unexpected:
        found = [str(one) for one in dialogs.unexpected]
        dialogs.unexpected.clear()
        raise AssertionError("dialogs that were not expected:\n" + "\n".join(found))


def begin_test() -> None:
    """Forget what earlier tests left."""
    dialogs.forget()
    pythonqt.errors.clear()
    supplied.pip_calls.clear()
    supplied.pip_failure.clear()
    supplied.sample_data.clear()
    QtCore.QSettings().clear()
    app.clear_scene()


def end_test() -> None:
    """Close what is open and fail by what went wrong unseen."""
    process_events()
    for name in [name for name in vars(slicer.modules) if name.endswith("Widget")]:
        close_module(getattr(slicer.modules, name))
    for window in QtWidgets.QApplication.topLevelWidgets():
        window.hide()
        window.deleteLater()
    process_events()
    app.clear_scene()
    waiting = dialogs.outstanding()
    fail_on_errors()
    if waiting:
        raise AssertionError(f"dialogs that were expected and never came: {waiting}")
