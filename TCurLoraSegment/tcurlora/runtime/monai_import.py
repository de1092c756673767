"""Import MONAI without the optional packages that this program does not need."""

from __future__ import annotations

import gc
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager

OPTIONAL = (
    "apex",
    "cucim",
    "cupy",
    "cupyx",
    "cv2",
    "gdown",
    "h5py",
    "huggingface_hub",
    "ignite",
    "itk",
    "lmdb",
    "matplotlib",
    "mlflow",
    "nibabel",
    "onnx",
    "onnxruntime",
    "openslide",
    "pandas",
    "PIL",
    "psutil",
    "pydicom",
    "requests",  # which opens a socket as soon as it is imported
    "scipy",
    "segment_anything",
    "skimage",
    "sklearn",
    "tensorboard",
    "tensorboardX",
    "tensorrt",
    "tifffile",
    "torch_tensorrt",
    "torchaudio",
    "torchio",
    "torchvision",
    "transformers",
    "yaml",
    "zarr",
)
"""Packages that MONAI uses where they are installed, that take long to load, and that no result depends on."""


def import_monai(needed: Collection[str] = ()) -> None:
    """Import MONAI as if the packages of `OPTIONAL` were not installed.

    `import monai` loads all of MONAI, and with it every optional package that it finds: half a second without them,
    several seconds with them. MONAI runs without any of them and is tested so; a feature of it that needs one then
    raises MONAI's OptionalImportError for as long as the process lives. So this is for processes that are this
    program's own, and not for those that use it as a library. Other modules may import these packages afterwards;
    nothing changes when MONAI or the package has been imported before.

    Args:
        needed: packages of `OPTIONAL` that MONAI may load all the same.
    """
    with _without_collecting():
        import torch  # noqa: F401  before the packages are hidden, so that MONAI alone does without them

        hidden = [name for name in OPTIONAL if name not in sys.modules and name not in needed]
        # None is Python's own way to say that a module cannot be imported.
        sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
        try:
            import monai  # noqa: F401
        finally:
            for name in hidden:
                del sys.modules[name]


@contextmanager
def _without_collecting() -> Iterator[None]:
    """Import without looking for garbage again and again among ever more objects, nearly all of which stay for good."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
        gc.freeze()  # nor look through them later
    finally:
        if was_enabled:
            gc.enable()
