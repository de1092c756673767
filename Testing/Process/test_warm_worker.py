"""The warm worker: one process for many requests; whatever it does, each request ends once and is judged rightly."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import tracemalloc
import unittest
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import SimpleITK as sitk

from TCurLoraSegmentLib.engine import Engine, default_engine
from TCurLoraSegmentLib.processes import start_of
from TCurLoraSegmentLib.warm_worker import WarmRequest, WarmWorker
from TCurLoraSegmentLib.worker import Outcome

# A server: `body` is run for each request, with its arguments and `say` for its events.
SERVER = """
import json, os, signal, subprocess, sys, threading, time
def write(**event):
    print(json.dumps(event, ensure_ascii=False), flush=True)
class Stop(Exception): pass
{before}
write(event="ready")
for line in sys.stdin:
    request = json.loads(line)
    if "cancel" in request:
        continue
    key, arguments = request["id"], request["arguments"]
    def say(kind, **fields):
        write(event=kind, id=key, **fields)
    say("stage", name="s", title="S", pid=os.getpid())
    try:
{body}
    except Stop:
        continue
    say("end", exit_code=0)
"""
DONE = """
if "--job" in arguments:
    open(os.path.join(arguments[arguments.index("--job") + 1], "result.json"), "w").write("{}")
say("result", arguments=arguments)
"""
POSIX = os.name != "nt"
MODULES = Path(__file__).resolve().parents[2] / "TCurLoraSegment"


@dataclass(frozen=True)
class Server(Engine):
    """Runs a script of the test as `serve`."""

    script: str = ""
    variables: tuple[tuple[str, str], ...] = ()

    def command(self, *arguments: str, attached: bool = True) -> list[str]:
        return [str(self.python), self.script, *arguments]

    def environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONUTF8": "1", **dict(self.variables)}


def assert_gone(pid: int, within_s: float = 5) -> None:
    deadline = time.monotonic() + within_s
    while start_of(pid) is not None:
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.02)


class WarmWorkerTest(unittest.TestCase):
    def setUp(self) -> None:
        place = tempfile.TemporaryDirectory(prefix="Müller 病院 ")
        self.addCleanup(place.cleanup)
        self.place = Path(place.name)
        self.job = self.place / "job"
        self.job.mkdir()
        self.warm = WarmWorker()
        self.addCleanup(lambda: self.warm.kill())
        self.events: list[Mapping[str, Any]] = []
        self.ends: list[Outcome] = []

    def server(self, body: str, before: str = "", **variables: str) -> Server:
        script = self.place / "skript 一.py"
        body = textwrap.indent(textwrap.dedent(body), 8 * " ")
        script.write_text(SERVER.format(body=body, before=textwrap.dedent(before)), encoding="utf-8")
        return Server(Path(sys.executable), False, str(script), tuple(variables.items()))

    def ask(self, engine: Engine, *arguments: str, job: bool = False) -> WarmRequest:
        words = ["segment", *arguments, *(["--job", str(self.job)] if job else [])]
        request = self.warm.request(
            engine, words, job=self.job if job else None, on_event=self.events.append, on_finished=self.ends.append
        )
        request.start()
        return request

    def run_one(self, engine: Engine, *arguments: str, job: bool = False) -> Outcome:
        return self.ask(engine, *arguments, job=job).wait(60)

    def pids(self) -> list[int]:
        return [event["pid"] for event in self.events if event["event"] == "stage"]

    def wait_for_stage(self, request: WarmRequest, number: int = 1) -> int:
        deadline = time.monotonic() + 30
        while len(self.pids()) < number:
            self.assertTrue(request.poll() and time.monotonic() < deadline)
            time.sleep(0.01)
        return self.pids()[-1]

    # As it should be

    def test_requests_share_a_process(self) -> None:
        engine = self.server(DONE)
        for number in "12":
            outcome = self.run_one(engine, "--input", f"頭 {number}.nrrd", job=True)
            self.assertTrue(outcome.ok, outcome)
            self.assertEqual(outcome.result["arguments"][:2], ["--input", f"頭 {number}.nrrd"])
            self.assertFalse((self.job / "worker.pid").exists())
            (self.job / "result.json").unlink()
        self.assertEqual(self.pids(), [self.warm.pid] * 2)
        self.assertEqual([event["event"] for event in self.events], ["stage", "result"] * 2)
        self.assertEqual(len(self.ends), 2)

    def test_callbacks_come_from_poll_only(self) -> None:
        request = self.ask(self.server(DONE))
        request.poll()
        time.sleep(1.0)
        self.assertEqual((self.events, self.ends), ([], []))
        self.assertTrue(request.running)
        request.wait(10)
        self.assertEqual(len(self.ends), 1)

    def test_one_waits_for_the_other_and_may_be_asked_in_its_callback(self) -> None:
        engine = self.server("time.sleep(0.3)\n" + DONE)
        first, second = self.ask(engine, "1"), self.ask(engine, "2")
        first.on_finished = lambda outcome: self.ask(engine, "3")
        self.assertTrue(second.wait(20).ok and first.outcome is not None and first.outcome.ok)
        third = self.ask(engine, "4")
        self.assertTrue(third.wait(20).ok)
        results = [event["arguments"] for event in self.events if event["event"] == "result"]
        self.assertEqual(results, [["1"], ["2"], ["3"], ["4"]])
        self.assertEqual(len(set(self.pids())), 1)

    def test_result_file_and_exit_code_decide_together(self) -> None:
        file = self.job / "result.json"
        say = 'say("result", a=1); write(event="end", id=key, exit_code=int(arguments[0])); raise Stop'
        engine = self.server(say)
        for content, code, ok in (
            ('{"a": 1}', 0, True),
            ('{"a": 1', 0, False),
            (None, 0, False),
            ('{"a": 1}', 1, False),
        ):
            with self.subTest(content=content, code=code):
                file.unlink(missing_ok=True)
                if content is not None:
                    file.write_text(content)
                outcome = self.run_one(engine, str(code), job=True)
                self.assertEqual((outcome.ok, outcome.exit_code, outcome.sentence() == ""), (ok, code, ok))
        self.assertEqual(len(set(self.pids())), 1)

    def test_error_speaks_and_the_process_stays(self) -> None:
        engine = self.server(
            """
            say("error", code="x", message="'頭' is empty.", remedy="Choose another.")
            write(event="end", id=key, exit_code=2)
            raise Stop
            """
        )
        for _ in range(2):
            outcome = self.run_one(engine)
            self.assertEqual((outcome.exit_code, outcome.sentence()), (2, "'頭' is empty. Choose another."))
        self.assertEqual(len(set(self.pids())), 1)

    def test_another_python_or_environment_gets_another_process(self) -> None:
        engine = self.server(DONE)
        self.run_one(engine)
        self.run_one(Server(engine.python, False, engine.script, (("TCURLORA_HOME", "x"),)))
        first, second = self.pids()
        self.assertNotEqual(first, second)
        assert_gone(first)
        self.assertEqual(self.warm.pid, second)

    # It ends

    def test_end_waits_for_the_request_under_way(self) -> None:
        engine = self.server("time.sleep(0.5)\n" + DONE)
        request, behind = self.ask(engine), self.ask(engine)
        pid = self.wait_for_stage(request)
        self.warm.end()
        self.assertTrue(request.wait(10).ok)
        assert_gone(pid)
        self.assertTrue(behind.wait(10).ok)
        self.assertNotEqual(self.pids()[-1], pid)
        pid = self.pids()[-1]
        self.warm.end()
        self.assertIsNone(self.warm.pid)
        assert_gone(pid)

    def test_kill_ends_everything_at_once(self) -> None:
        engine = self.server(
            """
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            say("stage", name="s", title="S", pid=child.pid)
            time.sleep(600)
            """
        )
        request, behind = self.ask(engine, job=True), self.ask(engine)
        self.wait_for_stage(request, 2)
        self.assertEqual(json.loads((self.job / "worker.pid").read_text())["pid"], self.warm.pid)
        self.warm.kill()
        for pid in self.pids():
            assert_gone(pid)
        self.assertTrue(request.wait(5).cancelled and behind.wait(5).cancelled)
        self.assertEqual(json.loads((self.job / "worker.pid").read_text()), {"ended": "cancelled"})
        self.assertTrue(self.run_one(self.server(DONE)).ok)

    def test_forgotten_one_lets_go_of_its_process(self) -> None:
        self.run_one(self.server(DONE))
        (pid,) = self.pids()
        self.assertIsNotNone(start_of(pid))
        self.warm = WarmWorker()
        gc.collect()
        assert_gone(pid)

    def test_process_that_went_to_rest_is_replaced(self) -> None:
        engine = self.server(DONE + 'write(event="end", id=key, exit_code=0)\nsys.exit()')
        for _ in range(3):
            self.assertTrue(self.run_one(engine).ok)
            deadline = time.monotonic() + 10
            while self.warm.pid is not None:
                self.assertLess(time.monotonic(), deadline)
        self.assertEqual(len(set(self.pids())), 3)

    def test_request_that_came_as_the_process_went_to_rest_is_asked_again(self) -> None:
        flag = self.place / "once"
        before = f"""
            if not os.path.exists({str(flag)!r}):
                open({str(flag)!r}, "w")
                write(event="ready"); sys.stdin.readline(); sys.exit()
            """
        self.assertTrue(self.run_one(self.server(DONE, before)).ok)
        self.assertEqual(len(self.pids()), 1)

    def test_one_that_always_goes_is_asked_twice_only(self) -> None:
        count = self.place / "count"
        before = f'open({str(count)!r}, "a").write("x"); sys.exit()'
        outcome = self.run_one(self.server(DONE, before))
        self.assertEqual((outcome.ok, outcome.exit_code), (False, 0))
        self.assertIn("without a result", outcome.sentence())
        self.assertEqual(count.read_text(), "xx")

    # It misbehaves

    def test_crash_in_mid_request_is_told_and_the_next_one_works(self) -> None:
        engine = self.server(
            """
            print("an older complaint", file=sys.stderr, flush=True)
            if "die" in arguments:
                say("result", a=1)
                print("Größe: CUDA is gone", file=sys.stderr, flush=True)
                os._exit(3)
            """
            + textwrap.indent(DONE, 12 * " ")
        )
        (self.job / "result.json").write_text("{}")
        self.assertTrue(self.run_one(engine).ok)
        dies, behind = self.ask(engine, "die", job=True), self.ask(engine)
        outcome = dies.wait(20)
        self.assertEqual((outcome.ok, outcome.exit_code, outcome.cancelled), (False, 3, False))
        self.assertIn("unexpectedly (exit code 3)", outcome.sentence())
        self.assertIn("CUDA is gone", outcome.sentence())
        self.assertTrue(behind.wait(20).ok)
        self.assertTrue(self.run_one(engine).ok)
        pids = self.pids()
        self.assertTrue(pids[0] == pids[1] != pids[2] == pids[3])

    def test_complaint_of_an_earlier_request_is_not_blamed(self) -> None:
        engine = self.server('if "die" in arguments: os._exit(3)\nprint("old", file=sys.stderr, flush=True)\n' + DONE)
        self.run_one(engine)
        self.assertNotIn("old", self.run_one(engine, "die").sentence())

    @unittest.skipUnless(POSIX, "signals")
    def test_process_killed_while_it_rests_is_replaced(self) -> None:
        engine = self.server(DONE)
        self.run_one(engine)
        os.kill(self.pids()[0], signal.SIGKILL)
        assert_gone(self.pids()[0])
        self.assertTrue(self.run_one(engine).ok)

    def test_one_that_ignores_cancel_is_ended_with_its_children(self) -> None:
        engine = self.server(
            """
            for number in (signal.SIGTERM, signal.SIGINT): signal.signal(number, signal.SIG_IGN)
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            say("stage", name="s", title="S", pid=child.pid)
            while "wait" in arguments: time.sleep(1)
            """
            + textwrap.indent(DONE, 12 * " ")
        )
        request = self.ask(engine, "wait")
        self.wait_for_stage(request, 2)
        request.cancel(grace_s=0.5)
        outcome = request.wait(10)
        self.assertEqual((outcome.cancelled, outcome.sentence()), (True, "Cancelled."))
        for pid in self.pids():
            assert_gone(pid)
        self.assertTrue(self.run_one(engine).ok)

    def test_cancel_before_it_was_sent(self) -> None:
        engine = self.server("time.sleep(0.5)\n" + DONE)
        first, second = self.ask(engine), self.ask(engine)
        first.poll()
        second.cancel()
        self.assertTrue(second.wait(10).cancelled)
        self.assertTrue(first.wait(10).ok)

    def test_result_that_was_there_before_cancel_counts(self) -> None:
        request = self.ask(self.server(DONE))
        request.poll()
        time.sleep(1.0)
        request.cancel()
        self.assertTrue(request.wait(10).ok)

    def test_strange_bytes_and_other_ids_are_not_its_own(self) -> None:
        outcome = self.run_one(
            self.server(
                r"""
                os.write(1, b"\xff\xfe\x00 bytes\n\n[" + b"[" * 100000 + b"\nnull\n[1]\n{\"no\": 1}\n{\"event\": 5}\n")
                for other in ("never heard of", 7, None, ["x"], key + "0"):
                    write(event="result", id=other, wrong=True)
                    write(event="progress", id=other, step=99, total=1)
                for other in ("never heard of", 7, ["x"]):
                    write(event="error", id=other, message="wrong")
                    write(event="end", id=other, exit_code=1)
                write(event="end", exit_code=1)
                say("warning", message="grüße 病院")
                """
                + textwrap.indent(DONE, 16 * " ")
            )
        )
        self.assertTrue(outcome.ok, outcome)
        self.assertEqual([event["event"] for event in self.events], ["stage", "warning", "result"])

    def test_request_that_is_not_understood_ends(self) -> None:
        engine = self.server(
            """
            write(event="error", id=None, code="bad_request", message="What?", remedy="")
            write(event="end", id=None, exit_code=2)
            raise Stop
            """
        )
        self.assertEqual(self.run_one(engine).sentence(), "What?")

    def test_end_of_a_strange_kind_is_no_success(self) -> None:
        self.assertFalse(self.run_one(self.server('say("result"); say("end", exit_code="0"); raise Stop')).ok)

    def test_flood_neither_holds_up_nor_fills_memory(self) -> None:
        engine = self.server(
            """
            line = (json.dumps({"event": "metric", "id": key, "value": 0.5}) + "\\n").encode() * 1000
            for i in range(200): os.write(1, line)
            for i in range(30): sys.stdout.write("x" * 1_000_000)
            print()
            """
            + textwrap.indent(DONE, 12 * " ")
        )
        request = self.ask(engine)
        request.poll()
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        time.sleep(1.0)  # nobody takes them
        self.assertLess(tracemalloc.get_traced_memory()[1], 60e6)
        tracemalloc.stop()
        longest, deadline = 0.0, time.monotonic() + 60
        running = True
        while running:
            self.assertLess(time.monotonic(), deadline)
            started = time.monotonic()
            running = request.poll()
            longest = max(longest, time.monotonic() - started)
        self.assertLess(longest, 0.5)
        self.assertTrue(request.outcome is not None and request.outcome.ok)
        self.assertEqual(sum(event["event"] == "metric" for event in self.events), 200_000)

    def test_one_that_never_stops_talking_does_the_next_request(self) -> None:
        before = """
            def talk():
                while True:
                    for _ in range(100): write(event="progress", id="nobody", step=1, total=1)
                    time.sleep(0.01)  # it would starve its own requests otherwise
            threading.Thread(target=talk, daemon=True).start()
            """
        engine = self.server(DONE, before)
        for _ in range(2):
            self.assertTrue(self.run_one(engine).ok)

    def test_one_that_does_not_read_holds_nobody_up(self) -> None:
        request = self.ask(self.server(DONE, "time.sleep(600)"), "x" * 1_000_000)
        started = time.monotonic()
        for _ in range(5):
            self.assertTrue(request.poll())
        request.cancel(grace_s=0.2)
        self.assertTrue(request.wait(10).cancelled)
        self.assertLess(time.monotonic() - started, 5)

    def test_program_that_is_not_there_is_told_each_time(self) -> None:
        for _ in range(2):
            outcome = self.run_one(Server(self.place / "fehlt", False, "x"))
            self.assertEqual((outcome.exit_code, outcome.cancelled), (-1, False))
            self.assertIn("could not be started", outcome.sentence())

    def test_callback_that_fails_loses_neither_events_nor_the_end(self) -> None:
        request = self.ask(self.server('for i in range(3): say("metric", value=i)\n' + DONE))
        seen = []

        def fail(event: Mapping[str, Any]) -> None:
            seen.append(event["event"])
            raise ValueError("in the panel")

        request.on_event = fail
        for _ in range(1000):
            try:
                if not request.poll():
                    break
            except ValueError:
                pass
            time.sleep(0.01)
        self.assertEqual(seen, ["stage", "metric", "metric", "metric", "result"])
        self.assertTrue(self.ends and self.ends[0].ok)

    @unittest.skipUnless(Path("/proc/self/fd").is_dir(), "open files cannot be counted here")
    def test_no_file_is_left_open(self) -> None:
        def count() -> int:
            gc.collect()
            return len(os.listdir("/proc/self/fd"))

        engine = self.server("os._exit(3)")
        self.run_one(engine)
        time.sleep(0.2)
        before = count()
        for _ in range(5):
            self.run_one(engine)
        time.sleep(0.2)
        self.assertLessEqual(count(), before)


# The real engine


@pytest.fixture
def scan(tmp_path: Path, make_scan: Callable[..., Any]) -> Path:
    path = tmp_path / "頭 ä.nrrd"
    sitk.WriteImage(make_scan(1, spacing=(1.1, 0.9, 1.0))[0], path)
    return path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TCURLORA_HOME", str(tmp_path / "home ü"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_second_segmentation_is_done_by_the_same_process(home: None, bundle: Path, scan: Path, tmp_path: Path) -> None:
    warm = WarmWorker()
    pids = []
    try:
        for number in "12":
            job = tmp_path / f"Auftrag {number}"
            job.mkdir()
            out = job / "results"
            words = ["segment", "--model", str(bundle), "--input", str(scan), "--out", str(out), "--job", str(job)]
            request = warm.request(default_engine(), words, job=job)
            request.start()
            outcome = request.wait(120)
            assert outcome.ok, outcome
            assert Path(outcome.result["written"][0]["labels"]).is_file()
            assert json.loads((job / "result.json").read_text(encoding="utf-8")) == outcome.result
            pids.append(warm.pid)
        assert pids[0] is not None and pids[0] == pids[1]

        # Cancelled, it stays
        long_scan = tmp_path / "long.nrrd"
        sitk.WriteImage(sitk.Image([240, 240, 240], sitk.sitkUInt8), long_scan)
        events: list[Mapping[str, Any]] = []
        words = ["segment", "--model", str(bundle), "--input", str(long_scan), "--out", str(tmp_path / "long")]
        request = warm.request(default_engine(), words, on_event=events.append)
        request.start()
        deadline = time.monotonic() + 60
        while not any(event["event"] == "progress" for event in events):
            assert request.poll() and time.monotonic() < deadline
            time.sleep(0.02)
        request.cancel()
        outcome = request.wait(15)
        assert outcome.cancelled and outcome.exit_code == 4
        assert warm.pid == pids[0]
    finally:
        warm.kill()
    assert_gone(pids[0])


def test_rests_after_a_while(home: None, tmp_path: Path) -> None:
    warm = WarmWorker(idle_minutes=0.02)
    request = warm.request(default_engine(), ["models", "list"])
    request.start()
    assert request.wait(60).exit_code == 0
    pid = warm.pid
    assert pid is not None
    assert_gone(pid, 20)


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_ends_soon_after_its_slicer_was_killed(home: None, bundle: Path, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(MODULES)}
    slicer = subprocess.Popen([sys.executable, __file__], stdout=subprocess.PIPE, text=True, env=environment)
    assert slicer.stdout is not None
    pid = int(slicer.stdout.readline())
    assert start_of(pid) is not None
    slicer.send_signal(signal.SIGKILL)
    slicer.communicate()
    assert_gone(pid, 30)


if __name__ == "__main__":  # a Slicer to be killed
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "TCurLoraSegment"))
    worker = WarmWorker()
    asked = worker.request(default_engine(), ["models", "list"])
    asked.start()
    asked.wait(60)
    print(worker.pid, flush=True)
    time.sleep(600)
