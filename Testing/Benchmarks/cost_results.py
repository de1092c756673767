"""What a section of the cost benchmark gives: figures with their goals, and a table of what they come from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Figure:
    """One measured number; with a goal it should not exceed that."""

    name: str
    value: float
    unit: str = ""
    goal: float | None = None

    def row(self) -> str:
        """A row of the table of figures."""
        goal, verdict = "", ""
        if self.goal is not None:
            goal = f"{_short(self.goal)} {self.unit}".rstrip()
            verdict = "met" if self.value <= self.goal else "missed"
        return f"| {self.name} | {_short(self.value)} {self.unit}".rstrip() + f" | {goal} | {verdict} |"


@dataclass
class Section:
    """Figures, and the rows of a table whose columns are the keys of its first row."""

    title: str
    figures: list[Figure] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)

    def markdown(self) -> str:
        """Both as tables."""
        parts = [f"## {self.title}"]
        if self.rows:
            columns = list(self.rows[0])
            lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
            lines += ["| " + " | ".join(_short(row[column]) for column in columns) + " |" for row in self.rows]
            parts.append("\n".join(lines))
        if self.figures:
            lines = ["| figure | measured | goal | |", "|---|---|---|---|", *(figure.row() for figure in self.figures)]
            parts.append("\n".join(lines))
        return "\n\n".join(parts)


def _short(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
