"""The picture of scan, truth, base and adapted model."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from tcurlora.demo.pictures import side_by_side
from tcurlora.errors import InputError, TCurLoraError
from tcurlora.imaging.structures import Structure

CAPTIONS = ("", "manual", "Dice 0.50", "Dice 0.90")
GREEN, BLUE = (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)


def draw(path: Path, **changes: object) -> np.ndarray:
    """Draw a bright block at the patient's right, front and bottom in a dark scan; returns the pixels (y, x, rgb)."""
    truth = np.zeros((30, 36, 32), dtype=np.int32)
    truth[17:25, 20:30, 6:12] = 1
    volumes = {"truth": truth, "base": np.zeros_like(truth), "adapted": truth}
    scan = 40.0 + 60.0 * truth
    arguments = {"scan": scan, **volumes, "structures": [Structure("hippocampus", 1, GREEN)], **changes}
    side_by_side(path=path, title="A title with $ and _", captions=CAPTIONS, **arguments)  # type: ignore[arg-type]
    return np.asarray(imread(path))[..., :3]


def of_color(pixels: np.ndarray, color: tuple[float, float, float]) -> np.ndarray:
    return np.asarray(np.abs(pixels - color).max(-1) < 0.2)


def columns(pixels: np.ndarray) -> list[np.ndarray]:
    """Cut the panels' columns apart, above the legend."""
    height, width = pixels.shape[:2]
    left = round(0.32 * 120)
    step = (width - left) / 4
    return [pixels[: height - 60, round(left + k * step) : round(left + (k + 1) * step)] for k in range(4)]


def test_outlines_stand_where_the_labels_are(tmp_path: Path) -> None:
    path = tmp_path / "bild 図.png"
    scan, truth, base, adapted = (of_color(c, GREEN).sum() for c in columns(draw(path)))
    assert scan == 0 and base == 0
    assert truth > 500 and adapted > 300
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_radiological_orientation(tmp_path: Path) -> None:
    outline = of_color(columns(draw(tmp_path / "a.png"))[1], GREEN)
    # The block's surroundings that are shown measure 28 x 31 x 27 voxels, and every row fills the column's width.
    stops = np.cumsum([0.98, *(2.5 * ratio + 0.05 for ratio in (27 / 28, 27 / 31, 31 / 28))]) * 120
    places = []
    for start, stop in zip(stops[:-1].astype(int), stops[1:].astype(int), strict=True):
        panel = outline[start:stop]
        places.append(np.argwhere(panel).mean(0) / panel.shape)
    (coronal_y, coronal_x), (sagittal_y, sagittal_x), (axial_y, axial_x) = places
    # Right of the patient is at the viewer's left; low is below; the front is left in sagittal and on top in axial.
    assert coronal_x < 0.4 and axial_x < 0.4
    assert coronal_y > 0.6 and sagittal_y > 0.6
    assert sagittal_x < 0.4 and axial_y < 0.4


def test_every_structure_has_its_colour(tmp_path: Path) -> None:
    truth = np.zeros((30, 36, 32), dtype=np.int32)
    truth[8:14, 10:20, 6:16] = 1
    truth[16:24, 10:20, 6:16] = 7
    structures = [Structure("a", 1, GREEN), Structure("b", 7, BLUE)]
    pixels = columns(draw(tmp_path / "a.png", truth=truth, structures=structures))[1]
    assert of_color(pixels, GREEN).sum() > 300
    assert of_color(pixels, BLUE).sum() > 300
    only = columns(draw(tmp_path / "b.png", truth=truth, structures=structures[:1]))[1]
    assert of_color(only, BLUE).sum() == 0


def test_large_scan_is_cut_to_the_structure(tmp_path: Path) -> None:
    truth = np.zeros((120, 120, 120), dtype=np.int32)
    truth[20:30, 20:30, 20:30] = 1
    near = draw(tmp_path / "a.png", scan=truth + 1.0, truth=truth, base=truth, adapted=truth)
    assert of_color(columns(near)[1], GREEN).sum() > 400


def test_empty_truth_and_empty_results_still_give_a_picture(tmp_path: Path) -> None:
    nothing = np.zeros((30, 36, 32), dtype=np.int32)
    pixels = draw(tmp_path / "a.png", scan=np.zeros(nothing.shape), truth=nothing, adapted=nothing)
    assert sum(of_color(c, GREEN).sum() for c in columns(pixels)) == 0


def test_sizes_that_differ_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        draw(tmp_path / "a.png", base=np.zeros((30, 36, 31), dtype=np.int32))
    assert not list(tmp_path.iterdir())


def test_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(TCurLoraError, match="cannot be written"):
        draw(tmp_path / "absent" / "a.png")


def test_missing_matplotlib_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    volume = np.zeros((4, 4, 4))
    with pytest.raises(InputError) as caught:
        side_by_side(volume, volume, volume, volume, tmp_path / "a.png", "", CAPTIONS, [])
    assert 'pip install "tcurlora[demo]"' in caught.value.remedy


def test_no_pyplot_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    draw(tmp_path / "a.png")
    assert "matplotlib.pyplot" not in sys.modules
