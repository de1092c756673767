"""Examples in docstrings do what they say."""

from __future__ import annotations

import doctest
from importlib import import_module
from pathlib import Path

import pytest

import tcurlora

PACKAGE = Path(tcurlora.__file__).parent
WITH_EXAMPLES = sorted(path for path in PACKAGE.rglob("*.py") if ">>> " in path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_examples_give_what_they_show(path: Path) -> None:
    module = import_module(".".join(("tcurlora", *path.relative_to(PACKAGE).with_suffix("").parts)))
    found = doctest.testmod(module)
    assert found.attempted and not found.failed


def test_there_are_examples() -> None:
    assert len(WITH_EXAMPLES) >= 4
