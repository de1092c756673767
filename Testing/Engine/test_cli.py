"""The command line: what it does from end to end, what it says, and that it refuses bad input without a trace."""

from __future__ import annotations

import ast
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch

import tcurlora
from tcurlora.cli import commands as cli
from tcurlora.cli.commands import main
from tcurlora.imaging.segmentations import read_segmentation
from tcurlora.training.presets import training_settings
from tcurlora_contract.methods import DEFAULT_METHOD, METHODS

PACKAGE = Path(tcurlora.__file__).parent
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("Klinik Süd 病院")


def adapt(bundle: Path, site: Path, out: Path, *more: str) -> list[str]:
    return ["adapt", "--base", str(bundle), "--data", str(site), "--out", str(out), *more]


@pytest.fixture(scope="module")
def adapter(bundle: Path, site: Path, workplace: Path) -> Path:
    out = workplace / "mein Adapter 一"
    assert main(adapt(bundle, site, out, "--steps", "2", "--folds", "0", "--json")) == 0
    return out


def json_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


# The whole path


def test_adapt_shows_progress_on_stderr_and_the_result_on_stdout(
    bundle: Path, site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(adapt(bundle, site, tmp_path / "adapter", "--steps", "2", "--name", "Unser")) == 0
    said = capsys.readouterr()
    assert "hippocampus" in said.out and "Dice base" in said.out
    assert f"Adapter: {tmp_path / 'adapter'} (" in said.out
    for words in ("Checking the cases", "Cross-validation 1 of 2", "Adapting on all 4 cases", "100 %  2/2", " left"):
        assert words in said.err
    assert "Note: 'hippocampus' is taken from" in said.err
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["name"] == "Unser" and config["method"] == "compact" and config["r"] == 4
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]  # the job's folder is gone


def test_label_that_is_called_background_is_background(
    bundle: Path, make_site: Callable[..., Path], tmp_path: Path
) -> None:
    data = make_site(tmp_path / "data")
    (data / "dataset.json").unlink()
    for path in (data / "labels").iterdir():
        labels = sitk.ReadImage(path)
        voxels = sitk.GetArrayFromImage(labels)
        voxels[0] = 2
        changed = sitk.GetImageFromArray(voxels)
        changed.CopyInformation(labels)
        sitk.WriteImage(changed, path)
    command = ["check", "--base", str(bundle), "--data", str(data), "--labels"]
    assert main([*command, "1=hippocampus,2=background"]) == 0
    assert main([*command, "1=hippocampus"]) == 2


def test_name_that_is_no_model_is_answered_with_those_that_are(
    tmp_path: Path, site: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, adapter: Path
) -> None:
    monkeypatch.setenv("TCURLORA_HOME", str(tmp_path / "home"))
    assert main(["adapters", "import", str(adapter), "--name", "Klinik"]) == 0
    scan = str(site / "images" / "scan1.nii.gz")
    assert main(["segment", "--model", "Klink", "--input", scan, "--out", str(tmp_path / "o")]) == 2
    said = capsys.readouterr().err
    assert "'Klinik'" in said and "'hippocampus_t1_unetr'" in said


def test_report_of_an_evaluation_overwrites_nothing(tmp_path: Path, site: Path) -> None:
    report = tmp_path / "thesis.json"
    report.write_text("years of work")
    labels = str(site / "labels")
    assert main(["evaluate", "--pred", labels, "--truth", labels, "--out", str(report)]) == 2
    assert report.read_text() == "years of work"


def test_options_reach_the_training(bundle: Path, site: Path, tmp_path: Path) -> None:
    more = ["--steps", "1", "--folds", "0", "--rank", "3", "--seed", "5", "--method", "tcurlora"]
    job = tmp_path / "kept job"
    command = adapt(bundle, site, tmp_path / "a", *more, "--job", str(job), "--json", "--device", "cpu")
    assert main([*command, "--map", "hippocampus=posterior hippocampus", "--labels-complete"]) == 0
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["r"], config["seed"], config["method"]) == (3, 5, "compact")
    assert config["training"]["steps"] == 1 and config["training"]["seed"] == 5
    assert [c["name"] for c in config["channels"]] == ["background", "background", "hippocampus"]
    assert (job / "result.json").is_file() and (job / "events.jsonl").is_file()


def test_method_decides_what_is_trained_and_how(bundle: Path, site: Path, tmp_path: Path) -> None:
    trained = {}
    for method in ("full", "decoder"):
        out = tmp_path / method
        assert main(adapt(bundle, site, out, "--steps", "1", "--folds", "0", "--method", method, "--json")) == 0
        trained[method] = json.loads((out / "adapter_config.json").read_text(encoding="utf-8"))["training"]
        assert trained[method]["trained_cores"] == 0
        assert trained[method]["lr_whole"] == training_settings(method).lr_whole
    assert trained["full"]["trained_whole"] > trained["decoder"]["trained_whole"] > 0
    assert trained["full"]["lr_whole"] != trained["decoder"]["lr_whole"]


def test_json_is_all_there_is_on_stdout(
    bundle: Path, site: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    scan = str(site / "images" / "scan1.nii.gz")
    for command, kinds in (
        (adapt(bundle, site, tmp_path / "a", "--steps", "1"), {"stage", "warning", "progress", "metric", "result"}),
        (["segment", "--model", str(adapter), "--base", str(bundle), "--input", scan, "--out", str(tmp_path / "s")],
         {"stage", "progress", "result"}),
    ):  # fmt: skip
        assert main([*command, "--json"]) == 0
        said = capsys.readouterr()
        events = json_lines(said.out)
        assert {event["event"] for event in events} == kinds
        assert events[-1]["event"] == "result" and said.err == ""
    for command in (
        ["check", "--base", str(bundle), "--data", str(site)],
        ["models", "list"],
        ["models", "show", str(bundle)],
        ["adapters", "list"],
        ["adapters", "show", str(adapter)],
        ["evaluate", "--pred", str(site / "labels"), "--truth", str(site / "labels")],
    ):
        assert main([*command, "--json"]) == 0, command
        said = capsys.readouterr()
        assert json_lines(said.out), command
        assert said.err == "", command


def test_commands_speak_to_people(bundle: Path, site: Path, adapter: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    for command, words in (
        (["check", "--base", str(bundle), "--data", str(site)], "4 cases of 2 subjects, 0 problems."),
        (["check", "--base", str(bundle), "--data", str(site)], "'anterior hippocampus' + 'posterior hippocampus'"),
        (["models", "show", str(bundle)], "SegResNet"),
        (["adapters", "show", str(adapter)], "# Adapter for hippocampus"),
        (["evaluate", "--pred", str(site / "labels"), "--truth", str(site / "labels")], "1.000"),
    ):
        assert main(command) == 0
        assert words in capsys.readouterr().out


def test_segment_with_adapter_finds_its_base_among_the_models(
    bundle: Path, site: Path, adapter: Path, workplace: Path, own_library: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scan = site / "images" / "scan2.nii.gz"
    command = ["segment", "--model", str(adapter), "--input", str(scan), "--out"]
    capsys.readouterr()
    assert main([*command, str(workplace / "without.seg.nrrd")]) == 2
    assert "--base" in capsys.readouterr().err
    assert main(["models", "add", str(bundle)]) == 0
    (own_library / "models" / "broken" / "configs").mkdir(parents=True)
    (own_library / "models" / "broken" / "models").mkdir()
    (own_library / "models" / "broken" / "models" / "model.pt").write_bytes(b"x")
    try:
        out = workplace / "Ergebnis 結果.seg.nrrd"
        capsys.readouterr()
        assert main([*command, str(out)]) == 0
        assert capsys.readouterr().out.strip() == str(out)
        labels, structures = read_segmentation(out)
        assert [(s.name, s.value) for s in structures] == [("hippocampus", 1)]
        assert set(np.unique(sitk.GetArrayFromImage(labels))) == {0, 1}
    finally:
        shutil.rmtree(own_library / "models")


def test_one_bad_scan_among_several_ends_with_2_and_the_others_are_done(
    bundle: Path, site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.nii.gz").write_bytes(b"no image")
    inputs = [
        str(site / "images" / "scan1.nii.gz"),
        str(tmp_path / "bad.nii.gz"),
        str(site / "images" / "scan3.nii.gz"),
    ]
    assert main(["segment", "--model", str(bundle), "--input", *inputs, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["scan1.seg.nrrd", "scan3.seg.nrrd"]
    assert "bad.nii.gz" in said.err and "Traceback" not in said.err
    assert len(said.out.splitlines()) == 2


def test_check_names_every_problem_at_once(
    bundle: Path, site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    shutil.copytree(site, data)
    (data / "images" / "scan1.nii.gz").write_bytes(b"no image")
    labels = sitk.ReadImage(data / "labels" / "scan2.nii.gz")
    sitk.WriteImage(labels * 9, data / "labels" / "scan2.nii.gz")
    sitk.WriteImage(labels * 0, data / "labels" / "scan3.nii.gz")
    assert main(["check", "--base", str(bundle), "--data", str(data)]) == 2
    out = capsys.readouterr().out
    for words in ("error: scan1", "error: scan2", "warning: scan3", "2 problems"):
        assert words in out


def test_check_says_how_each_structure_is_matched(
    bundle: Path, make_site: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_site(tmp_path / "site", names={"0": "background", "1": "Hippocampus", "2": "Mandelkern"})
    labels = sitk.ReadImage(data / "labels" / "scan1.nii.gz")
    labels[:2, :2, :2] = 2
    sitk.WriteImage(labels, data / "labels" / "scan1.nii.gz")
    for path in sorted((data / "labels").iterdir())[2:]:
        sitk.WriteImage(sitk.ReadImage(path) * 9, path)
    command = ["check", "--base", str(bundle), "--data", str(data)]
    assert main([*command, "--json"]) == 2
    report = json.loads(capsys.readouterr().out)
    halves = ["anterior hippocampus", "posterior hippocampus"]
    assert report["base_structures"] == halves
    assert report["structures"] == [
        {"name": "Hippocampus", "value": 1, "base": halves},
        {"name": "Mandelkern", "value": 2, "base": []},
    ]
    wrong = {finding["case"] for finding in report["findings"] if finding["severity"] == "error"}
    assert wrong == {"scan3", "scan4"} and report["errors"] == 2
    (new,) = (finding for finding in report["findings"] if finding["code"] == "new_structure")
    assert "'Mandelkern'" in new["message"] and "--map" in new["remedy"] and "'full'" in new["remedy"]
    assert main([*command, "--map", "Mandelkern=anterior hippocampus"]) == 2
    assert "Structures: Hippocampus (label 1), Mandelkern (label 2)." in capsys.readouterr().out


# Bad input

BAD: dict[str, tuple[str, str]] = {
    "no command": ("", "COMMAND"),
    "unknown command": ("paint", "paint"),
    "unknown option": ("{adapt} --colour red", "--colour"),
    "missing option": ("adapt --base {bundle}", "--data"),
    "wrong base": ("adapt --base {place}/nothing --data {site} --out {new}", "nothing"),
    "base is no bundle": ("adapt --base {site} --data {site} --out {new}", "MONAI bundle"),
    "wrong data": ("adapt --base {bundle} --data {place}/nothing --out {new}", "nothing"),
    "data without cases": ("adapt --base {bundle} --data {place}/empty --out {new}", "empty"),
    "data is an image": ("adapt --base {bundle} --data {scan} --out {new}", "scan1.nii.gz"),
    "label without a name": ("adapt --base {bundle} --data {unnamed} --out {new}", "label 1"),
    "map without =": ("{adapt} --map hippocampus", "'hippocampus'"),
    "map of unknown structure": ("{adapt} --map liver=new", "liver"),
    "map to unknown structure": ("{adapt} --map hippocampus=liver", "liver"),
    "bad labels": ("{adapt} --labels one=hippocampus", "one=hippocampus"),
    "labels twice": ("{adapt} --labels 1=a,1=b", "--labels"),
    "unknown method": ("{adapt} --method magic", "magic"),
    "rank 0": ("{adapt} --rank 0", "--rank"),
    "rank in words": ("{adapt} --rank eight", "'eight' is not a whole number"),
    "no steps": ("{adapt} --steps 0", "--steps"),
    "negative folds": ("{adapt} --folds -3", "--folds"),
    "negative seed": ("{adapt} --seed -1", "--seed"),
    "giant seed": ("{adapt} --seed 99999999999999999999", "--seed"),
    "no minutes": ("{adapt} --minutes 0", "--minutes"),
    "minutes nan": ("{adapt} --minutes nan", "--minutes"),
    "minutes and steps": ("{adapt} --minutes 1 --steps 3", "--steps"),
    "out exists": ("adapt --base {bundle} --data {site} --out {place}/empty", "empty"),
    "out is the working folder": ("adapt --base {bundle} --data {site} --out .", "exists"),
    "out below a file": ("adapt --base {bundle} --data {site} --out {place}/file/new", "file"),
    "job is a file": ("{adapt} --job {place}/file", "file"),
    "job is a folder of something else": ("{adapt} --job {site}", "not the folder of a job"),
    "job is the adapter": ("{adapt} --job {new}", "--job"),
    "unknown device": ("{adapt} --device quantum", "quantum"),
    "device that is not there": ("{adapt} --device cuda:77", "cuda:77"),
    "resume without a job": ("{adapt} --resume", "--resume"),
    "check: wrong data": ("check --base {bundle} --data {place}/nothing", "nothing"),
    "segment: missing scan": ("{segment} --input {place}/gone.nii.gz --out {new}", "gone.nii.gz"),
    "segment: scan is no image": ("{segment} --input {place}/file --out {new}", "file"),
    "segment: empty folder": ("{segment} --input {place}/empty --out {new}", "empty"),
    "segment: format": ("{segment} --input {scan} --out {new}.dcm", ".dcm"),
    "segment: one file for many": ("{segment} --input {site}/images --out {new}.nii.gz", "4 scans"),
    "segment: out exists": ("{segment} --input {scan} --out {place}/old.nii.gz", "old.nii.gz"),
    "segment: out is a file": ("{segment} --input {scan} --out {place}/file", "file"),
    "segment: out below a file": ("{segment} --input {scan} --out {place}/file/a.nii.gz", "a.nii.gz"),
    "segment: no model": ("segment --model {place}/nothing --input {scan} --out {new}", "nothing"),
    "segment: not an adapter": ("segment --model {place}/empty --input {scan} --out {new}", "empty"),
    "segment: other base": ("segment --model {adapter} --base {other} --input {scan} --out {new}", "another base"),
    "segment: base not here": ("segment --model {adapter} --input {scan} --out {new}", "--base"),
    "segment: damaged adapter": ("segment --model {damaged} --base {bundle} --input {scan} --out {new}", "damaged"),
    "segment: nameless adapter": ("segment --model {nameless} --base {bundle} --input {scan} --out {new}", "nameless"),
    "segment: device": ("{segment} --input {scan} --out {new} --device quantum", "quantum"),
    "evaluate: no folder": ("evaluate --pred {place}/nothing --truth {site}/labels", "nothing"),
    "adapters: no name": ("adapters show", "adapters show"),
    "adapters: unknown": ("adapters show nobody", "nobody"),
    "adapters: no zip": ("adapters import {place}/file", "file"),
    "models: unknown": ("models fetch nobody", "nobody"),
    "models: no bundle": ("models add {place}/empty", "empty"),
    "models: no folder": ("models add {place}/nothing", "nothing"),
    "merge: not an adapter": ("merge --model {place}/empty --out {new}", "empty"),
    "merge: other base": ("merge --model {adapter} --base {other} --out {new}", "another base"),
    "merge: out exists": ("merge --model {adapter} --base {bundle} --out {place}/empty", "empty"),
}  # fmt: skip


@pytest.fixture(scope="module")
def words(workplace: Path, bundle: Path, site: Path, adapter: Path, make_bundle: Callable[..., Path]) -> dict[str, str]:
    place = workplace / "place"
    (place / "empty").mkdir(parents=True)
    (place / "file").write_text("text")
    (place / "old.nii.gz").write_text("a result")
    shutil.copytree(site, place / "unnamed")
    (place / "unnamed" / "dataset.json").unlink()
    for name in ("damaged", "nameless"):
        shutil.copytree(adapter, place / name)
    (place / "damaged" / WEIGHTS).write_bytes((adapter / WEIGHTS).read_bytes()[:-20])
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    config.pop("structures")
    (place / "nameless" / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    texts = {
        "place": place,
        "new": place / "new",
        "bundle": bundle,
        "site": site,
        "adapter": adapter,
        "scan": site / "images" / "scan1.nii.gz",
        "other": make_bundle(workplace / "other", seed=1),
        "unnamed": place / "unnamed",
        "damaged": place / "damaged",
        "nameless": place / "nameless",
        "adapt": "adapt --base {bundle} --data {site} --out {new}",
        "segment": "segment --model {bundle}",
    }
    return {key: str(value) for key, value in texts.items()}


def command_line(template: str, words: dict[str, str]) -> list[str]:
    for key in ("adapt", "segment"):
        template = template.replace(f"{{{key}}}", words[key])
    return [part.format(**words) for part in template.split()]


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told_in_one_sentence_and_leaves_no_trace(
    case: str,
    words: dict[str, str],
    workplace: Path,
    own_library: Path,
    tree: Callable[[Path], Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    template, culprit = BAD[case]
    monkeypatch.chdir(words["place"])
    before = tree(workplace), tree(own_library)
    capsys.readouterr()
    assert main([*command_line(template, words), "--json"]) == 2
    said = capsys.readouterr()
    message = said.err.strip()
    assert "\n" not in message and "Traceback" not in message and "Error" not in message
    assert culprit in message
    assert message[0].isupper() or message[0] in "'\"-/"
    assert message.endswith((".", "'", ")"))
    events = json_lines(said.out)
    assert events[-1]["event"] == "error" and events[-1]["remedy"] and events[-1]["code"]
    assert f"{events[-1]['message']} {events[-1]['remedy']}" == message
    assert (tree(workplace), tree(own_library)) == before


def test_message_for_people_has_no_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "fetch", "nobody"]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("'nobody' is neither") and said.err.count("\n") == 1


def test_unreadable_file_is_told_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> None:
        raise PermissionError(13, "Permission denied", "/secret/file")

    monkeypatch.setattr("tcurlora.models.catalogue.list_models", fail)
    assert main(["models", "list"]) == 1
    assert capsys.readouterr().err.startswith("'/secret/file' cannot be read or written (Permission denied).")


def test_too_little_memory_ends_with_3_and_the_job_can_go_on(
    bundle: Path, site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from monai.networks.nets import SegResNet

    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("Tried to allocate 20.00 GiB")

    command = adapt(bundle, site, tmp_path / "a", "--steps", "1", "--folds", "0")
    encode = SegResNet.encode
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SegResNet, "encode", lambda self, x: fail() if self.training else encode(self, x))
        assert main(command) == 3
    said = capsys.readouterr()
    assert "ran out of memory" in said.err and "Traceback" not in said.err
    assert not (tmp_path / "a").exists()
    assert main([*command, "--resume"]) == 0
    assert (tmp_path / "a" / WEIGHTS).is_file()


# Real processes


def start(*arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent), "PYTHONIOENCODING": "utf-8"}
    return subprocess.Popen(
        [sys.executable, "-m", "tcurlora", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env=environment,
    )


def read_until(process: subprocess.Popen[str], stage: str, step: int) -> list[dict[str, Any]]:
    assert process.stdout is not None
    events: list[dict[str, Any]] = []
    current = ""
    for line in process.stdout:
        events.append(json.loads(line))
        current = events[-1]["name"] if events[-1]["event"] == "stage" else current
        if current == stage and events[-1].get("step") == step:
            return events
    raise AssertionError(f"ended before: {process.stderr.read() if process.stderr else ''}")


def test_killed_twice_and_resumed_gives_the_adapter_of_an_unbroken_run(
    bundle: Path, site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--steps", "24", "--folds", "2", "--json"]
    broken = adapt(bundle, site, tmp_path / "broken" / "adapter", *command)
    # The final adapter does not depend on the folds, so that the unbroken run can do without them.
    whole = adapt(bundle, site, tmp_path / "whole" / "adapter", *command, "--folds", "0")
    first = start(*broken)
    read_until(first, "fold-1", 22)
    first.kill()
    assert first.wait() == -signal.SIGKILL
    assert [path.name for path in (tmp_path / "broken").iterdir()] == ["adapter.job"]
    second = start(*broken, "--resume")
    events = read_until(second, "train", 22)
    second.kill()
    assert second.wait() == -signal.SIGKILL
    assert [path.name for path in (tmp_path / "broken").iterdir()] == ["adapter.job"]
    # The first kill came after the checkpoint at step 20, so that training goes on from there.
    assert next(e["step"] for e in events if "loss" in e) == 21
    capsys.readouterr()
    assert main([*broken, "--resume"]) == 0
    resumed = json_lines(capsys.readouterr().out)
    assert [e["step"] for e in resumed if "loss" in e] == [21, 22, 23, 24]
    assert main(whole) == 0
    a, b = (tmp_path / place / "adapter" for place in ("whole", "broken"))
    assert (a / WEIGHTS).read_bytes() == (b / WEIGHTS).read_bytes()
    assert [path.name for path in (tmp_path / "broken").iterdir()] == ["adapter"]
    for process in (first, second):
        process.communicate()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to catch")
def test_terminated_job_says_so_and_can_be_resumed(bundle: Path, site: Path, tmp_path: Path) -> None:
    process = start(*adapt(bundle, site, tmp_path / "adapter", "--steps", "500", "--folds", "0", "--json"))
    read_until(process, "train", 2)
    process.terminate()
    out, err = process.communicate(timeout=60)
    job = tmp_path / "adapter.job"
    assert process.returncode == 4
    assert err == f"Cancelled. '{job}' holds copies of your cases: go on with --resume, or delete it.\n"
    assert json_lines(out)[-1]["code"] == "cancelled"
    assert not (tmp_path / "adapter").exists() and (job / "job.json").is_file()


def test_help_comes_without_waiting_for_torch() -> None:
    script = (
        "import sys; from tcurlora.cli.commands import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'monai', 'SimpleITK', 'numpy', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    for arguments in (["--help"], ["adapt", "--help"], ["--version"]):
        process = subprocess.run(
            [sys.executable, "-c", script, *arguments],
            env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
            capture_output=True,
            text=True,
        )
        assert process.returncode == 0, process.stderr
        assert "tcurlora" in process.stdout


def test_exit_code_and_message_reach_the_shell(tmp_path: Path) -> None:
    process = start("adapters", "show", "nobody")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2 and out == "" and "nobody" in err and "Traceback" not in err


# The house


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(str(node.module).split(".")[0])
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in (
            "import_module",
            "__import__",
        ):
            names |= {str(a.value).split(".")[0] for a in node.args if isinstance(a, ast.Constant)}
    return names


def test_engine_knows_nothing_of_slicer() -> None:
    modules = sorted(PACKAGE.rglob("*.py"))
    assert len(modules) > 20
    for module in modules:
        foreign = {name.lower() for name in imported(module)} & {
            "slicer",
            "vtk",
            "qt",
            "ctk",
            "pythonqt",
            "mrmlcorepython",
        }
        assert not foreign, (module.name, foreign)


def test_light_modules_do_not_import_torch() -> None:
    light = (
        "errors",
        "runtime/events",
        "imaging/images",
        "imaging/grids",
        "imaging/structures",
        "cases/dataset",
        "models/adapter_library",
        "models/catalogue",
        "cli/commands",
    )
    for name in light:
        tree = ast.parse((PACKAGE / f"{name}.py").read_text(encoding="utf-8"))
        top = {a.name.split(".")[0] for n in tree.body if isinstance(n, ast.Import) for a in n.names}
        top |= {str(n.module).split(".")[0] for n in tree.body if isinstance(n, ast.ImportFrom)}
        assert not top & {"torch", "monai"}, name


def test_help_offers_the_methods_that_there_are() -> None:
    options = cli.build_parser().parse_args(["adapt", "--base", "b", "--data", "d", "--out", "o"])
    assert options.method == DEFAULT_METHOD
    adapt = cli.build_parser()._subparsers._group_actions[0].choices["adapt"]  # type: ignore[union-attr,index,call-overload]
    assert ", ".join(METHODS) in " ".join(adapt.format_help().split())
