"""A process of the engine: started in a group of its own, read by a thread, ended with all that it has started."""

from __future__ import annotations

import codecs
import json
import os
import subprocess
import tempfile
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any

from TCurLoraSegmentLib.errors import UserError
from TCurLoraSegmentLib.processes import end_tree, own_group, start_of
from TCurLoraSegmentLib.translation import tr as _

Event = Mapping[str, Any]

_WAITING_EVENTS = 5000
_LONGEST_LINE = 2**24
_STRAY_BYTES = 2**20
_GROUP_GRACE_S = 1.0
_END_S = 5.0


class EngineProcess:
    """A process, and the threads that read what it says and write what it is told, so that it holds nobody up.

    What it writes to stdout is events, one JSON object on each line; anything else goes to the log, as stderr does.
    A reader that falls behind gets the last progress only, and every other event.

    Args:
        command: program and arguments.
        environment: the whole environment.
        log: file for what the process says besides; a temporary one by default.
        answers: whether JSON that is no event is wanted too, under the key `answer`.

    Attributes:
        state: number and start of the process, by which it is recognised later.

    Raises:
        UserError: when it cannot be started.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], log: Path | None = None, answers: bool = False
    ) -> None:
        try:
            # Without a log of its own, what the process complains about is still wanted for the sentence at the end.
            # Without a buffer, because the process writes to the same file.
            self._log: IO[bytes] = (
                log.open("a+b", buffering=0) if log else tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
            )
        except OSError as error:
            raise UserError(
                _("The log '{path}' could not be written ({reason}).").format(
                    path=log or tempfile.gettempdir(), reason=error.strerror or error
                ),
                _("Check the free space and the permissions of its folder."),
            ) from error
        try:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env=dict(environment),
                bufsize=0,
                **own_group(),
            )
        except (OSError, ValueError) as error:
            self._log.close()
            program = Path(command[0]).name if command else ""
            raise UserError(
                _("'{program}' could not be started ({reason}).").format(
                    program=program, reason=getattr(error, "strerror", None) or error
                ),
                _("Choose another Python under Environment, or install Slicer again."),
            ) from error
        self.state = {"pid": self._process.pid, "started": start_of(self._process.pid)}
        assert self._process.stdin is not None and self._process.stdout is not None
        self._writer = _Writer(self._process.stdin)
        # Python keeps a process that is forgotten, and with it the pipe whose end would tell it to end.
        weakref.finalize(self, self._writer.close)
        self._reader = _Reader(self._process.stdout, self._log, answers)
        self._gone_since: float | None = None

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it has not ended, though what it said may still be waiting."""
        return self._process.poll() is None

    @property
    def exit_code(self) -> int:
        """How it ended; negative when a signal ended it."""
        code = self._process.poll()
        assert code is not None, "the process has not ended"
        return code

    def take(self, events: deque[Event]) -> bool:
        """Move all events that have come to the end of `events`; tells whether there were any."""
        return self._reader.take(events)

    def wait(self, timeout_s: float) -> None:
        """Wait until there is something to take, or the time is over."""
        self._reader.wait(timeout_s)

    def write(self, line: str) -> None:
        """Write a line to its stdin, some time; one that is gone, or does not listen, does no harm."""
        self._writer.write(f"{line}\n".encode())

    def has_ended(self) -> bool:
        """Whether it is gone and all that it said has been taken."""
        if self.alive:
            return False
        if self._gone_since is None:
            self._gone_since = time.monotonic()
            end_tree(self._process)  # children that it left behind, which may hold a GPU and this pipe
        # A child that escaped may keep the pipe open for ever, so there is an end to waiting for it.
        return self._reader.at_end() or (
            self._reader.is_empty() and time.monotonic() > self._gone_since + _GROUP_GRACE_S
        )

    def end(self, wait: bool = False) -> None:
        """End it and its children at once.

        Args:
            wait: whether to come back only when it is gone.
        """
        end_tree(self._process)
        if wait:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_END_S)

    def log_size(self) -> int:
        """How much is in the log by now."""
        with suppress(OSError, ValueError):
            return os.fstat(self._log.fileno()).st_size  # not by moving in it, which would move the process too
        return 0

    def last_words(self, since: int = 0) -> str:
        """The last line of the log that says something; to be asked for when the process has ended.

        Args:
            since: size of the log from which on lines count.
        """
        with suppress(OSError, ValueError):
            self._log.seek(max(since, self.log_size() - 8192))
            lines = [line.strip() for line in self._log.read().decode("utf-8", "replace").splitlines()]
            return next((line[:300] for line in reversed(lines) if line), "")
        return ""

    def close(self) -> None:
        """Let go of what belongs to a process that has ended."""
        self._writer.close()
        assert self._process.stdout is not None
        if self._reader.at_end():
            with suppress(OSError):
                self._process.stdout.close()
        self._log.close()


class _Writer:
    """A thread that writes to a stream, begun with the first line, because most processes are told nothing."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._lines: SimpleQueue[bytes | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def write(self, line: bytes) -> None:
        """Write this after what was to be written before."""
        self._lines.put(line)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="worker writer", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Close the stream when all is written."""
        if self._thread is None:
            with suppress(OSError):
                self._stream.close()
        else:
            self._lines.put(None)

    def _run(self) -> None:
        with suppress(OSError):
            while (line := self._lines.get()) is not None:
                while line:
                    line = line[self._stream.write(line) :]
        with suppress(OSError):
            self._stream.close()


class _Reader:
    """A thread that turns a stream of bytes into events, and holds the stream up when nobody takes them.

    It knows nothing of the process, so that one that is forgotten is let go of.
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
