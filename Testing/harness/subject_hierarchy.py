"""The subject hierarchy's bookkeeping, done by Qt classes in Slicer: an item for each node of data and each segment."""

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
        if node.IsA("vtkMRMLSegmentationNode"):
            _keep_segments(node)
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
    if node.IsA("vtkMRMLSegmentationNode"):
        _update_segments(node)


def _keep_segments(node: Any) -> None:
    """Keep the items of a segmentation's segments; a segmentation that is exchanged is no reason to look at them."""

    @vtk.calldata_type(vtk.VTK_STRING)
    def on_changed(_node: Any, _event: str, segment_id: str | None = None) -> None:
        _update_segments(node, segment_id)

    def on_display_changed(*_: object) -> None:
        _update_segments(node)

    segmentation = slicer.vtkSegmentation
    for event in (segmentation.SegmentAdded, segmentation.SegmentRemoved, segmentation.SegmentModified):
        node.AddObserver(event, on_changed)
    node.AddObserver(node.DisplayModifiedEvent, on_display_changed)


def _update_segments(node: Any, only: str | None = None) -> None:
    """Bring the items of one segment up to date, or those of all."""
    scene = node.GetScene()
    if scene is None or scene.IsImporting() or scene.IsClosing():
        return
    items = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    parent = items.GetItemByDataNode(node)
    if not parent:
        return
    attribute = node.GetSegmentIDAttributeName()
    children = vtk.vtkIdList()
    items.GetItemChildren(parent, children)
    known = {
        segment_id: child
        for child in (children.GetId(number) for number in range(children.GetNumberOfIds()))
        if (segment_id := items.GetItemAttribute(child, attribute))
    }
    segmentation = node.GetSegmentation()
    there = {
        segment_id: segmentation.GetSegment(segment_id).GetName() or "" for segment_id in segmentation.GetSegmentIDs()
    }
    for segment_id in [*known, *there] if only is None else [only]:
        if segment_id not in there:
            if segment_id in known:
                items.RemoveItem(known.pop(segment_id))
        elif segment_id in known:
            items.SetItemName(known[segment_id], there[segment_id])
        else:
            level = slicer.vtkMRMLSubjectHierarchyConstants.GetSubjectHierarchyVirtualBranchAttributeName()
            known[segment_id] = items.CreateHierarchyItem(parent, there[segment_id], level)
            items.SetItemAttribute(known[segment_id], attribute, segment_id)
            items.SetItemOwnerPluginName(known[segment_id], "Segments")
