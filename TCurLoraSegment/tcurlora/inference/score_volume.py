"""Weighted sums of the scores of all classes over a scan: in memory, or on disk where they would not fit there."""

from __future__ import annotations

import math
import mmap
import os
import shutil
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tcurlora.errors import MemoryExhausted

Place = tuple[slice, slice, slice]

IN_MEMORY_BYTES = 2 * 2**30
"""Scores of more than this go to disk; 117 classes on a whole body are tens of gigabytes."""

TOUCHED_BYTES = 256 * 2**20
"""So much of a file is written to before the system may take it out of memory."""

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
            self._file = _SumsOnDisk((classes, *shape))
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
        """Add the scores of a window.

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
            mean = self._file.read(index, self._part)
            return np.divide(mean, self._weights[self._part].numpy(), out=mean)
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

    The system keeps in memory what it has room for; the process lets go of its pages again and again.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape
        self._touched = 0
        size = 4 * math.prod(shape)
        folder = scratch_folder()
        free = shutil.disk_usage(folder).free
        if free < size + SPARE_DISK:
            raise _no_room(size, free, folder)
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by close
        try:
            if hasattr(os, "posix_fallocate"):
                # Writing to a mapped file for which the disk turns out to be full would end the process.
                os.posix_fallocate(self._file.fileno(), 0, size)
            else:
                self._file.truncate(size)
            self._map = mmap.mmap(self._file.fileno(), size)
        except OSError as error:
            self._file.close()
            raise _no_room(size, free, folder) from error

    def add(self, place: Place, scores: Tensor, weights: Tensor) -> None:
        for index, of_class in enumerate(scores):
            sums = torch.from_numpy(self._view()[index])[place]
            sums.addcmul_(of_class, weights)
            del sums
            self._let_go(place)

    def read(self, index: int, part: tuple[slice, ...]) -> np.ndarray:
        result: np.ndarray = self._view()[index][part].copy()
        self._let_go(part)
        return result

    def close(self) -> None:
        self._map.close()
        self._file.close()

    def _view(self) -> np.ndarray:
        return np.frombuffer(self._map, np.float32).reshape(self._shape)

    def _let_go(self, place: tuple[slice, ...]) -> None:
        """Give pages back to the system after some have been touched; what is in them stays."""
        x, y, _ = (part.stop - part.start for part in place)
        self._touched += 4 * x * y * self._shape[-1]  # a page of memory is several lines along the last axis
        if self._touched > TOUCHED_BYTES:
            self._touched = 0
            self._map.close()
            self._map = mmap.mmap(self._file.fileno(), 4 * math.prod(self._shape))


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
