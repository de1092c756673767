"""Loading and saving of nodes over Slicer's real storage nodes, as `slicer.app.coreIOManager()` offers it."""
# ruff: noqa: N802

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import slicer
import vtk

# File types by the end of the file's name, the surest first; as Slicer's readers claim them.
FILE_TYPES = (
    ("SegmentationFile", (".seg.nrrd", ".seg.nhdr", ".seg.vtm")),
    ("SceneFile", (".mrml", ".mrb", ".zip")),
    ("VolumeFile", (".nrrd", ".nhdr", ".nii.gz", ".nii", ".mha", ".mhd", ".dcm", ".hdr")),
    ("TransformFile", (".h5", ".tfm", ".mat")),
    ("ColorTableFile", (".ctbl",)),
    ("TableFile", (".tsv", ".csv")),
    ("ModelFile", (".vtk", ".vtp", ".stl", ".ply", ".obj")),
    ("TextFile", (".txt", ".json", ".xml")),
)
WRITER_TYPES = (
    ("vtkMRMLSegmentationNode", "SegmentationFile"),
    ("vtkMRMLVolumeNode", "VolumeFile"),
    ("vtkMRMLTransformNode", "TransformFile"),
    ("vtkMRMLTableNode", "TableFile"),
    ("vtkMRMLModelNode", "ModelFile"),
    ("vtkMRMLTextNode", "TextFile"),
    ("vtkMRMLColorTableNode", "ColorTableFile"),
)
VOLUME_OPTIONS = {"labelmap": 1, "center": 2, "singleFile": 4, "autoWindowLevel": 8, "discardOrientation": 16}


class CoreIOManager:
    """What slicer.util needs of qSlicerCoreIOManager."""

    def fileType(self, filename: str) -> str:
        name = _text(filename).lower()
        return next((kind for kind, ends in FILE_TYPES if name.endswith(ends)), "NoFile")

    def fileWriterFileType(self, node: Any, file_format: str = "") -> str:
        return next((kind for name, kind in WRITER_TYPES if node.IsA(name)), "NoFile")

    def fileWriterExtensions(self, node: Any) -> tuple[str, ...]:
        storage = node.CreateDefaultStorageNode() if isinstance(node, slicer.vtkMRMLStorableNode) else None
        if storage is None:
            return ()
        storage.UnRegister(None)
        storage.SetScene(slicer.mrmlScene)
        formats = storage.GetSupportedWriteFileTypes()
        return tuple(formats.GetValue(index) for index in range(formats.GetNumberOfValues()))

    def extractKnownExtension(self, filename: str, node: Any) -> str:
        extension = slicer.vtkDataFileFormatHelper.GetFileExtensionFromFormatString
        known = [extension(entry) for entry in self.fileWriterExtensions(node)]
        return max((end for end in known if end and _text(filename).endswith(end)), key=len, default="")

    def loadNodes(self, kind: str, properties: Mapping[str, Any], loaded: Any = None, messages: Any = None) -> bool:
        path = _text(properties["fileName"])
        name = _text(properties.get("name", ""))
        if kind == "SceneFile":
            return _load_scene(path, bool(properties.get("clear", False)), messages)
        nodes = _load(kind, path, name, properties, messages)
        for node in nodes:
            if loaded is not None:
                loaded.AddItem(node)
        return bool(nodes)

    def saveNodes(self, kind: str, properties: Mapping[str, Any], messages: Any = None, scene: Any = None) -> bool:
        scene = scene or slicer.mrmlScene
        path = _text(properties["fileName"])
        if kind == "SceneFile":
            return _save_scene(scene, path, messages)
        node = scene.GetNodeByID(_text(properties["nodeID"]))
        if kind == "NoFile" or not isinstance(node, slicer.vtkMRMLStorableNode) or not node.AddDefaultStorageNode():
            return False
        storage = node.GetStorageNode()
        storage.SetFileName(path)
        if properties.get("fileFormat"):
            storage.SetWriteFileFormat(properties["fileFormat"])
        storage.SetURI(None)
        if "useCompression" in properties:
            storage.SetUseCompression(int(properties["useCompression"]))
        written = bool(storage.WriteData(node))
        if messages is not None:
            messages.AddMessages(storage.GetUserMessages())
        return written

    def exportNodes(
        self,
        node_ids: Sequence[str],
        filenames: Sequence[str],
        properties: Mapping[str, Any],
        harden: bool,
        messages: Any = None,
    ) -> bool:
        success = True
        for node_id, filename in zip(node_ids, filenames, strict=True):
            # The copy lives in a scene of its own, so that the node keeps its file name and its storage node.
            scene = slicer.vtkMRMLScene()
            slicer.mrmlScene.CopyRegisteredNodesToScene(scene)
            slicer.mrmlScene.CopySingletonNodesToScene(scene)
            node = slicer.mrmlScene.GetNodeByID(node_id)
            copy = scene.AddNewNodeByClass(node.GetClassName())
            copy.CopyContent(node, harden)
            if harden and node.IsA("vtkMRMLTransformableNode") and node.GetParentTransformNode():
                from_world = vtk.vtkGeneralTransform()
                node.GetParentTransformNode().GetTransformFromWorld(from_world)
                parent = scene.AddNewNodeByClass("vtkMRMLTransformNode")
                parent.SetAndObserveTransformFromParent(from_world)
                copy.SetAndObserveTransformNodeID(parent.GetID())
                copy.HardenTransform()
            one = {**properties, "nodeID": copy.GetID(), "fileName": filename}
            success = self.saveNodes(self.fileWriterFileType(node), one, messages, scene) and success
        return success


def _text(value: object) -> str:
    """Take a text as Qt does: a pathlib.Path is none, and Slicer would go on with an empty one."""
    if not isinstance(value, str):
        raise TypeError(f"Slicer takes file names as str, not {type(value).__name__}")
    return value


def _load(kind: str, path: str, name: str, properties: Mapping[str, Any], messages: Any) -> list[Any]:
    if not os.path.exists(path):
        return []
    modules = slicer.modules
    name = name or Path(path).name.split(".")[0]
    node = None
    if kind == "VolumeFile":
        options = sum(bit for key, bit in VOLUME_OPTIONS.items() if properties.get(key))
        node = modules.volumes.logic().AddArchetypeVolume(path, name, options)
        if node and properties.get("colorNodeID"):
            node.GetDisplayNode().SetAndObserveColorNodeID(properties["colorNodeID"])
        if node and properties.get("show", True):
            selection = slicer.app.applicationLogic().GetSelectionNode()
            if node.IsA("vtkMRMLLabelMapVolumeNode"):
                selection.SetActiveLabelVolumeID(node.GetID())
            else:
                selection.SetActiveVolumeID(node.GetID())
            slicer.app.applicationLogic().PropagateVolumeSelection()
    elif kind == "SegmentationFile":
        colors = slicer.mrmlScene.GetNodeByID(properties["colorNodeID"]) if properties.get("colorNodeID") else None
        node = modules.segmentations.logic().LoadSegmentationFromFile(
            path, bool(properties.get("autoOpacities", True)), properties.get("name", ""), colors, messages
        )
    elif kind == "TransformFile":
        node = modules.transforms.logic().AddTransform(path, slicer.mrmlScene, messages)
    elif kind == "TableFile":
        node = modules.tables.logic().AddTable(path, name)
    elif kind == "ModelFile":
        node = modules.models.logic().AddModel(path)
    elif kind == "ColorTableFile":
        node = modules.colors.logic().LoadColorFile(path, name)
    elif kind == "TextFile":
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTextNode", name)
        node.AddDefaultStorageNode()
        node.GetStorageNode().SetFileName(path)
        if not node.GetStorageNode().ReadData(node):
            slicer.mrmlScene.RemoveNode(node)
            node = None
    else:
        raise ValueError(f"this stand-in loads no {kind}")
    return [node] if node else []


def _load_scene(path: str, clear: bool, messages: Any) -> bool:
    if path.endswith(".mrb"):
        return bool(slicer.mrmlScene.ReadFromMRB(path, clear, messages))
    slicer.mrmlScene.SetURL(path)
    return bool(slicer.mrmlScene.Connect(messages) if clear else slicer.mrmlScene.Import(messages))


def _save_scene(scene: Any, path: str, messages: Any) -> bool:
    file = Path(path)
    if not os.access(file.absolute().parent, os.W_OK):
        return False
    if file.suffix not in (".mrml", ".mrb"):
        raise ValueError("this stand-in saves scenes as .mrml and .mrb")
    scene.SetURL(str(file.absolute()))
    scene.SetRootDirectory(str(file.absolute().parent))
    if file.suffix == ".mrml":
        return bool(scene.Commit())
    written = bool(scene.WriteToMRB(str(file.absolute()), None, messages))
    if written:
        scene.SetStorableNodesModifiedSinceRead()
    return written
