"""Keeps background work going: polls it from Qt's event loop, so that the panel never waits."""

from __future__ import annotations

from typing import Protocol

import qt

INTERVAL_MS = 50


class Work(Protocol):
    """Something that runs in a process of its own."""

    def start(self) -> None:
        """Start it."""

    def poll(self) -> bool:
        """Hand over what has arrived; tells whether it still runs."""


class Pump:
    """Polls every piece of work until it has ended; rests while there is none."""

    def __init__(self) -> None:
        self._work: list[Work] = []
        self._timer = qt.QTimer()
        self._timer.setInterval(INTERVAL_MS)
        self._timer.connect("timeout()", self._turn)

    def add(self, work: Work) -> None:
        """Poll this until it has ended."""
        self._work.append(work)
        self._timer.start()

    def stop(self) -> None:
        """Poll nothing any more."""
        self._timer.stop()
        self._work.clear()

    def _turn(self) -> None:
        for work in list(self._work):
            if work in self._work and not work.poll():
                self._work.remove(work)
        if not self._work:
            self._timer.stop()
