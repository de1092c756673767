"""Loading of .ui files with CTK's and MRML's widgets in them; what Slicer would refuse or drop is an error."""
# ruff: noqa: N802

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from typing import Any

from PySide6 import QtCore, QtUiTools, QtWidgets

from . import pythonqt, qt_widgets


class UiLoader(QtUiTools.QUiLoader):
    """QUiLoader that knows the stand-in's widgets."""

    def __init__(self, parent: QtCore.QObject | None = None) -> None:
        super().__init__(parent)
        self._unknown: list[str] = []

    def createWidget(
        self, class_name: str, parent: QtWidgets.QWidget | None = None, name: str = ""
    ) -> QtWidgets.QWidget:
        own = {**qt_widgets.CTK, **qt_widgets.MRML}.get(class_name)
        if own is not None:
            widget = own(parent)
            widget.setObjectName(name)
            return widget
        if not hasattr(QtWidgets, class_name):
            self._unknown.append(class_name)
        return super().createWidget(class_name, parent, name)

    def load(self, device: QtCore.QIODevice, parent: QtWidgets.QWidget | None = None) -> Any:
        tree = ElementTree.fromstring(bytes(device.readAll().data()))
        connections = _take_connections(tree)
        enums = list(_take_enums(tree))
        buffer = QtCore.QBuffer()
        buffer.setData(ElementTree.tostring(tree))
        buffer.open(QtCore.QIODeviceBase.OpenModeFlag.ReadOnly)
        root = super().load(buffer, parent)
        if root is None:
            return None
        if self._unknown:
            raise ValueError(f"the .ui file has widgets that the stand-in does not know: {self._unknown}")
        _check_properties(tree, root)
        for name, key, value in enums:
            pythonqt.wrap(_named(root, name)).__setattr__(key, value)
        for sender, signal, receiver, slot in connections:
            _connect(root, sender, signal, receiver, slot)
        return root


def _named(root: Any, name: str) -> Any:
    found = root if root.objectName() == name else root.findChild(QtCore.QObject, name)
    if found is None:
        raise ValueError(f"the .ui file names {name}, which it does not have")
    return found


def _take_connections(tree: ElementTree.Element) -> list[tuple[str, str, str, str]]:
    part = tree.find("connections")
    if part is None:
        return []
    tree.remove(part)
    keys = ("sender", "signal", "receiver", "slot")
    return [tuple(one.findtext(key, "") for key in keys) for one in part.findall("connection")]  # type: ignore[misc]


def _take_enums(tree: ElementTree.Element) -> Iterator[tuple[str, str, Any]]:
    """Take enum properties of the stand-in's own widgets out of the tree: Qt's loader can not set those."""
    for widget in tree.iter("widget"):
        own = {**qt_widgets.CTK, **qt_widgets.MRML}.get(widget.get("class", ""))
        for entry in list(widget.findall("property")) if own else []:
            text = entry.findtext("set") or entry.findtext("enum")
            name = entry.get("name", "")
            if text and getattr(own, name, None).__class__ is QtCore.Property:
                widget.remove(entry)
                value = 0
                for part in text.split("|"):
                    value |= int(pythonqt._enum_member(own, part.split("::")[-1]))
                yield widget.get("name", ""), name, value


def _check_properties(tree: ElementTree.Element, root: Any) -> None:
    """Refuse a property that the widget does not have: it would become a dynamic one that does nothing."""
    for widget in tree.iter("widget"):
        native = _named(root, widget.get("name", ""))
        dynamic = {entry.get("name") for entry in widget.findall("property") if entry.get("stdset") == "0"}
        for name in native.dynamicPropertyNames():
            text = bytes(name).decode()
            if text not in dynamic and not text.startswith("_"):
                raise ValueError(f"{native.objectName()} ({widget.get('class')}) has no property {text}")


def _connect(root: Any, sender: str, signal: str, receiver: str, slot: str) -> None:
    source, target = pythonqt.wrap(_named(root, sender)), pythonqt.wrap(_named(root, receiver))
    if not callable(getattr(target, slot.split("(")[0], None)):
        raise ValueError(f"{receiver} has no slot {slot}")
    source.connect(signal, target, slot)
