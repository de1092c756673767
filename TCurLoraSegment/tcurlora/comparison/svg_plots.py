"""Plots as SVG text that stands inside an HTML page and needs nothing from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

# fmt: off
COLORS = (
    "#3566a8", "#c2571a", "#2f8f5b", "#8a4fb0", "#b03a48", "#6b6b1f", "#1f8a99", "#7a5a3c", "#5a6f8a", "#d08a00",
    "#4f7f1f", "#c04f95", "#555555", "#0a7a70",
)
# fmt: on
WIDTH, LEFT, RIGHT, ROW, FOOT = 760, 170, 60, 26, 44


def palette(names: Iterable[str]) -> dict[str, str]:
    """A color for each name, for all plots of a page."""
    return {name: COLORS[index % len(COLORS)] for index, name in enumerate(names)}


def ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Round numbers that span a range."""
    if not high > low:
        high = low + (abs(low) or 1.0) * 0.1
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * (1 - 1e-9))
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def strip_plot(
    series: Mapping[str, Sequence[float]], means: Mapping[str, float], axis: str, colors: Mapping[str, str]
) -> str:
    """One row for each method: a dot for each case, and a bar at the mean."""
    values = [value for group in series.values() for value in group]
    if not values:
        return ""
    marks = ticks(min(values), max(values))
    parts = []
    for index, (name, group) in enumerate(series.items()):
        middle = ROW * index + ROW / 2
        for number, value in enumerate(group):
            # Dots of a row are spread in height, always alike, so that equal values stay visible.
            y = middle + (number * 5 % 11 - 5) * 0.9
            parts.append(_circle(_x(value, marks), y, 2.4, colors[name], 0.45, f"{name}: {value:.4g}"))
        if name in means:
            x = _x(means[name], marks)
            parts.append(_line(x, middle - 10, x, middle + 10, colors[name], 3))
    return _rows(list(series), marks, axis, parts)


def forest_plot(
    rows: Mapping[str, tuple[float | None, Sequence[float] | None]], axis: str, colors: Mapping[str, str]
) -> str:
    """One row for each method: a difference with its interval, and a line at zero."""
    values = [0.0, *(v for mean, interval in rows.values() for v in (mean, *(interval or ())) if v is not None)]
    marks = ticks(min(values), max(values))
    zero = _x(0.0, marks)
    parts = [_line(zero, 0, zero, ROW * len(rows), "currentColor", 1)]
    for index, (name, (mean, interval)) in enumerate(rows.items()):
        if mean is None:
            continue
        middle = ROW * index + ROW / 2
        if interval is not None:
            parts.append(_line(_x(interval[0], marks), middle, _x(interval[1], marks), middle, colors[name], 2))
        parts.append(_circle(_x(mean, marks), middle, 5, colors[name], 1, f"{name}: {mean:+.4g}"))
    return _rows(list(rows), marks, axis, parts)


def scatter_plot(points: Mapping[str, tuple[float, float]], x_axis: str, y_axis: str, colors: Mapping[str, str]) -> str:
    """Named points; the horizontal axis is logarithmic."""
    if not points:
        return ""
    height, bottom = 300, 300 - FOOT
    powers = [math.log10(max(x, 1)) for x, _ in points.values()]
    x_marks = [
        float(p) for p in range(math.floor(min(powers)), max(math.ceil(max(powers)), math.floor(min(powers)) + 1) + 1)
    ]
    y_marks = ticks(min(y for _, y in points.values()), max(y for _, y in points.values()), 5)
    parts = [_text(_x(mark, x_marks), bottom + 16, f"{10**mark:,.0f}", "middle") for mark in x_marks]
    parts += _y_axis(y_marks, bottom)
    labels: list[tuple[float, float]] = []
    for name, (x, y) in sorted(points.items(), key=lambda item: -item[1][1]):
        px, py = _x(math.log10(max(x, 1)), x_marks), _y(y, y_marks, bottom)
        parts.append(_circle(px, py, 5, colors[name], 1, f"{name}: {x:,.0f}, {y:.4g}"))
        # From the top down, a name that would lie on another moves below it.
        for other_x, other_y in labels:
            if abs(px - other_x) < 110 and abs(py - other_y) < 13:
                py = other_y + 13
        labels.append((px, py))
        parts.append(_text(px + 8, py + 4, name, "start", colors[name]))
    return _svg(height, [*parts, *_titles(height, x_axis, y_axis)], f"{y_axis} against {x_axis}")


def line_plot(
    series: Mapping[str, Sequence[tuple[float, float]]], x_axis: str, y_axis: str, colors: Mapping[str, str]
) -> str:
    """One line for each method, named at its end."""
    points = [point for line in series.values() for point in line]
    if not points:
        return ""
    height, bottom = 300, 300 - FOOT
    x_marks = ticks(0.0, max(x for x, _ in points))
    y_marks = ticks(min(y for _, y in points), max(y for _, y in points), 5)
    parts = [_text(_x(mark, x_marks), bottom + 16, f"{mark:g}", "middle") for mark in x_marks]
    parts += _y_axis(y_marks, bottom)
    for index, (name, line) in enumerate(series.items()):
        where = " ".join(f"{_x(x, x_marks):.1f},{_y(y, y_marks, bottom):.1f}" for x, y in line)
        parts.append(
            f'<polyline points="{where}" fill="none" stroke="{colors[name]}" stroke-width="2">'
            f"<title>{escape(name)}</title></polyline>"
        )
        # The names stand in a column of their own, because lines end close to each other.
        parts.append(_text(LEFT - 150, 14 + 15 * index, name, "start", colors[name]))
    return _svg(height, [*parts, *_titles(height, x_axis, y_axis)], f"{y_axis} against {x_axis}")


def _x(value: float, marks: Sequence[float]) -> float:
    return LEFT + (value - marks[0]) / (marks[-1] - marks[0]) * (WIDTH - LEFT - RIGHT)


def _y(value: float, marks: Sequence[float], bottom: float) -> float:
    return bottom - (value - marks[0]) / (marks[-1] - marks[0]) * (bottom - 12)


def _rows(names: Sequence[str], marks: Sequence[float], axis: str, parts: Sequence[str]) -> str:
    bottom = ROW * len(names)
    grid = [_line(_x(mark, marks), 0, _x(mark, marks), bottom, "currentColor", 0.15) for mark in marks]
    grid += [_text(_x(mark, marks), bottom + 16, f"{mark:g}", "middle") for mark in marks]
    labels = [_text(LEFT - 10, ROW * i + ROW / 2 + 4, name, "end") for i, name in enumerate(names)]
    title = _text((LEFT + WIDTH - RIGHT) / 2, bottom + 36, axis, "middle")
    return _svg(bottom + FOOT, [*grid, *parts, *labels, title], axis)


def _y_axis(marks: Sequence[float], bottom: float) -> list[str]:
    lines = [
        _line(LEFT, _y(m, marks, bottom), WIDTH - RIGHT, _y(m, marks, bottom), "currentColor", 0.15) for m in marks
    ]
    return lines + [_text(LEFT - 8, _y(m, marks, bottom) + 4, f"{m:g}", "end") for m in marks]


def _titles(height: float, x_axis: str, y_axis: str) -> list[str]:
    middle = (height - FOOT) / 2
    turned = f'<text x="0" y="0" text-anchor="middle" transform="translate({LEFT - 55},{middle}) rotate(-90)">'
    return [_text((LEFT + WIDTH - RIGHT) / 2, height - 8, x_axis, "middle"), f"{turned}{escape(y_axis)}</text>"]


def _svg(height: float, parts: Sequence[str], title: str) -> str:
    head = f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(title)}">'
    return "\n".join([head, *parts, "</svg>"])


def _line(x1: float, y1: float, x2: float, y2: float, stroke: str, width: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{stroke}" stroke-width="{width:g}"/>'


def _circle(x: float, y: float, radius: float, fill: str, opacity: float, title: str) -> str:
    shape = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" fill="{fill}" fill-opacity="{opacity:g}">'
    return f"{shape}<title>{escape(title)}</title></circle>"


def _text(x: float, y: float, text: str, anchor: str, fill: str = "currentColor") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{fill}">{escape(text)}</text>'
