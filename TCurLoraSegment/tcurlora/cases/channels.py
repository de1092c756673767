"""Cases whose scans have several channels: in the order of a base model, and read as one image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import SimpleITK as sitk

from tcurlora.cases.case import Case, Dataset, Finding
from tcurlora.imaging.channels import ChannelProblem, Scan, in_order, read_channels
from tcurlora.imaging.image_warnings import OnWarning, unheard

CHANNEL_CODES = ("missing_channel", "exchanged_channels", "unknown_channels")
_REMEDIES = {
    "missing_channel": "Add the missing channel, or leave the case out.",
    "exchanged_channels": "Put the channels in that order, or correct their names.",
    "unknown_channels": "Call the files as the model calls its channels, or number them in its order: "
    "CASE_0000.nii.gz, CASE_0001.nii.gz, ...",
}


def read_case_image(case: Case, on_warning: OnWarning = unheard) -> sitk.Image:
    """Read the scan of a case, with a component for each channel in the model's order.

    Raises:
        InputError: as `read_channels`.
    """
    return read_channels((case.image, *case.channels), on_warning)


def scan_of(case: Case) -> Scan:
    """Return the files of a case's scan."""
    return Scan((case.image, *case.channels), case.channel_names, case.channel_order)


def with_channels_of(dataset: Dataset, wanted: Sequence[str]) -> Dataset:
    """Bring the channels of all cases into the order of a model, as far as their scans lie in several files.

    Args:
        dataset: the cases.
        wanted: names of the model's input channels.

    Returns:
        The cases, and a finding for each whose channels are missing, exchanged or unknown.
    """
    cases: list[Case] = []
    findings: list[Finding] = []
    moved = False
    for case in dataset.cases:
        if case.channels:
            scan = scan_of(case)
            try:
                order = in_order(scan, wanted)
            except ChannelProblem as problem:
                message = f"The scan of '{case.name}' {problem}."
                findings.append(Finding(case.name, problem.code, message, _REMEDIES[problem.code], "error"))
            else:
                moved |= scan.order == "numbered" and order != sorted(order)
                files = [scan.files[index] for index in order]
                names = tuple(scan.names[index] for index in order) if scan.names else ()
                case = replace(case, image=files[0], channels=tuple(files[1:]), channel_names=names)
        cases.append(case)
    if moved:
        message = f"The channels were brought into the order of the model by their names: {', '.join(wanted)}."
        remedy = "If the names in dataset.json are wrong, correct them."
        findings.append(Finding("", "channels_reordered", message, remedy, "note"))
    return replace(dataset, cases=tuple(cases), findings=(*dataset.findings, *findings))
