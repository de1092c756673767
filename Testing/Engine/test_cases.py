"""Cases: found in folders and datalists, named by name, and checked with every problem told at once."""

from __future__ import annotations

import json
import re
from pathlib import Path, PureWindowsPath

import numpy as np
import pytest
import SimpleITK as sitk

from tcurlora.cases.case import Case, Dataset, Finding
from tcurlora.cases.checks import check_cases, require_no_errors
from tcurlora.cases.dataset import find_cases
from tcurlora.cases.labels import read_case_labels, read_structures
from tcurlora.cases.layouts import distinct_names
from tcurlora.errors import InputError
from tcurlora.imaging.grids import geometry_difference
from tcurlora.imaging.images import write_image
from tcurlora.imaging.segmentations import write_segmentation
from tcurlora.imaging.structures import Structure, parse_labels

HIPPOCAMPUS = Structure("hippocampus", 1)
AMYGDALA = Structure("amygdala", 2)


def scan(seed: int, size: tuple[int, int, int] = (10, 9, 8)) -> sitk.Image:
    image = sitk.GetImageFromArray(np.random.default_rng(seed).normal(100, 20, size[::-1]).astype(np.float32))
    image.SetSpacing((1.0, 1.1, 1.2))
    image.SetOrigin((5.0, -3.0, 2.0))
    return image


def labels(values: tuple[int, ...] = (1,), size: tuple[int, int, int] = (10, 9, 8)) -> sitk.Image:
    """Make a label map with one block of 12 voxels for each value."""
    array = np.zeros(size[::-1], np.uint8)
    for index, value in enumerate(values):
        array[2:4, 2:5, 1 + 3 * index : 3 + 3 * index] = value
    image = sitk.GetImageFromArray(array)
    image.CopyInformation(scan(0, size))
    return image


def folder_with(root: Path, names: tuple[str, ...], label_ending: str = ".nii.gz") -> Path:
    for part in ("images", "labels"):
        (root / part).mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(names):
        write_image(scan(seed), root / "images" / f"{name}.nii.gz")
        if label_ending == ".seg.nrrd":
            write_segmentation(labels(), [HIPPOCAMPUS], root / "labels" / f"{name}{label_ending}")
        else:
            write_image(labels(), root / "labels" / f"{name}{label_ending}")
    return root


def declare(root: Path, content: object) -> None:
    (root / "dataset.json").write_text(json.dumps(content), encoding="utf-8")


def codes(dataset: Dataset, structures: list[Structure], **options: int) -> dict[tuple[str, str], str]:
    """Return the severity of each finding by case and code."""
    findings = check_cases(dataset, structures, **options)
    assert all(f.message and f.remedy for f in findings)
    return {(f.case, f.code): f.severity for f in findings}


def test_folder_gives_cases_by_name(tmp_path: Path) -> None:
    root = folder_with(tmp_path / "Fälle 一", ("b", "a ü 一"), ".seg.nrrd")
    for stray in ("images/.DS_Store", "images/notes.txt", "labels/a ü 一.ctbl", "images/._b.nii.gz"):
        (root / stray).write_text("x")
    dataset = find_cases(root)
    assert [case.name for case in dataset.cases] == ["a ü 一", "b"]
    assert dataset.cases[1] == Case("b", root / "images/b.nii.gz", root / "labels/b.seg.nrrd", "b")
    assert dataset.structures == ()
    assert dataset.folder == root


@pytest.mark.parametrize("separator", [",", ";"])
def test_subjects_come_from_the_table(tmp_path: Path, separator: str) -> None:
    root = folder_with(tmp_path, ("p1_left", "p1_right", "p2"))
    rows = [
        ("file", "age", "subject"),
        ("p1_left.nii.gz", "40", "Müller"),
        ("p1_right", "40", "Müller"),
        ("p2.nii.gz", "50", "Ben"),
        ("x", "1", "y"),
    ]
    text = "\ufeff" + "\r\n".join(separator.join(row) for row in rows)
    (root / "cases.csv").write_text(text, encoding="utf-8")
    dataset = find_cases(root)
    assert [case.subject for case in dataset.cases] == ["Müller", "Müller", "Ben"]
    assert {f.code: f.severity for f in dataset.findings} == {
        "table_rows_unused": "warning",
        "table_columns_unused": "note",
    }


def test_table_without_files_is_refused(tmp_path: Path) -> None:
    root = folder_with(tmp_path, ("a",))
    (root / "cases.csv").write_text("colour,subject\na,b\n")
    with pytest.raises(InputError, match=r"cases\.csv has no column 'file'"):
        find_cases(root)


@pytest.mark.parametrize(
    "names",
    [{"0": "background", "2": "amygdala", "1": "hippocampus"}, {"background": 0, "hippocampus": 1, "amygdala": 2}],
)
def test_both_ways_of_declaring_labels_are_understood(tmp_path: Path, names: dict[str, object]) -> None:
    root = folder_with(tmp_path, ("a",))
    declare(root, {"labels": names})
    assert find_cases(root).structures == (HIPPOCAMPUS, AMYGDALA)


@pytest.mark.parametrize("names", [["hippocampus"], {"one": "two"}, {"a": [1, 2]}, {"1": "a", "2": "A"}, {"-1": "a"}])
def test_senseless_declaration_is_refused(tmp_path: Path, names: object) -> None:
    root = folder_with(tmp_path, ("a",))
    declare(root, {"labels": names})
    with pytest.raises(InputError, match=r"dataset\.json"):
        find_cases(root)


def test_all_that_does_not_pair_up_is_told_at_once(tmp_path: Path) -> None:
    root = folder_with(tmp_path, ("a", "b", "c", "d"))
    (root / "labels/a.nii.gz").unlink()
    (root / "images/c.nii.gz").unlink()
    write_image(scan(9), root / "images/d.nrrd")
    with pytest.raises(InputError) as caught:
        find_cases(root)
    text = str(caught.value)
    assert "a.nii.gz has no segmentation" in text
    assert "c.nii.gz has no scan" in text
    assert "d.nrrd" in text and "the case 'd'" in text
    assert "b.nii.gz" not in text


def test_nothing_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        find_cases(tmp_path / "nowhere")
    (tmp_path / "images").mkdir()
    with pytest.raises(InputError, match="no folder labels"):
        find_cases(tmp_path)
    (tmp_path / "labels").mkdir()
    with pytest.raises(InputError, match="no cases"):
        find_cases(tmp_path)


def test_datalist_is_relative_to_its_file(tmp_path: Path) -> None:
    root = folder_with(tmp_path / "decathlon", ("a", "b"))
    (root / "images").rename(root / "imagesTr")
    (root / "labels").rename(root / "labelsTr")
    entries = [
        {"image": "./imagesTr/b.nii.gz", "label": "./labelsTr/b.nii.gz", "subject": 7},
        {"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"},
    ]
    declare(root, {"labels": {"0": "background", "1": "hippocampus"}, "training": entries})
    dataset = find_cases(root / "dataset.json")
    assert [(case.name, case.subject) for case in dataset.cases] == [("a", "a"), ("b", "7")]
    assert dataset.structures == (HIPPOCAMPUS,)
    assert all(case.image.is_file() and case.label.is_file() for case in dataset.cases)
    assert find_cases(root) == dataset


def test_equal_file_names_in_many_folders_are_many_cases(tmp_path: Path) -> None:
    entries = []
    for subject in ("sub-01", "sub-02"):
        (tmp_path / subject / "anat").mkdir(parents=True)
        write_image(scan(1), tmp_path / subject / "anat/t1.nii.gz")
        write_image(labels(), tmp_path / subject / "anat/seg.nii.gz")
        entries.append({"image": f"{subject}/anat/t1.nii.gz", "label": f"{subject}/anat/seg.nii.gz"})
    (tmp_path / "list.json").write_text(json.dumps({"training": entries}))
    assert [case.name for case in find_cases(tmp_path / "list.json").cases] == ["sub-01_anat_t1", "sub-02_anat_t1"]
    (tmp_path / "list.json").write_text(json.dumps({"training": entries + entries[:1]}))
    with pytest.raises(InputError, match="'sub-01_anat_t1' is listed more than once"):
        find_cases(tmp_path / "list.json")


@pytest.mark.parametrize(
    ("folders", "base", "expected"),
    [
        ((r"D:\study\p1", r"D:\study\p2"), r"C:\data", ["study_p1_t1", "study_p2_t1"]),
        ((r"\\server\share\p1", r"\\server\share\p2"), r"C:\data", ["p1_t1", "p2_t1"]),
        ((r"C:\data\p1", r"C:\data\..\p2"), r"C:\data", ["p1_t1", "p2_t1"]),
    ],
)
def test_names_of_cases_hold_no_drives(folders: tuple[str, ...], base: str, expected: list[str]) -> None:
    images = [PureWindowsPath(folder, "t1.nii.gz") for folder in folders]
    assert distinct_names(images, PureWindowsPath(base)) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("names", [("sub/T1", "sub/t1"), (r"D:\a", r"\\server\share\a"), ("../a", "a")])
def test_cases_of_any_names_have_files_of_their_own_in_the_cache(tmp_path: Path, names: tuple[str, str]) -> None:
    """Also where capital letters do not count, and where a name would lead to another folder."""
    from tcurlora.cases.cached_case import cache_case
    from tcurlora.models.monai_preprocessing import MonaiPreprocessing

    root = folder_with(tmp_path, ("1", "2"))
    files = []
    for number, name in enumerate(names, start=1):
        case = Case(name, root / f"images/{number}.nii.gz", root / f"labels/{number}.nii.gz", name)
        cached = cache_case(case, [HIPPOCAMPUS], MonaiPreprocessing(None, ()), tmp_path / "cache")
        assert cached.name == name
        files += [cached.image, cached.label, cached.foreground, cached.background]
    assert {file.parent for file in files} == {tmp_path / "cache"}
    assert len({file.name.casefold() for file in files}) == 8
    assert sorted(file.name for file in files) == sorted(path.name for path in (tmp_path / "cache").iterdir())


def test_header_and_voxels_are_one_case(tmp_path: Path) -> None:
    root = folder_with(tmp_path, ("a",))
    for part, image in (("images", scan(1)), ("labels", labels())):
        sitk.WriteImage(image, root / part / "b.hdr")
        (root / part / "b.img").rename(root / part / "b.IMG")
    assert [(c.name, c.image.name, c.label.name) for c in find_cases(root).cases][1] == ("b", "b.hdr", "b.hdr")


@pytest.mark.parametrize("ending", [".seg.nrrd", ".nii.gz"])
def test_segment_that_is_called_background_is_background(tmp_path: Path, ending: str) -> None:
    root = folder_with(tmp_path, ("a",))
    (root / "labels/a.nii.gz").unlink()
    named = [HIPPOCAMPUS, Structure("Background", 2)]
    write_segmentation(labels((1, 2)), named, root / f"labels/a{ending}")
    dataset = find_cases(root)
    structures = read_structures(dataset)
    assert [(s.name, s.value) for s in structures] == [("hippocampus", 1)]
    found = read_case_labels(dataset.cases[0], structures)
    assert np.array_equal(sitk.GetArrayFromImage(found), sitk.GetArrayFromImage(labels((1,))))
    assert codes(dataset, structures) == {("", "too_few_cases"): "error"}


@pytest.mark.parametrize("by_user", [True, False])
def test_labels_that_are_declared_to_be_background_are_background(tmp_path: Path, by_user: bool) -> None:
    root = folder_with(tmp_path, ("a",))
    write_image(labels((1, 2, 7)), root / "labels/a.nii.gz")
    given = parse_labels("1=hippocampus,2=background,7=Background") if by_user else []
    declared = (
        {"1": "hippocampus", "2": "amygdala"} if by_user else {"1": "hippocampus", "2": "background", "7": "Background"}
    )
    declare(root, {"labels": {"0": "background", **declared}})
    dataset = find_cases(root, given)
    structures = read_structures(dataset, given)
    assert [(s.name, s.value) for s in structures] == [("hippocampus", 1)]
    found = read_case_labels(dataset.cases[0], structures)
    assert np.array_equal(sitk.GetArrayFromImage(found), sitk.GetArrayFromImage(labels((1,))))
    assert codes(dataset, structures) == {("", "too_few_cases"): "error"}


def test_a_name_in_the_file_counts_more_than_a_number_that_is_declared_background(tmp_path: Path) -> None:
    root = folder_with(tmp_path, ("a",))
    (root / "labels/a.nii.gz").unlink()
    write_segmentation(labels((2,)), [Structure("hippocampus", 2)], root / "labels/a.seg.nrrd")
    declare(root, {"labels": {"1": "hippocampus", "2": "background"}})
    dataset = find_cases(root)
    found = read_case_labels(dataset.cases[0], read_structures(dataset))
    assert np.array_equal(sitk.GetArrayFromImage(found), sitk.GetArrayFromImage(labels((1,))))


def test_problems_are_listed_in_one_refusal() -> None:
    warning = Finding("a", "few_cases", "Only one.", "Label more.", "warning")
    require_no_errors([warning])
    bad = [
        Finding("a", "empty_label", "No voxel.", "Label it.", "error"),
        Finding("", "too_few_cases", "One subject.", "Label more.", "error"),
    ]
    with pytest.raises(InputError) as caught:
        require_no_errors([bad[0], warning, bad[1]])
    assert caught.value.code == "empty_label"
    assert str(caught.value).splitlines() == [
        "2 problem(s) with the cases:",
        "  a: No voxel. Label it.",
        "  all cases: One subject. Label more.",
    ]


def test_datalist_tells_all_its_problems(tmp_path: Path) -> None:
    root = folder_with(tmp_path, ("a",))
    entries = [
        {"image": "images/a.nii.gz", "label": "labels/none.nii.gz"},
        {"image": ["images/a.nii.gz", 3], "label": "labels/a.nii.gz"},
        "images/a.nii.gz",
    ]
    (root / "list.json").write_text(json.dumps({"training": entries}))
    with pytest.raises(InputError) as caught:
        find_cases(root / "list.json")
    for part in ("none.nii.gz does not exist", "entry 2", "entry 3"):
        assert part in caught.value.message
    for content in ("{", "[]", '{"validation": []}', '{"training": []}'):
        (root / "list.json").write_text(content)
        with pytest.raises(InputError):
            find_cases(root / "list.json")


def test_declared_names_overrule_the_dataset_and_the_files(tmp_path: Path) -> None:
    root = folder_with(tmp_path, ())
    for name, value in (("a", 1), ("b", 2)):
        write_image(scan(value), root / "images" / f"{name}.nii.gz")
        write_segmentation(labels((value,)), [Structure(f"Segment_{value}", value)], root / f"labels/{name}.seg.nrrd")
    declare(root, {"labels": {"1": "wrong", "2": "amygdala"}})
    dataset = find_cases(root)
    assert [(s.name, s.value) for s in read_structures(dataset, [HIPPOCAMPUS])] == [("hippocampus", 1), ("amygdala", 2)]
    assert [s.name for s in read_structures(dataset)] == ["wrong", "amygdala"]
    found = check_cases(dataset, read_structures(dataset, [HIPPOCAMPUS]))
    assert ("a", "label_renamed", "warning") in [(f.case, f.code, f.severity) for f in found]


def test_segments_are_matched_by_name_whatever_their_numbers(tmp_path: Path) -> None:
    root = folder_with(tmp_path, ())
    written = {
        "a": [Structure("Hippocampus", 1, (1.0, 0.0, 0.0), "T~1")],
        "b": [Structure("amygdala", 1)],
        "c": [Structure("amygdala", 1), Structure("hippocampus", 2)],
        "d": [Structure("hippocampus", 9), Structure("amygdala", 3)],
    }
    for seed, (name, structures) in enumerate(written.items()):
        write_image(scan(seed), root / "images" / f"{name}.nii.gz")
        write_segmentation(labels(tuple(s.value for s in structures)), structures, root / f"labels/{name}.seg.nrrd")
    dataset = find_cases(root)
    structures = read_structures(dataset)
    assert [(s.name, s.value) for s in structures] == [("Hippocampus", 1), ("amygdala", 2)]
    two = Dataset(root, dataset.cases[:2], ())
    assert [(s.name, s.value) for s in read_structures(two)] == [("Hippocampus", 1), ("amygdala", 2)]
    assert structures[0].color == (1.0, 0.0, 0.0) and structures[0].terminology == "T~1"
    for case in dataset.cases:
        image = read_case_labels(case, structures)
        array = sitk.GetArrayFromImage(image)
        for index, segment in enumerate(written[case.name]):
            expected = 1 if segment.name.lower() == "hippocampus" else 2
            block = np.zeros(array.shape, bool)
            block[2:4, 2:5, 1 + 3 * index : 3 + 3 * index] = True
            assert np.array_equal(array == expected, block), (case.name, segment)
        assert np.count_nonzero(array) == 12 * len(written[case.name])
        assert geometry_difference(image, scan(0)) is None
    assert not [f for f in check_cases(dataset, structures) if f.severity == "error"]


def test_a_declared_number_does_not_take_a_label_of_another_name(tmp_path: Path) -> None:
    root = folder_with(tmp_path, ("a",))
    (root / "labels/a.nii.gz").unlink()
    write_segmentation(
        labels((1, 2)), [Structure("amygdala", 1), Structure("hippocampus", 2)], root / "labels/a.seg.nrrd"
    )
    dataset = find_cases(root)
    structures = read_structures(dataset, [HIPPOCAMPUS])
    assert [(s.name, s.value) for s in structures] == [("hippocampus", 1), ("amygdala", 2)]
    swapped = sitk.GetArrayFromImage(labels((2, 1)))
    assert np.array_equal(sitk.GetArrayFromImage(read_case_labels(dataset.cases[0], structures)), swapped)


def test_empty_segments_of_files_are_no_structures(tmp_path: Path) -> None:
    root = folder_with(tmp_path, ("a",))
    (root / "labels/a.nii.gz").unlink()
    write_segmentation(labels(), [HIPPOCAMPUS, Structure("never drawn", 5)], root / "labels/a.seg.nrrd")
    assert [s.name for s in read_structures(find_cases(root))] == ["hippocampus"]


def test_labels_without_a_name_are_all_listed(tmp_path: Path) -> None:
    root = folder_with(tmp_path, ("a", "b", "c"))
    write_image(labels((1, 4)), root / "labels/b.nii.gz")
    (root / "labels/c.nii.gz").write_bytes(b"broken")
    dataset = find_cases(root)
    with pytest.raises(InputError) as caught:
        read_structures(dataset)
    assert caught.value.code == "unnamed_label"
    assert re.search(r"label 1 in '.*a\.nii\.gz' and 1 other file; label 4 in '.*b\.nii\.gz'\.", caught.value.message)
    assert "--labels 1=name,4=name" in caught.value.remedy
    with pytest.raises(InputError, match=r"label 4 in '.*b\.nii\.gz'"):
        read_structures(dataset, [HIPPOCAMPUS])
    structures = read_structures(dataset, [HIPPOCAMPUS], strict=False)
    assert structures == [HIPPOCAMPUS]
    assert codes(dataset, structures) == {
        ("b", "unknown_label"): "error",
        ("c", "unreadable"): "error",
        ("", "few_cases"): "warning",
    }
    with pytest.raises(InputError, match="label 4") as unknown:
        read_case_labels(dataset.cases[1], structures)
    assert unknown.value.code == "unknown_label"


def test_no_labels_at_all_is_refused(tmp_path: Path) -> None:
    root = folder_with(tmp_path, ("a",))
    write_image(labels(()), root / "labels/a.nii.gz")
    with pytest.raises(InputError) as caught:
        read_structures(find_cases(root))
    assert caught.value.code == "no_structures"


def test_good_cases_have_no_findings(tmp_path: Path) -> None:
    dataset = find_cases(folder_with(tmp_path, ("a", "b", "c", "d"), ".seg.nrrd"))
    assert check_cases(dataset, read_structures(dataset)) == []


def test_every_problem_of_every_case_is_found_at_once(tmp_path: Path) -> None:
    names = tuple("abcdefghijklmnop")
    root = folder_with(tmp_path, names)
    images, segmentations = root / "images", root / "labels"

    def image(name: str, content: sitk.Image, ending: str = ".nii.gz") -> None:
        (images / f"{name}.nii.gz").unlink()
        sitk.WriteImage(content, str(images / f"{name}{ending}"))

    (images / "b.nii.gz").write_bytes((images / "b.nii.gz").read_bytes()[:900])
    moved = labels()
    moved.SetOrigin((5.0, -3.0, 5.2))
    write_image(moved, segmentations / "c.nii.gz")
    write_image(labels(size=(10, 9, 7)), segmentations / "d.nii.gz")
    write_image(labels(()), segmentations / "e.nii.gz")
    write_image(labels((1, 3)), segmentations / "f.nii.gz")
    broken = sitk.GetArrayFromImage(scan(6))
    broken[0, 0, :3] = np.nan
    array = sitk.GetImageFromArray(broken)
    array.CopyInformation(scan(6))
    image("g", array, ".nrrd")
    image("h", scan(0) * 0 + 7)
    image("i", sitk.JoinSeries([scan(8), scan(8)]))
    image("j", sitk.Compose(scan(9), scan(10)))
    image("k", scan(0))
    image("l", scan(11)[:, :, :1])
    write_image(labels()[:, :, :1] + 1, segmentations / "l.nii.gz")
    write_image(sitk.Cast(labels(), sitk.sitkFloat32) * 0.5, segmentations / "m.nii.gz")
    write_image(labels((1, 2)), segmentations / "n.nii.gz")
    (segmentations / "o.nii.gz").write_bytes(b"")
    image("p", scan(0) * 0 + 7)
    (segmentations / "p.nii.gz").write_bytes(b"")
    dataset = find_cases(root)
    third = Structure("never", 77)
    found = codes(dataset, [HIPPOCAMPUS, AMYGDALA, third])
    problems = {key: severity for key, severity in found.items() if key[1] != "structure_absent"}
    assert problems == {
        ("b", "unreadable"): "error",
        ("c", "geometry_mismatch"): "error",
        ("d", "geometry_mismatch"): "error",
        ("e", "empty_label"): "warning",
        ("f", "unknown_label"): "error",
        ("g", "non_finite"): "error",
        ("h", "constant_image"): "error",
        ("i", "not_3d"): "error",
        ("j", "wrong_channels"): "error",
        ("k", "duplicate_image"): "error",
        ("l", "too_thin"): "error",
        ("m", "not_labels"): "error",
        ("o", "unreadable"): "error",
        ("p", "unreadable"): "error",
        ("p", "constant_image"): "error",
        ("p", "duplicate_image"): "error",
        ("", "structure_never_labeled"): "warning",
    }
    assert ("a", "structure_absent") in found and found["n", "structure_absent"] == "warning"
    messages = {f.case + f.code: f.message for f in check_cases(dataset, [HIPPOCAMPUS, AMYGDALA, third])}
    assert "origin differs by 3.2 mm" in messages["cgeometry_mismatch"]
    assert "size 10x9x8 against 10x9x7" in messages["dgeometry_mismatch"]
    assert "3 voxels" in messages["gnon_finite"]
    assert "case a" in messages["kduplicate_image"]
    assert ("j", "wrong_channels") not in codes(dataset, [HIPPOCAMPUS], in_channels=2)


def test_doubled_scan_of_one_subject_is_a_warning(tmp_path: Path) -> None:
    root = folder_with(tmp_path, ("a", "b"))
    write_image(scan(0), root / "images/b.nii.gz")
    (root / "cases.csv").write_text("file,subject\na,1\nb,1\n")
    assert codes(find_cases(root), [HIPPOCAMPUS])["b", "duplicate_image"] == "warning"


@pytest.mark.parametrize(
    ("subjects", "minimum", "expected"),
    [(1, 2, "error"), (2, 2, "warning"), (3, 2, "warning"), (4, 2, None), (4, 5, "error"), (1, 1, "warning")],
)
def test_too_few_subjects(tmp_path: Path, subjects: int, minimum: int, expected: str | None) -> None:
    names = ("a", "b", "c", "d")
    root = folder_with(tmp_path, names)
    table = "\n".join(f"{name},{min(index, subjects - 1)}" for index, name in enumerate(names))
    (root / "cases.csv").write_text(f"file,subject\n{table}\n")
    found = codes(find_cases(root), [HIPPOCAMPUS], minimum=minimum)
    assert found == (
        {} if expected is None else {("", "too_few_cases" if expected == "error" else "few_cases"): expected}
    )


def test_dicom_series_is_a_case(tmp_path: Path) -> None:
    root = folder_with(tmp_path, ("a",))
    (root / "images/kopf 一").mkdir()
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    voxels = np.random.default_rng(0).integers(0, 900, (6, 9, 10)).astype(np.int16)
    for index in range(6):
        piece = sitk.GetImageFromArray(voxels[index : index + 1])
        piece.SetSpacing((1.0, 1.1, 1.2))
        tags = {"0020|000e": "1.2.3.4", "0008|0018": f"1.2.3.4.{index}", "0008|0060": "MR", "0020|000d": "1.2.3"}
        tags |= {"0020|0032": f"5\\-3\\{2 + 1.2 * index}", "0020|0037": "1\\0\\0\\0\\1\\0"}
        for tag, value in tags.items():
            piece.SetMetaData(tag, value)
        writer.SetFileName(str(root / f"images/kopf 一/{index}.dcm"))
        writer.Execute(piece)
    write_segmentation(labels(size=(10, 9, 6)), [HIPPOCAMPUS], root / "labels/kopf 一.seg.nrrd")
    dataset = find_cases(root)
    assert [case.name for case in dataset.cases] == ["a", "kopf 一"]
    assert codes(dataset, [HIPPOCAMPUS]) == {("", "few_cases"): "warning"}


def test_labels_that_slicer_cropped_are_laid_back(tmp_path: Path) -> None:
    root = folder_with(tmp_path, ("a",))
    (root / "labels/a.nii.gz").unlink()
    write_segmentation(labels()[1:6, 1:7, 1:6], [HIPPOCAMPUS], root / "labels/a.seg.nrrd")
    dataset = find_cases(root)
    assert codes(dataset, [HIPPOCAMPUS]) == {("", "too_few_cases"): "error"}
    image = read_case_labels(dataset.cases[0], [HIPPOCAMPUS])
    assert geometry_difference(image, scan(0)) is None
    assert np.array_equal(sitk.GetArrayFromImage(image), sitk.GetArrayFromImage(labels()))
