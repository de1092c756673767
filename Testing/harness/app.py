"""Slicer's scene, logics and `slicer` module as a running Slicer has them, out of the slicer-core wheel."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import slicer
import slicer.util
import vtk

from . import supplied
from .application import Application, Module, Modules
from .subject_hierarchy import keep_items

EXTENSION = Path(__file__).resolve().parents[2] / "TCurLoraSegment"

# Slicer's modules by name, with the class of their logic.
LOGICS = {
    "Annotations": "vtkSlicerAnnotationModuleLogic",
    "Cameras": "vtkSlicerCamerasModuleLogic",
    "CropVolume": "vtkSlicerCropVolumeLogic",
    "Data": "vtkSlicerDataModuleLogic",
    "Markups": "vtkSlicerMarkupsLogic",
    "Models": "vtkSlicerModelsLogic",
    "Plots": "vtkSlicerPlotsLogic",
    "Reformat": "vtkSlicerReformatLogic",
    "SceneViews": "vtkSlicerSceneViewsModuleLogic",
    "Segmentations": "vtkSlicerSegmentationsModuleLogic",
    "Sequences": "vtkSlicerSequencesLogic",
    "SubjectHierarchy": "vtkSlicerSubjectHierarchyModuleLogic",
    "Tables": "vtkSlicerTablesLogic",
    "Terminologies": "vtkSlicerTerminologiesModuleLogic",
    "Texts": "vtkSlicerTextsLogic",
    "Transforms": "vtkSlicerTransformLogic",
    "Units": "vtkSlicerUnitsLogic",
    "ViewControllers": "vtkSlicerViewControllersLogic",
    "VolumeRendering": "vtkSlicerVolumeRenderingLogic",
    "Volumes": "vtkSlicerVolumesLogic",
}
GENERIC_COLORS = [("background", 0, 0, 0, 0)] + [
    (f"tissue {number}", 60 + 37 * number % 196, 60 + 91 * number % 196, 60 + 149 * number % 196, 255)
    for number in range(1, 101)
]

# Alive as long as the process: the application's logic knows its parts by weak references only.
_kept: list[Any] = []


def start() -> None:
    """Make `slicer` what it is in a running Slicer without a main window; a second call does nothing."""
    if _kept:
        return
    folder = Path(tempfile.mkdtemp(prefix="slicer-stand-in-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    _write_share(folder)
    _write_python_slicer(folder)
    _hide_shortcuts()
    logic, logics = _scene_and_logics(folder)
    slicer.app = Application(folder, logic)
    slicer.modules = Modules()
    for name, one in logics.items():
        setattr(slicer.modules, name.lower(), Module(name, one))
    supplied.supply()
    if str(EXTENSION) not in sys.path:
        sys.path.insert(0, str(EXTENSION))
    _kept.append(logic)


def clear_scene() -> None:
    """Close the scene as a user does, so that whoever observes it hears StartCloseEvent and EndCloseEvent."""
    slicer.mrmlScene.Clear(0)


def _scene_and_logics(folder: Path) -> tuple[Any, dict[str, Any]]:
    scene = slicer.vtkMRMLScene()
    slicer.mrmlScene = scene
    logic = slicer.vtkSlicerApplicationLogic()
    logic.SetHomeDirectory(str(folder))
    logic.SetShareDirectory("share")
    logic.SetTemporaryPath(str(folder / "temporary"))
    colors = slicer.vtkSlicerColorLogic()
    colors.SetMRMLApplicationLogic(logic)
    logic.SetColorLogic(colors)
    scene.AddNode(slicer.vtkMRMLCrosshairNode())
    logic.SetMRMLScene(scene)
    colors.SetMRMLScene(scene)
    logic.SetModuleLogic("Colors", colors)
    logic.SetSliceLogics(vtk.vtkCollection())
    logic.SetViewLogics(vtk.vtkCollection())

    # Scene bundles are read through these two.
    remote, data = slicer.vtkMRMLRemoteIOLogic(), slicer.vtkDataIOManagerLogic()
    for one in (remote, data):
        one.SetMRMLApplicationLogic(logic)
        one.SetMRMLScene(scene)
    logic.SetMRMLSceneDataIO(scene, remote, data)

    logics = {"Colors": colors}
    for name, class_name in LOGICS.items():
        one = getattr(slicer, class_name)()
        if isinstance(one, slicer.vtkSlicerModuleLogic):
            one.SetModuleShareDirectory(str(folder / "share" / name))
        one.SetMRMLApplicationLogic(logic)
        one.SetMRMLScene(scene)
        logic.SetModuleLogic(name, one)
        logics[name] = one
    slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(scene, True)
    _kept.extend((remote, data))
    keep_items(scene)
    return logic, logics


def _write_share(folder: Path) -> None:
    """Write what Slicer keeps in its share folder, as far as the scene misses it."""
    for name in ("temporary", "share/ColorFiles", *(f"share/{name}" for name in LOGICS)):
        (folder / name).mkdir(parents=True, exist_ok=True)
    rows = [
        f"{number} {row[0].replace(' ', '_')} {row[1]} {row[2]} {row[3]} {row[4]}"
        for number, row in enumerate(GENERIC_COLORS)
    ]
    text = "# Generic colors\n" + "\n".join(rows) + "\n"
    (folder / "share/ColorFiles/GenericColors.txt").write_text(text, encoding="utf-8")
    try:
        from trame_slicer.resources import resources_path
    except ImportError:  # Then a test of terminologies has none to look up.
        return
    shutil.copytree(Path(resources_path()) / "terminologies", folder / "share/Terminologies", dirs_exist_ok=True)


def _write_python_slicer(folder: Path) -> None:
    """Put a PythonSlicer on PATH that is this interpreter; a link would lose its virtual environment."""
    bin_folder = folder / "bin"
    bin_folder.mkdir()
    script = bin_folder / "PythonSlicer"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n', encoding="utf-8")
    script.chmod(0o755)
    os.environ["PATH"] = f"{bin_folder}{os.pathsep}{os.environ.get('PATH', '')}"


def _hide_shortcuts() -> None:
    """Take from `slicer` what only the wheel puts there, such as slicer.addVolumeFromArray."""
    for name in dir(slicer.util):
        if not name.startswith(("_", "vtk")) and getattr(slicer, name, None) is getattr(slicer.util, name):
            delattr(slicer, name)
