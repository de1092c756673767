"""One picture that lets a person judge: scan, truth, base model and adapted model side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tcurlora.errors import InputError, TCurLoraError
from tcurlora.imaging.segmentations import default_color
from tcurlora.imaging.structures import Structure
from tcurlora.runtime.atomic_files import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

COLUMNS = ("Scan", "Truth", "Base model", "Adapted model")

# Per row: name, axis of the slices, horizontal and vertical axis, and the letters at left, right, top and bottom.
# Radiological convention: the patient's right is at the viewer's left, and the nose points left.
_PLANES = (("Coronal", 1, 0, 2, "RLSI"), ("Sagittal", 0, 1, 2, "APSI"), ("Axial", 2, 0, 1, "RLAP"))

_CONTEXT_MM = 15.0
_PAPER, _INK = "#101214", "#f2f2f2"
_CENTRED: dict[str, Any] = {"ha": "center", "va": "center", "color": _INK, "parse_math": False}
_PANEL, _GAP, _LEFT, _TOP, _BOTTOM = 2.5, 0.05, 0.32, 0.98, 0.4  # inches


def side_by_side(
    scan: npt.NDArray[Any],
    truth: npt.NDArray[Any],
    base: npt.NDArray[Any],
    adapted: npt.NDArray[Any],
    path: Path,
    title: str,
    captions: Sequence[str],
    structures: Sequence[Structure],
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> None:
    """Write a PNG with a coronal, a sagittal and an axial row, through the largest area of the truth in each.

    Args:
        scan: (x, y, z), axes to R, A, S, any intensities.
        truth: (x, y, z) labels; also drawn as a thin dashed line over both results.
        base: (x, y, z) labels of the base model.
        adapted: (x, y, z) labels of the adapted model.
        path: the PNG file; it appears whole or not at all.
        title: one line above the picture.
        captions: four short texts, one for each of `COLUMNS`, such as `Dice 0.91`; empty for none.
        structures: what to draw, with names and colours; other labels are left out.
        spacing: voxel size in mm along x, y, z.

    Raises:
        InputError: when matplotlib is not installed or the arrays do not fit together.
        TCurLoraError: when the file cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError(
            "The picture needs the Python package matplotlib, which is not installed.",
            'Install it with: pip install "tcurlora[demo]"',
            "missing_package",
        ) from error
    shapes = {volume.shape for volume in (scan, truth, base, adapted)}
    if len(shapes) != 1 or scan.ndim != 3 or len(captions) != len(COLUMNS):
        raise InputError(
            f"The picture needs four volumes of one size and four captions, not {sorted(shapes)} and {len(captions)}.",
            "Bring all results onto the grid of the scan first.",
            "shape_mismatch",
        )

    # Cut to what matters, then one slice per plane, through the most of what is to be judged.
    values = [structure.value for structure in structures]
    marked = (np.isin(volume, values) for volume in (truth, adapted, base))
    area = next((mask for mask in marked if mask.any()), np.ones(scan.shape, dtype=bool))
    window = _window(area, spacing)
    scan, truth, base, adapted, area = (volume[window] for volume in (scan, truth, base, adapted, area))
    gray = tuple(np.percentile(scan, (0.5, 99.5)))
    extents = [n * s for n, s in zip(scan.shape, spacing, strict=True)]

    # Every row fills the width of its column, so rows differ in height.
    heights = [_PANEL * extents[vertical] / extents[horizontal] for _, _, horizontal, vertical, _ in _PLANES]
    width = _LEFT + len(COLUMNS) * (_PANEL + _GAP)
    height = _TOP + sum(heights) + len(heights) * _GAP + _BOTTOM
    figure = Figure(figsize=(width, height), facecolor=_PAPER)
    canvas = FigureCanvasAgg(figure)
    figure.text(0.5, 1 - 0.25 / height, title, fontsize=13, weight="bold", **_CENTRED)
    y = height - _TOP
    for (plane, axis, horizontal, vertical, letters), row_height in zip(_PLANES, heights, strict=True):
        y -= row_height
        index = int(area.sum(axis=(horizontal, vertical)).argmax())
        box = (0.0, extents[horizontal], 0.0, extents[vertical])
        figure.text(_LEFT / 2 / width, (y + row_height / 2) / height, plane, rotation=90, fontsize=10, **_CENTRED)
        for column, labels in enumerate((None, truth, base, adapted)):
            x = _LEFT + column * (_PANEL + _GAP)
            axes = figure.add_axes((x / width, y / height, _PANEL / width, row_height / height))
            axes.set_axis_off()
            axes.imshow(
                np.take(scan, index, axis).T, "gray", aspect="auto", interpolation="bicubic",
                vmin=gray[0], vmax=gray[1], origin="lower", extent=box,
            )  # fmt: skip
            if labels is None:
                _write_letters(axes, letters)
            else:
                _outline(axes, np.take(labels, index, axis), structures, box)
            if column > 1:
                _outline(axes, np.take(truth, index, axis), structures, box, dashed=True)
            # Reversed, as x grows to the patient's right and y to the nose.
            axes.set_xlim(box[1], box[0])
            axes.set_ylim(box[2], box[3])
        y -= _GAP
    for column, (name, caption) in enumerate(zip(COLUMNS, captions, strict=True)):
        middle = (_LEFT + column * (_PANEL + _GAP) + _PANEL / 2) / width
        figure.text(middle, 1 - 0.59 / height, name, fontsize=11, weight="bold", **_CENTRED)
        figure.text(middle, 1 - 0.81 / height, caption, fontsize=10.5, **_CENTRED)
    _write_legend(figure, structures, 0.5 * _BOTTOM / height)
    _save(canvas, path)


def _window(area: npt.NDArray[np.bool_], spacing: tuple[float, float, float]) -> tuple[slice, ...]:
    """Return the box around the marked area with some context, so that a small structure fills the picture."""
    spans = []
    for axis in range(3):
        filled = np.flatnonzero(area.any(axis=tuple(other for other in range(3) if other != axis)))
        context = round(_CONTEXT_MM / spacing[axis])
        spans.append(slice(max(0, int(filled[0]) - context), int(filled[-1]) + context + 1))
    return tuple(spans)


def _outline(
    axes: Axes,
    labels: npt.NDArray[Any],
    structures: Sequence[Structure],
    box: tuple[float, float, float, float],
    dashed: bool = False,
) -> None:
    """Draw each structure's border, in its colour, or all thin, white and dashed."""
    for structure in structures:
        mask = np.pad(labels == structure.value, 1).astype(float)  # padded, so that borders at the edge close
        if not mask.any():
            continue
        steps = [(high - low) / n for low, high, n in zip(box[::2], box[1::2], labels.shape, strict=True)]
        along, up = (step * (np.arange(n) - 0.5) for step, n in zip(steps, mask.shape, strict=True))
        color = (1.0, 1.0, 1.0) if dashed else structure.color or default_color(structure.value)
        style = [(0, (3, 2))] if dashed else ["solid"]
        axes.contour(along, up, mask.T, [0.5], colors=[color], linewidths=0.8 if dashed else 1.6, linestyles=style)


def _write_letters(axes: Axes, letters: str) -> None:
    """Write the orientation at the left, right, top and bottom edge."""
    from matplotlib.patheffects import withStroke

    places = ((0.04, 0.5), (0.96, 0.5), (0.5, 0.95), (0.5, 0.05))
    for letter, (x, y) in zip(letters, places, strict=True):
        written = axes.text(x, y, letter, fontsize=9, weight="bold", transform=axes.transAxes, **_CENTRED)
        written.set_path_effects([withStroke(linewidth=2, foreground=_PAPER)])


def _write_legend(figure: Figure, structures: Sequence[Structure], y: float) -> None:
    """Name the colours and the dashed line below the picture."""
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], color=s.color or default_color(s.value), linewidth=2, label=s.name) for s in structures]
    lines.append(Line2D([], [], color="white", linewidth=1, linestyle=(0, (3, 2)), label="truth"))
    figure.legend(
        handles=lines, loc="center", bbox_to_anchor=(0.5, y), ncols=min(len(lines), 6), frameon=False,
        labelcolor=_INK, fontsize=10,
    )  # fmt: skip


def _save(canvas: FigureCanvasAgg, path: Path) -> None:
    try:
        with whole_file(path) as temporary:
            canvas.figure.savefig(temporary, format="png", dpi=120)
    except OSError as error:
        raise TCurLoraError(
            f"The picture {path} cannot be written: {error.strerror or error}.",
            "Check that the folder exists and may be written, and that the disk is not full.",
            "not_written",
        ) from error
