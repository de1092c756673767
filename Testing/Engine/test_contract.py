"""The engine keeps the contract: its events, exit codes, files and the protocol of its worker."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tcurlora.cli.commands import main
from tcurlora.errors import Cancelled, InputError, MemoryExhausted, TCurLoraError
from tcurlora.training.presets import PRESETS, training_settings
from tcurlora_contract import events, exit_codes, job_files, methods, warm_worker
from tcurlora_contract.names import normalized


def events_of(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_events_and_files_of_an_adaptation(
    bundle: Path, site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = tmp_path / "job"
    command = ["adapt", "--base", str(bundle), "--data", str(site), "--steps", "1", "--folds", "2", "--json"]
    assert main([*command, "--out", str(tmp_path / "out"), "--job", str(job)]) == exit_codes.DONE
    told = events_of(capsys.readouterr().out)
    assert [events.problem_of(event) for event in told] == [""] * len(told)
    assert {event["event"] for event in told} >= {events.STAGE, events.PROGRESS, events.METRIC, events.RESULT}
    assert told[-1]["event"] == events.RESULT
    logged = events_of((job / job_files.EVENTS).read_text(encoding="utf-8"))
    assert all(events.problem_of(event) == "" and "time" in event for event in logged)
    assert (job / job_files.REQUEST).is_file() and (job / job_files.RESULT).is_file()
    assert not (job / job_files.LOCK).exists() and not (job / job_files.CHECKPOINT).exists()
    assert main([*command, "--out", str(tmp_path / "out")]) == exit_codes.BAD_INPUT
    (error,) = events_of(capsys.readouterr().out)[-1:]
    assert error["event"] == events.ERROR and events.problem_of(error) == ""


def test_exit_codes_are_those_of_the_errors() -> None:
    found = [error.exit_code for error in (TCurLoraError, InputError, MemoryExhausted, Cancelled)]
    assert found == [exit_codes.FAILED, exit_codes.BAD_INPUT, exit_codes.OUT_OF_MEMORY, exit_codes.CANCELLED]


def test_every_method_can_be_trained() -> None:
    assert methods.DEFAULT_METHOD in methods.METHODS and set(methods.METHODS) == set(PRESETS)
    for name in methods.METHODS:
        assert training_settings(name).steps > 0
    assert set(methods.METHODS) <= {*methods.COMPARED}


def test_worker_speaks_the_protocol() -> None:
    lines = [
        warm_worker.request_line("a", ["models", "list", "--json"]),
        warm_worker.request_line("b", ["adapt", "--help"]),
    ]
    command = [sys.executable, "-m", "tcurlora", "serve"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8") as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write("".join(f"{line}\n" for line in lines))
        process.stdin.flush()
        told = []
        # The worker ends with its stdin, whatever it is at, so that stays open.
        while sum(event["event"] == warm_worker.END for event in told) < len(lines):
            told += events_of(process.stdout.readline())
        process.stdin.close()
    assert told[0]["event"] == warm_worker.READY
    ends = {event["id"]: event["exit_code"] for event in told if event["event"] == warm_worker.END}
    assert ends == {"a": exit_codes.DONE, "b": exit_codes.BAD_INPUT}
    rest = [e for e in told if e["event"] not in (warm_worker.READY, warm_worker.END)]
    assert all(events.problem_of(event) == "" and event["id"] in "ab" for event in rest)


def test_names_without_letters_are_told_apart() -> None:
    assert normalized("?") != normalized("!") and normalized("Großer Kern") == normalized("grosser_kern")


def test_contract_is_light() -> None:
    code = (
        "import sys; before = set(sys.modules); "
        "from tcurlora_contract import events, exit_codes, folders, job_files, methods, names, warm_worker; "
        "tops = {name.split('.')[0] for name in set(sys.modules) - before}; "
        "assert tops <= {*sys.stdlib_module_names, 'tcurlora_contract'}, tops"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
