"""Compare methods: all trained on the same splits, steps, augmentation and seeds, and scored on the same cases."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tcurlora.cases.cached_case import CachedCase, cache_case
from tcurlora.cases.case import Case
from tcurlora.cases.channels import with_channels_of
from tcurlora.cases.checks import require_no_errors
from tcurlora.cases.dataset import find_cases
from tcurlora.comparison.methods import Method, parse_methods
from tcurlora.comparison.plan import (
    BASE,
    DEFAULT_METHODS,
    CompareRequest,
    Split,
    Tuning,
    make_splits,
    open_tuning,
    rate_candidates,
    rate_key,
    require_good_cases,
    require_usable_folder,
)
from tcurlora.comparison.report import write_report
from tcurlora.comparison.results import build_results, summary_words, table_words
from tcurlora.comparison.retention import OwnData, open_own_data
from tcurlora.errors import InputError, TCurLoraError
from tcurlora.evaluation.gain import Row, mean_dice
from tcurlora.evaluation.scores import Score
from tcurlora.imaging.structures import parse_labels
from tcurlora.method.adapted_model import AdaptedModel
from tcurlora.models.adapter_files import weights_bytes
from tcurlora.runtime.devices import choose_device
from tcurlora.runtime.events import EventSink, NullEvents, Tee
from tcurlora.runtime.job_folder import JobFolder, hold_job
from tcurlora.runtime.memory import peak_bytes
from tcurlora.training.adaptation import describe_site, versions
from tcurlora.training.target_site import Site, fold_cases, open_site, score_cases
from tcurlora.training.trainer import TrainingResult, TrainingSettings, train

TRIAL_SHARE = 0.5
"""Steps of a trial of a learning rate, as a part of those of a training."""
TRIAL_STEPS = 3
"""Steps that tell how long a step takes."""


def run_compare(request: CompareRequest, events: EventSink) -> dict[str, Any]:
    """Do the whole comparison, or what is missing of it in the folder, and write its report.

    Args:
        request: what to do.
        events: told of stages, progress and measures.

    Returns:
        `report` (the HTML page), `table` (CSV), `results` (JSON), `summary` (one line) and `text` (a table).

    Raises:
        InputError: for anything wrong with the input, before anything is written; `busy` when another run is at work
            in the folder.
    """
    with ExitStack() as held:
        return _run_compare(request, events, held)


def _run_compare(request: CompareRequest, events: EventSink, held: ExitStack) -> dict[str, Any]:
    names = request.methods or DEFAULT_METHODS
    methods = parse_methods((BASE, *(name for name in names if name.strip() != BASE)))
    steps = request.steps or TrainingSettings.steps
    beyond = [step for step in request.score_at if step < 1 or (step >= steps and request.minutes is None)]
    if beyond:
        raise InputError(
            f"--score-at has step {beyond[0]}, which is not on the way of a training of {steps} steps.",
            "Give steps from 1 on and below that; the end is scored in any case.",
            "usage",
        )
    out = Path(request.out)
    require_usable_folder(out)
    device = choose_device(request.device)
    events.emit("stage", name="check", title="Checking the cases")
    site = open_site(
        request.base, request.data, request.labels, request.mapping, labels_complete=request.labels_complete
    )
    test: tuple[Case, ...] = ()
    if request.test:
        found = with_channels_of(find_cases(Path(request.test), parse_labels(request.labels)), site.base.input_channels)
        require_no_errors(found.findings)
        test = found.cases
    require_good_cases(site, test)
    splits = make_splits(site.dataset.cases, test, request.folds, request.subjects)
    own = open_own_data(site, request.own_data, request.own_labels) if request.own_data else None
    run = _Comparison(request, site, own, site.base.build(), methods, splits, device)
    counts: dict[str, Mapping[str, int]] = {}
    for name in list(methods):
        try:
            counts[name] = run.model(name, 0).trained_counts()
        except InputError as error:
            if request.methods:
                raise
            del methods[name]
            events.emit("warning", code=error.code, message=f"'{name}' is left out: {error.message}")
    reference = request.reference or ("compact" if "compact" in methods else list(methods)[-1])
    if reference not in methods:
        raise InputError(
            f"The reference '{reference}' is not among the methods.", "Add it to --methods.", "unknown_method"
        )
    if request.rates_of:
        trained = [name for name, (method, _) in methods.items() if method.trained]
        run.tuning = open_tuning(request, trained, len(splits))

    own_structures = [structure.to_dict() for structure in own.structures] if own else []
    inputs = describe_site(site, (*test, *(own.cases if own else ())), own_structures=own_structures)
    held.enter_context(hold_job(out))
    run.job = _open_job(out, request, inputs)
    run.events = Tee(events, run.job.events)
    run.prepare()
    run.settle_steps()
    records = run.all_runs()

    results = build_results(
        settings=run.settings_for_report(reference),
        methods={name: run.method_for_report(name, counts[name]) for name in methods},
        rows=run.rows(records),
        curves={name: [r["curve"] for r in records if r["method"] == name] for name in methods},
        rows_at=run.rows_on_the_way(records),
    )
    paths = write_report(out, results, run.real_names())
    result = {**paths, "summary": summary_words(results), "text": table_words(results)}
    run.job.finish(result)
    events.emit("result", **result)
    return result


@dataclass
class _Comparison:
    """All that the parts of one comparison share."""

    request: CompareRequest
    site: Site
    own: OwnData | None
    network: nn.Module
    methods: Mapping[str, tuple[Method, int]]
    splits: Sequence[Split]
    device: torch.device
    tuning: Tuning | None = None
    steps: int = 0

    def __post_init__(self) -> None:
        self.job: JobFolder
        self.events: EventSink = NullEvents()
        self.cached: dict[str, CachedCase] = {}

    def model(self, name: str, seed: int) -> AdaptedModel:
        """Make an untrained model."""
        method, rank = self.methods[name]
        config = self.site.config(self.network, method.preset, rank, seed)
        return method.make(self.network, replace(config, **method.changes))

    def prepare(self) -> None:
        """Preprocess the cases that are trained on."""
        self.events.emit("stage", name="prepare", title="Preparing the cases")
        training = {case.name: case for split in self.splits for case in split.training}
        for number, case in enumerate(training.values(), start=1):
            self.cached[case.name] = cache_case(
                case, self.site.structures, self.site.base.preprocessing, self.job.cache, self.site.overlapping
            )
            self.events.emit("progress", step=number, total=len(training))

    def settle_steps(self) -> None:
        """Fix the number of steps once for the whole comparison: one that goes on must not measure time again."""
        steps = self.request.steps or TrainingSettings.steps
        if self.request.minutes is not None:
            steps = self.job.remembered("steps") or self._steps_for(self.request.minutes)
            self.job.remember("steps", steps)
        self.steps = int(steps)

    def all_runs(self) -> list[dict[str, Any]]:
        """Train and score every method on every split with every seed, except for what is remembered."""
        planned = [
            (seed, split, name)
            for seed in self.request.seeds
            for split in self.splits
            for name in self.methods
            # The base is the same with every seed.
            if name != BASE or seed == self.request.seeds[0]
        ]
        records = []
        for number, (seed, split, name) in enumerate(planned, start=1):
            key = f"run-{name}-{split.number}-{BASE if name == BASE else seed}"
            record = self.job.remembered(key)
            if record is None:
                factor = self._rate(name, split)["factor"] if self.methods[name][0].trained else None
                title = f"{name}, split {split.number} of {len(self.splits)}, seed {seed}"
                self.events.emit("stage", name=key, title=f"{title} ({number} of {len(planned)})")
                record = self._run(name, split, seed, key, factor)
                self.job.remember(key, record)
                (self.job.path / f"{key}.safetensors").unlink(missing_ok=True)
            dice = mean_dice([Score(**score) for score in record["test"]], _subjects(split.test))
            if dice is not None:
                fields = {"method": name, "split": split.number, "seed": seed}
                self.events.emit("metric", name="dice", value=dice, **fields)
            records.append(record)
        return records

    def _run(self, name: str, split: Split, seed: int, key: str, factor: float | None) -> dict[str, Any]:
        model = self.model(name, seed)
        result, seconds = TrainingResult(), None

        def score_on_the_way(step: int) -> None:
            key_of_step = f"{key}-at-{step}"
            if step in self.request.score_at and self.job.remembered(key_of_step) is None:
                self.job.remember(key_of_step, self._test_scores(model, split))

        if factor is not None:
            clock = _Clock()
            result = self._train(
                model,
                split.training,
                self._settings(name, factor, seed * 1000 + split.number),
                Tee(self.events, clock),
                self.job.path / f"{key}.safetensors",
                score_on_the_way,
            )
            seconds = clock.seconds_per_step()
        on_the_way = {step: self.job.remembered(f"{key}-at-{step}") for step in self.request.score_at}
        return {
            "method": name,
            "split": split.number,
            "seed": seed,
            "steps": result.steps,
            "best_step": result.best_step,
            "curve": result.curve,
            "step_seconds": seconds,
            "test": self._test_scores(model, split),
            "at_steps": [{"step": step, "test": scores} for step, scores in on_the_way.items() if scores is not None],
            "own": [asdict(s) for s in self.own.score(self.site.segmenter(model, self.device))] if self.own else [],
        }

    def _test_scores(self, model: AdaptedModel, split: Split) -> list[dict[str, Any]]:
        segmenter = self.site.segmenter(model, self.device)
        return [asdict(score) for score in score_cases(segmenter, split.test, self.site.structures)]

    def _rate(self, name: str, split: Split) -> dict[str, Any]:
        """Choose the learning rate on a part of the split's own training cases; its test cases are not looked at.

        Each candidate trains on two thirds of the subjects, with half of the steps; the one with the highest mean Dice
        on the other third is taken, the smaller of two that are equal.
        """
        key = rate_key(name, split.number)
        job = self.job if self.tuning is None else self.tuning.job
        known: dict[str, Any] | None = job.remembered(key)
        if known is not None:
            return known
        candidates = rate_candidates(self.request.lr_trials)
        parts = fold_cases(split.training, 3, split.number)
        trials: list[dict[str, float]] = []
        if len(candidates) > 1 and parts:
            held_out = parts[-1]  # the smallest part
            training = [case for case in split.training if case not in held_out]
            for factor in candidates:
                title = f"{name}, split {split.number}: learning rate x {factor:.2g}"
                self.events.emit("stage", name=f"{key}-{factor:.2g}", title=title)
                dice = self._try_rate(name, training, held_out, factor, split.number)
                trials.append({"factor": factor, "dice": dice})
        best = max(trials, key=lambda trial: (trial["dice"], -trial["factor"]))["factor"] if trials else 1.0
        at_edge = bool(trials) and best in (candidates[0], candidates[-1])
        chosen = {"split": split.number, "factor": best, "at_edge": at_edge, "trials": trials}
        self.job.remember(key, chosen)
        return chosen

    def _try_rate(
        self, name: str, training: Sequence[Case], held_out: Sequence[Case], factor: float, seed: int
    ) -> float:
        model = self.model(name, 0)
        settings = self._settings(name, factor, seed)
        settings = replace(settings, steps=max(1, round(self.steps * TRIAL_SHARE)))
        try:
            self._train(model, training, settings, self.events)
        except TCurLoraError as error:
            if error.code != "diverged":
                raise
            return 0.0
        scores = score_cases(self.site.segmenter(model, self.device), held_out, self.site.structures)
        return mean_dice(scores, _subjects(held_out)) or 0.0

    def _settings(self, name: str, factor: float, seed: int) -> TrainingSettings:
        method, _ = self.methods[name]
        # Every method gets all of its steps: there is no patience.
        return TrainingSettings(
            steps=self.steps,
            lr_core=method.lr_core * factor,
            lr_whole=method.lr_whole * factor,
            lr_new_head=TrainingSettings.lr_new_head * factor,
            core_decay=method.core_decay,
            patience=self.steps,
            seed=seed,
        )

    def _train(
        self,
        model: AdaptedModel,
        cases: Sequence[Case],
        settings: TrainingSettings,
        events: EventSink,
        checkpoint: Path | None = None,
        after_step: Callable[[int], None] | None = None,
    ) -> TrainingResult:
        cached = [self.cached[case.name] for case in cases]
        groups, roi_size = self.site.groups(model.config), self.site.base.windows.roi_size
        kept = self.site.kept_channels(self.network, model.config)
        return train(model, cached, groups, roi_size, settings, self.device, events, checkpoint, after_step, kept)

    def _short_training(self, name: str, steps: int) -> None:
        settings = replace(self._settings(name, 1.0, 0), steps=steps, check_every=steps)
        self._train(self.model(name, 0), self.splits[0].training, settings, NullEvents())

    def _steps_for(self, minutes: float) -> int:
        self.events.emit("stage", name="plan", title="Measuring how long a step takes")
        step_seconds = 0.0
        for name, (method, _) in self.methods.items():
            if method.trained:
                started = time.monotonic()
                self._short_training(name, TRIAL_STEPS)
                # The training has one check, which costs about as much as two steps.
                step_seconds += (time.monotonic() - started) / (TRIAL_STEPS + 2)
        started = time.monotonic()
        score_cases(
            self.site.segmenter(self.model(BASE, 0), self.device), self.splits[0].test[:1], self.site.structures
        )
        scored = sum(len(split.test) + (len(self.own.cases) if self.own else 0) for split in self.splits)
        scoring = (time.monotonic() - started) * scored * len(self.methods) * len(self.request.seeds)
        tried = 1 if self.tuning is not None else len(rate_candidates(self.request.lr_trials))
        trainings = len(self.splits) * (len(self.request.seeds) + (tried * TRIAL_SHARE if tried > 1 else 0))
        least = TrainingSettings.check_every
        steps = int((minutes * 60 * 0.9 - scoring) / max(1e-9, step_seconds * trainings))
        if steps < least:
            message = f"{minutes:g} minutes are too short for this comparison; it takes {least} steps and longer."
            self.events.emit("warning", code="too_short", message=message)
        steps = max(least, steps)
        title = f"{minutes:g} minutes: {steps} steps for each training"
        self.events.emit("stage", name="plan", title=title, steps=steps, trainings=trainings)
        return steps

    def peak_memory(self, name: str) -> int | None:
        """Bytes that two steps hold at most, beyond the base's weights; measured once for each method."""
        if not self.methods[name][0].trained:
            return None
        key = f"memory-{name}"
        if self.job.remembered(key) is None:
            self.events.emit("stage", name=key, title=f"{name}: measuring memory")
            self.job.remember(key, peak_bytes(partial(self._short_training, name, 2), self.device))
        return int(self.job.remembered(key))

    def method_for_report(self, name: str, counts: Mapping[str, int]) -> dict[str, Any]:
        """Say what a method is, what it costs, and how its learning rates came about."""
        method, rank = self.methods[name]
        runs = [
            self.job.remembered(f"run-{name}-{split.number}-{seed}")
            for seed in self.request.seeds
            for split in self.splits
            if method.trained
        ]
        rates = [self._rate(name, split) for split in self.splits] if method.trained else []
        seconds = [run["step_seconds"] for run in runs if run["step_seconds"] is not None]
        return {
            "title": method.title,
            "rank": rank,
            "trained": counts["total"] if method.trained else 0,
            "trained_cores": counts["cores"] if method.trained else 0,
            "adapter_bytes": weights_bytes(self.model(name, 0).trained_state()) if method.trained else 0,
            "step_seconds": statistics.median(seconds) if seconds else None,
            "peak_memory_bytes": self.peak_memory(name),
            "best_steps": [run["best_step"] for run in runs],
            "rates": [
                {**rate, "lr_core": method.lr_core * rate["factor"], "lr_whole": method.lr_whole * rate["factor"]}
                for rate in rates
            ],
        }

    def settings_for_report(self, reference: str) -> dict[str, Any]:
        """Say how the comparison was made, without paths."""
        example = TrainingSettings(steps=self.steps)
        lr_trials = self.request.lr_trials if self.tuning is None else self.tuning.lr_trials
        trial_steps = (self.steps if self.tuning is None else self.tuning.steps) * TRIAL_SHARE
        return {
            "reference": reference,
            "base": {"name": self.site.base.name, "sha256": self.site.base.sha256},
            "structures": [structure.name for structure in self.site.structures],
            "new_structures": [name for name, sources in self.site.matched.items() if not sources],
            "steps": self.steps,
            "batch": example.batch,
            "seeds": list(self.request.seeds),
            "rate_factors": rate_candidates(lr_trials),
            "rate_steps": max(1, round(trial_steps)),
            "kind": "draws" if self.request.subjects else "test" if self.request.test else "folds",
            "splits": [
                {
                    "number": split.number,
                    **{
                        f"{part}_{what}": len({getattr(case, field) for case in cases})
                        for part, cases in (("training", split.training), ("test", split.test))
                        for what, field in (("cases", "name"), ("subjects", "subject"))
                    },
                }
                for split in self.splits
            ],
            "own_cases": len(self.own.cases) if self.own else 0,
            "device": self.device.type,
            "threads": torch.get_num_threads(),
            "created": time.strftime("%Y-%m-%d"),
            "versions": versions(),
        }

    def aliases(self) -> dict[tuple[str, str], tuple[str, str]]:
        """Numbers instead of names, which often are those of patients: part and case to subject and case."""
        parts = {"test": {case.name: case for split in self.splits for case in split.test}}
        parts["own"] = {case.name: case for case in self.own.cases} if self.own else {}
        aliases = {}
        for part, cases in parts.items():
            word = "own " if part == "own" else ""
            subjects = sorted({case.subject for case in cases.values()})
            for number, name in enumerate(sorted(cases), start=1):
                subject = subjects.index(cases[name].subject) + 1
                aliases[part, name] = (f"{word}subject {subject:03d}", f"{word}case {number:03d}")
        return aliases

    def rows(self, records: Sequence[Mapping[str, Any]]) -> list[Row]:
        """All scores, with numbered cases."""
        aliases = self.aliases()
        rows = []
        for record in records:
            for part in ("test", "own"):
                for score in record[part]:
                    subject, case = aliases[part, score["case"]]
                    rest = {key: value for key, value in score.items() if key != "case"}
                    where = {key: record[key] for key in ("method", "split", "seed")}
                    rows.append(Row(part=part, subject=subject, case=case, **where, **rest))
        return rows

    def rows_on_the_way(self, records: Sequence[Mapping[str, Any]]) -> dict[int, list[Row]]:
        """The scores of the test cases after each step of `score_at`."""
        return {
            step: self.rows(
                [
                    {**record, "test": point["test"], "own": []}
                    for record in records
                    for point in record.get("at_steps", ())
                    if point["step"] == step
                ]
            )
            for step in sorted(self.request.score_at)
        }

    def real_names(self) -> dict[str, str]:
        """The name behind each number, for the table that stays at the site."""
        return {alias: name for (_, name), (_, alias) in self.aliases().items()}


def _subjects(cases: Sequence[Case]) -> dict[str, str]:
    return {case.name: case.subject for case in cases}


class _Clock:
    """Takes the time between the steps of a training."""

    def __init__(self) -> None:
        self._times: list[float] = []

    def emit(self, kind: str, **_fields: Any) -> None:
        if kind == "progress":
            self._times.append(time.perf_counter())

    def seconds_per_step(self) -> float | None:
        """The median, which checks between some steps do not change; None below two steps."""
        gaps = [b - a for a, b in zip(self._times, self._times[1:], strict=False)]
        return statistics.median(gaps) if gaps else None


def _open_job(out: Path, request: CompareRequest, inputs: Mapping[str, Any]) -> JobFolder:
    begun, asked = CompareRequest.begun(out), request.binding()
    if begun is None:
        return JobFolder.start(out, "compare", asked, inputs)
    if begun[0].binding() == asked:
        asked = begun[1]
    try:
        return JobFolder.resume(out, "compare", asked, inputs)
    except InputError as error:
        raise InputError(
            error.message,
            "Choose another --out, or give the same options and files; only methods, seeds and reference may change.",
            error.code,
        ) from error
