"""Adapting a base model to labeled cases of the scene: from nodes to a new adapter in the library."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slicer.i18n import tr as _

from TCurLoraSegmentLib.engine import Engine
from TCurLoraSegmentLib.errors import UserError, without_options
from TCurLoraSegmentLib.jobs import Job, data_folder, new_job
from TCurLoraSegmentLib.requests import LEAVE_OUT, AdaptSettings
from TCurLoraSegmentLib.scene_cases import CasePair
from TCurLoraSegmentLib.scene_export import CaseExport, export_cases
from TCurLoraSegmentLib.worker import Outcome, Worker
from TCurLoraSegmentLib.worker_task import WorkerTask


@dataclass(frozen=True)
class Adapted:
    """How an adaptation ended.

    Attributes:
        outcome: how the worker ended.
        name: of the adapter.
        adapter: its folder; None when there is none.
        report: the content of its report.json.
        case_names: names of the volumes by the numbers under which the report lists them.
        job: its folder, kept while it can be resumed.
        warnings: what the user should know about the cases and the run.
    """

    outcome: Outcome
    name: str
    adapter: Path | None
    report: Mapping[str, Any] | None
    case_names: Mapping[str, str]
    job: Job
    warnings: tuple[str, ...] = ()


class AdaptTask(WorkerTask[Adapted]):
    """One adaptation in a process of its own; `poll` must be called until `running` is false.

    Args:
        engine: how the engine is started.
        job: the job's folder; its context says what is run.
        resume: whether to go on with what is in the folder.
        on_event: gets every event of the engine.
        on_finished: gets the end.
    """

    def __init__(
        self,
        engine: Engine,
        job: Job,
        resume: bool = False,
        on_event: Callable[[Mapping[str, Any]], None] | None = None,
        on_finished: Callable[[Adapted], None] | None = None,
    ) -> None:
        context = job.context()
        self.job = job
        self.name = str(context["name"])
        self._case_names = dict(context["case_names"])
        self._warnings = tuple(map(str, context.get("warnings", ())))
        self._on_event = on_event
        self._on_finished = on_finished
        arguments = [*context["arguments"], *(["--resume"] if resume else [])]
        self._worker = Worker(
            engine.command(*arguments),
            engine.environment(),
            job=job.path,
            log=job.log,
            on_event=self._hear,
            on_finished=self._finish,
        )

    def _hear(self, event: Mapping[str, Any]) -> None:
        # What is said of single cases, by their numbers, and notes are for the check, which shows them at their rows.
        if event["event"] == "warning" and not event.get("case") and event.get("severity") != "note":
            self._warnings += (without_options(str(event["message"])),)
        if self._on_event is not None:
            self._on_event(event)

    def _finish(self, outcome: Outcome) -> None:
        adapter, report = None, None
        if outcome.ok and outcome.result is not None:
            adapter = Path(str(outcome.result["adapter"]))
            try:
                report = json.loads((adapter / "report.json").read_text(encoding="utf-8"))
            except (OSError, ValueError):
                adapter = None
        self.finished = Adapted(outcome, self.name, adapter, report, self._case_names, self.job, self._warnings)
        if outcome.ok:
            self.job.delete()  # the cases of the patients were exported there
        elif not self.job.resumable:
            self.job.forget_scans()
        if self._on_finished is not None:
            self._on_finished(self.finished)


def prepare_adapt(
    settings: AdaptSettings, pairs: Sequence[CasePair], subjects: Mapping[CasePair, str] | None = None
) -> Job:
    """Export the cases and write down what is to be run; nothing in the scene changes.

    Args:
        settings: how to adapt.
        pairs: volumes and their segmentations.
        subjects: what the user calls the person of a case; the scene tells those that are not named.

    Raises:
        UserError: when the settings or the cases cannot be used; no folder is left then.
    """
    problems = settings.missing(len(pairs))
    out = adapters_folder() / settings.name
    if not problems and out.exists():
        problems = [_("There is an adapter '{name}' already: choose another name.").format(name=settings.name)]
    if problems:
        raise UserError(" ".join(problems))
    job = new_job("adapt", settings.name)
    try:
        export = export_for_engine(settings, pairs, job.inputs, subjects)
        if export.problems:
            raise UserError("\n".join(f"{problem.message} {problem.remedy}" for problem in export.problems))
        job.write_context(
            {
                "name": settings.name,
                "settings": settings.to_dict(),
                "case_names": dict(export.node_names),
                "warnings": [f"{warning.message} {warning.remedy}" for warning in export.warnings],
                "arguments": settings.arguments(job.inputs, out, job.path),
            }
        )
    except BaseException:
        job.delete()
        raise
    return job


def export_for_engine(
    settings: AdaptSettings,
    pairs: Sequence[CasePair],
    folder: Path,
    subjects: Mapping[CasePair, str] | None = None,
) -> CaseExport:
    """Export the cases without the structures that are left out.

    Raises:
        UserError: when nothing can be exported.
    """
    left_out = [name for name, sources in settings.mapping.items() if list(sources) == [LEAVE_OUT]]
    return export_cases(pairs, folder, leave_out=left_out, structure_names=settings.names, subjects=subjects)


def adapters_folder() -> Path:
    """The library of adapters, where the engine looks for them by name."""
    return data_folder() / "adapters"
