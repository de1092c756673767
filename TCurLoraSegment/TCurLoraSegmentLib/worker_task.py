"""What adapting and segmenting share: a worker does them while Slicer stays usable."""

from __future__ import annotations

from typing import Generic, TypeVar

from TCurLoraSegmentLib.warm_worker import WarmRequest
from TCurLoraSegmentLib.worker import Worker

End = TypeVar("End")


class WorkerTask(Generic[End]):
    """A task in another process; `poll` must be called until `running` is false.

    Attributes:
        finished: how it ended; None until then.
    """

    finished: End | None = None
    _worker: Worker | WarmRequest

    @property
    def running(self) -> bool:
        """Whether the worker runs, or its end is still to be told."""
        return self._worker.running

    def start(self) -> None:
        """Start the worker."""
        self._worker.start()

    def poll(self) -> bool:
        """Hand over events and the end; tells whether it still runs."""
        return self._worker.poll()

    def wait(self, timeout_s: float | None = None) -> End:
        """Wait for the end; for scripts."""
        self._worker.wait(timeout_s)
        assert self.finished is not None
        return self.finished

    def cancel(self) -> None:
        """Ask the worker to end; it is ended by force when it does not."""
        self._worker.cancel()

    def kill(self) -> None:
        """End the worker at once."""
        self._worker.kill()
