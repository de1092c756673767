"""Text for people: tables for the terminal and for Markdown, sizes such as `96 x 96 x 96`."""

from __future__ import annotations

from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]], markdown: bool = False, words: bool = False) -> str:
    """Lay out rows under a header, the first column to the left and the others, as numbers, to the right.

    Args:
        header: title of each column.
        rows: one text for each column.
        markdown: write a Markdown table instead of one for the terminal.
        words: all columns hold words and go to the left.

    >>> print(table(["name", "n"], [["a", "10"], ["b", "5"]]))
    name   n
    ----  --
    a     10
    b      5
    """
    if markdown:
        marks = ["---"] + ["---" if words else "---:"] * (len(header) - 1)
        lines = [list(header), marks, *rows]
        return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    widths = [max(len(line[i]) for line in (header, *rows)) for i in range(len(header))]
    lines = [list(header), ["-" * width for width in widths], *rows]
    return "\n".join(
        "  ".join(
            c.rjust(w) if i and not words else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def times(sizes: Sequence[float]) -> str:
    """Write sizes along axes.

    >>> times((96, 96, 64)), times((0.5, 0.5, 3.0))
    ('96 x 96 x 64', '0.5 x 0.5 x 3')
    """
    return " x ".join(f"{size:.6g}" for size in sizes)
