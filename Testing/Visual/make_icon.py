"""Draw the module's icon: a structure, the outline that the base model gave it, and the small core that is trained.

    python Testing/Visual/make_icon.py

Writes TCurLoraSegment/Resources/Icons/TCurLoraSegment.png, 128 x 128.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.patches import FancyBboxPatch, PathPatch
from matplotlib.path import Path as Outline

ICON = Path(__file__).resolve().parents[2] / "TCurLoraSegment/Resources/Icons/TCurLoraSegment.png"
SIZE = 128
TISSUE, STRUCTURE, RIM, BASE, CORE = "#2c3e50", "#f39c12", "#ffd27f", "#ecf0f1", "#1abc9c"


def structure(center: tuple[float, float], scale: float, turn: float) -> Outline:
    """A bent, tapering body, thick at one end, as the hippocampus is when cut lengthwise."""
    along = np.linspace(0, 1, 60)
    angle = np.radians(205 - 215 * along)
    spine = np.stack([np.cos(angle), 0.72 * np.sin(angle)], axis=1)
    tangent = np.gradient(spine, axis=0)
    normal = np.stack([-tangent[:, 1], tangent[:, 0]], axis=1) / np.linalg.norm(tangent, axis=1)[:, None]
    width = (0.40 - 0.24 * along) * np.sqrt(np.clip(1 - (2 * along - 1) ** 8, 0, 1))
    ring = np.concatenate([spine + width[:, None] * normal, (spine - width[:, None] * normal)[::-1]])
    c, s = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    return Outline(ring @ np.array([[c, s], [-s, c]]) * scale + np.array(center), closed=False)


def draw(path: Path) -> None:
    """Draw the icon and save it."""
    figure = pyplot.figure(figsize=(1, 1), dpi=SIZE)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, SIZE), ylim=(0, SIZE))
    axes.axis("off")
    axes.add_patch(FancyBboxPatch((4, 4), 120, 120, boxstyle="round,pad=0,rounding_size=24", fc=TISSUE, ec="none"))
    axes.add_patch(PathPatch(structure((62, 60), 39, -12), fc=STRUCTURE, ec=RIM, lw=1.4, joinstyle="round"))
    before = structure((69, 70), 39, -3)
    axes.add_patch(PathPatch(before, fc="none", ec=BASE, lw=1.7, ls=(0, (2.6, 1.6)), joinstyle="round"))
    # The base's numbers as a grid; only the core is trained.
    for row in range(3):
        for column in range(3):
            core = row == column == 1
            x, y = 46 + 14.5 * column, 14 + 14.5 * row
            box = FancyBboxPatch((x, y), 11.5, 11.5, boxstyle="round,pad=0,rounding_size=2.5", ec="none")
            box.set_facecolor(CORE if core else "#7f8c9b")
            axes.add_patch(box)
    path.parent.mkdir(parents=True, exist_ok=True)
    # No software name and version in the file, so that the same drawing is the same file.
    figure.savefig(path, dpi=SIZE, transparent=True, metadata={"Software": None})
    pyplot.close(figure)


if __name__ == "__main__":
    draw(ICON)
