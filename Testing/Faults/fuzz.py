"""Damage files of every kind, at least 2,000 of them, and see that each ends in a sentence or in a right result.

    python Testing/Faults/fuzz.py --count 2500
    python Testing/Faults/fuzz.py --only NRRD --start 17 --count 1   # one of them again, with its traceback

The readers run in a process of their own, under a limit of address space. Its parent watches the time of each input,
ends it when one takes too long, and goes on with the next. Input number n is the same on every machine.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import selectors
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PACKAGE = HERE.parents[1] / "TCurLoraSegment"
SECONDS_EACH = 15.0
BYTES_MORE = 768 * 2**20
"""What the process may take beyond what it has after loading torch; a claim of gigabytes cannot hide in it."""
SUSPICIOUS_BYTES = 256 * 2**20
"""No sample takes a tenth of this to be read."""


def run(
    count: int, seed: int = 0, start: int = 0, only: str = "", seconds_each: float = SECONDS_EACH
) -> tuple[Counter[str], list[dict[str, Any]]]:
    """Try inputs `start` to `start + count`.

    Returns:
        How many ended how, by target and outcome, and every failure.
    """
    with tempfile.TemporaryDirectory(prefix="fuzz ü ") as scratch:
        environment = {**os.environ, "PYTHONPATH": str(PACKAGE), "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"}
        outcomes: Counter[str] = Counter()
        failures: list[dict[str, Any]] = []
        at, end = start, start + count
        while at < end:
            command = [sys.executable, __file__, "--child", scratch, "--seed", str(seed), "--only", only]
            command += ["--start", str(at), "--count", str(end - at)]
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, text=True
            )
            at, failure = _follow(process, at, outcomes, failures, seconds_each)
            if failure:
                failures.append(failure)
                outcomes[f"{failure['target']}: {failure['outcome']}"] += 1
                at += 1
        return outcomes, failures


def _follow(
    process: subprocess.Popen[str],
    at: int,
    outcomes: Counter[str],
    failures: list[dict[str, Any]],
    seconds_each: float,
) -> tuple[int, dict[str, Any] | None]:
    """Read what a child says until it ends; return the input where it did, and its failure if it failed."""
    assert process.stdout is not None
    target, patience = "start", 180.0  # the first line comes after torch has been loaded and the samples made
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            if not selector.select(patience):
                process.kill()
                process.wait()
                return at, {"input": at, "target": target, "outcome": "hang", "detail": f"{patience:g} s"}
            line = process.stdout.readline()
            if not line:
                code = process.wait()
                if code == 0:
                    return at, None
                if target == "start":
                    raise RuntimeError("A sound sample is not read; run this with --child FOLDER to see which.")
                return at, {"input": at, "target": target, "outcome": "crash", "detail": f"exit code {code}"}
            said = json.loads(line)
            patience = seconds_each
            if "end" in said:
                patience = 180.0  # to leave, which is no input's time
            elif "begin" in said:
                at, target = said["begin"], said["target"]
            else:
                outcomes[f"{target}: {said['outcome']}"] += 1
                if said["outcome"] not in ("refused", "right"):
                    failures.append({"input": at, "target": target, **said})
                at += 1


def _child(scratch: Path, seed: int, start: int, count: int, only: str) -> None:
    sys.path.insert(0, str(HERE))
    from samples import copy_group, make_samples
    from targets import TARGETS

    samples = scratch / "samples"
    if not samples.exists():
        make_samples(samples)
    chosen = [target for target in TARGETS if only in target.name]
    _warm_up(chosen, samples)
    _limit_memory()
    for number in range(start, start + count):
        target = chosen[number % len(chosen)]
        rng = random.Random(f"{seed} {target.name} {number}")
        print(json.dumps({"begin": number, "target": target.name}), flush=True)
        work = copy_group(samples, target.group, scratch / "work" / target.group)
        sound, path = samples / target.group / target.file, work / target.file
        mutate = rng.choice(target.mutators)
        path.write_bytes(mutate(rng, sound.read_bytes()))
        before = _peak()
        outcome, detail = _judge(target.check, path, sound)
        more = _peak() - before
        if more > SUSPICIOUS_BYTES:
            outcome, detail = "memory", f"{more / 2**20:.0f} MiB; {outcome} {detail}"
        said = {"outcome": outcome, "how": mutate.__name__}
        print(json.dumps({**said, **({} if outcome in ("refused", "right") else {"detail": detail})}), flush=True)
    print(json.dumps({"end": True}), flush=True)


def _judge(check: Any, path: Path, sound: Path) -> tuple[str, str]:
    from targets import Wrong

    from tcurlora.errors import TCurLoraError

    try:
        check(path, sound)
    except TCurLoraError as error:
        if "does not fit into memory" in error.message or error.exit_code == 3:
            return "memory", str(error)
        if not error.message.strip() or len(str(error)) > 20_000:
            return "speechless", str(error)[:500]
        return "refused", ""
    except Wrong as error:
        return "wrong", str(error)
    except Exception:
        return "exception", traceback.format_exc()
    return "right", ""


def _warm_up(targets: Sequence[Any], samples: Path) -> None:
    """Read each sound sample once: it must be read, and what is loaded on the way is no input's memory."""
    for target in targets:
        sound = samples / target.group / target.file
        if target.check.__name__ not in (
            "check_archive",
            "check_nnunet_archive",
            "check_adapter_without_hash",
        ):  # these write
            target.check(sound, sound)


def _limit_memory() -> None:
    if sys.platform != "win32":
        import resource

        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + BYTES_MORE, size + BYTES_MORE))


def _peak() -> int:
    """The most address space that this process has ever had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmPeak")))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--only", default="", help="targets whose name holds this")
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        _child(Path(options.child), options.seed, options.start, options.count, options.only)
        return 0
    started = time.monotonic()
    outcomes, failures = run(options.count, options.seed, options.start, options.only)
    for key, number in sorted(outcomes.items()):
        print(f"{number:6d}  {key}")
    for failure in failures:
        print(f"\ninput {failure['input']}: {failure['target']}, {failure.get('how', '')}: {failure['outcome']}")
        print(failure["detail"])
    total = sum(outcomes.values())
    print(f"\n{total} inputs, {len(failures)} failures, {time.monotonic() - started:.0f} s")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
