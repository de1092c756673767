"""Tables in text files as spreadsheets and other programs write them: any delimiter, any of the usual encodings."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tcurlora.errors import InputError

DELIMITERS = ",;\t|"


@dataclass(frozen=True)
class Row:
    """A row of a table: its line in the file, counted from 1, and its cells without surrounding spaces."""

    line: int
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """A table with a header; rows without any text are left out, and no row has more cells than the header."""

    path: Path
    header: tuple[str, ...]
    rows: tuple[Row, ...]

    def cell(self, row: Row, column: int) -> str:
        """Return a cell, which is empty where the row is shorter than the header."""
        return row.cells[column] if column < len(row.cells) else ""


def read_table(path: Path) -> Table:
    """Read a table with a header.

    The delimiter is the one that Excel names in its line `sep=;`, or else the one that the header has most of. The
    text may be UTF-8, UTF-16 or Windows-1252, with or without a byte order mark.

    Raises:
        InputError: when the file is not such a text, or a row has more cells than the header (code `bad_table`).
    """
    text = decoded(path)
    lines = text.splitlines()
    start = next((number for number, line in enumerate(lines) if line.strip()), len(lines))
    named = re.fullmatch(r'"?sep=(.)"?[,;\t ]*', lines[start], re.IGNORECASE) if start < len(lines) else None
    if named:
        start = next((n for n, line in enumerate(lines[start + 1 :], start + 1) if line.strip()), len(lines))
    if start >= len(lines):
        return Table(path, (), ())
    delimiter = named.group(1) if named else _delimiter(lines[start])
    reader = csv.reader(lines[start:], delimiter=delimiter, skipinitialspace=delimiter != "\t")
    rows: list[Row] = []
    try:
        for cells in reader:
            stripped = tuple(cell.strip() for cell in cells)
            if any(stripped):
                rows.append(Row(start + reader.line_num, stripped))
    except csv.Error as error:
        raise bad_table(path, f"is not a table of text: {error}") from error
    header, *body = rows
    width = len(header.cells)
    for row in body:
        if any(row.cells[width:]):
            raise bad_table(
                path,
                f"has {len(row.cells)} cells in line {row.line}, but its header has {width}",
                "Put cells that hold the delimiter into double quotes, or save the table again as CSV.",
            )
    return Table(path, header.cells, tuple(Row(row.line, row.cells[:width]) for row in body))


def decoded(path: Path) -> str:
    """Decode a text file by its byte order mark, or as UTF-8, UTF-16 or Windows-1252, whichever it is.

    Raises:
        InputError: when it is a spreadsheet or another file without text (code `bad_table`).
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise bad_table(path, f"cannot be read: {error.strerror or error}", "Check its permissions.") from error
    if raw[:4] in (b"PK\3\4", b"\xd0\xcf\x11\xe0"):
        raise bad_table(path, "is a spreadsheet and not text", "Open it, and save it as CSV.")
    for encoding in _encodings(raw):
        try:
            text = raw.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" not in text:
            return text.lstrip("\ufeff")
    raise bad_table(path, "is not text in a known encoding")


def bad_table(path: Path, what: str, remedy: str = "Save it as CSV in UTF-8.") -> InputError:
    """Return an error that says what is wrong with a table."""
    return InputError(f"The table {path} {what}.", remedy, "bad_table")


def quoted(names: Sequence[object], most: int = 4) -> str:
    """List names in quotes, and how many more there are where there are many."""
    shown = ", ".join(f"'{name}'" for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def _encodings(raw: bytes) -> list[str]:
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return ["utf-16"]
    # Text of mostly Latin letters in UTF-16 without a mark has a 0 in every second byte.
    sample = raw[:400]
    if len(sample) >= 4 and sample[1::2].count(0) > 0.4 * len(sample[1::2]):
        return ["utf-16-le"]
    if len(sample) >= 4 and sample[::2].count(0) > 0.4 * len(sample[::2]):
        return ["utf-16-be"]
    return ["utf-8-sig", "cp1252"]


def _delimiter(header: str) -> str:
    bare = re.sub(r'"[^"]*"', "", header)
    return max(DELIMITERS, key=bare.count) if any(mark in bare for mark in DELIMITERS) else ","
