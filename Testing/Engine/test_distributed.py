"""Several processes under torchrun: the same adapter, every scan once, and what happens when one of them fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import SimpleITK as sitk
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

import tcurlora
from tcurlora.cli.commands import main
from tcurlora.inference.scans import SegmentRequest, run_segment
from tcurlora.runtime.distributed import DropoutOfBatch
from tcurlora.runtime.events import NullEvents
from tcurlora.training import adaptation
from tcurlora.training.adaptation import AdaptRequest, run_adapt

pytestmark = pytest.mark.slow

WORKER = Path(__file__).with_name("torchrun_worker.py")


def torchrun(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(tcurlora.__file__).parents[1]),
        "PYTHONUTF8": "1",
        "OMP_NUM_THREADS": "1",
        "TORCHRUN_TEST_PLACE": str(place),
    }
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    return subprocess.run(
        [sys.executable, "-m", *launcher, str(WORKER), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=240,
    )


def test_two_processes_make_the_adapter_of_one_also_after_a_failure(
    bundle: Path, site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "Arbeit 作業"
    place.mkdir()
    options = ["--base", str(bundle), "--data", str(site), "--steps", "7", "--folds", "0", "--device", "cpu"]
    job = place / "job"
    done = torchrun(place, "adapt", *options, "--out", str(place / "two"), "--job", str(job))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Process 2 of 2: The computer ran out of memory.") == 1
    assert done.stdout.count("Adapter: ") == 1
    assert "exitcode: -6" not in done.stderr

    settings = adaptation.training_settings
    monkeypatch.setattr(
        adaptation, "training_settings", lambda *given: replace(settings(*given), batch=3, check_every=2)
    )
    run_adapt(
        AdaptRequest(str(bundle), str(site), str(place / "one"), folds=0, steps=7), place / "one.job", NullEvents()
    )
    one, two = (load_file(place / name / "adapter_model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-5, rtol=0)
    assert any(value.abs().max() > 0.01 for name, value in one.items() if name.startswith("core"))

    events = [json.loads(line) for line in (job / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [event["step"] for event in events if "loss" in event]
    assert steps == [1, 2, 3, 3, 4, 5, 6, 7]  # the fourth never came to be; the checkpoint is of the second
    plans = [event for event in events if event.get("name") == "plan"]
    assert len(plans) == 2 and plans[0]["seconds_per_step"] == plans[1]["seconds_per_step"]
    assert [event["event"] for event in events].count("result") == 1


def test_every_scan_is_segmented_once_also_after_a_death(
    bundle: Path, tmp_path: Path, make_scan: Callable[..., Any]
) -> None:
    scans = tmp_path / "Aufnahmen 画像"
    scans.mkdir()
    for number in range(5):
        sitk.WriteImage(make_scan(number)[0], scans / f"Müller {number}.nii.gz")
    (scans / "Müller 5.nii.gz").write_bytes(b"no image")
    options = ["segment", "--model", str(bundle), "--input", str(scans), "--device", "cpu", "--json"]
    done = torchrun(tmp_path, *options, "--out", str(tmp_path / "two"))

    names = [f"Müller {number}.seg.nrrd" for number in range(5)]
    written = [line.split(" ", 1) for line in (tmp_path / "written.txt").read_text(encoding="utf-8").splitlines()]
    assert sorted(name for _, name in written) == names
    assert {rank for rank, _ in written} == {"0", "1"}
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == names
    one = run_segment(SegmentRequest(str(bundle), (str(scans),), str(tmp_path / "one")), NullEvents())
    for name in names:
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()

    # A scan that cannot be read makes the end that of bad input, and is told once, with all that was written before.
    assert done.returncode != 0
    assert "exitcode  : 2 " in done.stderr and "exitcode  : -6 " not in done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    (result,) = (event for event in events if event["event"] == "result")
    assert [Path(entry["labels"]).name for entry in result["written"]] == names
    assert [entry["scan"] for entry in result["failed"]] == [entry["scan"] for entry in one["failed"]]


def test_what_is_no_work_for_several_processes_is_refused_once(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    for rank, told in (("0", 1), ("1", 0)):
        monkeypatch.setenv("RANK", rank)
        assert main(["evaluate", "--pred", "a", "--truth", "b"]) == 2
        assert main(["segment", "--model", "a", "--input", "b", "--out", "c", "--attached"]) == 2
        said = capsys.readouterr().err
        assert said.count("'evaluate' is no work for several processes.") == told
        assert said.count("--attached is for a single process.") == told
    assert not torch.distributed.is_initialized()


class Dropouts(nn.Module):
    """Dropout of elements in another order than that of memory, of channels, and of windows."""

    def forward(self, x: Tensor) -> Tensor:
        x = functional.dropout3d(x, 0.5, training=True)
        x = functional.dropout(x.contiguous(memory_format=torch.channels_last_3d), 0.3, training=True)
        windows = x.reshape(4 * len(x), -1)
        windows = windows * torch.empty_like(windows[:, :1]).bernoulli_(0.5)
        return functional.dropout(windows, 0.5, training=False).reshape(x.shape)


@pytest.mark.parametrize("parts", [[[0, 1], [2]], [[0, 2], [1]], [[2], [1], [0]]])
def test_dropout_of_a_batch_in_parts_is_that_of_the_whole(parts: list[list[int]]) -> None:
    x = torch.randn(3, 4, 4, 5, 6)
    torch.manual_seed(1)
    whole = Dropouts()(x)
    assert 0.2 < (whole == 0).float().mean() < 0.95
    for rows in parts:
        torch.manual_seed(1)
        with DropoutOfBatch(rows, 3):
            assert torch.equal(Dropouts()(x[rows]), whole[rows])
