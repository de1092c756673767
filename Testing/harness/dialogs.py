"""Windows that wait for a person: each is expected by the test, answered, and kept; one that is not expected fails."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PySide6 import QtWidgets


@dataclass(frozen=True)
class Shown:
    """A dialog that was shown.

    Attributes:
        kind: "info", "warning", "error", "ok_cancel", "yes_no", "retry_close" for those of slicer.util; "message" for
            any other message box; "open_file", "open_files", "save_file", "folder", "text", "item", "int", "double";
            "dialog" for a window of the module's own; "menu".
        title: Its title.
        text: Its text.
        details: What stands behind "Show details".
    """

    kind: str
    title: str
    text: str
    details: str = ""


shown: list[Shown] = []
opened_urls: list[str] = []
_expected: list[tuple[str, Any]] = []
unexpected: list[Shown] = []


def expect(kind: str, answer: Any = None) -> None:
    """Say that a dialog of this kind will be shown next, and how it is answered.

    Args:
        kind: See `Shown`.
        answer: True or False for questions; a qt.QMessageBox button for "message", or a function that
            gets the open box and clicks on a button of it; a path, text or number for the
            asking kinds ("" or None is Cancel); for "dialog" and "menu" a function that gets the open window.
    """
    _expected.append((kind, answer))


def outstanding() -> list[str]:
    """Give the kinds that were expected and have not been shown."""
    return [kind for kind, _ in _expected]


def forget() -> None:
    """Start afresh, before each test."""
    for one in (shown, opened_urls, _expected, unexpected):
        one.clear()


def ask(kind: str, title: str, text: str, details: str = "") -> Any:
    """Show a dialog: give the test's answer, or fail when it expected none or another one."""
    this = Shown(kind, title, text, details)
    shown.append(this)
    if not _expected or _expected[0][0] != kind:
        unexpected.append(this)
        raise AssertionError(f"a dialog that the test did not expect: {this}")
    return _expected.pop(0)[1]


def instead_of(native: Any, native_class: type, name: str) -> Callable[..., Any] | None:
    """Give what is called in place of a function of Qt that would wait for a person or leave the process."""
    if name == "exec_":
        if issubclass(native_class, QtWidgets.QMessageBox):
            return _message_box
        if issubclass(native_class, QtWidgets.QDialog):
            return _own_dialog
        if issubclass(native_class, QtWidgets.QMenu):
            return _menu
        raise AssertionError(f"a test never enters {native_class.__name__}.exec_()")
    if name == "openUrl" and native_class.__name__ == "QDesktopServices":
        return _open_url
    if native is None:
        return _STATIC.get((native_class.__name__, name))
    return None


def _message_box(box: Any) -> Any:
    answer = ask("message", box.windowTitle, box.text, box.detailedText)
    return _drive(box, answer) if callable(answer) else answer


def _own_dialog(dialog: Any) -> int:
    return _drive(dialog, ask("dialog", dialog.windowTitle, dialog.className()))


def _drive(dialog: Any, drive: Callable[[Any], Any] | None) -> int:
    dialog.show()
    QtWidgets.QApplication.processEvents()
    if drive is not None:
        drive(dialog)
    if dialog.isVisible():
        dialog.hide()
    return int(dialog.result())


def _menu(menu: Any, *_position: Any) -> Any:
    return ask("menu", "", " | ".join(action.text for action in menu.actions()))(menu)


def _open_url(url: Any) -> bool:
    opened_urls.append(url.toString())
    return True


def _path(kind: str) -> Callable[..., Any]:
    def answer(parent: Any = None, title: str = "", folder: str = "", filters: str = "", *_: Any) -> str:
        """Give the path alone: PythonQt has no second value with the filter."""
        for text in (title, folder, filters if isinstance(filters, str) else ""):
            if not isinstance(text, str):
                raise ValueError(f"a file dialog takes str, not {text!r}")
        return ask(kind, title, filters if isinstance(filters, str) else "") or ""

    return answer


def _value(kind: str, missing: Any) -> Callable[..., Any]:
    def answer(parent: Any, title: str, label: str, *_: Any) -> Any:
        given = ask(kind, title, label)
        return missing if given is None else given

    return answer


def _static_message(parent: Any, title: str, text: str, *_: Any) -> Any:
    return ask("message", title, text)


_STATIC: dict[tuple[str, str], Callable[..., Any]] = {
    ("QFileDialog", "getOpenFileName"): _path("open_file"),
    ("QFileDialog", "getOpenFileNames"): lambda *args: tuple(_path("open_files")(*args) or ()),
    ("QFileDialog", "getSaveFileName"): _path("save_file"),
    ("QFileDialog", "getExistingDirectory"): _path("folder"),
    ("QInputDialog", "getText"): _value("text", ""),
    ("QInputDialog", "getMultiLineText"): _value("text", ""),
    ("QInputDialog", "getItem"): _value("item", ""),
    ("QInputDialog", "getInt"): _value("int", 0),
    ("QInputDialog", "getDouble"): _value("double", 0.0),
    **{("QMessageBox", name): _static_message for name in ("information", "question", "warning", "critical", "about")},
}
