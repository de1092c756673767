"""A worker that stays warm: requests as JSON lines on stdin, their events as JSON lines on stdout.

    {"id": "7", "command": "segment", "arguments": ["--model", "a", "--input", "b.nrrd", "--out", "c.seg.nrrd"]}
    {"cancel": "7"}

`arguments` are those of the command line; paths are best absolute. The worker says `ready` once. Every event of a
request carries its id, and the last one is `end` with the exit code that the command line would have had. What a
command would have printed is a `result` event with `content`. Requests are done one at a time, in their order. The
worker ends when stdin does, when it is terminated, or when nothing was asked for a while: a program whose request gets
no `end` asks the next worker.
"""

from __future__ import annotations

import io
import json
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

from tcurlora import __version__
from tcurlora.errors import Cancelled, InputError, MemoryExhausted, TCurLoraError, as_user_error
from tcurlora.inference.segmenter_cache import SegmenterCache, release_device_memory
from tcurlora.runtime.events import EventSink, JsonEvents
from tcurlora.runtime.parent_process import wait_for_input
from tcurlora_contract.warm_worker import COMMANDS, END, READY

RunArguments: TypeAlias = Callable[[Sequence[str], EventSink, SegmenterCache], int]
LONGEST_LINE = 2**20
PATIENCE_S = 15.0
"""How long work may go on after stdin has ended, where it does not notice, such as in a driver that hangs."""


@dataclass(frozen=True)
class Request:
    """What is asked for; `problem` where the line could not be understood."""

    id: str | None
    command: str = ""
    arguments: tuple[str, ...] = ()
    problem: TCurLoraError | None = None


def serve(idle_minutes: float, run: RunArguments) -> None:
    """Do what is asked for on stdin until it ends, or nothing was asked for `idle_minutes`.

    Args:
        idle_minutes: how long to wait for a request.
        run: does what the arguments of the command line ask for, with models that may be open already.
    """
    from tcurlora.inference import scans as segmentation  # noqa: F401  loaded now rather than with the first request

    signal.signal(signal.SIGTERM, _terminate)
    answers = JsonEvents(_take_stdout())
    inbox = _Inbox()
    segmenters = SegmenterCache()
    answers.emit(READY, version=__version__)
    try:
        while request := inbox.next(60 * idle_minutes):
            events = _Answer(answers, request.id, inbox)
            try:
                code = _do(request, events, segmenters, run)
            except KeyboardInterrupt:
                events.fail(Cancelled())
                events.emit(END, exit_code=Cancelled.exit_code)
                raise
            inbox.forget(request.id)
            events.emit(END, exit_code=code)
            release_device_memory()
    finally:
        inbox.done.set()


def _do(request: Request, events: _Answer, segmenters: SegmenterCache, run: RunArguments) -> int:
    """Do one request; whatever goes wrong becomes an event.

    Returns:
        The exit code.
    """
    # What a command prints is its result, which must not get between the events.
    printed = io.StringIO()
    try:
        with redirect_stdout(printed):
            try:
                events.check()
                if request.problem:
                    raise request.problem
                code = run([request.command, *request.arguments], events, segmenters)
            except SystemExit as end:  # --help
                code = int(end.code or 0)
        if printed.getvalue():
            events.emit("result", content=_content(printed.getvalue()))
        return code
    except BrokenPipeError:
        raise
    except TCurLoraError as problem:
        error = problem
    except Exception as problem:
        error = as_user_error(problem)
        if error.code == "internal":
            traceback.print_exc()
    if isinstance(error, MemoryExhausted):
        segmenters.clear()
    events.fail(error)
    return error.exit_code


def _content(printed: str) -> Any:
    try:
        return json.loads(printed)
    except ValueError:
        return printed


class _Answer:
    """The events of one request; where it has been cancelled, the next event ends it."""

    def __init__(self, sink: EventSink, request_id: str | None, inbox: _Inbox) -> None:
        self._sink = sink
        self._id = request_id
        self._inbox = inbox

    def emit(self, kind: str, **fields: Any) -> None:
        if kind in ("stage", "progress"):
            self.check()
        self._sink.emit(kind, id=self._id, **fields)

    def check(self) -> None:
        """Raise Cancelled where the request has been cancelled."""
        if self._inbox.is_cancelled(self._id):
            raise Cancelled()

    def fail(self, error: TCurLoraError) -> None:
        """Say what went wrong."""
        self.emit("error", code=error.code, message=error.message, remedy=error.remedy)
        print(f"{self._id}: {error}", file=sys.stderr)


class _Inbox:
    """Requests in their order, and what has been cancelled, read from stdin by a thread.

    Attributes:
        done: to be set when nothing is being done any more.
    """

    def __init__(self) -> None:
        self.done = threading.Event()
        self._requests: queue.Queue[Request | None] = queue.Queue()
        self._lock = threading.Lock()
        self._waiting: set[str] = set()
        self._cancelled: set[str] = set()
        self._closed = threading.Event()
        threading.Thread(target=self._read, name="inbox", daemon=True).start()

    def next(self, timeout_s: float) -> Request | None:
        """The next request; None when there will be none, or none came in time."""
        try:
            return self._requests.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def is_cancelled(self, request_id: str | None) -> bool:
        """Whether nobody waits for the request any more."""
        return self._closed.is_set() or request_id in self._cancelled

    def forget(self, request_id: str | None) -> None:
        """Note that a request has ended, so that its id may be used again."""
        with self._lock:
            self._waiting.discard(request_id or "")
            self._cancelled.discard(request_id or "")

    def _read(self) -> None:
        with suppress(OSError):  # a stdin that cannot be read is one that nobody holds
            for line in _lines():
                self._take(line)
        self._closed.set()
        self._requests.put(None)
        if not self.done.wait(PATIENCE_S):
            os._exit(Cancelled.exit_code)

    def _take(self, line: bytes) -> None:
        content = _parsed(line)
        with self._lock:
            if "cancel" in content:
                if content["cancel"] in self._waiting:
                    self._cancelled.add(content["cancel"])
                return
            request = _request(content, self._waiting)
            if request.id is not None and request.problem is None:
                self._waiting.add(request.id)
        self._requests.put(request)


def _request(content: dict[str, Any], waiting: set[str]) -> Request:
    def refused(message: str) -> Request:
        remedy = 'Ask with a line such as {"id": "7", "command": "segment", "arguments": []}.'
        return Request(request_id, problem=InputError(message, remedy, "bad_request"))

    request_id, command, arguments = content.get("id"), content.get("command"), content.get("arguments", [])
    if not isinstance(request_id, str) or not request_id:
        request_id = None
        return refused("A request is no JSON object with a text as its id.")
    if request_id in waiting:
        return refused(f"There is a request '{request_id}' already that has not ended.")
    if command not in COMMANDS:
        return refused(f"The command {command!r} is none of {', '.join(COMMANDS)}, which a worker does.")
    if not isinstance(arguments, list) or not all(isinstance(argument, str) for argument in arguments):
        return refused("The arguments of a request are no list of texts.")
    return Request(request_id, command, tuple(arguments))


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    cancel = content.get("cancel", "") if isinstance(content, dict) else None
    return content if isinstance(cancel, str) else {}


def _lines() -> Iterator[bytes]:
    """Lines of stdin that hold anything; one that is too long is cut, so that it is no request."""
    pending = b""
    while True:
        wait_for_input()
        # Not sys.stdin: a thread that waits in it holds a lock that Python needs when it ends.
        received = os.read(0, 65536)
        *lines, pending = (pending + received).split(b"\n")
        yield from (line for line in lines if line.strip())
        pending = pending[:LONGEST_LINE]
        if not received:
            return


def _take_stdout() -> io.TextIOWrapper:
    """Keep stdout for events alone: whatever a library prints goes to stderr."""
    stream = io.TextIOWrapper(os.fdopen(os.dup(1), "wb"), encoding="utf-8", errors="backslashreplace", newline="\n")
    sys.stdout.flush()
    os.dup2(2, 1)
    return stream


def _terminate(_number: int, _frame: Any) -> NoReturn:
    # Not Cancelled, which would end the request only.
    raise KeyboardInterrupt
