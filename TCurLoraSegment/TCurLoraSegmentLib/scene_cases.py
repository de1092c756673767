"""Labeled cases of the scene: which volume goes with which labels, and what they are labeled with."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import slicer
from slicer.i18n import tr as _

from TCurLoraSegmentLib.errors import UserError
from TCurLoraSegmentLib.scene_labels import (
    Label,
    is_label_node,
    labels_of,
    normalized,
    shape_of,
    terminology_key,
)
from TCurLoraSegmentLib.scene_volumes import volume_problem

RESULT_ATTRIBUTE = "TCurLoraSegment.Result"
"""Attribute of a node that a model made: not a labeled case until a person has looked at it."""

ACCEPTED_ATTRIBUTE = "TCurLoraSegment.Accepted"
"""Attribute of a result that a person has taken for a labeled case."""

SHAPE_ATTRIBUTE = "TCurLoraSegment.Shape"
"""Attribute of a result: its `shape_of` when it was made, by which a correction is noticed."""

_LABEL_WORDS = {"seg", "segs", "segmentation", "segmentations", "label", "labels", "labelmap", "mask", "masks"}
_LABEL_WORDS |= {"gt", "truth", "ground", "manual", "annotation", "annotations"}
_NAMED = 5


@dataclass(frozen=True)
class CasePair:
    """A volume and the segmentation or label map that was drawn on it, by the IDs of their nodes."""

    volume_id: str
    labels_id: str


@dataclass(frozen=True)
class SceneStructure:
    """A structure that cases are labeled with.

    Attributes:
        name: the name that most cases give it.
        color: red, green and blue from 0 to 1, of the first case that has it.
        terminology: Slicer's terminology entry, or an empty string.
        cases: in how many cases it has voxels.
        aliases: all names that it has in the cases, and `name`, which is the first.
        members: the cases in which it has voxels, by their place in the list.
    """

    name: str
    color: tuple[float, float, float]
    terminology: str
    cases: int
    aliases: tuple[str, ...]
    members: tuple[int, ...] = ()


def pair_scene() -> tuple[list[CasePair], list[str]]:
    """Find the labeled cases of the scene.

    A segmentation belongs to the volume that it refers to as its geometry; else to the only volume of its study, or
    the one of its name there; else to the volume of its name. Words such as "segmentation", and the number by which
    Slicer tells two equal names apart, do not count. Hidden nodes are no cases, but a hidden volume may have one.
    Results of a model are passed over until `accept_labels`.

    Returns:
        The pairs in the order of the volumes, and a sentence on whatever could not be paired.
    """
    usable, unusable = _volumes()
    shown = [volume for volume in usable if not volume.GetHideFromEditors()]
    notes: list[str] = []
    labels_by_volume: dict[str, list[Any]] = {}
    for labels in _label_nodes():
        if labels.GetAttribute(RESULT_ATTRIBUTE) and not labels.GetAttribute(ACCEPTED_ATTRIBUTE):
            notes.append(
                _("'{labels}' was made by a model. Correct it, then add it with 'Use as labeled case'.").format(
                    labels=labels.GetName()
                )
            )
            continue
        volume = _volume_of(labels, usable, shown, unusable, notes)
        if volume is not None:
            labels_by_volume.setdefault(volume.GetID(), []).append(labels)
    pairs = []
    for volume in usable:
        found = labels_by_volume.get(volume.GetID(), [])
        if len(found) == 1:
            pairs.append(CasePair(volume.GetID(), found[0].GetID()))
        elif found:
            notes.append(
                _("The volume '{volume}' has {count} segmentations: {names}. Add the right one as a pair.").format(
                    volume=volume.GetName(), count=len(found), names=_listed(found)
                )
            )
    bare = [volume for volume in shown if volume.GetID() not in labels_by_volume]
    if len(bare) == 1:
        notes.append(_("The volume {names} has no segmentation.").format(names=_listed(bare)))
    elif bare:
        notes.append(_("{count} volumes have no segmentation: {names}.").format(count=len(bare), names=_listed(bare)))
    return pairs, notes


def structures_of(pairs: Sequence[CasePair], names: Mapping[str, str] | None = None) -> list[SceneStructure]:
    """Collect what cases are labeled with, by name and by terminology, never by number.

    Segments of one name are one structure. Segments of different names are one when their terminology tells the same
    structure and no case has both.

    Args:
        pairs: the cases; nodes that are gone or cannot be read are passed over.
        names: what the user calls a label, by its name in the scene. Labels that get one name are one structure.

    Returns:
        The structures in the order in which they are met.
    """
    groups: dict[str, _Group] = {}
    chosen = {normalized(name): new for name, new in (names or {}).items()}
    for case, pair in enumerate(pairs):
        node = slicer.mrmlScene.GetNodeByID(pair.labels_id)
        if not is_label_node(node):
            continue
        try:
            labels = labels_of(node)
        except UserError:
            continue  # the export tells what is wrong with it
        for label in labels:
            name = chosen.get(normalized(label.name), "")
            group = groups.setdefault(normalized(name or label.name), _Group())
            group.chosen = group.chosen or name
            group.add(case, label)
    return [group.structure() for group in _merged(list(groups.values()))]


def matched_by_terminology(structure: SceneStructure, base: Mapping[str, str]) -> list[str]:
    """Find what a structure is in a base model, by terminology.

    Args:
        structure: from `structures_of`.
        base: names of the base model's structures to their terminology entries.

    Returns:
        The base structure with the same codes; or those that are its parts, which add a modifier such as "anterior"
        to the same codes; none where the terminology does not tell.
    """
    own = terminology_key(structure.terminology)
    if own is None:
        return []
    keys = {name: key for name, entry in base.items() if (key := terminology_key(entry)) is not None}
    same = [name for name, key in keys.items() if key == own]
    category, kind, kind_modifier, region, region_modifier = own
    if same or kind_modifier or region_modifier:
        return same
    return [name for name, key in keys.items() if (key[0], key[1], key[3]) == (category, kind, region)]


def alike(structures: Sequence[SceneStructure]) -> list[tuple[str, str]]:
    """Return pairs of names that hold the same words in another order, which often mean the same structure."""
    by_words: dict[tuple[str, ...], str] = {}
    pairs = []
    for structure in structures:
        first = by_words.setdefault(tuple(sorted(normalized(structure.name).split())), structure.name)
        if first != structure.name:
            pairs.append((first, structure.name))
    return pairs


def accept_labels(node: slicer.vtkMRMLNode) -> None:
    """Take the result of a model, which a person has looked at, for a labeled case from now on."""
    node.SetAttribute(ACCEPTED_ATTRIBUTE, "yes")


def results() -> list[Any]:
    """Return the results of models in the scene, the latest last."""
    return [node for node in _label_nodes() if node.GetAttribute(RESULT_ATTRIBUTE)]


def volume_of_result(node: slicer.vtkMRMLNode) -> slicer.vtkMRMLScalarVolumeNode | None:
    """Return the volume that a result was made from; None when it is gone."""
    return next(filter(None, map(slicer.mrmlScene.GetNodeByID, _referenced(node))), None)


def is_uncorrected(node: slicer.vtkMRMLNode | None) -> bool:
    """Return whether labels are what a model made, unchanged: they repeat its opinion and prove nothing."""
    shape = node.GetAttribute(SHAPE_ATTRIBUTE) if node is not None else None
    return bool(shape) and shape_of(node) == shape


@dataclass
class _Group:
    """Labels of one name, or of several names that mean the same."""

    chosen: str = ""
    labels: list[Label] = field(default_factory=list)
    members: set[int] = field(default_factory=set)
    filled: set[int] = field(default_factory=set)

    def add(self, case: int, label: Label) -> None:
        self.labels.append(label)
        self.members.add(case)
        if label.filled:
            self.filled.add(case)

    def codes(self) -> set[tuple[str, ...]]:
        return {key for label in self.labels if (key := terminology_key(label.terminology))}

    def take(self, other: _Group) -> None:
        self.chosen = self.chosen or other.chosen
        self.labels += other.labels
        self.members |= other.members
        self.filled |= other.filled

    def structure(self) -> SceneStructure:
        names = [name for name, _count in Counter(label.name for label in self.labels).most_common()]
        names = list(dict.fromkeys([*filter(None, [self.chosen]), *names]))
        entries = [label.terminology for label in self.labels if label.terminology]
        entries.sort(key=lambda entry: terminology_key(entry) is None)  # one that tells something comes first
        return SceneStructure(
            names[0],
            self.labels[0].color,
            entries[0] if entries else "",
            len(self.filled),
            tuple(names),
            tuple(sorted(self.filled)),
        )


def _merged(groups: list[_Group]) -> list[_Group]:
    """Unite groups of one terminology, unless a case tells them apart or it is not clear which belong together."""
    by_key: dict[tuple[str, ...], list[_Group]] = {}
    for group in groups:
        for key in group.codes():
            by_key.setdefault(key, []).append(group)
    gone: list[_Group] = []
    for same in by_key.values():
        members = [case for group in same for case in group.members]
        if len(same) > 1 and len(members) == len(set(members)) and all(len(group.codes()) == 1 for group in same):
            for other in same[1:]:
                same[0].take(other)
                gone.append(other)
    return [group for group in groups if all(group is not other for other in gone)]


def _volumes() -> tuple[list[Any], dict[str, str]]:
    """Volumes that can be cases, and for the others what is wrong with them."""
    usable, unusable = [], {}
    for volume in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode"):
        problem = volume_problem(volume)
        if problem is None:
            usable.append(volume)
        else:
            unusable[volume.GetID()] = problem
    return usable, unusable


def _label_nodes() -> list[Any]:
    nodes = [
        node
        for name in ("vtkMRMLSegmentationNode", "vtkMRMLLabelMapVolumeNode")
        for node in slicer.util.getNodesByClass(name)
    ]
    return [node for node in nodes if not node.GetHideFromEditors()]


def _volume_of(
    labels: Any, usable: list[Any], shown: list[Any], unusable: dict[str, str], notes: list[str]
) -> Any | None:
    """Find the volume of a segmentation or label map; where there is none, say so in `notes`."""
    for node_id in _referenced(labels):
        if node_id in unusable and not slicer.mrmlScene.GetNodeByID(node_id).IsA("vtkMRMLLabelMapVolumeNode"):
            notes.append(unusable[node_id])
            return None
        for volume in usable:
            if volume.GetID() == node_id:
                return volume
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    level = slicer.vtkMRMLSubjectHierarchyConstants.GetDICOMLevelStudy()
    study = _branch(hierarchy, labels, level)
    in_study = [volume for volume in shown if study and _branch(hierarchy, volume, level) == study]
    if len(in_study) == 1:
        return in_study[0]
    found = _of_same_name(labels.GetName() or "", in_study or shown)
    if len(found) == 1:
        return found[0]
    if found:
        notes.append(
            _("It is not clear which volume '{labels}' belongs to: {names}. Add the right pair.").format(
                labels=labels.GetName(), names=_listed(found)
            )
        )
    else:
        notes.append(
            _("No volume was found for '{labels}'. Add it with its volume as a pair.").format(labels=labels.GetName())
        )
    return None


def _referenced(labels: Any) -> list[str]:
    if labels.IsA("vtkMRMLSegmentationNode"):
        role = slicer.vtkMRMLSegmentationNode.GetReferenceImageGeometryReferenceRole()
        node_id = labels.GetNodeReferenceID(role)
    else:
        node_id = labels.GetAttribute("AssociatedNodeID")  # which Slicer gives to label maps that it makes
    return [node_id] if node_id else []


def _of_same_name(name: str, volumes: Sequence[Any]) -> list[Any]:
    """Volumes whose name is that of the labels, the closest likeness that there is."""
    words = _words(name, _LABEL_WORDS)
    if not words:
        return []
    likenesses: tuple[Callable[[list[str]], bool], ...] = (
        lambda other: other == words,
        # The number that Slicer adds to a name that is taken.
        lambda other: words[-1].isdigit() and other == words[:-1],
        lambda other: bool(other) and other[-1].isdigit() and other[:-1] == words,
    )
    for alike in likenesses:
        found = [volume for volume in volumes if alike(_words(volume.GetName() or "", set()))]
        if found:
            return found
    return []


def _words(name: str, without: set[str]) -> list[str]:
    name = re.sub(r"(\.seg)?\.(nrrd|nhdr|nii(\.gz)?|mha|mhd)\b", "", name, flags=re.IGNORECASE)
    return [word for word in normalized(name).split() if word not in without]


def _branch(hierarchy: Any, node: Any, level: str) -> int:
    """The ancestor of a node at a level of the subject hierarchy; 0 where there is none."""
    item = hierarchy.GetItemByDataNode(node)
    return int(hierarchy.GetItemAncestorAtLevel(item, level)) if item else 0


def _listed(nodes: Iterable[Any]) -> str:
    names = [f"'{node.GetName()}'" for node in nodes]
    if len(names) > _NAMED:
        return _("{names} and {count} more").format(names=", ".join(names[:_NAMED]), count=len(names) - _NAMED)
    return ", ".join(names)
