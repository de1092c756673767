"""Adapt a base model to a site's cases: check, cross-validate, train on all cases, save the adapter."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tcurlora import __version__
from tcurlora.cases.cached_case import CachedCase, cache_case
from tcurlora.cases.case import Case, Finding
from tcurlora.cases.checks import require_no_errors
from tcurlora.cases.dataset import files_of_cases
from tcurlora.errors import InputError, MemoryExhausted
from tcurlora.evaluation.gain import compare_scores
from tcurlora.evaluation.reports import build_report, comparison_table, model_card
from tcurlora.evaluation.scores import Score
from tcurlora.method.config import TensorCurConfig
from tcurlora.method.model import TensorCurModel
from tcurlora.models.adapter_files import REPORT, WEIGHTS, require_absent, save_adapter, weights_bytes
from tcurlora.models.adapter_library import is_adapter
from tcurlora.runtime import distributed
from tcurlora.runtime.devices import choose_device
from tcurlora.runtime.events import EventSink, Labelled, NullEvents, Tee, duration
from tcurlora.runtime.job_folder import JobFolder, describe_inputs, hold_job
from tcurlora.runtime.json_files import read_object
from tcurlora.runtime.memory import free_memory, peak_bytes
from tcurlora.runtime.plain_text import times
from tcurlora.training.advice import advice_on_structures
from tcurlora.training.presets import training_settings
from tcurlora.training.target_site import Site, check_site, fold_cases, open_site, score_cases
from tcurlora.training.trainer import TrainingResult, TrainingSettings, train
from tcurlora_contract.methods import DEFAULT_METHOD, STEPS_SHARE

TRIAL_STEPS = 3
MEMORY_SHARE = 0.7
"""Part of the free memory that a step may take: what is measured leaves out what libraries take for themselves."""
SMALLEST_PATCH = 32
"""Voxels along each axis below which a patch is not cut to save memory: it would show too little of a structure."""


@dataclass(frozen=True)
class AdaptRequest:
    """What the user asks for; every field is a JSON type, so that a job file can hold it.

    Attributes:
        base: name or folder of the base model.
        data: folder or datalist of the labeled cases.
        out: folder of the adapter to be made.
        method: one of `presets.PRESETS`.
        rank: rank of the cores; None takes the preset's.
        folds: folds of the cross-validation; None chooses, 0 does without.
        steps: optimizer steps of each training; None takes the preset's.
        minutes: time for the whole run instead of steps.
        device: `auto`, `cpu`, `cuda`, ...
        seed: of everything random.
        labels: names of label values, such as `1=hippocampus`.
        mapping: site structures by base structures, such as `hippocampus=anterior+posterior`.
        name: name of the adapter; that of its folder by default.
        labels_complete: whether a voxel without a label holds none of the base's other structures either; if not, they
            are kept.
    """

    base: str
    data: str
    out: str
    method: str = DEFAULT_METHOD
    rank: int | None = None
    folds: int | None = None
    steps: int | None = None
    minutes: float | None = None
    device: str = "auto"
    seed: int = 0
    labels: str = ""
    mapping: tuple[str, ...] = ()
    name: str = ""
    labels_complete: bool = False


def run_adapt(request: AdaptRequest, job_folder: Path, events: EventSink, resume: bool = False) -> dict[str, Any]:
    """Do the whole adaptation; the adapter appears at the end, whole, or not at all.

    Args:
        request: what to do.
        job_folder: where events, checkpoints and the cache live; made only when the input is good.
        events: told of stages, progress and measures.
        resume: go on with the job in that folder.

    Returns:
        `adapter` (its folder), `summary` (one line), `table`, `bytes` and `trained` (numbers).

    Raises:
        InputError: for anything wrong with the input, before anything is written; `busy` when another run is at work
            in the job's folder.
    """
    with ExitStack() as held:
        return _run_adapt(request, job_folder, events, resume, held)


def _run_adapt(
    request: AdaptRequest, job_folder: Path, events: EventSink, resume: bool, held: ExitStack
) -> dict[str, Any]:
    started = time.monotonic()
    out = Path(request.out)
    if distributed.rank() > 0:
        events = NullEvents()
    if distributed.is_restart():  # what was done before is gone on with, where it came so far
        resume = distributed.first(lambda: resume or JobFolder.is_one(job_folder))
    if resume and is_adapter(out):
        return distributed.first(lambda: _finished(out, JobFolder.resume(job_folder, "adapt", asdict(request)), events))
    device = distributed.shared(lambda _: choose_device(request.device), range(distributed.world()))[distributed.rank()]
    settings = training_settings(request.method, request.seed)
    site, findings = distributed.first(lambda: _checked_site(request, job_folder, events))
    network = site.base.build()
    config = site.config(network, request.method, request.rank, request.seed)

    distributed.first(lambda: held.enter_context(hold_job(job_folder)))
    open_job = JobFolder.resume if resume else JobFolder.start
    job = distributed.first(lambda: open_job(job_folder, "adapt", asdict(request), describe_site(site)))
    if distributed.rank() == 0:
        events = Tee(events, job.events)
    for finding in findings:
        told = {"code": finding.code, "severity": finding.severity, "case": finding.case}
        events.emit("warning", **told, message=f"{finding.message} {finding.remedy}")
    events.emit("stage", name="prepare", title="Preparing the cases")

    def prepare(numbered: tuple[int, Case]) -> CachedCase:
        number, case = numbered
        prepared = cache_case(case, site.structures, site.base.preprocessing, job.cache, site.overlapping)
        events.emit("progress", step=number, total=len(site.dataset.cases))
        return prepared

    cached = {case.name: case for case in distributed.shared(prepare, enumerate(site.dataset.cases, start=1))}

    patch = site.base.windows.roi_size
    run = _Run(site, network, request.method, config, cached, settings, patch, device, job, events)
    folds = fold_cases(site.dataset.cases, request.folds, request.seed)
    run = run.planned(request.steps, request.minutes, len(folds) + 1)
    validation = run.cross_validate(folds)
    for name, sentences in run.advice(validation).items():
        events.emit("warning", code="not_learned", message=f"'{name}' was not learned. {' '.join(sentences)}")
    events.emit("stage", name="train", title=f"Adapting on all {len(cached)} cases")
    model, result = run.train(list(cached.values()), number=0)

    report = run.report(model, result, validation, minutes=(time.monotonic() - started) / 60)
    details = {"name": request.name or out.name, "method": request.method, **run.details(model, result)}
    card = model_card({**model.config.to_dict(), **details}, report)

    def finish() -> dict[str, Any]:
        save_adapter(model.cpu(), out, details, report, card)
        return _finished(out, job, events)

    return distributed.first(finish)


def _checked_site(request: AdaptRequest, job_folder: Path, events: EventSink) -> tuple[Site, list[Finding]]:
    out = Path(request.out)
    require_absent(out)
    if out.absolute() in (job_folder.absolute(), *job_folder.absolute().parents):
        raise InputError(
            f"The job's folder '{job_folder}' is the adapter's folder or in it.", "Choose another folder (--job)."
        )
    events.emit("stage", name="check", title="Checking the cases")
    site = open_site(
        request.base, request.data, request.labels, request.mapping, labels_complete=request.labels_complete
    )
    findings = check_site(site)
    require_no_errors(findings)
    return site, findings


def describe_site(site: Site, cases: Sequence[Case] = (), **others: Any) -> dict[str, Any]:
    """Describe what a job at a site depends on, for its folder.

    Args:
        site: base model, cases and structures.
        cases: further cases.
        others: what else it depends on, as JSON types.
    """
    everyone = (*site.dataset.cases, *cases)
    return describe_inputs(
        (*site.base.files, *files_of_cases(everyone)),
        structures=[structure.to_dict() for structure in site.structures],
        cases=[[case.name, case.subject, list(case.background), list(case.ignore)] for case in everyone],
        **others,
    )


def _finished(out: Path, job: JobFolder, events: EventSink) -> dict[str, Any]:
    """Write the result of a job whose adapter is there, also when the job was killed just before it could."""
    report = read_object(out / REPORT)
    summary = {
        "adapter": str(out),
        "summary": report["summary"],
        "table": _table(report),
        "bytes": (out / WEIGHTS).stat().st_size,
        "trained": report["size"]["trained_numbers"],
    }
    job.finish(summary)
    events.emit("result", **summary)
    return summary


@dataclass(frozen=True)
class _Run:
    """All that the parts of one adaptation share."""

    site: Site
    network: nn.Module
    method: str
    config: TensorCurConfig
    cached: Mapping[str, CachedCase]
    settings: TrainingSettings
    patch: tuple[int, ...]
    device: torch.device
    job: JobFolder
    events: EventSink

    def planned(self, steps: int | None, minutes: float | None, trainings: int) -> _Run:
        """Measure a few steps, settle how many there will be, and say what the run will take.

        It is done once a job: a resumed one must not measure time again and come to another number of steps.
        """
        plan = distributed.first(lambda: self.job.remembered("plan"))
        if plan is None:
            patch, at_once, (seconds, peak) = self._fitting()
            # A part of the time goes to checks, evaluation and saving.
            if minutes is not None:
                steps = max(self.settings.check_every, int(minutes * 60 * STEPS_SHARE / (seconds * trainings)))
            measured = {
                "steps": steps or self.settings.steps,
                "seconds_per_step": seconds,
                "peak_bytes": peak,
                "patch": list(patch),
                "at_once": at_once,
            }
            # The leading process's measures count, so that all take as many steps.
            plan = distributed.first(lambda: measured)
            distributed.first(partial(self.job.remember, "plan", plan))
        settings = replace(self.settings, steps=int(plan["steps"]), at_once=plan.get("at_once"))
        patch = tuple(plan["patch"])
        seconds = settings.steps * trainings * plan["seconds_per_step"] / STEPS_SHARE
        title = (
            f"{settings.steps} steps for each of {trainings} training{'s' if trainings > 1 else ''}: "
            f"about {duration(seconds)}, {plan['peak_bytes'] / 2**30:.1f} GB of memory for a step"
        )
        self.events.emit("stage", name="plan", title=title, **plan, trainings=trainings, seconds=round(seconds, 1))
        return replace(self, settings=settings, patch=patch)

    def _fitting(self) -> tuple[tuple[int, ...], int | None, tuple[float, int]]:
        """The largest patch that memory suffices for, how many are computed at once, and its `_measure`."""
        patches = list(self._patches())
        # Of several processes only one may have too little memory, and all must train on the same patches.
        first, at_once = (0, None) if distributed.active() else self._expected_to_fit(patches)
        for number, patch in enumerate(patches[first:], start=first + 1):
            try:
                return patch, at_once, self._measure(patch, at_once)
            except MemoryExhausted:
                if number == len(patches) or distributed.active():
                    raise
            message = f"Memory ran out with patches of {times(patch)} voxels; going on with {times(patches[number])}."
            self.events.emit("warning", code="smaller_patches", message=message)
        raise AssertionError("there is no patch")

    def _expected_to_fit(self, patches: Sequence[tuple[int, ...]]) -> tuple[int, int | None]:
        """Find the first patch that is expected to fit in memory, and how many of them at once; None for the batch.

        Trying shows what fits on a graphics card; on a processor the system may end the process, or slow it down to
        nothing. So the smallest patch is measured, and memory grows with the voxels.
        """
        free = free_memory(self.device)
        if free is None or len(patches) < 2:
            return 0, None
        smallest = patches[-1]
        peaks = {number: self._peak(smallest, number) for number in (None, 1)}
        for index, patch in enumerate(patches):
            growth = math.prod(patch) / math.prod(smallest)
            fitting = [number for number, peak in peaks.items() if peak * growth <= free * MEMORY_SHARE]
            if fitting:
                self._say_smaller(
                    patches[0], patch, fitting[0], peaks[None] * math.prod(patches[0]) / math.prod(smallest)
                )
                return index, fitting[0]
        return len(patches) - 1, 1

    def _say_smaller(self, wanted: Sequence[int], patch: Sequence[int], at_once: int | None, needed: float) -> None:
        if tuple(patch) == tuple(wanted) and at_once is None:
            return
        message = (
            f"A step on patches of {times(wanted)} voxels would take {needed / 2**30:.1f} GB of memory, more than is "
            f"free; going on with {times(patch)}{', one at a time' if at_once == 1 else ''}."
        )
        self.events.emit("warning", code="smaller_patches", message=message)

    def _patches(self) -> Iterator[tuple[int, ...]]:
        """The base's window, and then halves of it that the network takes as well."""
        patch = self.patch
        yield patch
        while max(patch) >= 2 * SMALLEST_PATCH:
            patch = tuple(size // 2 if size >= 2 * SMALLEST_PATCH else size for size in patch)
            if self.site.base.takes_window(self.network, patch):
                yield patch

    def _measure(self, patch: Sequence[int], at_once: int | None) -> tuple[float, int]:
        """Seconds and most bytes of a step."""
        peak = self._peak(patch, at_once)  # which also warms up
        started = time.monotonic()
        self._try_steps(TRIAL_STEPS, list(self.cached.values()), patch, at_once)
        # The trial has one check, which costs about as much as two steps.
        return (time.monotonic() - started) / (TRIAL_STEPS + 2), peak

    def _peak(self, patch: Sequence[int], at_once: int | None) -> int:
        """Most bytes of a step."""
        return peak_bytes(lambda: self._try_steps(1, list(self.cached.values())[:1], patch, at_once), self.device)

    def _try_steps(self, steps: int, cases: Sequence[CachedCase], patch: Sequence[int], at_once: int | None) -> None:
        model = TensorCurModel(self.network, self.config)
        settings = replace(self.settings, steps=steps, check_every=steps, at_once=at_once)
        groups, kept = self.site.groups(self.config), self.site.kept_channels(self.network, self.config)
        train(model, cases, groups, patch, settings, self.device, NullEvents(), None, None, kept)

    def train(self, cases: Sequence[CachedCase], number: int) -> tuple[TensorCurModel, TrainingResult]:
        """Train a new adapter; `number` is 0 for the final one, and otherwise that of the fold."""
        model = TensorCurModel(self.network, self.config)
        groups = self.site.groups(self.config)
        settings = replace(self.settings, seed=self.settings.seed * 1000 + number)
        events = Labelled(self.events, training=number)
        kept, checkpoint = self.site.kept_channels(self.network, self.config), self.job.checkpoint
        return model, train(model, cases, groups, self.patch, settings, self.device, events, checkpoint, None, kept)

    def cross_validate(self, folds: Sequence[Sequence[Case]]) -> list[dict[str, Any]]:
        """Train once for each fold on the other folds, and score base and adapter on the cases held out."""
        done = []
        for number, held_out in enumerate(folds, start=1):
            fold = distributed.first(partial(self.job.remembered, f"fold-{number}"))
            if fold is None:
                title = (
                    f"Cross-validation {number} of {len(folds)}: {len(held_out)} of {len(self.cached)} cases held out"
                )
                self.events.emit("stage", name=f"fold-{number}", title=title)
                fold = self._validate_fold(number, held_out)
                distributed.first(partial(self.job.remember, f"fold-{number}", fold))
            base, adapted = ([Score(**score) for score in fold[part]] for part in ("base", "adapted"))
            found = compare_scores(base, adapted, self._subjects(), self._new_structures())["mean"]
            for name in ("base_dice", "adapted_dice"):
                if found[name] is not None:
                    self.events.emit("metric", name=name, value=found[name], fold=number)
            done.append(fold)
        return done

    def _validate_fold(self, number: int, held_out: Sequence[Case]) -> dict[str, Any]:
        names = {case.name for case in held_out}
        untrained = TensorCurModel(self.network, self.config)
        base_scores = self._scores(untrained, held_out)
        model, result = self.train([item for name, item in self.cached.items() if name not in names], number)
        scores = self._scores(model, held_out)
        return {
            "cases": sorted(names),
            "best_step": result.best_step,
            "base": [asdict(score) for score in base_scores],
            "adapted": [asdict(score) for score in scores],
        }

    def _scores(self, model: TensorCurModel, cases: Sequence[Case]) -> list[Score]:
        segmenter = self.site.segmenter(model, self.device)
        scores = distributed.shared(lambda case: score_cases(segmenter, [case], self.site.structures), cases)
        return [score for of_case in scores for score in of_case]

    def report(
        self, model: TensorCurModel, result: TrainingResult, validation: Sequence[Mapping[str, Any]], minutes: float
    ) -> dict[str, Any]:
        """Put together report.json."""
        report = build_report(
            [Score(**score) for fold in validation for score in fold["base"]] or None,
            [Score(**score) for fold in validation for score in fold["adapted"]] or None,
            folds=[{"cases": fold["cases"], "best_step": fold["best_step"]} for fold in validation],
            training={**self._training(model, result), "minutes": round(minutes, 2), "curve": result.curve},
            size={
                "trained_numbers": model.trained_counts()["total"],
                "base_numbers": sum(p.numel() for p in self.network.parameters()),
                "adapter_bytes": weights_bytes(model.trained_state()),
                "base_bytes": self.site.base.weights.stat().st_size,
            },
            subjects=self._subjects(),
            new=self._new_structures(),
            uncorrected=[case.name for case in self.site.dataset.cases if case.uncorrected],
        )
        return {**report, "advice": self.advice(validation)}

    def advice(self, validation: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
        """Say what may help structures that were not learned."""
        return advice_on_structures(
            [Score(**score) for fold in validation for score in fold["adapted"]],
            self._subjects(),
            self.method,
            self.site.base.preprocessing.spacing,
            self._new_structures(),
        )

    def _subjects(self) -> dict[str, str]:
        return {case.name: case.subject for case in self.site.dataset.cases}

    def _new_structures(self) -> list[str]:
        """Name the structures that the base model has no output for."""
        return [name for name, sources in self.site.matched.items() if not sources]

    def details(self, model: TensorCurModel, result: TrainingResult) -> dict[str, Any]:
        """Say in adapter_config.json where the adapter comes from."""
        base = self.site.base
        return {
            "base_model": {
                "name": base.name,
                "version": str(base.metadata.get("version", "")),
                "sha256": base.sha256,
            },
            "structures": [structure.to_dict() for structure in self.site.result_structures],
            "kept_structures": [structure.name for structure in self.site.kept],
            "preprocessing": {**base.preprocessing.to_dict(), "roi_size": list(base.windows.roi_size)},
            "training": self._training(model, result),
            "versions": versions(),
            "created": time.strftime("%Y-%m-%d"),
        }

    def _training(self, model: TensorCurModel, result: TrainingResult) -> dict[str, Any]:
        counts = {f"trained_{part}": number for part, number in model.trained_counts().items()}
        return {
            **asdict(self.settings),
            "patch": times(self.patch),
            **counts,
            "cases": len(self.cached),
            "best_step": result.best_step,
        }


def versions() -> dict[str, str]:
    """Say which versions of the program and of what computes in it are at work."""
    return {"tcurlora": __version__, **{name: version(name) for name in ("torch", "monai", "SimpleITK", "numpy")}}


def _table(report: Mapping[str, Any]) -> str:
    validation = report["cross_validation"]
    return "" if validation is None else comparison_table(validation["comparison"])
