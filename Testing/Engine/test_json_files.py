"""JSON files: an object or a refusal."""

from __future__ import annotations

from pathlib import Path

import pytest

from tcurlora.runtime.json_files import read_object, write_json


def test_objects_are_read_as_they_were_written(tmp_path: Path) -> None:
    write_json(tmp_path / "ä.json", {"名": [1, None, 0.5]})
    assert read_object(tmp_path / "ä.json") == {"名": [1, None, 0.5]}
    (tmp_path / "bom.json").write_bytes(b"\xef\xbb\xbf{}")
    assert read_object(tmp_path / "bom.json") == {}


@pytest.mark.parametrize("content", [b"", b"[]", b"3", b"null", b"{", b"\xff{}", b"[" * 200_000, b'{"a": ' * 200_000])
def test_anything_else_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError):
        read_object(tmp_path / "a.json")
    with pytest.raises(FileNotFoundError):
        read_object(tmp_path / "b.json")
