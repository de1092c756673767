"""A site's labeled scans: found, named, and checked before anything is computed with them.

Labels are matched by name, because the same structure may have another number in another file.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import SimpleITK as sitk

from tcurlora.errors import InputError, TCurLoraError
from tcurlora.imaging.grids import geometry_difference
from tcurlora.imaging.image_warnings import ImageWarning
from tcurlora.imaging.images import files_of, images_in, read_image, stem, suffix
from tcurlora.imaging.intensities import check_intensities
from tcurlora.imaging.placing import on_scan
from tcurlora.imaging.segmentations import read_segmentation, segmentation_files
from tcurlora.imaging.structures import BACKGROUND, Structure, is_background, normalized, require_distinct

FEW_SUBJECTS = 4
"""Fewer subjects than this are enough to work with, but too few to trust the outcome."""


@dataclass(frozen=True)
class Case:
    """One labeled scan; cases of one subject never stand on both sides of a split.

    Attributes:
        name: tells it from the other cases; not fit for the name of a file.
        image: file or folder of the scan.
        label: file of the segmentation.
        subject: whose scan it is.
        background: label numbers that mean background, besides 0.
        channels: files or folders of further input channels, in the model's order; `image` is the first.
        ignore: label numbers of voxels that nobody labeled: they count neither in training nor in scores.
    """

    name: str
    image: Path
    label: Path
    subject: str
    background: tuple[int, ...] = ()
    channels: tuple[Path, ...] = ()
    ignore: tuple[int, ...] = ()


@dataclass(frozen=True)
class Dataset:
    """The cases of a site, and what its dataset.json or datalist declares: label numbers by name, which may be none."""

    folder: Path
    cases: tuple[Case, ...]
    structures: tuple[Structure, ...]


@dataclass(frozen=True)
class Finding:
    """Something about a case that stops the work (`error`), may harm it (`warning`) or is good to know (`note`).

    The case is empty where the finding is about the cases as a whole.
    """

    case: str
    code: str
    message: str
    remedy: str
    severity: Literal["error", "warning", "note"]


def find_cases(data: Path, declared: Sequence[Structure] = ()) -> Dataset:
    """Find the labeled scans in a folder or a datalist.

    A folder holds `images/` and `labels/` with equal file names up to the ending (a DICOM series is a folder in
    `images/`), and may hold `dataset.json` with the label names and `cases.csv` with the columns file and subject. A
    folder without `images/` may hold a Decathlon `dataset.json` instead. A datalist is a JSON file with
    `"training": [{"image": ..., "label": ..., "subject": ...}]`, paths relative to it.

    Args:
        data: the folder or the JSON file.
        declared: names that the user gave, which overrule those of the dataset; they say what else is background.

    Returns:
        The cases, sorted by name; a case without a known subject is its own subject.

    Raises:
        InputError: listing everything that is missing or does not pair up.
    """
    data = Path(data)
    if not data.exists():
        raise InputError(f"There is no folder or file {data}.", "Check the path (--data).", "not_found")
    declaration = data / "dataset.json"
    if data.is_file():
        dataset = _from_datalist(data)
    elif not (data / "images").is_dir() and declaration.is_file():
        dataset = _from_datalist(declaration)
    else:
        dataset = _from_folder(data)
    given = _given(declared, dataset)
    background = tuple(structure.value for structure in given if is_background(structure.name))
    return replace(dataset, cases=tuple(replace(case, background=background) for case in dataset.cases))


def files_of_cases(cases: Iterable[Case]) -> Iterator[Path]:
    """Name all files that scans and segmentations of cases are read from, with what lies beside them."""
    for case in cases:
        for image in (case.image, *case.channels):
            yield from files_of(image)
        yield from segmentation_files(case.label)


def declared_structures(folder: Path) -> tuple[Structure, ...]:
    """Read what the dataset.json of a folder of cases names, background included; nothing where there is none.

    Raises:
        InputError: when the file cannot be read.
    """
    declaration = folder / "dataset.json"
    return _declared(_read_json(declaration), declaration) if declaration.is_file() else ()


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
        Structures with distinct names and values, sorted by value; the background is none of them.

    Raises:
        InputError: listing each value without a name and where it is (code `unnamed_label`), or when no voxel of any
            case is labeled and no structure is declared.
    """
    given = _given(declared, dataset)
    structures = list(given)
    contents: list[tuple[Case, list[int], list[Structure]]] = []
    for case in dataset.cases:
        try:
            labels, own = read_segmentation(case.label)
        except TCurLoraError:
            continue
        present = _present(labels)
        contents.append((case, present, own))
        for structure in own:
            known = next((s for s in structures if _same_name(s, structure)), None)
            if known is not None:
                structures[structures.index(known)] = replace(
                    known,
                    color=known.color or structure.color,
                    terminology=known.terminology or structure.terminology,
                )
            elif structure.value in present and _structure_of(structure.value, own, given) is None:
                structures.append(replace(structure, value=_free_value(structure.value, structures)))
    unnamed: dict[int, list[Path]] = {}
    for case, present, own in contents:
        for value in present:
            if _structure_of(value, own, structures) is None:
                unnamed.setdefault(value, []).append(case.label)
    if strict and unnamed:
        places = [f"label {value} in {_and_others(files)}" for value, files in sorted(unnamed.items())]
        example = ",".join(f"{value}=name" for value in sorted(unnamed))
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


def read_case_labels(case: Case, structures: Sequence[Structure], image: sitk.Image | None = None) -> sitk.Image:
    """Read the labels of a case, renumbered by name to the values of the structures.

    Labels that 3D Slicer cropped to their extent, or whose voxels are stored in another order, are laid onto the grid
    of the scan.

    Args:
        case: whose labels.
        structures: what they are labeled with.
        image: the scan, where it has been read already.

    Returns:
        Unsigned 16 bit labels (32 bit signed where a value needs it); 0 is the background.

    Raises:
        InputError: when the file cannot be read or a label belongs to no structure.
    """
    labels, own = read_segmentation(case.label)
    labels, unknown = _renumbered(labels, own, _meanings(case, structures))
    if unknown:
        raise _unknown_labels(case, unknown)
    placed = on_scan(labels, read_image(case.image) if image is None else image, case.image, _may_be_cropped(case))
    return placed or labels


def _may_be_cropped(case: Case) -> bool:
    return suffix(case.label) == ".seg.nrrd"


def check_cases(
    dataset: Dataset, structures: Sequence[Structure], in_channels: int = 1, minimum: int = 2
) -> list[Finding]:
    """Look for everything about the cases that would stop or spoil the work, all of it at once.

    Holds one case in memory at a time.

    Args:
        dataset: the cases.
        structures: what they are labeled with, from `read_structures`.
        in_channels: how many values in each voxel the model wants.
        minimum: how many subjects the work needs at least.

    Returns:
        Findings in the order of the cases, those about all cases last; none when all is well.
    """
    findings: list[Finding] = []
    seen: dict[str, Case] = {}
    ever: set[int] = set()
    for case in dataset.cases:
        image = _read_checked(case, findings)
        found = _check_labels(case, structures, image, findings)
        ever |= found
        if image is None:
            continue
        _check_image(case, image, in_channels, findings)
        digest = _fingerprint(image)
        if digest in seen:
            findings.append(_duplicate(case, seen[digest]))
        seen.setdefault(digest, case)
    for structure in structures:
        if dataset.cases and structure.value not in ever:
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
    return findings


def require_no_errors(findings: Sequence[Finding]) -> None:
    """Refuse cases with problems.

    Raises:
        InputError: listing every finding that is an error.
    """
    errors = [finding for finding in findings if finding.severity == "error"]
    if errors:
        lines = "\n".join(f"  {f.case or 'all cases'}: {f.message} {f.remedy}" for f in errors)
        raise InputError(f"{len(errors)} problem(s) with the cases:\n{lines}", code=errors[0].code)


# Finding


def _from_folder(folder: Path) -> Dataset:
    images, labels = folder / "images", folder / "labels"
    missing = [part.name for part in (images, labels) if not part.is_dir()]
    if missing:
        raise InputError(
            f"The folder {folder} has no folder {' and no folder '.join(missing)} in it.",
            "Put the scans into images/ and the segmentations, with the same names, into labels/; "
            "or give a datalist JSON file.",
            "no_cases",
        )
    problems: list[str] = []
    image_of, label_of = _by_stem(images, problems), _by_stem(labels, problems)
    problems += [f"{image_of[name]} has no segmentation in labels/" for name in sorted(image_of.keys() - label_of)]
    problems += [f"{label_of[name]} has no scan in images/" for name in sorted(label_of.keys() - image_of)]
    subject_of = _read_subjects(folder / "cases.csv")
    cases = [
        Case(name, image_of[name], label_of[name], subject_of.get(name, name))
        for name in sorted(image_of.keys() & label_of)
    ]
    return _dataset(folder, cases, declared_structures(folder), problems)


def _by_stem(folder: Path, problems: list[str]) -> dict[str, Path]:
    """Map case names to the image files and DICOM folders in a folder; hidden ones are passed over."""
    series = (entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    found: dict[str, Path] = {}
    for entry in sorted((*images_in(folder), *series)):
        name = entry.name if entry.is_dir() else stem(entry)
        if name in found:
            problems.append(f"{found[name]} and {entry.name} both are the case '{name}'")
        found.setdefault(name, entry)
    return found


def _read_subjects(path: Path) -> dict[str, str]:
    """Read the subject of each case from a table, whose files may be given with or without their ending."""
    if not path.is_file():
        return {}
    try:
        text = path.read_text(encoding="utf-8-sig")
        first = text.partition("\n")[0]
        rows = list(csv.DictReader(text.splitlines(), delimiter=";" if ";" in first else ","))
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise InputError(f"The table {path} cannot be read.", "Save it as CSV in UTF-8.", "bad_table") from error
    if rows and "file" not in rows[0]:
        raise InputError(
            f"The table {path} has no column 'file'.", "Give it the columns 'file' and 'subject'.", "bad_table"
        )
    named = [(row["file"], (row.get("subject") or "").strip()) for row in rows if row["file"]]
    return {stem(Path(file)): subject for file, subject in named if subject}


def _from_datalist(path: Path) -> Dataset:
    content = _read_json(path)
    entries = content.get("training")
    if not isinstance(entries, list):
        raise InputError(
            f"The datalist {path} has no list 'training'.",
            'Write {"training": [{"image": "...", "label": "..."}]}; or give a folder with images/ and labels/.',
            "bad_datalist",
        )
    problems: list[str] = []
    pairs: list[tuple[Path, Path, str]] = []
    for number, entry in enumerate(entries, start=1):
        values = [entry.get(key) for key in ("image", "label")] if isinstance(entry, dict) else [None, None]
        if not all(isinstance(value, str) and value for value in values):
            problems.append(f"entry {number} of {path.name} does not name one image and one label")
            continue
        image, label = (path.parent / str(value) for value in values)
        problems += [f"{file} does not exist" for file in (image, label) if not _exists(file)]
        pairs.append((image, label, str(entry.get("subject", "")).strip()))
    names = _distinct_names([image for image, _, _ in pairs], path.parent)
    repeated = [name for name, count in Counter(names).items() if count > 1]
    problems += [f"the case '{name}' is listed more than once" for name in repeated]
    cases = [
        Case(name, image, label, subject or name)
        for name, (image, label, subject) in sorted(zip(names, pairs, strict=True))
    ]
    return _dataset(path.parent, cases, _declared(content, path), problems)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long, or with characters that no path has
        return False


def _distinct_names(images: Sequence[Path], folder: Path) -> list[str]:
    """Name cases by file, or by folder and file where files of many patients have one name."""
    names = [stem(image) for image in images]
    if len(set(names)) == len(names):
        return names
    relative = [image.relative_to(folder) if image.is_relative_to(folder) else image for image in images]
    return [
        "_".join([*(part for part in path.parts[:-1] if part != path.anchor and part.strip(".")), stem(path)])
        for path in relative
    ]


def _dataset(folder: Path, cases: list[Case], structures: tuple[Structure, ...], problems: list[str]) -> Dataset:
    if problems:
        raise InputError(
            f"The cases in {folder} are not complete: {'; '.join(problems)}.",
            "Give every scan exactly one segmentation of the same name.",
            "unpaired_cases",
        )
    if not cases:
        raise InputError(
            f"There are no cases in {folder}.",
            "Put the scans into images/ and the segmentations, with the same names, into labels/.",
            "no_cases",
        )
    return Dataset(folder, tuple(cases), structures)


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, OSError, RecursionError) as error:
        raise InputError(f"{path} is not a JSON file: {error}.", "Correct it.", "bad_json") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} does not hold a JSON object.", "Correct it.", "bad_json")
    return content


def _declared(content: Mapping[str, Any], path: Path) -> tuple[Structure, ...]:
    """Read label names, which the Decathlon writes number to name and newer programs name to number."""
    labels = content.get("labels") or {}
    try:
        pairs = [
            (int(key), str(value)) if str(key).strip().isdigit() else (int(value), str(key))
            for key, value in labels.items()
        ]
        if any(not 0 <= value < 2**31 or not name.strip() for value, name in pairs):
            raise ValueError
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"The 'labels' in {path} are not numbers and names.",
            'Write for example "labels": {"0": "background", "1": "hippocampus"}.',
            "bad_labels",
        ) from error
    structures = [Structure(name.strip(), value) for value, name in pairs if value]
    require_distinct(structures, str(path))
    return tuple(sorted(structures, key=lambda s: s.value))


# Names


def _and_others(files: Sequence[Path]) -> str:
    others = len(files) - 1
    return f"'{files[0]}'" + (f" and {others} other file{'s' if others > 1 else ''}" if others else "")


def _given(declared: Sequence[Structure], dataset: Dataset) -> list[Structure]:
    """Join what the user named with what the dataset names, of which a name or number that is given does not count."""
    given: list[Structure] = []
    for structure in (*declared, *dataset.structures):
        known = [s for s in given if s.value == structure.value or _same_name(s, structure)]
        if not known or (is_background(structure.name) and all(s.value != structure.value for s in known)):
            given.append(structure)
    return given


def _meanings(case: Case, structures: Sequence[Structure]) -> list[Structure]:
    """Everything that a label of the case may mean: the structures, and the background."""
    return [*structures, *(Structure(BACKGROUND, value) for value in case.background)]


def _same_name(a: Structure, b: Structure) -> bool:
    return normalized(a.name) == normalized(b.name)


def _structure_of(value: int, own: Sequence[Structure], structures: Sequence[Structure]) -> Structure | None:
    """Return the structure that a value means in a file with names of its own: by name, then by number."""
    name = next((s for s in own if s.value == value), None)
    by_name = None if name is None else next((s for s in structures if _same_name(s, name)), None)
    if by_name is not None:
        return by_name
    by_number = next((s for s in structures if s.value == value), None)
    # A number decides only where no other label of this file bears the name of that structure.
    taken = by_number is not None and any(_same_name(s, by_number) for s in own)
    return None if taken else by_number


def _free_value(wanted: int, structures: Sequence[Structure]) -> int:
    taken = {s.value for s in structures}
    return wanted if wanted not in taken else next(n for n in range(1, len(taken) + 2) if n not in taken)


def _present(labels: sitk.Image) -> list[int]:
    return [int(value) for value in np.unique(sitk.GetArrayViewFromImage(labels)) if value != 0]


def _renumbered(
    labels: sitk.Image, own: Sequence[Structure], structures: Sequence[Structure]
) -> tuple[sitk.Image, list[int]]:
    """Return the labels with the values of the structures, and the values that belong to none (left as background)."""
    meanings = {value: _structure_of(value, own, structures) for value in _present(labels)}
    unknown = [value for value, structure in meanings.items() if structure is None]
    numbers = {v: 0 if s is None or is_background(s.name) else s.value for v, s in meanings.items()}
    if all(number == value for value, number in numbers.items()):
        return labels, unknown
    voxels = sitk.GetArrayViewFromImage(labels)
    highest = max((s.value for s in structures), default=0)
    result = np.zeros(voxels.shape, np.uint16 if highest < 2**16 else np.int32)
    for value, number in numbers.items():
        result[voxels == value] = number
    image = sitk.GetImageFromArray(result)
    image.CopyInformation(labels)
    return image, unknown


def _unknown_labels(case: Case, values: Sequence[int]) -> InputError:
    return InputError(
        f"The segmentation {case.label} has the label {', '.join(map(str, values))}, which belongs to no structure.",
        "Name it (with --labels or in dataset.json), or remove it from the file.",
        "unknown_label",
    )


# Checking


def _finding(case: Case, error: TCurLoraError) -> Finding:
    return Finding(case.name, error.code, error.message, error.remedy, "error")


def _read_checked(case: Case, findings: list[Finding]) -> sitk.Image | None:
    def warn(warning: ImageWarning) -> None:
        findings.append(Finding(case.name, warning.code, warning.message, warning.remedy, "warning"))

    try:
        image = read_image(case.image, warn)
    except TCurLoraError as error:
        findings.append(_finding(case, error))
        return None
    try:
        check_intensities(image, str(case.image), warn)
    except TCurLoraError as error:
        findings.append(_finding(case, error))
    return image


def _check_labels(
    case: Case, structures: Sequence[Structure], image: sitk.Image | None, findings: list[Finding]
) -> set[int]:
    """Report on the labels of a case; return the values of the structures that are in it."""
    try:
        labels, own = read_segmentation(case.label)
    except TCurLoraError as error:
        findings.append(_finding(case, error))
        return set()
    meanings = _meanings(case, structures)
    for value in _present(labels):
        name = next((s.name for s in own if s.value == value), None)
        structure = _structure_of(value, own, meanings)
        if structure is not None and name is not None and normalized(name) != normalized(structure.name):
            message = f"Label {value} is called '{name}' in {case.label}, but is taken for '{structure.name}'."
            remedy = f"If that is wrong, correct the name in the file (or --labels {value}=name)."
            findings.append(Finding(case.name, "label_renamed", message, remedy, "warning"))
    labels, unknown = _renumbered(labels, own, meanings)
    if unknown:
        findings.append(_finding(case, _unknown_labels(case, unknown)))
    present = set(_present(labels))
    absent = [s.name for s in structures if s.value not in present]
    if not present and not unknown:
        message = f"No voxel is labeled in {case.label}."
        findings.append(Finding(case.name, "empty_label", message, "Label the case, or leave it out.", "error"))
    elif present and absent:
        message = f"{case.label} has no voxel labeled {', '.join(map(repr, absent))}."
        remedy = "Fine if the structure is not in the scan; otherwise label it, or leave the case out."
        findings.append(Finding(case.name, "structure_absent", message, remedy, "warning"))
    difference = None if image is None else geometry_difference(image, labels)
    if difference and image is not None and on_scan(labels, image, case.image, _may_be_cropped(case)) is None:
        message = f"Scan and segmentation do not lie on the same grid: {difference} ({case.image}, {case.label})."
        remedy = "Look at both in 3D Slicer. If the labels lie right there, resample the segmentation onto the scan."
        if labels.GetSize() == image.GetSize():
            remedy += " If they are beside it, the header of one of the two is wrong: correct it, and do not resample."
        findings.append(Finding(case.name, "geometry_mismatch", message, remedy, "error"))
    return present


def _check_image(case: Case, image: sitk.Image, in_channels: int, findings: list[Finding]) -> None:
    def report(code: str, message: str, remedy: str) -> None:
        findings.append(Finding(case.name, code, message, remedy, "error"))

    channels = image.GetNumberOfComponentsPerPixel()
    if channels != in_channels:
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
