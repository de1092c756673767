"""The folders in which jobs live: made before the engine starts, found again after a crash, tidied away in time."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from TCurLoraSegmentLib.errors import UserError
from TCurLoraSegmentLib.processes import start_of
from TCurLoraSegmentLib.translation import tr as _
from TCurLoraSegmentLib.worker import RESULT, STATE

REQUEST = "job.json"
SCENE = "scene.json"
MINIMUM_FREE = 2**29
"""Bytes that must be free on the disk before scans are exported to it."""

_SECONDS_A_DAY = 86400


@dataclass(frozen=True)
class Job:
    """One run of the engine and all that belongs to it.

    Attributes:
        path: its folder.
        command: `adapt`, `segment`, ...; empty where the folder does not tell.
        created: when it was made, in seconds since 1970.
        name: what the user calls it.
    """

    path: Path
    command: str
    created: float
    name: str = ""

    @property
    def inputs(self) -> Path:
        """The folder for what is exported from the scene."""
        return self.path / "inputs"

    @property
    def results(self) -> Path:
        """The folder for what is brought back into the scene."""
        return self.path / "results"

    @property
    def log(self) -> Path:
        """What the engine's process says besides its events."""
        return self.path / "worker.log"

    @property
    def scene(self) -> Path:
        """What Slicer must know of the job after a restart."""
        return self.path / SCENE

    def context(self) -> dict[str, Any]:
        """What was written with `write_context`; empty when nothing was."""
        return dict(_read_object(self.scene).get("context") or {})

    def write_context(self, content: Mapping[str, Any]) -> None:
        """Keep what Slicer must know of the job after a restart; JSON types only.

        Under `arguments` belong those that the engine is started with.

        Raises:
            UserError: when it cannot be written.
        """
        _write_scene(self, content)

    def command_line(self) -> list[str] | None:
        """The engine's arguments that the context holds; None when it holds none."""
        arguments = self.context().get("arguments")
        return [str(argument) for argument in arguments] if isinstance(arguments, list) else None

    @property
    def finished(self) -> bool:
        """Whether the engine has written its result, which it does last of all."""
        return self.result() is not None

    def result(self) -> dict[str, Any] | None:
        """The engine's result; None while there is none."""
        return _read_object(self.path / RESULT) or None

    @property
    def running(self) -> bool:
        """Whether its process lives, be it of this Slicer or of another.

        The folder keeps number and start of the process. A number alone would not do: after a restart of the computer
        it belongs to some other program.
        """
        state = _read_object(self.path / STATE)
        pid, started = state.get("pid"), state.get("started")
        return isinstance(pid, int) and started is not None and start_of(pid) == started

    @property
    def cancelled(self) -> bool:
        """Whether it ended because the user wanted it to."""
        return _read_object(self.path / STATE).get("ended") == "cancelled"

    @property
    def resumable(self) -> bool:
        """Whether the engine has begun with it and not finished."""
        return self.command_line() is not None and (self.path / REQUEST).is_file() and not self.finished

    def forget_scans(self) -> None:
        """Remove what was exported and computed, and keep the log."""
        for folder in (self.inputs, self.results):
            shutil.rmtree(folder, ignore_errors=True)

    def delete(self) -> None:
        """Remove the folder; what cannot be removed now is removed by `tidy` later."""
        shutil.rmtree(self.path, ignore_errors=True)


def data_folder() -> Path:
    """The folder for this program's data, the same that the engine uses: `TCURLORA_HOME`, or the platform's place."""
    home = os.environ.get("TCURLORA_HOME")
    if home:
        return Path(home)
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return base / "TCurLoraSegment"


def jobs_folder() -> Path:
    """The folder that holds one folder for each job; it may not exist yet."""
    return data_folder() / "jobs"


def new_job(command: str, name: str) -> Job:
    """Make a folder for a new job, with a folder for its inputs in it.

    Args:
        command: `adapt`, `segment`, ...
        name: what the user calls it, with any characters.

    Raises:
        UserError: when it cannot be written, or the disk is almost full.
    """
    folder = jobs_folder()
    # The name in the path is for whoever looks into the folder. It is short and plain, because paths have limits.
    plain = re.sub(r"[^A-Za-z0-9]+", "-", name)[:30].strip("-")
    stem = "-".join(filter(None, (command, time.strftime("%Y%m%d-%H%M%S"), plain)))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        job = Job(_make_folder(folder, stem), command, time.time(), name)
        job.inputs.mkdir()
    except OSError as error:
        raise _cannot_write(folder, error) from error
    if free < MINIMUM_FREE:
        job.delete()
        raise UserError(
            _("The disk of '{folder}' is almost full ({free:.0f} MB are free).").format(
                folder=folder, free=free / 2**20
            ),
            _("Free some space, or set TCURLORA_HOME to a folder on another disk."),
        )
    try:
        _write_scene(job, {})
    except UserError:
        job.delete()
        raise
    return job


def unfinished_jobs() -> list[Job]:
    """Adaptations that were begun and neither finished nor are still running, the latest first.

    They can be resumed: the engine keeps what it needs for that in the folder. Whether a process still works on a
    job is told by `Job.running`. Those that the user cancelled are among them; see `Job.cancelled`.
    """
    jobs = [job for job in _jobs() if job.command == "adapt" and job.resumable and not job.running]
    return sorted(jobs, key=lambda job: job.created, reverse=True)


def tidy(keep_days: float = 14) -> None:
    """Remove the folders of jobs that are over: finished, cancelled, or ended in a way that cannot be resumed.

    A job that is running, or can be resumed after a crash, stays, however old it is.

    Args:
        keep_days: how long a folder is kept after the last change in it.
    """
    resumable = {job.path for job in unfinished_jobs() if not job.cancelled}
    for job in _jobs():
        old = time.time() - _last_change(job.path) > keep_days * _SECONDS_A_DAY
        if old and job.path not in resumable and not job.running:
            job.delete()


def _jobs() -> Iterator[Job]:
    for path in _entries(jobs_folder()):
        if path.is_dir() and not path.is_symlink():
            content = _read_object(path / SCENE)
            created = content.get("created")
            yield Job(
                path,
                str(content.get("command", "")),
                float(created) if isinstance(created, (int, float)) else _last_change(path),
                str(content.get("name", "")),
            )


def _entries(folder: Path) -> list[Path]:
    """What a folder holds, in order; nothing where it is gone, or somebody else's."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _last_change(path: Path) -> float:
    times = []
    for entry in (path, *_entries(path)):
        try:
            times.append(entry.stat().st_mtime)
        except OSError:
            continue  # gone meanwhile
    return max(times, default=time.time())


def _make_folder(folder: Path, stem: str) -> Path:
    for number in range(1, 1000):
        path = folder / (stem if number == 1 else f"{stem}-{number}")
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path
    raise OSError(_("too many folders named {name}").format(name=stem))


def _write_scene(job: Job, context: Mapping[str, Any]) -> None:
    content = {"command": job.command, "created": job.created, "name": job.name, "context": dict(context)}
    temporary = job.path / f".{SCENE}.tmp"
    try:
        temporary.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, job.scene)
    except OSError as error:
        raise _cannot_write(job.path, error) from error


def _read_object(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds; empty when it is missing, cut off, or holds something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _cannot_write(folder: Path, error: OSError) -> UserError:
    return UserError(
        _("The folder '{folder}' cannot be written ({reason}).").format(folder=folder, reason=error.strerror or error),
        _("Check its permissions and the free space, or set TCURLORA_HOME to another folder."),
    )
