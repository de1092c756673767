"""Segment scans with a base model or an adapter; the result has exactly the geometry of its input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor, nn

from tcurlora.errors import InputError, is_out_of_memory
from tcurlora.imaging.intensities import require_finite_image
from tcurlora.imaging.label_layers import in_layers
from tcurlora.imaging.preprocessing import Preprocessing, require_finite
from tcurlora.imaging.structures import Structure
from tcurlora.inference.score_volume import CPU, IN_MEMORY_BYTES, ScoreVolume, score_bytes
from tcurlora.inference.sliding_windows import add_windows, mirrored_mean, padded_to_window
from tcurlora.inference.uncertainty import as_probabilities, uncertainty_map
from tcurlora.method.channels import channel_groups
from tcurlora.method.head import class_logits, region_logits
from tcurlora.models.base_model import Activation, BaseModel, Windowing
from tcurlora.runtime.devices import autocast, out_of_memory_as_error

WINDOW_BYTES = 2**29
"""Two windows are computed at once on a processor as long as their scores do not take more than this."""


@dataclass
class Segmenter:
    """A network with what is needed to turn a scan into a segmentation.

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
        activation: with a softmax each voxel has one class; with a sigmoid each structure is a region of its own, which
            may overlap others.
        in_memory: bytes of the scores of all classes up to which they are kept in memory, and not on disk.
    """

    network: nn.Module
    channels: Sequence[str]
    structures: Sequence[Structure]
    preprocessing: Preprocessing
    windows: Windowing
    device: torch.device
    in_channels: int = 1
    diagnose: Callable[[], object] | None = None
    activation: Activation = "softmax"
    in_memory: int = IN_MEMORY_BYTES

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
            activation=base.activation,
        )

    def __post_init__(self) -> None:
        self.network = self.network.to(self.device).eval()
        groups = channel_groups(self.channels, [s.name for s in self.structures])
        self.groups = groups if self.activation == "softmax" else groups[1:]

    def probabilities(self, array: np.ndarray, on_window: Callable[[float], None] | None = None) -> np.ndarray:
        """Predict the probabilities of all classes, or regions, of a preprocessed array.

        Args:
            array: (c, x, y, z) float32.
            on_window: called before each window or two with the fraction that is done, 0 at first; may raise.

        Returns:
            (classes, x, y, z) float32, the background first; of regions there is no background.
        """
        with self.scores(array, on_window) as scores:
            averaged = scores.to_array()
        return as_probabilities(averaged, self.activation) if self.windows.blend == "logits" else averaged

    def scores(self, array: np.ndarray, on_window: Callable[[float], None] | None = None) -> ScoreVolume:
        """Predict what a model's windows are averaged in, its probabilities or its logits, of a preprocessed array.

        Args:
            array: (c, x, y, z) float32.
            on_window: as for `probabilities`.

        Returns:
            The scores of each class, the background first, or of each region; to be closed, because they may be on
            disk.

        Raises:
            MemoryExhausted: when they fit neither in memory nor on disk, or the network does not fit in memory.
        """
        padded, inside = padded_to_window(array, self.windows)
        with out_of_memory_as_error(self.device), torch.inference_mode():
            shape = padded.shape[1:]
            scores = ScoreVolume(len(self.groups), shape, self._summing_device(shape), self.in_memory)
            try:
                add_windows(torch.from_numpy(padded), self.windows, self._predict, scores, self.batch_size(), on_window)
            except BaseException:
                scores.__exit__(None, None, None)
                raise
        scores.read_part(inside)
        return scores

    def _predict(self, windows: Tensor) -> Tensor:
        """Return the scores of some windows, (b, classes, x, y, z) float32, on the device."""
        logits = mirrored_mean(self._logits, windows.to(self.device), self.windows.mirror_axes)
        join = class_logits if self.activation == "softmax" else region_logits
        joined = join(logits, self.groups)
        if self.windows.blend == "logits":
            return joined
        return joined.softmax(1) if self.activation == "softmax" else joined.sigmoid()

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

    def batch_size(self) -> int:
        """Return how many windows are computed at once."""
        # On a processor torch has quicker convolutions for two images than for one; more gain nothing.
        small = 2 * score_bytes(len(self.channels), self.windows.roi_size) <= WINDOW_BYTES
        return 2 if self.device.type == "cpu" and small else 1

    def _summing_device(self, shape: tuple[int, ...]) -> torch.device:
        """Add up where the network runs, as long as that leaves half of a graphics card's free memory to it."""
        if self.device.type != "cuda":
            return CPU
        free, _ = torch.cuda.mem_get_info(self.device)
        return self.device if 2 * score_bytes(len(self.groups) + 1, shape) <= free else CPU

    def segment(
        self, image: sitk.Image, uncertainty: bool = False, on_window: Callable[[float], None] | None = None
    ) -> tuple[sitk.Image, sitk.Image | None]:
        """Segment a scan.

        Args:
            image: as read from a file.
            uncertainty: also compute the voxel map.
            on_window: called before each window with the fraction that is done, 0 at first; may raise.

        Returns:
            The labelmap with the structures' values, one component a voxel, or one for each layer where regions
            overlap (see `label_layers`); and the uncertainty: the entropy of the class probabilities over its largest
            possible value, 0 (certain) to 1, of regions that of the least certain one. Both in the geometry of the
            input.

        Raises:
            InputError: when the scan has another number of channels than the network takes, or values that are no
                numbers.
            MemoryExhausted: when memory and disk do not suffice.
        """
        self._require_usable(image)
        prepared = self.preprocessing.prepare(image)
        require_finite(prepared.array, "The scan")
        with self.scores(prepared.array, on_window) as scores:
            values = [s.value for s in self.structures]
            if self.activation == "softmax":
                indices = self.preprocessing.labels_to_scan(scores, prepared, image)
                labels = _with_values(indices, [0, *values])
            else:
                above = 0.0 if self.windows.blend == "logits" else 0.5
                masks = (
                    self.preprocessing.region_to_scan(scores[index], above, prepared, image)
                    for index in range(len(values))
                )
                labels = in_layers(zip(values, masks, strict=True), image)
            if not uncertainty:
                return labels, None
            certainty = uncertainty_map(scores, self.activation, self.windows.blend)
        return labels, self.preprocessing.map_to_scan(certainty, prepared, image)

    def _require_usable(self, image: sitk.Image) -> None:
        channels = image.GetNumberOfComponentsPerPixel()
        if channels != self.in_channels:
            raise InputError(
                f"The scan has {channels} channels, but the model takes {self.in_channels}.",
                "Give a scan with that many channels.",
                "channels",
            )
        # The network would call each of these voxels, and all that it sees together with them, background.
        require_finite_image(image, "The scan")


def _with_values(indices: sitk.Image, values: Sequence[int]) -> sitk.Image:
    """Return the label values of class indices, in the geometry of their image."""
    highest = max(values)
    dtype = np.uint8 if highest < 2**8 else np.uint16 if highest < 2**16 else np.int32
    labels = sitk.GetImageFromArray(np.array(values, dtype)[sitk.GetArrayViewFromImage(indices)])
    labels.CopyInformation(indices)
    return labels
