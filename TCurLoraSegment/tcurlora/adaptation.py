"""Adapt a base model to a site's cases: check, cross-validate, train on all cases, save the adapter."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from tcurlora import __version__
from tcurlora.adapter import TensorCurConfig, TensorCurModel, find_head
from tcurlora.adapter_files import WEIGHTS, require_absent, save_adapter
from tcurlora.base_models import BaseModel, load_base_model
from tcurlora.cases import Case, Dataset, Finding, check_cases, find_cases, read_case_labels, read_structures
from tcurlora.devices import choose_device
from tcurlora.errors import InputError
from tcurlora.evaluation import Score, score_case
from tcurlora.events import EventSink, NullEvents, Tee
from tcurlora.geometry import label_array
from tcurlora.images import read_image
from tcurlora.inference import Segmenter
from tcurlora.job_folder import JobFolder, describe_inputs
from tcurlora.labels import (
    Structure,
    channel_groups,
    match_structures,
    parse_labels,
    parse_mapping,
    plan_channels,
)
from tcurlora.preprocessing import CachedCase, cache_case
from tcurlora.presets import DEFAULT_PRESET, preset, training_settings
from tcurlora.reports import build_report, model_card, summary_table
from tcurlora.training import TrainingResult, TrainingSettings, train

LEAVE_ONE_OUT_BELOW = 6


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
    """

    base: str
    data: str
    out: str
    method: str = DEFAULT_PRESET
    rank: int | None = None
    folds: int | None = None
    steps: int | None = None
    minutes: float | None = None
    device: str = "auto"
    seed: int = 0
    labels: str = ""
    mapping: tuple[str, ...] = ()
    name: str = ""


@dataclass(frozen=True)
class Site:
    """A base model and a site's cases, with how the site's structures are served by the base's channels."""

    base: BaseModel
    dataset: Dataset
    structures: tuple[Structure, ...]
    matched: Mapping[str, list[str]]

    def config(self, network: torch.nn.Module, request: AdaptRequest) -> TensorCurConfig:
        """Configure what is trained: the preset, the head, and the layout of its channels."""
        example = torch.zeros(1, self.base.in_channels, *self.base.preprocessing.roi_size)
        changes: dict[str, Any] = {
            "head": find_head(network, example, len(self.base.channels)),
            "channels": tuple(plan_channels(self.matched, self.base.channels)),
            "seed": request.seed,
        }
        if request.rank is not None:
            changes["r"] = request.rank
        return preset(request.method, network, **changes)

    def segmenter(self, model: TensorCurModel, device: torch.device) -> Segmenter:
        """Merge an adapter and make ready to segment with it."""
        channels = [channel.name for channel in model.config.channels or ()]
        return Segmenter(
            model.merged(), channels, self.structures, self.base.preprocessing, device, self.base.in_channels
        )


def open_site(request: AdaptRequest) -> Site:
    """Read base model and cases and match their structures.

    Raises:
        InputError: when something is not found or not named.
    """
    base = load_base_model(request.base)
    dataset = find_cases(Path(request.data))
    structures = tuple(read_structures(dataset, parse_labels(request.labels)))
    matched = match_structures([s.name for s in structures], base.structures, parse_mapping(request.mapping))
    return Site(base, dataset, structures, matched)


def check_site(site: Site) -> list[Finding]:
    """Name every problem of every case at once, and say how the structures are matched."""
    findings = check_cases(site.dataset, site.structures, site.base.in_channels)
    for name, sources in site.matched.items():
        if not sources:
            text = f"The base model does not know '{name}'; it is learned from your cases alone."
            findings.append(Finding("", "new_structure", text, "If it does, say so with --map.", "note"))
        elif sources != [name]:
            text = f"'{name}' is taken from the base model's {' + '.join(repr(s) for s in sources)}."
            findings.append(Finding("", "mapped_structure", text, "If that is wrong, correct it with --map.", "note"))
    return findings


def fold_cases(cases: Sequence[Case], folds: int | None, seed: int) -> list[list[Case]]:
    """Split cases into held-out sets; all cases of a subject stay together.

    Args:
        cases: all cases.
        folds: number of folds; None means 3, or leave-one-out below 6 subjects. 0 and 1 mean none.
        seed: of the shuffle.
    """
    subjects = sorted({case.subject for case in cases})
    count = folds if folds is not None else (len(subjects) if len(subjects) < LEAVE_ONE_OUT_BELOW else 3)
    if count < 2 or len(subjects) < 2:
        return []
    random.Random(seed).shuffle(subjects)
    fold_of = {subject: i % min(count, len(subjects)) for i, subject in enumerate(subjects)}
    return [[c for c in cases if fold_of[c.subject] == k] for k in range(min(count, len(subjects)))]


def run_adapt(request: AdaptRequest, job_folder: Path, events: EventSink, resume: bool = False) -> dict[str, Any]:
    """Do the whole adaptation; the adapter appears at the end, whole, or not at all.

    Args:
        request: what to do.
        job_folder: where events, checkpoints and the cache live; made only when the input is good.
        events: told of stages, progress and measures.
        resume: go on with the job in that folder.

    Returns:
        The summary that is also in report.json.

    Raises:
        InputError: for anything wrong with the input, before anything is written.
    """
    started = time.monotonic()
    out = Path(request.out)
    require_absent(out)
    device = choose_device(request.device)
    events.emit("stage", name="check", title="Checking the cases")
    site = open_site(request)
    findings = check_site(site)
    errors = [finding for finding in findings if finding.severity == "error"]
    if errors:
        lines = "\n".join(f"  {f.case or 'all cases'}: {f.message} {f.remedy}" for f in errors)
        raise InputError(f"{len(errors)} problem(s) with the cases:\n{lines}", code=errors[0].code)
    files = [site.base.weights, *(path for case in site.dataset.cases for path in (case.image, case.label))]
    open_job = JobFolder.resume if resume else JobFolder.start
    job = open_job(job_folder, "adapt", asdict(request), describe_inputs(files))
    events = Tee(events, job.events)
    for finding in findings:
        events.emit("warning", code=finding.code, case=finding.case, message=f"{finding.message} {finding.remedy}")
    network = site.base.build()
    config = site.config(network, request)

    events.emit("stage", name="prepare", title="Preparing the cases")
    cached = {}
    for number, case in enumerate(site.dataset.cases, start=1):
        cached[case.name] = cache_case(case, site.structures, site.base.preprocessing, job.cache)
        events.emit("progress", step=number, total=len(site.dataset.cases))
    folds = fold_cases(site.dataset.cases, request.folds, request.seed)
    settings = _settings(request, site, network, config, list(cached.values()), len(folds), device, job, events)

    validation = _cross_validate(request, site, network, config, cached, folds, settings, device, job, events)
    events.emit("stage", name="train", title=f"Adapting on all {len(cached)} cases")
    model = TensorCurModel(network, config)
    result = _train(model, list(cached.values()), site, replace(settings, seed=request.seed * 1000), device, job, events)

    counts = model.trained_counts()
    training = {**asdict(settings), **counts, "cases": len(cached), "best_step": result.best_step}
    minutes = round((time.monotonic() - started) / 60, 2)
    report = build_report(
        [Score(**score) for fold in validation for score in fold["base"]] or None,
        [Score(**score) for fold in validation for score in fold["adapted"]] or None,
        folds=[{"cases": fold["cases"], "best_step": fold["best_step"]} for fold in validation],
        training={**training, "minutes": minutes, "curve": result.curve},
        size={
            "trained_numbers": counts["total"],
            "base_numbers": sum(p.numel() for p in network.parameters()),
            "adapter_bytes": sum(t.numel() * t.element_size() for t in model.trained_state().values()),
            "base_bytes": site.base.weights.stat().st_size,
        },
    )
    details = {
        "name": request.name or out.name,
        "method": request.method,
        "base_model": {
            "name": site.base.name,
            "version": str(site.base.metadata.get("version", "")),
            "sha256": site.base.sha256,
        },
        "structures": [s.to_dict() for s in site.structures],
        "preprocessing": site.base.preprocessing.to_dict(),
        "training": training,
        "versions": versions(),
        "created": time.strftime("%Y-%m-%d"),
    }
    save_adapter(model.cpu(), out, details, report, model_card({**model.config.to_dict(), **details}, report))
    size = (out / WEIGHTS).stat().st_size
    summary = {
        "adapter": str(out),
        "summary": report["summary"],
        "table": _table(report),
        "bytes": size,
        "trained": counts["total"],
    }
    job.finish(summary)
    events.emit("result", **summary)
    return summary


def _settings(
    request: AdaptRequest,
    site: Site,
    network: torch.nn.Module,
    config: TensorCurConfig,
    cached: Sequence[CachedCase],
    folds: int,
    device: torch.device,
    job: JobFolder,
    events: EventSink,
) -> TrainingSettings:
    """Settle the number of steps once a job: a resumed job must not measure time again and come to other steps."""
    settings = training_settings(request.method, seed=request.seed)
    if request.steps is not None:
        return replace(settings, steps=request.steps)
    if request.minutes is None:
        return settings
    steps = job.remembered("steps")
    if steps is None:
        started = time.monotonic()
        trial = replace(settings, steps=3, check_every=3)
        train(
            TensorCurModel(network, config), cached, _groups(site, config), site.base.preprocessing.roi_size, trial,
            device, NullEvents(),
        )
        seconds = (time.monotonic() - started) / 4  # three steps and a check, which costs about one more
        # A tenth of the time is kept for evaluation and saving.
        steps = max(settings.check_every, int(request.minutes * 60 * 0.9 / (seconds * 1.15 * (folds + 1))))
        job.remember("steps", steps)
    events.emit("stage", name="plan", title=f"{request.minutes:g} minutes are enough for {steps} steps a training")
    return replace(settings, steps=steps)


def _cross_validate(
    request: AdaptRequest,
    site: Site,
    network: torch.nn.Module,
    config: TensorCurConfig,
    cached: Mapping[str, CachedCase],
    folds: Sequence[Sequence[Case]],
    settings: TrainingSettings,
    device: torch.device,
    job: JobFolder,
    events: EventSink,
) -> list[dict[str, Any]]:
    """Train once for each fold on the other folds and score base and adapter on the cases held out."""
    done = []
    for number, held_out in enumerate(folds):
        fold = job.remembered(f"fold-{number}")
        if fold is None:
            title = f"Cross-validation {number + 1} of {len(folds)}: {len(held_out)} of {len(cached)} cases held out"
            events.emit("stage", name=f"fold-{number}", title=title)
            names = {case.name for case in held_out}
            model = TensorCurModel(network, config)
            base_scores = score_cases(site.segmenter(model, device), held_out, site.structures)
            training = [item for name, item in cached.items() if name not in names]
            fold_settings = replace(settings, seed=request.seed * 1000 + number + 1)
            result = _train(model, training, site, fold_settings, device, job, events)
            scores = score_cases(site.segmenter(model, device), held_out, site.structures)
            fold = {
                "cases": sorted(names),
                "best_step": result.best_step,
                "base": [asdict(score) for score in base_scores],
                "adapted": [asdict(score) for score in scores],
            }
            job.remember(f"fold-{number}", fold)
        for key in ("base", "adapted"):
            values = [score["dice"] for score in fold[key] if score["dice"] is not None]
            if values:
                events.emit("metric", name=f"{key}_dice", value=sum(values) / len(values), fold=number)
        done.append(fold)
    return done


def score_cases(segmenter: Segmenter, cases: Sequence[Case], structures: Sequence[Structure]) -> list[Score]:
    """Segment cases and score the results in the geometry of their images."""
    scores = []
    for case in cases:
        image = read_image(case.image)
        predicted, _ = segmenter.segment(image)
        truth = read_case_labels(case, structures)
        values = {structure.name: structure.value for structure in structures}
        scores += score_case(case.name, label_array(predicted), label_array(truth), image.GetSpacing(), values)
    return scores


def _train(
    model: TensorCurModel,
    cases: Sequence[CachedCase],
    site: Site,
    settings: TrainingSettings,
    device: torch.device,
    job: JobFolder,
    events: EventSink,
) -> TrainingResult:
    roi_size = site.base.preprocessing.roi_size
    groups = _groups(site, model.config)
    return train(model, cases, groups, roi_size, settings, device, events, job.checkpoint)


def _groups(site: Site, config: TensorCurConfig) -> list[list[int]]:
    return channel_groups([c.name for c in config.channels or ()], [s.name for s in site.structures])



def _table(report: Mapping[str, Any]) -> str:
    validation = report["cross_validation"]
    return "" if validation is None else summary_table({k: validation[k]["summary"] for k in ("base", "adapted")})


def versions() -> dict[str, str]:
    """Say which versions of the program and of what computes in it are at work."""
    return {"tcurlora": __version__, **{name: version(name) for name in ("torch", "monai", "SimpleITK", "numpy")}}
