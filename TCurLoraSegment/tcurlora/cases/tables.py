"""The table that says whose scans they are: cases.csv, as people and Excel write it."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

from tcurlora.cases.case import Finding
from tcurlora.errors import InputError
from tcurlora.imaging.channels import numbered_channel
from tcurlora.imaging.images import stem
from tcurlora.runtime.text_tables import Table, bad_table, quoted, read_table

TABLE_NAMES = ("cases.csv", "cases.tsv", "cases.txt")
_FILE = "file files filename filenames image images imagefile imagename imageid scan scans scanname scanid "
_CASE = "case cases casename caseid name volume path imagepath filepath datei dateiname"
_SUBJECT = "subject subjects subjectid subjectname subjid patient patients patientid patientname "
_PERSON = "participant participantid person personid pid pat proband probandid"
FILE_COLUMNS = frozenset((_FILE + _CASE).split())
SUBJECT_COLUMNS = frozenset((_SUBJECT + _PERSON).split())
AUTHOR_COLUMNS = ("labeledby",)
MODEL = "model"
"""In the column `labeled_by`: the label is a model's own output, which nobody corrected."""


@dataclass(frozen=True)
class TableReading:
    """What a table says of cases.

    Attributes:
        subjects: of each case that it names.
        findings: rows and columns that are not used.
        problems: what has to be corrected first.
        uncorrected: cases whose labels a model made and nobody corrected, by the column `labeled_by`.
    """

    subjects: Mapping[str, str]
    findings: tuple[Finding, ...] = ()
    problems: tuple[str, ...] = ()
    uncorrected: frozenset[str] = frozenset()


def find_table(folder: Path) -> Path | None:
    """Return the table of a folder of cases, however its name is written.

    Raises:
        InputError: when there are several, or it is a spreadsheet.
    """
    files = [entry for entry in sorted(folder.iterdir()) if entry.is_file()]
    found = [entry for entry in files if entry.name.casefold() in TABLE_NAMES]
    if len(found) > 1:
        raise InputError(
            f"{folder} has {len(found)} tables of cases: {quoted([entry.name for entry in found])}.",
            "Keep the one that is right.",
            "bad_table",
        )
    sheet = next((e for e in files if e.stem.casefold() == "cases" and e.suffix.casefold() in (".xlsx", ".xls")), None)
    if sheet and not found:
        raise bad_table(sheet, "is a spreadsheet and not text", "Open it, and save it as cases.csv.")
    return found[0] if found else None


def read_subjects(path: Path, spellings: Mapping[str, Sequence[str]]) -> TableReading:
    """Read the subject of each case.

    Rows may name a file, with or without its ending and folder, or a case; capital letters do not count where that is
    clear.

    Args:
        path: the table.
        spellings: for each case the names that a row may call it by.

    Raises:
        InputError: when the table cannot be read, has not the two columns, or names no case.
    """
    table = read_table(path)
    file = _column(table, FILE_COLUMNS, "file")
    subject = _column(table, SUBJECT_COLUMNS, "subject")
    if file is None:
        there = f"; it has {quoted(table.header, 8)}" if any(table.header) else ""
        raise bad_table(
            path, f"has no column 'file'{there}", "Give it the columns 'file' and 'subject' in its first row."
        )
    if subject is None:
        message = f"{path.name} has no column 'subject', so the names of the cases say whose they are; it has "
        remedy = "Add the column 'subject' if there are several scans of one person."
        finding = Finding("", "table_without_subjects", f"{message}{quoted(table.header, 8)}.", remedy, "warning")
        return TableReading({}, (finding,))
    cases = _Spellings(spellings)
    author = _column(table, AUTHOR_COLUMNS, "labeled_by")
    by_model: set[str] = set()
    given: dict[str, dict[str, int]] = defaultdict(dict)
    problems: list[str] = []
    unused: list[str] = []
    nameless: list[int] = []
    for row in table.rows:
        name, whose = table.cell(row, file), table.cell(row, subject)
        case = cases.find(name)
        if not name:
            nameless.append(row.line)
        elif case is None:
            unused.append(name)
        elif not whose:
            problems.append(f"{path.name} names no subject for '{name}' (line {row.line})")
        else:
            given[case].setdefault(whose, row.line)
            if author is not None and table.cell(row, author).casefold() == MODEL:
                by_model.add(case)
    if not given and not problems:
        what = f"names no case: its first row is '{unused[0]}'" if unused else "names no case"
        raise bad_table(
            path, f"{what}, and there is the case '{next(iter(spellings), '')}'", "Give it a row for each case."
        )
    for case, subjects in given.items():
        if len(subjects) > 1:
            rows = " and ".join(f"'{whose}' (line {line})" for whose, line in subjects.items())
            problems.append(f"{path.name} gives '{case}' two subjects: {rows}")
    left_out = [case for case in spellings if case not in given]
    told = {problem for problem in problems if "names no subject" in problem}
    if left_out and not told:
        problems.append(f"{path.name} has no row for {quoted(left_out)}")
    findings = []
    if unused:
        message = f"{path.name} has rows that name no case: {quoted(unused)}."
        findings.append(Finding("", "table_rows_unused", message, "Correct the names, or remove the rows.", "warning"))
    if nameless:
        message = f"{path.name} has rows without a file: line {', '.join(map(str, nameless[:4]))}."
        findings.append(Finding("", "table_rows_unused", message, "Complete or remove them.", "warning"))
    others = [name for index, name in enumerate(table.header) if index not in (file, subject, author) and name]
    if others:
        message = f"Of {path.name} the columns {quoted(others)} are not used."
        remedy = f"Fine if '{table.header[file]}' and '{table.header[subject]}' say which scan is whose."
        findings.append(Finding("", "table_columns_unused", message, remedy, "note"))
    subjects_of = {case: next(iter(subjects)) for case, subjects in given.items()}
    return TableReading(subjects_of, tuple(findings), tuple(problems), frozenset(by_model))


def _column(table: Table, known: Collection[str], wanted: str) -> int | None:
    keys = [re.sub(r"[\W_]+", "", name.casefold()) for name in table.header]
    found = [index for index, key in enumerate(keys) if key == wanted] or [
        index for index, key in enumerate(keys) if key in known
    ]
    if not found:
        return None
    if len(found) > 1 and len({tuple(table.cell(row, index) for row in table.rows) for index in found}) > 1:
        raise bad_table(
            table.path,
            f"has several columns that may be the {wanted}: {quoted([table.header[index] for index in found])}",
            f"Call the right one '{wanted}'.",
        )
    return found[0]


class _Spellings:
    def __init__(self, spellings: Mapping[str, Sequence[str]]) -> None:
        self._exact: dict[str, set[str]] = defaultdict(set)
        self._loose: dict[str, set[str]] = defaultdict(set)
        for case, names in spellings.items():
            for name in (case, *names):
                self._exact[_plain(name)].add(case)
                self._loose[_plain(name).casefold()].add(case)

    def find(self, text: str) -> str | None:
        """Return the case that a cell names; None where it is none, or might be several."""
        whole = _plain(text)
        last = PureWindowsPath(whole.rstrip("/\\")).name  # which takes both kinds of slashes
        tries = [whole, last, stem(Path(last))]
        numbered = numbered_channel(tries[-1])
        tries += [numbered[0]] if numbered else []
        for names in (self._exact, self._loose):
            for name in tries:
                found = names.get(name if names is self._exact else name.casefold(), set())
                if len(found) == 1:
                    return next(iter(found))
        return None


def _plain(text: str) -> str:
    return unicodedata.normalize("NFC", text.strip())
