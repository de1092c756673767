"""One process of the engine, read without blocking, cancelled for good, and judged by more than its exit code."""

from __future__ import annotations

import json
import signal
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from TCurLoraSegmentLib.engine_process import EngineProcess, Event
from TCurLoraSegmentLib.errors import UserError, without_options
from TCurLoraSegmentLib.translation import tr as _

EXIT_CANCELLED = 4
NOT_STARTED = -1
RESULT = "result.json"
STATE = "worker.pid"
"""File in a job's folder: number and start of its process, later how it ended where that was by the user's wish."""

_LAUNCHER_SAYS = "exit abnormally - Report the problem"
"""Slicer's Python is started by a launcher, whose own exit code hides the signal that ended Python."""


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
            return _("Cancelled.")
        if self.error is not None:
            return f"{self.error.get('message', '')} {self.error.get('remedy', '')}".strip()
        if self._failed():
            return self._failed()
        if self.exit_code == 0:
            ending = _("The worker ended without a result.")
        elif self.exit_code == -getattr(signal, "SIGKILL", 9) or _LAUNCHER_SAYS in self.words:
            ending = _(
                "The system ended the worker, most likely because memory ran out. Close other programs, try again."
            )
        else:
            ending = _("The worker ended unexpectedly (exit code {code}).").format(code=self.exit_code)
        said = _('Its log says: "{words}"').format(words=self.words) if self.words else ""
        where = _("The whole log is in {file}.").format(file=self.log) if self.log and self.words else ""
        return " ".join(filter(None, (ending, said, where)))

    def _failed(self) -> str:
        """Say which part of the work failed, where the others were done."""
        failed = self.result.get("failed") if isinstance(self.result, Mapping) else None
        if not failed:
            return ""
        total = len(failed) + len(self.result.get("written", ()))
        what = _("{count} of {total} scans could not be segmented.").format(count=len(failed), total=total)
        return f"{what} {without_options(str(failed[0].get('reason', '')))}".strip()


class Told:
    """What the events of a run tell of its end.

    Attributes:
        result: the `result` event.
        error: code, message and remedy of the last `error` event.
    """

    def __init__(self) -> None:
        self.result: Any = None
        self.error: Mapping[str, str] | None = None

    def hear(self, event: Event) -> None:
        """Keep what counts in the end."""
        if event["event"] == "result":
            self.result = {key: value for key, value in event.items() if key not in ("event", "id")}
        elif event["event"] == "error":
            # A message may hold remedies as well, of several cases.
            self.error = {key: without_options(str(event.get(key, ""))) for key in ("code", "message", "remedy")}


class Worker:
    """One process of the engine.

    Threads read and write; everything else, the callbacks too, happens in the thread that calls `poll`, in Slicer by
    a timer.

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
        self._process: EngineProcess | None = None
        self._start_failure: Outcome | None = None
        self._pending: deque[Event] = deque()
        self._told = Told()
        self._answer: Any = None
        self._kill_at: float | None = None
        self._ended_by_us = False
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
            self._process = EngineProcess(self.command, self.environment, self.log, answers=self.job is None)
        except UserError as error:
            self._start_failure = not_started(error)
            return
        write_state(self.job, self._process.state)

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
        poll_until_end(self.poll, self._pause, timeout_s)
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
        self._kill_at = earlier(self._kill_at, time.monotonic() + grace_s)
        self._process.write("cancel")

    def kill(self) -> None:
        """End the process and its children now; `poll` and `wait` still report the end."""
        if self._process is None or self.outcome is not None:
            return
        self._ended_by_us = self._ended_by_us or self._process.alive
        self._process.end()

    def _pause(self) -> None:
        if self._process is not None:
            self._process.wait(0.02)

    def _deliver(self, deadline: float) -> bool:
        """Hand over events until none is left (True) or the time is over (False)."""
        assert self._process is not None
        while self._pending or self._process.take(self._pending):
            event = self._pending.popleft()
            if "event" not in event:
                self._answer = event["answer"]
                continue
            self._told.hear(event)
            if self.on_event is not None:
                self.on_event(event)
            if time.monotonic() > deadline:
                return False
        return True

    def _has_ended(self) -> bool:
        assert self._process is not None
        if self._process.alive and self._kill_at is not None and time.monotonic() > self._kill_at:
            self.kill()
        return self._process.has_ended()

    def _judge(self) -> Outcome:
        assert self._process is not None
        answered = self._told.result is None and self._answer is not None
        return judge(
            self._process.exit_code,
            self._answer if answered else self._told.result,
            self._told.error,
            job=self.job,
            ended_by_us=self._ended_by_us or self._kill_at is not None,
            log=self.log if self.log is not None and self.log.exists() else None,
            words=self._process.last_words(),
            answered=answered,
        )

    def _finish(self, outcome: Outcome) -> None:
        self.outcome = outcome
        if self._process is not None:
            self._process.close()
            write_state(self.job, {"ended": "cancelled"} if outcome.cancelled else None)
        if self.on_finished is not None:
            self.on_finished(outcome)


def judge(
    exit_code: int,
    result: Any,
    error: Mapping[str, str] | None,
    *,
    job: Path | None,
    ended_by_us: bool,
    log: Path | None = None,
    words: str = "",
    answered: bool = False,
) -> Outcome:
    """Say how a run ended, from all that is known of it.

    Args:
        exit_code: of the run.
        result: the `result` event, or the answer.
        error: the last `error` event.
        job: the job's folder, where `result.json` must be whole.
        ended_by_us: whether it was asked to end, or made to.
        log: the job's log.
        words: its last line.
        answered: whether the result is the answer of a command that only answers.
    """
    if job is not None and not _is_whole(job / RESULT):
        result = None
    succeeded = exit_code == 0 and result is not None
    cancelled = exit_code == EXIT_CANCELLED or (not succeeded and ended_by_us)
    return Outcome(exit_code, result, error, cancelled, log, words, answered)


def not_started(error: UserError) -> Outcome:
    """The outcome of a process that could not be started."""
    return Outcome(NOT_STARTED, error={"code": "not_started", "message": error.message, "remedy": error.remedy})


def write_state(job: Path | None, state: Mapping[str, Any] | None) -> None:
    """Leave a note in a job's folder for the next start of Slicer, or remove it; a job goes on without it."""
    if job is None:
        return
    with suppress(OSError):
        if state is None:
            (job / STATE).unlink(missing_ok=True)
        else:
            (job / STATE).write_text(json.dumps(state), encoding="utf-8")


def poll_until_end(poll: Callable[[float], bool], pause: Callable[[], None], timeout_s: float | None) -> None:
    """Poll as long as something runs.

    Raises:
        TimeoutError: when it has not ended by then.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    while poll(0.1):
        if deadline is not None and time.monotonic() > deadline:
            raise TimeoutError(f"The worker has not ended within {timeout_s} s.")
        pause()


def earlier(before: float | None, now: float) -> float:
    """The earlier of two deadlines, the first of which may not be set."""
    return now if before is None else min(before, now)


def _is_whole(path: Path) -> bool:
    """Whether the file holds a JSON object."""
    try:
        return isinstance(json.loads(path.read_text(encoding="utf-8")), dict)
    except (OSError, ValueError):
        return False
