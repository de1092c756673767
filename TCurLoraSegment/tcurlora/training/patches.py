"""Patches to train on, cut from the mapped files of a case and varied: the size of a scan does not change the cost."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Sequence

import numpy as np
import torch
from monai.transforms import (
    Compose,
    EnsureTyped,
    RandAdjustContrastd,
    RandAffined,
    RandGaussianNoised,
    RandGaussianSmoothd,
    Randomizable,
    RandScaleIntensityd,
    SpatialPadd,
    Transform,
)
from monai.transforms.utils import generate_pos_neg_label_crop_centers
from torch import Tensor

from tcurlora.cases.cached_case import CachedCase, unlabeled

KEYS = ("image", "label")
UNLABELED = -1
"""Stands in the label of a patch for voxels that nobody labeled."""
FOREGROUND_SHARE = 0.75
"""Part of the patches that are drawn around a voxel of a structure; the others are drawn around the background."""


class CutPatch(Randomizable, Transform):
    """Cut a patch at random from a cached case, as MONAI's `RandCropByPosNegLabeld(pos=3, neg=1)` does.

    That transform lists all voxels of a scan for each patch and copies the scan; here they have been listed once, and
    only the patch is read from the files. A side of the scan that is shorter than the patch is taken whole.

    Args:
        size: of the patch in voxels.
    """

    def __init__(self, size: Sequence[int]) -> None:
        self.size = tuple(size)

    def __call__(self, case: CachedCase) -> dict[Hashable, Tensor]:
        """Return image (c, x, y, z) and label (1, x, y, z) of a patch."""
        image, label = case.load()
        foreground, background = case.voxels()
        size = tuple(min(own, there) for own, there in zip(self.size, label.shape, strict=True))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a scan without a structure is drawn from where there is none
            (center,) = generate_pos_neg_label_crop_centers(
                size, 1, FOREGROUND_SHARE, label.shape, foreground, background, self.R
            )
        return cut(image, label, [int(c) - s // 2 for c, s in zip(center, size, strict=True)], size)


def cut(image: np.ndarray, label: np.ndarray, start: Sequence[int], size: Sequence[int]) -> dict[Hashable, Tensor]:
    """Copy a box out of mapped arrays.

    Args:
        image: (c, x, y, z).
        label: (x, y, z), as a cached case has it.
        start: first voxel along x, y and z.
        size: voxels along each, all of them inside of the arrays.
    """
    box = tuple(slice(first, first + length) for first, length in zip(start, size, strict=True))
    voxels, classes = np.array(image[(slice(None), *box)]), np.array(label[box]).astype(np.int64)
    classes[classes == unlabeled(label)] = UNLABELED
    return {"image": torch.from_numpy(voxels), "label": torch.from_numpy(classes[None])}


def patch_transform(size: Sequence[int]) -> Compose:
    """Make a patch of a cached case: cut it, and vary pose, contrast, sharpness and noise.

    There is no mirroring: left stays left.

    Args:
        size: of the patch in voxels.
    """
    turn = (0.2, 0.2, 0.2)
    return Compose(
        [
            CutPatch(size),
            SpatialPadd(KEYS, size),
            RandAffined(
                KEYS,
                prob=0.8,
                rotate_range=turn,
                scale_range=(0.1, 0.1, 0.1),
                translate_range=(3, 3, 3),
                mode=("bilinear", "nearest"),
                padding_mode="zeros",
            ),
            RandGaussianSmoothd("image", prob=0.15, sigma_x=(0.3, 0.8), sigma_y=(0.3, 0.8), sigma_z=(0.3, 0.8)),
            RandGaussianNoised("image", prob=0.2, std=0.1),
            RandAdjustContrastd("image", prob=0.3, gamma=(0.75, 1.35), retain_stats=True),
            RandScaleIntensityd("image", prob=0.3, factors=0.15),
            EnsureTyped(KEYS, track_meta=False),
        ]
    )


def middle_patch(case: CachedCase, size: Sequence[int]) -> dict[str, Tensor]:
    """Return the patch around the middle of all structures of a case, as a batch of one, without augmentation."""
    image, label = case.load()
    foreground, _ = case.voxels()
    sizes = tuple(min(own, there) for own, there in zip(size, label.shape, strict=True))
    start = [0, 0, 0]
    if len(foreground):
        places = np.stack(np.unravel_index(foreground, label.shape))
        center = (places.min(1) + places.max(1)) // 2
        ranges = zip(center, size, label.shape, strict=True)
        start = [int(max(0, min(c - own // 2, there - own))) for c, own, there in ranges]
    padded = Compose([SpatialPadd(KEYS, size), EnsureTyped(KEYS, track_meta=False)])(cut(image, label, start, sizes))
    return {key: padded[key][None] for key in KEYS}
