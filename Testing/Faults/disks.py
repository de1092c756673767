"""Commands on a disk that fills up, refuses, is read-only, is slow, or would lose what was not brought to it in time.

    python Testing/Faults/disks.py

Needs Linux and a C compiler, for `faulty_disk.c`; the full and the read-only disk also need `unshare`, by which a small
file system is mounted where nobody else sees it. On each disk lie an earlier adapter, segmentation and exported file,
which must be there afterwards, byte for byte. A command that does not succeed must end with one sentence, its exit code
must be 1 or 2, and its result must not be there at all. A broken-off adaptation must then end as an unbroken one does.
"""

from __future__ import annotations

import argparse
import errno
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
PACKAGE = HERE.parents[1] / "TCurLoraSegment"
KB = 1024
ROOMY = 64 * KB
LENGTH = ("--steps=2", "--folds=2", "--name=same")


@dataclass
class Tried:
    """What happened.

    Attributes:
        endings: how many runs ended how, by fault.
        sentences: what was said, and how often.
        wrong: what must not be.
    """

    endings: Counter[str] = field(default_factory=Counter)
    sentences: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Command:
    """A command of the engine and what it is to leave.

    Attributes:
        arguments: all of them; `out` is among them.
        out: its result; None for a command that writes nothing.
        others: names of further files that may be left beside it.
        replaces: whether `out` is there before, and stays as it was when the command fails.
    """

    arguments: tuple[str, ...]
    out: Path | None
    others: tuple[str, ...] = ()
    replaces: bool = False


def make_commands(inputs: Path, disk: Path) -> dict[str, Command]:
    """Name the commands; what they read lies on another disk."""
    base, scan, adapter = inputs / "tiny base", inputs / "site" / "images" / "scan0.nii.gz", inputs / "adapter"
    model = ("--base", str(base), "--data", str(inputs / "site"))
    segment = ("segment", "--model", str(base), "--input", str(scan), "--out")
    export = ("adapters", "export", str(adapter), "--force", "--out", str(disk / "earlier.zip"))
    imported = ("adapters", "import", str(inputs / "adapter.zip"), "--name", "earlier", "--force")
    return {
        "adapt": Command(("adapt", *model, "--out", str(disk / "new"), *LENGTH), disk / "new", ("new.job",)),
        "segment": Command((*segment, str(disk / "new.seg.nrrd")), disk / "new.seg.nrrd"),
        "segment, label map": Command((*segment, str(disk / "new.nii.gz")), disk / "new.nii.gz", ("new.ctbl",)),
        "merge": Command(
            ("merge", "--model", str(adapter), "--base", str(base), "--out", str(disk / "new")), disk / "new"
        ),
        "adapters export": Command(export, disk / "earlier.zip", replaces=True),
        "adapters import": Command(imported, disk / "home" / "adapters" / "earlier", replaces=True),
        "check": Command(("check", *model), None),
    }


def fill(disk: Path, inputs: Path) -> None:
    """Put earlier results on a disk."""
    disk.mkdir(exist_ok=True)
    shutil.copytree(inputs / "adapter", disk / "home" / "adapters" / "earlier")
    shutil.copy(inputs / "adapter.zip", disk / "earlier.zip")
    shutil.copy(inputs / "earlier.seg.nrrd", disk / "earlier.seg.nrrd")


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def attempt(
    tried: Tried, fault: str, name: str, command: Command, disk: Path, prepare: Callable[[], None] = lambda: None
) -> bool:
    """Run a command on a disk that has been filled, and judge what is left; return whether it succeeded."""
    from children import in_child

    before = contents(disk)
    done = in_child(prepare, list(command.arguments))
    after = contents(disk)
    what = f"{name}, {fault}"
    success = done.code == 0
    tried.endings[f"{name}: {'done' if success else f'exit code {done.code}'}"] += 1
    written = _belonging(command, disk) if success or not command.replaces else set()
    for path in before.keys() | after.keys():
        if path.split("/")[0] in written or (success and str(disk / path).startswith(f"{command.out}{os.sep}")):
            continue
        if before.get(path) != after.get(path):
            state = "is new" if path not in before else "is gone" if path not in after else "has changed"
            tried.wrong.append(f"{what}: {path} {state}")
    if success:
        return True
    if done.code not in (1, 2):
        tried.wrong.append(f"{what}: exit code {done.code}: {done.err[-500:]}")
    lines = done.err.strip().splitlines() or [""]
    says = any(word in lines[-1] for word in ("written", "Cannot write", "Cannot import"))
    if "Traceback" in done.err or "unexpected" in done.err or not says:
        tried.wrong.append(f"{what}: it says: {done.err[-1500:]}")
    tried.sentences[lines[-1].replace(str(disk), "DISK")] += 1
    if command.out is not None and not command.replaces and command.out.exists():
        tried.wrong.append(f"{what}: a result is there")
    return False


def _belonging(command: Command, disk: Path) -> set[str]:
    out = [command.out.relative_to(disk).parts[0]] if command.out is not None else []
    return {*(out if out != ["home"] else []), *command.others}


def finish(tried: Tried, what: str, command: Command, disk: Path, inputs: Path) -> None:
    """Go on with an adaptation that broke off, now that the disk is sound; its result is that of an unbroken one."""
    from children import in_child
    from kills import contents as adapter_contents
    from kills import require_same

    resume = ["--resume"] if (disk / "new.job" / "job.json").is_file() else []
    done = in_child(lambda: None, [*command.arguments, *resume])
    if done.code:
        tried.wrong.append(f"{what}: afterwards {done.err[-1500:]}")
        return
    try:
        require_same(disk / "new", adapter_contents(inputs / "adapter"), what)
    except AssertionError as error:
        tried.wrong.append(str(error))
    if (disk / "new.job").exists() or list(disk.glob(".*")):
        tried.wrong.append(f"{what}: left {sorted(path.name for path in disk.iterdir())}")


def try_full_disks(inputs: Path, place: Path) -> Tried:
    """Run each command with ever more room, by 4 KiB, 8 KiB and so on by a fifth, until it succeeds twice."""
    tried = Tried()
    for name in make_commands(inputs, place):
        kilobytes, successes = 4, 0
        while successes < 2:
            with mounted(place) as disk:
                fill(disk, inputs)
                used = shutil.disk_usage(disk).used // KB
                _mount(disk, f"remount,size={used + kilobytes}k")
                command = make_commands(inputs, disk)[name]
                fault = f"{kilobytes} kB free"
                success = attempt(tried, fault, name, command, disk)
                successes += success
                if not success and name == "adapt":
                    _mount(disk, f"remount,size={ROOMY}k")
                    finish(tried, f"{name}, {fault}", command, disk, inputs)
            kilobytes = max(kilobytes + 4, kilobytes * 6 // 5 // 4 * 4)
    return tried


def try_read_only_disk(inputs: Path, place: Path) -> Tried:
    """Run each command on a disk that nothing can be written to."""
    tried = Tried()
    for name in make_commands(inputs, place):
        with mounted(place) as disk:
            fill(disk, inputs)
            _mount(disk, "remount,ro")
            success = attempt(tried, "read-only", name, make_commands(inputs, disk)[name], disk)
            if success and name != "check":
                tried.wrong.append(f"{name}, read-only: it says that it succeeded")
    return tried


@dataclass(frozen=True)
class mounted:  # noqa: N801
    """A new file system in memory at a place."""

    place: Path

    def __enter__(self) -> Path:
        self.place.mkdir(exist_ok=True)
        _mount(self.place, f"size={ROOMY}k")
        return self.place

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", str(self.place)], check=True)


def _mount(place: Path, options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], check=True)


def try_refusals(inputs: Path, place: Path) -> Tried:
    """Let writing fail after ever more bytes, or when the disk is asked to keep them, or at the renaming."""
    tried = Tried()
    number = 0
    for name, each in make_commands(inputs, place).items():
        for error in (errno.EDQUOT, errno.ENOSPC, errno.EIO):
            for call, after in [("fsync", 0), ("rename", 0), *(("write", n) for n in growing(each.out is not None))]:
                number += 1
                disk = place / str(number)
                fill(disk, inputs)
                command = make_commands(inputs, disk)[name]
                fault = f"{errno.errorcode[error]} at {call} after {after} bytes"
                faults = {"ERRNO": str(error), "CALL": call, "AFTER": str(after), "BELOW": str(disk)}
                success = attempt(tried, fault, name, command, disk, lambda: set_faults(faults))  # noqa: B023
                if name == "adapt" and not success:
                    finish(tried, f"{name}, {fault}", command, disk, inputs)
                shutil.rmtree(disk)
                if success and call == "write":
                    break  # it writes no more than that
    return tried


def growing(writes: bool) -> Iterator[int]:
    """Numbers of bytes, by a half more each time."""
    number = 0
    while writes and number < 10**9:
        yield number
        number = number * 3 // 2 + 200


def set_faults(faults: Mapping[str, str]) -> None:
    """Make the disk of this process a faulty one."""
    os.environ.update({f"FAULTY_DISK_{name}": value for name, value in faults.items()})
    os.environ["TCURLORA_HOME"] = str(Path(faults["BELOW"]) / "home")


def try_slow_disk(inputs: Path, place: Path, delay_ms: int = 100) -> Tried:
    """Let every write take longer, in the engine alone, in Slicer's worker and in the process that it keeps."""
    from kills import contents as adapter_contents
    from kills import require_same

    tried = Tried()
    disk = place / "slow"
    fill(disk, inputs)
    slow = {"BELOW": str(disk), "DELAY": str(delay_ms)}
    for name, command in make_commands(inputs, disk).items():
        began = time.monotonic()
        if not attempt(tried, "slow", name, command, disk, lambda: set_faults(slow)):
            tried.wrong.append(f"{name}, slow: did not succeed")
        print(f"  {name}, slow: {time.monotonic() - began:.0f} s", flush=True)
        if name == "adapt":
            require_same(disk / "new", adapter_contents(inputs / "adapter"), "slow")
            shutil.rmtree(disk / "new")
    if (disk / "new.seg.nrrd").read_bytes() != (inputs / "earlier.seg.nrrd").read_bytes():
        tried.wrong.append("segment, slow: another result")
    set_faults(slow)
    tried.wrong += _slow_workers(inputs, disk)
    return tried


def _slow_workers(inputs: Path, disk: Path) -> list[str]:
    from kills import contents as adapter_contents
    from kills import require_same

    from TCurLoraSegmentLib.engine import default_engine
    from TCurLoraSegmentLib.jobs import new_job
    from TCurLoraSegmentLib.warm_worker import WarmWorker
    from TCurLoraSegmentLib.worker import Worker

    wrong, engine = [], default_engine()
    job = new_job("adapt", "slow")
    arguments = ["--base", str(inputs / "tiny base"), "--data", str(inputs / "site"), "--out", str(disk / "adapted")]
    arguments = ["adapt", *arguments, "--job", str(job.path), *LENGTH]
    job.write_context({"arguments": arguments})
    began = time.monotonic()
    worker = Worker(engine.command(*arguments), engine.environment(), job=job.path)
    worker.start()
    outcome = worker.wait(600)
    print(f"  Slicer's worker, adapt, slow: {time.monotonic() - began:.0f} s", flush=True)
    if not outcome.ok or not job.finished:
        return [f"Slicer's worker, slow: {outcome.sentence()}"]
    require_same(disk / "adapted", adapter_contents(inputs / "adapter"), "slow")

    job = new_job("adapt", "cancelled")
    cancelled = [*arguments[: -len(LENGTH) - 1], str(job.path), *LENGTH]
    cancelled[cancelled.index("--out") + 1] = str(disk / "cancelled")
    worker = Worker(engine.command(*cancelled), engine.environment(), job=job.path)
    worker.start()
    while not (job.path / "events.jsonl").exists() and worker.poll():
        time.sleep(0.02)
    began = time.monotonic()
    worker.cancel()
    outcome = worker.wait(60)
    print(f"  Slicer's worker, cancelled, slow: {time.monotonic() - began:.1f} s, {outcome.exit_code}", flush=True)
    if outcome.exit_code != 4 or (disk / "cancelled").exists():
        wrong.append(f"Slicer's worker, cancelled, slow: exit code {outcome.exit_code}")

    warm = WarmWorker()
    for number in range(2):
        job = new_job("segment", f"slow {number}")
        scan, out = inputs / "site" / "images" / "scan0.nii.gz", disk / f"warm {number}.seg.nrrd"
        segment = ["segment", "--model", str(inputs / "tiny base"), "--input", str(scan), "--out", str(out)]
        request = warm.request(engine, [*segment, "--job", str(job.path)], job=job.path)
        request.start()
        outcome = request.wait(300)
        if not outcome.ok or out.read_bytes() != (inputs / "earlier.seg.nrrd").read_bytes():
            wrong.append(f"the process that stays, slow: {outcome.sentence()}")
    warm.end()
    return wrong


def try_power_failure(inputs: Path, place: Path) -> Tried:
    """See in the order of the calls that whatever gets its final name by renaming has reached the disk before.

    A file system may bring a new name to the disk before the content of the file; after a power failure there would be
    an empty file of the right name.
    """
    tried = Tried()
    for name, each in make_commands(inputs, place).items():
        if each.out is None:
            continue
        disk = place / f"power {name}"
        fill(disk, inputs)
        log = place / f"{name}.log"
        watched = {"BELOW": str(disk), "LOG": str(log)}
        job = ["--job", str(disk / "job")] if name in ("adapt", "segment") else []
        job += ["--steps=24"] if name == "adapt" else []  # enough for a checkpoint
        command = make_commands(inputs, disk)[name]
        command = Command((*command.arguments, *job), command.out, (*command.others, "job"), command.replaces)
        if not attempt(tried, "watched", name, command, disk, lambda: set_faults(watched)):  # noqa: B023
            tried.wrong.append(f"{name}: did not succeed while it was watched")
        renamed, wrong = judge_order(log.read_text(encoding="utf-8"))
        tried.endings[f"{name}: files and folders renamed"] += renamed
        tried.wrong += [f"{name}: {problem.replace(str(disk), 'DISK')}" for problem in wrong]
    return tried


def judge_order(log: str) -> tuple[int, list[str]]:
    """Say how many renamings there were, and which came before what was renamed had reached the disk."""
    unsynced: set[str] = set()
    unsettled: set[str] = set()
    names: dict[str, str] = {}
    renamed, wrong = 0, []
    for line in log.splitlines():
        call, number, path, target = line.split("\t")
        if call == "open":
            names[target] = path
        if call == "write" or (call == "open" and int(number) & (os.O_TRUNC | os.O_CREAT)):
            unsynced.add(path)
        elif call == "close" and (before := names.pop(number, path)) in unsynced:
            # Some libraries rename without the C library's help, before they close the file.
            unsynced.remove(before)
            unsynced.add(path)
        elif call == "fsync":
            unsynced.discard(path)
            unsettled.discard(path)
        elif call == "rename":
            renamed += 1
            inside = {one for one in unsynced if one == path or one.startswith(f"{path}/")}
            wrong += [f"{one} was renamed to {target} before it was on the disk" for one in sorted(inside)]
            unsynced = {target + one.removeprefix(path) if one in inside else one for one in unsynced}
            if not any(part.startswith(".") for part in Path(target).parent.parts):
                unsettled.add(str(Path(target).parent))
    wrong += [f"the folder {one} was not brought to the disk after the last renaming" for one in sorted(unsettled)]
    return renamed, wrong


def make_inputs(folder: Path) -> None:
    """Write base model and site, and what the commands make of them on a sound disk."""
    import kills
    from children import in_child

    kills.make_inputs(folder)
    commands = make_commands(folder, folder)
    adapt = [word.replace(str(folder / "new"), str(folder / "adapter")) for word in commands["adapt"].arguments]
    segment = [word.replace("new.seg", "earlier.seg") for word in commands["segment"].arguments]
    export = [word.replace("earlier.zip", "adapter.zip") for word in commands["adapters export"].arguments]
    done = in_child(lambda: None, adapt, segment, export)
    if done.code:
        raise SystemExit(done.err)


def show(what: str, tried: Tried) -> None:
    """Print what happened."""
    print(f"{what}: {sum(tried.endings.values())}")
    for words, counts in (("", tried.endings), ("said: ", tried.sentences)):
        for text, count in sorted(counts.items()):
            print(f"  {count:4d}  {words}{text}")
    for problem in tried.wrong:
        print(f"  WRONG: {problem}")
    print(flush=True)


FAULTS: dict[str, Callable[[Path, Path], Tried]] = {
    "full": try_full_disks,
    "read-only": try_read_only_disk,
    "refusals": try_refusals,
    "slow": try_slow_disk,
    "power": try_power_failure,
}


def main() -> int:
    """Run what was asked for, with the library loaded and in a mount namespace."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=FAULTS, action="append", help="may be given several times")
    parser.add_argument("--inside", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        return _inside(Path(options.inside), options.only or list(FAULTS))
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if sys.platform != "linux" or compiler is None:
        print("This needs Linux and a C compiler.", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="disks ü ") as scratch:
        library = Path(scratch) / "faulty_disk.so"
        # Its path must hold no space: the loader would take it for two.
        with tempfile.TemporaryDirectory(prefix="faulty_disk") as plain:
            library = Path(plain) / "faulty_disk.so"
            source = HERE / "faulty_disk.c"
            subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
            own = {"OMP_NUM_THREADS": "1", "PYTHONUTF8": "1", "LD_PRELOAD": str(library), "PYTHONPATH": str(PACKAGE)}
            again = [sys.executable, __file__, "--inside", scratch]
            again += [word for one in options.only or () for word in ("--only", one)]
            namespace = ["unshare", "-rm"]
            probe = [*namespace, "mount", "-t", "tmpfs", "tmpfs", scratch]
            mountable = shutil.which("unshare") and not subprocess.run(probe, capture_output=True).returncode
            if not mountable:
                print("No file system can be mounted here: the full and the read-only disk are left out.")
            environment = {**os.environ, **own, "DISKS_MOUNTABLE": "1" if mountable else ""}
            return subprocess.run([*(namespace if mountable else []), *again], env=environment).returncode


def _inside(scratch: Path, chosen: list[str]) -> int:
    sys.path[:0] = [str(HERE)]
    os.environ["TCURLORA_HOME"] = str(scratch / "place" / "home")
    inputs, place = scratch / "inputs", scratch / "place"
    place.mkdir()
    make_inputs(inputs)
    wrong = 0
    for name in chosen:
        if name in ("full", "read-only") and not os.environ["DISKS_MOUNTABLE"]:
            continue
        began = time.monotonic()
        tried = FAULTS[name](inputs, place)
        show(f"{name}, {time.monotonic() - began:.0f} s", tried)
        wrong += len(tried.wrong)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
