"""What says the same in several places: version, licence, workflows, the changelog."""

from __future__ import annotations

import re

import pytest
import tomllib
import yaml
from project_files import ENGINE, ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


def version() -> str:
    found = re.search(r'__version__ = "(.+)"', (ENGINE / "__init__.py").read_text(encoding="utf-8"))
    assert found
    return found[1]


def test_citation_names_version_and_license() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0" and citation["authors"] and citation["title"]
    assert str(citation["version"]) == version()
    assert citation["license"] == PROJECT["license"] == "Apache-2.0"
    assert citation["repository-code"] == PROJECT["urls"]["Homepage"]


def test_changelog_has_this_version() -> None:
    assert f"## {version()}\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_can_be_read_and_run_files_that_there_are(path: object) -> None:
    text = path.read_text(encoding="utf-8")  # type: ignore[attr-defined]
    workflow = yaml.safe_load(text)
    # YAML takes the key `on` for a truth value.
    assert workflow["name"] and workflow.get("on", workflow.get(True)) and workflow["jobs"]
    for job in workflow["jobs"].values():
        assert job["runs-on"] and job["timeout-minutes"] and job["steps"]
    for script in re.findall(r"(?:Testing|\.ci)/[\w./]+", text):
        assert (ROOT / script).is_file(), script


def test_typed_marker_is_in_the_package() -> None:
    assert (ENGINE / "py.typed").is_file()
    assert "py.typed" in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
