"""The folder of a job: request, events, cache, checkpoint, and the result, which is written last."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tcurlora.errors import InputError, TCurLoraError
from tcurlora.events import FileEvents, write_json

SCHEMA = 1
REQUEST = "job.json"
STARTERS_FILES = frozenset({"inputs", "worker.log", "worker.pid", "scene.json"})
"""What the program that starts a job may put into its folder; a job leaves it alone."""


class JobFolder:
    """A job's folder.

    Attributes:
        path: the folder.
        checkpoint: file of the training under way.
        cache: folder of preprocessed cases.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoint = path / "checkpoint.safetensors"
        self.cache = path / "cache"
        self.events = FileEvents(path / "events.jsonl")

    @staticmethod
    def is_one(path: Path) -> bool:
        """Whether a job was started in that folder."""
        return (path / REQUEST).is_file()

    @classmethod
    def start(cls, path: Path, command: str, request: Mapping[str, Any], inputs: Mapping[str, Any]) -> JobFolder:
        """Make a new job; what an earlier one left in the folder is removed, but not `STARTERS_FILES`.

        Args:
            path: the folder.
            command: `adapt` or `segment`.
            request: what to do, as JSON types.
            inputs: size and time of the input files, to notice when they change before the job is resumed.

        Raises:
            InputError: when it is a file, or a folder that holds something that is no job.
            TCurLoraError: when it cannot be written.
        """
        is_file = path.exists() and not path.is_dir()
        found = [entry for entry in path.iterdir() if entry.name not in STARTERS_FILES] if path.is_dir() else []
        if is_file or (found and not cls.is_one(path)):
            raise InputError(f"'{path}' exists and is not the folder of a job.", "Choose another folder (--job).")
        try:
            _remove(entry for entry in found if entry.name != REQUEST)
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
        """Go on with a job that was broken off; without `inputs` its input files are not compared.

        Raises:
            InputError: when there is none, it asked for something else, or its input files have changed since.
        """
        try:
            content = dict(json.loads((path / REQUEST).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise InputError(
                f"There is no unfinished job in '{path.name}'.", "Start it anew (without --resume).", "no_job"
            ) from error
        expected: dict[str, Any] = {"schema": SCHEMA, "command": command, "request": dict(request)}
        expected |= {} if inputs is None else {"inputs": dict(inputs)}
        for key, value in json.loads(json.dumps(expected)).items():
            if content.get(key) != value:
                raise InputError(
                    f"The unfinished job in '{path.name}' differs in its {key} from what is asked for now.",
                    "Give the same options and files as before, or start it anew (without --resume).",
                    "other_job",
                )
        return cls(path)

    def remember(self, key: str, value: Any) -> None:
        """Keep an intermediate result, so that a resumed job need not compute it again."""
        (self.path / "done").mkdir(exist_ok=True)
        write_json(self.path / "done" / f"{key}.json", {"value": value, "sha256": _digest(value)})

    def remembered(self, key: str) -> Any:
        """Read an intermediate result; None where there is none, or it has been damaged and must be computed again."""
        try:
            content = json.loads((self.path / "done" / f"{key}.json").read_text(encoding="utf-8"))
            return content["value"] if content["sha256"] == _digest(content["value"]) else None
        except (OSError, ValueError, TypeError, KeyError, IndexError, RecursionError):
            return None

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write the result, last of all; what was needed only for resuming is removed."""
        write_json(self.path / "result.json", dict(result))
        self.checkpoint.unlink(missing_ok=True)
        shutil.rmtree(self.cache, ignore_errors=True)


def remove_job(path: Path) -> None:
    """Remove a job's folder, as far as it can be; what makes it a job's goes last, whatever happens on the way."""
    with suppress(OSError):
        _remove(entry for entry in path.iterdir() if entry.name != REQUEST)
    shutil.rmtree(path, ignore_errors=True)


def _remove(entries: Iterable[Path]) -> None:
    for entry in list(entries):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink()


def describe_inputs(files: list[Path]) -> dict[str, list[int]]:
    """Give size and time of modification by file."""
    described = {}
    for file in files:
        status = file.stat()
        described[str(file)] = [status.st_size, status.st_mtime_ns]
    return described


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
