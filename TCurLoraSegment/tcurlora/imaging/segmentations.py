"""Segmentations in files: labels with the names, colors and terminology of their structures."""

from __future__ import annotations

import colorsys
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from tcurlora.errors import InputError
from tcurlora.imaging.images import (
    files_of,
    not_written,
    read_image,
    require_writable_suffix,
    stem,
    suffix,
    without_metadata,
    write_whole,
)
from tcurlora.imaging.label_layers import flattened, has_overlaps, layered_image, layers_of
from tcurlora.imaging.structures import Structure, is_background, require_distinct
from tcurlora.runtime.atomic_files import whole_file

BACKGROUND_LINE = "0 Background 0 0 0 0"
STRUCTURE_COMMENT = "# structure: "


def read_segmentation(path: Path, overlaps: bool = False) -> tuple[sitk.Image, list[Structure]]:
    """Read a label map and the structures that its file, or the color table beside it, names.

    Names come from the segments of a .seg.nrrd, or from `NAME.ctbl` beside `NAME.nii.gz` and other formats. Segments
    in several layers are merged into one label map; where two layers use one number, the later one gets a free number.
    What a file calls background becomes background.

    Args:
        path: the file.
        overlaps: whether segments may overlap. Where they do, the labels have several layers (see `label_layers`).

    Returns:
        The labels as unsigned 16 bit (32 bit signed where a value needs it), and the named structures, which are none
        where the file has no names.

    Raises:
        InputError: as `read_image`; or when values are not whole numbers from 0 on, segments overlap and must not, or
            two structures share a name.
    """
    path = Path(path)
    image = read_image(path)
    segments = _header_segments(image)
    voxels = sitk.GetArrayViewFromImage(image)
    if segments:
        layers, structures = _merge_layers(voxels.reshape((*voxels.shape[:3], -1)), segments, path, overlaps)
    elif voxels.ndim > 3:
        raise InputError(
            f"The segmentation {path} has {voxels.shape[3]} values in each voxel and no segment names.",
            "Save it as one label map, in which each voxel has one label number.",
            "several_channels",
        )
    else:
        labels = _whole_numbers(voxels, path)
        structures = _read_color_table(path, labels)
        for nothing in (structure for structure in structures if is_background(structure.name)):
            labels[labels == nothing.value] = 0
        structures = [structure for structure in structures if not is_background(structure.name)]
        layers = [labels]
    require_distinct(structures, str(path))
    return _label_image(layers, image), structures


def write_segmentation(labels: sitk.Image, structures: Sequence[Structure], path: Path) -> None:
    """Write a label map with the names, colors and terminology of its structures.

    A .seg.nrrd opens in 3D Slicer as a segmentation, and keeps overlaps. Beside any other format goes a Slicer color
    table, `NAME.ctbl`; where structures overlap, they are written to it in their order, later ones over earlier ones.
    Structures without a color get one that depends on their value only.

    Args:
        labels: integer labels, 0 is the background; several layers where structures overlap (see `label_layers`).
        structures: what the values mean; may include structures that no voxel has.
        path: where to write, ending in one of `WRITABLE_SUFFIXES`.

    Raises:
        InputError: when the ending cannot be written, or two structures share a name or value.
        TCurLoraError: when the file cannot be written.
    """
    path = Path(path)
    require_distinct(structures, f"Structures of {path.name}")
    require_writable_suffix(path)
    if not keeps_overlaps(path):
        labels = flattened(labels, [structure.value for structure in structures])
    voxels = sitk.GetArrayViewFromImage(labels)
    highest = max([int(voxels.max(initial=0)), *(s.value for s in structures)])
    scalar, vector = (
        (sitk.sitkUInt8, sitk.sitkVectorUInt8)
        if highest < 2**8
        else (sitk.sitkUInt16, sitk.sitkVectorUInt16)
        if highest < 2**16
        else (sitk.sitkInt32, sitk.sitkVectorInt32)
    )
    plain = sitk.Cast(without_metadata(labels), vector if has_overlaps(labels) else scalar)
    table = names_beside(path)
    if table is None:
        for key, value in _segmentation_header(structures, plain).items():
            plain.SetMetaData(key, value)
        write_whole(plain, path)
        return
    is_new = not table.exists()
    # Before the labels: a color table without labels does no harm, labels without names do.
    _write_color_table(structures, table)
    try:
        write_whole(plain, path)
    except BaseException:
        if is_new:
            table.unlink(missing_ok=True)
        raise


def keeps_overlaps(path: Path) -> bool:
    """Return whether the format of a file holds several labels for one voxel."""
    return suffix(path) == ".seg.nrrd"


def names_beside(path: Path) -> Path | None:
    """Return the color table that `write_segmentation` writes beside a label map; None where the names are in it."""
    return None if suffix(path) == ".seg.nrrd" else path.with_name(f"{stem(path)}.ctbl")


def segmentation_files(path: Path) -> list[Path]:
    """Return all files that a segmentation is read from, those beside it included."""
    return [*files_of(path), *_color_tables(path)]


def default_color(value: int) -> tuple[float, float, float]:
    """Return an RGB color (0 to 1) for a label value; neighbouring values get colors that differ well."""
    hue = (value * 0.6180339887498949) % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85 if value % 2 else 0.55, 0.95 if value % 3 else 0.75)
    return round(red, 6), round(green, 6), round(blue, 6)


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
    layers: npt.NDArray[Any], segments: Sequence[_Segment], path: Path, overlaps: bool
) -> tuple[list[npt.NDArray[np.int64]], list[Structure]]:
    """Bring (z, y, x, layer) labels onto one label map, or, where they overlap and may, onto several."""
    merged = [np.zeros(layers.shape[:3], np.int64)]
    structures: list[Structure] = []
    named = {(s.layer, s.value): s for s in segments}
    if len(named) < len(segments) or any(
        not 0 <= s.layer < layers.shape[3] or not 0 < s.value < 2**31 for s in segments
    ):
        raise InputError(
            f"The header of {path} describes segments that its voxels cannot hold.",
            "Save the segmentation again from 3D Slicer.",
            "bad_segments",
        )
    nothing = [segment for segment in segments if is_background(segment.name)]
    named = {place: segment for place, segment in named.items() if not is_background(segment.name)}
    used = {value for _, value in named}
    taken: set[int] = set()
    for layer in range(layers.shape[3]):
        labels = _whole_numbers(layers[..., layer], path)
        for segment in nothing:
            if segment.layer == layer:
                labels[labels == segment.value] = 0
        present = {int(v) for v in np.unique(labels)} - {0}
        shared = [int(np.count_nonzero((labels != 0) & (other != 0))) for other in merged]
        if min(shared) > 0:
            if not overlaps:
                raise InputError(
                    f"Segments of {path} overlap in {shared[0]} voxels, but a voxel can belong to one only.",
                    "In 3D Slicer's Segment Editor set 'Modify other segments' to 'Overwrite all' and correct them.",
                    "overlapping_segments",
                )
            merged.append(np.zeros_like(labels))
            shared.append(0)
        target = merged[shared.index(0)]
        for value in sorted(present | {v for (where, v) in named if where == layer}):
            number = value if value not in taken else _free_number(taken | used)
            taken.add(number)
            target[labels == value] = number
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


def _label_image(layers: Sequence[npt.NDArray[np.int64]], geometry: sitk.Image) -> sitk.Image:
    dtype = np.uint16 if max(layer.max(initial=0) for layer in layers) < 2**16 else np.int32
    return layered_image([layer.astype(dtype) for layer in layers], geometry)


def _segmentation_header(structures: Sequence[Structure], labels: sitk.Image) -> dict[str, str]:
    """Return the header fields by which 3D Slicer knows a segmentation and the layer of each segment."""
    size = labels.GetSize()
    layer_of = {int(value): number for number, layer in enumerate(layers_of(labels)) for value in np.unique(layer)}
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
            "Layer": str(layer_of.get(structure.value, 0)),
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
    try:
        with whole_file(path) as temporary:
            temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        raise not_written(path) from error


def _color_tables(path: Path) -> list[Path]:
    """The color tables beside a label map, of which the first one counts."""
    candidates = [path.with_name(stem(path) + end) for end in (".ctbl", "_ColorTable.ctbl")]
    return [candidate for candidate in candidates if candidate.is_file()]


def _read_color_table(labels_path: Path, labels: npt.NDArray[np.int64]) -> list[Structure]:
    """Read the structures that voxels have, or that this program listed, from the table beside a label map."""
    tables = _color_tables(labels_path)
    if not tables:
        return []
    path = tables[0]
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
            "Correct the table, or remove it and give the names (with --labels).",
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
    """Read a number, `default` where there is none, and -1, which no number here is, where it is something else."""
    try:
        return default if text is None else int(text)
    except ValueError:
        return -1


def _free_number(taken: set[int]) -> int:
    return next(n for n in range(1, len(taken) + 2) if n not in taken)
