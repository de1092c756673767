"""Several processes at once: on one computer, on one library of adapters, and on an adapter that is being replaced."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import kills
import pytest
import torch
from samples import make_samples

from tcurlora.cli.commands import main
from tcurlora.errors import InputError, TCurLoraError
from tcurlora.models import adapter_library
from tcurlora.models.adapter_files import load_adapter
from tcurlora.models.adapter_library import export_adapter, import_adapter, list_adapters, remove_adapter
from tcurlora.models.opening import load_base_model
from tcurlora.runtime.atomic_files import temporary_beside
from tcurlora.runtime.json_files import write_json

pytestmark = pytest.mark.skipif(os.name == "nt", reason="starts sessions as POSIX does")


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_samples(tmp_path_factory.mktemp("together") / "samples")


def test_two_adaptations_and_a_segmentation_at_once(tmp_path: Path) -> None:
    bundle, site = kills.make_inputs(tmp_path / "inputs")
    adapt = ["adapt", "--base", str(bundle), "--data", str(site), "--steps=8", "--folds=0", "--name=same", "--out"]
    scan = str(site / "images" / "scan0.nii.gz")
    commands = [
        [*adapt, str(tmp_path / "out" / "a")],
        [*adapt, str(tmp_path / "out" / "b")],
        ["segment", "--model", str(bundle), "--input", scan, "--out", str(tmp_path / "out" / "r.nii.gz")],
    ]
    children = [forked(lambda command=command: main(command)) for command in commands]
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0, 0]
    assert kills.contents(tmp_path / "out" / "a") == kills.contents(tmp_path / "out" / "b")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a", "b", "r.ctbl", "r.nii.gz"]


def forked(work: object) -> int:
    """Run a function in a child, which ends with the number that it returns; return its process."""
    child = os.fork()
    if child == 0:
        try:
            os._exit(work() or 0)  # type: ignore[operator]
        finally:
            os._exit(99)
    return child


GOING = ("is missing", "is not readable", "does not describe a TCURLORA adapter")
"""How an adapter looks that is replaced while it is looked at."""


def test_two_processes_on_one_library(samples: Path, tmp_path: Path) -> None:
    """One replaces and removes adapters while the other lists them and imports the same name."""
    library = tmp_path / "library"
    archive = samples / "archive" / "sample.zip"

    def change() -> None:
        for _ in range(60):
            try:
                import_adapter(archive, library, "shared", force=True)
                remove_adapter("shared", library)
            except TCurLoraError:
                continue  # the other one was quicker, and it was said

    children = [forked(change), forked(change)]
    seen = 0
    while children:
        for entry in list_adapters(library):
            assert entry["name"] == "shared" and (entry["problem"] is None or entry["problem"].endswith(GOING))
            seen += 1
        for child in list(children):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                assert status == 0
                children.remove(child)
    assert seen
    assert [path.name for path in library.iterdir() if path.name != "shared"] == []


@pytest.fixture
def swapping(samples: Path, tmp_path: Path) -> Iterator[Path]:
    """An adapter that is replaced by another one, and back, again and again."""
    adapters = [tmp_path / "one", tmp_path / "two"]
    for number, adapter in enumerate(adapters):
        shutil.copytree(samples / "adapter", adapter)
        change_weights(adapter, float(number))
    library = tmp_path / "library"
    archives = [export_adapter(adapter, tmp_path / f"{adapter.name}.zip") for adapter in adapters]
    import_adapter(archives[0], library, "it")
    ended = threading.Event()

    def swap() -> None:
        number = 0
        while not ended.is_set():
            number += 1
            import_adapter(archives[number % 2], library, "it", force=True)

    thread = threading.Thread(target=swap)
    thread.start()
    yield library / "it"
    ended.set()
    thread.join()


def change_weights(adapter: Path, value: float) -> None:
    import hashlib

    from safetensors.torch import load_file, save_file

    path = adapter / "adapter_model.safetensors"
    state = load_file(path)
    save_file(
        {k: v if k.startswith(("rows", "columns")) else torch.full_like(v, value) for k, v in state.items()}, path
    )
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    config["weights_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (adapter / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")


def test_adapter_that_is_replaced_while_it_is_read_is_one_of_the_two(samples: Path, swapping: Path) -> None:
    network = load_base_model(samples / "bundle").build()
    values, end = set(), time.monotonic() + 2
    while time.monotonic() < end:
        try:
            state = load_adapter(network, swapping).trained_state()
        except InputError:
            continue  # it was not there for a moment, and that was said
        found = {
            float(v) for name, tensor in state.items() if name.startswith(("core", "whole")) for v in tensor.view(-1)
        }
        assert len(found) == 1
        values |= found
    assert values == {0.0, 1.0}


def test_killed_import_leaves_no_trace_in_the_end(
    samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "library"
    archive = samples / "archive" / "sample.zip"
    kept = import_adapter(archive, library, "kept")
    # As a process leaves it that is killed between taking the old adapter away and putting the new one there.
    scratch = library / ".import-abc"
    (scratch / "old").mkdir(parents=True)
    kept.rename(scratch / "old" / "kept")
    shutil.copytree(samples / "adapter", scratch / "new")
    import_adapter(archive, library, "other")
    assert scratch.exists()  # it may be at work still
    monkeypatch.setattr(adapter_library, "STALE_S", -1.0)
    import_adapter(archive, library, "third")
    assert sorted(path.name for path in library.iterdir()) == ["kept", "other", "third"]
    assert [entry["problem"] for entry in list_adapters(library)] == [None] * 3


def test_what_killed_writers_left_is_cleared_and_what_living_ones_write_is_not(tmp_path: Path) -> None:
    path = tmp_path / "Größe [1].json"
    child = forked(lambda: temporary_beside(path).write_text("half") and None)
    os.waitpid(child, 0)
    (left,) = tmp_path.iterdir()
    own = temporary_beside(path)
    assert not left.exists()
    own.write_text("half")
    foreign = own.with_name(own.name.replace(own.name.split(".")[-2].split("-")[0], "00000000"))
    foreign.write_text("another machine's")
    assert temporary_beside(path) == own and own.exists() and foreign.exists()
    os.utime(foreign, (0, 0))
    write_json(path, {})
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_clock_that_was_set_back_does_no_harm(samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "library"
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: 1e8)
        import_adapter(samples / "archive" / "sample.zip", library, "early")
        write_json(tmp_path / "a.json", [1])
    assert [entry["problem"] for entry in list_adapters(library)] == [None]
