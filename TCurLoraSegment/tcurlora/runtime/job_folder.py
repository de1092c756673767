"""The folder of a job: request, events, cache, checkpoint, and the result, which is written last."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tcurlora.errors import InputError, TCurLoraError
from tcurlora.runtime.events import FileEvents
from tcurlora.runtime.folder_lock import exclusive
from tcurlora.runtime.hashing import sha256_of_json
from tcurlora.runtime.json_files import read_object, write_json
from tcurlora_contract.job_files import CACHE, CHECKPOINT, DONE, EVENTS, LOCK, REQUEST, RESULT, STARTERS_FILES

SCHEMA = 1
_CACHE = (f"{CACHE}/*.npy",)
_OWN = (
    *_CACHE,
    f"{DONE}/*.json",
    EVENTS,
    RESULT,
    CHECKPOINT,
    # What is left of a file when the process is killed that writes it.
    f"{DONE}/.*.json.*.tmp",
    f".{RESULT}.*.tmp",
    f".{CHECKPOINT}.*.tmp",
    f".{REQUEST}.*.tmp",
)
"""What a job writes into its folder besides its request; whatever else lies there is somebody's."""


class JobFolder:
    """A job's folder.

    Attributes:
        path: the folder.
        checkpoint: file of the training under way.
        cache: folder of preprocessed cases.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoint = path / CHECKPOINT
        self.cache = path / CACHE
        self.events = FileEvents(path / EVENTS)

    @staticmethod
    def is_one(path: Path) -> bool:
        """Whether a job was started in that folder."""
        return (path / REQUEST).is_file()

    @classmethod
    def start(cls, path: Path, command: str, request: Mapping[str, Any], inputs: Mapping[str, Any]) -> JobFolder:
        """Make a new job; what an earlier one of the same command wrote into the folder is removed, and nothing else.

        Args:
            path: the folder.
            command: `adapt`, `segment` or `compare`.
            request: what to do, as JSON types.
            inputs: what the job depends on, from `describe_inputs`, to notice a change before it is resumed.

        Raises:
            InputError: when it is a file, or a folder that holds something else than a job of that command.
            TCurLoraError: when it cannot be written.
        """
        _require_startable(path, command)
        try:
            _remove(path, _OWN)
            path.mkdir(parents=True, exist_ok=True)
            write_json(
                path / REQUEST,
                {"schema": SCHEMA, "command": command, "request": dict(request), "inputs": dict(inputs)},
            )
        except OSError as error:
            raise TCurLoraError(
                f"The job's folder '{path}' could not be written ({error.strerror or error}).",
                "Check the free space and the permissions of its folder.",
                "cannot_write",
            ) from error
        return cls(path)

    @classmethod
    def resume(
        cls, path: Path, command: str, request: Mapping[str, Any], inputs: Mapping[str, Any] | None = None
    ) -> JobFolder:
        """Go on with a job that was broken off; without `inputs` what it depends on is not compared.

        Raises:
            InputError: when there is none, it asked for something else, or what it depends on has changed since.
        """
        content = _read_request(path)
        if content is None:
            raise InputError(
                f"There is no unfinished job in '{path.name}'.", "Start it anew (without --resume).", "no_job"
            )
        options = _differing(content["request"], request)
        changed = [] if inputs is None else _differing(content["inputs"], inputs)
        problem = None
        if (content["schema"], content["command"]) != (SCHEMA, command):
            problem = f"The job in '{path.name}' is not one of this version's '{command}'."
        elif options:
            problem = f"The job in '{path.name}' was begun with other options: {_listed(map(_option, options))}."
        elif changed:
            names = _listed(Path(name).name for name in changed)
            problem = f"What the job in '{path.name}' began with has changed since: {names}."
        if problem is not None:
            remedy = "Give the same options and files as before, or start it anew (without --resume)."
            raise InputError(problem, remedy, "other_job")
        return cls(path)

    def remember(self, key: str, value: Any) -> None:
        """Keep an intermediate result, so that a resumed job need not compute it again."""
        (self.path / DONE).mkdir(exist_ok=True)
        write_json(self.path / DONE / f"{key}.json", {"value": value, "sha256": sha256_of_json(value)})

    def remembered(self, key: str) -> Any:
        """Read an intermediate result; None where there is none, or it has been damaged and must be computed again."""
        try:
            content = read_object(self.path / DONE / f"{key}.json")
            return content["value"] if content["sha256"] == sha256_of_json(content["value"]) else None
        except (OSError, ValueError, KeyError, RecursionError):  # the last from a value that is nested too deeply
            return None

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write the result, last of all; what was needed only for resuming is removed."""
        write_json(self.path / RESULT, dict(result))
        self.checkpoint.unlink(missing_ok=True)
        with suppress(OSError):
            _remove(self.path, _CACHE)


@contextmanager
def hold_job(path: Path) -> Iterator[None]:
    """Keep other runs out of a job's folder while this one is at work; a folder of something else is left alone.

    Raises:
        InputError: `busy` when another run is at work there.
    """
    if not _is_free(path) and _read_request(path) is None:
        yield  # starting or resuming a job there says what is wrong
        return
    with exclusive(path, "Wait until it has ended, or choose another folder."):
        yield


def remove_job(path: Path) -> None:
    """Remove what a job wrote, as far as it can be, and its folder when nothing else is in it.

    What makes the folder a job's goes last, whatever happens on the way.
    """
    with suppress(OSError):
        _remove(path, (*_OWN, LOCK))
        (path / REQUEST).unlink(missing_ok=True)
        path.rmdir()


def describe_inputs(files: Iterable[Path], **others: Any) -> dict[str, Any]:
    """Describe what a job depends on: size and time of modification of each file, and whatever else is given."""
    described: dict[str, Any] = {}
    for file in files:
        status = file.stat()
        described[str(file)] = [status.st_size, status.st_mtime_ns]
    return described | others


def _require_startable(path: Path, command: str) -> None:
    if _is_free(path):
        return
    content = _read_request(path)
    if content is None:
        raise InputError(f"'{path}' exists and is not the folder of a job.", "Choose another folder (--job).")
    if (content["schema"], content["command"]) != (SCHEMA, command):
        raise InputError(
            f"'{path}' is the folder of another job ('{content['command']}').", "Choose another folder (--job)."
        )


def _is_free(path: Path) -> bool:
    """Whether nothing is there but what a starter or a run that was killed at once may have left."""
    if not path.exists():
        return True
    return path.is_dir() and all(entry.name in (*STARTERS_FILES, LOCK) for entry in path.iterdir())


def _read_request(path: Path) -> dict[str, Any] | None:
    """Read what a job was started with; None where the folder holds no job."""
    try:
        content = read_object(path / REQUEST)
        dictionaries = (content["request"], content["inputs"])
        sound = {"schema", "command"} <= content.keys() and all(isinstance(part, dict) for part in dictionaries)
    except (OSError, ValueError, KeyError):
        return None
    return content if sound else None


def _differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Name what is not the same, or on one side only; JSON knows no tuples, so those count as lists."""
    now = json.loads(json.dumps(now))
    return sorted(
        key for key in before.keys() | now.keys() if (key in before, before.get(key)) != (key in now, now.get(key))
    )


def _option(field: str) -> str:
    """Name the option of the command line that a field of a request comes from."""
    return "--" + {"mapping": "map", "inputs": "input"}.get(field, field.replace("_", "-"))


def _listed(names: Iterable[str]) -> str:
    first, *others = names
    return ", ".join((first, *others[:2])) + (f" and {len(others) - 2} more" if len(others) > 2 else "")


def _remove(folder: Path, patterns: Iterable[str]) -> None:
    """Delete the files that match, and the folders in `folder` that they leave empty.

    Raises:
        OSError: when one cannot be deleted, after all others have been.
    """
    problem = None
    for file in [file for pattern in patterns for file in folder.glob(pattern)]:
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            problem = problem or error
        if file.parent != folder:
            with suppress(OSError):
                file.parent.rmdir()
    if problem is not None:
        raise problem
