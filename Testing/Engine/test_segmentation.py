"""Segmenting files: one, many, folders; any format and name; never over something that exists."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from tcurlora.errors import InputError
from tcurlora.imaging.segmentations import read_segmentation
from tcurlora.inference.scans import SegmentRequest, plan_tasks, run_segment
from tcurlora.runtime.events import NullEvents


@pytest.fixture
def scans(tmp_path: Path, make_scan: Callable[..., Any]) -> Path:
    folder = tmp_path / "Aufnahmen 画像"
    folder.mkdir()
    for number, ending in enumerate((".nii.gz", ".nrrd", ".mha")):
        sitk.WriteImage(make_scan(number, spacing=(1.1, 0.9, 1.0))[0], folder / f"Müller {number} 頭{ending}")
    (folder / "notes.txt").write_text("no scan")
    return folder


def run(model: Path | str, inputs: list[Path], out: Path, **options: Any) -> dict[str, Any]:
    return run_segment(SegmentRequest(str(model), tuple(map(str, inputs)), str(out), **options), NullEvents())


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_folder_of_scans_gives_a_folder_of_segmentations(bundle: Path, scans: Path, tmp_path: Path) -> None:
    result = run(bundle, [scans], tmp_path / "Ergebnis 結果", uncertainty=True)
    assert names_in(tmp_path / "Ergebnis 結果") == sorted(
        f"Müller {n} 頭{ending}" for n in range(3) for ending in (".seg.nrrd", "_uncertainty.nii.gz")
    )
    assert result["failed"] == [] and len(result["written"]) == 3
    for entry in result["written"]:
        scan = sitk.ReadImage(entry["scan"])
        labels, structures = read_segmentation(Path(entry["labels"]))
        uncertainty = sitk.ReadImage(entry["uncertainty"])
        for image in (labels, uncertainty):
            assert image.GetSize() == scan.GetSize()
            np.testing.assert_allclose(image.GetOrigin(), scan.GetOrigin(), atol=1e-5)
            np.testing.assert_allclose(image.GetSpacing(), scan.GetSpacing(), rtol=1e-6)
            np.testing.assert_allclose(image.GetDirection(), scan.GetDirection(), atol=1e-6)
        assert {s.value: s.name for s in structures} == {1: "anterior hippocampus", 2: "posterior hippocampus"}
        assert {1, 2} <= set(np.unique(sitk.GetArrayFromImage(labels)))
        certainty = sitk.GetArrayFromImage(uncertainty)
        assert 0 <= certainty.min() < 0.2 and 0.5 < certainty.max() <= 1.000001


@pytest.mark.parametrize("ending", [".seg.nrrd", ".nii.gz", ".nrrd"])
def test_one_scan_into_one_file(bundle: Path, scans: Path, tmp_path: Path, ending: str) -> None:
    out = tmp_path / "neu" / f"Segmentierung 1{ending}"
    scan = scans / "Müller 1 頭.nrrd"
    run(bundle, [scan], out)
    labels, structures = read_segmentation(out)
    assert [s.name for s in structures] == ["anterior hippocampus", "posterior hippocampus"]
    assert labels.GetSize() == sitk.ReadImage(scan).GetSize()


def test_same_scan_in_any_format_gives_the_same_labels(bundle: Path, scans: Path, tmp_path: Path) -> None:
    scan = scans / "Müller 1 頭.nrrd"
    run(bundle, [scan], tmp_path / "a.seg.nrrd")
    run(bundle, [scan], tmp_path / "b.nii.gz")
    a, b = (sitk.GetArrayFromImage(read_segmentation(tmp_path / n)[0]) for n in ("a.seg.nrrd", "b.nii.gz"))
    assert np.array_equal(a, b) and a.any()


def test_job_keeps_request_events_and_result(bundle: Path, scans: Path, tmp_path: Path, tree: Any) -> None:
    job = tmp_path / "Auftrag 仕事"
    (job / "inputs").mkdir(parents=True)
    request = SegmentRequest(str(bundle), (str(scans),), str(job / "results"))
    result = run_segment(request, NullEvents(), job)
    assert json.loads((job / "result.json").read_text(encoding="utf-8")) == result
    content = json.loads((job / "job.json").read_text(encoding="utf-8"))
    assert content["command"] == "segment" and content["request"]["out"] == str(job / "results")
    events = [json.loads(line) for line in (job / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [event["event"] for event in events][-2:] == ["progress", "result"] and events[-2]["step"] == 3
    assert (job / "inputs").is_dir() and len(names_in(job / "results")) == 3
    before = tree(tmp_path)
    for bad in (replace(request, model="nobody"), request):
        with pytest.raises(InputError):
            run_segment(bad, NullEvents(), tmp_path / "new" if bad.model == "nobody" else job)
    assert tree(tmp_path) == before


def test_existing_results_are_never_overwritten(bundle: Path, scans: Path, tmp_path: Path, tree: Any) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in ("Müller 2 頭.seg.nrrd", "Müller 0 頭_uncertainty.nii.gz"):
        (out / name).write_text("work of a person")
        before = tree(tmp_path)
        with pytest.raises(InputError, match="exists already"):
            run(bundle, [scans], out, uncertainty=True)
        assert tree(tmp_path) == before
        (out / name).unlink()


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".seg.nrrd"])
def test_names_of_other_labels_are_never_overwritten(
    bundle: Path, scans: Path, tmp_path: Path, tree: Any, ending: str
) -> None:
    (tmp_path / "brain.ctbl").write_text("7 my_careful_name 1 2 3 255\n")
    before, scan = tree(tmp_path), scans / "Müller 1 頭.nrrd"
    if ending == ".seg.nrrd":  # which has its names in it
        run(bundle, [scan], tmp_path / f"brain{ending}")
        (tmp_path / f"brain{ending}").unlink()
    else:
        with pytest.raises(InputError, match=r"'brain\.ctbl' exists already"):
            run(bundle, [scan], tmp_path / f"brain{ending}")
    assert tree(tmp_path) == before


def test_one_bad_scan_does_not_stop_the_others(bundle: Path, scans: Path, tmp_path: Path, recorder: Any) -> None:
    (scans / "broken.nii.gz").write_bytes(b"\x1f\x8bno image")
    events = recorder()
    request = SegmentRequest(str(bundle), (str(scans),), str(tmp_path / "out"))
    result = run_segment(request, events)
    assert names_in(tmp_path / "out") == [f"Müller {n} 頭.seg.nrrd" for n in range(3)]
    (failed,) = result["failed"]
    assert failed["scan"].endswith("broken.nii.gz") and "broken.nii.gz" in failed["reason"]
    told = events.of("warning")
    assert [event["code"] for event in told][:1] == ["files_passed_over"] and "notes.txt" in told[0]["message"]
    assert ["broken.nii.gz" in event["message"] for event in told[1:]] == [True]
    assert events.of("progress")[-1]["step"] == events.of("progress")[-1]["total"] == 4


def test_only_scan_that_is_bad_is_an_error_and_nothing_is_written(bundle: Path, tmp_path: Path, tree: Any) -> None:
    (tmp_path / "broken.nii.gz").write_bytes(b"\x1f\x8bno image")
    before = tree(tmp_path)
    with pytest.raises(InputError, match=r"broken\.nii\.gz"):
        run(bundle, [tmp_path / "broken.nii.gz"], tmp_path / "new" / "out.nii.gz")
    assert tree(tmp_path) == before


@pytest.fixture
def plan(bundle: Path) -> Callable[[list[Path], Path], list[str]]:
    def planned(inputs: list[Path], out: Path) -> list[str]:
        return [str(t.labels) for t in plan_tasks(SegmentRequest(str(bundle), tuple(map(str, inputs)), str(out)))]

    return planned


def test_plan_refuses_what_cannot_be(scans: Path, tmp_path: Path, plan: Callable[..., list[str]]) -> None:
    files = sorted(scans.iterdir())[:3]
    other = tmp_path / "other"
    shutil.copytree(scans, other)
    (tmp_path / "file").write_text("x")
    for inputs, out, words in (
        (files, tmp_path / "one.seg.nrrd", "one file, but there are 3 scans"),
        ([scans, other], tmp_path / "out", "Two scans would both be written to 'Müller 0 頭.seg.nrrd'"),
        (files[:1], tmp_path / "out.dcm", r"out\.dcm"),
        (files[:1], tmp_path / "z.jpg", r"'z\.jpg' cannot be written"),
        (files[:1], tmp_path / "file", "'file' is a file"),
        (files[:1], tmp_path / "file" / "out.nii.gz", "cannot be written"),
        ([tmp_path / "gone.nii.gz"], tmp_path / "out", r"no scan .*gone\.nii\.gz"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            plan(inputs, out)
        assert caught.value.remedy
    assert plan(files[:1], tmp_path / "out") == [str(tmp_path / "out" / "Müller 0 頭.seg.nrrd")]
    assert plan([scans], tmp_path / "out") == plan(files, tmp_path / "out")
    assert plan(files[:1], tmp_path / "v1.2") == [str(tmp_path / "v1.2" / "Müller 0 頭.seg.nrrd")]


def test_names_that_differ_in_capital_letters_or_kinds_of_accents_are_one(
    tmp_path: Path, plan: Callable[..., list[str]]
) -> None:
    for number, pair in enumerate((("Scan", "scan"), ("M\u00fcller", "Mu\u0308ller"))):
        for side, name in zip("ab", pair, strict=True):
            (tmp_path / f"{number}{side}").mkdir()
            (tmp_path / f"{number}{side}" / f"{name}.nii.gz").write_text("x")
        with pytest.raises(InputError, match="which are one name on some systems") as caught:
            plan([tmp_path / f"{number}a", tmp_path / f"{number}b"], tmp_path / "out")
        assert caught.value.code == "same_name" and pair[0] in caught.value.message and pair[1] in caught.value.message


def test_header_and_voxels_are_one_scan(
    scans: Path, tmp_path: Path, make_scan: Callable[..., Any], plan: Callable[..., list[str]]
) -> None:
    sitk.WriteImage(make_scan(0)[0], scans / "Müller 9.hdr")
    assert (scans / "Müller 9.img").is_file()
    assert [Path(path).name for path in plan([scans], tmp_path / "out")][3:] == ["Müller 9.seg.nrrd"]


def write_slices(folder: Path, scan: sitk.Image) -> None:
    """Write a scan as a DICOM series, one file with the ending .dcm for each slice."""
    folder.mkdir()
    voxels = sitk.GetArrayFromImage(scan).round().astype(np.int16)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for index in range(len(voxels)):
        piece = sitk.GetImageFromArray(voxels[index : index + 1])
        tags = {"0020|000e": "1.2.3.4", "0008|0018": f"1.2.3.4.{index}", "0008|0060": "MR", "0020|000d": "1.2.3"}
        tags |= {"0020|0032": f"0\\0\\{index}", "0020|0037": "1\\0\\0\\0\\1\\0"}
        for tag, value in tags.items():
            piece.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"IM{index:04d}.dcm"))
        writer.Execute(piece)


def test_folder_of_dicom_files_is_one_scan(
    bundle: Path,
    tmp_path: Path,
    make_scan: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    plan: Callable[..., list[str]],
) -> None:
    scan = make_scan(0)[0]
    write_slices(tmp_path / "kopf 一", scan)
    (tmp_path / "kopf 一" / "._IM0001.dcm").write_bytes(b"\0\5\x16\7")
    run(bundle, [tmp_path / "kopf 一"], tmp_path / "out")
    assert names_in(tmp_path / "out") == ["kopf 一.seg.nrrd"]
    labels, _ = read_segmentation(tmp_path / "out" / "kopf 一.seg.nrrd")
    assert labels.GetSize() == scan.GetSize() and sitk.GetArrayFromImage(labels).any()
    monkeypatch.chdir(tmp_path / "kopf 一")
    assert plan([Path(".")], tmp_path / "new") == [str(tmp_path / "new" / "kopf 一.seg.nrrd")]
    sitk.WriteImage(scan, tmp_path / "kopf 一" / "other.nii.gz")
    with pytest.raises(InputError, match=r"DICOM files and other scans, such as 'IM0000\.dcm' and 'other\.nii\.gz'"):
        plan([tmp_path / "kopf 一"], tmp_path / "new")


def test_results_beside_a_job_outlive_the_next_one(bundle: Path, scans: Path, tmp_path: Path) -> None:
    job = tmp_path / "run"
    for number, scan in enumerate(("Müller 0 頭.nii.gz", "Müller 1 頭.nrrd")):
        request = SegmentRequest(str(bundle), (str(scans / scan),), str(job / f"{number}.seg.nrrd"))
        run_segment(request, NullEvents(), job)
    assert {"0.seg.nrrd", "1.seg.nrrd", "result.json"} <= set(names_in(job))


def test_doubts_about_a_scan_are_told(
    bundle: Path, make_scan: Callable[..., Any], tmp_path: Path, recorder: Any
) -> None:
    image, _ = make_scan(0)
    voxels = sitk.GetArrayFromImage(image)
    voxels[:2] = -32768
    padded = sitk.GetImageFromArray(voxels)
    padded.CopyInformation(image)
    sitk.WriteImage(padded, tmp_path / "padded.nii.gz")
    events = recorder()
    run_segment(SegmentRequest(str(bundle), (str(tmp_path / "padded.nii.gz"),), str(tmp_path / "out")), events)
    assert [event["code"] for event in events.of("warning")] == ["extreme_values"]
