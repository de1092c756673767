"""A disk that is full, too small or write-protected: a sentence, and earlier results stay as they were."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from children import Finished, in_child
from kills import PACKAGE, make_inputs

from tcurlora.runtime.atomic_files import whole_folder
from tcurlora.runtime.json_files import write_json

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX limits")]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_inputs(tmp_path_factory.mktemp("disk inputs"))


def limited(limit: int, *arguments: str) -> Finished:
    """Run the engine while no file may grow beyond `limit` bytes; writing on fails, as on a full disk."""

    def prepare() -> None:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    return in_child(prepare, list(arguments))


def assert_said(code: int, err: str) -> None:
    assert code == 1, err
    assert "Traceback" not in err and "Error:" not in err
    last = err.strip().splitlines()[-1]
    assert "written" in last and any(word in last for word in ("space", "room"))


@pytest.mark.parametrize("limit", [300, 4000])
def test_full_disk_while_adapting(inputs: tuple[Path, Path], tmp_path: Path, limit: int) -> None:
    bundle, site = inputs
    out = tmp_path / "adapter"
    command = ["adapt", "--base", str(bundle), "--data", str(site), "--out", str(out), "--steps=2", "--folds=0"]
    done = limited(limit, *command)
    assert_said(done.code, done.err)
    assert not out.exists()
    assert [path.name for path in tmp_path.iterdir() if path.name != "adapter.job"] == []
    hidden = [path.name for path in tmp_path.rglob(".*")]
    assert not hidden


@pytest.mark.parametrize("ending", [".seg.nrrd", ".nii.gz"])
def test_full_disk_while_segmenting(inputs: tuple[Path, Path], tmp_path: Path, ending: str) -> None:
    (tmp_path / "earlier.nii.gz").write_bytes(b"earlier")
    scan = inputs[1] / "images" / "scan0.nii.gz"
    done = limited(
        150, "segment", "--model", str(inputs[0]), "--input", str(scan), "--out", str(tmp_path / f"r{ending}")
    )
    assert_said(done.code, done.err)
    assert [path.name for path in tmp_path.iterdir()] == ["earlier.nii.gz"]
    assert (tmp_path / "earlier.nii.gz").read_bytes() == b"earlier"


def test_write_protected_folder(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    if os.geteuid() == 0:  # whom no permission stops
        locked = Path("/proc/self")
    else:
        locked = tmp_path / "locked"
        locked.mkdir(mode=0o500)
    scan = inputs[1] / "images" / "scan0.nii.gz"
    out = locked / "x" / "r.nii.gz"
    done = in_child(lambda: None, ["segment", "--model", str(inputs[0]), "--input", str(scan), "--out", str(out)])
    assert done.code in (1, 2), done.err
    assert "Traceback" not in done.err and "written" in done.err


SMALL_DISK = """
set -e
mount -t tmpfs -o size={kilobytes}k tmpfs "{place}"
cp -r "{site}" "{place}/site"
echo earlier > "{place}/earlier"
set +e
{python} -m tcurlora adapt --base "{bundle}" --data "{place}/site" --out "{place}/adapter" --steps 2 --folds 0
code=$?
ls -A "{place}"
cat "{place}/earlier"
exit $code
"""


def test_small_disk_that_fills_up(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    """On a real file system of its own, in a mount namespace that ends with the process."""
    namespace = ["unshare", "-rm"]
    place = tmp_path / "disk"
    place.mkdir()
    try:
        probe = subprocess.run([*namespace, "mount", "-t", "tmpfs", "tmpfs", str(place)], capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no unshare")
    if probe.returncode:
        pytest.skip("no file system can be mounted here")
    script = SMALL_DISK.format(kilobytes=120, place=place, site=inputs[1], bundle=inputs[0], python=sys.executable)
    environment = {
        **os.environ,
        "PYTHONPATH": str(PACKAGE),
        "OMP_NUM_THREADS": "1",
        "LANG": "C.UTF-8",
    }
    done = subprocess.run(
        [*namespace, "sh", "-c", script], capture_output=True, text=True, env=environment, timeout=300
    )
    assert_said(done.returncode, done.stderr)
    assert "earlier" in done.stdout.split() and "adapter" not in done.stdout.split()


def require_order() -> None:
    """Let the next renaming fail whose file, or whose folder's files, have not been brought to the disk before."""
    brought: set[int] = set()
    fsync, replace = os.fsync, os.replace

    def watched_fsync(handle: int) -> None:
        fsync(handle)
        brought.add(os.fstat(handle).st_ino)

    def watched_replace(source: Path, target: Path) -> None:
        parts = [source, *source.rglob("*")] if source.is_dir() else [source]
        late = [part for part in parts if part.stat().st_ino not in brought]
        if late:
            raise AssertionError(f"{late} renamed to {target} too early")
        replace(source, target)

    os.fsync, os.replace = watched_fsync, watched_replace  # type: ignore[assignment]


def test_what_gets_its_name_is_on_the_disk_already(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    """After a power failure an empty file of the right name would be there otherwise."""
    bundle, site = inputs
    scan, adapter = str(site / "images" / "scan0.nii.gz"), str(tmp_path / "adapter")
    commands = [
        ["adapt", "--base", str(bundle), "--data", str(site), "--out", adapter, "--steps=2", "--folds=0"],
        ["segment", "--model", str(bundle), "--input", scan, "--out", str(tmp_path / "r.seg.nrrd"), "--uncertainty"],
        ["segment", "--model", str(bundle), "--input", scan, "--out", str(tmp_path / "r.nii.gz")],
        ["merge", "--model", adapter, "--base", str(bundle), "--out", str(tmp_path / "merged")],
        ["adapters", "export", adapter, "--out", str(tmp_path / "adapter.zip")],
    ]
    done = in_child(require_order, *commands)
    assert done.code == 0, done.err


@pytest.mark.parametrize("error", [errno.EIO, errno.EDQUOT])
def test_disk_that_takes_bytes_and_does_not_keep_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    """As shared disks do, which tell only in the end that the quota is used up."""

    def fail(_: int) -> None:
        raise OSError(error, os.strerror(error))

    write_json(tmp_path / "a.json", ["earlier"])
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=r"a\.json"):
        write_json(tmp_path / "a.json", ["later"])
    with pytest.raises(OSError), whole_folder(tmp_path / "b") as folder:
        (folder / "c").write_text("later")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert "earlier" in (tmp_path / "a.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("error", [errno.EINVAL, errno.ENOTSUP])
def test_disk_that_cannot_be_asked_to_keep_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    def fail(_: int) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "fsync", fail)
    write_json(tmp_path / "a.json", [])
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
