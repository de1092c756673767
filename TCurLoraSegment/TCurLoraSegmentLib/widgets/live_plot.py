"""The course of a training as a small picture."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import qt
from slicer.i18n import tr as _

WIDTH, HEIGHT, MARGIN = 380, 130, 6
MAXIMUM_POINTS = 400


class LivePlot:
    """Loss as a line, and the Dice of held-out cases, base and adapted, as words and marks.

    Args:
        label: where the picture is shown.

    Attributes:
        drawn: whether there is a picture.
    """

    def __init__(self, label: qt.QLabel) -> None:
        self._label = label
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.drawn = False
        self._losses: list[float] = []
        self._stride = 1
        self._skipped = 0
        self._dice: dict[str, list[float]] = {"base": [], "adapted": []}
        self._label.clear()

    def add_loss(self, value: float) -> None:
        """Add the loss of the next step; the line is thinned out when it grows long."""
        self._skipped += 1
        if self._skipped < self._stride:
            return
        self._skipped = 0
        self._losses.append(value)
        if len(self._losses) > MAXIMUM_POINTS:
            self._losses = self._losses[::2]
            self._stride *= 2

    def add_dice(self, model: str, value: float) -> None:
        """Add the mean Dice of a fold of the cross-validation: of `base` or `adapted`."""
        self._dice[model].append(value)

    def draw(self) -> None:
        """Show what is known."""
        if len(self._losses) < 2 and not self._dice["adapted"]:
            return
        pixmap = qt.QPixmap(WIDTH, HEIGHT)
        palette = self._label.palette  # kept, because its colors are pointers into it
        pixmap.fill(palette.color(qt.QPalette.Base))
        painter = qt.QPainter(pixmap)
        painter.setPen(palette.color(qt.QPalette.Text))
        painter.drawRect(0, 0, WIDTH - 1, HEIGHT - 1)
        if self._losses:
            painter.drawText(MARGIN, HEIGHT - MARGIN, _("loss {value:.3f}").format(value=self._losses[-1]))
        for row, (model, color) in enumerate((("base", qt.QColor(150, 150, 150)), ("adapted", qt.QColor(40, 140, 60)))):
            values = self._dice[model]
            painter.setPen(color)
            if values:
                title = _("Dice base") if model == "base" else _("Dice adapted")
                words = f"{title} {sum(values) / len(values):.3f}"
                painter.drawText(WIDTH // 2, HEIGHT - MARGIN - 16 * (1 - row), words)
            for number, value in enumerate(values):
                x = MARGIN + 12 + 24 * number
                y = self._y(value, 0.0, 1.0)
                painter.fillRect(x + 8 * row, y - 3, 6, 6, color)
        painter.setPen(qt.QColor(40, 90, 180))
        self._line(painter, self._losses)
        painter.end()
        self._label.setPixmap(pixmap)
        self.drawn = True

    def _line(self, painter: qt.QPainter, values: Sequence[float]) -> None:
        if len(values) < 2:
            return
        low, high = min(values), max(values)
        step = (WIDTH - 2 * MARGIN) / (len(values) - 1)
        points = [(int(MARGIN + step * n), self._y(value, low, high)) for n, value in enumerate(values)]
        for (x0, y0), (x1, y1) in pairwise(points):
            painter.drawLine(x0, y0, x1, y1)

    @staticmethod
    def _y(value: float, low: float, high: float) -> int:
        part = 0.5 if high <= low else (min(max(value, low), high) - low) / (high - low)
        return int(MARGIN + (1 - part) * (HEIGHT - 4 * MARGIN - 16))
