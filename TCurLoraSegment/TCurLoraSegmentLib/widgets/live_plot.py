"""The course of a training as a small picture."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import qt
from slicer.i18n import tr as _

WIDTH, HEIGHT, MARGIN = 380, 130, 8
WORDS = 18  # height of the line of words below
SPLIT = 230  # the loss is left of it, the Dice right of it
LEGEND = 50  # width of the names beside the dots
MAXIMUM_POINTS = 400
BASE, ADAPTED, EARLIER, NOW = (150, 150, 150), (40, 140, 60), (195, 205, 230), (40, 90, 180)


class LivePlot:
    """The loss as a line for each training, and the Dice of held-out cases, base and adapted, as dots for each fold.

    Args:
        label: where the picture is shown.

    Attributes:
        drawn: whether there is a picture.
    """

    def __init__(self, label: qt.QLabel) -> None:
        self._label = label
        self._legend = {"base": _("base"), "adapted": _("adapted")}
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.drawn = False
        self._trainings: list[list[float]] = [[]]
        self._stride = 1
        self._skipped = 0
        self._dice: dict[str, list[float]] = {"base": [], "adapted": []}
        self._label.clear()

    def next_training(self) -> None:
        """Begin a new line, for the next fold or the training on all cases."""
        if self._trainings[-1]:
            self._trainings.append([])
            self._skipped = 0

    def add_loss(self, value: float) -> None:
        """Add the loss of the next step; lines are thinned out when one grows long."""
        self._skipped += 1
        if self._skipped < self._stride:
            return
        self._skipped = 0
        self._trainings[-1].append(value)
        if len(self._trainings[-1]) > MAXIMUM_POINTS:
            self._trainings = [losses[::2] for losses in self._trainings]
            self._stride *= 2

    def add_dice(self, model: str, value: float) -> None:
        """Add the mean Dice of a fold of the cross-validation: of `base` or `adapted`."""
        self._dice[model].append(value)

    def draw(self) -> None:
        """Show what is known."""
        if max(map(len, self._trainings)) < 2 and not self._dice["adapted"]:
            return
        pixmap = qt.QPixmap(WIDTH, HEIGHT)
        palette = self._label.palette  # kept, because its colors are pointers into it
        pixmap.fill(palette.color(qt.QPalette.Base))
        painter = qt.QPainter(pixmap)
        painter.setPen(palette.color(qt.QPalette.Mid))
        painter.drawRect(0, 0, WIDTH - 1, HEIGHT - 1)
        painter.drawLine(SPLIT, 0, SPLIT, HEIGHT - 1)
        self._draw_losses(painter)
        self._draw_dice(painter, palette.color(qt.QPalette.Text))
        painter.end()
        self._label.setPixmap(pixmap)
        self.drawn = True

    def _draw_losses(self, painter: qt.QPainter) -> None:
        losses = [value for training in self._trainings for value in training]
        if not losses:
            return
        longest = max(2, *map(len, self._trainings))
        step = (SPLIT - 2 * MARGIN) / (longest - 1)
        *earlier, current = self._trainings
        for training, color in [*((each, EARLIER) for each in earlier), (current, NOW)]:
            painter.setPen(qt.QColor(*color))
            self._line(painter, [MARGIN + step * n for n in range(len(training))], training, min(losses), max(losses))
        painter.setPen(qt.QColor(*NOW))
        painter.drawText(MARGIN, HEIGHT - MARGIN, _("loss {value:.3f}").format(value=(current or losses)[-1]))

    def _draw_dice(self, painter: qt.QPainter, text: qt.QColor) -> None:
        values = [*self._dice["base"], *self._dice["adapted"]]
        if not values:
            return
        low = min(values) - 0.02
        means = []
        for model, color in (("base", BASE), ("adapted", ADAPTED)):
            dice = self._dice[model]
            if not dice:
                continue
            means.append(f"{sum(dice) / len(dice):.2f}")
            painter.setPen(qt.QColor(*color))
            left = SPLIT + LEGEND
            places = [left + (WIDTH - left) * (n + 1) / (len(dice) + 1) for n in range(len(dice))]
            self._line(painter, places, dice, low, 1.0)
            for x, value in zip(places, dice, strict=True):
                painter.fillRect(int(x) - 3, self._y(value, low, 1.0) - 3, 6, 6, qt.QColor(*color))
            painter.drawText(SPLIT + MARGIN, MARGIN + WORDS * len(means), self._legend[model])
        painter.setPen(text)
        painter.drawText(SPLIT + MARGIN, HEIGHT - MARGIN, _("Dice {values}").format(values=" \u2192 ".join(means)))

    def _line(
        self, painter: qt.QPainter, places: Sequence[float], values: Sequence[float], low: float, high: float
    ) -> None:
        points = [(int(x), self._y(value, low, high)) for x, value in zip(places, values, strict=True)]
        for (x0, y0), (x1, y1) in pairwise(points):
            painter.drawLine(x0, y0, x1, y1)

    @staticmethod
    def _y(value: float, low: float, high: float) -> int:
        part = 0.5 if high <= low else (min(max(value, low), high) - low) / (high - low)
        return int(MARGIN + (1 - part) * (HEIGHT - 3 * MARGIN - WORDS))
