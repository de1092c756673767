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

from tcurlora.errors import InputError, TCurLoraError
from tcurlora.imaging.dicom_labels import dicom_labels_kind, names_in_dicom, read_rtstruct, read_seg
from tcurlora.imaging.grids import geometry_difference, on_grid_of
from tcurlora.imaging.headers import has_sound_header
from tcurlora.imaging.headers.formats import format_of
from tcurlora.imaging.image_warnings import ImageWarning, OnWarning, itk_quiet, unheard
from tcurlora.imaging.images import (
    files_of,
    images_in,
    not_written,
    read_image,
    require_writable_suffix,
    stem,
    suffix,
    without_metadata,
    write_whole,
)
from tcurlora.imaging.label_layers import flattened, has_overlaps, layered_image, layers_of
from tcurlora.imaging.structure_tables import STRUCTURE_COMMENT, first_structure_table, tables_beside
from tcurlora.imaging.structures import Structure, is_background, normalized, require_distinct
from tcurlora.runtime.atomic_files import whole_file

BACKGROUND_LINE = "0 Background 0 0 0 0"

ROUNDED = 0.01
"""How far a label may be from a whole number: saved with a scale factor, 1 may come back as 0.99995."""

_NO_NAMES = ("seg", "segmentation", "segmentations", "label", "labels", "labelmap", "label map", "mask", "gt", "truth")
"""Names of files that are not those of a structure."""


def read_segmentation(
    path: Path, overlaps: bool = False, scan: sitk.Image | None = None, on_warning: OnWarning = unheard
) -> tuple[sitk.Image, list[Structure]]:
    """Read a label map and the structures that its file, a table beside it, or the names of its files tell.

    Names come from the segments of a .seg.nrrd or of a DICOM segmentation, from the structures of an RTSTRUCT, from the
    names of files where a folder holds one mask for each structure, or from a table beside the file (see
    `tables_beside`). Segments in several layers are merged into one label map; where two layers use one number, the
    later one gets a free number. What a file calls background becomes background.

    Args:
        path: the file, or a folder with one file for each structure or with a DICOM series of labels.
        overlaps: whether segments may overlap. Where they do, the labels have several layers (see `label_layers`).
        scan: what was labeled; only an RTSTRUCT, which has no voxels of its own, cannot be read without it.
        on_warning: is told of what was odd, and how it was read.

    Returns:
        The labels as unsigned 16 bit (32 bit signed where a value needs it), and the named structures, which are none
        where the file has no names. One called `ignore` may be among them.

    Raises:
        InputError: as `read_image`; or when values are not whole numbers from 0 on, segments overlap and must not, or
            two structures share a name.
    """
    path = Path(path)
    if path.is_dir():
        parts = _label_files(path)
        if parts:
            return _read_parts(path, parts, overlaps, scan, on_warning)
    kind = dicom_labels_kind(path)
    if kind:
        return _read_dicom_labels(path, kind, overlaps, scan)
    image = read_image(path, on_warning)
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
        labels = _whole_numbers(voxels, path, on_warning)
        structures = _structures_beside(path, labels)
        for nothing in (structure for structure in structures if is_background(structure.name)):
            labels[labels == nothing.value] = 0
        structures = [structure for structure in structures if not is_background(structure.name)]
        layers = [labels]
    require_distinct(structures, str(path))
    return _label_image(layers, image), structures


def names_of_structures(path: Path) -> list[str]:
    """Return the names that a segmentation gives to its structures, as far as they can be had without its voxels."""
    if path.is_dir():
        return [name for part in _label_files(path) for name in (names_in_dicom(part) or [stem(part)])]
    if dicom_labels_kind(path):
        return names_in_dicom(path)
    try:
        if format_of(path) == "nrrd" and has_sound_header(path):
            with itk_quiet():
                reader = sitk.ImageFileReader()
                reader.SetFileName(str(path))
                reader.ReadImageInformation()
                segments = _header_segments(reader)
            if segments:
                return [segment.name for segment in segments]
        found = first_structure_table(path)
    except (RuntimeError, TCurLoraError):
        return []
    return [structure.name for structure in found[1]] if found else []


def dicom_parts(path: Path) -> dict[Path, str]:
    """Return which files of a segmentation are DICOM labels, and whether they are `SEG` or `RTSTRUCT`."""
    files = _label_files(path) if path.is_dir() else [path]
    return {file: kind for file in files if (kind := dicom_labels_kind(file))}


def _label_files(folder: Path) -> list[Path]:
    """Return the files of a folder that each hold some of the structures; none where it holds a DICOM series."""
    files = [file for file in files_of(folder) if dicom_labels_kind(file)]
    others = [file for file in images_in(folder) if file not in files]
    return sorted(files + others) if any(suffix(file) != ".dcm" for file in others) or (files and not others) else files


def _read_parts(
    folder: Path, parts: Sequence[Path], overlaps: bool, scan: sitk.Image | None, on_warning: OnWarning
) -> tuple[sitk.Image, list[Structure]]:
    """Read a folder with one file for each structure, as TotalSegmentator and others write it."""
    if len(parts) == 1 and (normalized(stem(parts[0])) in _NO_NAMES or stem(parts[0]) == folder.name):
        return read_segmentation(parts[0], overlaps, scan, on_warning)
    stack: _Stack | None = None
    for part in parts:
        labels, own = read_segmentation(part, overlaps, scan, on_warning)
        if stack is None:
            stack = _Stack(folder, labels, overlaps)
        elif geometry_difference(labels, stack.geometry) is not None:
            placed = on_grid_of(labels, stack.geometry)
            if placed is None:
                raise InputError(
                    f"The files '{parts[0].name}' and '{part.name}' in {folder} do not lie on the same grid: "
                    f"{geometry_difference(labels, stack.geometry)}.",
                    "Give all structures of a case in the geometry of its scan.",
                    "geometry_mismatch",
                )
            labels = placed
        layers = layers_of(labels)
        values = sorted({int(value) for layer in layers for value in np.unique(layer)} - {0})
        if not own and len(values) > 1 and len(parts) == 1:
            return labels, own
        if not own and len(values) > 1:
            raise InputError(
                f"'{part.name}' in {folder} holds {len(values)} labels, but a file for each structure has one.",
                "Give one label map for the whole case, or one file with one label for each structure.",
                "several_labels",
            )
        named = own or [Structure(_without_case(stem(part), folder.name), values[0] if values else 1)]
        for structure in named:
            if not is_background(structure.name):
                mask = np.logical_or.reduce([layer == structure.value for layer in layers])
                stack.add(structure.name, mask, structure.color, structure.terminology)
    assert stack is not None
    return stack.image(), stack.structures


def _without_case(name: str, case: str) -> str:
    """Name a structure by its file, without the name of the case that some programs put before it."""
    rest = name.removeprefix(case).lstrip("_-. ") if name.startswith(case) else name
    return rest or name


def _read_dicom_labels(
    path: Path, kind: str, overlaps: bool, scan: sitk.Image | None
) -> tuple[sitk.Image, list[Structure]]:
    if kind == "SEG":
        masks, geometry = read_seg(path)
    elif scan is None:
        raise InputError(
            f"{path} holds contours (DICOM RTSTRUCT), which are voxels only together with their scan.",
            "Load both in 3D Slicer, and save the segmentation as .seg.nrrd.",
            "needs_scan",
        )
    else:
        masks, geometry = read_rtstruct(path, scan), scan
    stack = _Stack(path, geometry, overlaps)
    for mask in masks:
        if not is_background(mask.name):
            stack.add(mask.name, mask.mask, mask.color)
    return stack.image(), stack.structures


class _Stack:
    """Collects masks in one label map, or in as many layers as they need where they may overlap."""

    def __init__(self, path: Path, geometry: sitk.Image, overlaps: bool) -> None:
        self.path, self.geometry, self.overlaps = path, geometry, overlaps
        self.layers: list[npt.NDArray[np.int64]] = [np.zeros(geometry.GetSize()[::-1], np.int64)]
        self.structures: list[Structure] = []

    def add(
        self,
        name: str,
        mask: npt.NDArray[np.bool_],
        color: tuple[float, float, float] | None = None,
        terminology: str | None = None,
    ) -> None:
        """Add a structure under the next number."""
        target = next((layer for layer in self.layers if not layer[mask].any()), None)
        if target is None and not self.overlaps:
            met = self.layers[0][mask]
            value, count = next(zip(*np.unique(met[met > 0], return_counts=True), strict=True))
            raise InputError(
                f"In {self.path} '{name}' and '{self.structures[int(value) - 1].name}' overlap in {int(count)} voxels, "
                "but a voxel can belong to one structure only.",
                "Leave one of them out, or load them in 3D Slicer and correct them with 'Overwrite all'.",
                "overlapping_segments",
            )
        if target is None:
            target = np.zeros_like(self.layers[0])
            self.layers.append(target)
        self.structures.append(Structure(name, len(self.structures) + 1, color, terminology))
        target[mask] = len(self.structures)

    def image(self) -> sitk.Image:
        """Return the label map."""
        require_distinct(self.structures, str(self.path))
        return _label_image(self.layers, self.geometry)


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
    return [*files_of(path), *([] if path.is_dir() else tables_beside(path))]


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


def _header_segments(image: sitk.Image | sitk.ImageFileReader) -> list[_Segment]:
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


def _whole_numbers(voxels: npt.NDArray[Any], path: Path, on_warning: OnWarning = unheard) -> npt.NDArray[np.int64]:
    if voxels.dtype.kind == "f":
        finite = bool(np.isfinite(voxels).all())
        whole = np.rint(voxels)
        away = float(np.abs(voxels - whole).max(initial=0.0)) if finite else np.inf
        if away > ROUNDED:
            raise InputError(
                f"The segmentation {path} holds values that are not whole numbers.",
                "Give the label map, not the scan or a probability map; resample labels with nearest neighbour.",
                "not_labels",
            )
        if away > 0:
            example = float(voxels[voxels != whole].flat[0])
            message = f"The segmentation {path} holds values that are nearly whole numbers, such as {example:.7g}"
            message += f", because it was saved with a scale factor. It was read as {round(example)}."
            on_warning(ImageWarning("rounded_labels", message, "Save labels as whole numbers."))
        voxels = whole
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


def _structures_beside(labels_path: Path, labels: npt.NDArray[np.int64]) -> list[Structure]:
    """Read the structures that voxels have, or that this program listed, from the table beside a label map."""
    if labels_path.is_dir():
        return []
    found = first_structure_table(labels_path)
    if found is None:
        return []
    listed = {structure.value: structure for structure in found[1]}
    detailed = {structure.value: structure for structure in found[2]}
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
