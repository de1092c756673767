"""The views show the volume, the segmentation over it, and its surface."""

from __future__ import annotations

import unittest

import numpy as np
import slicer

import harness
from harness.views import open_views


class ViewsTest(unittest.TestCase):
    def test_four_views(self) -> None:
        harness.clear_scene()
        grid = np.stack(np.meshgrid(*(np.arange(n) for n in (20, 22, 24)), indexing="ij"))
        inside = ((grid - np.array([10, 11, 12])[:, None, None, None]) ** 2).sum(0) < 36
        volume = slicer.util.addVolumeFromArray((100.0 + 50 * inside).astype(np.float32), name="頭")
        volume.CreateDefaultDisplayNodes()
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
        node.CreateDefaultDisplayNodes()
        node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
        segment = node.GetSegmentation().AddEmptySegment("", "ball", (1, 0, 0))
        slicer.util.updateSegmentBinaryLabelmapFromArray(inside.astype(np.uint8), node, segment, volume)
        node.CreateClosedSurfaceRepresentation()
        node.GetDisplayNode().SetOpacity2DFill(0.5)
        with open_views((160, 120)) as views:
            views.show(volume)
            views.center_on(node)
            picture = views.picture().astype(int)
        self.assertEqual(picture.shape, (240, 320, 3))
        red, three_d = picture[60, 80], picture[60, 240]
        # Half red over white: light red; a fill that blends with black would be dark.
        self.assertGreater(red[0], 200)
        self.assertTrue(60 < red[1] < 200, red)
        self.assertGreater(three_d[0], three_d[2] + 50)
        self.assertEqual(slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSliceNode"), 0)
