"""The labels of cases: their names, and label maps in which each structure has the same number everywhere.

Labels are matched by name, because the same structure may have another number in another file.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from tcurlora.cases.case import IGNORED, Case, Dataset
from tcurlora.cases.channels import read_case_image
from tcurlora.cases.dataset import joined
from tcurlora.errors import InputError, TCurLoraError
from tcurlora.imaging.dicom_labels import require_same_space
from tcurlora.imaging.image_warnings import OnWarning, unheard
from tcurlora.imaging.images import suffix
from tcurlora.imaging.label_layers import layered_image, layers_of
from tcurlora.imaging.placing import on_scan
from tcurlora.imaging.segmentations import dicom_parts, read_segmentation
from tcurlora.imaging.structures import (
    BACKGROUND,
    IGNORE,
    Structure,
    is_background,
    is_ignored,
    same_name,
)

MOST_NAMED = 12
"""Of more labels without a name than this only the first are listed; it is probably a scan."""


def read_structures(dataset: Dataset, declared: Sequence[Structure] = (), strict: bool = True) -> list[Structure]:
    """Collect the structures that the cases are labeled with.

    Names come from `declared`, then from the dataset's own declaration, then from the segmentations; a name or number
    that is already given is not given again. Segments of equal name are one structure whatever their numbers; labels
    of files without names count by number. Label files that cannot be read are left to `check_cases`.

    Args:
        dataset: the cases.
        declared: names that the user gave, which overrule all others.
        strict: whether to refuse labels that have no name; `check_cases` reports them otherwise.

    Returns:
        Structures with distinct names and values, sorted by value; neither the background nor what is ignored is among
        them.

    Raises:
        InputError: listing each value without a name and where it is (code `unnamed_label`), or when no voxel of any
            case is labeled and no structure is declared.
    """
    given = joined(declared, dataset.structures)
    structures = [structure for structure in given if not is_ignored(structure.name)]
    ignored = {value for case in dataset.cases for value in case.ignore}
    contents: list[tuple[Case, list[int], list[Structure]]] = []
    for case in dataset.cases:
        try:
            labels, own = read_labels(case)
        except TCurLoraError:
            continue
        here = present(labels)
        contents.append((case, here, own))
        for structure in own:
            if is_ignored(structure.name):
                continue
            known = next((s for s in structures if same_name(s, structure)), None)
            if known is not None:
                structures[structures.index(known)] = replace(
                    known,
                    color=known.color or structure.color,
                    terminology=known.terminology or structure.terminology,
                )
            elif structure.value in here and _structure_of(structure.value, own, given) is None:
                value = _free_value(structure.value, {s.value for s in structures} | ignored)
                structures.append(replace(structure, value=value))
    unnamed: dict[int, list[Path]] = {}
    for case, here, own in contents:
        for value in here:
            if _structure_of(value, own, meanings(case, structures)) is None:
                unnamed.setdefault(value, []).append(case.label)
    if strict and unnamed:
        places = [f"label {value} in {_and_others(files)}" for value, files in sorted(unnamed.items())][:MOST_NAMED]
        places += [f"and {len(unnamed) - MOST_NAMED} more labels"] if len(unnamed) > MOST_NAMED else []
        example = ",".join(f"{value}=name" for value in sorted(unnamed)[:MOST_NAMED])
        raise InputError(
            f"Labels without a name: {'; '.join(places)}.",
            f"Name them (with --labels {example} or in dataset.json), or remove them from the files.",
            "unnamed_label",
        )
    found = [structure for structure in structures if not is_background(structure.name)]
    if strict and not found:
        raise InputError(
            f"No case in {dataset.folder} has a labeled voxel.", "Give cases with labels.", "no_structures"
        )
    return sorted(found, key=lambda s: s.value)


def read_labels(
    case: Case, image: sitk.Image | None = None, on_warning: OnWarning = unheard
) -> tuple[sitk.Image, list[Structure]]:
    """Read the segmentation of a case as it is; structures may overlap in it (see `label_layers`).

    Args:
        case: whose labels.
        image: the scan, where it has been read already; only contours need it.
        on_warning: is told of what was odd.

    Raises:
        InputError: as `read_segmentation`; or when DICOM labels belong to another scan.
    """
    kinds = dicom_parts(case.label)
    for file in kinds:
        require_same_space(file, case.image)
    if "RTSTRUCT" in kinds.values() and image is None:
        image = read_case_image(case)
    return read_segmentation(case.label, overlaps=True, scan=image, on_warning=on_warning)


def read_case_labels(case: Case, structures: Sequence[Structure], image: sitk.Image | None = None) -> sitk.Image:
    """Read the labels of a case, renumbered by name to the values of the structures.

    Labels that were cropped to their extent, or whose voxels are stored in another order, are laid onto the grid of the
    scan. Voxels that nobody labeled have the last number of `case.ignore`.

    Args:
        case: whose labels.
        structures: what they are labeled with.
        image: the scan, where it has been read already.

    Returns:
        Unsigned 16 bit labels (32 bit signed where a value needs it), in several layers where structures overlap (see
        `label_layers`); 0 is the background.

    Raises:
        InputError: when the file cannot be read or a label belongs to no structure.
    """
    image = read_case_image(case) if image is None else image
    labels, own = read_labels(case, image)
    labels, unknown = renumbered(labels, own, case, structures)
    if unknown:
        raise unknown_labels(case, unknown)
    return on_scan(labels, image, case.image, may_be_cropped(case)) or labels


def may_be_cropped(case: Case) -> bool:
    """Return whether the labels of a case may be cropped: Slicer and DICOM leave out what is empty."""
    return suffix(case.label) == ".seg.nrrd" or bool(dicom_parts(case.label))


def meanings(case: Case, structures: Sequence[Structure]) -> list[Structure]:
    """Return everything that a label of the case may mean: the structures, the background, and what is ignored."""
    return [
        *(s for s in structures if not is_ignored(s.name)),
        *(Structure(BACKGROUND, value) for value in case.background),
        *(Structure(IGNORE, value) for value in case.ignore),
    ]


def renumbered(
    labels: sitk.Image, own: Sequence[Structure], case: Case, structures: Sequence[Structure]
) -> tuple[sitk.Image, list[int]]:
    """Give labels the values of the structures.

    Args:
        labels: of the case's file.
        own: what the file calls them.
        case: says what means background, and what is to be ignored.
        structures: what the values are to mean.

    Returns:
        The labels, and the values that belong to no structure, which are left as background.
    """
    may_mean = meanings(case, structures)
    found = {value: _structure_of(value, own, may_mean) for value in present(labels)}
    unknown = [value for value, structure in found.items() if structure is None]
    numbers = {value: _number(structure, case) for value, structure in found.items()}
    if all(number == value for value, number in numbers.items()):
        return labels, unknown
    highest = max([0, *numbers.values()])
    dtype = np.uint16 if highest < 2**16 else np.int32
    results = []
    for layer in layers_of(labels):
        result = np.zeros(layer.shape, dtype)
        for value, number in numbers.items():
            result[layer == value] = number
        results.append(result)
    return layered_image(results, labels), unknown


def name_of(value: int, own: Sequence[Structure], case: Case, structures: Sequence[Structure]) -> Structure | None:
    """Return what a label of a case means, by its name and then by its number; None where that is not known."""
    return _structure_of(value, own, meanings(case, structures))


def present(labels: sitk.Image) -> list[int]:
    """Return the label values that voxels have, without 0."""
    return [int(value) for value in np.unique(sitk.GetArrayViewFromImage(labels)) if value != 0]


def unknown_labels(case: Case, values: Sequence[int]) -> InputError:
    """Say which labels of a case have no name."""
    return InputError(
        f"The segmentation {case.label} has the label {', '.join(map(str, values))}, which belongs to no structure.",
        "Name it (with --labels or in dataset.json), or remove it from the file.",
        "unknown_label",
    )


def _number(structure: Structure | None, case: Case) -> int:
    if structure is None or is_background(structure.name):
        return 0
    return (case.ignore or (IGNORED,))[-1] if is_ignored(structure.name) else structure.value


def _structure_of(value: int, own: Sequence[Structure], structures: Sequence[Structure]) -> Structure | None:
    """Return the structure that a value means in a file with names of its own: by name, then by number."""
    name = next((s for s in own if s.value == value), None)
    by_name = None if name is None else next((s for s in structures if same_name(s, name)), None)
    if by_name is not None:
        return by_name
    by_number = next((s for s in structures if s.value == value), None)
    # A number decides only where no other label of this file bears the name of that structure.
    taken = by_number is not None and any(same_name(s, by_number) for s in own)
    return None if taken else by_number


def _free_value(wanted: int, taken: Collection[int]) -> int:
    return wanted if wanted not in taken else next(n for n in range(1, len(taken) + 2) if n not in taken)


def _and_others(files: Sequence[Path]) -> str:
    others = len(files) - 1
    return f"'{files[0]}'" + (f" and {others} other file{'s' if others > 1 else ''}" if others else "")
