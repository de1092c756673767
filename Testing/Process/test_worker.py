"""The worker: whatever a process does, it is read in order, ends, is judged rightly, and leaves nothing behind."""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import tempfile
import textwrap
import time
import tracemalloc
import unittest
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from TCurLoraSegmentLib.errors import without_options
from TCurLoraSegmentLib.processes import start_of
from TCurLoraSegmentLib.worker import Outcome, Worker

PRELUDE = """
import json, os, signal, subprocess, sys, time
def say(kind, **fields):
    print(json.dumps({"event": kind, **fields}), flush=True)
"""
POSIX = os.name != "nt"


class WorkerTest(unittest.TestCase):
    def setUp(self) -> None:
        place = tempfile.TemporaryDirectory(prefix="Müller 病院 ")
        self.addCleanup(place.cleanup)
        self.place = Path(place.name)
        self.job = self.place / "job"
        self.job.mkdir()
        self.events: list[Mapping[str, Any]] = []
        self.ends: list[Outcome] = []

    def worker(self, script: str, *arguments: str, job: bool = False) -> Worker:
        path = self.place / "skript 一.py"
        path.write_text(PRELUDE + textwrap.dedent(script), encoding="utf-8")
        worker = Worker(
            [sys.executable, str(path), *arguments],
            {**os.environ, "PYTHONUTF8": "1"},
            job=self.job if job else None,
            on_event=self.events.append,
            on_finished=self.ends.append,
        )
        worker.start()
        self.addCleanup(self.put_away, worker)
        return worker

    @staticmethod
    def put_away(worker: Worker) -> None:
        worker.kill()
        worker.wait(10)

    def run_script(self, script: str, *arguments: str, job: bool = False, timeout_s: float = 60) -> Outcome:
        return self.worker(script, *arguments, job=job).wait(timeout_s)

    def kinds(self) -> list[str]:
        return [str(event["event"]) for event in self.events]

    def assert_gone(self, pid: int, within_s: float = 5) -> None:
        deadline = time.monotonic() + within_s
        while start_of(pid) is not None:
            self.assertLess(time.monotonic(), deadline, f"process {pid} is still there")
            time.sleep(0.02)

    def wait_for(self, worker: Worker, kind: str) -> Mapping[str, Any]:
        deadline = time.monotonic() + 30
        while kind not in self.kinds():
            self.assertTrue(worker.poll() and time.monotonic() < deadline, f"no {kind}")
            time.sleep(0.01)
        return next(event for event in self.events if event["event"] == kind)

    # What is said arrives

    def test_events_come_in_order_and_the_end_comes_once_and_last(self) -> None:
        outcome = self.run_script(
            """
            say("stage", name="a", title="Prüfen 検査")
            for i in range(50): say("metric", name="loss", value=i)
            say("result", adapter="ü")
            """
        )
        self.assertTrue(outcome.ok)
        self.assertEqual(outcome.result, {"adapter": "ü"})
        self.assertEqual(outcome.sentence(), "")
        self.assertEqual(self.kinds(), ["stage"] + 50 * ["metric"] + ["result"])
        self.assertEqual(self.events[0]["title"], "Prüfen 検査")
        self.assertEqual([event["value"] for event in self.events[1:-1]], list(range(50)))
        self.assertEqual(self.ends, [outcome])

    def test_callbacks_come_from_poll_only(self) -> None:
        worker = self.worker('say("stage", name="a", title="A"); say("result", a=1)')
        time.sleep(1.0)
        self.assertEqual((self.events, self.ends), ([], []))
        self.assertTrue(worker.running)
        worker.wait(10)
        self.assertFalse(worker.running)
        self.assertEqual(self.kinds(), ["stage", "result"])

    def test_poll_keeps_to_its_budget(self) -> None:
        worker = self.worker('for i in range(3000): say("metric", name="a", value=i)\nsay("result", a=1)')
        worker.on_event = lambda event: time.sleep(0.001)
        time.sleep(1.0)
        started = time.monotonic()
        self.assertTrue(worker.poll(0.05))
        self.assertLess(time.monotonic() - started, 0.5)

    def test_slow_reader_misses_progress_only(self) -> None:
        worker = self.worker(
            """
            for i in range(1, 1001):
                say("progress", step=i, total=1000)
                if i % 100 == 0: say("metric", name="dice", value=i)
            say("result", a=1)
            """
        )
        time.sleep(1.5)
        worker.wait(20)
        self.assertEqual([e["value"] for e in self.events if e["event"] == "metric"], list(range(100, 1001, 100)))
        steps = [e["step"] for e in self.events if e["event"] == "progress"]
        self.assertEqual(steps, list(range(100, 1001, 100)))

    def test_million_events_arrive_without_filling_memory(self) -> None:
        script = """
            line = (json.dumps({"event": "metric", "name": "loss", "value": 0.5}) + "\\n").encode() * 1000
            for i in range(1000): os.write(1, line)
            say("result", a=1)
            """
        count = [0]
        worker = self.worker(script)
        worker.on_event = lambda event: count.__setitem__(0, count[0] + 1)
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        time.sleep(1.0)  # nobody takes them: the process must wait, not the memory grow
        self.assertLess(tracemalloc.get_traced_memory()[1], 60e6)
        tracemalloc.stop()
        self.assertTrue(worker.wait(120).ok)
        self.assertEqual(count[0], 1_000_001)

    def test_flood_without_lines_is_cut_off(self) -> None:
        script = """
            for i in range(100): sys.stdout.write("x" * 1_000_000)
            print(); say("result", a=1)
            """
        worker = self.worker(script, job=True)
        (self.job / "result.json").write_text("{}")
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        self.assertTrue(worker.wait(60).ok)
        self.assertLess(tracemalloc.get_traced_memory()[1], 150e6)
        self.assertLess((self.job / "worker.log").stat().st_size, 30e6)

    def test_flood_of_lines_that_are_no_events_leaves_a_short_log(self) -> None:
        outcome = self.run_script(
            """
            line = "no event, but a line of some length, again and again and again and again\\n" * 1000
            for i in range(1400): sys.stdout.write(line)
            say("result", a=1)
            """,
            job=True,
        )
        self.assertEqual(self.kinds(), ["result"])
        self.assertLess((self.job / "worker.log").stat().st_size, 3e6)
        self.assertIn("left out", outcome.words)

    def test_strange_bytes_and_lines_go_to_the_log(self) -> None:
        outcome = self.run_script(
            r"""
            sys.stdout.flush()
            os.write(1, b"\xff\xfe\x00 bytes\n\n[" + b"[" * 100000 + b"\nnull\n3\n[1]\n{\"no\": 1}\n{\"event\": 5}\n")
            half = json.dumps({"event": "warning", "message": "grüße 病院"}, ensure_ascii=False).encode()
            for byte in half + b"\r\n": os.write(1, bytes([byte])); time.sleep(0.002)
            print("on stderr", file=sys.stderr, flush=True)
            os.write(1, b'{"event": "result", "a": 1}')
            """,
            job=True,
        )
        self.assertEqual([dict(event) for event in self.events], [
            {"event": "warning", "message": "grüße 病院"}, {"event": "result", "a": 1}
        ])  # fmt: skip
        self.assertIsNone(outcome.result, "there is no result.json")
        log = (self.job / "worker.log").read_text(encoding="utf-8")
        for words in ("\ufffd", " bytes", "null", '{"no": 1}', '{"event": 5}', "on stderr"):
            self.assertIn(words, log)

    def test_half_a_last_line_is_no_result(self) -> None:
        outcome = self.run_script('os.write(1, b\'{"event": "result", "a": \')')
        self.assertEqual(self.events, [])
        self.assertFalse(outcome.ok)
        self.assertEqual(outcome.exit_code, 0)
        self.assertIn("without a result", outcome.sentence())

    def test_line_separators_inside_a_text_split_no_event(self) -> None:
        self.run_script(
            'os.write(1, json.dumps({"event": "result", "a": "x\\u2028y\\x85z"}, ensure_ascii=False).encode())'
        )
        self.assertEqual(self.events[0]["a"], "x\u2028y\x85z")

    def test_command_that_answers_with_an_error(self) -> None:
        outcome = self.run_script('print("[]"); say("error", code="a", message="A is wrong.", remedy=""); sys.exit(2)')
        self.assertEqual(outcome.sentence(), "A is wrong.")

    def test_answer_of_a_command_is_its_result(self) -> None:
        self.assertEqual(self.run_script('print("[1]"); print(json.dumps([{"name": "ü"}]))').result, [{"name": "ü"}])
        outcome = self.run_script('print(json.dumps({"findings": []})); sys.exit(2)')
        self.assertEqual((outcome.ok, outcome.result, outcome.sentence()), (False, {"findings": []}, ""))
        self.assertEqual(self.events, [])

    # How it ends

    def test_result_file_and_exit_code_decide_together(self) -> None:
        write = 'open(sys.argv[1], "w").write(sys.argv[2]); say("result", a=1)\n'
        file = str(self.job / "result.json")
        for content, code, ok in (
            ('{"a": 1}', 0, True),
            ('{"a": 1', 0, False),
            ("[]", 0, False),
            ('{"a": 1}', 1, False),
        ):
            with self.subTest(content=content, code=code):
                outcome = self.run_script(f"{write}sys.exit({code})", file, content, job=True)
                self.assertEqual((outcome.ok, outcome.exit_code), (ok, code))
                self.assertEqual(outcome.sentence() == "", ok)
        self.assertFalse(self.run_script("pass", job=True).ok, "a result.json of before, but no result")

    def test_error_event_speaks(self) -> None:
        outcome = self.run_script(
            """
            say("error", code="cannot_read", message="'scan.nii' cannot be read.", remedy="Choose another (--input).")
            sys.exit(2)
            """
        )
        self.assertEqual(outcome.sentence(), "'scan.nii' cannot be read. Choose another.")
        self.assertEqual(outcome.error["code"] if outcome.error else "", "cannot_read")
        self.assertFalse(outcome.cancelled)

    def test_options_of_the_command_line_are_left_out(self) -> None:
        for said, shown in {
            "Name it (with --labels or in dataset.json), or remove it.": "Name it, or remove it.",
            "Start it anew (without --resume).\n  b: Go on (--resume).": "Start it anew.\n  b: Go on.",
            "The scan (2 mm) has no label (see 'a -- b').": "The scan (2 mm) has no label (see 'a -- b').",
        }.items():
            self.assertEqual(without_options(said), shown)

    def test_traceback_is_in_the_log_and_its_last_line_in_the_sentence(self) -> None:
        for job in (True, False):
            outcome = self.run_script('say("stage", name="a", title="A")\nraise KeyError("Größe")', job=job)
            self.assertEqual(outcome.exit_code, 1)
            self.assertIn("unexpectedly (exit code 1)", outcome.sentence())
            self.assertIn("KeyError: 'Größe'", outcome.sentence())
            self.assertEqual(outcome.log, self.job / "worker.log" if job else None)
        self.assertIn("Traceback", (self.job / "worker.log").read_text(encoding="utf-8"))

    @unittest.skipUnless(POSIX, "signals")
    def test_signals_are_told_apart(self) -> None:
        outcome = self.run_script("os.kill(os.getpid(), signal.SIGSEGV)")
        self.assertEqual(outcome.exit_code, -signal.SIGSEGV)
        self.assertIn("unexpectedly", outcome.sentence())
        outcome = self.run_script("os.kill(os.getpid(), signal.SIGKILL)")
        self.assertFalse(outcome.cancelled)
        self.assertIn("memory", outcome.sentence())

    @unittest.skipUnless(POSIX, "signals")
    def test_signals_are_told_apart_through_the_launcher_of_slicers_python(self) -> None:
        outcome = self.run_script(
            """
            if len(sys.argv) > 1:
                os.kill(os.getpid(), signal.SIGKILL)
            child = [sys.executable, sys.argv[0], "child"]
            if subprocess.call(child) < 0:
                print("error: [python-real] exit abnormally - Report the problem.", file=sys.stderr)
                sys.exit(1)
            """
        )
        self.assertEqual(outcome.exit_code, 1)
        self.assertIn("memory", outcome.sentence())

    def test_some_scans_failed_is_told_with_a_reason(self) -> None:
        outcome = self.run_script(
            """
            say("result", written=[{"scan": "a"}], failed=[{"scan": "b", "reason": "'b' is empty."}])
            sys.exit(2)
            """
        )
        self.assertFalse(outcome.ok)
        self.assertEqual(outcome.sentence(), "1 of 2 scans could not be segmented. 'b' is empty.")

    def test_program_that_is_not_there_ends_like_any_other(self) -> None:
        for command in ([str(self.place / "fehlt")], [str(self.place)], ["null\0byte"]):
            worker = Worker(command, {}, on_finished=self.ends.append)
            worker.start()
            self.assertTrue(worker.running and worker.outcome is None)
            outcome = worker.wait(5)
            self.assertEqual((outcome.exit_code, outcome.ok, outcome.cancelled), (-1, False, False))
            self.assertIn("could not be started", outcome.sentence())
        self.assertEqual(len(self.ends), 3)

    def test_log_that_cannot_be_written_is_told(self) -> None:
        worker = Worker([sys.executable], {}, job=self.place / "gone")
        worker.start()
        self.assertIn("worker.log' could not be written", worker.wait(5).sentence())

    def test_callback_that_fails_loses_neither_events_nor_the_end(self) -> None:
        worker = self.worker('for i in range(5): say("metric", name="a", value=i)\nsay("result", a=1)')
        seen = []

        def fail(event: Mapping[str, Any]) -> None:
            seen.append(event)
            raise ValueError("in the panel")

        worker.on_event = fail
        for _ in range(500):
            try:
                if not worker.poll():
                    break
            except ValueError:
                pass
            time.sleep(0.01)
        self.assertEqual(len(seen), 6)
        self.assertTrue(self.ends and self.ends[0].ok)

    def test_callback_may_poll_again(self) -> None:
        """A dialog in a callback runs an event loop of its own, and with it the timer."""
        worker = self.worker('for i in range(5): say("metric", name="a", value=i)\nsay("result", a=1)')
        seen = []

        def nested(event: Mapping[str, Any]) -> None:
            seen.append(event.get("value"))
            self.assertTrue(worker.poll())

        worker.on_event = nested
        self.assertTrue(worker.wait(20).ok)
        self.assertEqual(seen, [0, 1, 2, 3, 4, None])

    # Cancelling and killing

    def test_cancel_asks_first(self) -> None:
        worker = self.worker(
            """
            say("stage", name="a", title="A")
            assert sys.stdin.readline() == "cancel\\n"
            say("error", code="cancelled", message="Cancelled.", remedy="")
            sys.exit(4)
            """,
            job=True,
        )
        self.wait_for(worker, "stage")
        self.assertTrue((self.job / "worker.pid").is_file())
        worker.cancel()
        outcome = worker.wait(10)
        self.assertEqual((outcome.exit_code, outcome.cancelled, outcome.sentence()), (4, True, "Cancelled."))
        self.assertEqual(json.loads((self.job / "worker.pid").read_text()), {"ended": "cancelled"})

    def test_one_that_ignores_cancel_is_ended_with_its_children(self) -> None:
        worker = self.worker(
            """
            for number in (signal.SIGTERM, signal.SIGINT): signal.signal(number, signal.SIG_IGN)
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            say("stage", name="a", title="A", pids=[os.getpid(), child.pid])
            while True: time.sleep(1)
            """
        )
        pids = self.wait_for(worker, "stage")["pids"]
        started = time.monotonic()
        worker.cancel(grace_s=0.5)
        outcome = worker.wait(10)
        self.assertLess(time.monotonic() - started, 5)
        self.assertTrue(outcome.cancelled)
        for pid in pids:
            self.assert_gone(pid)

    def test_kill_ends_a_silent_one_at_once(self) -> None:
        worker = self.worker("time.sleep(600)")
        worker.poll()
        with self.assertRaises(TimeoutError):
            worker.wait(0.2)
        worker.kill()
        worker.kill()
        outcome = worker.wait(5)
        self.assertTrue(outcome.cancelled)
        worker.cancel()
        worker.kill()
        self.assertEqual(len(self.ends), 1)

    def test_children_left_behind_end_with_the_worker(self) -> None:
        outcome = self.run_script(
            """
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            say("stage", name="a", title="A", pid=child.pid)
            say("result", a=1)
            """
        )
        self.assertTrue(outcome.ok)
        if POSIX:
            self.assert_gone(self.events[0]["pid"])

    @unittest.skipUnless(POSIX, "sessions")
    def test_child_that_escaped_does_not_keep_the_end_back(self) -> None:
        started = time.monotonic()
        outcome = self.run_script(
            """
            command = [sys.executable, "-c", "import time; time.sleep(20)"]
            child = subprocess.Popen(command, start_new_session=True)
            say("result", a=1, pid=child.pid)
            """
        )
        self.assertTrue(outcome.ok)
        self.assertLess(time.monotonic() - started, 10)
        os.kill(outcome.result["pid"], signal.SIGKILL)

    def test_result_that_was_there_before_cancel_counts(self) -> None:
        worker = self.worker('say("result", a=1)')
        time.sleep(1.0)
        worker.cancel()
        outcome = worker.wait(10)
        self.assertTrue(outcome.ok)
        self.assertFalse(outcome.cancelled)

    def test_forgotten_worker_lets_go_of_its_process(self) -> None:
        worker = self.worker('say("stage", name="a", title="A", pid=os.getpid())\nsys.stdin.read()')
        self._cleanups.pop()
        pid = self.wait_for(worker, "stage")["pid"]
        del worker
        gc.collect()
        self.assert_gone(pid)

    # Nothing is left behind

    def test_note_of_the_process_goes_when_it_ends(self) -> None:
        worker = self.worker('say("stage", name="a", title="A"); sys.stdin.readline(); say("result", a=1)', job=True)
        self.wait_for(worker, "stage")
        note = json.loads((self.job / "worker.pid").read_text())
        self.assertEqual(start_of(note["pid"]), note["started"])
        assert worker._process is not None
        worker._process.write("")
        worker.wait(10)
        self.assertFalse((self.job / "worker.pid").exists())

    @unittest.skipUnless(Path("/proc/self/fd").is_dir(), "open files cannot be counted here")
    def test_no_file_or_thread_is_left_open(self) -> None:
        def count() -> int:
            gc.collect()
            return len(os.listdir("/proc/self/fd"))

        self.run_script('say("result", a=1)')
        before = count()
        for _ in range(5):
            self.run_script('say("result", a=1)', job=True)
            self.run_script("sys.exit(3)")
        self.assertLessEqual(count(), before)

    def test_second_run_after_a_crash(self) -> None:
        self.assertFalse(self.run_script("os.abort()", job=True).ok)
        self.assertTrue(self.run_script('say("result", a=1)').ok)


class RecognitionTest(unittest.TestCase):
    def test_process_is_recognised_while_it_lives(self) -> None:
        self.assertEqual(start_of(os.getpid()), start_of(os.getpid()))
        self.assertIsNotNone(start_of(os.getpid()))
        self.assertIsNone(start_of(2**22 + 5))


if __name__ == "__main__":
    unittest.main()
