"""Examples in docstrings do what they say."""

from __future__ import annotations

import doctest
from importlib import import_module
from pathlib import Path

import pytest

import tcurlora
import tcurlora_contract

ROOT = Path(tcurlora.__file__).parents[1]
PACKAGES = [Path(package.__file__ or "").parent for package in (tcurlora, tcurlora_contract)]
FILES = [path for package in PACKAGES for path in package.rglob("*.py")]
WITH_EXAMPLES = sorted(path for path in FILES if ">>> " in path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_examples_give_what_they_show(path: Path) -> None:
    module = import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    found = doctest.testmod(module)
    assert found.attempted and not found.failed


def test_there_are_examples() -> None:
    assert len(WITH_EXAMPLES) >= 4
