"""Zip files from elsewhere: what is harmless comes out whole, and nothing else comes out at all."""

from __future__ import annotations

import stat
import zipfile
from pathlib import Path, PurePosixPath

import pytest

from tcurlora.errors import InputError
from tcurlora.runtime.archives import MAX_ENTRIES, is_file_name, open_archive, unpack

LIMIT = 10_000


def zipped(path: Path, **files: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def refused(archive: Path, folder: Path, limit: int = LIMIT) -> str:
    with pytest.raises(InputError) as caught:
        unpack(archive, folder, limit)
    assert not list(folder.rglob("*")), "something was unpacked"
    return caught.value.code


def test_files_come_out_where_they_are_wanted(tmp_path: Path) -> None:
    files = {"top/plans.json": b"{}", "top/fold_0/weights.pth": b"w" * 5000, "top/notes.txt": b"", "top/leer/": b""}
    archive = zipped(tmp_path / "Modell ü 予.zip", **files)
    out = tmp_path / "out"

    def without_top(inside: PurePosixPath) -> PurePosixPath | None:
        return None if inside.suffix == ".txt" else PurePosixPath(*inside.parts[1:])

    written = unpack(archive, out, LIMIT, without_top)
    assert [path.as_posix() for path in written] == ["plans.json", "fold_0/weights.pth"]
    assert (out / "fold_0" / "weights.pth").read_bytes() == b"w" * 5000
    assert not (out / "notes.txt").exists()
    with open_archive(archive, LIMIT) as opened:
        assert opened.read(PurePosixPath("top/plans.json")) == b"{}"
        with pytest.raises(InputError):
            opened.read(PurePosixPath("top/fold_0/weights.pth"), limit=4999)


@pytest.mark.parametrize(
    "name",
    [
        "../out.txt",
        "a/../../out.txt",
        "/etc/passwd",
        "C:/x.txt",
        "C:x.txt",
        "..\\out.txt",
        "\\\\server\\share\\x",
        "a/nul",
        "a/con.txt",
        "a./b",
        "a/b ",
        "x\ny.txt",
        "x?.txt",
    ],
)
def test_names_that_lead_outside_or_fit_no_system_are_refused(tmp_path: Path, name: str) -> None:
    archive = zipped(tmp_path / "a.zip", **{"good.txt": b"1", name: b"2"})
    assert refused(archive, tmp_path / "out" / "deep") == "unsafe_zip"


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK])
def test_links_and_devices_are_refused(tmp_path: Path, kind: int) -> None:
    info = zipfile.ZipInfo("weights.pth")
    info.external_attr = (kind | 0o644) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    assert refused(tmp_path / "a.zip", tmp_path / "out") == "unsafe_zip"


@pytest.mark.parametrize("names", [("a.txt", "A.TXT"), ("\u00fc", "u\u0308"), ("a", "a/b"), ("a/b", "A")])
def test_two_entries_that_are_one_file_somewhere_are_refused(tmp_path: Path, names: tuple[str, str]) -> None:
    archive = zipped(tmp_path / "a.zip", **dict.fromkeys(names, b"1"))
    assert refused(archive, tmp_path / "out") == "unsafe_zip"


def test_bombs_are_refused(tmp_path: Path) -> None:
    big = zipped(tmp_path / "big.zip", **{f"{i}": bytes(6000) for i in range(2)})
    assert refused(big, tmp_path / "out") == "unsafe_zip"
    many = zipped(tmp_path / "many.zip", **{f"{i}": b"" for i in range(MAX_ENTRIES + 1)})
    assert refused(many, tmp_path / "out") == "unsafe_zip"
    # An entry that says it is smaller than it is gives no more than it says, and is noticed.
    liar = zipped(tmp_path / "liar.zip", a=bytes(9000))
    content = liar.read_bytes().replace((9000).to_bytes(4, "little"), (90).to_bytes(4, "little"))
    liar.write_bytes(content)
    out = tmp_path / "liar"
    with pytest.raises(InputError) as caught:
        unpack(liar, out, LIMIT)
    assert caught.value.code == "bad_zip"
    assert sum(file.stat().st_size for file in out.rglob("*")) <= 90


def test_encrypted_and_unusually_packed_entries_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "b.zip", "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("a", b"1" * 100)
    assert refused(tmp_path / "b.zip", tmp_path / "out") == "unsafe_zip"
    locked = zipped(tmp_path / "c.zip", a=b"1")
    content = bytearray(locked.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.find(signature) + offset] |= 1
    locked.write_bytes(content)
    assert refused(locked, tmp_path / "out") == "unsafe_zip"


def test_damaged_files_say_so(tmp_path: Path) -> None:
    (tmp_path / "no.zip").write_bytes(b"not a zip file")
    assert refused(tmp_path / "no.zip", tmp_path / "out") == "bad_zip"
    whole = zipped(tmp_path / "a.zip", a=bytes(range(256)) * 20)
    content = bytearray(whole.read_bytes())
    content[60] ^= 255
    whole.write_bytes(content)
    with pytest.raises(InputError) as caught:
        unpack(whole, tmp_path / "other", LIMIT)
    assert caught.value.code == "bad_zip"
    with pytest.raises(FileNotFoundError):
        unpack(tmp_path / "none.zip", tmp_path / "out", LIMIT)


def test_file_names() -> None:
    assert all(map(is_file_name, ("a", "Modell ü", "予測.json", ".hidden", "console", "COM.txt")))
    assert not any(map(is_file_name, ("", "..", "a/b", "a\\b", "nul", "LPT1.txt", "a.", "a ", "a:b", "a\0")))
