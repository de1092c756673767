"""Whose scan a volume is, so that scans of one person never stand on both sides of a split."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import slicer

_ENDING = re.compile(r"(\.seg)?\.(nrrd|nhdr|nii(\.gz)?|mha|mhd)\b", re.IGNORECASE)
_SIDE_OR_VISIT = re.compile(
    r"(?:^|[\s_.-]+)(?:l|r|lh|rh|left|right|(?:ses|session|visit|timepoint|run)[-_ ]?\d+)(?![A-Za-z0-9])",
    re.IGNORECASE,
)
_BETWEEN = re.compile(r"[\s_.-]+")


@dataclass(frozen=True)
class Subject:
    """A person.

    Attributes:
        key: equal for the scans of one person.
        label: what the person is called in the panel; never written to a file.
    """

    key: str
    label: str


def subject_of(volume: slicer.vtkMRMLScalarVolumeNode) -> Subject:
    """Return whose scan a volume is.

    Args:
        volume: a volume of the scene.

    Returns:
        The patient of its branch in the subject hierarchy, or else the study; where it has neither, the name without
        what tells the scans of one person apart.
    """
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    constants = slicer.vtkMRMLSubjectHierarchyConstants
    item = hierarchy.GetItemByDataNode(volume)
    for level in (constants.GetDICOMLevelPatient(), constants.GetDICOMLevelStudy()):
        branch = int(hierarchy.GetItemAncestorAtLevel(item, level)) if item else 0
        if branch:
            # One patient may have several branches, one for each time that data were loaded.
            key = f"{level} {hierarchy.GetItemUID(branch, 'DICOM') or f'item {branch}'}"
            return Subject(key, hierarchy.GetItemName(branch))
    name = volume.GetName() or ""
    person = person_in_name(name)
    return (
        Subject(f"name {_BETWEEN.sub('_', person.casefold())}", person)
        if person
        else Subject(str(volume.GetID()), name)
    )


def person_in_name(name: str) -> str:
    """Return a name without side and visit, by which scans of one person differ.

    Only what is plainly a side (`_L`, `right`) or a numbered visit (`ses-1`, `visit2`) is left out. A plain number
    tells people apart as often as scans, so it stays.

    Returns:
        What is left; empty where nothing tells a person.
    """
    return _SIDE_OR_VISIT.sub("", _ENDING.sub("", name)).strip(" _.-")


def subjects_of(volumes: Sequence[slicer.vtkMRMLScalarVolumeNode], given: Sequence[str]) -> list[Subject]:
    """Return whose scans volumes are.

    Args:
        volumes: the volumes.
        given: what the user calls the person of each; empty where nothing was said.
    """
    automatic = [subject_of(volume) for volume in volumes]
    keys = {subject.label.casefold(): subject.key for subject in automatic}
    labels = [text.strip() for text in given]
    return [
        Subject(keys.get(label.casefold(), f"given {label.casefold()}"), label) if label else subject
        for subject, label in zip(automatic, labels, strict=True)
    ]
