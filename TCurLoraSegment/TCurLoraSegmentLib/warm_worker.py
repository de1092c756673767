"""A process of the engine that stays: the second request does not pay for its start again."""

from __future__ import annotations

import itertools
import json
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from TCurLoraSegmentLib.engine import Engine
from TCurLoraSegmentLib.engine_process import EngineProcess, Event
from TCurLoraSegmentLib.errors import UserError
from TCurLoraSegmentLib.worker import (
    EXIT_CANCELLED,
    Outcome,
    Told,
    earlier,
    judge,
    not_started,
    poll_until_end,
    write_state,
)

IDLE_MINUTES = 10.0
"""How long the process stays without a request; it holds the memory of the models that it has open."""


class WarmWorker:
    """Does requests in `tcurlora serve`, one after the other, in a process that it starts when there is none.

    The process ends when nothing is asked of it for a while, with whoever holds this, and with the program. One that
    crashes ends the request that it was at; the next request gets another process. So does a request to another
    Python, or after the environment has changed.

    Args:
        idle_minutes: how long the process stays without a request.
    """

    def __init__(self, idle_minutes: float = IDLE_MINUTES) -> None:
        self._idle_minutes = idle_minutes
        self._process: EngineProcess | None = None
        self._origin: tuple[list[str], dict[str, str]] | None = None
        self._events: deque[Event] = deque()
        self._waiting: deque[WarmRequest] = deque()
        self._current: WarmRequest | None = None
        self._numbers = itertools.count(1)
        self._end_is_due = False
        self._polling = False

    @property
    def pid(self) -> int | None:
        """Number of the process; None while there is none."""
        return self._process.pid if self._process is not None and self._process.alive else None

    def request(
        self,
        engine: Engine,
        arguments: Sequence[str],
        *,
        job: Path | None = None,
        on_event: Callable[[Event], None] | None = None,
        on_finished: Callable[[Outcome], None] | None = None,
    ) -> WarmRequest:
        """Prepare a request, which is used like a `Worker`.

        Args:
            engine: how the process is started.
            arguments: command and options; paths are absolute.
            job: the job's folder, whose `result.json` must be there in the end.
            on_event: called with each event, in order.
            on_finished: called once, after the last event.
        """
        return WarmRequest(self, engine, arguments, job, on_event, on_finished)

    def end(self) -> None:
        """End the process, at once when it does nothing, else after the request that it is at."""
        if self._current is None:
            self._put_away()
        else:
            self._end_is_due = True

    def kill(self) -> None:
        """End the process and its children now, and all requests with it; polling them still reports their end."""
        for request in [*self._waiting, *([self._current] if self._current else [])]:
            request._ended_by_us = True
        if self._process is not None:
            self._process.end(wait=True)
        if self._current is None:
            self._put_away()

    def _start(self, request: WarmRequest) -> None:
        self._waiting.append(request)

    def _cancel(self, request: WarmRequest) -> None:
        if request is self._current and self._process is not None:
            self._process.write(json.dumps({"cancel": request.id}))
        else:
            request._ended_by_us = True

    def _kill(self, request: WarmRequest) -> None:
        request._ended_by_us = True
        if request is self._current and self._process is not None:
            self._process.end()

    def _poll(self, budget_s: float) -> None:
        if self._polling:  # a callback that opens a dialog lets the timer call again
            return
        self._polling = True
        try:
            drained = self._deliver(time.monotonic() + budget_s)
            if self._process is not None:
                request = self._current
                if request is not None and request._kill_at is not None and time.monotonic() > request._kill_at:
                    self._kill(request)
                if drained and self._process.has_ended():
                    self._settle()
            for request in [request for request in self._waiting if request._ended_by_us]:
                self._waiting.remove(request)
                request._finish(judge(EXIT_CANCELLED, None, None, job=request.job, ended_by_us=True))
            self._send_next()
        finally:
            self._polling = False

    def _pause(self) -> None:
        if self._process is not None:
            self._process.wait(0.02)

    def _deliver(self, deadline: float) -> bool:
        """Hand over events until none is left (True) or the time is over (False)."""
        while self._process is not None and (self._events or self._process.take(self._events)):
            event = self._events.popleft()
            request = self._current
            # Anything else belongs to nobody: that the process is ready, or what it says of a request that is over.
            if request is not None and _is_of(request.id, event):
                if event["event"] == "end":
                    self._end_of(request, event.get("exit_code"))
                else:
                    request._hear(event)
            if time.monotonic() > deadline:
                return False
        return True

    def _end_of(self, request: WarmRequest, exit_code: object) -> None:
        self._current = None
        if self._end_is_due:
            self._put_away()
        code = exit_code if isinstance(exit_code, int) else 1
        asked = request._ended_by_us or request._kill_at is not None
        request._finish(judge(code, request._told.result, request._told.error, job=request.job, ended_by_us=asked))

    def _settle(self) -> None:
        """The process has ended: say so to the request that it was at, or ask another process."""
        assert self._process is not None
        request, code = self._current, self._process.exit_code
        words = self._process.last_words(since=request._log_start) if request is not None else ""
        self._current = None
        self._put_away()
        if request is None:
            return
        asked = request._ended_by_us or request._kill_at is not None
        if code == 0 and not request._heard and not asked and request._again:
            # It had nothing to do for so long that it ended, and was not aware of the request any more.
            request._again = False
            self._waiting.appendleft(request)
            return
        # Without its end a request is not done, whatever it has said before.
        request._finish(judge(code, None, request._told.error, job=request.job, ended_by_us=asked, words=words))

    def _send_next(self) -> None:
        if self._current is not None or not self._waiting:
            return
        request = self._waiting[0]
        if self._process is not None and request._origin != self._origin:
            self._put_away()
        if self._process is None:
            try:
                self._process = EngineProcess(*request._origin)
            except UserError as error:
                self._waiting.popleft()
                request._finish(not_started(error))
                return
            self._origin = request._origin
        elif not self._process.alive:
            return  # until all that it said has been read
        self._waiting.popleft()
        request.id = str(next(self._numbers))
        request._log_start = self._process.log_size()
        self._current = request
        write_state(request.job, self._process.state)
        self._process.write(
            json.dumps({"id": request.id, "command": request.arguments[0], "arguments": request.arguments[1:]})
        )

    def _put_away(self) -> None:
        """End the process, which does nothing any more, if it has not ended yet."""
        process, self._process = self._process, None
        self._end_is_due = False
        self._events.clear()
        if process is not None:
            process.end(wait=True)
            process.close()


class WarmRequest:
    """One request to a warm worker; made by `WarmWorker.request` and used like a `Worker`."""

    def __init__(
        self,
        warm: WarmWorker,
        engine: Engine,
        arguments: Sequence[str],
        job: Path | None,
        on_event: Callable[[Event], None] | None,
        on_finished: Callable[[Outcome], None] | None,
    ) -> None:
        self.arguments = list(arguments)
        self.job = job
        self.on_event = on_event
        self.on_finished = on_finished
        self.outcome: Outcome | None = None
        self.id = ""
        self._warm = warm
        command = engine.command("serve", "--idle-minutes", f"{warm._idle_minutes:g}", attached=False)
        self._origin = (command, engine.environment())
        self._started = False
        self._told = Told()
        self._heard = False
        self._again = True
        self._log_start = 0
        self._kill_at: float | None = None
        self._ended_by_us = False

    @property
    def running(self) -> bool:
        """Whether it was started and its end was not handed over yet."""
        return self._started and self.outcome is None

    def start(self) -> None:
        """Ask for it; `poll` sends it when the process is free, and starts the process where there is none."""
        if self._started:
            raise RuntimeError("A request is asked once.")
        self._started = True
        self._warm._start(self)

    def poll(self, budget_s: float = 0.02) -> bool:
        """Hand over the events that have come and, when all are handed over, the end.

        Args:
            budget_s: how long to hand over events; the rest waits for the next call.

        Returns:
            Whether it is still running.
        """
        if self.running:
            self._warm._poll(budget_s)
        return self.running

    def wait(self, timeout_s: float | None = None) -> Outcome:
        """Poll until the end; for scripts and tests.

        Raises:
            TimeoutError: when it has not ended by then; it keeps running.
            RuntimeError: when it was not started.
        """
        poll_until_end(self.poll, self._warm._pause, timeout_s)
        if self.outcome is None:
            raise RuntimeError("The request was not started.")
        return self.outcome

    def cancel(self, grace_s: float = 15.0) -> None:
        """Ask the process to end this request; `poll` ends the process and its children when it has not in time.

        Args:
            grace_s: how long it may take.
        """
        if self.running:
            self._kill_at = earlier(self._kill_at, time.monotonic() + grace_s)
            self._warm._cancel(self)

    def kill(self) -> None:
        """End the process that is at this request, and its children, now; `poll` and `wait` still report the end."""
        if self.running:
            self._warm._kill(self)

    def _hear(self, event: Event) -> None:
        self._heard = True
        self._told.hear(event)
        if self.on_event is not None:
            self.on_event(event)

    def _finish(self, outcome: Outcome) -> None:
        self.outcome = outcome
        write_state(self.job, {"ended": "cancelled"} if outcome.cancelled else None)
        if self.on_finished is not None:
            self.on_finished(outcome)


def _is_of(request_id: str, event: Event) -> bool:
    """Whether an event is of the request under way; the end of one that was not understood has null as its id."""
    of = event.get("id", "")
    return bool(of == request_id) or (of is None and event["event"] in ("error", "end"))
