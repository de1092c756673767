from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import slicer

sys.path.insert(0, str(Path(__file__).resolve().parent))

from scenes import SceneTest
from test_scene_engine import EXTENSION, python
from vtk.util.numpy_support import vtk_to_numpy

# Three regions, two of which overlap, as the engine writes them.
ENGINE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import numpy as np
import SimpleITK as sitk
from tcurlora.imaging.label_layers import in_layers
from tcurlora.imaging.segmentations import write_segmentation
from tcurlora.imaging.structures import Structure
geometry = sitk.Image([20, 9, 8], sitk.sitkUInt8)
geometry.SetSpacing((0.5, 1.0, 2.0))
geometry.SetOrigin((-3.0, 4.0, 5.5))
masks = np.zeros((3, 8, 9, 20), bool)
masks[0, 1:6, 1:6, 2:15] = masks[1, 2:4, 2:4, 4:9] = masks[2, 6:7, 6:8, 4:9] = True
structures = [Structure("whole", 4), Structure("core", 2), Structure("apart", 1)]
labels = in_layers(zip((4, 2, 1), masks), geometry)
assert labels.GetNumberOfComponentsPerPixel() == 2
write_segmentation(labels, structures, Path(sys.argv[2]))
"""
SIZES = {"whole": 5 * 5 * 13, "core": 2 * 2 * 5, "apart": 1 * 2 * 5}


class LayersTest(SceneTest):
    def test_slicer_opens_overlapping_regions_as_segments(self):
        path = self.folder / "regions.seg.nrrd"
        subprocess.run([python(), "-X", "utf8", "-c", ENGINE, str(EXTENSION), str(path)], check=True)
        segmentation = slicer.util.loadSegmentation(str(path)).GetSegmentation()
        self.assertEqual(segmentation.GetNumberOfSegments(), 3)
        self.assertEqual(segmentation.GetNumberOfLayers(), 2)
        for name, size in SIZES.items():
            segment = segmentation.GetSegment(segmentation.GetSegmentIdBySegmentName(name))
            image = segment.GetRepresentation("Binary labelmap")
            voxels = vtk_to_numpy(image.GetPointData().GetScalars())
            self.assertEqual(np.count_nonzero(voxels == segment.GetLabelValue()), size, name)
