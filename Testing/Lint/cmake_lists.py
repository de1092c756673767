"""What the CMake files say, read without CMake."""

from __future__ import annotations

import re


def cmake_set(text: str, name: str) -> list[str]:
    """Read the words of `set(NAME ...)`.

    Raises:
        LookupError: when nothing, or more than one thing, sets it.
    """
    code = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    found = re.findall(rf'\bset\(\s*{name}\b((?:"[^"]*"|[^)"])*)\)', code)
    if len(found) != 1:
        raise LookupError(f"{name} is set {len(found)} times")
    return [quoted or plain for quoted, plain in re.findall(r'"([^"]*)"|([^\s"]+)', found[0])]


def differences(listed: list[str], there: set[str]) -> list[str]:
    """Compare a list with what it should hold, both ways."""
    twice = sorted({name for name in listed if listed.count(name) > 1})
    return [
        *(f"{name} is listed and does not exist" for name in sorted(set(listed) - there)),
        *(f"{name} exists and is not listed" for name in sorted(there - set(listed))),
        *(f"{name} is listed twice" for name in twice),
    ]
