"""Segment scans with a base model or an adapter; the result has exactly the geometry of its input."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
import torch
from monai.inferers import sliding_window_inference
from torch import Tensor, nn

from tcurlora.errors import InputError, is_out_of_memory
from tcurlora.imaging.intensities import require_finite, require_finite_array
from tcurlora.imaging.preprocessing import Preprocessing
from tcurlora.imaging.structures import Structure
from tcurlora.method.channels import channel_groups
from tcurlora.method.head import class_logits
from tcurlora.models.base_model import BaseModel, Windowing
from tcurlora.runtime.devices import autocast, out_of_memory_as_error


@dataclass
class Segmenter:
    """A network with what is needed to turn a scan into a labelmap.

    Attributes:
        network: maps (b, c, x, y, z) to (b, channels, x, y, z) logits; an adapter is merged before.
        channels: name of each output channel.
        structures: what is segmented, with label values.
        preprocessing: how a scan is brought to the network, and its output back.
        windows: how the network is run over a scan.
        device: where it runs.
        in_channels: components that a voxel of a scan must have.
        diagnose: called when the network fails on a window, or gives other channels than those; raises where the model
            is to blame.
    """

    network: nn.Module
    channels: Sequence[str]
    structures: Sequence[Structure]
    preprocessing: Preprocessing
    windows: Windowing
    device: torch.device
    in_channels: int = 1
    diagnose: Callable[[], object] | None = None

    @classmethod
    def of_base(cls, base: BaseModel, device: torch.device, network: nn.Module | None = None) -> Segmenter:
        """Segment with a base model as it is, or with another network in its place."""
        return cls(
            base.build() if network is None else network,
            base.channels,
            base.labelled_structures(),
            base.preprocessing,
            base.windows,
            device,
            base.in_channels,
        )

    def __post_init__(self) -> None:
        self.network = self.network.to(self.device).eval()
        self.groups = channel_groups(self.channels, [s.name for s in self.structures])

    def probabilities(self, array: np.ndarray, on_window: Callable[[float], None] | None = None) -> np.ndarray:
        """Predict class probabilities of a preprocessed array.

        Args:
            array: (c, x, y, z) float32.
            on_window: called before each window or two with the fraction that is done, 0 at first; may raise.

        Returns:
            (classes, x, y, z) float32, the background first.
        """

        count, done = self._windows(array.shape[1:]), 0
        of_nothing: dict[int, Tensor] = {}

        def predict(windows: Tensor) -> Tensor:
            nonlocal done
            if on_window is not None:
                on_window(done / count)
            done += len(windows)
            # Scans without their surroundings have many windows of zeros, all of which give the same.
            nothing = not windows.any()
            if nothing and len(windows) in of_nothing:
                return of_nothing[len(windows)].clone()
            logits = self._logits(windows)
            result = class_logits(logits.float(), self.groups).softmax(1)
            if nothing:
                of_nothing[len(windows)] = result.clone()  # what is returned is weighted in place
            return result

        with torch.inference_mode(), out_of_memory_as_error(self.device):
            result = sliding_window_inference(
                torch.from_numpy(array)[None],
                self.windows.roi_size,
                # On a processor torch has quicker convolutions for two images than for one; more gain nothing.
                sw_batch_size=2 if self.device.type == "cpu" else 1,
                predictor=predict,
                overlap=self.windows.overlap,
                mode=self.windows.mode,
                sw_device=self.device,
                device=torch.device("cpu"),
            )
        probabilities: np.ndarray = result[0].numpy()
        return probabilities

    def _logits(self, windows: Tensor) -> Tensor:
        try:
            with autocast(self.device):
                logits: Tensor = self.network(windows.contiguous(memory_format=self._memory_format()))
            found = logits.shape[1]
            if found != len(self.channels):
                raise ValueError(f"the network has {found} output channels, but the model names {len(self.channels)}")
        except Exception as error:
            if self.diagnose is not None and not is_out_of_memory(error):
                self.diagnose()
            raise
        return logits

    def _memory_format(self) -> torch.memory_format:
        return torch.contiguous_format if self.device.type == "cpu" else torch.channels_last_3d

    def _windows(self, shape: Sequence[int]) -> int:
        """How many windows cover an array of this shape."""
        count = 1
        for size, roi in zip(shape, self.windows.roi_size, strict=True):
            step = max(1, int(roi * (1 - self.windows.overlap)))
            count *= 1 + math.ceil(max(0, size - roi) / step)
        return count

    def segment(
        self, image: sitk.Image, uncertainty: bool = False, on_window: Callable[[float], None] | None = None
    ) -> tuple[sitk.Image, sitk.Image | None]:
        """Segment a scan.

        Args:
            image: as read from a file.
            uncertainty: also compute the voxel map.
            on_window: called before each window with the fraction that is done, 0 at first; may raise.

        Returns:
            The labelmap with the structures' values, and the uncertainty: the entropy of the class probabilities
            over its largest possible value, 0 (certain) to 1. Both in the geometry of the input.

        Raises:
            InputError: when the scan has another number of channels than the network takes, or values that are no
                numbers.
        """
        channels = image.GetNumberOfComponentsPerPixel()
        if channels != self.in_channels:
            raise InputError(
                f"The scan has {channels} channels, but the model takes {self.in_channels}.",
                "Give a scan with that many channels.",
                "channels",
            )
        # The network would call each of these voxels, and all that it sees together with them, background.
        require_finite(image, "The scan")
        prepared = self.preprocessing.prepare(image)
        require_finite_array(prepared.array, "The scan", "after the model's normalization")
        probabilities = self.probabilities(prepared.array, on_window)
        indices = self.preprocessing.labels_to_scan(probabilities, prepared, image)
        values = np.array([0, *(s.value for s in self.structures)], np.int32)
        dtype = np.uint8 if values.max() < 256 else np.uint16 if values.max() < 65536 else np.int32
        labels = sitk.GetImageFromArray(values[sitk.GetArrayViewFromImage(indices)].astype(dtype))
        labels.CopyInformation(image)
        if not uncertainty:
            return labels, None
        return labels, self.preprocessing.map_to_scan(normalized_entropy(probabilities), prepared, image)


def normalized_entropy(probabilities: np.ndarray) -> np.ndarray:
    """Entropy over classes, divided by log(classes): (classes, x, y, z) to (x, y, z), from 0 to 1."""
    p = np.clip(probabilities, 1e-7, 1.0)
    entropy: np.ndarray = -(p * np.log(p)).sum(0) / np.log(len(p))
    return entropy.astype(np.float32)
