"""Base models on the shelf: found by name or folder, fetched with resume and hashes, added and removed."""

from __future__ import annotations

import hashlib
import json
import stat
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.networks.nets import SegResNet

from tcurlora.errors import InputError, TCurLoraError
from tcurlora.models import catalogue
from tcurlora.models.monai_bundle import write_bundle
from tcurlora.models.opening import load_base_model
from tcurlora.runtime.events import NullEvents

NETWORK = {
    "spatial_dims": 3,
    "init_filters": 8,
    "in_channels": 1,
    "out_channels": 2,
    "blocks_down": [1],
    "blocks_up": [],
}
CHANNELS = {"0": "background", "1": "hippocampus"}


def make_bundle(folder: Path) -> Path:
    torch.manual_seed(0)
    configs = {
        "metadata": {"name": "Tiny", "network_data_format": {"outputs": {"pred": {"channel_def": CHANNELS}}}},
        "inference": {
            "network_def": {"_target_": "monai.networks.nets.SegResNet", **NETWORK},
            "inferer": {"roi_size": [16, 16, 16]},
        },
    }
    write_bundle(folder, configs, "# Tiny\n", SegResNet(**NETWORK).state_dict())
    return folder


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Server:
    """A web server on this computer, which breaks off after `limit` bytes of an answer.

    Attributes:
        files: what it has, by the path in its addresses.
        moved: addresses that it sends on to.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.moved: dict[str, str] = {}
        self.limit: int | None = None
        self.ranges = True
        self.asked: list[tuple[str, str | None]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked, name = self.headers.get("Range"), self.path.lstrip("/")
                outer.asked.append((name, asked))
                if name in outer.moved:
                    self.send_response(302)
                    self.send_header("Location", outer.moved[name])
                    self.end_headers()
                    return
                if name not in outer.files:
                    self.send_error(404)
                    return
                content = outer.files[name]
                start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and outer.ranges else 0
                if start and start >= len(content):
                    self.send_error(416)
                    return
                body = content[start:]
                self.send_response(206 if start else 200)
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: outer.limit])

            def log_message(self, *_: Any) -> None:
                return None

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TCURLORA_HOME", str(tmp_path / "Daten für 海馬"))
    return tmp_path


@pytest.fixture
def shelf(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A catalogue with one shipped model; tests add entries to it."""
    make_bundle(home / "shelf" / "shipped")
    path = home / "shelf" / "catalogue.json"
    write_catalogue(path, {"name": "shipped", "title": "Shipped", "structures": ["hippocampus"], "folder": "shipped"})
    monkeypatch.setattr(catalogue, "catalogue_file", lambda: path)
    return path


def write_catalogue(path: Path, *entries: dict[str, Any]) -> None:
    path.write_text(json.dumps({"schema": 1, "models": list(entries)}), encoding="utf-8")


def zipped(folder: Path, archive: Path, top: str = "tiny/") -> bytes:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                opened.write(path, top + path.relative_to(folder).as_posix())
    return archive.read_bytes()


@pytest.fixture
def server(home: Path, shelf: Path) -> Iterator[Server]:
    """The model `tiny`, to be fetched from a server."""
    bundle = make_bundle(home / "source")
    (bundle / "scripts").mkdir()
    (bundle / "scripts" / "evil.py").write_text("raise SystemExit")
    running = Server({"tiny.zip": zipped(bundle, home / "tiny.zip")})
    offer(shelf, f"{running.url}/tiny.zip", running.files["tiny.zip"], (bundle / "models" / "model.pt").read_bytes())
    yield running
    running.server.shutdown()
    running.server.server_close()


def offer(shelf: Path, url: str, archive: bytes, weights: bytes, **changes: Any) -> None:
    entry = {
        "name": "tiny",
        "sources": [{"archive": url, "sha256": sha256(archive)}],
        "weights": {"models/model.pt": {"sha256": sha256(weights)}},
        "size": len(weights),
    }
    write_catalogue(shelf, entry | changes)


def leftovers() -> list[str]:
    folder = catalogue.models_folder()
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def require_loadable(folder: Path) -> None:
    load_base_model(folder).build()


def test_the_shipped_catalogue_describes_the_default_model_completely() -> None:
    entry = catalogue.show_model("hippocampus_t1_unetr")
    wanted = {
        "title",
        "modality",
        "structures",
        "network",
        "input_spacing",
        "patch",
        "licence",
        "citation",
        "size",
        "sha256",
    }
    assert wanted - entry.keys() == set()
    assert entry["origin"] == "shipped"
    configs = catalogue.catalogue_file().parent / entry["folder"] / "configs"
    network_def = json.loads((configs / "inference.json").read_text())["network_def"]
    assert network_def["img_size"] == entry["patch"]
    assert network_def["_target_"].endswith(entry["network"])


def test_terminology_of_the_default_model() -> None:
    terminology = {
        name: text.split("~") for name, text in catalogue.show_model("hippocampus_t1_unetr")["terminology"].items()
    }
    assert {name: parts[2:4] for name, parts in terminology.items()} == {
        "anterior hippocampus": ["SCT^5366008^Hippocampus", "SCT^255549009^Anterior"],
        "posterior hippocampus": ["SCT^5366008^Hippocampus", "SCT^255551008^Posterior"],
    }


@pytest.mark.parametrize(
    ("structures", "expected"),
    [
        ([{"name": "Leber ü", "value": 1, "terminology": "a~b~c"}, {"name": "b", "value": 2}], {"Leber ü": "a~b~c"}),
        *(
            (damaged, {})
            for damaged in (None, 5, "text", [5, {}, {"terminology": "b"}, {"name": "a", "terminology": 5}])
        ),
    ],
)
def test_terminology_of_an_added_model_is_that_of_its_metadata(
    shelf: Path, home: Path, structures: Any, expected: dict[str, str]
) -> None:
    metadata = make_bundle(catalogue.models_folder() / "own") / "configs" / "metadata.json"
    content = json.loads(metadata.read_text(encoding="utf-8"))
    metadata.write_text(json.dumps({**content, "structures": structures}), encoding="utf-8")
    assert catalogue.show_model("own")["terminology"] == expected


def test_the_shipped_weights_are_those_of_the_catalogue() -> None:
    entry = catalogue.show_model("hippocampus_t1_unetr")
    base = load_base_model("hippocampus_t1_unetr")
    assert (base.sha256, base.weights.stat().st_size) == (entry["sha256"], entry["size"])
    assert base.structures == entry["structures"]
    assert list(base.preprocessing.spacing or ()) == entry["input_spacing"]
    base.build()


def test_listing_models_does_not_import_torch() -> None:
    code = (
        "import sys, tcurlora.models.catalogue as c; c.list_models(); assert not {'torch', 'monai'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_folder_wins_over_a_name_and_a_name_is_found(
    shelf: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert catalogue.find_base_folder("shipped") == shelf.parent / "shipped"
    assert catalogue.find_base_folder(shelf.parent / "shipped") == shelf.parent / "shipped"
    make_bundle(home / "work" / "shipped")
    monkeypatch.chdir(home / "work")
    assert catalogue.find_base_folder("shipped").resolve() == home / "work" / "shipped"
    # A folder that only happens to have the name of a model does not hide it.
    (home / "other" / "shipped").mkdir(parents=True)
    monkeypatch.chdir(home / "other")
    assert catalogue.find_base_folder("shipped") == shelf.parent / "shipped"


@pytest.mark.parametrize("name", ["nope", "", "../shelf/nope", "a\0b", "x" * 5000, "/nowhere/at all", ".zip"])
def test_an_unknown_name_lists_those_that_there_are(shelf: Path, name: str) -> None:
    with pytest.raises(InputError, match="'shipped'"):
        catalogue.find_base_folder(name)


def test_a_name_never_leads_out_of_the_models_folder(shelf: Path) -> None:
    make_bundle(catalogue.models_folder().parent / "secret")
    catalogue.models_folder().mkdir()
    with pytest.raises(InputError):
        catalogue.find_base_folder("../secret")
    with pytest.raises(InputError):
        catalogue.remove_model("../secret")
    assert (catalogue.models_folder().parent / "secret" / "configs").is_dir()


def test_a_folder_that_is_no_bundle_is_named(shelf: Path, home: Path) -> None:
    (home / "empty folder").mkdir()
    with pytest.raises(InputError, match="'empty folder' is neither"):
        catalogue.find_base_folder(home / "empty folder")


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"schema": 2, "models": []}', '{"schema": 1, "models": [{"name": "../x"}]}']
)
def test_a_damaged_catalogue_is_said(shelf: Path, text: str) -> None:
    shelf.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="damaged"):
        catalogue.list_models()


def test_fetch_brings_a_model_that_loads(server: Server) -> None:
    with pytest.raises(InputError, match="tcurlora models fetch tiny"):
        catalogue.find_base_folder("tiny")
    folder = catalogue.fetch_model("tiny", NullEvents())
    assert leftovers() == ["tiny"]
    assert not (folder / "scripts").exists()
    load_base_model("tiny").build()
    entry = catalogue.show_model("tiny")
    assert (entry["on_disk"], entry["path"], entry["origin"]) == (True, str(folder), "downloaded")
    catalogue.fetch_model("tiny", NullEvents())
    assert len(server.asked) == 1, "what is there is not fetched again"
    catalogue.remove_model("tiny")
    assert leftovers() == []
    assert not catalogue.show_model("tiny")["on_disk"]


def test_fetch_goes_on_where_it_stopped(server: Server) -> None:
    server.limit = 1000
    for _ in range(2):
        with pytest.raises(TCurLoraError, match="broke off"):
            catalogue.fetch_model("tiny", NullEvents())
    assert leftovers() == [".tiny.zip.part"]
    server.limit = None
    catalogue.fetch_model("tiny", NullEvents())
    assert [asked for _, asked in server.asked] == [None, "bytes=1000-", "bytes=2000-"]
    load_base_model("tiny").build()


def test_fetch_starts_over_when_the_server_knows_no_ranges(server: Server) -> None:
    server.limit, server.ranges = 1000, False
    with pytest.raises(TCurLoraError):
        catalogue.fetch_model("tiny", NullEvents())
    server.limit = None
    catalogue.fetch_model("tiny", NullEvents())
    assert leftovers() == ["tiny"]


def test_a_download_that_was_killed_before_it_was_unpacked_is_used(server: Server) -> None:
    catalogue.models_folder().mkdir(parents=True)
    (catalogue.models_folder() / ".tiny.zip.part").write_bytes(server.files["tiny.zip"])
    (catalogue.models_folder() / ".tiny.partial" / "configs").mkdir(parents=True)
    catalogue.fetch_model("tiny", NullEvents())
    assert leftovers() == ["tiny"]


def test_other_bytes_than_promised_are_deleted(server: Server) -> None:
    server.files["tiny.zip"] = bytes(len(server.files["tiny.zip"]))
    with pytest.raises(InputError, match="checksum"):
        catalogue.fetch_model("tiny", NullEvents())
    assert leftovers() == []


def test_other_weights_than_promised_are_deleted(server: Server, shelf: Path) -> None:
    offer(shelf, f"{server.url}/tiny.zip", server.files["tiny.zip"], b"other weights", size=10**6)
    with pytest.raises(InputError, match="weights of 'tiny'"):
        catalogue.fetch_model("tiny", NullEvents())
    assert leftovers() == []


def test_a_download_larger_than_promised_is_cut_off(
    server: Server, shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue, "MARGIN_BYTES", 100)
    offer(shelf, f"{server.url}/tiny.zip", server.files["tiny.zip"], b"", size=1)
    with pytest.raises(InputError, match="larger"):
        catalogue.fetch_model("tiny", NullEvents())
    assert leftovers() == []


def test_a_server_that_is_not_there_is_no_traceback(server: Server, shelf: Path) -> None:
    offer(shelf, "http://127.0.0.1:9/tiny.zip", b"", b"")
    with pytest.raises(TCurLoraError, match="broke off"):
        catalogue.fetch_model("tiny", NullEvents())


@pytest.mark.parametrize("url", ["http://example.org/tiny.zip", "ftp://example.org/tiny.zip", "tiny.zip", ""])
def test_only_https_is_fetched(shelf: Path, url: str) -> None:
    offer(shelf, url, b"", b"")
    with pytest.raises(InputError, match="https"):
        catalogue.fetch_model("tiny", NullEvents())
    assert leftovers() == []


def test_an_address_that_leads_elsewhere_is_followed_and_goes_on_where_it_stopped(server: Server) -> None:
    """As publishers move their files, and send on to another address each time."""
    server.moved["tiny.zip"] = f"{server.url}/stored.zip"
    server.files["stored.zip"] = server.files.pop("tiny.zip")
    server.limit = 1000
    with pytest.raises(TCurLoraError, match="broke off"):
        catalogue.fetch_model("tiny", NullEvents())
    server.limit = None
    catalogue.fetch_model("tiny", NullEvents())
    assert ("stored.zip", "bytes=1000-") in server.asked
    load_base_model("tiny").build()


@pytest.mark.parametrize("where", ["http://example.org/tiny.zip", "file:///etc/passwd", "ftp://example.org/tiny.zip"])
def test_an_address_that_leads_to_an_unsafe_one_is_refused(server: Server, where: str) -> None:
    server.moved["tiny.zip"] = where
    with pytest.raises(TCurLoraError) as caught:
        catalogue.fetch_model("tiny", NullEvents())
    assert caught.value.code == ("download_failed" if where.startswith("file") else "unsafe_url")
    assert leftovers() == []


def offer_files(shelf: Path, server: Server, bundle: Path, archive: str = "", **changes: Any) -> None:
    """Offer a bundle file by file, with the checksums that its publisher gives."""
    files = []
    for path in sorted(bundle.rglob("*")):
        inside = path.relative_to(bundle).as_posix()
        if path.is_file() and inside.startswith(("configs/", "models/")):
            server.files[inside] = path.read_bytes()
            algorithm = "md5" if inside.startswith("models/") else "sha256"
            value = hashlib.new(algorithm, server.files[inside]).hexdigest()
            files.append({"path": inside, "url": f"{server.url}/{inside}", algorithm: value})
    sources: list[dict[str, Any]] = [{"files": files}]
    if archive:
        sources.insert(0, {"archive": archive, "sha1": "0" * 40})
    write_catalogue(shelf, {"name": "tiny", "size": 10**7, "sources": sources} | changes)


def test_a_bundle_is_fetched_file_by_file(server: Server, shelf: Path, home: Path) -> None:
    """Each file goes on where it stopped, and the model is there when all of them are."""
    offer_files(shelf, server, home / "source")
    server.limit = 1000
    for _ in range(2):
        with pytest.raises(TCurLoraError, match="broke off"):
            catalogue.fetch_model("tiny", NullEvents())
        assert "tiny" not in leftovers()
    server.limit = None
    folder = catalogue.fetch_model("tiny", NullEvents())
    assert ("models/model.pt", "bytes=1000-") in server.asked
    assert leftovers() == ["tiny"]
    load_base_model(folder).build()


def test_a_file_with_other_bytes_is_deleted_and_fetched_again(server: Server, shelf: Path, home: Path) -> None:
    offer_files(shelf, server, home / "source")
    right = server.files["models/model.pt"]
    server.files["models/model.pt"] = right[:-1] + b"?"
    with pytest.raises(InputError) as caught:
        catalogue.fetch_model("tiny", NullEvents())
    assert caught.value.code == "wrong_hash" and ".tiny.models.model.pt.part" not in leftovers()
    server.files["models/model.pt"] = right
    catalogue.fetch_model("tiny", NullEvents())
    assert leftovers() == ["tiny"]


def test_the_next_source_is_asked_when_the_first_has_gone(server: Server, shelf: Path, home: Path) -> None:
    offer_files(shelf, server, home / "source", archive=f"{server.url}/gone.zip")
    catalogue.fetch_model("tiny", NullEvents())
    assert server.asked[0][0] == "gone.zip" and leftovers() == ["tiny"]


@pytest.mark.parametrize(
    "changes",
    [
        {"sources": []},
        {"sources": [{"archive": "https://example.org/tiny.zip"}]},
        {"sources": [{"files": [{"path": "configs/../../x.json", "url": "https://example.org", "md5": "0"}]}]},
        {"sources": [{"files": [{"path": "scripts/x.py", "url": "https://example.org", "md5": "0"}]}]},
        {"sources": [{"files": [{"path": "models/model.pt", "url": "https://example.org"}]}]},
        {"sources": 7},
        {"weights": {"models/model.pt": {}}},
        {"size": None},
    ],
)
def test_what_cannot_be_verified_is_not_fetched(server: Server, shelf: Path, home: Path, changes: Any) -> None:
    offer_files(shelf, server, home / "source", **changes)
    with pytest.raises(InputError) as caught:
        catalogue.fetch_model("tiny", NullEvents())
    assert caught.value.code == "damaged_installation"
    assert not server.asked and leftovers() == []


def test_a_restricted_licence_is_accepted_before_anything_is_asked_for(server: Server, shelf: Path, home: Path) -> None:
    offer_files(shelf, server, home / "source", restricted="its license is for non-commercial use only.")
    with pytest.raises(InputError, match="non-commercial") as caught:
        catalogue.fetch_model("tiny", NullEvents())
    assert caught.value.code == "licence" and "--accept-licence" in caught.value.remedy
    assert not server.asked
    catalogue.fetch_model("tiny", NullEvents(), accept_licence=True)
    assert leftovers() == ["tiny"]


def test_a_bundle_that_the_user_has_already_is_added_in_place_of_its_download(server: Server, home: Path) -> None:
    make_bundle(home / "elsewhere" / "tiny")
    folder = catalogue.add_model(home / "elsewhere" / "tiny", require_loadable)
    assert catalogue.show_model("tiny")["path"] == str(folder)
    assert catalogue.fetch_model("tiny", NullEvents()) == folder and not server.asked
    with pytest.raises(InputError, match="already"):
        catalogue.add_model(home / "elsewhere" / "tiny", require_loadable)


def test_entries_of_the_zoo_say_what_their_users_ask() -> None:
    entries = [entry for entry in catalogue.list_models() if entry.get("sources")]
    assert len(entries) >= 10
    for entry in entries:
        wanted = {"title", "modality", "structures", "input_channels", "network", "spacing", "patch", "version"}
        assert wanted | {"licence", "citation", "size", "limit", "memory_mb", "kind", "tried"} <= entry.keys()
        assert entry["origin"] == "downloaded" and not entry["on_disk"]
        for source in entry["sources"]:
            read = catalogue.source_of(source)
            assert read.verifiable({}) and all(remote.url.startswith("https://") for remote in read.files)
    restricted = {entry["name"] for entry in entries if entry.get("restricted")}
    assert restricted == {"multi_organ_segmentation", "renalStructures_CECT_segmentation"}


@pytest.mark.parametrize(
    "entry", ["../escaped", "/escaped", "tiny/../../escaped", "C:\\escaped", "link", "twice", "bomb"]
)
def test_an_archive_that_reaches_out_is_refused(
    shelf: Path, home: Path, entry: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = home / "evil.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("tiny/configs/metadata.json", "{}")
        if entry == "link":
            info = zipfile.ZipInfo("tiny/models/model.pt")
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
            opened.writestr(info, "/etc/passwd")
        elif entry == "twice":
            opened.writestr("tiny/models/model.pt", "a")
            with pytest.warns(UserWarning):
                opened.writestr("tiny/models/model.pt", "b")
        elif entry == "bomb":
            monkeypatch.setattr(catalogue, "MARGIN_BYTES", 10**5)
            opened.writestr("tiny/models/model.pt", bytes(10**6))
        else:
            opened.writestr(entry, "escaped")
    offer(shelf, archive.as_uri(), archive.read_bytes(), b"", size=1)
    with pytest.raises(InputError, match="refused"):
        catalogue.fetch_model("tiny", NullEvents())
    assert [name for name in leftovers() if not name.endswith(".part")] == []
    assert not list(home.rglob("escaped"))


def test_a_file_that_is_no_zip_is_refused(shelf: Path, home: Path) -> None:
    (home / "text.zip").write_text("no zip")
    offer(shelf, (home / "text.zip").as_uri(), b"no zip", b"")
    with pytest.raises(InputError, match="not a readable zip"):
        catalogue.fetch_model("tiny", NullEvents())


def test_a_bundle_is_added_without_its_scripts_and_removed(shelf: Path, home: Path) -> None:
    bundle = make_bundle(home / "Mein Modell")
    (bundle / "scripts").mkdir()
    (bundle / "scripts" / "evil.py").write_text("raise SystemExit")
    (bundle / "models" / "other.ts").write_text("x")
    (bundle / "LICENSE").write_text("free")
    folder = catalogue.add_model(bundle, require_loadable)
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert files == ["LICENSE", "configs/inference.json", "configs/metadata.json", "docs/README.md", "models/model.pt"]
    entry = catalogue.show_model("Mein Modell")
    assert (entry["title"], entry["structures"], entry["origin"]) == ("Tiny", ["hippocampus"], "added")
    assert load_base_model("Mein Modell").sha256 == load_base_model(bundle).sha256
    with pytest.raises(InputError, match="already"):
        catalogue.add_model(bundle, require_loadable)
    catalogue.remove_model("Mein Modell")
    assert leftovers() == []
    assert bundle.is_dir()


@pytest.mark.parametrize("name", ["shipped", "../x", "", "a/b", ".hidden", "con\n"])
def test_a_name_that_is_taken_or_unusable_is_refused(shelf: Path, home: Path, name: str) -> None:
    with pytest.raises(InputError):
        catalogue.add_model(make_bundle(home / "tiny"), require_loadable, name)
    assert leftovers() == []


def test_a_bundle_that_cannot_be_used_is_not_added(shelf: Path, home: Path) -> None:
    bundle = make_bundle(home / "broken")
    (bundle / "models" / "model.pt").write_bytes(b"broken")
    with pytest.raises(InputError):
        catalogue.add_model(bundle, require_loadable)
    with pytest.raises(InputError):
        catalogue.add_model(home / "nowhere", require_loadable)
    assert leftovers() == []


def test_what_ships_is_not_removed(shelf: Path) -> None:
    with pytest.raises(InputError, match="comes with"):
        catalogue.remove_model("shipped")
    with pytest.raises(InputError):
        catalogue.remove_model("nope")
    assert catalogue.show_model("shipped")["on_disk"]
