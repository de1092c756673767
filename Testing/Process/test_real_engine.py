"""The worker with the real engine: cancelled in mid-training, killed with its Slicer, resumed, and whole in the end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from TCurLoraSegmentLib.engine import default_engine
from TCurLoraSegmentLib.jobs import Job, new_job, unfinished_jobs
from TCurLoraSegmentLib.processes import start_of
from TCurLoraSegmentLib.worker import Worker

WEIGHTS = "adapter_model.safetensors"
MODULES = Path(__file__).resolve().parents[2] / "TCurLoraSegment"


@pytest.fixture(autouse=True, scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("Klinik Süd 病院")
        patch.setenv("TCURLORA_HOME", str(folder))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield folder


@pytest.fixture
def prepare(bundle: Path, site: Path, home: Path) -> Callable[..., Job]:
    """Make a job as the panel does."""

    def make(name: str, steps: int) -> Job:
        job = new_job("adapt", name)
        arguments = ["adapt", "--base", str(bundle), "--data", str(site), "--out", str(home / "adapters" / name)]
        arguments += ["--job", str(job.path), "--steps", str(steps), "--folds", "0", "--device", "cpu"]
        job.write_context({"name": name, "arguments": arguments})
        return job

    return make


def start(job: Job, *more: str) -> tuple[Worker, list[Any]]:
    events: list[Any] = []
    engine = default_engine()
    command = engine.command(*(job.command_line() or []), *more)
    worker = Worker(command, engine.environment(), job=job.path, on_event=events.append)
    worker.start()
    return worker, events


def poll_until_step(worker: Worker, events: list[Any], step: int) -> None:
    deadline = time.monotonic() + 120
    while not any("loss" in event and event["step"] >= step for event in events):
        assert worker.poll() and time.monotonic() < deadline, worker.outcome
        time.sleep(0.02)


def wait_until(condition: Callable[[], bool], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def pid_of(job: Job) -> int:
    return int(json.loads((job.path / "worker.pid").read_text())["pid"])


def test_cancelled_in_mid_training_and_resumed(prepare: Callable[..., Job], home: Path) -> None:
    job = prepare("abgebrochen", 24)
    worker, events = start(job)
    poll_until_step(worker, events, 22)
    assert job.running and unfinished_jobs() == []
    pid = pid_of(job)
    worker.cancel()
    outcome = worker.wait(30)
    log = job.log.read_text(encoding="utf-8")
    assert (outcome.exit_code, outcome.cancelled, outcome.sentence()) == (4, True, "Cancelled."), log
    assert start_of(pid) is None
    assert unfinished_jobs() == [job] and job.cancelled
    assert not (home / "adapters" / "abgebrochen").exists()

    worker, events = start(unfinished_jobs()[0], "--resume")
    outcome = worker.wait(120)
    assert outcome.ok and job.finished and unfinished_jobs() == []
    assert next(event["step"] for event in events if "loss" in event) == 21
    whole = prepare("ununterbrochen", 24)
    worker, events = start(whole)
    assert worker.wait(120).ok
    adapters = [home / "adapters" / name / WEIGHTS for name in ("abgebrochen", "ununterbrochen")]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()

    # What the panel plots
    curve = [event for event in events if event["event"] == "metric"]
    assert {"loss", "monitor_loss"} <= {event["name"] for event in curve}
    assert all(event["training"] == 0 and event["step"] > 0 for event in curve)
    assert all("training" in event for event in events if "loss" in event)


def test_what_it_advises_names_no_options_of_the_command_line(prepare: Callable[..., Job]) -> None:
    worker, _ = start(prepare("nie begonnen", 24), "--resume")
    outcome = worker.wait(60)
    assert outcome.error is not None and outcome.error["code"] == "no_job"
    assert outcome.sentence().endswith(" Start it anew.")


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_worker_ends_soon_after_its_slicer_was_killed(prepare: Callable[..., Job]) -> None:
    job = prepare("verwaist", 100_000)
    environment = os.environ | {"PYTHONPATH": str(MODULES)}
    slicer = subprocess.Popen([sys.executable, __file__, str(job.path)], env=environment)
    try:
        log = job.path / "events.jsonl"
        wait_until(lambda: log.exists() and '"loss"' in log.read_text(encoding="utf-8"), 120)
        pid = pid_of(job)
        assert start_of(pid) is not None
    finally:
        slicer.send_signal(signal.SIGKILL)
        slicer.wait()
    wait_until(lambda: start_of(pid) is None, 30)
    # Nobody was there to note a wish of the user, so it is offered for resuming.
    assert [found.path for found in unfinished_jobs()] == [job.path] and not job.cancelled
    job.delete()


def test_bad_input_speaks_and_leaves_only_what_was_put_there(prepare: Callable[..., Job], tmp_path: Path) -> None:
    job = prepare("falsch", 5)
    arguments = [str(tmp_path) if word.endswith("site") else word for word in job.command_line() or []]
    job.write_context({"arguments": arguments})
    worker, _ = start(job)
    outcome = worker.wait(120)
    assert outcome.exit_code == 2 and "has no folder images" in outcome.sentence()
    assert {path.name for path in job.path.iterdir()} == {"inputs", "scene.json", "worker.log"}
    assert unfinished_jobs() == []


if __name__ == "__main__":  # a Slicer to be killed
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "TCurLoraSegment"))
    running, _ = start(Job(Path(sys.argv[1]), "adapt", 0.0))
    running.wait(600)
