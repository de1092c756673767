"""Memory that runs out ends in a sentence, and memory that is used is given back."""

from __future__ import annotations

import errno
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from children import Finished, in_child
from endurance import growth
from kills import make_inputs

from tcurlora.errors import as_user_error, is_out_of_memory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at memory in /proc")


def limited(mebibytes: int, *arguments: str) -> Finished:
    """Run the engine with so much address space beyond what it has already."""

    def prepare() -> None:
        import resource

        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + mebibytes * 2**20,) * 2)

    return in_child(prepare, list(arguments))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_inputs(tmp_path_factory.mktemp("memory inputs"))


@pytest.mark.parametrize("mebibytes", [40, 250])
def test_too_little_memory_for_a_scan_is_said(inputs: tuple[Path, Path], tmp_path: Path, mebibytes: int) -> None:
    """The first limit is met while the scan is read, the second while it is segmented."""
    scan = tmp_path / "scan.mha"
    sitk.WriteImage(
        sitk.GetImageFromArray(np.random.default_rng(0).normal(size=(300, 320, 330)).astype(np.float32)), scan
    )
    done = limited(
        mebibytes, "segment", "--model", str(inputs[0]), "--input", str(scan), "--out", str(tmp_path / "r.nii")
    )
    assert "Traceback" not in done.err, done.err[-3000:]
    assert done.code in (2, 3)
    assert "memory" in done.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scan.mha"]


def with_windows(size: int, bundle: Path, folder: Path) -> Path:
    """Copy a base model and give it other windows."""
    shutil.copytree(bundle, folder)
    config = folder / "configs" / "inference.json"
    content = json.loads(config.read_text(encoding="utf-8"))
    content["inferer"]["roi_size"] = [size, size, size]
    config.write_text(json.dumps(content), encoding="utf-8")
    return folder


def test_too_little_memory_to_adapt_is_said_and_the_run_can_be_resumed(
    inputs: tuple[Path, Path], tmp_path: Path
) -> None:
    """The limit is met while the cases are checked, or in the training where tests before have left free memory."""
    bundle = with_windows(60, inputs[0], tmp_path / "base with large windows")
    out = tmp_path / "out"
    command = ["adapt", "--base", str(bundle), "--data", str(inputs[1]), "--steps=1", "--folds=0", "--out"]
    done = limited(10, *command, str(out / "adapter"))
    assert "Traceback" not in done.err, done.err[-3000:]
    assert done.code == 3
    assert "ran out of memory. Close other programs" in done.err
    left = sorted(path.name for path in out.iterdir()) if out.exists() else []
    assert left == (["adapter.job"] if "Preparing the cases" in done.err.splitlines() else [])
    if left:
        again = in_child(lambda: None, [*command, str(out / "adapter"), "--resume"])
        assert again.code == 0, again.err
        assert [path.name for path in out.iterdir()] == ["adapter"]


def test_segmenting_again_and_again_takes_no_more_memory(tmp_path: Path) -> None:
    before, after = growth(40, tmp_path)
    assert after - before < 8e6


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("Failed to allocate memory for image."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000000000 bytes."),
        RuntimeError("std::bad_alloc"),
        RuntimeError("could not create a primitive"),
        RuntimeError("could not execute a primitive"),
    ],
)
def test_memory_that_ran_out_is_known_by_its_words(error: Exception) -> None:
    assert is_out_of_memory(error) and as_user_error(error).exit_code == 3
    assert not is_out_of_memory(RuntimeError("shape mismatch"))


def test_unexpected_error_is_a_sentence() -> None:
    said = as_user_error(TypeError("x is no y\nand more"))
    assert said.exit_code == 1 and said.code == "internal" and "TypeError: x is no y" in said.message
    assert "\n" not in str(said) and said.remedy
