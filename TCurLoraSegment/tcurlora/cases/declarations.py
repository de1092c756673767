"""Names of labels and channels in a dataset.json or datalist, in the forms of Decathlon, MONAI and nnU-Net."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tcurlora.cases.case import Finding
from tcurlora.errors import InputError
from tcurlora.imaging.structures import Structure, is_background, is_ignored, require_distinct
from tcurlora.runtime.json_files import read_object

_NOTHING = ("", "background", "bg", "clear label", "unlabeled", "unlabelled", "none", "nothing", "exterior", "unknown")


@dataclass(frozen=True)
class Declaration:
    """What is declared; everything may be empty.

    Attributes:
        structures: named labels, sorted by value; some may be called background.
        ignore: label numbers of voxels that nobody labeled.
        channels: names of the channels in the order of their numbers.
        findings: what was noticed.
    """

    structures: tuple[Structure, ...] = ()
    ignore: tuple[int, ...] = ()
    channels: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()


def read_json(path: Path) -> Mapping[str, Any]:
    """Read a dataset.json or datalist.

    Raises:
        InputError: when it is not a JSON object.
    """
    try:
        return read_object(path)
    except (ValueError, OSError) as error:
        raise InputError(f"{path} is not a file with a JSON object: {error}.", "Correct it.", "bad_json") from error


def read_declaration(content: Mapping[str, Any], path: Path, named: bool = False) -> Declaration:
    """Read the names of labels and channels.

    Decathlon and nnU-Net 1 write number to name, MONAI and nnU-Net 2 name to number. nnU-Net 2 may also declare
    regions, each of several numbers.

    Args:
        content: of the file.
        path: of the file.
        named: whether the user has named the labels otherwise, so that regions need not be understood.

    Raises:
        InputError: when the labels are in none of these forms, or are regions.
    """
    labels = content.get("labels") or {}
    pairs: list[tuple[int, str]] = []
    regions: list[tuple[str, list[int]]] = []
    try:
        for key, value in labels.items():
            if isinstance(value, list):
                numbers = [_number(each) for each in value]
                if len(numbers) == 1:
                    pairs.append((numbers[0], str(key)))
                else:
                    regions.append((str(key), numbers))
            elif str(key).strip().isdigit():
                pairs.append((_number(key), str(value)))
            else:
                pairs.append((_number(value), str(key)))
        if any(not 0 <= value < 2**31 or (value and not name.strip()) for value, name in pairs):
            raise ValueError
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"The 'labels' in {path} are not numbers and names.",
            'Write for example "labels": {"0": "background", "1": "hippocampus"}.',
            "bad_labels",
        ) from error
    if regions and not named:
        name, numbers = regions[0]
        raise InputError(
            f"The 'labels' in {path} declare regions, which share voxels: '{name}' is the labels "
            f"{', '.join(map(str, numbers))} together.",
            "Name the single labels (with --labels 1=name,2=name), or give the regions as overlapping segments in "
            ".seg.nrrd files.",
            "region_labels",
        )
    pairs = [(value, name.strip()) for value, name in pairs] if not regions else []
    structures = [Structure(name, value) for value, name in pairs if value and not is_ignored(name)]
    require_distinct(structures, str(path))
    findings = [
        Finding(
            "",
            "label_zero_named",
            f"{path.name} calls the label 0 '{name}', but 0 is always background.",
            "If it is a structure, give it another number in all files.",
            "warning",
        )
        for value, name in pairs
        if value == 0 and name.casefold() not in _NOTHING and not is_background(name)
    ]
    ignore = tuple(sorted(value for value, name in pairs if value and is_ignored(name)))
    return Declaration(tuple(sorted(structures, key=lambda s: s.value)), ignore, _channels(content), tuple(findings))


def _number(value: Any) -> int:
    if isinstance(value, bool) or (isinstance(value, float) and value != int(value)):
        raise ValueError
    return int(value)


def _channels(content: Mapping[str, Any]) -> tuple[str, ...]:
    names = content.get("channel_names") or content.get("modality") or {}
    if isinstance(names, list):
        return tuple(str(name) for name in names)
    try:
        return tuple(str(names[str(number)]) for number in range(len(names)))
    except (KeyError, TypeError):
        return ()
