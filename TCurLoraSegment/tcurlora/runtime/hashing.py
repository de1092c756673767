"""SHA-256 of files, of bytes, and of what JSON holds."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

_BLOCK_BYTES = 2**20


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file's content as hexadecimal text, without holding the file in memory."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def sha256_of_bytes(content: bytes) -> str:
    """Return the SHA-256 of some bytes as hexadecimal text.

    >>> sha256_of_bytes(b"")[:8]
    'e3b0c442'
    """
    return hashlib.sha256(content).hexdigest()


def sha256_of_json(value: Any) -> str:
    """Return the SHA-256 of JSON types; the order of keys does not matter.

    >>> sha256_of_json({"a": 1, "b": 2}) == sha256_of_json({"b": 2, "a": 1})
    True
    """
    return sha256_of_bytes(json.dumps(value, sort_keys=True).encode())
