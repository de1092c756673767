"""One process of the engine, read without blocking, cancelled for good, and judged by more than its exit code."""

from __future__ import annotations

import codecs
import json
import os
import signal
import subprocess
import tempfile
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from TCurLoraSegmentLib.processes import end_tree, own_group, start_of

Event = Mapping[str, Any]

EXIT_CANCELLED = 4
NOT_STARTED = -1
RESULT = "result.json"
STATE = "worker.pid"
"""File in a job's folder: number and start of its process, later how it ended where that was by the user's wish."""

_WAITING_EVENTS = 5000
_LONGEST_LINE = 2**24
_STRAY_BYTES = 2**20
_GROUP_GRACE_S = 1.0


@dataclass(frozen=True)
class Outcome:
    """How a run of the engine ended.

    Attributes:
        exit_code: that of the process; -1 when it could not be started, negative when a signal ended it.
        result: the `result` event; of a command that only answers (such as `check`, `doctor`, `models`), its answer,
            which for lists is a list. For a job None unless `result.json` is there too and is whole.
        error: code, message and remedy of the last `error` event.
        cancelled: whether it was cancelled, or ended by us.
        log: the job's log.
        words: the last line of the log.
        answered: whether the result is the answer of a command that only answers, which tells all there is to know
            also where the exit code says that something is wrong.
    """

    exit_code: int
    result: Any = None
    error: Mapping[str, str] | None = None
    cancelled: bool = False
    log: Path | None = None
    words: str = ""
    answered: bool = False

    @property
    def ok(self) -> bool:
        """Whether the run did what it was asked to."""
        return self.exit_code == 0 and self.result is not None

    def sentence(self) -> str:
        """Say what went wrong and what to do; empty when nothing did, or when the answer itself tells it."""
        if self.ok or (self.answered and not self.cancelled and self.error is None):
            return ""
        if self.cancelled:
            return "Cancelled."
        if self.error is not None:
            return f"{self.error.get('message', '')} {self.error.get('remedy', '')}".strip()
        if self._failed():
            return self._failed()
        if self.exit_code == 0:
            ending = "The worker ended without a result."
        elif self.exit_code == -getattr(signal, "SIGKILL", 9):
            ending = "The system ended the worker, most likely because memory ran out. Close other programs, try again."
        else:
            ending = f"The worker ended unexpectedly (exit code {self.exit_code})."
        said = f'Its log says: "{self.words}"' if self.words else ""
        where = f"The whole log is in {self.log}." if self.log and self.words else ""
        return " ".join(filter(None, (ending, said, where)))

    def _failed(self) -> str:
        """Say which part of the work failed, where the others were done."""
        failed = self.result.get("failed") if isinstance(self.result, Mapping) else None
        if not failed:
            return ""
        total = len(failed) + len(self.result.get("written", ()))
        return f"{len(failed)} of {total} scans could not be segmented. {failed[0].get('reason', '')}".strip()


class Worker:
    """One process of the engine.

    A thread reads what it says; everything else, the callbacks too, happens in the thread that calls `poll`, in
    Slicer by a timer. What the process writes to stdout is events, one JSON object on each line; anything else goes
    to the log, as stderr does. A reader that falls behind gets the last progress only, and every other event.

    Args:
        command: program and arguments, from `Engine.command`.
        environment: the whole environment, from `Engine.environment`.
        job: the job's folder, whose `result.json` must be there in the end.
        log: file for what the process says besides; `worker.log` in the job's folder by default.
        on_event: called with each event, in order.
        on_finished: called once, after the last event.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        job: Path | None = None,
        log: Path | None = None,
        on_event: Callable[[Event], None] | None = None,
        on_finished: Callable[[Outcome], None] | None = None,
    ) -> None:
        self.command = list(command)
        self.environment = dict(environment)
        self.job = job
        self.log = log or (job / "worker.log" if job else None)
        self.on_event = on_event
        self.on_finished = on_finished
        self.outcome: Outcome | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self._reader: _Reader | None = None
        self._start_failure: Outcome | None = None
        self._pending: deque[Event] = deque()
        self._result: Any = None
        self._answer: Any = None
        self._error: Mapping[str, str] | None = None
        self._kill_at: float | None = None
        self._ended_by_us = False
        self._gone_since: float | None = None
        self._polling = False

    @property
    def running(self) -> bool:
        """Whether it was started and its end was not handed over yet."""
        return self.outcome is None and (self._process is not None or self._start_failure is not None)

    def start(self) -> None:
        """Start the process; where that fails, the outcome says so, as any other end does."""
        if self._process is not None or self._start_failure is not None:
            raise RuntimeError("A worker runs once.")
        try:
            # Without a log of its own, what the process complains about is still wanted for the sentence at the end.
            # Without a buffer, because the process writes to the same file.
            self._log = (
                self.log.open("a+b", buffering=0) if self.log else tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
            )
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env=self.environment,
                bufsize=0,
                **own_group(),
            )
        except (OSError, ValueError) as error:
            self._start_failure = self._not_started(error)
            return
        self._write_state({"pid": self._process.pid, "started": start_of(self._process.pid)})
        assert self._process.stdin is not None and self._process.stdout is not None
        # Python keeps a process that is forgotten, and with it the pipe whose end would tell it to end.
        weakref.finalize(self, self._process.stdin.close)
        self._reader = _Reader(self._process.stdout, self._log, answers=self.job is None)

    def poll(self, budget_s: float = 0.02) -> bool:
        """Hand over the events that have come and, when all are handed over, the end.

        Args:
            budget_s: how long to hand over events; the rest waits for the next call.

        Returns:
            Whether the process is still running, or events of it are waiting.
        """
        if not self.running or self._polling:  # a callback that opens a dialog lets the timer call again
            return self.running
        self._polling = True
        try:
            if self._start_failure is not None:
                self._finish(self._start_failure)
            elif self._deliver(time.monotonic() + budget_s) and self._has_ended():
                self._finish(self._judge())
        finally:
            self._polling = False
        return self.running

    def wait(self, timeout_s: float | None = None) -> Outcome:
        """Poll until the end; for scripts and tests.

        Raises:
            TimeoutError: when it has not ended by then; it keeps running.
            RuntimeError: when it was not started.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while self.poll(0.1):
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"The worker has not ended within {timeout_s} s.")
            if self._reader is not None:
                self._reader.wait(0.02)
        if self.outcome is None:
            raise RuntimeError("The worker was not started.")
        return self.outcome

    def cancel(self, grace_s: float = 15.0) -> None:
        """Ask the process to end; `poll` ends it and its children when it has not done so in time.

        Args:
            grace_s: how long it may take to close its files.
        """
        if self._process is None or self.outcome is not None:
            return
        deadline = time.monotonic() + grace_s
        self._kill_at = deadline if self._kill_at is None else min(self._kill_at, deadline)
        assert self._process.stdin is not None
        with suppress(OSError, ValueError):
            self._process.stdin.write(b"cancel\n")

    def kill(self) -> None:
        """End the process and its children now; `poll` and `wait` still report the end."""
        if self._process is None or self.outcome is not None:
            return
        self._ended_by_us = self._ended_by_us or self._process.poll() is None
        end_tree(self._process)

    def _deliver(self, deadline: float) -> bool:
        """Hand over events until none is left (True) or the time is over (False)."""
        assert self._reader is not None
        while self._pending or self._reader.take(self._pending):
            event = self._pending.popleft()
            if "event" not in event:
                self._answer = event["answer"]
                continue
            if event["event"] == "result":
                self._result = {key: value for key, value in event.items() if key != "event"}
            elif event["event"] == "error":
                self._error = {key: str(event.get(key, "")) for key in ("code", "message", "remedy")}
            if self.on_event is not None:
                self.on_event(event)
            if time.monotonic() > deadline:
                return False
        return True

    def _has_ended(self) -> bool:
        """Whether the process is gone and all that it said has been read."""
        assert self._process is not None and self._reader is not None
        if self._process.poll() is None:
            if self._kill_at is not None and time.monotonic() > self._kill_at:
                self.kill()
            return False
        if self._gone_since is None:
            self._gone_since = time.monotonic()
            end_tree(self._process)  # children that it left behind, which may hold a GPU and this pipe
        # A child that escaped may keep the pipe open for ever, so there is an end to waiting for it.
        return self._reader.at_end() or (
            self._reader.is_empty() and time.monotonic() > self._gone_since + _GROUP_GRACE_S
        )

    def _judge(self) -> Outcome:
        assert self._process is not None
        code = self._process.returncode
        answered = self._result is None and self._answer is not None
        result = self._answer if answered else self._result
        if self.job is not None and not _is_whole(self.job / RESULT):
            result = None
        succeeded = code == 0 and result is not None
        cancelled = code == EXIT_CANCELLED or (not succeeded and (self._ended_by_us or self._kill_at is not None))
        log = self.log if self.log is not None and self.log.exists() else None
        return Outcome(code, result, self._error, cancelled, log, _last_line(self._log), answered)

    def _not_started(self, error: Exception) -> Outcome:
        program = Path(self.command[0]).name if self.command else ""
        reason = getattr(error, "strerror", None) or str(error)
        if self._log is None:
            message = f"The log '{self.log or tempfile.gettempdir()}' could not be written ({reason})."
            remedy = "Check the free space and the permissions of its folder."
        else:
            message = f"'{program}' could not be started ({reason})."
            remedy = "Choose another Python under Environment, or install Slicer again."
        return Outcome(NOT_STARTED, error={"code": "not_started", "message": message, "remedy": remedy})

    def _finish(self, outcome: Outcome) -> None:
        self.outcome = outcome
        if self._process is not None:
            for pipe in (self._process.stdin, self._process.stdout if self._reader and self._reader.at_end() else None):
                with suppress(OSError):
                    if pipe is not None:
                        pipe.close()
            self._write_state({"ended": "cancelled"} if outcome.cancelled else None)
        if self._log is not None:
            self._log.close()
        if self.on_finished is not None:
            self.on_finished(outcome)

    def _write_state(self, state: Mapping[str, Any] | None) -> None:
        """Leave a note for the next start of Slicer; a job goes on without it."""
        if self.job is None:
            return
        with suppress(OSError):
            if state is None:
                (self.job / STATE).unlink(missing_ok=True)
            else:
                (self.job / STATE).write_text(json.dumps(state), encoding="utf-8")


class _Reader:
    """A thread that turns a stream of bytes into events, and holds the stream up when nobody takes them.

    It knows nothing of the worker, so that a worker that is forgotten lets go of its process.
    """

    def __init__(self, stream: IO[bytes], log: IO[bytes], answers: bool) -> None:
        self._stream = stream
        self._log = log
        self._answers = answers
        self._stray = 0
        self._events: deque[Event] = deque()
        self._changed = threading.Condition()
        self._ended = False
        threading.Thread(target=self._run, name="worker reader", daemon=True).start()

    def take(self, events: deque[Event]) -> bool:
        """Move all events that have come, and answers under the key `answer`; tells whether there were any."""
        with self._changed:
            events.extend(self._events)
            self._events.clear()
            self._changed.notify_all()
            return bool(events)

    def is_empty(self) -> bool:
        """Whether no event is waiting."""
        with self._changed:
            return not self._events

    def at_end(self) -> bool:
        """Whether the stream has ended and all of it was taken."""
        with self._changed:
            return self._ended and not self._events

    def wait(self, timeout_s: float) -> None:
        """Wait until there is something to take, or the time is over."""
        with self._changed:
            if not self._events:
                self._changed.wait(timeout_s)

    def _run(self) -> None:
        try:
            for line in _lines(self._stream):
                self._read(line)
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _read(self, line: str) -> None:
        content = None
        if line[:1] in ("{", "["):  # most of a flood is told apart without parsing it
            with suppress(ValueError, RecursionError):
                content = json.loads(line)
        if isinstance(content, dict) and isinstance(content.get("event"), str):
            self._put(content)
        elif self._answers and isinstance(content, (dict, list)):
            self._put({"answer": content})
        elif line.strip():
            self._note(line)

    def _put(self, event: Event) -> None:
        with self._changed:
            if event.get("event") == "progress" and self._events and self._events[-1].get("event") == "progress":
                self._events[-1] = event
                return
            while len(self._events) >= _WAITING_EVENTS:
                self._changed.wait()
            self._events.append(event)
            self._changed.notify_all()

    def _note(self, line: str) -> None:
        """Keep a line that is no event in the log, but not a flood of them."""
        if self._stray > _STRAY_BYTES:
            return
        written = f"{line}\n".encode("utf-8", "replace")
        self._stray += len(written)
        if self._stray > _STRAY_BYTES:
            written = b"(more of this kind was left out)\n"
        with suppress(OSError, ValueError):  # a full disk, or a log that is closed already
            self._log.write(written)


def _lines(stream: IO[bytes]) -> Iterator[str]:
    """Split a stream of UTF-8 into lines; a byte that is none is replaced, and an endless line is cut off."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    parts: list[str] = []
    length = 0
    received = b"start"
    while received:
        try:
            received = os.read(stream.fileno(), 2**16)
        except (OSError, ValueError):
            received = b""
        first, *rest = decoder.decode(received, final=not received).split("\n")
        if length <= _LONGEST_LINE:
            parts.append(first)
            length += len(first)
        for part in rest:
            yield "".join(parts)
            parts, length = [part], len(part)
    if length:
        yield "".join(parts)


def _is_whole(path: Path) -> bool:
    """Whether the file holds a JSON object."""
    try:
        return isinstance(json.loads(path.read_text(encoding="utf-8")), dict)
    except (OSError, ValueError):
        return False


def _last_line(log: IO[bytes] | None) -> str:
    """The last line of a log that says something."""
    if log is None:
        return ""
    with suppress(OSError, ValueError):
        log.seek(0, os.SEEK_END)
        log.seek(max(0, log.tell() - 8192))
        lines = [line.strip() for line in log.read().decode("utf-8", "replace").splitlines()]
        return next((line[:300] for line in reversed(lines) if line), "")
    return ""
