"""What a running job tells: events, as JSON lines for programs and as a progress bar for people."""

from __future__ import annotations

import errno
import json
import sys
import time
from pathlib import Path
from typing import Any, Protocol, TextIO

from tcurlora.runtime.atomic_files import naming


class EventSink(Protocol):
    """Receives events; every sink understands every kind."""

    def emit(self, kind: str, **fields: Any) -> None:
        """Handle one event.

        Args:
            kind: `stage`, `progress`, `metric`, `warning`, `error` or `result`.
            fields: JSON-serialisable; `progress` has step, total, and where known eta_s, loss, and the part of the
                next step that is done, 0 to 1; `metric` has name, value and, where
                it is a point of a curve, step; both have training (0 the final one, else the fold) while training;
                `error` has code, message, remedy.
        """


class NullEvents:
    """Drops all events; for use as a library."""

    def emit(self, kind: str, **fields: Any) -> None:
        return None


class JsonEvents:
    """Writes each event as one line of UTF-8 JSON to a stream, stdout when none is given."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream

    def emit(self, kind: str, **fields: Any) -> None:
        line = json.dumps({"event": kind, **fields}, ensure_ascii=False)
        try:
            # In one piece: a process that is ended between a line and its end would run into the next one's line.
            print(f"{line}\n", end="", file=self._stream, flush=True)
        except OSError as error:
            if error.errno == errno.EINVAL:  # how Windows says that the other end of a pipe is gone
                raise BrokenPipeError(*error.args) from error
            raise


class FileEvents:
    """Appends each event, with the time, to a file that another process may follow."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def emit(self, kind: str, **fields: Any) -> None:
        line = json.dumps({"event": kind, "time": time.time(), **fields}, ensure_ascii=False) + "\n"
        with naming(self.path), self.path.open("a", encoding="utf-8") as stream:
            stream.write(line)


class Tee:
    """Hands each event to several sinks."""

    def __init__(self, *sinks: EventSink) -> None:
        self.sinks = sinks

    def emit(self, kind: str, **fields: Any) -> None:
        for sink in self.sinks:
            sink.emit(kind, **fields)


class Labelled:
    """Adds the same fields to each progress and metric, such as the number of the training that they belong to."""

    def __init__(self, sink: EventSink, **fields: Any) -> None:
        self.sink = sink
        self.fields = fields

    def emit(self, kind: str, **fields: Any) -> None:
        self.sink.emit(kind, **fields, **(self.fields if kind in ("progress", "metric") else {}))


class ConsoleEvents:
    """Shows stages as lines and progress as a bar with the time left, on stderr, so that stdout stays for results."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._bar_open = False
        self._last_percent = -10

    def emit(self, kind: str, **fields: Any) -> None:
        if kind == "progress":
            self._progress(**fields)
        elif kind == "stage":
            self._line(str(fields["title"]))
            self._last_percent = -10
        elif kind == "warning":
            self._line(f"{'Note' if fields.get('severity') == 'note' else 'Warning'}: {fields['message']}")
        elif kind == "metric" and "step" not in fields:  # a curve is for a plot; the bar shows its last value
            name = str(fields["name"]).replace("_", " ")
            self._line(f"  {name}: {fields['value']:.4f}")

    def _progress(
        self,
        step: int,
        total: int,
        eta_s: float | None = None,
        loss: float | None = None,
        part: float = 0.0,
        **_: Any,
    ) -> None:
        percent = int(100 * (step + part)) // max(total, 1)
        words = f"{percent:3d} %  {step}/{total}"
        words += "" if loss is None else f"  loss {loss:.3f}"
        words += "" if eta_s is None else f"  {duration(eta_s)} left"
        if self._live:
            filled = "#" * (percent * 30 // 100)
            print(f"\r  [{filled:<30}] {words}\x1b[K", end="", file=sys.stderr, flush=True)
            self._bar_open = step < total
            if not self._bar_open:
                print(file=sys.stderr)
        elif percent >= self._last_percent + 10 or step == total:
            self._last_percent = percent
            print(f"  {words}", file=sys.stderr, flush=True)

    def _line(self, text: str) -> None:
        if self._bar_open:
            print(file=sys.stderr)
            self._bar_open = False
        print(text, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Say a duration as `45 s` or `3 min 20 s`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
