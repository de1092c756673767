"""Everything about cases that would stop or spoil the work, told at once before anything is computed with them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import SimpleITK as sitk

from tcurlora.cases.case import Case, Dataset, Finding
from tcurlora.cases.channels import CHANNEL_CODES, read_case_image
from tcurlora.cases.labels import may_be_cropped, name_of, present, read_labels, renumbered, unknown_labels
from tcurlora.errors import InputError, TCurLoraError
from tcurlora.imaging.grids import geometry_difference
from tcurlora.imaging.image_warnings import ImageWarning, OnWarning
from tcurlora.imaging.intensities import check_intensities
from tcurlora.imaging.label_layers import has_overlaps, layers_of
from tcurlora.imaging.placing import on_scan
from tcurlora.imaging.structures import Structure, normalized

FEW_SUBJECTS = 4
"""Fewer subjects than this are enough to work with, but too few to trust the outcome."""

MANY_LABELS = 256
"""More labels without names than this are intensities."""
FEW_INTENSITIES = 16
NOTES = ("channels_resampled", "rounded_labels")
"""What is odd about a file and does no harm."""


def check_cases(
    dataset: Dataset,
    structures: Sequence[Structure],
    in_channels: int = 1,
    minimum: int = 2,
    overlapping: bool = False,
) -> list[Finding]:
    """Look for everything about the cases that would stop or spoil the work, all of it at once.

    Holds one case in memory at a time.

    Args:
        dataset: the cases.
        structures: what they are labeled with, from `read_structures`.
        in_channels: how many values in each voxel the model wants.
        minimum: how many subjects the work needs at least.
        overlapping: whether a voxel may belong to several structures.

    Returns:
        Findings in the order of the cases, those about all cases last; none when all is well.
    """
    findings: list[Finding] = [finding for finding in dataset.findings if finding.case]
    told = {finding.case for finding in findings if finding.code in CHANNEL_CODES}
    seen: dict[str, Case] = {}
    ever: set[int] = set()
    for case in dataset.cases:
        image = _read_checked(case, findings)
        found = _check_labels(case, structures, image, overlapping, findings)
        ever |= found
        if image is None:
            continue
        _check_image(case, image, None if case.name in told else in_channels, findings)
        digest = _fingerprint(image)
        if digest in seen:
            findings.append(_duplicate(case, seen[digest]))
        seen.setdefault(digest, case)
    if dataset.cases and not ever:
        message = "No case has a labeled voxel."
        findings.append(Finding("", "no_labels", message, "Give at least one case with labels.", "error"))
    for structure in structures:
        if ever and dataset.cases and structure.value not in ever:
            message = f"No case has a voxel labeled '{structure.name}' (label {structure.value})."
            remedy = "Label it in some cases, or leave it out (of --labels or dataset.json)."
            findings.append(Finding("", "structure_never_labeled", message, remedy, "warning"))
    subjects = len({case.subject for case in dataset.cases})
    if subjects < max(minimum, FEW_SUBJECTS):
        message = f"There are labeled scans of only {subjects} subject{'' if subjects == 1 else 's'}."
        if subjects < minimum:
            remedy = f"Label scans of at least {minimum} subjects; five or more is a good start."
            findings.append(Finding("", "too_few_cases", message, remedy, "error"))
        else:
            remedy = "Label a few more if you can: the result, and the numbers that judge it, rest on very little."
            findings.append(Finding("", "few_cases", message, remedy, "warning"))
    return [*findings, *(finding for finding in dataset.findings if not finding.case)]


def require_no_errors(findings: Sequence[Finding]) -> None:
    """Refuse cases with problems.

    Raises:
        InputError: listing every finding that is an error.
    """
    errors = [finding for finding in findings if finding.severity == "error"]
    if errors:
        lines = "\n".join(f"  {f.case or 'all cases'}: {f.message} {f.remedy}" for f in errors)
        raise InputError(f"{len(errors)} problem(s) with the cases:\n{lines}", code=errors[0].code)


def _warned(case: Case, findings: list[Finding]) -> OnWarning:
    def warn(warning: ImageWarning) -> None:
        is_note = warning.code in NOTES
        findings.append(
            Finding(case.name, warning.code, warning.message, warning.remedy, "note" if is_note else "warning")
        )

    return warn


def _read_checked(case: Case, findings: list[Finding]) -> sitk.Image | None:
    warn = _warned(case, findings)
    try:
        image = read_case_image(case, warn)
    except TCurLoraError as error:
        findings.append(Finding.of_error(case.name, error))
        return None
    try:
        check_intensities(image, str(case.image), warn)
    except TCurLoraError as error:
        findings.append(Finding.of_error(case.name, error))
    return image


def _check_labels(
    case: Case,
    structures: Sequence[Structure],
    image: sitk.Image | None,
    overlapping: bool,
    findings: list[Finding],
) -> set[int]:
    """Report on the labels of a case; return the values of the structures that are in it."""

    def report(code: str, message: str, remedy: str, is_error: bool = False) -> None:
        findings.append(Finding(case.name, code, message, remedy, "error" if is_error else "warning"))

    try:
        labels, own = read_labels(case, image, _warned(case, findings))
    except TCurLoraError as error:
        findings.append(Finding.of_error(case.name, error))
        return set()
    for value in present(labels):
        name = next((s.name for s in own if s.value == value), None)
        structure = name_of(value, own, case, structures)
        if structure is not None and name is not None and normalized(name) != normalized(structure.name):
            message = f"Label {value} is called '{name}' in {case.label}, but is treated as '{structure.name}'."
            remedy = f"If that is wrong, correct the name in the file (or --labels {value}=name)."
            report("label_renamed", message, remedy)
    if has_overlaps(labels) and not overlapping:
        layers = layers_of(labels)
        count = int(np.count_nonzero(np.sum([layer != 0 for layer in layers], axis=0) > 1))
        message = f"Structures of {case.label} overlap in {count} voxels, but a voxel can belong to one only."
        remedy = "In 3D Slicer's Segment Editor set 'Modify other segments' to 'Overwrite all' and correct them."
        report("overlapping_segments", message, remedy, is_error=True)
    labels, unknown = renumbered(labels, own, case, structures)
    if len(unknown) > MANY_LABELS:
        message = f"{case.label} holds {len(unknown)} different values without names: it looks like a scan."
        report("label_like_image", message, "Check that scan and segmentation were not exchanged.", is_error=True)
    elif unknown:
        findings.append(Finding.of_error(case.name, unknown_labels(case, unknown)))
    found = set(present(labels)) - set(case.ignore)
    absent = [s.name for s in structures if s.value not in found]
    if not found and not unknown:
        message = f"No voxel is labeled in {case.label}."
        report("empty_label", message, "Fine if the scan shows none of the structures; otherwise label it.")
    elif found and absent:
        message = f"{case.label} has no voxel labeled {', '.join(map(repr, absent))}."
        remedy = "Fine if the structure is not in the scan; otherwise label it, or leave the case out."
        report("structure_absent", message, remedy)
    difference = None if image is None else geometry_difference(image, labels)
    if difference and image is not None and on_scan(labels, image, case.image, may_be_cropped(case)) is None:
        message = f"Scan and segmentation do not lie on the same grid: {difference} ({case.image}, {case.label})."
        remedy = "Look at both in 3D Slicer. If the labels lie right there, resample the segmentation onto the scan."
        if labels.GetSize() == image.GetSize():
            remedy += " If they are beside it, the header of one of the two is wrong: correct it, and do not resample."
        report("geometry_mismatch", message, remedy, is_error=True)
    return found


def _looks_like_labels(image: sitk.Image) -> bool:
    voxels = sitk.GetArrayViewFromImage(image)
    # A few voxels tell most scans.
    if len(np.unique(voxels.reshape(-1)[:: max(1, voxels.size // 4096)])) > FEW_INTENSITIES:
        return False
    values = np.unique(voxels)
    return 1 < len(values) <= FEW_INTENSITIES and bool((values == np.rint(values)).all()) and float(values[0]) >= 0


def _check_image(case: Case, image: sitk.Image, in_channels: int | None, findings: list[Finding]) -> None:
    def report(code: str, message: str, remedy: str) -> None:
        findings.append(Finding(case.name, code, message, remedy, "error"))

    channels = image.GetNumberOfComponentsPerPixel()
    if in_channels is not None and channels != in_channels:
        report(
            "wrong_channels",
            f"{case.image} has {channels} values in each voxel, but the model wants {in_channels}.",
            "Save the channel that the model wants as a volume of its own."
            if channels > in_channels
            else "Combine the scans into one file with as many channels as the model wants.",
        )
    if min(image.GetSize()) < 2:
        size = "x".join(map(str, image.GetSize()))
        report("too_thin", f"{case.image} is a single slice ({size}).", "Give a volume of several slices.")
    voxels = sitk.GetArrayViewFromImage(image)
    if voxels.min() == voxels.max():
        report("constant_image", f"All voxels of {case.image} have the same intensity.", "Export the scan again.")
    elif min(image.GetSize()) > 1 and _looks_like_labels(image):
        values = len(np.unique(voxels))
        message = (
            f"{case.image} has only {values} intensities, all whole numbers: it looks like labels, not like a scan."
        )
        remedy = "Check that scan and segmentation were not exchanged."
        findings.append(Finding(case.name, "image_like_labels", message, remedy, "warning"))


def _fingerprint(image: sitk.Image) -> str:
    voxels = np.ascontiguousarray(sitk.GetArrayViewFromImage(image), dtype=np.float32)
    digest = hashlib.sha256(str(voxels.shape).encode())
    digest.update(voxels.data)
    return digest.hexdigest()


def _duplicate(case: Case, other: Case) -> Finding:
    message = f"{case.image} holds the same scan as {other.image} (case {other.name})."
    if case.subject == other.subject:
        return Finding(case.name, "duplicate_image", message, "Leave one of the two out.", "warning")
    remedy = "Leave one of the two out: it would be trained on and judged by at once."
    return Finding(case.name, "duplicate_image", message, remedy, "error")
