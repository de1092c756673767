"""What `slicer.app` and `slicer.modules` are: the application as far as a module sees it."""
# ruff: noqa: N802, N815

from __future__ import annotations

from pathlib import Path
from typing import Any

import slicer

from .io_manager import CoreIOManager


class Module:
    """One of Slicer's own modules, around its real logic."""

    def __init__(self, name: str, logic: Any) -> None:
        self.name = name
        self.title = name
        self.path = ""
        self._logic = logic

    def logic(self) -> Any:
        return self._logic

    def widgetRepresentation(self) -> Any:
        raise AssertionError(f"the stand-in has no widget of the module {self.name}")


class Modules:
    """`slicer.modules`: a module is an attribute, in lower case."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"module 'modules' has no attribute '{name}'")


class Application:
    """`slicer.app`, headless: Qt's part is filled in when a panel is wanted."""

    applicationName = "Slicer"
    applicationVersion = "5.13.0-2026-08-21"
    majorVersion = 5
    minorVersion = 13
    revision = "0"
    os = "linux"
    arch = "amd64"
    platform = "linux-amd64"

    def __init__(self, folder: Path, logic: Any) -> None:
        self._logic = logic
        self._io = CoreIOManager()
        self._layout: Any = None
        self._qt: Any = None
        self._manager: Any = None
        self._testing = False
        self.temporaryPath = str(folder / "temporary")
        self.slicerHome = str(folder)
        self.extensionsInstallPath = str(folder / "extensions")

    def mrmlScene(self) -> Any:
        return slicer.mrmlScene

    def applicationLogic(self) -> Any:
        return self._logic

    def coreIOManager(self) -> CoreIOManager:
        return self._io

    def ioManager(self) -> CoreIOManager:
        return self._io

    def testingEnabled(self) -> bool:
        return self._testing

    def layoutManager(self) -> Any:
        """Give None, as a Slicer without a main window does."""
        return self._layout

    def moduleManager(self) -> Any:
        return self._manager

    def __getattr__(self, name: str) -> Any:
        """Leave the rest to Qt's application, which is there when a panel is wanted."""
        if name.startswith("_") or self._qt is None:
            raise AttributeError(f"qSlicerApplication has no attribute named '{name}'")
        return getattr(self._qt, name)

    def topLevelWidgets(self) -> Any:
        return self._qt.topLevelWidgets() if self._qt is not None else ()

    def processEvents(self) -> None:
        if self._qt is not None:
            self._qt.processEvents()
