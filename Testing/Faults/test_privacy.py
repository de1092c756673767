"""Nothing of the patient or of the user's folders gets into what is passed on, and nothing opens a connection."""

from __future__ import annotations

import ctypes
import gzip
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from children import in_child
from samples import write_bundle

SECRETS = ("Zyx^Wanda", "ZYXWANDA", "Klinik-Seebad", "19470312", "PID-777123", "1.2.826.0.4711", "Obergeschoss")
"""A name in two spellings, a hospital, a birthday, a number, an identifier and a folder."""


@pytest.fixture(scope="module")
def private_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scans whose files, folders and headers say all that they should not."""
    site = tmp_path_factory.mktemp("Obergeschoss") / "Klinik-Seebad PID-777123"
    for part in ("images", "labels"):
        (site / part).mkdir(parents=True)
    rows = ["file,subject"]
    for number in range(4):
        random = np.random.default_rng(number)
        inside = np.zeros((16, 16, 16), np.uint8)
        inside[4:11, 5:12, 4 + number : 12] = 1
        scan = sitk.GetImageFromArray((random.normal(100, 15, inside.shape) + 60 * inside).astype(np.float32))
        for key, value in (("0010|0010", "Zyx^Wanda"), ("0010|0030", "19470312"), ("descrip", "ZYXWANDA")):
            scan.SetMetaData(key, value)
        name = f"ZYXWANDA {number}"
        # NIfTI carries a description and NRRD any key.
        sitk.WriteImage(scan, site / "images" / f"{name}{'.nrrd' if number % 2 else '.nii.gz'}")
        labels = sitk.GetImageFromArray(inside)
        labels.SetMetaData("0020|000d", "1.2.826.0.4711")
        sitk.WriteImage(labels, site / "labels" / f"{name}.nrrd")
        rows.append(f"{name},Zyx^Wanda {number}")
    (site / "cases.csv").write_text("\n".join(rows), encoding="utf-8")
    return site


def texts(root: Path) -> dict[str, bytes]:
    """All bytes under a folder, with those of packed files unpacked, by name; names count too."""
    found: dict[str, bytes] = {}
    for path in sorted(root.rglob("*")):
        data = path.read_bytes() if path.is_file() else b""
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                data += b"".join(archive.read(name) for name in archive.namelist())
        if path.suffix == ".gz":
            data += gzip.decompress(data)
        found[str(path.relative_to(root))] = data
    return found


def test_what_is_passed_on_names_nobody(private_site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TCURLORA_HOME", str(tmp_path / "home"))
    base = write_bundle(tmp_path / "base")
    out = tmp_path / "out"
    adapter = out / "adapter"
    data = ["--base", str(base), "--data", str(private_site), "--labels", "1=hippocampus"]
    commands = [
        ["adapt", *data, "--out", str(adapter), "--steps=2", "--folds=2"],
        ["adapters", "export", str(adapter), "--out", str(out / "adapter.zip")],
        ["merge", "--model", str(adapter), "--base", str(base), "--out", str(out / "merged")],
    ]
    scans = sorted((private_site / "images").iterdir())
    for number, ending in enumerate((".seg.nrrd", ".nii.gz", ".mha")):
        result = ["--out", str(out / f"result{number}{ending}"), "--uncertainty"]
        commands.append(
            ["segment", "--model", str(adapter), "--base", str(base), "--input", str(scans[number]), *result]
        )
    done = in_child(lambda: None, *commands)
    assert done.code == 0, done.err
    found = texts(out)
    assert len(found) > 12
    forbidden = [*SECRETS, str(tmp_path), str(private_site), "/tmp/", str(Path.home()) + "/"]
    for name, content in found.items():
        for secret in forbidden:
            assert secret.encode() not in content and secret not in name, (name, secret)
            assert secret.encode("utf-16-le") not in content, (name, secret)


def refuse_network() -> None:
    """End this process's access to any network, and fail at the first socket."""

    def refuse(event: str, arguments: object) -> None:
        if event.startswith(("socket.", "urllib.", "http.client", "ftplib.", "smtplib.")):
            print("NETWORK", event, arguments, flush=True)
            raise RuntimeError(f"no network: {event}")

    sys.addaudithook(refuse)
    if sys.platform == "linux":
        user_and_network = 0x10000000 | 0x40000000
        ctypes.CDLL(None).unshare(user_and_network)  # where it is allowed; the hook is there in any case


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_adapting_and_segmenting_open_no_socket(private_site: Path, tmp_path: Path) -> None:
    base, adapter = write_bundle(tmp_path / "base"), tmp_path / "adapter"
    scan = next((private_site / "images").iterdir())
    data = ["--base", str(base), "--data", str(private_site), "--labels", "1=hippocampus"]
    done = in_child(
        refuse_network,
        ["adapt", *data, "--out", str(adapter), "--steps=2", "--folds=0"],
        [
            "segment",
            "--model",
            str(adapter),
            "--base",
            str(base),
            "--input",
            str(scan),
            "--out",
            str(tmp_path / "r.nii"),
        ],
    )
    assert done.code == 0 and "NETWORK" not in done.out, done.out + done.err
    assert (tmp_path / "r.nii").is_file()


def test_program_opens_no_socket_while_it_is_loaded() -> None:
    """Not even to see whether there is a network, as one of MONAI's optional packages does."""
    hook = "import sys; sys.addaudithook(lambda event, _: event.startswith('socket.') and sys.exit(77))"
    arguments = ["segment", "--model", "x", "--input", "y", "--out", "z"]
    program = f"from tcurlora.cli.commands import main; sys.argv[1:] = {arguments}"
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE), "OMP_NUM_THREADS": "1"}
    for end, expected in (("sys.exit(main())", 2), ("import socket; socket.socket()", 77)):
        code = f"{hook}; {program}; {end}"
        assert subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment).returncode == expected


PACKAGE = Path(__file__).resolve().parents[2] / "TCurLoraSegment"
