"""The command `tcurlora`. What a command needs is imported when it runs, so that help appears at once."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from tcurlora import __version__
from tcurlora.errors import Cancelled, InputError, TCurLoraError, as_user_error
from tcurlora.runtime.events import ConsoleEvents, EventSink, JsonEvents
from tcurlora.runtime.parent_process import attach
from tcurlora_contract.methods import COMPARED, METHODS

if TYPE_CHECKING:
    from tcurlora.inference.segmenter_cache import SegmenterCache

LOADS_MONAI: dict[str, tuple[str, ...]] = {
    "check": (),
    "adapt": ("scipy",),
    "segment": (),
    "evaluate": ("scipy",),
    "compare": ("scipy",),
    "merge": (),
    "demo": ("scipy",),
    "serve": (),
}
"""Commands that need MONAI, and what MONAI needs for them; it measures surface distances with scipy."""


UNDER_TORCHRUN = "TORCHELASTIC_RUN_ID"
SHARED = ("adapt", "segment")
"""Commands that share their work among the processes that torchrun starts."""


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence instead of a page of usage."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message[0].upper()}{message[1:]}.", f"See '{self.prog} --help'.", "usage")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 done, 2 bad input, 3 out of memory, 4 cancelled, 1 anything else.
    """
    is_program = arguments is None
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    events: EventSink = JsonEvents() if "--json" in arguments else ConsoleEvents()
    for stream in (sys.stdout, sys.stderr):
        # Windows' consoles and pipes have other defaults, and a path may hold any character.
        getattr(stream, "reconfigure", lambda **_: None)(encoding="utf-8", errors="backslashreplace")
    # A terminated job must close its files and say so, like one that is interrupted from the keyboard.
    before = signal.signal(signal.SIGTERM, _cancel)
    done = None
    failed = True
    try:
        options = build_parser().parse_args(arguments)
        if UNDER_TORCHRUN in os.environ:
            _join(options)
        done = attach() if options.attached and options.run is not _serve else None
        if is_program and options.command in LOADS_MONAI:
            from tcurlora.runtime.monai_import import import_monai

            import_monai(LOADS_MONAI[options.command])
        code: int = options.run(options, events)
        sys.stdout.flush()
        failed = False
    except BrokenPipeError:
        # Whoever started this does not listen any more, so there is nobody left to work for or to tell.
        _silence()
        return Cancelled.exit_code
    except TCurLoraError as error:
        _report(events, error)
        return error.exit_code
    except KeyboardInterrupt:
        _report(events, Cancelled())
        return Cancelled.exit_code
    except Exception as error:
        said = as_user_error(error)
        if said.code == "internal" and not is_program:
            raise
        if said.code == "internal" and ("--json" in arguments or "TCURLORA_TRACEBACK" in os.environ):
            traceback.print_exc()  # for the log of the program that started this
        _report(events, said)
        return said.exit_code
    finally:
        if done is not None:
            done.set()
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
        if UNDER_TORCHRUN in os.environ and "tcurlora.runtime.distributed" in sys.modules:
            from tcurlora.runtime.distributed import leave

            leave(failed)
    return code


def build_parser() -> argparse.ArgumentParser:
    """Describe all commands and their options."""
    parser = Parser(prog="tcurlora", description="Adapt a segmentation model to your own scans, and segment with it.")
    parser.add_argument("--version", action="version", version=f"tcurlora {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)

    def command(name: str, run: Callable[[argparse.Namespace, EventSink], int], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.add_argument("--json", action="store_true", help="write events and results as JSON lines")
        added.add_argument(
            "--attached", action="store_true", help="end when stdin says 'cancel' or closes; for programs"
        )
        added.set_defaults(run=run)
        return added

    command("doctor", _doctor, "say what works here: python, torch, device, memory, disk, models")

    models = command("models", _models, "list, show, fetch, add, import or remove base models")
    models.add_argument("action", choices=("list", "show", "fetch", "add", "import", "remove"))
    models.add_argument(
        "name",
        nargs="?",
        help="name of the model; for add: folder or zip file of a MONAI bundle or a trained nnU-Net; "
        "for import: a weights file",
    )
    models.add_argument("--name", dest="new_name", help="for add and import: name of the model here (default: its own)")
    models.add_argument(
        "--accept-licence",
        action="store_true",
        help="for fetch: you have read the licence of a model that may not be used for every purpose",
    )
    models.add_argument("--like", default="", help="for import: a base model of the same network, or a similar one")
    models.add_argument("--network", default="", help="for import: class of the network, such as SwinUNETR")
    models.add_argument("--arguments", default="", help="for import: arguments of the network (JSON, or a file of it)")
    models.add_argument("--structures", default="", help="for import: names of the output channels, with commas")
    models.add_argument("--regions", action="store_true", help="for import: the structures may overlap (sigmoid)")
    models.add_argument("--inputs", default="", help="for import: names of the input channels, with commas")
    models.add_argument("--spacing", default="", help="for import: voxel size in mm, such as 1.5,1.5,2, or none")
    models.add_argument("--intensity", default="", help="for import: zscore, minmax, none, or a range such as -175,250")
    models.add_argument("--window", default="", help="for import: size of the window in voxels, such as 96,96,96")
    models.add_argument("--fold", default="", help="for add: folds of an nnU-Net to keep, such as 0,1,2 (default: 0)")
    models.add_argument(
        "--orientation",
        default="",
        help="for add: orientation of an nnU-Net's training data, such as RAS or LPS, which nnU-Net does not record; "
        "'stored' takes scans as they are stored, as nnU-Net does",
    )

    check = command("check", _check, "check cases against a base model, without training")
    _add_site(check)
    check.add_argument(
        "--guess", action="store_true", help="also segment a few cases, to guess what your structures are in the base"
    )
    check.add_argument("--device", default="auto", help="for --guess: auto, cpu, cuda, cuda:1, mps")

    adapt = command("adapt", _adapt, "adapt a base model to your labeled cases")
    _add_site(adapt)
    adapt.add_argument("--out", required=True, help="folder of the new adapter")
    adapt.add_argument("--name", default="", help="name of the adapter (default: that of its folder)")
    adapt.add_argument("--method", default="compact", help=f"one of {', '.join(METHODS)}; 'tcurlora' is 'compact'")
    adapt.add_argument("--rank", type=_positive, help="rank of the cores (default: 4 for compact, 8 for paper)")
    adapt.add_argument(
        "--folds",
        type=_natural,
        help="folds of the cross-validation; 0: none (default: 3; with fewer than 6 cases one a subject)",
    )
    length = adapt.add_mutually_exclusive_group()
    length.add_argument("--steps", type=_positive, help="optimizer steps of each training (default: 160)")
    length.add_argument("--minutes", type=_minutes, help="time for the whole run, instead of steps")
    adapt.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    adapt.add_argument("--seed", type=_natural, default=0, help="of everything random (default: 0)")
    adapt.add_argument("--job", help="folder for checkpoint and log, kept afterwards (default: OUT.job, removed)")
    adapt.add_argument("--resume", action="store_true", help="go on with a run that was broken off")

    segment = command("segment", _segment, "segment scans with an adapter or a base model")
    segment.add_argument("--model", required=True, help="adapter or base model: a folder or a name")
    segment.add_argument(
        "--input",
        default=[],
        nargs="+",
        metavar="SCAN",
        help="scans, DICOM series, or folders of them; for a model of several channels also folders with files "
        "CASE_0000.nii.gz, CASE_0001.nii.gz, ... or a folder a scan with a file for each channel, named as it is",
    )
    segment.add_argument(
        "--channels",
        action="append",
        default=[],
        nargs="+",
        metavar="FILE",
        help="the files of one scan, one for each channel in the model's order (see 'models show'); may be repeated",
    )
    segment.add_argument("--out", required=True, help="file for one scan (.seg.nrrd, .nii.gz, ...), or a folder")
    segment.add_argument("--base", default="", help="base model of the adapter, where it is not installed")
    segment.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    segment.add_argument(
        "--mirror", action="store_true", help="also mirror each window, as nnU-Net can; several times slower"
    )
    segment.add_argument(
        "--fold", default="", help="of an nnU-Net: the fold to use, or several to average, such as 0,1,2 (default: 0)"
    )
    segment.add_argument("--uncertainty", action="store_true", help="also write a voxel map of uncertainty")
    segment.add_argument("--job", help="folder for request, log and result (default: none)")

    segment.set_defaults(segmenters=None)

    evaluate = command("evaluate", _evaluate, "compare segmentations with the truth: Dice, HD95, surface distance")
    evaluate.add_argument("--pred", required=True, help="folder of segmentations")
    evaluate.add_argument("--truth", required=True, help="folder of true labels with the same file names")
    evaluate.add_argument("--labels", default="", help="names of label values, such as 1=hippocampus")
    evaluate.add_argument("--out", help="file for the whole report (JSON)")

    compare = command("compare", _compare, "train several methods on the same cases and report how they compare")
    _add_site(compare)
    compare.add_argument("--out", required=True, help="folder of the report; what it holds already is not done again")
    compare.add_argument(
        "--methods",
        default="",
        help="separated by commas, NAME@RANK for another rank "
        f"(default: those of {','.join(COMPARED)} that suit the base); "
        "also lora-xs, curlora, gaussian, compact-orthonormal, compact-raw, compact-decoder, "
        "compact-flat, paper-orthonormal, paper-lora",
    )
    compare.add_argument("--reference", default="", help="method that the others are compared with (default: compact)")
    length = compare.add_mutually_exclusive_group()
    length.add_argument("--steps", type=_positive, help="optimizer steps of each training (default: 160)")
    length.add_argument("--minutes", type=_minutes, help="time for the whole comparison, instead of steps")
    compare.add_argument("--folds", type=_natural, help="folds, or draws with --subjects (default: 3)")
    compare.add_argument(
        "--subjects", type=_positive, help="train on so many subjects drawn at random, test on the rest"
    )
    compare.add_argument("--seeds", default="0,1,2", help="each method is trained with each (default: 0,1,2)")
    rates = compare.add_mutually_exclusive_group()
    rates.add_argument("--lr-trials", type=_positive, default=3, help="learning rates tried for each method; 1: none")
    rates.add_argument("--rates-of", default="", help="another comparison of the same splits, whose rates are taken")
    compare.add_argument("--score-at", default="", help="steps after which to score too, such as 100,200")
    compare.add_argument("--test", default="", help="cases to test on, instead of a part of --data")
    compare.add_argument("--own-data", default="", help="cases of the base's own site, to see what is lost there")
    compare.add_argument("--own-labels", default="", help="names of label values in --own-data")
    compare.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")

    adapters = command("adapters", _adapters, "list, show, export, import, rename or remove adapters of your library")
    adapters.add_argument("action", choices=("list", "show", "export", "import", "rename", "remove"))
    adapters.add_argument("name", nargs="?", help="name or folder of the adapter; for import: a zip file or a folder")
    adapters.add_argument("--out", help="for export: the zip file")
    adapters.add_argument("--name", dest="new_name", help="for import and rename: name in the library")
    adapters.add_argument("--force", action="store_true", help="for export and import: replace what has that name")

    merge = command("merge", _merge, "write adapter and base as one MONAI bundle or nnU-Net that runs without this")
    merge.add_argument("--model", required=True, help="adapter: a folder or a name")
    merge.add_argument("--out", required=True, help="folder of the new model")
    merge.add_argument("--base", default="", help="base model of the adapter, where it is not installed")

    demo = command("demo", _demo, "the whole path on real MRI, with nothing to download")
    demo.add_argument("--out", default="tcurlora-demo", help="folder for what it makes (default: tcurlora-demo)")
    demo.add_argument("--patients", type=_positive, help="make only so many simulated patients, and stop")
    demo.add_argument("--seed", type=_natural, default=0, help="of the patients, with --patients (default: 0)")

    serve = command("serve", _serve, "stay ready for requests, as JSON lines on stdin; for programs")
    serve.add_argument("--idle-minutes", type=_minutes, default=10.0, help="end after this time without a request")
    return parser


def _join(options: argparse.Namespace) -> None:
    """Meet the other processes that torchrun has started."""
    if options.command not in SHARED:
        raise InputError(
            f"'{options.command}' is no work for several processes.", "Start it without torchrun.", "usage"
        )
    if options.attached:
        raise InputError("--attached is for a single process.", "Leave it out, and end torchrun itself.", "usage")
    if options.device.startswith("cuda:"):
        raise InputError("Under torchrun each process takes a graphics card of its own.", "Say --device cuda.", "usage")
    from tcurlora.runtime.distributed import join

    join()


def _add_site(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--base", required=True, help="base model: a name or a bundle folder; see 'tcurlora models list'"
    )
    parser.add_argument("--data", required=True, help="folder with images/ and labels/, or a datalist (JSON)")
    parser.add_argument("--labels", default="", help="names of label values, such as 1=hippocampus,2=amygdala")
    parser.add_argument(
        "--map",
        action="append",
        default=[],
        metavar="SITE=BASE+BASE",
        help="which base structures one of yours consists of, or 'new'; may be given several times",
    )
    parser.add_argument(
        "--labels-complete",
        action="store_true",
        help="a voxel without a label holds none of the base's other structures either (default: they are kept as the "
        "base segments them, because scans are seldom labeled with all of them)",
    )


def _doctor(options: argparse.Namespace, _events: EventSink) -> int:
    from tcurlora.cli.doctor import describe, examine
    from tcurlora.models.catalogue import list_models

    report = examine([entry["name"] for entry in list_models() if entry["on_disk"]])
    _print(options, report, describe(report))
    return 0 if report["ok"] else 1


def _models(options: argparse.Namespace, events: EventSink) -> int:
    from tcurlora.models import catalogue

    if options.action == "list":
        rows = [
            [
                entry["name"],
                entry.get("kind", ""),
                entry.get("title", ""),
                _in_short(entry.get("structures", ())),
                _where(entry),
            ]
            for entry in catalogue.list_models()
        ]
        _print(options, catalogue.list_models(), _columns(["name", "kind", "title", "structures", "on disk"], rows))
        return 0
    name = _required_name(options)
    if options.action == "show":
        from tcurlora.cli.describe_base import describe_base, describe_base_in_words

        description = describe_base(name)
        _print(options, description, describe_base_in_words(description))
    elif options.action == "fetch":
        path = catalogue.fetch_model(name, events, options.accept_licence)
        _print(options, {"path": str(path)}, f"Fetched '{name}'.")
    elif options.action == "import":
        _import_weights(options, Path(name))
    elif options.action == "add":
        from tcurlora.models.kinds import AddOptions
        from tcurlora.models.opening import load_base_model

        added = catalogue.add_model(
            Path(name),
            lambda folder: _require_loadable(folder, options.fold),
            options.new_name,
            AddOptions(options.fold, options.orientation),
        )
        _print(options, {"path": str(added)}, "\n".join([f"Added '{added.name}'.", *load_base_model(added).notes]))
    else:
        catalogue.remove_model(name)
        _print(options, {"removed": name}, f"Removed '{name}'.")
    return 0


def _import_weights(options: argparse.Namespace, weights: Path) -> None:
    from dataclasses import fields

    from tcurlora.models import catalogue
    from tcurlora.models.bare_weights import Description, write_described

    description = Description(**{field.name: getattr(options, field.name) for field in fields(Description)})
    name = options.new_name or weights.stem
    path = catalogue.make_model(name, lambda folder: write_described(weights, folder, description))
    _print(options, {"path": str(path)}, f"Added '{name}'.")


def _in_short(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 8 else f"{', '.join(names[:6])}, ... ({len(names)})"


def _check(options: argparse.Namespace, events: EventSink) -> int:
    from dataclasses import asdict

    from tcurlora.training.target_site import check_site, open_site

    site = open_site(
        options.base,
        options.data,
        options.labels,
        options.map,
        strict=False,
        labels_complete=options.labels_complete,
    )
    findings = check_site(site)
    errors = sum(finding.severity == "error" for finding in findings)
    words = [f"{f.severity}: {f.case or 'all cases'}: {f.message} {f.remedy}".rstrip() for f in findings]
    words.append(f"Structures: {', '.join(f'{s.name} (label {s.value})' for s in site.structures) or 'none'}.")
    subjects = len({case.subject for case in site.dataset.cases})
    whose = f"{len(site.dataset.cases)} cases of {subjects} subject{'' if subjects == 1 else 's'}"
    words.append(f"{whose}, {errors} problem{'' if errors == 1 else 's'}.")
    report = {
        "cases": len(site.dataset.cases),
        "subjects": subjects,
        "errors": errors,
        "findings": [asdict(f) for f in findings],
        "base_structures": list(site.base.structures),
        "structures": [{"name": s.name, "value": s.value, "base": site.matched[s.name]} for s in site.structures],
        "kept_structures": [{"name": s.name, "value": s.value} for s in site.kept],
    }
    if options.guess:
        from tcurlora.runtime.devices import choose_device
        from tcurlora.training.structure_guesses import guess_structures

        guesses = guess_structures(site, choose_device(options.device), events)
        report["guesses"] = [guess.to_dict() for guess in guesses]
        for guess in guesses:
            best = [f"{' + '.join(names)} (Dice {dice:.2f})" for names, dice in guess.candidates]
            words.append(f"'{guess.structure}' lies where the base finds: {', '.join(best) or 'nothing'}.")
    _print(options, report, "\n".join(words))
    return InputError.exit_code if errors else 0


def _adapt(options: argparse.Namespace, events: EventSink) -> int:
    from tcurlora.runtime.job_folder import JobFolder, remove_job
    from tcurlora.training.adaptation import AdaptRequest, run_adapt

    request = AdaptRequest(
        base=options.base,
        data=options.data,
        out=options.out,
        method="compact" if options.method == "tcurlora" else options.method,
        rank=options.rank,
        folds=options.folds,
        steps=options.steps,
        minutes=options.minutes,
        device=options.device,
        seed=options.seed,
        labels=options.labels,
        mapping=tuple(options.map),
        name=options.name,
        labels_complete=options.labels_complete,
    )
    out = Path(options.out)
    job = Path(options.job or f"{out}.job")
    try:
        summary = run_adapt(request, job, events, options.resume)
    except KeyboardInterrupt:
        if JobFolder.is_one(job):
            remedy = f"'{job}' holds copies of your cases: go on with --resume, or delete it."
            raise Cancelled(remedy=remedy) from None
        raise
    if not _leads():
        return 0
    if not options.job:
        remove_job(job)
    if not options.json:
        print(summary["table"])
        print(summary["summary"])
        size = f"{summary['trained']:,} trained parameters, {summary['bytes'] / 1000:.0f} kB"
        print(f"Adapter: {summary['adapter']} ({size})")
    return 0


def _segment(options: argparse.Namespace, events: EventSink) -> int:
    from tcurlora.inference.scans import SegmentRequest, run_segment
    from tcurlora.runtime.job_folder import remove_job

    if not options.input and not options.channels:
        raise InputError("Nothing is given to be segmented.", "Give scans (--input).", "usage")
    request = SegmentRequest(
        options.model,
        tuple(options.input),
        options.out,
        options.base,
        options.device,
        options.uncertainty,
        mirror=options.mirror,
        fold=options.fold,
        channels=tuple(tuple(files) for files in options.channels),
    )
    job = Path(options.job) if options.job else None
    if job is None and UNDER_TORCHRUN in os.environ:
        job = Path(f"{options.out}.job")  # tells processes that are started anew which results are of this run
    result = run_segment(request, events, job, options.segmenters)
    if job is not None and not options.job and _leads() and not result["failed"]:
        remove_job(job)
    if not options.json and _leads():
        for entry in result["written"]:
            print(entry["labels"])
    return InputError.exit_code if result["failed"] else 0


def _evaluate(options: argparse.Namespace, events: EventSink) -> int:
    from tcurlora.evaluation.folders import evaluate_folders
    from tcurlora.evaluation.reports import summary_table
    from tcurlora.imaging.structures import parse_labels
    from tcurlora.models.adapter_files import require_absent
    from tcurlora.runtime.json_files import write_json

    if options.out:
        require_absent(Path(options.out))
    report = evaluate_folders(Path(options.pred), Path(options.truth), parse_labels(options.labels), events)
    if options.out:
        write_json(Path(options.out), report)
    problems = [
        f"{problem['case'] or 'all cases'}: {problem['message']} {problem['remedy']}" for problem in report["problems"]
    ]
    _print(options, report, "\n".join([*problems, summary_table({"": report["summary"]})]))
    return InputError.exit_code if any(p["severity"] == "error" for p in report["problems"]) else 0


def _compare(options: argparse.Namespace, events: EventSink) -> int:
    from tcurlora.comparison.plan import CompareRequest
    from tcurlora.comparison.run import run_compare

    request = CompareRequest(
        base=options.base,
        data=options.data,
        out=options.out,
        methods=tuple(filter(None, options.methods.split(","))),
        reference=options.reference,
        steps=options.steps,
        minutes=options.minutes,
        folds=options.folds,
        subjects=options.subjects,
        seeds=_numbers(options.seeds, "--seeds"),
        lr_trials=options.lr_trials,
        rates_of=options.rates_of,
        score_at=_numbers(options.score_at, "--score-at") if options.score_at else (),
        test=options.test,
        own_data=options.own_data,
        own_labels=options.own_labels,
        labels=options.labels,
        mapping=tuple(options.map),
        device=options.device,
        labels_complete=options.labels_complete,
    )
    result = run_compare(request, events)
    if not options.json:
        print(result["text"])
        print(result["summary"])
        print(f"Report: {result['report']}")
    return 0


def _adapters(options: argparse.Namespace, _events: EventSink) -> int:
    from tcurlora.models import adapter_library as library

    if options.action == "list":
        entries = library.list_adapters()
        rows = [
            [e["name"], ", ".join(e["structures"]), str(e["base_model"]), e["problem"] or e["summary"] or ""]
            for e in entries
        ]
        _print(options, entries, _columns(["name", "structures", "base model", "result"], rows))
        return 0
    name = _required_name(options)
    if options.action == "show":
        entry = library.show_adapter(name)
        _print(options, entry, (Path(entry["path"]) / library.CARD).read_text(encoding="utf-8"))
    elif options.action == "export":
        target = Path(options.out or f"{Path(name).name}.zip")
        path = library.export_adapter(library.find_adapter(name), target, options.force)
        _print(options, {"path": str(path)}, f"Exported to {path}.")
    elif options.action == "import":
        path = library.import_adapter(Path(name), name=options.new_name, force=options.force)
        _print(options, {"path": str(path)}, f"Imported as '{path.name}'.")
    elif options.action == "rename":
        if not options.new_name:
            raise InputError("'adapters rename' needs the new name.", "Give it with --name.", "usage")
        path = library.rename_adapter(name, options.new_name)
        _print(options, {"path": str(path)}, f"Renamed to '{path.name}'.")
    else:
        library.remove_adapter(name)
        _print(options, {"removed": name}, f"Removed '{name}'.")
    return 0


def _merge(options: argparse.Namespace, _events: EventSink) -> int:
    from tcurlora.inference.segmenter_cache import base_of_adapter, find_adapter_or_path
    from tcurlora.models.merged_bundles import merge_adapter

    adapter = find_adapter_or_path(options.model)
    merge_adapter(adapter, Path(options.out), base_of_adapter(adapter, options.base))
    _print(options, {"path": options.out}, f"Merged model: {options.out}")
    return 0


def _demo(options: argparse.Namespace, events: EventSink) -> int:
    if options.patients:
        from tcurlora.demo.patients import SIMULATION_NOTE, make_patients

        files = make_patients(Path(options.out), options.patients, options.seed)
        _print(
            options, {"folder": options.out, "files": files, "note": SIMULATION_NOTE}, f"Made {len(files)} patients."
        )
        return 0
    from tcurlora.demo.run import run_demo

    result = run_demo(Path(options.out), events)
    _print(options, result, result["text"])
    return 0


def _serve(options: argparse.Namespace, _events: EventSink) -> int:
    from tcurlora.cli.serve import serve

    def run(arguments: Sequence[str], events: EventSink, segmenters: SegmenterCache) -> int:
        request = build_parser().parse_args(list(arguments))
        request.json = True
        request.segmenters = segmenters
        code: int = request.run(request, events)
        return code

    serve(options.idle_minutes, run)
    return 0


def _require_loadable(folder: Path, fold: str) -> None:
    """Open a base model and build its network, or raise what is wrong with it."""
    from tcurlora.models.opening import load_base_model

    load_base_model(folder, fold).build()


def _print(options: argparse.Namespace, content: Any, words: str) -> None:
    print(json.dumps(content, ensure_ascii=False) if options.json else words)


def _columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    from tcurlora.runtime.plain_text import table

    return table(header, rows, words=True) if rows else "None."


def _where(entry: dict[str, Any]) -> str:
    return str(entry["origin"]) if entry["on_disk"] else "no"


def _required_name(options: argparse.Namespace) -> str:
    if not options.name:
        raise InputError(
            f"'{options.command} {options.action}' needs a name.", f"See 'tcurlora {options.command} list'.", "usage"
        )
    return str(options.name)


def _positive(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) < 2**31:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 1 on")
    return int(text)


def _natural(text: str) -> int:
    # A seed is multiplied before it reaches torch, which takes 64 bits.
    if not text.isdecimal() or int(text) >= 2**31:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 0 to {2**31 - 1}")
    return int(text)


def _numbers(text: str, option: str) -> tuple[int, ...]:
    numbers = tuple(part.strip() for part in text.split(","))
    if not all(number.isdecimal() and int(number) < 2**20 for number in numbers) or len(set(numbers)) < len(numbers):
        raise InputError(f"{option} '{text}' is not a list of different whole numbers.", "Write 0,1,2.", "usage")
    return tuple(int(number) for number in numbers)


def _minutes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of minutes")
    return value


def _leads() -> bool:
    return UNDER_TORCHRUN not in os.environ or os.environ.get("RANK", "0") == "0"


def _report(events: EventSink, error: TCurLoraError) -> None:
    if not _leads():
        # What is wrong with the input, every process finds.
        if not isinstance(error, (InputError, Cancelled)):
            print(f"Process {int(os.environ['RANK']) + 1} of {os.environ['WORLD_SIZE']}: {error}", file=sys.stderr)
        return
    try:
        if isinstance(events, JsonEvents):
            events.emit("error", code=error.code, message=error.message, remedy=error.remedy)
        print(str(error), file=sys.stderr)
    except BrokenPipeError:
        _silence()


def _silence() -> None:
    """Let go of stdout and stderr, or Python would complain about the broken pipe once more when it ends."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            os.dup2(nowhere, stream.fileno())


def _cancel(_number: int, _frame: Any) -> NoReturn:
    # Not `Cancelled`: MONAI's transforms turn every ordinary exception into one of their own.
    raise KeyboardInterrupt
