"""Which scans are meant by the files and folders that are given to be segmented."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tcurlora.errors import InputError
from tcurlora.imaging.channels import (
    ChannelProblem,
    Scan,
    distinguished,
    holds_dicom,
    in_order,
    numbered_channel,
    numbered_scan,
)
from tcurlora.imaging.channels import scan_in_folder as channels_in_folder
from tcurlora.imaging.headers.formats import format_of
from tcurlora.imaging.images import files_of, images_in, stem, suffix
from tcurlora.runtime.text_tables import quoted

Channels = Callable[[], Sequence[str]]
"""Names the input channels of the model; asked only where the files leave open what a scan is."""


@dataclass(frozen=True)
class NamedScan:
    """A scan: its files in the order of the model's channels, and the name of its result, without an ending."""

    files: tuple[Path, ...]
    name: str


def scans_in(path: Path, channels: Channels, passed_over: list[str]) -> list[NamedScan]:
    """Find the scans that a file or folder stands for.

    A folder stands for the scans in it and in the folders in it: image files, each folder with a DICOM series, and
    where the model takes several channels, files that belong together, whose names end in `_0000`, `_0001` and so on,
    or are those of the channels in a folder for each scan.

    Args:
        path: the file or folder.
        channels: names the model's channels.
        passed_over: gets a sentence for each folder with files that are not read.

    Raises:
        InputError: when there is no such path, a folder mixes DICOM files with others, or channels are missing.
    """
    if not path.exists():
        raise InputError(f"There is no scan {path}.", "Check the path (--input).", "not_found")
    if path.is_file():
        return [NamedScan((path,), stem(path))]
    found = _in_folder(path, channels, passed_over)
    if not found:
        # Reading it tells what is wrong with it.
        return [NamedScan((path,), _name(path))]
    counts = Counter(scan.name.casefold() for scan, _ in found)
    return [
        scan if counts[scan.name.casefold()] == 1 else NamedScan(scan.files, "_".join((*above.parts, scan.name)))
        for scan, above in ((scan, place.relative_to(path).parent) for scan, place in found)
    ]


def scan_of_channels(files: Sequence[str], channels: Channels) -> NamedScan:
    """Make one scan of the files of its channels, in the order in which they are given.

    Raises:
        InputError: when a file is missing, or their names say that they are not those of the model's channels.
    """
    paths = tuple(Path(file) for file in files)
    missing = next((path for path in paths if not path.exists()), None)
    if missing is not None:
        raise InputError(f"There is no scan {missing}.", "Check the path (--channels).", "not_found")
    first = numbered_channel(stem(paths[0]))
    name = first[0] if first else _name(paths[0]) if paths[0].is_dir() else stem(paths[0])
    return NamedScan(
        _ordered(name, Scan(paths, tuple(distinguished([stem(path) for path in paths]))), channels()), name
    )


def _in_folder(folder: Path, channels: Channels, passed_over: list[str]) -> list[tuple[NamedScan, Path]]:
    """Find the scans in a folder, each with its file or folder, which tells it from others of its name."""
    files = images_in(folder)
    slices = [file for file in files if suffix(file) == ".dcm"]
    if slices and len(slices) < len(files):
        others = next(file for file in files if file not in slices)
        raise InputError(
            f"The folder {folder} holds DICOM files and other scans, such as '{slices[0].name}' and '{others.name}'.",
            "Put each DICOM series into a folder of its own, and give the folders and scans one by one.",
            "mixed_folder",
        )
    inside = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    found: list[tuple[NamedScan, Path]] = []
    is_series = bool(slices) or (not files and holds_dicom(folder))
    if is_series:
        found.append((NamedScan((folder,), _name(folder)), folder))
    elif len(files) > 1 or (not files and len(inside) > 1):
        whole = _as_one_scan(folder, channels)
        if whole is not None:
            return [(whole, folder)]
        found += [(scan, scan.files[0]) for scan in _grouped(files, channels)]
    else:
        found += [(NamedScan((file,), stem(file)), file) for file in files]
    for entry in inside:
        found += _in_folder(entry, channels, passed_over)
    if found and not is_series:
        _tell_of_others(folder, files, passed_over)
    return found


def _as_one_scan(folder: Path, channels: Channels) -> NamedScan | None:
    """Take a folder for one scan if what is in it is called as the channels of the model are."""
    wanted = channels()
    if len(wanted) < 2:
        return None
    try:
        scan = channels_in_folder(folder)
        if scan.order != "named":
            return None
        order = in_order(scan, wanted)
    except ChannelProblem:
        return None
    return NamedScan(tuple(scan.files[index] for index in order), _name(folder))


def _grouped(files: Sequence[Path], channels: Channels) -> list[NamedScan]:
    """Put numbered channels together where the model takes several; of one channel, leave out its number."""
    numbered = {file: parts for file in files if (parts := numbered_channel(stem(file)))}
    wanted = channels() if numbered else ()
    if len(wanted) < 2:
        only_first = bool(numbered) and len(numbered) == len(files) and all(n == 0 for _, n in numbered.values())
        return [NamedScan((file,), numbered[file][0] if only_first else stem(file)) for file in files]
    groups: dict[str, list[tuple[int, Path]]] = {}
    for file, (name, number) in numbered.items():
        groups.setdefault(name, []).append((number, file))
    scans = [NamedScan((file,), stem(file)) for file in files if file not in numbered]
    for name, members in groups.items():
        try:
            scan = numbered_scan(members)
        except ChannelProblem as problem:
            raise _channel_error(name, problem) from problem
        # A file with all channels may bear a number too.
        scans.append(NamedScan(scan.files if len(scan.files) == 1 else _ordered(name, scan, wanted), name))
    return sorted(scans, key=lambda scan: scan.name)


def _ordered(name: str, scan: Scan, wanted: Sequence[str]) -> tuple[Path, ...]:
    try:
        return tuple(scan.files[index] for index in in_order(scan, wanted))
    except ChannelProblem as problem:
        raise _channel_error(name, problem) from problem


def _channel_error(name: str, problem: ChannelProblem) -> InputError:
    return InputError(
        f"The scan '{name}' {problem}.",
        "Give a file for each channel of the model, in its order ('tcurlora models show' lists them).",
        problem.code,
    )


def _tell_of_others(folder: Path, files: Sequence[Path], passed_over: list[str]) -> None:
    known = {file for image in files for file in files_of(image)}
    others = [e for e in sorted(folder.iterdir()) if e.is_file() and e not in known and e.name.upper() != "DICOMDIR"]
    scans = [entry.name for entry in others if format_of(entry) and not entry.name.startswith("._")]
    if others:
        names = quoted(scans + [entry.name for entry in others if entry.name not in scans])
        hint = " Give scans among them one by one, or with the ending of their format." if scans else ""
        passed_over.append(f"In {folder} these files were not read: {names}.{hint}")


def _name(folder: Path) -> str:
    """Name the result of a folder, which may have been given as `.`."""
    return folder.resolve().name if folder.name in ("", "..") else folder.name
