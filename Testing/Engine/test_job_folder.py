"""The job folder: it starts afresh, resumes only the same job, and keeps what is not its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tcurlora.errors import InputError
from tcurlora.job_folder import JobFolder, describe_inputs

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
    ("command", "request_changes", "inputs", "word"),
    [
        ("segment", {}, {"scan": [3, 4]}, "command"),
        ("adapt", {"steps": 6}, {"scan": [3, 4]}, "request"),
        ("adapt", {}, {"scan": [3, 5]}, "inputs"),
        ("adapt", {}, {}, "inputs"),
    ],
)
def test_resume_refuses_another_job(
    tmp_path: Path, command: str, request_changes: dict[str, Any], inputs: dict[str, Any], word: str
) -> None:
    start(tmp_path / "job")
    with pytest.raises(InputError, match=f"differs in its {word}"):
        JobFolder.resume(tmp_path / "job", command, {**REQUEST, **request_changes}, inputs)


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
