"""What a labeled case is, and what is said about cases."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tcurlora.errors import TCurLoraError
from tcurlora.imaging.channels import ChannelOrder
from tcurlora.imaging.structures import Structure

IGNORED = 2**31 - 1
"""Stands for voxels that nobody labeled where only the name in the file of the labels says so, and not a number."""


@dataclass(frozen=True)
class Case:
    """One labeled scan; cases of one subject never stand on both sides of a split.

    Attributes:
        name: tells it from the other cases; not fit for the name of a file.
        image: file or folder of the scan.
        label: file of the segmentation, or a folder with one file for each structure.
        subject: whose scan it is.
        background: label numbers that mean background, besides 0.
        channels: files or folders of further input channels, in the model's order; `image` is the first.
        ignore: label numbers of voxels that nobody labeled: they count neither in training nor in scores.
        channel_names: name of each channel as far as files say it, that of `image` first; empty where they do not.
        channel_order: what states the order of the channels.
        uncorrected: whether the label is a model's own output that nobody corrected, which proves nothing.
    """

    name: str
    image: Path
    label: Path
    subject: str
    background: tuple[int, ...] = ()
    channels: tuple[Path, ...] = ()
    ignore: tuple[int, ...] = ()
    channel_names: tuple[str, ...] = ()
    channel_order: ChannelOrder = "listed"
    uncorrected: bool = False


@dataclass(frozen=True)
class Finding:
    """Something about a case that stops the work (`error`), may harm it (`warning`) or is good to know (`note`).

    The case is empty where the finding is about the cases as a whole.
    """

    case: str
    code: str
    message: str
    remedy: str
    severity: Literal["error", "warning", "note"]

    @classmethod
    def of_error(cls, case: str, error: TCurLoraError) -> Finding:
        """Make a finding of what stopped the reading of a case."""
        return cls(case, error.code, error.message, error.remedy, "error")


@dataclass(frozen=True)
class Dataset:
    """The cases of a site.

    Attributes:
        folder: where they are.
        cases: sorted by name.
        structures: label numbers by name as its dataset.json or datalist declares them, which may be none.
        findings: what was noticed when the cases were looked for, such as files that are not used.
    """

    folder: Path
    cases: tuple[Case, ...]
    structures: tuple[Structure, ...]
    findings: tuple[Finding, ...] = ()
