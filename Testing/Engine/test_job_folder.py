"""The job folder: it starts afresh, resumes only the same job, and keeps what is not its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tcurlora.errors import InputError, TCurLoraError
from tcurlora.runtime.job_folder import JobFolder, describe_inputs, remove_job

REQUEST = {"base": "b", "steps": 5, "mapping": ("a=b",)}


def start(path: Path, **changes: Any) -> JobFolder:
    return JobFolder.start(path, "adapt", {**REQUEST, **changes}, {"scan": [3, 4]})


def test_start_makes_the_folder_and_says_what_to_do(tmp_path: Path) -> None:
    job = start(tmp_path / "Aufträge" / "一 job")
    content = json.loads((job.path / "job.json").read_text(encoding="utf-8"))
    assert content["command"] == "adapt" and content["request"]["steps"] == 5 and content["schema"] == 1
    job.events.emit("stage", name="x", title="Prüfen")
    job.events.emit("progress", step=1, total=2)
    lines = [json.loads(line) for line in job.events.path.read_text(encoding="utf-8").splitlines()]
    assert [line["event"] for line in lines] == ["stage", "progress"] and lines[0]["title"] == "Prüfen"


def test_resume_finds_what_was_remembered(tmp_path: Path) -> None:
    job = start(tmp_path / "job")
    assert job.remembered("fold-1") is None
    job.remember("fold-1", {"dice": [0.5, None]})
    again = JobFolder.resume(tmp_path / "job", "adapt", REQUEST, {"scan": [3, 4]})
    assert again.remembered("fold-1") == {"dice": [0.5, None]}


@pytest.mark.parametrize(
    ("command", "request_changes", "inputs", "words"),
    [
        ("segment", {}, {"scan": [3, 4]}, "not one of this version's 'segment'"),
        ("adapt", {"steps": 6}, {"scan": [3, 4]}, "other options: --steps."),
        ("adapt", {"mapping": ("a=c",), "lr_trials": 1}, {"scan": [3, 4]}, "other options: --lr-trials, --map."),
        ("adapt", {}, {"scan": [3, 5]}, "has changed since: scan."),
        ("adapt", {}, {}, "has changed since: scan."),
        (
            "adapt",
            {},
            {"scan": [3, 4], **dict.fromkeys(("/b/1", "/b/2", "/b/3", "/b/4"))},
            "since: 1, 2, 3 and 1 more.",
        ),
    ],
)
def test_resume_refuses_another_job_and_names_what_differs(
    tmp_path: Path, command: str, request_changes: dict[str, Any], inputs: dict[str, Any], words: str
) -> None:
    start(tmp_path / "job")
    with pytest.raises(InputError) as caught:
        JobFolder.resume(tmp_path / "job", command, {**REQUEST, **request_changes}, inputs)
    assert caught.value.code == "other_job" and words in caught.value.message


@pytest.mark.parametrize("content", [None, "", "{", "[]", "[1]", "3", "null"])
def test_resume_without_a_job_is_refused(tmp_path: Path, content: str | None) -> None:
    (tmp_path / "job").mkdir()
    if content is not None:
        (tmp_path / "job" / "job.json").write_text(content)
    with pytest.raises(InputError):
        JobFolder.resume(tmp_path / "job", "adapt", REQUEST, {"scan": [3, 4]})


def test_new_job_forgets_the_old_one(tmp_path: Path) -> None:
    start(tmp_path / "job").remember("steps", 7)
    assert start(tmp_path / "job").remembered("steps") is None


def test_folder_that_is_no_job_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    (tmp_path / "file").write_text("more work")
    for name in ("thesis", "file"):
        with pytest.raises(InputError, match=f"{name}' exists and is not the folder of a job"):
            start(tmp_path / name)
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "years of work"
    assert (tmp_path / "file").read_text() == "more work"
    (tmp_path / "empty").mkdir()
    start(tmp_path / "empty")


def test_what_the_starter_put_there_stays(tmp_path: Path) -> None:
    path = tmp_path / "job"
    (path / "inputs" / "images").mkdir(parents=True)
    (path / "inputs" / "images" / "scan.nrrd").write_bytes(b"a scan")
    for name in ("worker.log", "worker.pid", "scene.json"):
        (path / name).write_text(name)
    for _ in range(2):  # the second time over what the first has left
        job = start(path)
        job.remember("steps", 7)
        job.events.emit("stage", name="x", title="X")
        job.finish({"adapter": "A"})
        assert (path / "inputs" / "images" / "scan.nrrd").read_bytes() == b"a scan"
        assert all((path / name).read_text() == name for name in ("worker.log", "worker.pid", "scene.json"))
    assert len((path / "events.jsonl").read_text(encoding="utf-8").splitlines()) == 1
    start(path)
    assert not (path / "result.json").exists() and not (path / "done").exists()
    (tmp_path / "thesis" / "inputs").mkdir(parents=True)
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(InputError):
        start(tmp_path / "thesis")


def test_finish_writes_the_result_and_keeps_the_log_only(tmp_path: Path) -> None:
    job = start(tmp_path / "job")
    job.cache.mkdir()
    (job.cache / "a.npy").write_bytes(b"x")
    job.checkpoint.write_bytes(b"x")
    assert not (job.path / "result.json").exists()
    job.finish({"adapter": "A"})
    assert json.loads((job.path / "result.json").read_text()) == {"adapter": "A"}
    assert not job.cache.exists() and not job.checkpoint.exists()


def test_inputs_are_told_apart_by_size_and_time(tmp_path: Path) -> None:
    file = tmp_path / "scan.nii"
    file.write_bytes(b"abc")
    before = describe_inputs([file])
    assert describe_inputs([file]) == before
    file.write_bytes(b"abcd")
    assert describe_inputs([file]) != before


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"queue": "gpu"}', "is not the folder of a job"),
        ("{", "is not the folder of a job"),
        ('{"schema": 1, "command": "adapt", "request": [], "inputs": {}}', "is not the folder of a job"),
        ('{"schema": 1, "command": "compare", "request": {}, "inputs": {}}', "another job ('compare')"),
        ('{"schema": 2, "command": "adapt", "request": {}, "inputs": {}}', "another job ('adapt')"),
    ],
)
def test_job_of_somebody_else_is_left_alone(tmp_path: Path, tree: Any, content: str, words: str) -> None:
    folder = tmp_path / "cluster"
    (folder / "done").mkdir(parents=True)
    (folder / "job.json").write_text(content)
    (folder / "done" / "run-full-1-0.json").write_text("{}")
    (folder / "report.html").write_text("three days of work")
    before = tree(folder)
    with pytest.raises(InputError) as caught:
        start(folder)
    assert words in caught.value.message and caught.value.remedy
    assert tree(folder) == before


def test_results_in_the_folder_of_a_job_outlive_the_next_job_and_its_removal(tmp_path: Path, tree: Any) -> None:
    job = start(tmp_path / "run")
    for name in ("scan.seg.nrrd", "adapter/adapter_model.safetensors", "done/scan.seg.nrrd", "cache/scan.nii.gz"):
        (job.path / name).parent.mkdir(exist_ok=True)
        (job.path / name).write_text("a result")
    mine = tree(job.path)
    del mine["job.json"]

    def work() -> None:
        job.remember("fold-1", 7)
        job.events.emit("stage", name="x", title="X")
        for name in ("cache/a.image.npy", "cache/.a.label.00000000-1.tmp.npy", "done/.fold-2.json.00000000-1.tmp"):
            (job.path / name).write_text("half")
        for name in ("checkpoint.safetensors", ".checkpoint.safetensors.00000000-1.tmp", "result.json"):
            (job.path / name).write_text("half")

    work()
    start(job.path)
    assert tree(job.path).keys() == {*mine, "job.json"}
    work()
    remove_job(job.path)
    assert tree(job.path) == mine


def test_file_that_cannot_be_removed_does_not_keep_the_others(tmp_path: Path) -> None:
    job = start(tmp_path / "job")
    (job.cache / "a.image.npy").mkdir(parents=True)  # which no system deletes like a file
    for name in ("b.image.npy", "b.label.npy"):
        (job.cache / name).write_bytes(b"x")
    job.finish({})
    remove_job(job.path)
    assert [path.name for path in job.cache.iterdir()] == ["a.image.npy"]
    assert sorted(path.name for path in job.path.iterdir()) == ["cache", "job.json"]
    with pytest.raises(TCurLoraError, match="could not be written"):
        start(tmp_path / "job")


def test_removed_job_leaves_no_folder(tmp_path: Path) -> None:
    job = start(tmp_path / "job")
    job.remember("fold-1", 7)
    job.cache.mkdir()
    (job.cache / "a.image.npy").write_bytes(b"x")
    job.events.emit("stage", name="x", title="X")
    remove_job(job.path)
    assert list(tmp_path.iterdir()) == []
