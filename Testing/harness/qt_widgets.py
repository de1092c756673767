"""CTK's and MRML's widgets as far as a panel needs them, on PySide6, bound to the real scene.

Properties and signals are declared to Qt, so that .ui files set them and the wrappers find them as they do on the
real ones. Names of functions are those of the originals.
"""
# ruff: noqa: N801, N802, N815

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import slicer
from PySide6 import QtCore, QtGui, QtWidgets
from shiboken6 import isValid

from . import dialogs


def _field(kind: Any, name: str, changed: str = "") -> Any:
    """Declare a Qt property that is kept in `_<name>`, and after whose change a function is called."""

    def read(self: Any) -> Any:
        return getattr(self, f"_{name}")

    def write(self: Any, value: Any) -> None:
        setattr(self, f"_{name}", value)
        if changed:
            getattr(self, changed)()

    return QtCore.Property(kind, read, write)


def _setter(name: str) -> Callable[[Any, Any], None]:
    def set_property(self: Any, value: Any) -> None:
        setattr(self, name, value)

    return set_property


class ctkCollapsibleButton(QtWidgets.QAbstractButton):
    """A heading that opens and closes what lies under it."""

    contentsCollapsed = QtCore.Signal(bool)

    def __init__(self, text: Any = "", parent: QtWidgets.QWidget | None = None) -> None:
        if isinstance(text, QtWidgets.QWidget):
            text, parent = "", text
        super().__init__(parent)
        self._collapsed = False
        self._flat = False
        self._collapsed_height = 14
        self._was_visible: dict[QtWidgets.QWidget, bool] = {}
        self._forcing = False
        self.setText(text)
        self.setCheckable(True)
        self.setChecked(True)
        self.setSizePolicy(QtWidgets.QSizePolicy.Policy.Minimum, QtWidgets.QSizePolicy.Policy.Preferred)
        self.setContentsMargins(0, self._button_height(), 0, 0)
        self.toggled.connect(lambda checked: self._collapse(not checked))

    def _get_collapsed(self) -> bool:
        return self._collapsed

    def setCollapsed(self, collapsed: bool) -> None:
        self.setChecked(not collapsed)

    collapsed = QtCore.Property(bool, _get_collapsed, setCollapsed)
    flat = _field(bool, "flat", "update")
    collapsedHeight = _field(int, "collapsed_height")

    def _collapse(self, collapsed: bool) -> None:
        if collapsed == self._collapsed:
            return
        self._collapsed = collapsed
        self.setMaximumHeight(self._button_height() + self._collapsed_height if collapsed else 16777215)
        self._forcing = True
        for child in self.children():
            if isinstance(child, QtWidgets.QWidget) and not child.isWindow():
                if collapsed:
                    self._was_visible[child] = not child.isHidden()
                    child.setVisible(False)
                else:
                    child.setVisible(self._was_visible.pop(child, True))
        self._forcing = False
        self.updateGeometry()
        self.contentsCollapsed.emit(collapsed)

    def childEvent(self, event: QtCore.QChildEvent) -> None:
        child = event.child()
        if event.type() == QtCore.QEvent.Type.ChildAdded and child.isWidgetType():
            child.installEventFilter(self)
        if event.type() == QtCore.QEvent.Type.ChildPolished and self._collapsed and child.isWidgetType():
            self._was_visible.setdefault(child, not child.isHidden())
            self._forcing = True
            child.setVisible(False)
            self._forcing = False
        super().childEvent(event)

    def eventFilter(self, child: QtCore.QObject, event: QtCore.QEvent) -> bool:
        """A child that is shown while this is closed stays hidden until it is opened."""
        kinds = (QtCore.QEvent.Type.ShowToParent, QtCore.QEvent.Type.HideToParent)
        if self._collapsed and not self._forcing and event.type() in kinds and isinstance(child, QtWidgets.QWidget):
            self._forcing = True
            self._was_visible[child] = event.type() == kinds[0]
            child.setVisible(False)
            self._forcing = False
        return False

    def _button_height(self) -> int:
        return self.fontMetrics().height() + 8

    def hitButton(self, position: QtCore.QPoint) -> bool:
        return position.y() < self._button_height()

    def sizeHint(self) -> QtCore.QSize:
        inner = QtWidgets.QWidget.sizeHint(self)
        height = self._button_height() + (self._collapsed_height if self._collapsed else 0)
        if self._collapsed or not self.layout():
            return QtCore.QSize(max(inner.width(), 120), height)
        return self.layout().totalSizeHint().expandedTo(QtCore.QSize(120, height))

    def minimumSizeHint(self) -> QtCore.QSize:
        if self._collapsed or not self.layout():
            return QtCore.QSize(80, self._button_height())
        return self.layout().totalMinimumSize()

    def paintEvent(self, event: QtGui.QPaintEvent) -> None:
        painter = QtGui.QPainter(self)
        option = QtWidgets.QStyleOptionButton()
        option.initFrom(self)
        option.rect = QtCore.QRect(0, 0, self.width(), self._button_height())
        style = self.style()
        style.drawControl(QtWidgets.QStyle.ControlElement.CE_PushButtonBevel, option, painter, self)
        arrow = QtWidgets.QStyleOption()
        arrow.initFrom(self)
        size = self._button_height()
        arrow.rect = QtCore.QRect(size // 4, size // 4, size // 2, size // 2)
        element = QtWidgets.QStyle.PrimitiveElement
        shape = element.PE_IndicatorArrowRight if self._collapsed else element.PE_IndicatorArrowDown
        style.drawPrimitive(shape, arrow, painter, self)
        flags = QtCore.Qt.AlignmentFlag.AlignLeft | QtCore.Qt.AlignmentFlag.AlignVCenter
        mnemonic = int(flags.value) | int(QtCore.Qt.TextFlag.TextHideMnemonic.value)
        place = option.rect.adjusted(size, 0, 0, 0)
        style.drawItemText(painter, place, mnemonic, self.palette(), self.isEnabled(), self.text())


class ctkCollapsibleGroupBox(QtWidgets.QGroupBox):
    """A group box that a click on its title closes."""

    def __init__(self, title: Any = "", parent: QtWidgets.QWidget | None = None) -> None:
        if isinstance(title, QtWidgets.QWidget):
            title, parent = "", title
        super().__init__(title, parent)
        self._collapsed_height = 14
        self.setCheckable(True)
        self.setChecked(True)
        self.toggled.connect(self._expand)

    def _get_collapsed(self) -> bool:
        return not self.isChecked()

    def setCollapsed(self, collapsed: bool) -> None:
        self.setChecked(not collapsed)

    collapsed = QtCore.Property(bool, _get_collapsed, setCollapsed)
    collapsedHeight = _field(int, "collapsed_height")

    def _expand(self, expanded: bool) -> None:
        for child in self.children():
            if isinstance(child, QtWidgets.QWidget):
                child.setVisible(expanded)
        self.setMaximumHeight(16777215 if expanded else self.fontMetrics().height() + self._collapsed_height)

    def paintEvent(self, event: QtGui.QPaintEvent) -> None:
        """Draw an arrow in place of a check box; what is left of a closed box is an empty frame, as CTK draws it."""
        painter = QtWidgets.QStylePainter(self)
        option = QtWidgets.QStyleOptionGroupBox()
        self.initStyleOption(option)
        control = QtWidgets.QStyle.SubControl
        title = self.fontMetrics().height()
        if not self.isFlat():
            option.subControls = control.SC_GroupBoxFrame
            painter.drawComplexControl(QtWidgets.QStyle.ComplexControl.CC_GroupBox, option)
        arrow = QtWidgets.QStyleOption()
        arrow.initFrom(self)
        arrow.rect = QtCore.QRect(2, 2, title - 4, title - 4)
        element = QtWidgets.QStyle.PrimitiveElement
        painter.drawPrimitive(
            element.PE_IndicatorArrowDown if self.isChecked() else element.PE_IndicatorArrowRight, arrow
        )
        flags = int((QtCore.Qt.AlignmentFlag.AlignLeft | QtCore.Qt.AlignmentFlag.AlignVCenter).value)
        place = QtCore.QRect(title + 2, 0, self.width() - title, title)
        self.style().drawItemText(painter, place, flags, self.palette(), self.isEnabled(), self.title())


class ctkPathLineEdit(QtWidgets.QWidget):
    """A line for a file or folder with a button to browse."""

    currentPathChanged = QtCore.Signal(str)
    validInputChanged = QtCore.Signal(bool)

    Filter = QtCore.QDir.Filter
    Option = QtWidgets.QFileDialog.Option

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._label = ""
        self._setting_key = ""
        self._name_filters: list[str] = []
        self._shows_browse = True
        self._shows_history = True
        self._filters = QtCore.QDir.Filter.AllEntries
        self._combo = QtWidgets.QComboBox(self)
        self._combo.setEditable(True)
        self._combo.setInsertPolicy(QtWidgets.QComboBox.InsertPolicy.NoInsert)
        self._button = QtWidgets.QToolButton(self)
        self._button.setText("...")
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._combo, 1)
        layout.addWidget(self._button)
        self._button.clicked.connect(self.browse)
        self._combo.editTextChanged.connect(self.currentPathChanged)

    def _get_path(self) -> str:
        return self._combo.currentText()

    def setCurrentPath(self, path: str) -> None:
        self._combo.setEditText(path)

    def _get_filters(self) -> int:
        return int(self._filters.value)

    def setFilters(self, filters: Any) -> None:
        self._filters = QtCore.QDir.Filter(filters)

    def _show_buttons(self) -> None:
        self._button.setVisible(self._shows_browse)

    currentPath = QtCore.Property(str, _get_path, setCurrentPath)
    filters = QtCore.Property(int, _get_filters, setFilters)
    label = _field(str, "label")
    settingKey = _field(str, "setting_key")
    nameFilters = _field("QStringList", "name_filters")
    showBrowseButton = _field(bool, "shows_browse", "_show_buttons")
    showHistoryButton = _field(bool, "shows_history")
    setLabel, setSettingKey, setNameFilters = _setter("label"), _setter("settingKey"), _setter("nameFilters")
    setShowBrowseButton, setShowHistoryButton = _setter("showBrowseButton"), _setter("showHistoryButton")

    def comboBox(self) -> QtWidgets.QComboBox:
        return self._combo

    def addCurrentPathToHistory(self) -> None:
        self._combo.addItem(self._get_path())

    def browse(self) -> None:
        files = bool(self._filters & QtCore.QDir.Filter.Files)
        path = dialogs.ask("open_file" if files else "folder", self._label, " ".join(self._name_filters))
        if path:
            self.setCurrentPath(path)


class ctkMessageBox(QtWidgets.QMessageBox):
    """A message box that can be told not to come again."""

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._again = False
        self._key = ""
        self._again_visible = False

    dontShowAgain = _field(bool, "again")
    dontShowAgainSettingsKey = _field(str, "key")
    dontShowAgainVisible = _field(bool, "again_visible")


class qMRMLWidget(QtWidgets.QWidget):
    """A widget that knows the scene, and tells those within."""

    mrmlSceneChanged = QtCore.Signal(object)

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._scene: Any = None

    def mrmlScene(self) -> Any:
        return self._scene

    def setMRMLScene(self, scene: Any) -> None:
        if scene is not self._scene:
            self._scene = scene
            self.mrmlSceneChanged.emit(scene)


class qSlicerScriptedLoadableModuleWidget(qMRMLWidget):
    """What a module's Python widget class gets as its parent."""

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        QtWidgets.QVBoxLayout(self)
        self._entered = False
        self._self: Any = None
        self._reload: Callable[[], None] = lambda: None

    def _is_entered(self) -> bool:
        return self._entered

    isEntered = QtCore.Property(bool, _is_entered)

    def self(self) -> Any:
        return self._self

    def reload(self) -> None:
        self._reload()


class qMRMLNodeComboBox(QtWidgets.QWidget):
    """A choice among the scene's nodes of some classes; a node that is new in the scene is not selected by itself."""

    currentNodeChanged = QtCore.Signal((object,), (bool,))
    currentNodeIDChanged = QtCore.Signal(str)
    nodeAdded = QtCore.Signal(object)
    nodeAddedByUser = QtCore.Signal(object)
    nodeActivated = QtCore.Signal(object)
    nodeAboutToBeRemoved = QtCore.Signal(object)

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._scene: Any = None
        self._types: list[str] = []
        self._hidden_types: list[str] = []
        self._attributes: list[tuple[str, str, Any]] = []
        self._show_hidden = False
        self._show_children = True
        self._none = False
        self._none_display = "None"
        self._add = self._remove = self._select_created = True
        self._edit = self._rename = False
        self._base_name = ""
        self._tag = ""
        self._nodes: list[Any] = []
        self._current: Any = None
        self._requested = ""
        self._combo = QtWidgets.QComboBox(self)
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._combo)
        self._combo.activated.connect(self._on_activated)
        self.setEnabled(False)

    nodeTypes = _field("QStringList", "types", "_fill")
    hideChildNodeTypes = _field("QStringList", "hidden_types", "_fill")
    showHidden = _field(bool, "show_hidden", "_fill")
    showChildNodeTypes = _field(bool, "show_children", "_fill")
    noneEnabled = _field(bool, "none", "_fill")
    noneDisplay = _field(str, "none_display", "_fill")
    addEnabled = _field(bool, "add", "_fill")
    removeEnabled = _field(bool, "remove", "_fill")
    editEnabled = _field(bool, "edit")
    renameEnabled = _field(bool, "rename")
    baseName = _field(str, "base_name")
    selectNodeUponCreation = _field(bool, "select_created")
    interactionNodeSingletonTag = _field(str, "tag")
    setNodeTypes, setHideChildNodeTypes = _setter("nodeTypes"), _setter("hideChildNodeTypes")
    setShowHidden, setShowChildNodeTypes = _setter("showHidden"), _setter("showChildNodeTypes")
    setNoneEnabled, setNoneDisplay = _setter("noneEnabled"), _setter("noneDisplay")
    setAddEnabled, setRemoveEnabled = _setter("addEnabled"), _setter("removeEnabled")
    setEditEnabled, setRenameEnabled = _setter("editEnabled"), _setter("renameEnabled")
    setBaseName, setSelectNodeUponCreation = _setter("baseName"), _setter("selectNodeUponCreation")

    def _get_id(self) -> str:
        return self._current.GetID() if self._current else ""

    def setCurrentNodeID(self, node_id: str) -> None:
        if self._scene is None:
            self._requested = node_id
            return
        self.setCurrentNode(self._scene.GetNodeByID(node_id) if node_id else None)

    currentNodeID = QtCore.Property(str, _get_id, setCurrentNodeID)

    def mrmlScene(self) -> Any:
        return self._scene

    def setMRMLScene(self, scene: Any) -> None:
        if scene is self._scene:
            return
        assert self._scene is None or scene is None, "the stand-in knows one scene"
        self._scene = scene
        self.setEnabled(scene is not None)
        self._fill()
        if scene is None:
            return
        me = weakref.ref(self)

        def refresh(*_: Any) -> None:
            combo = me()
            if combo is not None and isValid(combo):
                combo._fill()

        def rebuild(*_: Any) -> None:
            """After an import the original makes its list anew, and loses what was selected."""
            combo = me()
            if combo is not None and isValid(combo):
                combo._select(None)
                combo._fill()

        tags = [
            scene.AddObserver(event, refresh)
            for event in (
                scene.NodeAddedEvent,
                scene.NodeRemovedEvent,
                scene.EndCloseEvent,
                scene.EndBatchProcessEvent,
            )
        ]
        tags.append(scene.AddObserver(scene.EndImportEvent, rebuild))
        self.destroyed.connect(lambda *_: [scene.RemoveObserver(tag) for tag in tags])
        if self._requested:
            self.setCurrentNodeID(self._requested)

    def currentNode(self) -> Any:
        return self._current

    def setCurrentNode(self, node: Any) -> None:
        if isinstance(node, str):
            self.setCurrentNodeID(node)
            return
        if node is not None and not isinstance(node, slicer.vtkMRMLNode):
            raise ValueError(f"setCurrentNode takes a node, not {node!r}")
        self._select(node if node in self._nodes else None)

    def nodeCount(self) -> int:
        return len(self._nodes)

    def nodeFromIndex(self, index: int) -> Any:
        return self._nodes[index] if 0 <= index < len(self._nodes) else None

    def nodes(self) -> list[Any]:
        return list(self._nodes)

    def addAttribute(self, node_type: str, name: str, value: Any = None) -> None:
        self._attributes.append((node_type, name, value))
        self._fill()

    def removeAttribute(self, node_type: str, name: str) -> None:
        self._attributes = [one for one in self._attributes if one[:2] != (node_type, name)]
        self._fill()

    def addNode(self, node_type: str = "") -> Any:
        """Make a node, as the entry 'Create new ...' does."""
        node = self._scene.AddNewNodeByClass(node_type or self._types[0], self._base_name)
        if self._select_created:
            self.setCurrentNode(node)
        self.nodeAddedByUser.emit(node)
        return node

    def removeCurrentNode(self) -> None:
        self._scene.RemoveNode(self._current)

    def _shows(self, node: Any) -> bool:
        if node.GetHideFromEditors() and not self._show_hidden:
            return False
        kind = next((kind for kind in self._types if node.IsA(kind)), None)
        if kind is None or (not self._show_children and node.GetClassName() not in self._types):
            return False
        if any(node.IsA(hidden) for hidden in self._hidden_types):
            return False
        for node_type, name, value in self._attributes:
            if node.IsA(node_type) and (
                node.GetAttribute(name) is None or (value is not None and node.GetAttribute(name) != str(value))
            ):
                return False
        return True

    def _fill(self) -> None:
        scene = self._scene
        if scene is not None and scene.IsBatchProcessing():
            return
        every = [scene.GetNthNode(index) for index in range(scene.GetNumberOfNodes())] if scene else []
        before, self._nodes = self._nodes, [node for node in every if self._shows(node)]
        self._combo.blockSignals(True)
        self._combo.clear()
        if self._none:
            self._combo.addItem(self._none_display)
        self._combo.addItems([node.GetName() or "" for node in self._nodes])
        if self._add and self._types:
            self._combo.addItem(f"Create new {self._types[0].removeprefix('vtkMRML').removesuffix('Node')}")
        self._combo.blockSignals(False)
        self._select(self._current if self._current in self._nodes else self._neighbour(before))

    def _neighbour(self, before: list[Any]) -> Any:
        """The node above one that is gone, which Qt's box goes to by itself."""
        above = before[: before.index(self._current)] if self._current in before else []
        return next((node for node in reversed(above) if node in self._nodes), None)

    def _select(self, node: Any) -> None:
        first = int(self._none)
        index = self._nodes.index(node) + first if node is not None else (0 if self._none else -1)
        self._combo.setCurrentIndex(index)
        if node is self._current:
            return
        self._current = node
        self.currentNodeChanged[object].emit(node)
        self.currentNodeChanged[bool].emit(node is not None)
        self.currentNodeIDChanged.emit(self._get_id())

    def _choose(self, node: Any) -> None:
        """Choose a node, or None, as the user does, for tests."""
        index = self._nodes.index(node) + int(self._none) if node is not None else 0
        self._combo.setCurrentIndex(index)
        self._combo.activated.emit(index)

    def _on_activated(self, index: int) -> None:
        place = index - int(self._none)
        if place == len(self._nodes):
            self.addNode()
        else:
            self._select(self.nodeFromIndex(place))
            self.nodeActivated.emit(self._current)


class qSlicerMainWindow(QtWidgets.QMainWindow):
    """The main window, in the tests that want one."""

    def __init__(self) -> None:
        super().__init__()
        self.setObjectName("qSlicerMainWindow")
        self._selector: Any = None

    def moduleSelector(self) -> Any:
        return self._selector


CTK = {cls.__name__: cls for cls in (ctkCollapsibleButton, ctkCollapsibleGroupBox, ctkPathLineEdit, ctkMessageBox)}
MRML = {
    cls.__name__: cls
    for cls in (qMRMLWidget, qMRMLNodeComboBox, qSlicerScriptedLoadableModuleWidget, qSlicerMainWindow)
}
