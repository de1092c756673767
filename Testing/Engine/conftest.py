"""What several tests share: a tiny base model, a small synthetic site, and a library of their own."""

from __future__ import annotations

import json
import locale
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# The networks of these tests are so small that threads only get in each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import SimpleITK as sitk

NETWORK = {
    "_target_": "SegResNet",
    "in_channels": 1,
    "out_channels": 3,
    "init_filters": 4,
    "blocks_down": [1, 1],
    "blocks_up": [1],
    "norm": ["GROUP", {"num_groups": 4}],
    "dropout_prob": 0.1,
}
CHANNELS = ("background", "anterior hippocampus", "posterior hippocampus")
ROI = [16, 16, 16]
RIM = 1.8


@pytest.fixture(autouse=True, scope="session")
def own_library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep the tests away from the models and adapters of whoever runs them."""
    folder = tmp_path_factory.mktemp("home")
    before = os.environ.get("TCURLORA_HOME")
    os.environ["TCURLORA_HOME"] = str(folder)
    yield folder
    os.environ.pop("TCURLORA_HOME")
    if before is not None:
        os.environ["TCURLORA_HOME"] = before


def train_base(network: Any, steps: int) -> None:
    """Teach a network the two halves of a bright ellipsoid, well enough to be adapted."""
    import torch
    from monai.losses import DiceCELoss

    random = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in ROI), indexing="ij"))
    images, labels = [], []
    for _ in range(4):
        center = (8 + random.uniform(-2, 2, 3))[:, None, None, None]
        inside = (((grid - center) / np.array((4.5, 3.5, 4.0))[:, None, None, None]) ** 2).sum(0) <= 1
        voxels = random.normal(100, 15, ROI) + 60 * inside
        images.append((voxels - voxels.mean()) / voxels.std())
        labels.append(np.where(inside, np.where(grid[1] > center[1], 1, 2), 0))
    x, y = torch.tensor(np.stack(images)[:, None], dtype=torch.float32), torch.tensor(np.stack(labels)[:, None])
    loss_function = DiceCELoss(to_onehot_y=True, softmax=True, include_background=False)
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_function(network(x), y).backward()
        optimizer.step()


@pytest.fixture(autouse=True)
def same_locale() -> Iterator[None]:
    """Undo what ITK does when a test writes DICOM: it leaves the process in a locale without Unicode."""
    before = locale.setlocale(locale.LC_ALL)
    yield
    locale.setlocale(locale.LC_ALL, before)


@pytest.fixture(scope="session")
def make_bundle() -> Callable[..., Path]:
    """Write a MONAI bundle of a tiny network with seeded random weights, or with those of a short training."""

    def make(
        folder: Path,
        seed: int = 0,
        network: dict[str, Any] = NETWORK,
        channels: tuple[str, ...] = CHANNELS,
        trained_steps: int = 0,
    ) -> Path:
        import torch
        from monai.networks import nets
        from safetensors.torch import save_file

        torch.manual_seed(seed)
        arguments = {key: value for key, value in network.items() if key != "_target_"}
        model = getattr(nets, network["_target_"])(**arguments)
        train_base(model, trained_steps)
        state = model.state_dict()
        transforms = [
            {"_target_": "LoadImaged", "keys": "image"},
            {"_target_": "Spacingd", "keys": "image", "pixdim": [1.0, 1.0, 1.0]},
            {"_target_": "NormalizeIntensityd", "keys": "image", "channel_wise": True},
        ]
        inference = {
            "network_def": network,
            "preprocessing": {"_target_": "Compose", "transforms": transforms},
            "inferer": {"_target_": "SlidingWindowInferer", "roi_size": ROI},
        }
        definition = {str(number): name for number, name in enumerate(channels)}
        metadata = {"version": "0.1.0", "network_data_format": {"outputs": {"pred": {"channel_def": definition}}}}
        for part in ("configs", "models"):
            (folder / part).mkdir(parents=True)
        for name, content in (("inference", inference), ("metadata", metadata)):
            (folder / "configs" / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
        save_file({name: value.contiguous() for name, value in state.items()}, folder / "models/model.safetensors")
        return folder

    return make


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory, make_bundle: Callable[..., Path]) -> Path:
    """The tiny base model; only to be read."""
    return make_bundle(tmp_path_factory.mktemp("bundles") / "tiny hippocampus", trained_steps=40)


@pytest.fixture(scope="session")
def make_scan() -> Callable[..., tuple[sitk.Image, sitk.Image]]:
    """Make a scan with a bright ellipsoid in noise, and its labels; the grid is the caller's choice.

    Around it is a rim of half its brightness, which the base model never saw and takes for the structure.
    """

    def make(
        seed: int,
        size: tuple[int, int, int] = (20, 18, 16),
        spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
        direction: tuple[float, ...] = (1, 0, 0, 0, 1, 0, 0, 0, 1),
        value: int = 1,
    ) -> tuple[sitk.Image, sitk.Image]:
        random = np.random.default_rng(seed)
        points = np.stack(np.meshgrid(*(np.arange(n) for n in size[::-1]), indexing="ij"))
        center = np.array(size[::-1]) / 2 + random.uniform(-2, 2, 3)
        radius = np.array((4.0, 3.5, 4.5))[:, None, None, None]
        distance = (((points - center[:, None, None, None]) / radius) ** 2).sum(0)
        inside = distance <= 1
        voxels = random.normal(100, 15, size[::-1]) + 120 * inside + 60 * ((distance > 1) & (distance < RIM))
        images = []
        for array in (voxels.astype(np.float32), (value * inside).astype(np.uint8)):
            image = sitk.GetImageFromArray(array)
            image.SetSpacing(spacing)
            image.SetOrigin((-12.5, 30.25, 7.0))
            image.SetDirection(direction)
            images.append(image)
        return images[0], images[1]

    return make


@pytest.fixture(scope="session")
def make_site(make_scan: Callable[..., tuple[sitk.Image, sitk.Image]]) -> Callable[..., Path]:
    """Write a folder of labeled scans, two of each subject."""

    def make(folder: Path, subjects: int = 2, names: dict[str, str] | None = None) -> Path:
        for part in ("images", "labels"):
            (folder / part).mkdir(parents=True)
        rows = ["file,subject"]
        for number in range(2 * subjects):
            name = f"scan{number + 1}"
            image, labels = make_scan(number)
            sitk.WriteImage(image, folder / "images" / f"{name}.nii.gz")
            sitk.WriteImage(labels, folder / "labels" / f"{name}.nii.gz")
            # The scans of a subject do not follow each other, so that only the table tells whose they are.
            rows.append(f"{name}.nii.gz,subject{number % subjects + 1}")
        (folder / "cases.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
        declared = {"labels": names or {"0": "background", "1": "hippocampus"}}
        (folder / "dataset.json").write_text(json.dumps(declared), encoding="utf-8")
        return folder

    return make


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory, make_site: Callable[..., Path]) -> Path:
    """Four scans of two subjects, labeled 'hippocampus'; only to be read."""
    return make_site(tmp_path_factory.mktemp("sites") / "site")


@pytest.fixture(scope="session")
def tree() -> Callable[[Path], dict[str, bytes | None]]:
    """Read everything under a folder, to see whether something was written there."""

    def read(folder: Path) -> dict[str, bytes | None]:
        return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}

    return read


class Recorder:
    """Keeps all events, and may be told to break off at one of them."""

    def __init__(self, stop: Callable[[str, dict[str, Any]], bool] = lambda kind, fields: False) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.stop = stop

    def emit(self, kind: str, **fields: Any) -> None:
        self.events.append((kind, fields))
        if self.stop(kind, fields):
            raise KeyboardInterrupt

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [fields for k, fields in self.events if k == kind]


@pytest.fixture(scope="session")
def recorder() -> type[Recorder]:
    return Recorder
