"""TCurLoraSegment.json and CMakeLists.txt say what the Extensions Index checks, and the same."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from cmake_lists import cmake_set
from project_files import ROOT

NAME = "TCurLoraSegment"
SCHEMA_URL = (
    "https://raw.githubusercontent.com/Slicer/Slicer/main/Schemas/slicer-extension-catalog-entry-schema-v1.0.1.json#"
)
REQUIRED = ("$schema", "category", "scm_url")
TYPES = {
    **{"$schema": str, "category": str, "scm_url": str, "scm_revision": str, "scm_type": str},
    **{"build_dependencies": list, "build_subdirectory": str, "enabled": bool, "tier": int},
}
FIELDS = ("HOMEPAGE", "CATEGORY", "CONTRIBUTORS", "DESCRIPTION", "ICONURL", "SCREENSHOTURLS", "DEPENDS")
CMAKE = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")


def problems_of(entry: dict[str, Any]) -> list[str]:
    """Say what the index's schema and its checks would not take."""
    problems = [f"{key} is missing" for key in REQUIRED if not entry.get(key)]
    for key, value in entry.items():
        if key not in TYPES:
            problems.append(f"the schema knows no {key}")
        elif type(value) is not TYPES[key]:
            problems.append(f"{key} must be {TYPES[key].__name__}")
    if entry.get("$schema") != SCHEMA_URL:
        problems.append("$schema is another one")
    if entry.get("tier", 1) not in range(1, 6):
        problems.append("tier is from 1 to 5")
    if not re.fullmatch(r"https://[\w.-]+/[\w.-]+/Slicer\w+(\.git)?", str(entry.get("scm_url"))):
        problems.append("scm_url must be https, of a repository whose name begins with Slicer")
    return problems


def cmake_problems(text: str) -> list[str]:
    """Say what the index's checks would not find in the CMakeLists.txt of the root."""
    problems = []
    if re.findall(r"project\s*\(\s*([^\s)]+)", text) != [NAME]:
        problems.append("project() must name the extension")
    for field in FIELDS:
        # The index reads these by a pattern: one quoted text, and the bracket right behind it.
        if not re.search(rf'^set\(EXTENSION_{field} "[^"]+"\)$', text, re.MULTILINE):
            problems.append(f"EXTENSION_{field} must be set to one quoted text")
    return problems


def test_the_description_is_what_the_index_asks_for() -> None:
    content = (ROOT / f"{NAME}.json").read_bytes()
    assert b"\r" not in content
    assert problems_of(json.loads(content)) == []


def test_cmake_says_what_the_index_asks_for() -> None:
    assert cmake_problems(CMAKE) == []


def test_both_say_the_same() -> None:
    entry = json.loads((ROOT / f"{NAME}.json").read_bytes())
    assert cmake_set(CMAKE, "EXTENSION_HOMEPAGE") == [entry["scm_url"]]
    assert cmake_set(CMAKE, "EXTENSION_CATEGORY") == [entry["category"]]
    assert cmake_set(CMAKE, "EXTENSION_DEPENDS")[0].split() == entry["build_dependencies"]


def pictures() -> list[tuple[str, Path]]:
    """Give the addresses of icon and screenshots, and the file that each must be."""
    host, repository = cmake_set(CMAKE, "EXTENSION_HOMEPAGE")[0].removeprefix("https://").split("/", 1)
    assert host == "github.com"
    prefix = f"https://raw.githubusercontent.com/{repository}/main/"
    addresses = cmake_set(CMAKE, "EXTENSION_ICONURL") + cmake_set(CMAKE, "EXTENSION_SCREENSHOTURLS")[0].split()
    return [(address, ROOT / address.removeprefix(prefix)) for address in addresses]


@pytest.mark.parametrize(("address", "path"), pictures(), ids=lambda value: str(value).split("/")[-1])
def test_the_pictures_exist_in_this_repository(address: str, path: Path) -> None:
    assert path.is_file(), f"{address} would not be found"
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_what_the_index_wants_lies_in_the_root() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    licence = (ROOT / "LICENSE.txt").read_text(encoding="utf-8")
    assert "Apache License" in licence and "Apache" in readme
    assert re.search(r"!\[[^]]+\]\(docs/pictures/\w+\.png\)", readme)
    assert "docs/tutorial.md" in readme and "docs/privacy.md" in readme


def test_bad_descriptions_are_found() -> None:
    bad = {"$schema": "", "scm_url": "git@example.org:me/TCurLoraSegment", "tier": 6, "depends": [], "enabled": 1}
    assert len(problems_of(bad)) == 7
    assert len(cmake_problems('project(Other)\nset(EXTENSION_ICONURL "a" )\nset(EXTENSION_DEPENDS PyTorch)')) == 8
