"""Segment scan files with a base model or an adapter."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tcurlora.errors import InputError, TCurLoraError
from tcurlora.imaging.channels import read_channels
from tcurlora.imaging.image_warnings import ImageWarning
from tcurlora.imaging.images import (
    IMAGE_SUFFIXES,
    UNCERTAINTY,
    WRITABLE_SUFFIXES,
    files_of,
    stem,
    suffix,
    write_image,
)
from tcurlora.imaging.intensities import check_intensities
from tcurlora.imaging.label_layers import has_overlaps
from tcurlora.imaging.segmentations import keeps_overlaps, names_beside, write_segmentation
from tcurlora.inference.expected_memory import Expected, expected_bytes, require_memory
from tcurlora.inference.scan_files import scan_of_channels, scans_in
from tcurlora.inference.segmenter_cache import SegmenterCache, base_of_model, open_once
from tcurlora.models.adapter_files import require_absent
from tcurlora.runtime import distributed
from tcurlora.runtime.events import EventSink, NullEvents, Tee
from tcurlora.runtime.job_folder import JobFolder, describe_inputs

OTHER_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".stl", ".obj", ".ply", ".vtk", ".vtp", ".zip")
"""Endings of files that nobody means as a folder's name, and that no result is written to."""


TOLD_BYTES = 2 * 2**30
"""A scan that takes more memory than this is announced with what it takes."""


@dataclass(frozen=True)
class SegmentRequest:
    """What the user asks for; every field is a JSON type.

    Attributes:
        model: adapter (folder or name in the library) or base model (folder or name in the catalogue).
        inputs: scans; a folder stands for the scans in it (see `scans_in`).
        out: file for one scan; folder otherwise.
        base: base model of an adapter where it is not in the catalogue.
        device: `auto`, `cpu`, `cuda`, ...
        uncertainty: also write a voxel map of uncertainty beside each result.
        overlap: of neighboring windows; None takes the model's own.
        mirror: also mirror each window along the axes that the model allows, and average.
        fold: of an nnU-Net, whose weights to use: `0`, `all`, or several such as `0,1,2`; the usual one when empty.
        channels: further scans, each as the files of its channels in the model's order.
    """

    model: str
    inputs: tuple[str, ...]
    out: str
    base: str = ""
    device: str = "auto"
    uncertainty: bool = False
    overlap: float | None = None
    mirror: bool = False
    fold: str = ""
    channels: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Task:
    """One scan and where its results go.

    Attributes:
        scan: file or folder of the scan, or of its first channel.
        labels: file of the result.
        uncertainty: file of the voxel map of uncertainty, where one is wanted.
        channels: of the further channels.
    """

    scan: Path
    labels: Path
    uncertainty: Path | None
    channels: tuple[Path, ...] = ()


def plan_tasks(request: SegmentRequest, again: bool = False, passed_over: list[str] | None = None) -> list[Task]:
    """Find the scans and name the results, before anything is computed.

    Args:
        request: what to do.
        again: whether results that exist already are of this run.
        passed_over: gets sentences about files in folders that are not read.

    Raises:
        InputError: when a scan is missing, two results would have one name, or a result exists already.
    """

    @cache
    def channels() -> Sequence[str]:
        return base_of_model(request.model, request.base, request.fold).input_channels

    notes = [] if passed_over is None else passed_over
    scans = [scan for given in request.inputs for scan in scans_in(Path(given), channels, notes)]
    scans += [scan_of_channels(files, channels) for files in request.channels]
    out = Path(request.out)
    one_file = suffix(out) in IMAGE_SUFFIXES
    ending = suffix(out) or out.suffix.lower()
    if (one_file and ending not in WRITABLE_SUFFIXES) or (ending in OTHER_SUFFIXES and not out.is_dir()):
        raise InputError(
            f"'{out.name}' cannot be written: '{ending}' is not a format for results.",
            f"End its name with one of {', '.join(WRITABLE_SUFFIXES)}.",
            "format",
        )
    if one_file and len(scans) > 1:
        raise InputError(
            f"'{out.name}' is one file, but there are {len(scans)} scans.", "Give a folder (--out).", "one_output"
        )
    tasks = []
    for scan in scans:
        labels = out if one_file else out / f"{scan.name}.seg.nrrd"
        uncertainty = labels.with_name(f"{stem(labels)}{UNCERTAINTY}.nii.gz") if request.uncertainty else None
        tasks.append(Task(scan.files[0], labels, uncertainty, scan.files[1:]))
    if not one_file and out.exists() and not out.is_dir():
        raise InputError(
            f"'{out.name}' is a file whose ending is not one of {', '.join(WRITABLE_SUFFIXES)}.",
            "Give a folder (--out), or a file name with such an ending.",
            "format",
        )
    _require_distinct_results(tasks)
    if not again:
        for task in tasks:
            for path in filter(None, (task.labels, task.uncertainty, names_beside(task.labels))):
                require_absent(path)
    return tasks


def _require_distinct_results(tasks: Sequence[Task]) -> None:
    written: dict[str, Path] = {}
    for task in tasks:
        # As systems compare names that do not tell capital letters and kinds of accents apart.
        key = unicodedata.normalize("NFC", task.labels.name).casefold()
        if key in written:
            other, name = written[key].name, task.labels.name
            both = f"'{name}'" if name == other else f"'{other}' and '{name}', which are one name on some systems"
            raise InputError(
                f"Two scans would both be written to {both}.", "Segment them into two folders.", "same_name"
            )
        written[key] = task.labels


def run_segment(
    request: SegmentRequest,
    events: EventSink,
    job_folder: Path | None = None,
    segmenters: SegmenterCache | None = None,
) -> dict[str, Any]:
    """Segment all scans; one that fails does not stop the others.

    Args:
        request: what to do.
        events: told of stages and progress.
        job_folder: where request, events and result are kept as well; made only when the request can be met.
        segmenters: models that are open already, and where this one stays open for the next request.

    Returns:
        `written`: scan, labels and uncertainty files; `failed`: scan and reason.

    Raises:
        InputError: when the request cannot be met at all, or when a single scan cannot be used.
    """
    if distributed.rank() > 0:
        events = NullEvents()
    again = distributed.first(lambda: job_folder is not None and _was_begun(request, job_folder))
    tasks, left, passed_over = distributed.first(lambda: _planned(request, again))
    for sentence in passed_over:
        events.emit("warning", code="files_passed_over", severity="note", message=sentence)
    events.emit("stage", name="load", title="Loading the model")
    opener = open_once if segmenters is None else segmenters.open
    segmenter = opener(request.model, request.base, request.device, request.overlap, request.mirror, request.fold)
    job = None
    if job_folder is not None:
        open_job = JobFolder.resume if again else JobFolder.start
        inputs = describe_inputs(
            file for task in tasks for scan in (task.scan, *task.channels) for file in files_of(scan)
        )
        job = distributed.first(lambda: open_job(job_folder, "segment", asdict(request), inputs))
        if distributed.rank() == 0:
            events = Tee(events, job.events)
    events.emit("stage", name="segment", title=f"Segmenting {len(left)} scan{'s' if len(left) > 1 else ''}")
    done = len(tasks) - len(left)

    def segment(numbered: tuple[int, Task]) -> TCurLoraError | None:
        number, task = numbered

        def on_window(part: float) -> None:
            events.emit("progress", step=number - 1, total=len(tasks), part=round(part, 3))

        def warn(warning: ImageWarning) -> None:
            events.emit("warning", code=warning.code, message=f"{warning.message} {warning.remedy}")

        problem = None
        try:
            image = read_channels((task.scan, *task.channels), warn)
            check_intensities(image, str(task.scan), warn)
            _tell_memory(expected_bytes(segmenter, image, request.uncertainty), task, events)
            labels, uncertainty = segmenter.segment(image, request.uncertainty, on_window)
            task.labels.parent.mkdir(parents=True, exist_ok=True)
            if uncertainty is not None and task.uncertainty is not None:
                write_image(uncertainty, task.uncertainty)
            write_segmentation(labels, segmenter.structures, task.labels)
            if has_overlaps(labels) and not keeps_overlaps(task.labels):
                message = (
                    f"'{task.labels.name}' holds one label for each voxel, so overlapping structures were written over "
                    "each other. Write .seg.nrrd files to keep them whole."
                )
                events.emit("warning", code="flattened_regions", message=message)
        except TCurLoraError as error:
            # Another scan would be no better off with a base model that fails.
            if len(tasks) == 1 or error.exit_code != InputError.exit_code or error.code == "bad_bundle":
                raise
            problem = error
            events.emit("warning", code=error.code, message=f"{task.scan.name}: {error}")
        events.emit("progress", step=number, total=len(tasks))
        return problem

    problems = dict(zip(left, distributed.shared(segment, enumerate(left, start=done + 1)), strict=True))
    written: list[dict[str, str]] = []
    failed: list[dict[str, str]] = []
    for task in tasks:
        problem = problems.get(task)
        if problem is not None:
            failed.append({"scan": str(task.scan), "reason": str(problem)})
        else:
            entry = {"scan": str(task.scan), "labels": str(task.labels)}
            written.append(entry | ({"uncertainty": str(task.uncertainty)} if task.uncertainty else {}))
    result = {"written": written, "failed": failed}
    if distributed.rank() == 0:
        for number, (task, problem) in enumerate(problems.items()):
            if problem is not None and number % distributed.world() > 0:  # its own it has told already
                events.emit("warning", code=problem.code, message=f"{task.scan.name}: {problem}")
        if job is not None:
            job.finish(result)
        events.emit("result", **result)
    return result


def _tell_memory(expected: Expected, task: Task, events: EventSink) -> None:
    """Say beforehand what a large scan takes, and where that is more than there is."""
    if expected.memory + expected.disk > TOLD_BYTES:
        title = f"{task.scan.name}: about {expected.memory / 1e9:.1f} GB of memory"
        title += f" and a temporary file of {expected.disk / 1e9:.1f} GB" if expected.disk else ""
        events.emit("stage", name="scan", title=title, memory_bytes=expected.memory, disk_bytes=expected.disk)
    too_little = require_memory(expected)
    if too_little is not None:
        events.emit("warning", code="memory", message=f"{task.scan.name}: {too_little}")


def _was_begun(request: SegmentRequest, job_folder: Path) -> bool:
    """Whether torchrun has started this run anew, after it had begun to segment."""
    if not distributed.is_restart():
        return False
    try:
        JobFolder.resume(job_folder, "segment", asdict(request))
    except InputError:
        return False
    return True


def _planned(request: SegmentRequest, again: bool) -> tuple[list[Task], list[Task], list[str]]:
    """All tasks, those that are left to do (the labels of a scan are written last), and what is not read."""
    passed_over: list[str] = []
    tasks = plan_tasks(request, again, passed_over)
    return tasks, [task for task in tasks if not task.labels.exists()], passed_over
