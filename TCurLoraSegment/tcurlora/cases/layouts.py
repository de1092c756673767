"""Where scans and labels lie: folders of images and labels, a folder for each case, and lists of files."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tcurlora.cases.case import Finding
from tcurlora.errors import InputError
from tcurlora.imaging.channels import (
    ChannelProblem,
    Scan,
    distinguished,
    numbered_channel,
    numbered_scan,
    scan_in_folder,
)
from tcurlora.imaging.headers.formats import format_of
from tcurlora.imaging.images import files_of, images_in, stem
from tcurlora.imaging.structure_tables import tables_beside
from tcurlora.runtime.text_tables import quoted

LABEL_WORDS = frozenset(("seg", "segmentation", "segmentations", "label", "labels", "labelmap", "mask", "gt", "dseg"))


@dataclass(frozen=True)
class Pair:
    """A scan with its labels, and whose it is where that is stated."""

    name: str
    scan: Scan
    label: Path
    subject: str = ""


@dataclass
class Layout:
    """What was found: pairs, what has to be corrected first, and what is good to know."""

    folder: Path
    pairs: list[Pair] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    uncorrected: frozenset[str] = frozenset()


def pairs_in_folders(folder: Path, images: Path, labels: Path) -> Layout:
    """Pair the scans of one folder with the labels of another by their names up to the ending.

    A scan is a file, or a folder with a DICOM series or with a file or series for each channel, or several files whose
    names end in `_0000`, `_0001` and so on. Labels are a file, or a folder with one file for each structure.
    """
    layout = Layout(folder)
    label_of = _by_name(labels, layout.problems)
    image_of = _by_name(images, layout.problems)
    numbered: dict[str, list[tuple[int, Path]]] = {}
    scan_of: dict[str, Scan] = {}
    for name, path in image_of.items():
        parts = numbered_channel(name)
        if name not in label_of and parts and parts[0] in label_of and parts[0] not in image_of:
            numbered.setdefault(parts[0], []).append((parts[1], path))
        elif name not in label_of:
            layout.problems.append(f"{path} has no segmentation in {labels.name}/")
        else:
            _take(scan_of, name, path, layout.problems)
    for name, files in numbered.items():
        try:
            scan_of[name] = numbered_scan(files)
        except ChannelProblem as problem:
            layout.problems.append(f"the case '{name}' {problem}")
    if numbered:
        _compare_counts({name: scan_of[name] for name in numbered if name in scan_of}, layout.problems)
    unpaired = label_of.keys() - image_of.keys() - numbered.keys()
    layout.problems += [f"{label_of[name]} has no scan in {images.name}/" for name in sorted(unpaired)]
    layout.pairs = [Pair(name, scan_of[name], label_of[name]) for name in sorted(scan_of.keys() & label_of)]
    for part, entries in ((images, image_of.values()), (labels, label_of.values())):
        layout.findings += strays(part, entries)
    return layout


def pairs_in_case_folders(folder: Path) -> Layout | None:
    """Find cases that have a folder each, with a scan and its labels in it.

    The labels are a folder `segmentations/`, or a file that is called so: `seg.nii.gz`, `p1_label.nii.gz`. What else is
    in the folder is the scan, or its channels.

    Returns:
        The cases; None where no folder looks like one.
    """
    layout = Layout(folder)
    for case in sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")):
        images = images_in(case)
        inside = [entry for entry in sorted(case.iterdir()) if entry.is_dir() and not entry.name.startswith(".")]
        labels = [entry for entry in (*images, *inside) if _is_label(entry)]
        scans = [entry for entry in (*images, *inside) if entry not in labels]
        if len(labels) != 1 or not scans:
            layout.problems.append(
                f"{case} has {'no scan' if labels else 'no segmentation'}"
                if len(labels) < 2
                else f"{case} has several segmentations: {quoted([label.name for label in labels])}"
            )
            continue
        found: dict[str, Scan] = {}
        files = [entry for entry in scans if entry.is_file()]
        if len(scans) == 1:
            _take(found, case.name, scans[0], layout.problems)
        elif files and len(files) == len(scans):
            found[case.name] = Scan(tuple(files), tuple(distinguished([stem(f) for f in files])), "named")
        else:
            layout.problems.append(f"{case} has files and folders, and it is not clear which one is the scan")
        if case.name in found:
            layout.pairs.append(Pair(case.name, found[case.name], labels[0]))
            layout.findings += strays(case, (*images, *inside))
    return layout if layout.pairs else None


def pairs_in_list(path: Path, content: Mapping[str, Any]) -> Layout:
    """Read the pairs that a datalist names: MONAI's and Decathlon's `training`, or nnU-Net's `dataset`.

    Raises:
        InputError: when it has neither.
    """
    layout = Layout(path.parent)
    entries = content.get("training")
    if entries is None and isinstance(content.get("dataset"), dict):
        named = content["dataset"].items()
        entries = [{"image": e.get("images"), "label": e.get("label")} if isinstance(e, dict) else e for _, e in named]
    if not isinstance(entries, list):
        raise InputError(
            f"The datalist {path} has no list 'training'.",
            'Write {"training": [{"image": "...", "label": "..."}]}; or give a folder with images/ and labels/.',
            "bad_datalist",
        )
    found: list[tuple[list[Path], Path, str]] = []
    for number, entry in enumerate(entries, start=1):
        image, label = (entry.get("image"), entry.get("label")) if isinstance(entry, dict) else (None, None)
        images = image if isinstance(image, list) else [image]
        values = [value for value in (*images, label) if isinstance(value, str) and value]
        if not images or len(values) <= len(images):
            layout.problems.append(f"entry {number} of {path.name} does not name an image and one label")
            continue
        *files, target = (path.parent / value for value in values)
        layout.problems += [f"{file} does not exist" for file in (*files, target) if not _exists(file)]
        found.append((files, target, str(entry.get("subject", "")).strip()))
    names = distinct_names([files[0] for files, _, _ in found], path.parent)
    for index, (files, _, _) in enumerate(found):
        parts = numbered_channel(names[index])
        if len(files) > 1 and parts:
            names[index] = parts[0]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    layout.problems += [f"the case '{name}' is listed more than once" for name in repeated]
    for name, (files, label, subject) in sorted(zip(names, found, strict=True)):
        scan: dict[str, Scan] = {}
        if len(files) > 1:
            scan[name] = Scan(tuple(files), tuple(distinguished([stem(file) for file in files])))
        elif _exists(files[0]):
            _take(scan, name, files[0], layout.problems)
        if name in scan:
            layout.pairs.append(Pair(name, scan[name], label, subject))
    others = [key for key in ("validation", "test", "testing") if isinstance(content.get(key), list) and content[key]]
    if others:
        count = sum(len(content[key]) for key in others)
        message = f"{path.name} also lists {count} scans under {quoted(others)}, which are not used."
        layout.findings.append(
            Finding("", "list_not_used", message, "Move those with labels to 'training' to use them.", "note")
        )
    return layout


def strays(folder: Path, used: Iterable[Path]) -> list[Finding]:
    """Name what lies in a folder of scans or labels and is not read."""
    known: set[Path] = set()
    for path in used:
        known |= {path} if path.is_dir() else {path, *files_of(path), *tables_beside(path)}
    others = [entry for entry in sorted(folder.iterdir()) if entry not in known]
    scans = [e for e in others if e.is_file() and not e.name.startswith("._") and format_of(e)]
    rest = [entry for entry in others if entry not in scans]
    where = f"{folder.parent.name}/{folder.name}" if folder.parent.name else folder.name
    findings = []
    if scans:
        message = f"In {where} these files were not read: {quoted([e.name for e in scans])}."
        remedy = "If they are scans or labels, give their names the ending of their format (.nii.gz, .nrrd, .dcm)."
        findings.append(Finding("", "files_not_read", message, remedy, "warning"))
    if rest:
        message = f"In {where} these were passed over: {quoted([e.name for e in rest])}."
        findings.append(Finding("", "files_passed_over", message, "Fine if they are not scans or labels.", "note"))
    return findings


def distinct_names(images: Sequence[Path], folder: Path) -> list[str]:
    """Name cases by file, or by folder and file where files of many patients have one name."""
    names = [stem(image) for image in images]
    if len(set(names)) == len(names):
        return names
    relative = [image.relative_to(folder) if image.is_relative_to(folder) else image for image in images]
    return [
        "_".join([*(part for part in path.parts[:-1] if part != path.anchor and part.strip(".")), stem(path)])
        for path in relative
    ]


def _by_name(folder: Path, problems: list[str]) -> dict[str, Path]:
    """Map names to the image files and folders in a folder; hidden ones are passed over."""
    inside = (entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    found: dict[str, Path] = {}
    for entry in sorted((*images_in(folder), *inside)):
        name = entry.name if entry.is_dir() else stem(entry)
        if name in found:
            problems.append(f"{found[name]} and {entry.name} both are the case '{name}'")
        found.setdefault(name, entry)
    return found


def _take(found: dict[str, Scan], name: str, path: Path, problems: list[str]) -> None:
    try:
        found[name] = scan_in_folder(path) if path.is_dir() else Scan((path,))
    except ChannelProblem as problem:
        problems.append(f"the case '{name}' {problem}")


def _compare_counts(scans: Mapping[str, Scan], problems: list[str]) -> None:
    most = max((len(scan.files) for scan in scans.values()), default=0)
    for name, scan in scans.items():
        if len(scan.files) < most:
            problems.append(f"the case '{name}' has no channel {len(scan.files):04d}, which other cases have")


def _is_label(entry: Path) -> bool:
    name = entry.name if entry.is_dir() else stem(entry)
    return re.split(r"[_\-. ]+", name.casefold())[-1] in LABEL_WORDS


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long, or with characters that no path has
        return False
