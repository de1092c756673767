"""The subject hierarchy's bookkeeping, which in Slicer is done by Qt classes: an item for each node of data."""

from __future__ import annotations

from typing import Any

import slicer
import vtk

# Nodes that some plugin of Slicer takes into the subject hierarchy.
KINDS = (
    "vtkMRMLVolumeNode",
    "vtkMRMLSegmentationNode",
    "vtkMRMLModelNode",
    "vtkMRMLMarkupsNode",
    "vtkMRMLTransformNode",
    "vtkMRMLTableNode",
    "vtkMRMLPlotSeriesNode",
    "vtkMRMLPlotChartNode",
    "vtkMRMLTextNode",
    "vtkMRMLSequenceNode",
    "vtkMRMLSequenceBrowserNode",
)
OWNERS = {
    "vtkMRMLLabelMapVolumeNode": "LabelMaps",
    "vtkMRMLVolumeNode": "Volumes",
    "vtkMRMLSegmentationNode": "Segmentations",
    "vtkMRMLModelNode": "Models",
    "vtkMRMLTransformNode": "Transforms",
    "vtkMRMLTableNode": "Tables",
    "vtkMRMLPlotChartNode": "Plots",
    "vtkMRMLTextNode": "Texts",
}


def keep_items(scene: Any) -> None:
    """Make and remove items as nodes come and go."""
    resolve = slicer.vtkMRMLSubjectHierarchyNode.ResolveSubjectHierarchy

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def on_added(_scene: Any, _event: str, node: Any) -> None:
        if node.IsA("vtkMRMLSubjectHierarchyNode"):
            resolve(scene)
        elif not scene.IsImporting() and not node.GetHideFromEditors():
            _add(scene, node)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def on_about_to_be_removed(_scene: Any, _event: str, node: Any) -> None:
        if scene.IsClosing() or node.IsA("vtkMRMLSubjectHierarchyNode"):
            return
        items = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
        item = items.GetItemByDataNode(node)
        if item:
            items.RemoveItem(item, False, False)

    def on_closed(*_: object) -> None:
        resolve(scene)

    def on_imported(*_: object) -> None:
        resolve(scene)
        for index in range(scene.GetNumberOfNodes()):
            node = scene.GetNthNode(index)
            if node and not node.GetHideFromEditors():
                _add(scene, node)

    scene.AddObserver(scene.NodeAddedEvent, on_added)
    scene.AddObserver(scene.NodeAboutToBeRemovedEvent, on_about_to_be_removed)
    scene.AddObserver(scene.EndImportEvent, on_imported, 10.0)
    scene.AddObserver(scene.EndCloseEvent, on_closed)
    scene.AddObserver(scene.EndBatchProcessEvent, on_imported, 10.0)
    resolve(scene)


def _add(scene: Any, node: Any) -> None:
    if not any(node.IsA(kind) for kind in KINDS):
        return
    items = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    if items.GetItemByDataNode(node):
        return
    item = items.CreateItem(items.GetSceneItemID(), node)
    owner = next((name for kind, name in OWNERS.items() if node.IsA(kind)), "")
    if owner:
        items.SetItemOwnerPluginName(item, owner)
