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
from tcurlora.events import NullEvents
from tcurlora.label_files import read_segmentation
from tcurlora.segmentation import SegmentRequest, plan_tasks, run_segment


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


def test_one_bad_scan_does_not_stop_the_others(bundle: Path, scans: Path, tmp_path: Path, recorder: Any) -> None:
    (scans / "broken.nii.gz").write_bytes(b"\x1f\x8bno image")
    events = recorder()
    request = SegmentRequest(str(bundle), (str(scans),), str(tmp_path / "out"))
    result = run_segment(request, events)
    assert names_in(tmp_path / "out") == [f"Müller {n} 頭.seg.nrrd" for n in range(3)]
    (failed,) = result["failed"]
    assert failed["scan"].endswith("broken.nii.gz") and "broken.nii.gz" in failed["reason"]
    assert ["broken.nii.gz" in event["message"] for event in events.of("warning")] == [True]
    assert events.of("progress")[-1]["step"] == events.of("progress")[-1]["total"] == 4


def test_only_scan_that_is_bad_is_an_error_and_nothing_is_written(bundle: Path, tmp_path: Path, tree: Any) -> None:
    (tmp_path / "broken.nii.gz").write_bytes(b"\x1f\x8bno image")
    before = tree(tmp_path)
    with pytest.raises(InputError, match=r"broken\.nii\.gz"):
        run(bundle, [tmp_path / "broken.nii.gz"], tmp_path / "new" / "out.nii.gz")
    assert tree(tmp_path) == before


def plan(inputs: list[Path], out: Path) -> list[str]:
    return [str(task.labels) for task in plan_tasks(SegmentRequest("m", tuple(map(str, inputs)), str(out)))]


def test_plan_refuses_what_cannot_be(scans: Path, tmp_path: Path) -> None:
    files = sorted(scans.iterdir())[:3]
    other = tmp_path / "other"
    shutil.copytree(scans, other)
    (tmp_path / "file").write_text("x")
    for inputs, out, words in (
        (files, tmp_path / "one.seg.nrrd", "one file, but there are 3 scans"),
        ([scans, other], tmp_path / "out", "Two scans would both be written to 'Müller 0 頭.seg.nrrd'"),
        (files[:1], tmp_path / "out.dcm", r"out\.dcm"),
        (files[:1], tmp_path / "file", "'file' is a file"),
        (files[:1], tmp_path / "file" / "out.nii.gz", "cannot be written"),
        ([tmp_path / "gone.nii.gz"], tmp_path / "out", r"no scan .*gone\.nii\.gz"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            plan(inputs, out)
        assert caught.value.remedy
    assert plan(files[:1], tmp_path / "out") == [str(tmp_path / "out" / "Müller 0 頭.seg.nrrd")]
    assert plan([scans], tmp_path / "out") == plan(files, tmp_path / "out")
