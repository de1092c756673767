"""Scans whose channels lie in several files: found, brought into the order of a model, and read as one image."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import SimpleITK as sitk

from tcurlora.errors import InputError
from tcurlora.imaging.grids import geometry_difference
from tcurlora.imaging.headers.formats import format_of
from tcurlora.imaging.image_warnings import ImageWarning, OnWarning, unheard
from tcurlora.imaging.images import images_in, read_image, stem, suffix

ChannelOrder = Literal["listed", "numbered", "named"]
"""What states the order of channels: somebody's list, numbers in the names of files, or only what they are called."""

_ALIASES = {
    "t1": ("t1w", "t1n", "t1weighted", "t1mri"),
    "t1c": ("t1ce", "t1gd", "t1post", "t1km", "t1wce", "t1wgd", "t1contrast", "ce t1", "cet1", "gdt1", "t1gad"),
    "t2": ("t2w", "t2weighted", "t2mri"),
    "flair": ("t2f", "t2flair", "flairt2", "fl"),
    "pd": ("pdw",),
    "ct": ("ctscan", "computedtomography"),
    "pet": ("pt", "suv"),
}
_CANONICAL = {alias: name for name, aliases in _ALIASES.items() for alias in aliases}
_NUMBERED = re.compile(r"(.+)_(\d{4})")
MOSTLY = 0.5
"""A channel that covers less of the first one than this was taken somewhere else."""


@dataclass(frozen=True)
class Scan:
    """The files of one scan.

    Attributes:
        files: files or folders, one for each channel, or one alone.
        names: what the channels are called, as far as the files say it; none otherwise.
        order: what states the order of the channels.
    """

    files: tuple[Path, ...]
    names: tuple[str, ...] = ()
    order: ChannelOrder = "listed"


class ChannelProblem(ValueError):
    """Channels that are missing, exchanged or unknown; `code` says which."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def numbered_channel(name: str) -> tuple[str, int] | None:
    """Split a name such as `case_0001`, nnU-Net's for the second channel of `case`."""
    found = _NUMBERED.fullmatch(name)
    return (found.group(1), int(found.group(2))) if found else None


def numbered_scan(files: Iterable[tuple[int, Path]]) -> Scan:
    """Make a scan of numbered channels.

    Raises:
        ChannelProblem: when a number is missing or doubled.
    """
    ordered = sorted(files)
    numbers = [number for number, _ in ordered]
    missing = next((n for n in range(numbers[-1] + 1) if n not in numbers), None)
    if missing is not None:
        raise ChannelProblem("missing_channel", f"has no channel {missing:04d} beside {ordered[0][1].name}")
    if len(set(numbers)) < len(numbers):
        raise ChannelProblem("doubled_channel", f"has a channel twice: {ordered[0][1].name}")
    return Scan(tuple(path for _, path in ordered), order="numbered")


def scan_in_folder(folder: Path) -> Scan:
    """Find out what the folder of one scan holds: a DICOM series, one image, or an image or a series for each channel.

    Raises:
        ChannelProblem: when numbered channels are not complete.
    """
    images = images_in(folder)
    others = [image for image in images if suffix(image) != ".dcm"]
    if others and len(others) == len(images):
        numbered = [(numbered_channel(stem(image)), image) for image in others]
        if len(others) > 1 and all(found for found, _ in numbered) and len({f[0] for f, _ in numbered if f}) == 1:
            return numbered_scan((found[1], image) for found, image in numbered if found)
        return _named([(stem(image), image) for image in others])
    inside = [entry for entry in sorted(folder.iterdir()) if entry.is_dir() and not entry.name.startswith(".")]
    if inside and not images and not holds_dicom(folder):
        scans = [(entry.name, scan_in_folder(entry)) for entry in inside]
        found = [(name, scan.files[0]) for name, scan in scans if len(scan.files) == 1 and _holds_scan(scan.files[0])]
        if found and len(found) == len(scans):
            return _named(found)
    return Scan((folder,))


def holds_dicom(folder: Path) -> bool:
    """Return whether DICOM files lie directly in a folder, whatever their names; a DICOMDIR alone does not count."""
    return any(
        entry.is_file()
        and not entry.name.startswith(".")
        and entry.name.upper() != "DICOMDIR"
        and format_of(entry) == "dicom"
        for entry in folder.iterdir()
    )


def _holds_scan(path: Path) -> bool:
    return path.is_file() or holds_dicom(path)


def _named(entries: Sequence[tuple[str, Path]]) -> Scan:
    if len(entries) == 1:
        return Scan((entries[0][1],))
    return Scan(tuple(path for _, path in entries), tuple(distinguished([name for name, _ in entries])), "named")


def distinguished(names: Sequence[str]) -> list[str]:
    """Leave out the words that all names begin or end with: `p1_T1_brain`, `p1_FLAIR_brain` are `T1` and `FLAIR`."""
    words = [re.split(r"[_\-. ]+", name) for name in names]
    shortest = min(map(len, words))
    first = next((i for i in range(shortest) if len({w[i] for w in words}) > 1), shortest)
    last = next((i for i in range(1, shortest + 1) if len({w[-i] for w in words}) > 1), shortest)
    kept = ["_".join(w[first : len(w) - last + 1]) for w in words]
    return kept if all(kept) and len(set(kept)) == len(kept) else list(names)


def canonical(name: str) -> str:
    """Return one spelling for names of channels that mean the same, such as `T1-weighted` and `t1w`."""
    plain = re.sub(r"[\W_]+", "", name.casefold())
    return _CANONICAL.get(plain, plain)


def in_order(scan: Scan, wanted: Sequence[str]) -> list[int]:
    """Return the places of a scan's files in the order of a model's channels.

    Names decide where they are those of the model. Otherwise the order of numbers or of a list does.

    Args:
        scan: with as many files as the model has channels.
        wanted: names of the model's input channels.

    Raises:
        ChannelProblem: when channels are missing, or were listed in another order than their names say, or when nothing
            says which is which.
    """
    count, model = len(scan.files), [canonical(name) for name in wanted]
    own = [canonical(name) for name in scan.names]
    listed = ", ".join(f"'{name}'" for name in wanted)
    if count != len(wanted):
        absent = [name for name, key in zip(wanted, model, strict=True) if own and key not in own]
        what = f"no channel {', '.join(repr(name) for name in absent)}" if absent else f"{count} channels"
        raise ChannelProblem("missing_channel", f"has {what}, but the model takes {len(wanted)}: {listed}")
    plain = list(range(count))
    if len(set(own)) == len(own) == count and set(own) == set(model):
        order = [own.index(key) for key in model]
        if order != plain and scan.order == "listed":
            wrong = next(i for i in plain if order[i] != i)
            raise ChannelProblem(
                "exchanged_channels",
                f"lists '{scan.names[wrong]}' where the model takes '{wanted[wrong]}', in the order {listed}",
            )
        return order
    known = {key for key in model if key in own}
    moved = next((i for i, key in enumerate(own) if key in known and model[i] != key), None)
    if scan.order == "named":
        raise ChannelProblem(
            "unknown_channels", f"has the channels {', '.join(map(repr, scan.names))}, but the model takes {listed}"
        )
    if moved is not None:
        raise ChannelProblem(
            "exchanged_channels",
            f"has '{scan.names[moved]}' where the model takes '{wanted[moved]}', in the order {listed}",
        )
    return plain


def read_channels(files: Sequence[Path], on_warning: OnWarning = unheard) -> sitk.Image:
    """Read one image from the files of its channels.

    Channels on another grid than the first are resampled onto it, linearly; beyond their edge they have their smallest
    value.

    Args:
        files: files or folders, in the order of the channels.
        on_warning: is told of what was odd about a file, and of a channel that was resampled.

    Returns:
        One component for each file; of a single file, all its components.

    Raises:
        InputError: as `read_image`; or when a file has several channels itself, or was taken somewhere else.
    """
    first = read_image(files[0], on_warning)
    if len(files) == 1:
        return first
    channels: list[sitk.Image] = []
    for file in files:
        image = first if not channels else read_image(file, on_warning)
        if image.GetNumberOfComponentsPerPixel() != 1:
            raise InputError(
                f"{file} has {image.GetNumberOfComponentsPerPixel()} values in each voxel, but is one of "
                f"{len(files)} channels.",
                "Give one file with all channels, or one file for each.",
                "wrong_channels",
            )
        image = sitk.Cast(image, sitk.sitkFloat32) if image.GetPixelID() != sitk.sitkFloat32 else image
        difference = geometry_difference(image, channels[0]) if channels else None
        if difference is not None:
            image = _resampled(image, channels[0], file, files[0])
            message = f"{file} does not lie on the grid of {files[0]} ({difference}), and was resampled onto it."
            remedy = "Fine if both show the same patient in one position; look at the two in 3D Slicer."
            on_warning(ImageWarning("channels_resampled", message, remedy))
        if channels:
            image.CopyInformation(channels[0])
        channels.append(image)
    for image in channels:
        for key in image.GetMetaDataKeys():
            image.EraseMetaData(key)
    return sitk.Compose(channels)


def _resampled(image: sitk.Image, onto: sitk.Image, file: Path, first: Path) -> sitk.Image:
    covered = sitk.Resample(
        _ones(image),
        onto,
        sitk.Transform(3, sitk.sitkIdentity),
        sitk.sitkNearestNeighbor,
        0,
    )
    share = float(np.mean(sitk.GetArrayViewFromImage(covered)))
    if share < MOSTLY:
        raise InputError(
            f"{file} covers only {100 * share:.0f} % of {first}, which should be another channel of the same scan.",
            "Check that both are of one patient and one examination; register them in 3D Slicer if they are.",
            "channels_apart",
        )
    lowest = float(sitk.GetArrayViewFromImage(image).min())
    return sitk.Resample(image, onto, sitk.Transform(3, sitk.sitkIdentity), sitk.sitkLinear, lowest)


def _ones(image: sitk.Image) -> sitk.Image:
    ones = sitk.Image(image.GetSize(), sitk.sitkUInt8) + 1
    ones.CopyInformation(image)
    return ones
