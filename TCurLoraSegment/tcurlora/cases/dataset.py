"""A site's labeled scans, found wherever they lie: which scan has which labels, and whose it is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tcurlora.cases.case import IGNORED, Case, Dataset, Finding
from tcurlora.cases.declarations import Declaration, read_declaration, read_json
from tcurlora.cases.layouts import Layout, Pair, pairs_in_case_folders, pairs_in_folders, pairs_in_list
from tcurlora.cases.tables import find_table, read_subjects
from tcurlora.errors import InputError
from tcurlora.imaging.headers.formats import format_of
from tcurlora.imaging.images import files_of, stem
from tcurlora.imaging.segmentations import names_of_structures, segmentation_files
from tcurlora.imaging.structures import Structure, is_background, is_ignored, same_name
from tcurlora.runtime.text_tables import quoted
from tcurlora_contract.subjects import derive_subjects

DECLARATION = "dataset.json"
_LAYOUT = (
    "Put the scans into images/ and the segmentations, with the same names, into labels/; "
    "or give a datalist JSON file, or the raw folder of an nnU-Net dataset."
)


def find_cases(data: Path, declared: Sequence[Structure] = ()) -> Dataset:
    """Find the labeled scans in a folder or a datalist.

    A folder holds `images/` and `labels/`, or nnU-Net's `imagesTr/` and `labelsTr/`, with equal names up to the ending
    (see `pairs_in_folders`), or a folder for each case (see `pairs_in_case_folders`). It may hold `dataset.json` with
    the names of labels and channels, and `cases.csv` with the columns file and subject. A datalist is a JSON file with
    `"training": [{"image": ..., "label": ..., "subject": ...}]`, paths relative to it, and may be the `dataset.json` of
    a folder.

    Args:
        data: the folder or the JSON file.
        declared: names that the user gave, which overrule those of the dataset; they say what else is background, and
            what is to be ignored.

    Returns:
        The cases, sorted by name, and what was noticed. Where nothing says whose a scan is, its name does (see
        `derive_subjects`).

    Raises:
        InputError: listing everything that is missing or does not pair up.
    """
    data = Path(data)
    if not data.exists():
        raise InputError(f"There is no folder or file {data}.", "Check the path (--data).", "not_found")
    path = data if data.is_file() else data / DECLARATION
    content = read_json(path) if path.is_file() else {}
    layout = _layout(data, path, content)
    declaration = read_declaration(content, path, named=bool(declared))
    given = joined(declared, declaration.structures)
    background = tuple(structure.value for structure in given if is_background(structure.name))
    by_user = [structure.value for structure in declared if is_ignored(structure.name)]
    named = {structure.value for structure in given}
    ignore = tuple(sorted({*by_user, *(value for value in declaration.ignore if value not in named)}))
    subject_of, findings = _subjects(layout)
    if layout.problems:
        raise InputError(
            f"The cases in {layout.folder} are not complete: {'; '.join(layout.problems)}.",
            "Give every scan exactly one segmentation of the same name, and cases.csv, if there is one, a row for it.",
            "unpaired_cases",
        )
    if not layout.pairs:
        raise InputError(f"There are no cases in {layout.folder}.", _LAYOUT, "no_cases")
    cases = tuple(
        replace(
            _case(pair, subject_of[pair.name], background, ignore, declaration),
            uncorrected=pair.name in layout.uncorrected,
        )
        for pair in layout.pairs
    )
    noticed = (*declaration.findings, *layout.findings, *findings)
    return Dataset(layout.folder, cases, declaration.structures, noticed)


def files_of_cases(cases: Iterable[Case]) -> Iterator[Path]:
    """Name all files that scans and segmentations of cases are read from, with what lies beside them."""
    for case in cases:
        for image in (case.image, *case.channels):
            yield from files_of(image)
        yield from segmentation_files(case.label)


def declared_labels(folder: Path) -> Declaration:
    """Read what the dataset.json of a folder of cases names; nothing where there is none.

    Raises:
        InputError: when the file cannot be read.
    """
    path = folder / DECLARATION
    return read_declaration(read_json(path), path) if path.is_file() else Declaration()


def joined(declared: Sequence[Structure], others: Sequence[Structure]) -> list[Structure]:
    """Join what the user named with what the dataset names, of which a name or number that is given does not count."""
    given: list[Structure] = []
    for structure in (*declared, *others):
        known = [s for s in given if s.value == structure.value or same_name(s, structure)]
        nothing = is_background(structure.name) or is_ignored(structure.name)
        if not known or (nothing and all(s.value != structure.value for s in known)):
            given.append(structure)
    return given


def _layout(data: Path, path: Path, content: Mapping[str, Any]) -> Layout:
    if data.is_file():
        return pairs_in_list(path, content)
    if (data / "images").is_dir() and (data / "labels").is_dir():
        return pairs_in_folders(data, data / "images", data / "labels")
    raw = data / "imagesTr", data / "labelsTr"
    if all(part.is_dir() for part in raw):
        listed = pairs_in_list(path, content) if isinstance(content.get("training"), list) else None
        # nnU-Net 1 lists the names of cases, which are not those of files.
        if listed is not None and listed.pairs and not listed.problems:
            return listed
        return pairs_in_folders(data, *raw)
    if not (data / "images").is_dir():
        if path.is_file() and not (data / "labels").is_dir():
            return pairs_in_list(path, content)
        in_folders = pairs_in_case_folders(data)
        if in_folders is not None:
            return in_folders
    missing = [name for name in ("images", "labels") if not (data / name).is_dir()]
    raise InputError(f"The folder {data} has no folder {' and no folder '.join(missing)} in it.", _LAYOUT, "no_cases")


def _case(
    pair: Pair, subject: str, background: tuple[int, ...], ignore: tuple[int, ...], declaration: Declaration
) -> Case:
    files, names = pair.scan.files, pair.scan.names
    if pair.scan.order == "numbered" and len(declaration.channels) == len(files):
        names = declaration.channels
    if not ignore and any(is_ignored(name) for name in names_of_structures(pair.label)):
        ignore = (IGNORED,)
    return Case(pair.name, files[0], pair.label, subject, background, tuple(files[1:]), ignore, names, pair.scan.order)


# Subjects


def _subjects(layout: Layout) -> tuple[dict[str, str], list[Finding]]:
    """Say whose each scan is: by the list, then by the table, then by DICOM's patients and the names of the cases."""
    stated = {pair.name: pair.subject for pair in layout.pairs if pair.subject}
    table = find_table(layout.folder) if layout.pairs else None
    findings: list[Finding] = []
    if table is not None and len(stated) < len(layout.pairs):
        reading = read_subjects(table, {pair.name: _spellings(pair, layout.folder) for pair in layout.pairs})
        stated = {**reading.subjects, **stated}
        layout.problems += reading.problems
        layout.uncorrected = reading.uncorrected
        findings += reading.findings
    elif table is not None:
        message = f"{table.name} is not used, because the list of cases names the subjects itself."
        findings.append(Finding("", "table_not_used", message, "Fine if both say the same.", "note"))
    if len(stated) == len(layout.pairs):
        return stated, findings
    guessed, more = _guessed([pair for pair in layout.pairs if pair.name not in stated])
    return {**guessed, **stated}, findings + more


def _spellings(pair: Pair, folder: Path) -> list[str]:
    names = []
    for file in pair.scan.files:
        names += [file.name, stem(file), str(file)]
        if file.is_relative_to(folder):
            names += [file.relative_to(folder).as_posix(), str(file.relative_to(folder))]
    return names


def _guessed(pairs: Sequence[Pair]) -> tuple[dict[str, str], list[Finding]]:
    findings: list[Finding] = []
    subject_of = derive_subjects([pair.name for pair in pairs])
    patients = {pair.name: patient for pair in pairs if (patient := _patient_of(pair.scan.files[0]))}
    how = "the names of the cases"
    if len(set(patients.values())) > 1:
        # Patients are only told apart by their numbers, and not called by them.
        called: dict[str, str] = {}
        for name, patient in patients.items():
            if patient not in called:
                called[patient] = name if subject_of[name] in called.values() else subject_of[name]
            subject_of[name] = called[patient]
        how = "the patients in the DICOM files, else by the names of the cases"
    elif len(patients) > 1 and len({subject_of[name] for name in patients}) > 1:
        message = f"All {len(patients)} DICOM scans name one and the same patient; their names tell subjects apart."
        remedy = "If they are of one person, say so in cases.csv (columns file and subject)."
        findings.append(Finding("", "one_patient", message, remedy, "warning"))
    groups: dict[str, list[str]] = defaultdict(list)
    for name, subject in subject_of.items():
        groups[subject].append(name)
    if len(groups) < len(pairs):
        several = [members for members in groups.values() if len(members) > 1]
        examples = "; ".join(quoted(members) for members in several[:2])
        message = f"{len(pairs)} cases of {len(groups)} subject{'' if len(groups) == 1 else 's'}, by {how}: "
        message += f"of one person each are {examples}{' and others' if len(several) > 2 else ''}."
        remedy = "If that is wrong, say whose they are in cases.csv (columns file and subject)."
        findings.append(Finding("", "subjects_derived", message, remedy, "note"))
    return subject_of, findings


def _patient_of(path: Path) -> str:
    """Return the number of the patient of a DICOM scan; nothing where there is none."""
    files = files_of(path) if path.is_dir() else [path]
    file = next((file for file in files if format_of(file) == "dicom" and file.name.upper() != "DICOMDIR"), None)
    if file is None:
        return ""
    import pydicom  # which loads requests, which opens a socket

    try:
        tags = ["PatientID", "PatientName"]
        found = pydicom.dcmread(file, specific_tags=tags, stop_before_pixels=True)
        return str(found.get("PatientID", "") or found.get("PatientName", "")).strip()
    except Exception:  # pydicom raises many kinds of errors on damaged files, which are told when they are read
        return ""
