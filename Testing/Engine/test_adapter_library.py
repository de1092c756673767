"""The library of adapters, above all what it refuses."""

from __future__ import annotations

import json
import os
import stat
import struct
import sys
import zipfile
from pathlib import Path
from unittest.mock import Mock

import pytest

from tcurlora.cli.commands import main
from tcurlora.errors import InputError, TCurLoraError
from tcurlora.models import adapter_library
from tcurlora.models.adapter_library import (
    ADAPTER_FILES,
    export_adapter,
    find_adapter,
    import_adapter,
    library_folder,
    list_adapters,
    remove_adapter,
    rename_adapter,
    show_adapter,
)

CONFIG = {
    "peft_type": "TCURLORA",
    "base_model": {"name": "base", "sha256": "ab" * 32},
    "structures": [{"name": "hippocampus", "value": 1}],
}
WEIGHTS = struct.pack("<Q", 2) + b"{}" + bytes(16)
FILES = {
    "adapter_config.json": json.dumps(CONFIG).encode(),
    "adapter_model.safetensors": WEIGHTS,
    "report.json": b'{"summary": "It helps."}',
    "README.md": "Über".encode(),
}


@pytest.fixture
def library(tmp_path: Path) -> Path:
    return tmp_path / "Bücherei 1" / "adapters"


def make(folder: Path, **changes: bytes) -> Path:
    folder.mkdir(parents=True)
    for name, content in FILES.items():
        (folder / name).write_bytes(changes.get(name.split(".")[0], content))
    return folder


def pack(path: Path, entries: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


def everything_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_library_lies_where_the_platform_keeps_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TCURLORA_HOME", raising=False)
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert library_folder() == tmp_path / "local" / "TCurLoraSegment" / "adapters"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert library_folder() == Path.home() / "Library/Application Support/TCurLoraSegment/adapters"
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "xdg"))
    assert library_folder() == tmp_path / "xdg" / "TCurLoraSegment" / "adapters"
    monkeypatch.setenv("TCURLORA_HOME", str(tmp_path / "home"))
    assert library_folder() == tmp_path / "home" / "adapters"


def test_listing_shows_whole_and_broken_adapters_and_nothing_else(library: Path) -> None:
    assert list_adapters(library) == []
    make(library / "site b")
    make(library / "site a", adapter_model=WEIGHTS[:-17])
    make(library / "site c", adapter_config=b'{"peft_type": "TCURLORA", "structures": 3}')
    make(library / "site d", report=b"{")
    (library / "notes").mkdir()
    (library / ".import-x").mkdir()
    a, b, c, d = list_adapters(library)
    assert [entry["name"] for entry in (a, b, c, d)] == ["site a", "site b", "site c", "site d"]
    assert "damaged" in a["problem"]
    assert "TCURLORA" in c["problem"]
    assert "report.json" in d["problem"]
    assert (b["base_model"], b["structures"], b["summary"]) == ("base", ["hippocampus"], "It helps.")
    assert b["problem"] is None
    assert b["bytes"] == sum(len(content) for content in FILES.values())


def test_show_and_find_by_name_and_by_path(library: Path) -> None:
    folder = make(library / "here")
    assert find_adapter("here", library) == find_adapter(folder, library) == folder
    shown = show_adapter("here", library)
    assert shown["config"] == CONFIG
    assert shown["report"] == {"summary": "It helps."}
    for wrong in ("nowhere", "..", "../here"):
        with pytest.raises(InputError, match="'here'"):
            find_adapter(wrong, library)


def test_export_and_import_give_back_the_same_files(tmp_path: Path, library: Path) -> None:
    folder = make(tmp_path / "mine")
    (folder / "checkpoint.bin").write_bytes(b"not part of it")
    archive = export_adapter(folder, tmp_path / "Köln 3T.zip")
    imported = import_adapter(archive, library)
    assert imported == library / "Köln 3T"
    assert {path.name: path.read_bytes() for path in imported.iterdir()} == FILES
    assert everything_in(library) == ["Köln 3T", *sorted(f"Köln 3T/{name}" for name in ADAPTER_FILES)]


def test_import_takes_an_adapter_s_folder(tmp_path: Path, library: Path) -> None:
    folder = make(tmp_path / "Klinik Süd")
    (folder / "scan.nii.gz").write_bytes(b"not a part of an adapter")
    imported = import_adapter(folder, library)
    assert imported == library / "Klinik Süd"
    assert {path.name: path.read_bytes() for path in imported.iterdir()} == FILES
    assert import_adapter(folder, library, name="second").name == "second"


def test_import_takes_a_zipped_folder_as_file_managers_write_it(tmp_path: Path, library: Path) -> None:
    entries = {"mine/": b"", **{f"mine/{name}": content for name, content in FILES.items()}}
    imported = import_adapter(pack(tmp_path / "a.zip", entries), library, name="b")
    assert {path.name: path.read_bytes() for path in imported.iterdir()} == FILES


def test_existing_names_and_files_are_kept_unless_forced(tmp_path: Path, library: Path) -> None:
    archive = export_adapter(make(tmp_path / "mine"), tmp_path / "a.zip")
    import_adapter(archive, library)
    (library / "a" / "README.md").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="already"):
        import_adapter(archive, library)
    assert (library / "a" / "README.md").read_text(encoding="utf-8") == "mine"
    import_adapter(archive, library, force=True)
    assert (library / "a" / "README.md").read_bytes() == FILES["README.md"]
    with pytest.raises(InputError, match="already"):
        export_adapter(tmp_path / "mine", archive)
    export_adapter(tmp_path / "mine", archive, force=True)


def test_forced_import_never_replaces_what_is_not_an_adapter(tmp_path: Path, library: Path) -> None:
    archive = export_adapter(make(tmp_path / "mine"), tmp_path / "a.zip")
    (library / "a").mkdir(parents=True)
    (library / "a" / "thesis.txt").write_text("years of work", encoding="utf-8")
    with pytest.raises(InputError, match="not an adapter"):
        import_adapter(archive, library, force=True)
    assert (library / "a" / "thesis.txt").exists()


@pytest.mark.parametrize("folder", ["../", "x/../", "..\\", "/tmp/", "\\", "C:\\", "C:"])
def test_entries_that_point_outside_are_refused(tmp_path: Path, library: Path, folder: str) -> None:
    archive = pack(tmp_path / "a.zip", {folder + name: content for name, content in FILES.items()})
    with pytest.raises(InputError, match="points outside"):
        import_adapter(archive, library)
    assert everything_in(tmp_path) == ["a.zip"]


@pytest.mark.parametrize("name", ["run.py", "mine/model.pkl", "mine/sub/", "a/b/README.md", "readme.md"])
def test_entries_that_are_not_an_adapters_files_are_refused(tmp_path: Path, library: Path, name: str) -> None:
    entries = {file: content for file, content in FILES.items() if file != "README.md"}
    archive = pack(tmp_path / "a.zip", {**entries, name: b""})
    with pytest.raises(InputError, match="does not belong to an adapter"):
        import_adapter(archive, library)
    assert everything_in(tmp_path) == ["a.zip"]


def test_entry_without_a_name_is_refused(tmp_path: Path, library: Path) -> None:
    archive = pack(tmp_path / "a.zip", {**FILES, "x": b""})
    content = archive.read_bytes()
    directory = content.rindex(b"PK\x01\x02")
    nameless = bytearray(content[: directory + 46] + content[directory + 47 :])
    nameless[directory + 28 : directory + 30] = bytes(2)  # the length of the last entry's name in the directory
    end = nameless.rindex(b"PK\x05\x06")
    size = struct.unpack_from("<I", nameless, end + 12)[0]
    struct.pack_into("<I", nameless, end + 12, size - 1)
    archive.write_bytes(nameless)
    with pytest.raises(InputError, match="no name"):
        import_adapter(archive, library)
    assert everything_in(tmp_path) == ["a.zip"]


def test_links_are_refused(tmp_path: Path, library: Path) -> None:
    link = zipfile.ZipInfo("README.md")
    link.create_system = 3
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ADAPTER_FILES[:2]:
            archive.writestr(name, FILES[name])
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(InputError, match="link"):
        import_adapter(tmp_path / "a.zip", library)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_duplicates_and_scattered_files_are_refused(tmp_path: Path, library: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in (*ADAPTER_FILES, "README.md"):
            archive.writestr(name, FILES[name])
    with pytest.raises(InputError, match="twice"):
        import_adapter(tmp_path / "a.zip", library)
    scattered = {f"{i}/{name}": content for i, (name, content) in enumerate(FILES.items())}
    with pytest.raises(InputError, match="several folders"):
        import_adapter(pack(tmp_path / "b.zip", scattered), library)


def with_declared_size(source: Path, target: Path, size: int) -> Path:
    """Copy a zip file and rewrite the uncompressed size that its directory declares for the weights."""
    content = bytearray(source.read_bytes())
    name = b"adapter_model.safetensors"
    entry = content.rindex(name) - 46
    assert content[entry : entry + 4] == b"PK\x01\x02"
    content[entry + 24 : entry + 28] = struct.pack("<I", size)
    target.write_bytes(content)
    return target


def test_zip_bombs_are_refused_before_anything_is_unpacked(tmp_path: Path, library: Path) -> None:
    archive = pack(tmp_path / "a.zip", FILES)
    bomb = with_declared_size(archive, tmp_path / "b.zip", 2**30 + 1)
    with pytest.raises(InputError, match="1024 MiB"):
        import_adapter(bomb, library)
    assert not library.exists()


def test_archives_that_lie_about_sizes_or_are_damaged_leave_nothing(tmp_path: Path, library: Path) -> None:
    archive = pack(tmp_path / "a.zip", FILES)
    lying = with_declared_size(archive, tmp_path / "b.zip", 3)
    flipped = bytearray(archive.read_bytes())
    flipped[flipped.index(WEIGHTS) + 12] ^= 255
    (tmp_path / "c.zip").write_bytes(flipped)
    (tmp_path / "d.zip").write_bytes(archive.read_bytes()[:-30])
    (tmp_path / "e.zip").write_bytes(b"no zip at all")
    for damaged in (lying, *(tmp_path / f"{letter}.zip" for letter in "cde")):
        with pytest.raises(InputError, match="not a readable zip"):
            import_adapter(damaged, library)
    assert not library.exists() or everything_in(library) == []
    with pytest.raises(InputError, match="neither an adapter's folder nor a file"):
        import_adapter(tmp_path / "none.zip", library)


@pytest.mark.parametrize(
    "changes",
    [
        {"adapter_config.json": b"[]"},
        {"adapter_config.json": b'{"peft_type": "LORA"}'},
        {"adapter_config.json": b"\xff\xfe"},
        {"adapter_model.safetensors": struct.pack("<Q", 2**40) + b"{}"},
        {"report.json": b"{"},
    ],
)
def test_archives_without_a_usable_adapter_are_refused(
    tmp_path: Path, library: Path, changes: dict[str, bytes]
) -> None:
    with pytest.raises(InputError, match="not a usable adapter"):
        import_adapter(pack(tmp_path / "a.zip", {**FILES, **changes}), library)
    with pytest.raises(InputError, match="is missing"):
        import_adapter(pack(tmp_path / "b.zip", {"README.md": b""}), library)
    assert everything_in(library) == []


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "a\\b", ".hidden", "con", "x:y", "end.", "nl\n"])
def test_names_that_are_no_plain_folder_names_are_refused(tmp_path: Path, library: Path, name: str) -> None:
    archive = pack(tmp_path / "a.zip", FILES)
    with pytest.raises(InputError):
        import_adapter(archive, library, name=name)
    with pytest.raises(InputError):
        remove_adapter(name, library)


def test_remove_deletes_an_adapter_and_nothing_else(tmp_path: Path, library: Path) -> None:
    make(library / "old")
    make(library / "other")
    remove_adapter("old", library)
    assert [path.name for path in library.iterdir()] == ["other"]
    with pytest.raises(InputError, match="no adapter 'old'"):
        remove_adapter("old", library)
    (library / "other" / "notes.txt").write_text("keep me", encoding="utf-8")
    with pytest.raises(InputError, match=r"notes\.txt"):
        remove_adapter("other", library)
    assert len(list((library / "other").iterdir())) == 5
    (library / "photos").mkdir()
    with pytest.raises(InputError, match="no adapter 'photos'"):
        remove_adapter("photos", library)


def test_remove_refuses_a_link_to_an_adapter_elsewhere(tmp_path: Path, library: Path) -> None:
    outside = make(tmp_path / "outside")
    library.mkdir(parents=True)
    try:
        (library / "linked").symlink_to(outside, target_is_directory=True)
    except OSError:
        pytest.skip("no symbolic links here")
    with pytest.raises(InputError, match="not an adapter's folder"):
        remove_adapter("linked", library)
    assert len(list(outside.iterdir())) == 4


def test_export_leaves_nothing_behind_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make(tmp_path / "mine")

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(TCurLoraError, match="No space left"):
        export_adapter(folder, tmp_path / "a.zip")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    with pytest.raises(InputError, match="is not an adapter"):
        export_adapter(tmp_path, tmp_path / "b.zip")


def test_rename_keeps_everything_but_the_name(tmp_path: Path, library: Path) -> None:
    make(library / "old")
    assert rename_adapter("old", "Köln 2", library) == library / "Köln 2"
    assert [entry["name"] for entry in list_adapters(library)] == ["Köln 2"]
    config = show_adapter("Köln 2", library)["config"]
    assert config == {**CONFIG, "name": "Köln 2"}
    assert (library / "Köln 2" / "adapter_model.safetensors").read_bytes() == WEIGHTS


def test_rename_that_fails_changes_nothing(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(library / "damaged", adapter_config=b"{")
    make(library / "old")
    before = everything_in(library)
    with pytest.raises(InputError, match="not readable"):
        rename_adapter("damaged", "new", library)
    assert everything_in(library) == before
    monkeypatch.setattr(adapter_library, "write_json", Mock(side_effect=OSError(28, "No space left on device")))
    with pytest.raises(TCurLoraError, match="No space left"):
        rename_adapter("old", "new", library)
    assert everything_in(library) == before


@pytest.mark.parametrize("new", ["taken", "", ".hidden", "a/b", "con", "trailing."])
def test_rename_refuses_names_that_are_taken_or_unusable(library: Path, new: str) -> None:
    make(library / "old")
    make(library / "taken")
    before = everything_in(library)
    with pytest.raises(InputError):
        rename_adapter("old", new, library)
    assert everything_in(library) == before


def test_list_says_when_and_from_how_many_cases_an_adapter_was_made(library: Path) -> None:
    config = {**CONFIG, "created": "2026-02-03", "training": {"cases": 8}}
    comparison = {"mean": {"base_dice": 0.8, "adapted_dice": 0.9}}
    report = {"summary": "It helps.", "cross_validation": {"comparison": comparison}}
    make(
        library / "a",
        adapter_config=json.dumps(config).encode(),
        report=json.dumps(report).encode(),
    )
    make(library / "b")
    known, unknown = list_adapters(library)
    assert [known[key] for key in ("created", "cases", "base_dice", "adapted_dice")] == ["2026-02-03", 8, 0.8, 0.9]
    assert [unknown[key] for key in ("created", "cases", "base_dice", "adapted_dice")] == [None] * 4


def test_command_lists_an_adapter_without_a_report(
    library: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make(library / "bare")
    (library / "bare" / "report.json").unlink()
    monkeypatch.setenv("TCURLORA_HOME", str(library.parent))
    assert main(["adapters", "list"]) == 0
    assert "bare" in capsys.readouterr().out
