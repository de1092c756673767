"""Slice and 3D views of the scene, rendered off screen with Slicer's own displayable managers.

A picture made here is "rendered with Slicer's MRML libraries", not a screenshot of Slicer.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# The software renderer of Mesa; VTK reads this when the first window is made, and an empty value breaks it.
if not os.environ.get("VTK_DEFAULT_OPENGL_WINDOW"):
    os.environ["VTK_DEFAULT_OPENGL_WINDOW"] = "vtkEGLRenderWindow"

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

SLICES = {"Red": "Axial", "Yellow": "Sagittal", "Green": "Coronal"}
# The bars over the views, as Slicer colors them.
BARS = {"Red": (243, 74, 51), "Yellow": (237, 213, 76), "Green": (110, 176, 75), "3D": (122, 122, 180)}


class Views:
    """Red, yellow and green slices and a 3D view, as in Slicer's layout of four.

    Use it as `with open_views() as views:`.
    """

    def __init__(self, size: tuple[int, int] = (480, 400)) -> None:
        from trame_slicer.views import SliceView, ThreeDView
        from trame_slicer.views.render_scheduler import NoScheduleRendering

        logic = slicer.app.applicationLogic()
        slicer.vtkMRMLThreeDViewDisplayableManagerFactory.GetInstance().SetMRMLApplicationLogic(logic)
        slicer.vtkMRMLSliceViewDisplayableManagerFactory.GetInstance().SetMRMLApplicationLogic(logic)
        self.size = size
        self.slices = {name: SliceView(slicer.mrmlScene, logic, name, NoScheduleRendering()) for name in SLICES}
        for name, view in self.slices.items():
            self._prepare(view)
            view.set_orientation(SLICES[name])
        self.three_d = ThreeDView(slicer.mrmlScene, logic, "1", NoScheduleRendering())
        self._prepare(self.three_d)
        self.three_d.set_background_gradient_color((193, 195, 232), (116, 120, 190))
        self.three_d.set_box_visible(False)

    def _prepare(self, view: Any) -> None:
        # With multisampling, surfaces that are not opaque vanish.
        view.render_window().SetMultiSamples(0)
        view.render_window().SetSize(*self.size)
        view.get_view_node().SetMappedInLayout(1)

    def show(self, background: Any, foreground: Any = None, opacity: float = 0.5) -> None:
        """Show a volume in the slices, whole, and perhaps another one over it."""
        for view in self.slices.values():
            view.set_background_volume_id(background.GetID())
            view.set_foreground_volume_id(foreground.GetID() if foreground else None)
            view.set_foreground_opacity(opacity if foreground else 0.0)
            view.fit_view_to_content()

    def center_on(self, segmentation: Any) -> None:
        """Move the slices through the middle of a segmentation, and the 3D view's camera to it."""
        bounds = [0.0] * 6
        segmentation.GetRASBounds(bounds)
        middle = [(low + high) / 2 for low, high in zip(bounds[::2], bounds[1::2], strict=True)]
        for view in self.slices.values():
            view.get_view_node().JumpSliceByOffsetting(*middle)
        self.three_d.fit_view_to_content()

    def zoom(self, factor: float) -> None:
        """Magnify all slices by a factor."""
        for view in self.slices.values():
            view.zoom(1 - 1 / factor)

    def picture(self, names: Sequence[str] = ("Red", "3D", "Green", "Yellow"), columns: int = 2) -> np.ndarray:
        """Render views into one picture: rows from the top, red, green and blue."""
        tiles = [self._tile(name) for name in names]
        rows = [np.concatenate(tiles[start : start + columns], axis=1) for start in range(0, len(tiles), columns)]
        return np.concatenate(rows, axis=0)

    def save(self, file: Path | str, names: Sequence[str] = ("Red", "3D", "Green", "Yellow"), columns: int = 2) -> None:
        """Write `picture()` as a PNG file."""
        write_png(file, self.picture(names, columns))

    def _tile(self, name: str) -> np.ndarray:
        view = self.three_d if name == "3D" else self.slices[name]
        window = view.render_window()
        if view is not self.three_d:
            _image_first(view)
        window.Render()
        grabber = vtk.vtkWindowToImageFilter()
        grabber.SetInput(window)
        grabber.SetInputBufferTypeToRGB()
        grabber.ReadFrontBufferOff()
        grabber.Update()
        image = grabber.GetOutput()
        width, height, _ = image.GetDimensions()
        tile = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(height, width, 3)[::-1].copy()
        tile[[0, -1], :] = tile[:, [0, -1]] = 60
        tile[:6] = BARS[name]
        return tile

    def close(self) -> None:
        """Give the windows back and take the views' nodes out of the scene."""
        logic = slicer.app.applicationLogic()
        for view in (*self.slices.values(), self.three_d):
            collection = logic.GetViewLogics() if view is self.three_d else logic.GetSliceLogics()
            collection.RemoveItem(view._logic)
            node = view.get_view_node()
            view._displayable_manager_group.SetMRMLDisplayableNode(None)
            view._logic.SetMRMLScene(None)
            view.finalize()
            slicer.mrmlScene.RemoveNode(node)
        for node in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode"):
            slicer.mrmlScene.RemoveNode(node)


@contextmanager
def open_views(size: tuple[int, int] = (480, 400)) -> Iterator[Views]:
    """Have views of the scene for a while.

    Args:
        size: Width and height of each view.
    """
    views = Views(size)
    try:
        yield views
    finally:
        views.close()


def write_png(file: Path | str, picture: np.ndarray) -> None:
    """Write rows of red, green and blue as a PNG file."""
    height, width, _ = picture.shape
    image = vtk.vtkImageData()
    image.SetDimensions(width, height, 1)
    image.GetPointData().SetScalars(numpy_to_vtk(np.ascontiguousarray(picture[::-1]).reshape(-1, 3), deep=True))
    writer = vtk.vtkPNGWriter()
    writer.SetFileName(str(file))
    writer.SetInputData(image)
    writer.Write()


def _image_first(view: Any) -> None:
    """Draw a slice's image before what lies over it: fills of segmentations would blend with black otherwise."""
    renderer = view.first_renderer()
    image = view._render_manager.image_actor
    for prop in list(renderer.GetViewProps()):
        if prop is not image:
            renderer.RemoveViewProp(prop)
            renderer.AddViewProp(prop)
