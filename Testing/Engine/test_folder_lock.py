"""Two runs on one folder: the second says that the first is at work, and a killed one leaves no lock."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tcurlora.comparison.plan import CompareRequest
from tcurlora.comparison.run import run_compare
from tcurlora.errors import InputError
from tcurlora.models import adapter_library
from tcurlora.runtime.events import NullEvents
from tcurlora.runtime.folder_lock import LOCK, exclusive
from tcurlora.runtime.job_folder import JobFolder, hold_job, remove_job
from tcurlora.training.adaptation import AdaptRequest, run_adapt

HOLDER = """
import sys, time
from pathlib import Path
from tcurlora.runtime.folder_lock import exclusive
with exclusive(Path(sys.argv[1]), ""):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Any:
    """Start a process that holds a folder."""
    started: list[subprocess.Popen[str]] = []

    def start(folder: Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HOLDER, str(folder)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def busy(work: Callable[[], Any]) -> None:
    with pytest.raises(InputError) as caught:
        work()
    assert caught.value.code == "busy" and caught.value.remedy


def test_second_run_is_told_and_a_killed_first_one_is_no_hindrance(tmp_path: Path, holder: Any) -> None:
    folder = tmp_path / "Lauf ü 1"
    process = holder(folder)
    busy(lambda: exclusive(folder, "Wait.").__enter__())
    process.kill()
    process.wait()
    assert (folder / LOCK).exists()
    with exclusive(folder, "Wait."):
        busy(lambda: exclusive(folder, "Wait.").__enter__())
    assert not folder.exists() or not list(folder.iterdir())


def test_folder_that_is_left_empty_goes_with_those_above_it(tmp_path: Path) -> None:
    with exclusive(tmp_path / "a" / "b", ""):
        pass
    assert not list(tmp_path.iterdir())
    with exclusive(tmp_path / "a" / "b", ""):
        (tmp_path / "a" / "b" / "kept").touch()
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["kept"]


def test_adaptation_and_comparison_leave_a_folder_alone_where_another_is_at_work(
    bundle: Path, site: Path, tmp_path: Path, holder: Any, tree: Callable[[Path], Any]
) -> None:
    job = tmp_path / "job"
    JobFolder.start(job, "adapt", {}, {}).remember("a", 1)
    holder(job)
    before = tree(job)
    request = AdaptRequest(base=str(bundle), data=str(site), out=str(tmp_path / "out"), steps=1, folds=0)
    for resume in (False, True):
        busy(lambda resume=resume: run_adapt(request, job, NullEvents(), resume))
    assert tree(job) == before and not (tmp_path / "out").exists()
    comparison = tmp_path / "comparison"
    holder(comparison)
    compared = CompareRequest(base=str(bundle), data=str(site), out=str(comparison), steps=1, methods=("base",))
    busy(lambda: run_compare(compared, NullEvents()))
    assert [path.name for path in comparison.iterdir()] == [LOCK]


def test_foreign_folder_is_not_locked(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    with hold_job(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_lock_of_a_killed_run_is_removed_with_its_job(tmp_path: Path, holder: Any) -> None:
    holder(tmp_path / "job").kill()
    JobFolder.start(tmp_path / "job", "adapt", {}, {})
    remove_job(tmp_path / "job")
    assert not list(tmp_path.iterdir())


def test_change_of_a_library_waits_for_another_and_then_says_so(
    tmp_path: Path, holder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter_library, "WAIT_S", 0.1)
    adapter = tmp_path / "library" / "a"
    adapter.mkdir(parents=True)
    for name in adapter_library.ADAPTER_FILES:
        (adapter / name).write_text("{}")
    holder(tmp_path / "library")
    busy(lambda: adapter_library.remove_adapter("a", tmp_path / "library"))
    busy(lambda: adapter_library.rename_adapter("a", "b", tmp_path / "library"))
    assert adapter.is_dir()


def test_work_goes_on_where_there_can_be_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_lock: Any) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    with exclusive(tmp_path / "a", ""):
        assert (tmp_path / "a").is_dir()
