"""Lines end with LF, files are UTF-8, and nothing names a place on somebody's machine."""

from __future__ import annotations

import re

import pytest
from project_files import ROOT, all_files, text_files

# Folders of people, of this machine's owner, and of Windows; the examples below are put together so as not to match.
MACHINE_PATHS = re.compile(
    r"(?<![\w.:~-])/(?:home|Users|root|work|mnt|opt|media|scratch|data)/[\w.-]+"
    r"|\b[A-Za-z]:[\\/]{1,2}(?:Users|Documents|home|Program)\b"
)
# Examples in tests: a person's folder that must not get into a report, one with an umlaut, and where Slicer may lie.
ALLOWED = re.compile(r"/home/(?:anna|ü)\b|/opt/Slicer\b")


def problems_of(name: str, content: bytes) -> list[str]:
    """Say what is wrong with a text file."""
    problems = []
    if b"\r" in content:
        problems.append(f"{name}: has other line ends than LF")
    if content and not content.endswith(b"\n"):
        problems.append(f"{name}: does not end with a line end")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        return [*problems, f"{name}: is not UTF-8 ({error})"]
    for number, line in enumerate(text.splitlines(), 1):
        if re.search(r"[ \t]+$", line) and not name.endswith(".md"):
            problems.append(f"{name}:{number}: ends with spaces")
        problems += [
            f"{name}:{number}: names a place on one machine: {found}"
            for found in MACHINE_PATHS.findall(line)
            if not ALLOWED.match(found)
        ]
    return problems


def test_text_files_are_clean() -> None:
    files = [path for path in text_files() if path != ROOT / "LICENSE.txt"]
    assert len(files) > 100
    problems = [
        problem for path in files for problem in problems_of(path.relative_to(ROOT).as_posix(), path.read_bytes())
    ]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize(
    "bad",
    [
        b"one\r\n",
        b"no end",
        b"trailing \n",
        "ä".encode("latin-1") + b"\n",
        b"data = '/" + b"home/bob/scans'\n",
        b"cd /" + b"work/main\n",
        b"C:" + b"\\Users\\bob\n",
        b"C:/" + b"Users/bob\n",
    ],
)
def test_bad_examples_are_found(bad: bytes) -> None:
    assert problems_of("bad.txt", bad)


def test_good_examples_pass() -> None:
    good = "ä https://example.org/home/anna ../data/x /tmp/x /usr/bin/env ~/work/x\n".encode()
    assert problems_of("good.txt", good) == []


def test_no_file_is_too_large_for_the_extensions_index() -> None:
    # The index refuses a clone of more than 100 MB; history adds to what lies here.
    assert sum(path.stat().st_size for path in all_files()) < 50e6
