"""The documents name buttons that the panel has, and link to what exists."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from project_files import MODULE, ROOT

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
GUIDES = [ROOT / "README.md", ROOT / "docs/tutorial.md", ROOT / "docs/privacy.md"]
# What the guides set in italics besides names of the panel: Slicer's and GitHub's own names, and quotations.
OTHERS = {
    *("Segmentation", "PyTorch", "PyTorch Utils", "Crop Volume", "Data", "Sample Data", "Uninstall"),
    *("TCurLoraSegment", "Hippocampus (adapting does not help)", "TCurLora Segment", "Additional module paths"),
    *(
        "adapter",
        "hippocampus",
        "left hippocampus",
        "anterior",
        "posterior",
        "posterior hippocampus",
        "anterior hippocampus",
    ),
    *("remark", "problem", "uncorrected", "Person", "Use that"),
    *("compact", "paper", "decoder", "full", "ready", "new", "leave out", "Hippocampus in T1 MRI"),
}


def names_of_the_panel(path: Path) -> set[str]:
    """Give every text that a .ui file shows on a widget."""
    root = ElementTree.parse(path).getroot()
    shown = [*root.iter("property"), *root.iter("attribute")]  # the title of a tab is an attribute of its page
    texts = {one.findtext("string", "") for one in shown if one.get("name") in ("text", "title")}
    return {text.split(": ")[0].rstrip(":") for text in texts if text}


def unknown_names(text: str, known: set[str]) -> list[str]:
    """Say which names in italics are nowhere in the panel or around it; menus (`A > B`) and sentences pass."""
    plain = re.sub(r"^    .*$", "", re.sub(r"`[^`]*`|\*\*[^*]+\*\*", "", text), flags=re.MULTILINE)
    italics = [" ".join(name.split()) for name in re.findall(r"(?<!\w)\*([^*]+)\*(?!\w)", plain)]
    return [name for name in italics if name not in known and " > " not in name and not name.endswith((".", ","))] + [
        name for name in italics if name.endswith("...") and name not in known
    ]


def dead_links(path: Path, text: str) -> list[str]:
    """Say which links of a document lead nowhere in this repository."""
    dead = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        if not file.exists():
            dead.append(target)
        elif anchor and file.suffix == ".md":
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8") if name else text, re.MULTILINE)
            if anchor not in {
                re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings
            }:
                dead.append(target)
    return dead


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.name)
def test_guides_name_what_the_panel_has(path: Path) -> None:
    known = names_of_the_panel(MODULE / "Resources/UI/TCurLoraSegment.ui") | OTHERS
    assert unknown_names(path.read_text(encoding="utf-8"), known) == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    assert dead_links(path, path.read_text(encoding="utf-8")) == []


def test_bad_documents_are_found(tmp_path: Path) -> None:
    text = "Press *Start now*, then *Go...* or *File > Open*. **Bold** `*code*`\n\n    *block*\n*It says so.*\n"
    assert unknown_names(text, set()) == ["Start now", "Go..."]
    assert unknown_names(text, {"Start now", "Go..."}) == []
    document = tmp_path / "one.md"
    text = "# A title: one\n[a](missing.md) [b](#a-title-one) [c](#other) [d](https://example.org) [e](one.md#nothing)"
    document.write_text(text, encoding="utf-8")
    assert dead_links(document, text) == ["missing.md", "#other", "one.md#nothing"]
