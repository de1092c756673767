"""The warm worker: a real process that is asked for one segmentation after the other, and survives what goes wrong."""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch

import tcurlora
from tcurlora import TensorCurConfig, adapt, save_adapter
from tcurlora.errors import InputError
from tcurlora.imaging.structures import BACKGROUND
from tcurlora.inference.scans import SegmentRequest, run_segment
from tcurlora.inference.segmenter_cache import SegmenterCache
from tcurlora.method.channels import Channel
from tcurlora.models.opening import load_base_model
from tcurlora.runtime.events import NullEvents

PACKAGE = Path(tcurlora.__file__).parent
TIMEOUT_S = 120.0


class Worker:
    """A worker, and what it says."""

    def __init__(self, *arguments: str) -> None:
        environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
        pipe = subprocess.PIPE
        command = [sys.executable, "-m", "tcurlora", "serve", "--json", *arguments]
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, env=environment)
        self.events: list[dict[str, Any]] = []
        self._queue: queue.Queue[dict[str, Any] | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        assert self.until("ready")["version"] == tcurlora.__version__

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._queue.put(json.loads(line))
        self._queue.put(None)

    def write(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode() + b"\n")
        self.process.stdin.flush()

    def ask(self, request_id: str, command: str, *arguments: str) -> None:
        self.write(json.dumps({"id": request_id, "command": command, "arguments": arguments}, ensure_ascii=False))

    def until(self, kind: str, request_id: str | None = None) -> dict[str, Any]:
        while True:
            event = self._queue.get(timeout=TIMEOUT_S)
            assert event is not None, "the worker has ended"
            self.events.append(event)
            if event["event"] == kind and event.get("id") == request_id:
                return event

    def end_of(self, request_id: str) -> tuple[int, list[dict[str, Any]]]:
        code: int = self.until("end", request_id)["exit_code"]
        return code, [event for event in self.events if event.get("id") == request_id]

    def alive(self) -> bool:
        self.ask("alive?", "models", "list")
        return self.end_of("alive?")[0] == 0

    def close(self) -> int:
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(TIMEOUT_S)


@pytest.fixture(scope="module")
def worker(own_library: Path) -> Iterator[Worker]:
    started = Worker()
    yield started
    assert started.close() == 0


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("Klinik Süd 病院")


@pytest.fixture(scope="module")
def scan(workplace: Path, make_scan: Callable[..., Any]) -> Path:
    path = workplace / "頭 ä.nrrd"
    sitk.WriteImage(make_scan(1, spacing=(1.1, 0.9, 1.0))[0], path)
    return path


@pytest.fixture(scope="module")
def long_scan(workplace: Path) -> Path:
    """Takes minutes: many thousand windows."""
    path = workplace / "long.nrrd"
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((240, 240, 240), np.uint8)), path)
    return path


@pytest.fixture(scope="module")
def make_adapter(bundle: Path) -> Callable[..., Path]:
    """Write an adapter of random weights."""

    def make(folder: Path, seed: int, name: str = "hippocampus") -> Path:
        torch.manual_seed(seed)
        base = load_base_model(bundle)
        channels = (Channel(BACKGROUND, 0), Channel(name, 1), Channel(name, 2))
        model = adapt(base.build(), TensorCurConfig(r=2, head="conv_final.2.conv", channels=channels))
        with torch.no_grad():
            for parameter in [*model.cores(), *model.whole_parameters()]:
                parameter.add_(0.3 * torch.randn_like(parameter))
        structures = [{"name": name, "value": 3}]
        save_adapter(model, folder, {"structures": structures, "base_model": {"sha256": base.sha256}})
        return folder

    return make


def segment(model: Path, scan: Path, out: Path, *more: str) -> tuple[str, ...]:
    return ("--model", str(model), "--input", str(scan), "--out", str(out), *more)


def alone(model: Path, scan: Path, out: Path, base: Path | str = "") -> bytes:
    """What a process of its own writes."""
    run_segment(SegmentRequest(str(model), (str(scan),), str(out), str(base)), NullEvents())
    return out.read_bytes()


def test_segments_again_and_again_as_a_process_of_its_own_does(
    worker: Worker, bundle: Path, scan: Path, tmp_path: Path
) -> None:
    for number in "12":
        worker.ask(f"seg {number} 頭", "segment", *segment(bundle, scan, tmp_path / f"{number} ö.seg.nrrd"))
    for number in "12":
        out = tmp_path / f"{number} ö.seg.nrrd"
        code, events = worker.end_of(f"seg {number} 頭")
        kinds = [event["event"] for event in events]
        assert code == 0 and kinds[0] == "stage" and kinds[-2:] == ["result", "end"] and "progress" in kinds
        assert events[-2]["written"] == [{"scan": str(scan), "labels": str(out)}]
        assert out.read_bytes() == alone(bundle, scan, tmp_path / f"alone {number}.seg.nrrd")


def test_other_commands_say_what_they_would_have_printed(worker: Worker, bundle: Path, site: Path) -> None:
    worker.ask("models", "models", "list")
    worker.ask("check", "check", "--base", str(bundle), "--data", str(site))
    worker.ask("adapters", "adapters", "list", "--json")
    worker.ask("help", "segment", "--help")
    results = {}
    for name in ("models", "check", "adapters", "help"):
        code, events = worker.end_of(name)
        assert code == 0
        results[name] = events[-2]["content"]
    assert "hippocampus_t1_unetr" in {entry["name"] for entry in results["models"]}
    assert results["check"]["cases"] == 4 and results["check"]["errors"] == 0
    assert results["adapters"] == [] and "--uncertainty" in results["help"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("no JSON", "no JSON object"),
        ("[1, 2]", "no JSON object"),
        ("[" * 100_000, "no JSON object"),
        ("x" * 3_000_000, "no JSON object"),
        ('{"id": 7, "command": "models"}', "text as its id"),
        ('{"id": "a", "command": "adapt", "arguments": []}', "'adapt'"),
        ('{"id": "a", "command": "serve"}', "'serve'"),
        ('{"id": "a", "command": ["models"]}', "none of"),
        ('{"id": "a", "command": "models", "arguments": "list"}', "list of texts"),
        ('{"id": "a", "command": "models", "arguments": [1]}', "list of texts"),
        ('{"id": "a", "command": "models", "arguments": ["sing"]}', "sing"),
        ('{"id": "a", "command": "segment", "arguments": []}', "required"),
        (
            '{"id": "a", "command": "segment", "arguments": ["--model","\\ud800","--input","\\u0000","--out","x"]}',
            "scan",
        ),
    ],
)
def test_bad_requests_are_refused_and_the_worker_lives(worker: Worker, line: str, says: str) -> None:
    worker.events.clear()
    worker.write(line)
    request_id = "a" if '"a"' in line else None
    assert worker.until("end", request_id)["exit_code"] == InputError.exit_code
    (error,) = (event for event in worker.events if event["event"] == "error")
    assert says in error["message"] and error["remedy"] and error["id"] == request_id
    assert worker.alive()


def test_failures_are_events_and_the_worker_lives(worker: Worker, bundle: Path, scan: Path, tmp_path: Path) -> None:
    worker.ask("missing", "segment", *segment(bundle, tmp_path / "none.nrrd", tmp_path / "a.nrrd"))
    code, events = worker.end_of("missing")
    assert code == 2 and "none.nrrd" in events[-2]["message"]
    (tmp_path / "broken.nrrd").write_text("no image")
    worker.ask("broken", "segment", *segment(bundle, tmp_path / "broken.nrrd", tmp_path / "a.nrrd"))
    assert worker.end_of("broken")[0] == 2
    # A name that no file can have: nobody has foreseen that.
    worker.ask("strange", "segment", *segment(bundle, scan, tmp_path / "a\0.nrrd"))
    code, events = worker.end_of("strange")
    assert code == 1 and events[-2]["code"] == "internal"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.nrrd"]
    assert worker.alive()


def test_cancels_what_runs_and_what_waits_and_goes_on(
    worker: Worker, bundle: Path, scan: Path, long_scan: Path, tmp_path: Path
) -> None:
    worker.write(json.dumps({"cancel": "never heard of"}))
    worker.ask("long", "segment", *segment(bundle, long_scan, tmp_path / "long.seg.nrrd"))
    worker.ask("waits", "segment", *segment(bundle, scan, tmp_path / "waits.seg.nrrd"))
    worker.ask("next", "segment", *segment(bundle, scan, tmp_path / "next.seg.nrrd"))
    worker.write(json.dumps({"cancel": "waits"}))
    while worker.until("progress", "long").get("part", 0) == 0:
        pass
    asked = time.monotonic()
    worker.write(json.dumps({"cancel": "long"}))
    code, events = worker.end_of("long")
    assert time.monotonic() - asked < 5
    assert code == 4 and [event["event"] for event in events[-2:]] == ["error", "end"]
    assert events[-2]["code"] == "cancelled"
    code, events = worker.end_of("waits")
    assert code == 4 and [event["event"] for event in events] == ["error", "end"]
    assert worker.end_of("next")[0] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["next.seg.nrrd"]
    # The same id may be used again, and is not cancelled any more.
    worker.events.clear()
    worker.ask("waits", "segment", *segment(bundle, scan, tmp_path / "waits.seg.nrrd"))
    assert worker.end_of("waits")[0] == 0


def test_an_id_in_use_is_refused(worker: Worker, bundle: Path, long_scan: Path, tmp_path: Path) -> None:
    worker.events.clear()
    worker.ask("twin", "segment", *segment(bundle, long_scan, tmp_path / "a.seg.nrrd"))
    worker.ask("twin", "models", "list")
    worker.until("progress", "twin")
    worker.write(json.dumps({"cancel": "twin"}))
    assert worker.until("end", "twin")["exit_code"] == 4
    assert worker.until("end", "twin")["exit_code"] == 2


def test_a_replaced_adapter_is_never_served_stale(
    worker: Worker, make_adapter: Callable[..., Path], bundle: Path, scan: Path, tmp_path: Path
) -> None:
    adapter = tmp_path / "Adapter ö"
    results = []
    for seed in (1, 2):
        shutil.rmtree(adapter, ignore_errors=True)
        make_adapter(adapter, seed)
        for time_ in (0, 1):
            out = tmp_path / f"{seed}-{time_}.seg.nrrd"
            worker.ask(out.name, "segment", *segment(adapter, scan, out, "--base", str(bundle)))
            assert worker.end_of(out.name)[0] == 0
            results.append(out.read_bytes())
        assert results[-1] == results[-2] == alone(adapter, scan, tmp_path / f"{seed}.seg.nrrd", bundle)
    assert results[0] != results[2]


def test_a_job_folder_is_kept_as_on_the_command_line(worker: Worker, bundle: Path, scan: Path, tmp_path: Path) -> None:
    job = tmp_path / "Auftrag 仕事"
    worker.ask("job", "segment", *segment(bundle, scan, tmp_path / "a.nrrd", "--job", str(job)))
    assert worker.end_of("job")[0] == 0
    assert json.loads((job / "result.json").read_text(encoding="utf-8"))["failed"] == []


def test_ends_with_its_stdin_whatever_it_does(bundle: Path, long_scan: Path, tmp_path: Path) -> None:
    started = Worker()
    started.ask("long", "segment", *segment(bundle, long_scan, tmp_path / "a.seg.nrrd"))
    started.until("progress", "long")
    asked = time.monotonic()
    assert started.close() == 0 and time.monotonic() - asked < 10
    assert not any(tmp_path.iterdir())


def test_ends_when_nothing_is_asked_for() -> None:
    started = Worker("--idle-minutes", "0.02")
    assert started.alive()
    assert started.process.wait(TIMEOUT_S) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="Windows knows no SIGTERM")
def test_ends_when_it_is_terminated(bundle: Path, long_scan: Path, tmp_path: Path) -> None:
    started = Worker()
    started.ask("long", "segment", *segment(bundle, long_scan, tmp_path / "a.seg.nrrd"))
    started.until("progress", "long")
    started.process.send_signal(signal.SIGTERM)
    assert started.end_of("long")[0] == 4
    assert started.process.wait(TIMEOUT_S) == 4


# What stays open


def test_cache_keeps_what_has_not_changed(make_adapter: Callable[..., Path], bundle: Path, tmp_path: Path) -> None:
    cache = SegmenterCache()
    a, b = (make_adapter(tmp_path / f"{seed}", seed) for seed in (1, 2))
    first, second, plain = cache.open(str(a), str(bundle)), cache.open(str(b), str(bundle)), cache.open(str(bundle))
    assert first is not second
    assert cache.open(str(a), str(bundle)) is first and cache.open(str(b), str(bundle)) is second
    assert cache.open(str(bundle)) is plain and cache.open(str(bundle), overlap=0.25) is not plain
    os.utime(a / "adapter_model.safetensors", ns=(1, 1))
    assert cache.open(str(a), str(bundle)) is not first
    cache.clear()
    assert cache.open(str(b), str(bundle)) is not second


def test_cache_notices_another_base(
    make_adapter: Callable[..., Path], make_bundle: Callable[..., Path], bundle: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(bundle, tmp_path / "base"))
    adapter = make_adapter(tmp_path / "a", 1)
    cache = SegmenterCache()
    before, plain = cache.open(str(adapter), str(base)), cache.open(str(base))
    config = base / "configs/inference.json"
    config.write_text(config.read_text(encoding="utf-8").replace("1.0, 1.0, 1.0", "2.0, 1.0, 1.0"), encoding="utf-8")
    after = cache.open(str(adapter), str(base))
    assert before.preprocessing.spacing == (1.0, 1.0, 1.0) and after.preprocessing.spacing == (2.0, 1.0, 1.0)
    assert cache.open(str(base)) is not plain
    other = make_bundle(tmp_path / "other", seed=5)
    shutil.copyfile(other / "models/model.safetensors", base / "models/model.safetensors")
    with pytest.raises(InputError, match="another base model"):
        cache.open(str(adapter), str(base))


def test_cache_lets_go_of_what_was_used_longest_ago(
    make_adapter: Callable[..., Path], bundle: Path, tmp_path: Path
) -> None:
    plain = SegmenterCache().open(str(bundle))
    size = sum(tensor.nbytes for tensor in plain.network.state_dict().values())
    cache = SegmenterCache(kept_bytes=int(1.5 * size))
    a, b, c = (str(make_adapter(tmp_path / f"{seed}", seed)) for seed in (1, 2, 3))
    first, second = cache.open(a, str(bundle)), cache.open(b, str(bundle))
    assert cache.open(a, str(bundle)) is first
    cache.open(c, str(bundle))
    assert cache.open(a, str(bundle)) is first
    assert cache.open(b, str(bundle)) is not second
