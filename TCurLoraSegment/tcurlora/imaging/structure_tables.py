"""Tables beside label maps that name their values, as Slicer, ITK-SNAP, FreeSurfer and BIDS write them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from tcurlora.errors import InputError, TCurLoraError
from tcurlora.imaging.images import stem
from tcurlora.imaging.structures import Structure
from tcurlora.runtime.text_tables import Table, decoded, read_table

STRUCTURE_COMMENT = "# structure: "
"""Begins the lines of a color table in which this program keeps what the columns cannot hold."""
_ENDINGS = (
    ".ctbl",
    "_ColorTable.ctbl",
    ".labels.csv",
    "_ColorTable.csv",
    ".csv",
    ".tsv",
    ".label",
    ".lbl",
    ".labels.txt",
    "_labels.txt",
    "_LUT.txt",
    ".txt",
)
_VALUE_COLUMNS = ("labelvalue", "value", "label", "index", "id", "no", "number", "labelnumber", "intensity")
_NAME_COLUMNS = ("name", "structure", "structurename", "labelname", "segment", "region", "description", "label")
_COLOR_COLUMNS = (("colorr", "colorg", "colorb"), ("r", "g", "b"), ("red", "green", "blue"))


def tables_beside(path: Path) -> list[Path]:
    """Return the tables that may name the values of a label map, of which the first that does so counts.

    They are `NAME.ctbl`, `NAME.labels.csv`, `NAME.tsv`, `NAME.txt` and the like beside it, and the `dseg.tsv` of a
    BIDS folder in its own folder or the two above.
    """
    found = [path.with_name(stem(path) + ending) for ending in _ENDINGS]
    if stem(path).endswith("dseg"):
        found += [folder / "dseg.tsv" for folder in list(path.absolute().parents)[:3]]
    return [candidate for candidate in found if candidate.is_file()]


def read_structure_table(path: Path) -> tuple[list[Structure], list[Structure]]:
    """Read the structures that a table lists, and those of them that this program described in full.

    Names may repeat, and the background may be among them.

    Raises:
        InputError: when it is none of the tables that are known (code `bad_color_table`).
    """
    try:
        if path.suffix.lower() in (".csv", ".tsv"):
            return _from_columns(path), []
        return _from_lines(path)
    except (ValueError, KeyError, TypeError, IndexError, StopIteration, InputError) as error:
        raise InputError(
            f"The color table {path} is not in a format that is known: 3D Slicer's (number, name, red, green, blue, "
            "opacity), ITK-SNAP's, or a table with the columns LabelValue and Name.",
            "Correct the table, or remove it and give the names (with --labels).",
            "bad_color_table",
        ) from error


def first_structure_table(path: Path) -> tuple[Path, list[Structure], list[Structure]] | None:
    """Read the first table beside a label map that names values; a text beside it may be about anything.

    Raises:
        InputError: when a file with the ending of a color table is none, and no other one is there.
    """
    problem: TCurLoraError | None = None
    for table in tables_beside(path):
        try:
            listed, detailed = read_structure_table(table)
        except TCurLoraError as error:
            if table.name.lower().endswith((".ctbl", ".labels.csv", "_colortable.csv", ".tsv", ".label", ".lbl")):
                problem = problem or error
            continue
        return table, listed, detailed
    if problem is not None:
        raise problem
    return None


def _from_columns(path: Path) -> list[Structure]:
    table = read_table(path)
    keys = [re.sub(r"[\W_]+", "", name.casefold()) for name in table.header]
    value = next(keys.index(key) for key in _VALUE_COLUMNS if key in keys and _holds_numbers(table, keys.index(key)))
    name = next(keys.index(key) for key in _NAME_COLUMNS if key in keys and keys.index(key) != value)
    colors = next(([keys.index(k) for k in three] for three in _COLOR_COLUMNS if all(k in keys for k in three)), None)
    hexadecimal = keys.index("color") if colors is None and "color" in keys else None
    listed = []
    for row in table.rows:
        color = None
        if colors is not None:
            color = _color(float(table.cell(row, column) or 0) for column in colors)
        elif hexadecimal is not None:
            digits = re.fullmatch(r"#?([0-9A-Fa-f]{6})", table.cell(row, hexadecimal))
            color = _color(bytes.fromhex(digits.group(1))) if digits else None
        if table.cell(row, name):
            listed.append(Structure(table.cell(row, name), _whole(table.cell(row, value)), color))
    return listed


def _holds_numbers(table: Table, column: int) -> bool:
    cells = [table.cell(row, column) for row in table.rows]
    return bool(cells) and all(re.fullmatch(r"\d+(\.0*)?", cell) for cell in cells)


def _from_lines(path: Path) -> tuple[list[Structure], list[Structure]]:
    listed: list[Structure] = []
    detailed: list[Structure] = []
    for line in decoded(path).splitlines():
        if line.startswith(STRUCTURE_COMMENT):
            detailed.append(Structure.from_dict(json.loads(line.removeprefix(STRUCTURE_COMMENT))))
        elif line.strip() and not line.lstrip().startswith("#"):
            listed.append(_itk_snap(line) or _slicer(line))
    if not listed:
        raise ValueError("no line names a label")
    return listed, detailed


def _itk_snap(line: str) -> Structure | None:
    """Read `index red green blue opacity visible mesh "name"`."""
    found = re.fullmatch(r'\s*(\d+)\s+(\d+)\s+(\d+)\s+(\d+)\s+[\d.]+\s+[01]\s+[01]\s+"(.*)"\s*', line)
    if found is None:
        return None
    name = "background" if int(found.group(1)) == 0 else found.group(5)
    return Structure(name, int(found.group(1)), _color(float(part) for part in found.groups()[1:4]))


def _slicer(line: str) -> Structure:
    """Read `number name red green blue opacity` of Slicer, or FreeSurfer's, which look alike."""
    number, name, red, green, blue = line.split()[:5]
    color = _color(float(part) for part in (red, green, blue))
    return Structure(name.strip("'\"").replace("_", " "), int(number), color)


def _color(parts: Iterable[float]) -> tuple[float, float, float]:
    red, green, blue = (float(part) / 255 for part in parts)
    return red, green, blue


def _whole(text: str) -> int:
    number = float(text)
    if number != int(number) or not 0 <= number < 2**31:
        raise ValueError(f"{text} is not a label number")
    return int(number)
