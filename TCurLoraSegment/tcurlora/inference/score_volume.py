"""Weighted sums of the scores of all classes over a scan: in memory, or on disk where they would not fit there."""

from __future__ import annotations

import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tcurlora.errors import MemoryExhausted

Place = tuple[slice, slice, slice]

IN_MEMORY_BYTES = 3 * 2**30
"""Scores of more than this go to disk; 117 classes on a whole body are tens of gigabytes."""

SPARE_DISK = 2**30
"""Left free on the disk for others."""

CPU = torch.device("cpu")


class ScoreVolume:
    """Scores of all classes on the grid of a prepared scan, added up window by window and read class by class.

    A context manager: a file on disk is gone afterwards, and also when the process is ended.

    Args:
        classes: how many.
        shape: of the grid.
        device: where they are added up, while they are in memory.
        in_memory: bytes up to which they are kept in memory.

    Raises:
        MemoryExhausted: when they fit neither in memory nor on the disk.
    """

    def __init__(
        self, classes: int, shape: tuple[int, ...], device: torch.device = CPU, in_memory: int = IN_MEMORY_BYTES
    ) -> None:
        self._classes, self._grid = classes, shape
        self._part: tuple[slice, ...] = tuple(slice(0, size) for size in shape)
        self._file: _SumsOnDisk | None = None
        if score_bytes(classes, shape) <= in_memory:
            self.device = device
            self._sums = torch.zeros((classes, *shape), device=device)
        else:
            self.device = CPU
            self._file = _SumsOnDisk(classes, shape)
        self._weights = torch.zeros(shape, device=self.device)
        self._averaged = False

    def __enter__(self) -> ScoreVolume:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    @property
    def shape(self) -> tuple[int, ...]:
        """(classes, *axes) of the part that is read."""
        return (self._classes, *(part.stop - part.start for part in self._part))

    def add(self, place: Place, scores: Tensor, weights: Tensor) -> None:
        """Add the scores of a window; windows come in their order, the last axis fastest.

        Args:
            place: of the window in the grid.
            scores: (classes, *window).
            weights: (*window), of its voxels.
        """
        if self._averaged:
            raise RuntimeError("the scores have been averaged already")
        scores = scores.to(self.device)
        self._weights[place] += weights
        if self._file is None:
            self._sums[(slice(None), *place)].addcmul_(scores, weights)
        else:
            self._file.add(place, scores, weights)

    def read_part(self, part: Place) -> None:
        """Read only a part of the grid from now on."""
        self._part = part

    def __getitem__(self, index: int, /) -> Any:
        """Return the mean scores of a class: (*axes) float32."""
        if self._file is not None:
            sums = self._file.read(index, self._part)
            return np.divide(sums, self._weights[self._part].numpy(), out=sums)
        if not self._averaged:
            self._averaged = True
            with torch.inference_mode():
                self._sums /= self._weights
        return self._sums[index][self._part].cpu().numpy()

    def to_array(self) -> np.ndarray:
        """Return the mean scores of all classes: (classes, *axes) float32."""
        if self._file is None:
            self[0]
            array: np.ndarray = self._sums[(slice(None), *self._part)].cpu().numpy()
            return array
        return np.stack([self[index] for index in range(self._classes)])


class _SumsOnDisk:
    """An array of zeros in a file without a name, that is added to.

    Windows come in their order, the last axis fastest. In memory is a bar of them: those that begin at the same place
    on the first two axes. What no further window of its row reaches is written; where the next row overlaps it, it is
    read again, so that each voxel is added up in just the order in which it would be in memory.
    """

    def __init__(self, classes: int, shape: tuple[int, ...]) -> None:
        self._shape = (classes, *shape)
        self._size = 4 * math.prod(self._shape)
        self._bar: np.ndarray | None = None
        self._start = (0, 0)
        self._written = 0  # planes along the first axis that are not zero
        self._folder = scratch_folder()
        free = shutil.disk_usage(self._folder).free
        if free < self._size + SPARE_DISK:
            raise _no_room(self._size, free, self._folder)
        self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115 - closed by close
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self._file.fileno(), 0, self._size)
            else:
                self._file.truncate(self._size)
        except OSError as error:
            self._file.close()
            raise _no_room(self._size, free, self._folder) from error

    def add(self, place: Place, scores: Tensor, weights: Tensor) -> None:
        first, second, third = place
        self._go_to(first, second)
        torch.from_numpy(self._bar)[..., third].addcmul_(scores, weights)

    def read(self, index: int, part: tuple[slice, ...]) -> np.ndarray:
        if self._bar is not None:
            self._write(slice(0, self._bar.shape[2]))
            self._bar = None
        sums = np.empty(self._shape[1:], np.float32)
        self._transfer(self._file.readinto, index * sums.nbytes, sums)
        return sums[part]

    def close(self) -> None:
        self._bar = None
        self._file.close()

    def _go_to(self, first: slice, second: slice) -> None:
        """Have the sums in memory of all windows that begin there."""
        start = (first.start, second.start)
        width = second.stop - second.start
        if self._bar is None:
            self._bar = np.zeros((self._shape[0], first.stop - first.start, width, self._shape[3]), np.float32)
        elif start[0] != self._start[0]:
            self._write(slice(0, width))
            self._written = self._start[0] + self._bar.shape[1]
            self._start = start
            self._read(slice(0, width))
        elif start != self._start:
            done = start[1] - self._start[1]
            self._write(slice(0, min(done, width)))
            kept = max(0, width - done)
            for of_class in self._bar:
                of_class[:, :kept] = of_class[:, width - kept :].copy()
            self._start = start
            self._read(slice(kept, width))

    def _write(self, lines: slice) -> None:
        for place, values in self._planes(lines):
            self._transfer(self._file.write, place, values)

    def _read(self, lines: slice) -> None:
        """Read what earlier rows have written; there is nothing else."""
        for place, values in self._planes(lines):
            if place // (4 * self._shape[2] * self._shape[3]) % self._shape[1] < self._written:
                self._transfer(self._file.readinto, place, values)
            else:
                values[:] = 0

    def _planes(self, lines: slice) -> Iterator[tuple[int, np.ndarray]]:
        """Yield parts of the bar that are whole both in memory and in the file, and where they are in the file."""
        assert self._bar is not None
        _, planes, width, length = self._shape
        for index, of_class in enumerate(self._bar):
            for number, plane in enumerate(of_class, start=self._start[0]):
                line = (index * planes + number) * width + self._start[1] + lines.start
                yield 4 * line * length, plane[lines]

    def _transfer(self, move: Callable[[memoryview], int | None], place: int, values: np.ndarray) -> None:
        rest = values.data.cast("B")
        self._file.seek(place)
        try:
            while rest:
                rest = rest[move(rest) :]
        except OSError as error:
            raise _no_room(self._size, shutil.disk_usage(self._folder).free, self._folder) from error


def bar_bytes(classes: int, shape: Sequence[int], window: Sequence[int]) -> int:
    """Bytes that are in memory of scores that are on disk."""
    return score_bytes(classes, (window[0], window[1], shape[2]))


def score_bytes(classes: int, shape: tuple[int, ...]) -> int:
    """Bytes of the scores of all classes on a grid."""
    return 4 * classes * math.prod(shape)


def scratch_folder() -> Path:
    """Return the folder for large temporary files."""
    # On many Linux systems the usual folder is in memory, which is what such a file is to save; this one never is.
    persistent = Path("/var/tmp")
    if sys.platform == "linux" and "TMPDIR" not in os.environ and os.access(persistent, os.W_OK):
        return persistent
    return Path(tempfile.gettempdir())


def _no_room(size: int, free: int, folder: Path) -> MemoryExhausted:
    return MemoryExhausted(
        f"The scores of all classes take {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free in {folder}.",
        "Make room there, crop the scan, or set the environment variable TMPDIR to a folder on a larger disk.",
        "no_disk_space",
    )
