"""Whose scans they are: from names, tables as programs write them, and DICOM; what is not used is named."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import SimpleITK as sitk

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dicom_samples import write_series

from tcurlora.cases.dataset import find_cases
from tcurlora.errors import InputError
from tcurlora_contract.subjects import derive_subjects

SIDES = ("anna_left", "anna_right", "ben_left", "ben_right")


def groups(*names: str) -> list[list[str]]:
    """Return the names that share a subject, in order."""
    found: dict[str, list[str]] = {}
    for name, subject in derive_subjects(names).items():
        found.setdefault(subject, []).append(name)
    return sorted(found.values())


def site(root: Path, *names: str) -> Path:
    for part in ("images", "labels"):
        (root / part).mkdir(parents=True)
        for name in names:
            sitk.WriteImage(sitk.Image(4, 4, 4, sitk.sitkUInt8), str(root / part / f"{name}.nii.gz"))
    return root


def codes(root: Path) -> dict[str, str]:
    return {finding.code: finding.severity for finding in find_cases(root).findings}


@pytest.mark.parametrize(
    "names",
    [
        ("IXI012-HH-1211_L", "IXI012-HH-1211_R"),
        ("anna_left", "anna_right"),
        ("links_anna", "rechts_anna"),
        ("annaLeft", "annaRight"),
        ("IXI012L", "IXI012R"),
        ("sub-01_ses-1", "sub-01_ses-2"),
        ("sub-01_ses-1_run-1_T1w", "sub-01_ses-2_run-1_T1w"),
        ("case_001_T1", "case_001_T2"),
        ("OAS1_0001_MR1", "OAS1_0001_MR2"),
        ("p1_T1", "p1_FLAIR"),
        ("anna", "anna_followup"),
        ("anna_visit_1", "anna_visit_2"),
        ("anna left", "anna-right"),
        ("頭1_左", "頭1_右"),
    ],
)
def test_names_that_differ_by_side_or_visit_are_one_subject(names: tuple[str, ...]) -> None:
    assert groups(*names) == [list(names)]


@pytest.mark.parametrize(
    "names",
    [
        ("hippocampus_001", "hippocampus_002"),
        ("IBSR18_01", "IBSR18_02", "IBSR18_03"),
        ("BraTS20_Training_001", "BraTS20_Training_002"),
        ("OAS1_0001", "OAS1_0002"),
        ("2023_01", "2023_02", "2024_01"),
        ("hospitalA_scan_1", "hospitalA_scan_2", "hospitalB_scan_1"),
        ("anna_1", "anna_2", "ben_1"),
        ("scan_20200101", "scan_20200202", "mri_20200101"),
        ("L", "R"),
        ("T1", "T2"),
        ("visit1", "visit2"),
        ("sub-01", "sub-010"),
    ],
)
def test_other_names_are_subjects_of_their_own(names: tuple[str, ...]) -> None:
    assert groups(*names) == [[name] for name in sorted(names)]


@pytest.mark.parametrize("end", ["_{}", "_scan_{}", "_2020010{}", "-{}"])
def test_a_number_counts_as_a_visit_after_one_that_is_met_several_times(end: str) -> None:
    names = [f"p{person}" + end.format(visit) for person, visit in (("07", 1), ("07", 2), ("08", 1))]
    assert groups(*names) == [names[:2], names[2:]]
    assert len(groups(*(f"p07{end.format(visit)}" for visit in range(1, 4)), *names[2:])) == 2
    many = [f"p07{end.format(visit)}" for visit in range(1, 7)]
    assert len(groups(*many, names[2])) == 7  # as many as these are people


def test_check_says_how_subjects_were_derived_and_the_table_overrides(tmp_path: Path) -> None:
    root = site(tmp_path / "site", *SIDES)
    dataset = find_cases(root)
    assert [case.subject for case in dataset.cases] == ["anna", "anna", "ben", "ben"]
    (finding,) = dataset.findings
    assert (finding.code, finding.severity) == ("subjects_derived", "note")
    assert finding.message.startswith("4 cases of 2 subjects") and "'anna_left', 'anna_right'" in finding.message
    (root / "cases.csv").write_text("file,subject\n" + "".join(f"{name},{name}\n" for name in SIDES))
    dataset = find_cases(root)
    assert [case.subject for case in dataset.cases] == list(SIDES) and not dataset.findings


HEADS = ["file,subject", "file, subject", "File,Subject", "file,patient", "FILENAME,Subject ID", "subject_id,scan"]


@pytest.mark.parametrize("head", HEADS)
def test_columns_are_known_by_their_usual_names(tmp_path: Path, head: str) -> None:
    root = site(tmp_path / "site", "a1", "a2", "b1")
    row = "{1}, {0}.nii.gz" if head.startswith("subject_id") else "{0}.nii.gz, {1}"
    rows = [row.format(name, name[0]) for name in ("a1", "a2", "b1")]
    (root / "cases.csv").write_text("\n".join([head, *rows]))
    assert [case.subject for case in find_cases(root).cases] == ["a", "a", "b"]


def excel(text: str, delimiter: str) -> str:
    return text.replace(",", delimiter).replace("\n", "\r\n")


ENCODED: dict[str, Callable[[str], bytes]] = {
    "UTF-8 with BOM": lambda text: text.encode("utf-8-sig"),
    "semicolons": lambda text: excel(text, ";").encode("utf-8-sig"),
    "tabs": lambda text: excel(text, "\t").encode(),
    "Excel's Unicode text": lambda text: excel(text, "\t").encode("utf-16"),
    "UTF-16, big end first": lambda text: b"\xfe\xff" + text.encode("utf-16-be"),
    "UTF-16 without BOM": lambda text: text.encode("utf-16-le"),
    "Windows-1252": lambda text: excel(text, ";").encode("cp1252"),
    "sep=;": lambda text: ("sep=;\r\n" + excel(text, ";")).encode("cp1252"),
    "sep=; in UTF-16": lambda text: ("sep=;\r\n" + excel(text, ";")).encode("utf-16"),
    "quoted": lambda text: "\n".join(
        ",".join(f'"{cell}"' for cell in row.split(",")) for row in text.split("\n")
    ).encode(),
    "empty rows and columns": lambda text: ("\n" + text.replace("\n", ",,\n") + ",,\n,,\n\n").encode(),
    "old Mac's ends of lines": lambda text: text.replace("\n", "\r").encode(),
}


@pytest.mark.parametrize("how", ENCODED)
def test_tables_of_any_program_are_read(tmp_path: Path, how: str) -> None:
    root = site(tmp_path / "site", "Müller_1", "Müller_2", "b")
    text = "file,subject\nMüller_1.nii.gz,Jörg\nimages/Müller_2.nii.gz,Jörg\nB.NII.GZ,b"
    (root / "cases.csv").write_bytes(ENCODED[how](text))
    dataset = find_cases(root)
    assert [case.subject for case in dataset.cases] == ["Jörg", "Jörg", "b"] and not dataset.findings


def test_names_of_files_are_the_same_however_accents_are_stored(tmp_path: Path) -> None:
    root = site(tmp_path / "site", "Mu\u0308ller", "b")
    (root / "cases.csv").write_text("file,subject\nM\u00fcller,1\nC:\\data\\b.nii.gz,2\n", encoding="utf-8")
    assert sorted(case.subject for case in find_cases(root).cases) == ["1", "2"]


BAD_TABLES = {
    "names no case": "file,subject\nx,1\ny,2\n",
    "only some": "file,subject\nanna_left,anna\n",
    "a subject is missing": "file,subject\nanna_left,a\nanna_right,\nben_left,b\nben_right,b\n",
    "rows that contradict": "file,subject\n" + "".join(f"{n},1\n" for n in SIDES) + "ben_left.nii.gz,2\n",
    "no file": "age,subject\n40,a\n",
    "a comma in a cell": "file,subject\n" + "".join(f"{n},Doe, Jane\n" for n in SIDES),
    "two columns": "file,patient,person\n" + "".join(f"{n},1,{n}\n" for n in SIDES),
    "empty": "",
    "binary": "\x00\x01\x02",
}


@pytest.mark.parametrize("what", BAD_TABLES)
def test_table_that_does_not_say_whose_all_cases_are_is_refused(tmp_path: Path, what: str) -> None:
    root = site(tmp_path / "site", *SIDES)
    (root / "cases.csv").write_text(BAD_TABLES[what])
    with pytest.raises(InputError, match=r"cases\.csv") as caught:
        find_cases(root)
    assert caught.value.remedy and caught.value.code in ("bad_table", "unpaired_cases")


def test_spreadsheet_in_place_of_a_table_is_named(tmp_path: Path) -> None:
    root = site(tmp_path / "site", *SIDES)
    for name in ("cases.xlsx", "cases.csv"):
        (root / name).write_bytes(b"PK\x03\x04" + bytes(60))
        with pytest.raises(InputError, match="spreadsheet"):
            find_cases(root)
        (root / name).unlink()


def test_rows_and_columns_that_are_not_used_are_named(tmp_path: Path) -> None:
    root = site(tmp_path / "site", *SIDES)
    rows = "".join(f"{name},{name[:3]},3\n" for name in SIDES)
    (root / "cases.csv").write_text(f"file,subject,age\n{rows}carl,carl,3\n,dora,3\n")
    findings = find_cases(root).findings
    assert {f.code: f.severity for f in findings} == {"table_rows_unused": "warning", "table_columns_unused": "note"}
    told = " ".join(finding.message for finding in findings)
    assert "'carl'" in told and "line 7" in told and "'age'" in told
    (root / "cases.csv").rename(root / "Cases.TSV")
    (root / "Cases.TSV").write_text("file\tage\nanna_left\t3\n")
    assert codes(root) == {"table_without_subjects": "warning", "subjects_derived": "note"}


def test_files_that_are_not_read_are_named(tmp_path: Path) -> None:
    root = site(tmp_path / "site", "a", "b")
    (root / "images/notes.txt").write_text("x")
    (root / "images/.hidden.nii.gz").write_bytes((root / "images/a.nii.gz").read_bytes())
    (root / "labels/.git").mkdir()
    (root / "labels/a.ctbl").write_text("1 hippocampus 1 2 3 255\n")
    findings = find_cases(root).findings
    assert [(f.code, f.severity) for f in findings] == [
        ("files_not_read", "warning"),
        ("files_passed_over", "note"),
        ("files_passed_over", "note"),
    ]
    for finding, name in zip(findings, (".hidden.nii.gz", "notes.txt", ".git"), strict=True):
        assert f"'{name}'" in finding.message and "a.ctbl" not in finding.message


def test_patients_of_dicom_scans_are_subjects(tmp_path: Path) -> None:
    root = site(tmp_path / "site", "other")
    patients = {"x_left": "P1", "x_right": "P2", "y": "P1"}
    for name, patient in patients.items():
        write_series(root / "images" / name, PatientID=patient)
        sitk.WriteImage(sitk.Image(4, 4, 4, sitk.sitkUInt8), str(root / "labels" / f"{name}.nii.gz"))
    subject = {case.name: case.subject for case in find_cases(root).cases}
    assert subject["x_left"] == subject["y"] != subject["x_right"]
    assert not {"P1", "P2"} & set(subject.values())  # they are told apart by it, not called so
    for name in patients:
        for file in (root / "images" / name).iterdir():
            file.unlink()
        (root / "images" / name).rmdir()
        write_series(root / "images" / name, PatientID="anonymous")
    assert codes(root)["one_patient"] == "warning"
    subject = {case.name: case.subject for case in find_cases(root).cases}
    assert subject["x_left"] == subject["x_right"] != subject["y"]
