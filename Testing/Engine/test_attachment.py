"""An attached run ends with whoever started it, leaves no process and nothing half, and can be resumed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tcurlora

MAIN = Path(tcurlora.__file__).parent / "__main__.py"
WEIGHTS = "adapter_model.safetensors"
POSIX_ONLY = pytest.mark.skipif(os.name == "nt", reason="needs signals and sessions")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("Klinik Süd 病院")


@pytest.fixture
def adapt(bundle: Path, site: Path) -> Callable[..., list[str]]:
    def arguments(out: Path, *more: str) -> list[str]:
        words = ["adapt", "--base", str(bundle), "--data", str(site), "--out", str(out), "--folds", "0", "--json"]
        return [*words, "--job", f"{out}.job", *more]

    return arguments


def start(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    environment = {**os.environ, "PYTHONUTF8": "1"}
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, str(MAIN), *arguments]
    return subprocess.Popen(command, text=True, encoding="utf-8", env=environment, **{**pipes, **options})


def read_until_step(process: subprocess.Popen[str], step: int) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        event = json.loads(line)
        if "loss" in event and event["step"] >= step:
            return
    raise AssertionError("ended before")


def test_word_cancel_ends_the_run_clean(workplace: Path, adapt: Callable[..., list[str]]) -> None:
    out = workplace / "abgebrochen"
    process = start(*adapt(out, "--steps", "5000", "--attached"))
    read_until_step(process, 2)
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    process.stdin.write("continue\ncancel\n")
    process.stdin.flush()  # stays open: the word alone must do
    said = process.stdout.read()
    assert process.wait(30) == 4
    assert json.loads(said.splitlines()[-1])["code"] == "cancelled"
    assert process.stderr.read().startswith("Cancelled. ")
    assert not out.exists() and not (workplace / "abgebrochen.job" / "result.json").exists()


def test_end_of_stdin_ends_the_run(workplace: Path, adapt: Callable[..., list[str]]) -> None:
    process = start(*adapt(workplace / "verwaist", "--steps", "5000", "--attached"))
    read_until_step(process, 2)
    process.communicate(timeout=30)  # closes stdin
    assert process.returncode == 4


def test_without_the_flag_stdin_is_not_looked_at(workplace: Path, adapt: Callable[..., list[str]]) -> None:
    process = start(*adapt(workplace / "frei", "--steps", "2"), stdin=subprocess.DEVNULL)
    process.communicate(timeout=120)
    assert process.returncode == 0 and (workplace / "frei" / WEIGHTS).is_file()


def test_attached_run_ends_well_and_at_once_when_its_work_is_done(workplace: Path) -> None:
    process = start("adapters", "list", "--json", "--attached")
    assert process.wait(30) == 0
    assert process.stdin is not None
    process.stdin.close()


@POSIX_ONLY
@pytest.mark.parametrize("more", [["--json"], []], ids=["events on stdout", "a bar on stderr"])
def test_broken_pipe_is_no_crash(workplace: Path, adapt: Callable[..., list[str]], more: list[str]) -> None:
    out = workplace / f"stumm{len(more)}"
    arguments = [word for word in adapt(out, "--steps", "100000") if word != "--json"]
    process = start(*arguments, *more, stdin=subprocess.DEVNULL)
    assert process.stdout is not None and process.stderr is not None
    (process.stdout if more else process.stderr).readline()
    process.stdout.close()
    rest = process.stderr.read() if more else process.stderr.close()
    assert process.wait(60) == 4
    assert not rest
    assert not out.exists()


@POSIX_ONLY
def test_run_that_does_not_listen_is_ended(workplace: Path) -> None:
    script = (
        "import signal, sys, time\nfrom tcurlora.runtime import parent_process as attachment\n"
        "attachment.PATIENCE_S = (0.1, 0.1)\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "attachment.attach()\nprint('here', flush=True)\ntime.sleep(60)"
    )
    environment = {**os.environ, "PYTHONPATH": str(MAIN.parents[1])}
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    )
    assert process.stdout is not None and process.stdout.readline() == b"here\n"
    started = time.monotonic()
    process.communicate()
    assert process.returncode == 4 and time.monotonic() - started < 10
