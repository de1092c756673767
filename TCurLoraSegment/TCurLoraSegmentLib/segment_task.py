"""Segmenting volumes of the scene: from nodes to result nodes that lie on their volumes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import slicer
from slicer.i18n import tr as _

from TCurLoraSegmentLib.engine import Engine
from TCurLoraSegmentLib.errors import UserError
from TCurLoraSegmentLib.jobs import Job, new_job
from TCurLoraSegmentLib.requests import SegmentSettings
from TCurLoraSegmentLib.scene_export import export_volume, volume_problem
from TCurLoraSegmentLib.scene_import import Placement, capture, import_segmentation, import_uncertainty
from TCurLoraSegmentLib.warm_worker import WarmWorker
from TCurLoraSegmentLib.worker import Outcome, Worker
from TCurLoraSegmentLib.worker_task import WorkerTask


@dataclass
class Segmented:
    """How a segmentation ended.

    Attributes:
        outcome: how the worker ended.
        nodes: result nodes by the ID of their volume.
        uncertainty: nodes of the maps of uncertainty by the ID of their volume.
        messages: what the user must know, such as scans that failed.
    """

    outcome: Outcome
    nodes: dict[str, slicer.vtkMRMLNode] = field(default_factory=dict)
    uncertainty: dict[str, slicer.vtkMRMLNode] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)


class SegmentTask(WorkerTask[Segmented]):
    """Segments volumes in another process; `poll` must be called until `running` is false.

    What is needed of the nodes is captured at the start: a node that is deleted or renamed meanwhile does no harm.

    Args:
        engine: how the engine is started.
        settings: how to segment.
        volumes: the scans.
        output: node that is replaced by the result; only with one volume. A new node is made otherwise.
        on_event: gets every event of the engine.
        on_finished: gets the end.
        warm: the worker that is asked for it; without it, a process is started for this one task.

    Raises:
        UserError: when a volume cannot be used; nothing has been started then.
    """

    def __init__(
        self,
        engine: Engine,
        settings: SegmentSettings,
        volumes: Sequence[slicer.vtkMRMLScalarVolumeNode],
        output: slicer.vtkMRMLNode | None = None,
        on_event: Callable[[Mapping[str, Any]], None] | None = None,
        on_finished: Callable[[Segmented], None] | None = None,
        warm: WarmWorker | None = None,
    ) -> None:
        problems = [*settings.missing(len(volumes)), *filter(None, map(volume_problem, volumes))]
        if output is not None and len(volumes) != 1:
            problems.append(_("An output node can be chosen for one volume only."))
        if problems:
            raise UserError(" ".join(problems))
        self.settings = settings
        self._on_finished = on_finished
        self._output_id = output.GetID() if output else ""
        self._output_name = output.GetName() if output else ""
        self._scene_is_gone = False
        self._placements: dict[str, Placement] = {}
        self.job: Job = new_job("segment", volumes[0].GetName())
        try:
            scans = []
            for number, volume in enumerate(volumes, start=1):
                scan = self.job.inputs / f"scan-{number:03d}.nrrd"
                export_volume(volume, scan)
                self._placements[scan.name] = capture(volume)
                scans.append(scan)
            arguments = settings.arguments(scans, self.job.results, self.job.path)
            job, finish = self.job.path, self._finish
            self._worker = (
                Worker(engine.command(*arguments), engine.environment(), job=job, on_event=on_event, on_finished=finish)
                if warm is None
                else warm.request(engine, arguments, job=job, on_event=on_event, on_finished=finish)
            )
        except BaseException:
            self.job.delete()
            raise

    def kill(self) -> None:
        """End the worker at once; nobody waits for its result any more."""
        super().kill()
        self.job.delete()

    def scene_closed(self) -> None:
        """The scene of the volumes is gone: results must not appear in the next one."""
        self._scene_is_gone = True

    def _finish(self, outcome: Outcome) -> None:
        finished = Segmented(outcome)
        result = outcome.result or {}
        if self._scene_is_gone:
            finished.messages.append(_("The scene was closed meanwhile, so there is no place for the result."))
        else:
            for entry in result.get("written", ()):
                try:
                    self._take_in(entry, finished)
                except UserError as error:
                    finished.messages.append(str(error))
                except Exception as error:  # such as too little memory: the end has to be told all the same
                    logging.exception("A result could not be taken into the scene.")
                    name = self._placements[Path(str(entry["scan"])).name].volume_name
                    reason = str(error) or type(error).__name__
                    finished.messages.append(
                        _("The result of '{volume}' could not be taken into the scene ({reason}).").format(
                            volume=name, reason=reason
                        )
                    )
        for entry in result.get("failed", ()):
            name = self._placements[Path(str(entry["scan"])).name].volume_name
            finished.messages.append(f"{name}: {entry['reason']}")
        if not outcome.ok and not result.get("failed"):
            finished.messages.append(outcome.sentence())
        # The scans of the patients were exported there. A log to which the sentence points is still wanted.
        if outcome.log is not None and str(outcome.log) in outcome.sentence():
            self.job.forget_scans()
        else:
            self.job.delete()
        self.finished = finished
        if self._on_finished is not None:
            self._on_finished(finished)

    def _take_in(self, entry: Mapping[str, Any], finished: Segmented) -> None:
        placement = self._placements[Path(str(entry["scan"])).name]
        output = slicer.mrmlScene.GetNodeByID(self._output_id) if self._output_id else None
        if self._output_id and output is None:
            finished.messages.append(
                _("The output node '{name}' was deleted meanwhile; a new one was made.").format(name=self._output_name)
            )
        imported = import_segmentation(
            Path(str(entry["labels"])),
            placement,
            self.settings.structures,
            name=f"{placement.volume_name} {self.settings.title or self.settings.model}".strip(),
            output_node=output,
            as_labelmap=self.settings.as_labelmap,
        )
        finished.nodes[placement.volume_id] = imported.node
        finished.messages += imported.warnings
        if entry.get("uncertainty"):
            title = _("{volume} uncertainty").format(volume=placement.volume_name)
            uncertainty = import_uncertainty(Path(str(entry["uncertainty"])), placement, title)
            finished.uncertainty[placement.volume_id] = uncertainty.node
