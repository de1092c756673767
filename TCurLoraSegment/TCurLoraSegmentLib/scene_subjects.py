"""Whose scan a volume is, so that scans of one person never stand on both sides of a split."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import slicer

from tcurlora_contract.subjects import derive_subjects

_ENDING = re.compile(r"(\.seg)?\.(nrrd|nhdr|nii(\.gz)?|mha|mhd)\b", re.IGNORECASE)


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
    """Return whose scan a volume is, as far as it tells by itself; see `subjects_of`."""
    return subjects_of([volume])[0]


def subjects_of(volumes: Sequence[slicer.vtkMRMLScalarVolumeNode], given: Sequence[str] = ()) -> list[Subject]:
    """Return whose scans volumes are.

    Args:
        volumes: the volumes.
        given: what the user calls the person of each; empty where nothing was said.

    Returns:
        The person that the user named; else the patient of the volume's branch in the subject hierarchy, or the study;
        where it has neither, what is left of the name without side, visit and session, by the rule of the engine.
    """
    names = [_ENDING.sub("", volume.GetName() or "") for volume in volumes]
    by_name = derive_subjects(names)
    automatic = [
        _in_hierarchy(volume) or Subject(f"name {by_name[name].casefold() or volume.GetID()}", by_name[name] or name)
        for volume, name in zip(volumes, names, strict=True)
    ]
    keys = {subject.label.casefold(): subject.key for subject in automatic}
    labels = [text.strip() for text in given] or [""] * len(automatic)
    return [
        Subject(keys.get(label.casefold(), f"given {label.casefold()}"), label) if label else subject
        for subject, label in zip(automatic, labels, strict=True)
    ]


def _in_hierarchy(volume: slicer.vtkMRMLScalarVolumeNode) -> Subject | None:
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    constants = slicer.vtkMRMLSubjectHierarchyConstants
    item = hierarchy.GetItemByDataNode(volume)
    for level in (constants.GetDICOMLevelPatient(), constants.GetDICOMLevelStudy()):
        branch = int(hierarchy.GetItemAncestorAtLevel(item, level)) if item else 0
        if branch:
            # One patient may have several branches, one for each time that data were loaded.
            key = f"{level} {hierarchy.GetItemUID(branch, 'DICOM') or f'item {branch}'}"
            return Subject(key, hierarchy.GetItemName(branch))
    return None
