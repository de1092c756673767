"""JSON files: read as an object or refused, written whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tcurlora.runtime.atomic_files import whole_file


def read_object(path: Path) -> dict[str, Any]:
    """Read a file that holds one JSON object, in UTF-8 with or without a byte order mark.

    Raises:
        OSError: when the file cannot be read.
        ValueError: when it is not JSON, or not an object, or nested too deeply.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(content, dict):
        raise ValueError("it does not hold a JSON object")
    return content


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file so that readers see either the old file or the whole new one.

    Raises:
        OSError: when it cannot be written.
    """
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
