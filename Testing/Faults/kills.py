"""Kill adaptations and segmentations at random moments, and see what is left and that resuming ends the same.

    python Testing/Faults/kills.py --count 50 --segment-count 20

Each adaptation runs with a tiny base model on four small scans, is killed (SIGKILL, its whole session) after a random
time, once or twice more while it is resumed, and is then resumed to its end. Its files must be those of a run that
nobody disturbed, byte for byte but for the minutes that it took. Each killed segmentation must leave its result whole
or not at all, and the next one must clear what the killed one left.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
PACKAGE = HERE.parents[1] / "TCurLoraSegment"


def start(*arguments: str) -> subprocess.Popen[str]:
    """Start the engine in a session of its own, so that whatever it starts can be found."""
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE), "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "tcurlora", *arguments, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    )


def run(*arguments: str) -> float:
    """Run the engine to its end; return the seconds from its first word on, after it has loaded torch.

    Raises:
        RuntimeError: with what it said, when it fails.
    """
    process = start(*arguments)
    assert process.stdout is not None
    first = process.stdout.readline()
    began = time.monotonic()
    said, _ = process.communicate(timeout=300)
    if process.returncode:
        raise RuntimeError(first + said[-2000:])
    return time.monotonic() - began


def kill_after(seconds: float, *arguments: str) -> str | None:
    """Run the engine and kill it, so long after its first word; return its last stage, or None where it was quicker."""
    process = start(*arguments)
    assert process.stdout is not None
    first = process.stdout.readline()
    try:
        said, _ = process.communicate(timeout=seconds)
        if process.returncode:
            raise RuntimeError(first + said[-2000:])
        return None
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        said, _ = process.communicate()
    require_gone(process.pid)
    stages = [event.get("name") for event in _events(first + said) if event["event"] == "stage"]
    return str(stages[-1])


def _events(said: str) -> list[dict[str, object]]:
    lines = [line for line in said.splitlines() if line.startswith("{") and line.endswith("}")]
    return [json.loads(line) for line in lines]


def require_gone(session: int) -> None:
    """See that no process of the session lives.

    Raises:
        AssertionError: when one does.
    """
    for _ in range(50):
        try:
            os.killpg(session, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    raise AssertionError(f"processes of session {session} are left")


def contents(adapter: Path) -> dict[str, object]:
    """All of an adapter but the date, and the minutes that it took."""
    found: dict[str, object] = {path.name: path.read_bytes() for path in sorted(adapter.iterdir())}
    report = json.loads((adapter / "report.json").read_text(encoding="utf-8"))
    report["training"].pop("minutes")
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    date = config.pop("created")
    card = (adapter / "README.md").read_text(encoding="utf-8").replace(date, "").splitlines()
    lines = [line for line in card if "minutes" not in line]
    return {**found, "report.json": report, "adapter_config.json": config, "README.md": lines}


def require_same(adapter: Path, expected: dict[str, object], what: str) -> None:
    """See that an adapter is that of the unbroken run.

    Raises:
        AssertionError: naming the files that are not.
    """
    found = contents(adapter)
    differ = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    if differ:
        raise AssertionError(f"{what}: {', '.join(differ)} differ from those of an unbroken run")


LENGTH = ("--steps=44", "--folds=2")


def kill_adaptations(
    bundle: Path, site: Path, folder: Path, count: int, seed: int = 0, length: Sequence[str] = LENGTH
) -> Counter[str]:
    """Kill `count` runs, each on its way, and resume them to the end; return how many died in which stage.

    Raises:
        AssertionError: naming the run that left half a result, another result, or files behind.
    """
    random_time = random.Random(seed)
    options = ["adapt", "--base", str(bundle), "--data", str(site), "--name", "same", *length]
    whole = folder / "whole" / "adapter"
    seconds = run(*options, "--out", str(whole))
    expected = contents(whole)
    died: Counter[str] = Counter()
    number = 0
    while sum(died.values()) < count:
        place = folder / f"run {number}"
        number += 1
        out = place / "adapter"
        resume: list[str] = []
        for _ in range(random_time.choice((1, 1, 2, 3))):
            stage = kill_after(random_time.uniform(0, seconds), *options, "--out", str(out), *resume)
            if stage is None or sum(died.values()) >= count:
                break
            died[stage] += 1
            if out.exists():
                require_same(out, expected, f"run {number}, killed in '{stage}'")
            resume = ["--resume"] if (place / "adapter.job" / "job.json").is_file() else []
            if out.exists() and not resume:
                break
        if not out.exists() or (place / "adapter.job").exists():
            run(*options, "--out", str(out), *resume)
        left = sorted(path.name for path in place.iterdir())
        if left != ["adapter"]:
            raise AssertionError(f"run {number} left {left}")
        require_same(out, expected, f"run {number}")
        shutil.rmtree(place)
    return died


def kill_segmentations(bundle: Path, scan: Path, folder: Path, count: int, seed: int = 0) -> Counter[str]:
    """Kill `count` segmentations of the same scan; return how many died in which stage.

    Raises:
        AssertionError: naming the one that left half a result, or files behind.
    """
    import SimpleITK as sitk

    random_time = random.Random(seed)
    options = ["segment", "--model", str(bundle), "--input", str(scan), "--out"]
    seconds = run(*options, str(folder / "whole" / "result.nii.gz"))
    expected = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "whole" / "result.nii.gz")))
    place = folder / "killed"
    out = place / "result.nii.gz"
    died: Counter[str] = Counter()
    while sum(died.values()) < count:
        stage = kill_after(random_time.uniform(0, 1.05) * seconds, *options, str(out))
        if stage is not None:
            died[stage] += 1
        if out.exists():
            if not (sitk.GetArrayFromImage(sitk.ReadImage(str(out))) == expected).all():
                raise AssertionError(f"a segmentation killed in '{stage}' left another result")
            out.unlink()
        out.with_name("result.ctbl").unlink(missing_ok=True)  # or the next one would be refused
        if place.exists() and len(list(place.iterdir())) > 2:  # temporary files of labels and of names
            raise AssertionError(f"left: {sorted(path.name for path in place.iterdir())}")
    run(*options, str(out))
    left = sorted(path.name for path in place.iterdir())
    if left != ["result.ctbl", "result.nii.gz"]:
        raise AssertionError(f"left: {left}")
    return died


def make_inputs(folder: Path) -> tuple[Path, Path]:
    """Write the tiny base model and site of the engine's tests."""
    from samples import write_bundle

    bundle = write_bundle(folder / "tiny base")
    import numpy as np
    import SimpleITK as sitk

    site = folder / "site"
    for part in ("images", "labels"):
        (site / part).mkdir(parents=True)
    for number in range(4):
        noise = np.random.default_rng(number).normal(100, 15, (16, 18, 20))
        points = np.stack(np.meshgrid(*(np.arange(n) for n in noise.shape), indexing="ij"))
        inside = ((points - np.array((8, 9, 10 + number))[:, None, None, None]) ** 2).sum(0) <= 16
        for part, array in (("images", noise + 60 * inside), ("labels", inside.astype(np.uint8))):
            image = sitk.GetImageFromArray(array.astype(np.float32) if part == "images" else array)
            sitk.WriteImage(image, site / part / f"scan{number}.nii.gz")
    (site / "dataset.json").write_text(json.dumps({"labels": {"1": "hippocampus"}}), encoding="utf-8")
    return bundle, site


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=50, help="adaptations to kill")
    parser.add_argument("--segment-count", type=int, default=20, help="segmentations to kill")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    sys.path[:0] = [str(PACKAGE), str(HERE)]
    with tempfile.TemporaryDirectory(prefix="kills ü ") as scratch:
        os.environ["TCURLORA_HOME"] = str(Path(scratch) / "home")
        bundle, site = make_inputs(Path(scratch) / "inputs")
        died = kill_adaptations(bundle, site, Path(scratch) / "adapt", options.count, options.seed)
        print(f"{sum(died.values())} adaptations killed, by stage: {dict(died)}; each resumed to the same adapter")
        scan = site / "images" / "scan0.nii.gz"
        died = kill_segmentations(bundle, scan, Path(scratch) / "segment", options.segment_count, options.seed)
        print(f"{sum(died.values())} segmentations killed, by stage: {dict(died)}; whole or nothing, and nothing left")
    return 0


if __name__ == "__main__":
    sys.exit(main())
