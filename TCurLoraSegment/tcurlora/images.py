"""Scans and segmentations in files: read with every doubt named, written whole or not at all.

ITK reads a file that was cut short without a word and fills the rest with zeros, so files are checked here before
their voxels are believed.
"""

from __future__ import annotations

import colorsys
import json
import math
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from tcurlora.errors import InputError, TCurLoraError
from tcurlora.labels import Structure, require_distinct

IMAGE_SUFFIXES = (
    ".seg.nrrd",
    ".seg.nhdr",
    ".nii.gz",
    ".img.gz",
    ".gipl.gz",
    ".nrrd",
    ".nhdr",
    ".nii",
    ".hdr",
    ".img",
    ".mha",
    ".mhd",
    ".gipl",
    ".dcm",
)
"""Endings of image files, the longer before the shorter that it contains."""

WRITABLE_SUFFIXES = (".seg.nrrd", ".nii.gz", ".nrrd", ".nii", ".mha")
"""Endings that can be written: formats that keep a volume and its geometry in one file."""

MAX_VOXELS = 2**31
GZIP, ZLIB = 31, 15
BACKGROUND_LINE = "0 Background 0 0 0 0"
STRUCTURE_COMMENT = "# structure: "

_COPY_AGAIN = "Copy or export the file again, and check that it opens in 3D Slicer."


def suffix(path: Path) -> str:
    """Return the image ending of a file name in lower case (`.nii.gz`, `.seg.nrrd`), or an empty string."""
    name = path.name.lower()
    return next((s for s in IMAGE_SUFFIXES if name.endswith(s) and len(name) > len(s)), "")


def stem(path: Path) -> str:
    """Return the file name without its image ending: `scan.nii.gz` and `scan.seg.nrrd` both give `scan`."""
    return path.name[: len(path.name) - len(suffix(path))]


def read_image(path: Path) -> sitk.Image:
    """Read a 3D image, of one or several components a voxel, from a file or a folder with one DICOM series.

    A 4D file with a single time point counts as 3D.

    Args:
        path: a file that SimpleITK reads, or a folder that holds the slices of one DICOM series.

    Returns:
        The image with the file's own pixel type, geometry and metadata.

    Raises:
        InputError: when the file is missing, damaged, cut short, not 3D, or its geometry makes no sense.
    """
    path = Path(path)
    with _itk_quiet():
        return _read_series(path) if path.is_dir() else _read_file(path)


def read_segmentation(path: Path) -> tuple[sitk.Image, list[Structure]]:
    """Read a label map and the structures that its file, or the color table beside it, names.

    Names come from the segments of a .seg.nrrd, or from `NAME.ctbl` beside `NAME.nii.gz` and other formats. Segments
    in several layers are merged into one label map; where two layers use one number, the later one gets a free number.

    Returns:
        The labels as unsigned 16 bit (32 bit signed where a value needs it), and the named structures, which are none
        where the file has no names.

    Raises:
        InputError: as `read_image`; or when values are not whole numbers from 0 on, segments overlap, or two
            structures share a name.
    """
    path = Path(path)
    image = read_image(path)
    segments = _header_segments(image)
    voxels = sitk.GetArrayViewFromImage(image)
    if segments:
        labels, structures = _merge_layers(voxels.reshape((*voxels.shape[:3], -1)), segments, path)
    elif voxels.ndim > 3:
        raise InputError(
            f"The segmentation {path} has {voxels.shape[3]} values in each voxel and no segment names.",
            "Save it as one label map, in which each voxel has one label number.",
            "several_channels",
        )
    else:
        labels = _whole_numbers(voxels, path)
        structures = _read_color_table(path, labels)
    require_distinct(structures, str(path))
    return _label_image(labels, image), structures


def write_image(image: sitk.Image, path: Path) -> None:
    """Write an image compressed, so that the path holds either what it held before or the whole new file.

    The metadata of the image is left out, because that of a DICOM scan names the patient.

    Raises:
        InputError: when the ending of the name is not in `WRITABLE_SUFFIXES`.
        TCurLoraError: when the file cannot be written.
    """
    _write(_bare(image) if image.GetMetaDataKeys() else image, Path(path))


def write_segmentation(labels: sitk.Image, structures: Sequence[Structure], path: Path) -> None:
    """Write a label map with the names, colors and terminology of its structures.

    A .seg.nrrd opens in 3D Slicer as a segmentation. Beside any other format goes a Slicer color table, `NAME.ctbl`.
    Structures without a color get one that depends on their value only.

    Args:
        labels: integer labels, 0 is the background.
        structures: what the values mean; may include structures that no voxel has.
        path: where to write, ending in one of `WRITABLE_SUFFIXES`.

    Raises:
        InputError: when the ending cannot be written, or two structures share a name or value.
        TCurLoraError: when the file cannot be written.
    """
    path = Path(path)
    require_distinct(structures, f"Structures of {path.name}")
    _require_writable_suffix(path)
    voxels = sitk.GetArrayViewFromImage(labels)
    highest = max([int(voxels.max(initial=0)), *(s.value for s in structures)])
    pixel = sitk.sitkUInt8 if highest < 2**8 else sitk.sitkUInt16 if highest < 2**16 else sitk.sitkInt32
    plain = sitk.Cast(_bare(labels), pixel)
    if suffix(path) == ".seg.nrrd":
        for key, value in _segmentation_header(structures, plain).items():
            plain.SetMetaData(key, value)
    else:
        # Before the labels: a color table without labels does no harm, labels without names do.
        _write_color_table(structures, path.with_name(stem(path) + ".ctbl"))
    _write(plain, path)


def default_color(value: int) -> tuple[float, float, float]:
    """Return an RGB color (0 to 1) for a label value; neighbouring values get colors that differ well."""
    hue = (value * 0.6180339887498949) % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85 if value % 2 else 0.55, 0.95 if value % 3 else 0.75)
    return round(red, 6), round(green, 6), round(blue, 6)


# Reading


@contextmanager
def _itk_quiet() -> Iterator[None]:
    before = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(before)


def _read_file(path: Path) -> sitk.Image:
    _require_file(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    _guarded(path, reader.ReadImageInformation)
    _require_sound_header(reader, path)
    _require_complete(reader, path)
    image = _guarded(path, reader.Execute)
    volume: sitk.Image = image[:, :, :, 0] if image.GetDimension() == 4 else image
    return volume


def _read_series(folder: Path) -> sitk.Image:
    ids = _guarded(folder, lambda: sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder)))
    if not ids:
        raise InputError(
            f"The folder {folder} holds no DICOM series.",
            "Give an image file, or the folder that directly holds the slices of one series.",
            "no_series",
        )
    if len(ids) > 1:
        raise InputError(
            f"The folder {folder} holds {len(ids)} DICOM series, and it is not clear which one is meant.",
            "Put each series into a folder of its own.",
            "several_series",
        )
    files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), ids[0])
    if len(files) == 1:
        return _read_file(Path(files[0]))
    _require_even_slices(folder, files)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(files)
    volume: sitk.Image = _guarded(folder, reader.Execute)
    return volume


def _require_even_slices(folder: Path, files: Sequence[str]) -> None:
    """Refuse a series with a missing or doubled slice: ITK would squeeze or stretch the patient."""
    centers: list[tuple[float, ...]] = []
    reader = sitk.ImageFileReader()
    for file in files:
        reader.SetFileName(file)
        _guarded(Path(file), reader.ReadImageInformation)
        if not centers:
            _require_sound_header(reader, Path(file), slices=len(files))
        centers.append(reader.GetOrigin())
    gaps = np.linalg.norm(np.diff(np.array(centers), axis=0), axis=1)
    if gaps.min() < 1e-4 or gaps.max() - gaps.min() > max(0.05 * float(np.median(gaps)), 0.02):
        raise InputError(
            f"The DICOM series in {folder} has slices {gaps.min():.3g} to {gaps.max():.3g} mm apart: "
            "slices are missing, doubled or mixed.",
            "Export the series again, completely.",
            "uneven_slices",
        )


def _require_file(path: Path) -> None:
    if not path.exists():
        raise InputError(f"There is no file {path}.", "Check the path.", "not_found")
    if not os.access(path, os.R_OK):
        raise InputError(f"The file {path} may not be read.", "Ask for permission to read it.", "no_permission")
    if path.stat().st_size == 0:
        raise InputError(f"The file {path} is empty.", _COPY_AGAIN, "unreadable")


def _guarded(path: Path, action: Callable[[], Any]) -> Any:
    """Run a step of SimpleITK, and turn what it throws into a sentence about the file."""
    try:
        return action()
    except MemoryError:
        raise
    except Exception as error:
        text = str(error)
        if "rthonormal" in text:
            raise InputError(
                f"The axes of {path} are not at right angles to each other (sheared).",
                "Resample the scan onto a straight grid, for example in 3D Slicer with 'Resample Scalar Volume'.",
                "sheared",
            ) from error
        if "bad_alloc" in text or "llocat" in text:
            raise InputError(
                f"The image {path} does not fit into memory.",
                "Crop it, or use a machine with more memory.",
                "too_large",
            ) from error
        raise InputError(
            f"{path} cannot be read: it is damaged, incomplete or not an image.", _COPY_AGAIN, "unreadable"
        ) from error


def _require_sound_header(reader: sitk.ImageFileReader, path: Path, slices: int = 1) -> None:
    size, dimension = reader.GetSize(), reader.GetDimension()
    if dimension < 3 or dimension > 4 or (dimension == 4 and size[3] != 1):
        raise InputError(
            f"{path} is not a 3D image but {dimension}D, of size {'x'.join(map(str, size))}.",
            "Save the one 3D volume that is meant in a file of its own.",
            "not_3d",
        )
    if "complex" in sitk.GetPixelIDValueAsString(reader.GetPixelID()):
        raise InputError(f"{path} holds complex numbers.", "Save the magnitude image.", "complex_values")
    voxels = math.prod(size) * slices
    if voxels < 1 or voxels > MAX_VOXELS:
        raise InputError(
            f"{path} claims to have {'x'.join(map(str, size))} voxels, which cannot be right or is too many.",
            _COPY_AGAIN,
            "too_large",
        )
    spacing, origin = np.array(reader.GetSpacing()[:3]), np.array(reader.GetOrigin()[:3])
    direction = np.array(reader.GetDirection()).reshape(dimension, dimension)[:3, :3]
    finite = all(bool(np.isfinite(part).all()) for part in (spacing, origin, direction))
    if not finite or spacing.min() <= 0 or abs(np.linalg.det(direction)) < 1e-3:
        raise InputError(
            f"The header of {path} gives no usable voxel size or orientation.",
            "Export the scan again from its source, with its geometry.",
            "bad_geometry",
        )


def _require_complete(reader: sitk.ImageFileReader, path: Path) -> None:
    """Refuse a file that holds fewer bytes than its header promises, or whose compressed stream is broken."""
    with path.open("rb") as stream:
        start = stream.read(8192)
    elements = math.prod(reader.GetSize()) * reader.GetNumberOfComponents()
    keys = reader.GetMetaDataKeys()
    complete = True
    if suffix(path) in (".nii", ".nii.gz") and "bitpix" in keys:
        # The type that ITK announces is that after scaling; the header tells what is on disk.
        expected = elements * int(reader.GetMetaData("bitpix")) // 8
        if start[:2] == b"\x1f\x8b":
            with path.open("rb") as stream:
                complete = _inflates(stream, expected, GZIP)
        else:
            complete = path.stat().st_size >= expected + 348
    elif suffix(path) in (".mha", ".mhd"):
        bits = re.search(r"(\d+)-bit", sitk.GetPixelIDValueAsString(reader.GetPixelID()))
        complete = _meta_image_holds(path, start, elements * int(bits.group(1) if bits else 8) // 8)
    if not complete:
        raise InputError(
            f"{path} is damaged or was cut short: it holds less than its header says.", _COPY_AGAIN, "unreadable"
        )


def _meta_image_holds(path: Path, start: bytes, expected: int) -> bool:
    header = re.match(rb"(?s).*?^ElementDataFile\s*=\s*([^\r\n]*)\r?\n?", start, re.MULTILINE)
    if header is None:
        return True
    name = header.group(1).decode("utf-8", "replace").strip()
    if name.upper().startswith("LIST") or "%" in name:
        return True
    payload, offset = (path, header.end()) if name == "LOCAL" else (path.parent / name, 0)
    if not payload.is_file():
        return False
    if not re.search(rb"(?im)^CompressedData\s*=\s*True", header.group(0)):
        return payload.stat().st_size - offset >= expected
    with payload.open("rb") as stream:
        stream.seek(offset)
        return _inflates(stream, expected, ZLIB)


def _inflates(stream: BinaryIO, expected: int, window: int) -> bool:
    """Tell whether a compressed stream is sound, checksum included, and holds at least the expected bytes.

    Bytes after its end do no harm, and further gzip members count.
    """
    inflate = zlib.decompressobj(window)
    total = 0
    rest = b""
    try:
        while block := rest or stream.read(1 << 16):
            total += len(inflate.decompress(block))
            rest = inflate.unused_data
            if inflate.eof:
                if total >= expected:
                    return True
                inflate = zlib.decompressobj(window)
    except zlib.error:
        return False
    return False


# Segmentations


@dataclass(frozen=True)
class _Segment:
    name: str
    value: int
    layer: int
    color: tuple[float, float, float] | None
    terminology: str | None


def _header_segments(image: sitk.Image) -> list[_Segment]:
    keys = set(image.GetMetaDataKeys())

    def field(index: int, key: str) -> str | None:
        name = f"Segment{index}_{key}"
        return image.GetMetaData(name).strip() if name in keys else None

    segments: list[_Segment] = []
    index = 0
    while f"Segment{index}_ID" in keys or f"Segment{index}_Name" in keys:
        name = field(index, "Name") or field(index, "ID") or f"Segment_{index + 1}"
        # Files from before segments could share a layer have neither field: each segment is a layer of ones.
        value = _int_or(field(index, "LabelValue"), 1)
        layer = _int_or(field(index, "Layer"), index)
        tags = (field(index, "Tags") or "").split("|")
        entries = [tag.removeprefix("TerminologyEntry:") for tag in tags if tag.startswith("TerminologyEntry:")]
        color = _color(re.split(r"[\s,]+", field(index, "Color") or field(index, "DefaultColor") or ""))
        segments.append(_Segment(name, value, layer, color, entries[0] if entries and entries[0] else None))
        index += 1
    return segments


def _merge_layers(
    layers: npt.NDArray[Any], segments: Sequence[_Segment], path: Path
) -> tuple[npt.NDArray[np.int64], list[Structure]]:
    """Bring (z, y, x, layer) labels onto one label map."""
    merged = np.zeros(layers.shape[:3], np.int64)
    structures: list[Structure] = []
    named = {(s.layer, s.value): s for s in segments}
    if len(named) < len(segments) or any(s.layer >= layers.shape[3] or s.value < 1 for s in segments):
        raise InputError(
            f"The header of {path} describes segments that its voxels cannot hold.",
            "Save the segmentation again from 3D Slicer.",
            "bad_segments",
        )
    used = {s.value for s in segments}
    taken: set[int] = set()
    for layer in range(layers.shape[3]):
        labels = _whole_numbers(layers[..., layer], path)
        present = {int(v) for v in np.unique(labels)} - {0}
        overlap = (labels != 0) & (merged != 0)
        if overlap.any():
            raise InputError(
                f"Segments of {path} overlap in {int(overlap.sum())} voxels, but a voxel can belong to one only.",
                "In 3D Slicer's Segment Editor set 'Modify other segments' to 'Overwrite all' and correct them.",
                "overlapping_segments",
            )
        for value in sorted(present | {v for (where, v) in named if where == layer}):
            number = value if value not in taken else _free_number(taken | used)
            taken.add(number)
            merged[labels == value] = number
            if (layer, value) in named:
                segment = named[layer, value]
                structures.append(Structure(segment.name, number, segment.color, segment.terminology))
    return merged, structures


def _whole_numbers(voxels: npt.NDArray[Any], path: Path) -> npt.NDArray[np.int64]:
    if voxels.dtype.kind == "f":
        finite = np.isfinite(voxels).all()
        whole = finite and bool((np.rint(voxels) == voxels).all())
        if not whole:
            raise InputError(
                f"The segmentation {path} holds values that are not whole numbers.",
                "Give the label map, not the scan or a probability map; resample labels with nearest neighbour.",
                "not_labels",
            )
    if voxels.size and (voxels.min() < 0 or voxels.max() >= 2**31):
        raise InputError(
            f"The segmentation {path} has label numbers from {voxels.min():g} to {voxels.max():g}.",
            "Use label numbers from 0 (background) on.",
            "not_labels",
        )
    return voxels.astype(np.int64)


def _label_image(labels: npt.NDArray[np.int64], geometry: sitk.Image) -> sitk.Image:
    dtype = np.uint16 if labels.max(initial=0) < 2**16 else np.int32
    image = sitk.GetImageFromArray(labels.astype(dtype))
    image.CopyInformation(geometry)
    return image


def _segmentation_header(structures: Sequence[Structure], labels: sitk.Image) -> dict[str, str]:
    """Return the header fields by which 3D Slicer knows a segmentation; all segments share one layer."""
    size = labels.GetSize()
    representation = "Binary labelmap"
    header = {
        "Segmentation_ContainedRepresentationNames": f"{representation}|",
        # Slicer writes and reads the older of these two names; the newer one is for readers that follow its API.
        "Segmentation_MasterRepresentation": representation,
        "Segmentation_SourceRepresentation": representation,
        "Segmentation_ReferenceImageExtentOffset": "0 0 0",
        # Without its reference geometry Slicer would crop the segmentation to its segments when it saves it again.
        "Segmentation_ConversionParameters": (
            "Collapse labelmaps|1|Share labelmaps where segments do not overlap.&"
            f"Reference image geometry|{_slicer_geometry(labels)}|Grid of the scan.&"
        ),
    }
    extent = " ".join(f"0 {n - 1}" for n in size)
    for index, structure in enumerate(structures):
        color = structure.color or default_color(structure.value)
        tags = "Segmentation.Status:inprogress|"
        if structure.terminology:
            tags += f"TerminologyEntry:{_one_line(structure.terminology).replace('|', ' ')}|"
        fields = {
            "ID": f"Segment_{structure.value}",
            "Name": _one_line(structure.name),
            "NameAutoGenerated": "0",
            "Color": " ".join(repr(float(part)) for part in color),
            "ColorAutoGenerated": "0" if structure.color else "1",
            "LabelValue": str(structure.value),
            "Layer": "0",
            "Extent": extent,
            "Tags": tags,
        }
        header |= {f"Segment{index}_{key}": value for key, value in fields.items()}
    return header


def _slicer_geometry(image: sitk.Image) -> str:
    """Return the map from index to right-anterior-superior place, row by row, and the extent, as Slicer writes them."""
    matrix = np.eye(4)
    matrix[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    matrix[:3, 3] = image.GetOrigin()
    matrix[:2] *= -1
    extent = [end for n in image.GetSize() for end in (0, n - 1)]
    return "".join(f"{float(number)!r};" for number in matrix.ravel()) + "".join(f"{end};" for end in extent)


def _write_color_table(structures: Sequence[Structure], path: Path) -> None:
    """Write Slicer's color table; comments, which Slicer skips, keep what its columns cannot hold."""
    ordered = sorted(structures, key=lambda s: s.value)
    lines = [f"# Color table file {path.name}", f"# {len(ordered) + 1} values", BACKGROUND_LINE]
    for structure in ordered:
        rgb = " ".join(f"{255 * part:g}" for part in structure.color or default_color(structure.value))
        lines.append(f"{structure.value} {_column(structure.name)} {rgb} 255")
    lines += [STRUCTURE_COMMENT + json.dumps(s.to_dict(), ensure_ascii=False) for s in ordered]
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise _not_written(path) from error
    finally:
        temporary.unlink(missing_ok=True)


def _read_color_table(labels_path: Path, labels: npt.NDArray[np.int64]) -> list[Structure]:
    """Read the structures that voxels have, or that this program listed, from the table beside a label map."""
    candidates = [labels_path.with_name(stem(labels_path) + end) for end in (".ctbl", "_ColorTable.ctbl")]
    path = next((candidate for candidate in candidates if candidate.is_file()), None)
    if path is None:
        return []
    listed: dict[int, Structure] = {}
    detailed: dict[int, Structure] = {}
    try:
        for line in path.read_text(encoding="utf-8-sig").splitlines():
            if line.startswith(STRUCTURE_COMMENT):
                structure = Structure.from_dict(json.loads(line.removeprefix(STRUCTURE_COMMENT)))
                detailed[structure.value] = structure
            elif line.strip() and not line.startswith("#"):
                number, name, red, green, blue = line.split()[:5]
                color = (float(red) / 255, float(green) / 255, float(blue) / 255)
                listed[int(number)] = Structure(name.strip("'").replace("_", " "), int(number), color)
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise InputError(
            f"The color table {path} is not in 3D Slicer's format: number, name, red, green, blue, opacity.",
            "Correct the table, or remove it and give the names with --labels.",
            "bad_color_table",
        ) from error
    present = {int(value) for value in np.unique(labels)}
    structures = []
    for value, structure in sorted(listed.items()):
        detail = detailed.get(value)
        if detail is not None and _column(detail.name) == _column(structure.name):
            structures.append(detail)
        elif value in present and value != 0:
            structures.append(structure)
    return structures


def _column(name: str) -> str:
    return "_".join(name.split()) or "_"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _color(parts: Sequence[str]) -> tuple[float, float, float] | None:
    try:
        red, green, blue = (float(part) for part in parts if part)
    except ValueError:
        return None
    return red, green, blue


def _int_or(text: str | None, default: int) -> int:
    try:
        return default if text is None else int(text)
    except ValueError:
        return default


def _free_number(taken: set[int]) -> int:
    return next(n for n in range(1, len(taken) + 2) if n not in taken)


# Writing


def _require_writable_suffix(path: Path) -> None:
    if suffix(path) not in WRITABLE_SUFFIXES:
        raise InputError(
            f"{path} has no ending of an image format that can be written.",
            f"Use one of {', '.join(WRITABLE_SUFFIXES)}.",
            "unknown_format",
        )


def _write(image: sitk.Image, path: Path) -> None:
    _require_writable_suffix(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder.", "Give the name of a file to write.", "is_folder")
    # The same folder, so that the rename is atomic; the same ending, by which ITK picks the format.
    temporary = path.with_name(f".{stem(path)}.{os.getpid()}.tmp{suffix(path)}")
    try:
        with _itk_quiet():
            sitk.WriteImage(image, str(temporary), useCompression=True)
            if not _written_whole(temporary):
                raise _not_written(path)
        os.replace(temporary, path)
    except (RuntimeError, OSError) as error:
        raise _not_written(path) from error
    finally:
        temporary.unlink(missing_ok=True)


def _bare(image: sitk.Image) -> sitk.Image:
    """Return a copy without metadata; erasing it from a shallow copy would erase it from the original too."""
    vector = image.GetNumberOfComponentsPerPixel() > 1
    bare = sitk.GetImageFromArray(sitk.GetArrayViewFromImage(image), isVector=vector)
    bare.CopyInformation(image)
    return bare


def _written_whole(path: Path) -> bool:
    """Tell whether the file is complete: ITK ignores a disk that fills up while it writes some formats."""
    try:
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
        _require_complete(reader, path)
    except (RuntimeError, InputError):
        return False
    return True


def _not_written(path: Path) -> TCurLoraError:
    folder = path.parent
    if not folder.is_dir():
        return TCurLoraError(f"{path} cannot be written: there is no folder {folder}.", "Create it.", "not_written")
    if not os.access(folder, os.W_OK):
        return TCurLoraError(
            f"{path} cannot be written: the folder {folder} is write-protected.",
            "Choose a folder in which you may write.",
            "not_written",
        )
    free = shutil.disk_usage(folder).free
    return TCurLoraError(
        f"{path} cannot be written ({free / 1e6:.0f} MB are free on that disk).",
        "Make room on the disk or choose another folder.",
        "not_written",
    )
