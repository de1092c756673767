"""Short questions to the engine, such as which adapters there are: one process, one JSON value as the answer."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from TCurLoraSegmentLib.engine import Engine
from TCurLoraSegmentLib.engine_process import Event
from TCurLoraSegmentLib.errors import UserError
from TCurLoraSegmentLib.translation import tr as _
from TCurLoraSegmentLib.worker import Outcome, Worker

TIMEOUT_S = 300


class Query:
    """A command of the engine that answers with one JSON value, run without blocking.

    Args:
        engine: how the engine is started.
        arguments: command and options.
        on_answer: gets the answer.
        on_error: gets what went wrong instead; nobody is told of a query that was cancelled.
        on_event: gets every event on the way.
        on_end: called before the answer or the error, and when the query is cancelled, to tidy up.
        timeout_s: how long to wait for the answer; None waits as long as it takes.
    """

    def __init__(
        self,
        engine: Engine,
        *arguments: str,
        on_answer: Callable[[Any], None],
        on_error: Callable[[UserError], None],
        on_event: Callable[[Event], None] | None = None,
        on_end: Callable[[], None] | None = None,
        timeout_s: float | None = TIMEOUT_S,
    ) -> None:
        self._on_answer = on_answer
        self._on_error = on_error
        self._on_end = on_end
        self._timeout_s = math.inf if timeout_s is None else timeout_s
        self._deadline = math.inf
        self._is_late = False
        self._cancelled = False
        command = engine.command(*arguments)
        self._worker = Worker(command, engine.environment(), on_event=on_event, on_finished=self._finish)

    @property
    def running(self) -> bool:
        """Whether the answer is still to be handed over."""
        return self._worker.running

    def start(self) -> None:
        """Start the process."""
        self._deadline = time.monotonic() + self._timeout_s
        self._worker.start()

    def poll(self) -> bool:
        """Hand over the answer if it is there; tells whether it is still awaited."""
        if time.monotonic() > self._deadline and not self._is_late:
            self._is_late = True
            self._worker.kill()
        return self._worker.poll()

    def cancel(self) -> None:
        """End the process."""
        self._cancelled = True
        self._worker.kill()
        self._tidy()

    def _tidy(self) -> None:
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            on_end()

    def _finish(self, outcome: Outcome) -> None:
        if self._cancelled:
            return
        self._tidy()
        try:
            if self._is_late and not outcome.ok:
                raise _no_answer()
            answer = _answer_of(outcome)
        except UserError as error:
            self._on_error(error)
        else:
            self._on_answer(answer)


def ask(engine: Engine, *arguments: str) -> Any:
    """Ask the engine and wait for the answer; for scripts.

    Raises:
        UserError: what the engine says is wrong, or that it did not answer.
    """
    worker = Worker(engine.command(*arguments), engine.environment())
    worker.start()
    try:
        return _answer_of(worker.wait(TIMEOUT_S))
    except TimeoutError as error:
        worker.kill()
        raise _no_answer() from error


def _no_answer() -> UserError:
    return UserError(_("The engine did not answer."), _("Try again, or see Environment in the panel."))


def _answer_of(outcome: Outcome) -> Any:
    # A command that finds problems answers all the same, with an exit code that says so.
    if outcome.error is not None:
        raise UserError(outcome.error["message"], outcome.error["remedy"], outcome.error.get("code", ""))
    if outcome.result is None:
        raise UserError(outcome.sentence() or _("The engine gave no answer."), _("See Environment in the panel."))
    return outcome.result
