"""Volumes and labels of the scene, written to files as the engine reads them.

A volume is written in its own frame, without its parent transforms. Labels are brought into that frame through the
transforms of both nodes, onto the voxels of the volume. The scene is only read: no node is added or changed.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
import slicer
import vtk
from slicer.i18n import tr as _
from vtk.util.numpy_support import vtk_to_numpy

from TCurLoraSegmentLib.errors import UserError
from TCurLoraSegmentLib.scene_cases import CasePair, SceneStructure, is_uncorrected, structures_of
from TCurLoraSegmentLib.scene_labels import (
    BACKGROUND,
    Label,
    LabelLayer,
    has_binary_labels,
    is_label_node,
    labels_of,
    layers_of,
    normalized,
    segmentation_layers,
    terminology_key,
)
from TCurLoraSegmentLib.scene_subjects import subjects_of
from TCurLoraSegmentLib.scene_volumes import Geometry, Matrix, geometry_of, volume_problem

__all__ = [
    "CaseExport",
    "CaseProblem",
    "ExportedCase",
    "Geometry",
    "export_cases",
    "export_labels",
    "export_volume",
    "volume_problem",
]

_TABLE_SIZE = 2**16
_LATTICE = 13
_COUNTED = 100_000


@dataclass(frozen=True)
class ExportedCase:
    """A case in files; `label` is None for a volume without labels."""

    name: str
    image: Path
    label: Path | None
    geometry: Geometry


@dataclass(frozen=True)
class CaseProblem:
    """Why a pair of nodes could not be written as a case, or what was lost of it."""

    pair: CasePair
    message: str
    remedy: str


@dataclass(frozen=True)
class CaseExport:
    """A folder of cases for the engine.

    Attributes:
        folder: with images/, labels/, dataset.json and cases.csv.
        cases: what was written.
        structures: what the labels are; the first has the value 1, and so on.
        node_names: name of each case to the name of its volume, for the eyes of the user only.
        problems: what could not be written, and why.
        warnings: what the user should know about cases that were written.
    """

    folder: Path
    cases: tuple[ExportedCase, ...]
    structures: tuple[SceneStructure, ...]
    node_names: Mapping[str, str]
    problems: tuple[CaseProblem, ...]
    warnings: tuple[CaseProblem, ...] = ()


def export_volume(volume_node: slicer.vtkMRMLScalarVolumeNode, path: Path) -> Geometry:
    """Write a volume to a file.

    Args:
        volume_node: scan with one value in each voxel; its parent transforms are left out.
        path: file to write, ending in .nrrd; it then holds the whole scan or what it held before.

    Returns:
        The geometry of the volume, to which a result must fit.

    Raises:
        UserError: when the volume cannot be used or the file cannot be written.
    """
    problem = volume_problem(volume_node)
    if problem:
        raise UserError(problem)
    geometry = geometry_of(volume_node)
    _write(slicer.util.arrayFromVolume(volume_node), geometry, Path(path), {})
    return geometry


def export_labels(
    labels_node: slicer.vtkMRMLNode,
    volume_node: slicer.vtkMRMLScalarVolumeNode,
    path: Path,
    values: Mapping[str, int],
) -> int:
    """Write labels on the voxels of a volume, wherever and however finely they were drawn.

    Args:
        labels_node: segmentation, whose segments may be voxels or surfaces, or label map; hidden segments count.
        volume_node: the scan that they belong to.
        path: file to write; a .seg.nrrd also carries names, colors and terminology.
        values: name of a structure to its value in the file. Several names may have one value, of which the file
            gets the first; segments of other names are left out.

    Returns:
        How many voxels of the labels lie outside of the volume, and so are not in the file.

    Raises:
        UserError: when a node cannot be used, structures overlap, two segments of one name mean different
            structures, the labels lie outside of the volume, or the file cannot be written.
    """
    return _export_labels(labels_node, volume_node, path, values, None)


def export_cases(
    pairs: Sequence[CasePair],
    folder: Path,
    names: Sequence[str] | None = None,
    leave_out: Collection[str] = (),
    progress: Callable[[int, int], None] | None = None,
    structure_names: Mapping[str, str] | None = None,
    subjects: Mapping[CasePair, str] | None = None,
) -> CaseExport:
    """Write labeled cases as a folder that the engine reads.

    No name of a node or patient goes into the folder; segments keep their names. A case that cannot be written does
    not stop the others.

    Args:
        pairs: the cases.
        folder: where to write; made if it is missing.
        names: name of each case; `case-01`, `case-02`, ... when None.
        leave_out: names of structures that are not written.
        progress: called before each case with its number, from 0 on, and their count, and once at the end.
        structure_names: what the user calls a label, by its name in the scene.
        subjects: what the user calls the person of a case; the scene tells those that are not named.

    Raises:
        UserError: when there are no cases, or nothing can be written to the folder.
    """
    if not pairs:
        raise UserError(_("There are no labeled cases."), _("Add pairs of a volume and a segmentation."))
    folder = Path(folder)
    digits = max(2, len(str(len(pairs))))
    case_names = list(names or (f"case-{number:0{digits}d}" for number in range(1, len(pairs) + 1)))
    structures = tuple(s for s in structures_of(pairs, structure_names) if s.name not in leave_out)
    values = {alias: value for value, s in enumerate(structures, start=1) for alias in s.aliases}
    described = [Label(s.name, s.color, s.terminology, s.cases > 0) for s in structures]
    with _writing(folder):
        for part in ("images", "labels"):
            (folder / part).mkdir(parents=True, exist_ok=True)
    cases: list[ExportedCase] = []
    problems: list[CaseProblem] = []
    warnings: list[CaseProblem] = []
    written: dict[str, tuple[CasePair, Any]] = {}
    unreviewed: set[str] = set()
    node_names: dict[str, str] = {}
    for number, (name, pair) in enumerate(zip(case_names, pairs, strict=True)):
        if progress is not None:
            progress(number, len(pairs))
        volume, labels = (slicer.mrmlScene.GetNodeByID(node_id) for node_id in (pair.volume_id, pair.labels_id))
        image, label = folder / "images" / f"{name}.nrrd", folder / "labels" / f"{name}.seg.nrrd"
        try:
            lost = _export_labels(labels, volume, label, values, described)
            geometry = export_volume(volume, image)
        except UserError as error:
            label.unlink(missing_ok=True)
            problems.append(CaseProblem(pair, error.message, error.remedy))
            continue
        if lost:
            warnings.append(CaseProblem(pair, *_cut(labels, volume, lost)))
        cases.append(ExportedCase(name, image, label, geometry))
        node_names[name] = volume.GetName()
        written[name] = (pair, volume)
        unreviewed |= {name} if is_uncorrected(labels) else set()
    given = [(subjects or {}).get(pair, "") for pair, _volume in written.values()]
    people = [subject.key for subject in subjects_of([volume for _pair, volume in written.values()], given)]
    known = list(dict.fromkeys(people))
    rows = [
        (name, f"subject-{known.index(person) + 1:0{digits}d}", "model" if name in unreviewed else "person")
        for name, person in zip(written, people, strict=True)
    ]
    declared = {"0": BACKGROUND, **{str(value): s.name for value, s in enumerate(structures, start=1)}}
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([("file", "subject", "labeled_by"), *rows])
    _write_text(folder / "cases.csv", table.getvalue())
    _write_text(folder / "dataset.json", json.dumps({"labels": declared}, ensure_ascii=False, indent=2) + "\n")
    if progress is not None:
        progress(len(pairs), len(pairs))
    return CaseExport(folder, tuple(cases), structures, node_names, tuple(problems), tuple(warnings))


# Labels


def _export_labels(
    labels_node: Any, volume_node: Any, path: Path, values: Mapping[str, int], described: Sequence[Label] | None
) -> int:
    """As `export_labels`; colors and terminology are those of `described` where it is given."""
    problem = volume_problem(volume_node)
    if problem:
        raise UserError(problem)
    if not is_label_node(labels_node) or labels_node.GetScene() is None:
        raise UserError(_("The segmentation is no longer in the scene."), _("Choose another one."))
    _refuse_ambiguous(labels_node)
    value_of = {normalized(name): value for name, value in values.items()}
    geometry = geometry_of(volume_node)
    to_labels = _transform_between(volume_node, labels_node)
    if labels_node.IsA("vtkMRMLSegmentationNode") and not has_binary_labels(labels_node.GetSegmentation()):
        layers = _drawn_on(labels_node, geometry, to_labels)
        to_labels = vtk.vtkTransform()  # they lie in the volume's frame now
    else:
        layers = layers_of(labels_node)
    merged = np.zeros(geometry.size[::-1], _dtype(values.values()))
    overlaps: dict[tuple[int, int], int] = {}
    lost = 0
    for layer in layers:
        wanted = {v: value_of[normalized(m.name)] for v, m in layer.meanings.items() if normalized(m.name) in value_of}
        box = _filled_box(layer)
        if box is None:
            continue
        chain, index = _to_index(layer, geometry, to_labels)
        low, high = _bounds(box, chain)
        for part, voxels in _on_grid(layer, geometry, chain, index, low, high):
            _merge(merged[part], _translated(voxels, wanted, merged.dtype), overlaps)
        if (low < -0.5).any() or (high > np.array(geometry.size) - 0.5).any():
            lost += _count_outside(layer, wanted, box, geometry, chain, index)
    if overlaps:
        raise _overlapping(labels_node, overlaps, values)
    if not merged.any() and any(
        m.filled for layer in layers for m in layer.meanings.values() if normalized(m.name) in value_of
    ):
        raise UserError(
            _("'{labels}' lies outside of the volume '{volume}'.").format(
                labels=labels_node.GetName(), volume=volume_node.GetName()
            ),
            _("Pair it with the volume that it was drawn on, and check the transforms of both."),
        )
    _write(merged, geometry, Path(path), _segment_header(values, described or labels_of(labels_node), geometry))
    return lost


# Frames


def _transform_between(volume: Any, labels: Any) -> vtk.vtkAbstractTransform:
    """From the frame of the volume to that of the labels."""
    source, target = volume.GetParentTransformNode(), labels.GetParentTransformNode()
    general = vtk.vtkGeneralTransform()
    slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(source, target, general)
    linear = vtk.vtkTransform()
    if not slicer.vtkMRMLTransformNode.IsGeneralTransformLinear(general, linear):
        return general
    matrix = slicer.util.arrayFromVTKMatrix(linear.GetMatrix())
    if not np.isfinite(matrix).all() or not 1e-9 < abs(np.linalg.det(matrix[:3, :3])) < 1e9:
        raise UserError(
            _("The transforms of '{volume}' and '{labels}' cannot be inverted.").format(
                volume=volume.GetName(), labels=labels.GetName()
            ),
            _("Correct them in the module 'Transforms'."),
        )
    return linear


def _drawn_on(
    node: slicer.vtkMRMLSegmentationNode, geometry: Geometry, to_labels: vtk.vtkAbstractTransform
) -> list[LabelLayer]:
    """Fill surfaces or contours with the voxels of a volume, in a copy of the segmentation in the volume's frame."""
    copy = slicer.vtkSegmentation()
    copy.DeepCopy(node.GetSegmentation())
    if isinstance(to_labels, vtk.vtkTransform):
        copy.ApplyLinearTransform(to_labels.GetInverse())
    else:
        copy.ApplyNonLinearTransform(to_labels.GetInverse())
    converter = slicer.vtkSegmentationConverter
    extent = [end for n in geometry.size for end in (0, n - 1)]
    grid = converter.SerializeImageGeometry(slicer.util.vtkMatrixFromArray(geometry.matrix), extent)
    copy.SetConversionParameter(converter.GetReferenceImageGeometryParameterName(), grid)
    if not copy.CreateRepresentation(converter.GetSegmentationBinaryLabelmapRepresentationName(), True):
        raise UserError(
            _("The surfaces of '{labels}' cannot be turned into voxels.").format(labels=node.GetName()),
            _("Open it in the module 'Segmentations' and create the representation 'Binary labelmap' there."),
        )
    return segmentation_layers(copy)


def _to_index(
    layer: LabelLayer, geometry: Geometry, to_labels: vtk.vtkAbstractTransform
) -> tuple[vtk.vtkAbstractTransform, Matrix | None]:
    """From an index of a grid to one of a layer, as a transform, and as a matrix where it is linear."""
    into = np.linalg.inv(layer.ijk_to_ras)
    if isinstance(to_labels, vtk.vtkTransform):
        index = into @ slicer.util.arrayFromVTKMatrix(to_labels.GetMatrix()) @ geometry.matrix
        straight = vtk.vtkTransform()
        straight.SetMatrix(index.ravel().tolist())
        return straight, index
    bent = vtk.vtkGeneralTransform()
    bent.PostMultiply()
    bent.Concatenate(geometry.matrix.ravel().tolist())
    bent.Concatenate(to_labels)
    bent.Concatenate(into.ravel().tolist())
    return bent, None


def _on_grid(
    layer: LabelLayer,
    geometry: Geometry,
    chain: vtk.vtkAbstractTransform,
    index: Matrix | None,
    low: Matrix,
    high: Matrix,
) -> Iterator[tuple[tuple[slice, ...], npt.NDArray[Any]]]:
    """Bring a layer onto a grid by nearest neighbour; yield the part of the grid (k, j, i) that it reaches, if any."""
    extent: list[int] = []
    for axis, n in enumerate(geometry.size):
        extent += [max(0, int(np.floor(max(low[axis], 0)))), min(n - 1, int(np.ceil(min(high[axis], n))))]
    if any(extent[a] > extent[a + 1] for a in (0, 2, 4)):
        return
    if index is not None and _is_shift(index, geometry.size):
        yield _pasted(layer, geometry.size, np.rint(index[:3, 3]).astype(int))
    else:
        yield _resampled(layer, extent, chain)


def _is_shift(index: Matrix, size: Sequence[int]) -> bool:
    """Tell whether grids share their voxels, up to where they start and end."""
    ideal = np.eye(4)
    ideal[:3, 3] = np.rint(index[:3, 3])
    return bool((np.abs(index - ideal)[:3] @ [*size, 1]).max() < 1e-2)


def _pasted(
    layer: LabelLayer, size: Sequence[int], shift: npt.NDArray[np.int_]
) -> tuple[tuple[slice, ...], npt.NDArray[Any]]:
    start = np.array(layer.first) - shift  # of the layer's first voxel, on the grid
    here, there = [], []
    for axis in range(3):
        n = layer.voxels.shape[2 - axis]
        low, high = max(0, int(start[axis])), min(size[axis], int(start[axis]) + n)
        here.append(slice(low, high))
        there.append(slice(low - int(start[axis]), high - int(start[axis])))
    return tuple(here[::-1]), layer.voxels[tuple(there[::-1])]


def _filled_box(layer: LabelLayer) -> list[tuple[float, float]] | None:
    """From where to where a layer has labels, along i, j and k, as indices of the faces of voxels; None without any."""
    filled = layer.voxels != 0
    if not filled.any():
        return None
    box = []
    for axis, first in zip((2, 1, 0), layer.first, strict=True):
        used = np.flatnonzero(filled.any(axis=tuple(other for other in range(3) if other != axis)))
        box.append((first + int(used[0]) - 0.5, first + int(used[-1]) + 0.5))
    return box


def _bounds(box: Sequence[tuple[float, float]], to_index: vtk.vtkAbstractTransform) -> tuple[Matrix, Matrix]:
    """From where to where along i, j and k of a grid a layer can have labels; infinite where that is not known.

    A bent transform is slow, and most labels are small. So a lattice in the box is taken to the grid, with a margin
    as wide as its cells become there.
    """
    lattice = np.stack(np.meshgrid(*(np.linspace(*ends, _LATTICE) for ends in box), indexing="ij"), axis=-1)
    back = to_index.GetInverse()
    places = np.array([back.TransformPoint(place) for place in lattice.reshape(-1, 3).tolist()]).reshape(lattice.shape)
    if not np.isfinite(places).all():
        return np.full(3, -np.inf), np.full(3, np.inf)
    margin = 1 + np.max([np.abs(np.diff(places, axis=axis)).max(axis=(0, 1, 2)) for axis in range(3)], axis=0)
    return places.min(axis=(0, 1, 2)) - margin, places.max(axis=(0, 1, 2)) + margin


def _count_outside(
    layer: LabelLayer,
    wanted: Collection[int],
    box: Sequence[tuple[float, float]],
    geometry: Geometry,
    to_index: vtk.vtkAbstractTransform,
    index: Matrix | None,
) -> int:
    """Count the voxels of a layer that are labeled and have their centre in no voxel of a grid."""
    back, inverse = None if index is None else np.linalg.inv(index), to_index.GetInverse()

    def inside(places: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        if back is not None:
            there = places @ back[:3, :3].T + back[:3, 3]
        else:
            there = np.array([inverse.TransformPoint(place) for place in places.tolist()]).reshape(-1, 3)
        result: npt.NDArray[np.bool_] = ((there > -0.501) & (there < np.array(geometry.size) - 0.499)).all(axis=1)
        return result

    if back is not None and inside(np.array([*itertools.product(*box)])).all():
        return 0
    labeled = np.isin(layer.voxels, list(wanted))
    # A bent transform is so slow that of many voxels some stand for all.
    step = 1 if back is not None else max(1, int(np.count_nonzero(labeled)) // _COUNTED)
    outside = 0
    for k, plane in enumerate(labeled):  # by slice, because places take much more memory than voxels
        j, i = np.nonzero(plane)
        places = np.stack([i, j, np.full_like(i, k)], axis=1)[::step] + np.array(layer.first)
        outside += step * int((~inside(places)).sum())
    return outside


def _resampled(
    layer: LabelLayer, extent: Sequence[int], to_index: vtk.vtkAbstractTransform
) -> tuple[tuple[slice, ...], npt.NDArray[Any]]:
    """Look up the label at each voxel of a box; `to_index` takes an index of the grid to one of the layer."""
    plain = vtk.vtkImageData()
    plain.ShallowCopy(layer.image)
    plain.SetOrigin(0, 0, 0)
    plain.SetSpacing(1, 1, 1)
    reslice = vtk.vtkImageReslice()
    reslice.SetInputData(plain)
    reslice.SetResliceTransform(to_index)
    reslice.SetInterpolationModeToNearestNeighbor()
    reslice.SetOutputOrigin(0, 0, 0)
    reslice.SetOutputSpacing(1, 1, 1)
    reslice.SetOutputExtent(*extent)
    reslice.SetBackgroundLevel(0)
    reslice.Update()
    output = reslice.GetOutput()
    voxels = vtk_to_numpy(output.GetPointData().GetScalars()).reshape(output.GetDimensions()[::-1])
    part = tuple(slice(extent[a], extent[a + 1] + 1) for a in (4, 2, 0))
    return part, voxels.copy()  # the array of VTK ends with the filter


# Values


def _dtype(values: Any) -> type[np.unsignedinteger | np.signedinteger]:
    highest = max(values, default=0)
    return np.uint8 if highest < 2**8 else np.uint16 if highest < 2**16 else np.int32


def _translated(voxels: npt.NDArray[Any], wanted: Mapping[int, int], dtype: Any) -> npt.NDArray[Any]:
    """Replace the values of a layer by those of the file; all others become 0."""
    if voxels.dtype.kind == "u" and voxels.dtype.itemsize <= 2:
        table = np.zeros(2 ** (8 * voxels.dtype.itemsize), dtype)
        for value, target in wanted.items():
            if value < len(table):
                table[value] = target
        return table[voxels]
    result = np.zeros(voxels.shape, dtype)
    if voxels.dtype.kind == "i" and max(wanted, default=0) < _TABLE_SIZE:
        table = np.zeros(_TABLE_SIZE, dtype)
        for value, target in wanted.items():
            table[value] = target
        inside = (voxels >= 0) & (voxels < _TABLE_SIZE)
        result[inside] = table[voxels[inside]]
        return result
    for value, target in wanted.items():
        result[voxels == value] = target
    return result


def _merge(merged: npt.NDArray[Any], labels: npt.NDArray[Any], overlaps: dict[tuple[int, int], int]) -> None:
    """Lay labels over what is there already, and count the voxels in which two structures meet."""
    if not merged.any():
        merged[...] = labels
        return
    mask = labels != 0
    there, new = merged[mask], labels[mask]
    clash = (there != 0) & (there != new)
    ends = np.sort(np.stack([there[clash], new[clash]]), axis=0)
    for (a, b), count in zip(*(part.tolist() for part in np.unique(ends.T, axis=0, return_counts=True)), strict=True):
        overlaps[a, b] = overlaps.get((a, b), 0) + count
    merged[mask] = new


def _cut(labels: Any, volume: Any, lost: int) -> tuple[str, str]:
    return (
        _("{count} labeled voxels of '{labels}' lie outside of the volume '{volume}' and are left out.").format(
            count=lost, labels=labels.GetName(), volume=volume.GetName()
        ),
        _("Check that it was drawn on this volume, and the transforms of both."),
    )


def _overlapping(node: Any, overlaps: Mapping[tuple[int, int], int], values: Mapping[str, int]) -> UserError:
    name_of = {value: name for name, value in reversed(list(values.items()))}
    places = [
        _("'{a}' and '{b}' in {count} voxels").format(a=name_of[a], b=name_of[b], count=count)
        for (a, b), count in sorted(overlaps.items())
    ]
    return UserError(
        _("Segments of '{labels}' overlap, but a voxel can belong to one structure only: {places}.").format(
            labels=node.GetName(), places="; ".join(places)
        ),
        _("In the Segment Editor set 'Modify other segments' to 'Overwrite all' and correct them."),
    )


def _refuse_ambiguous(node: Any) -> None:
    """Refuse segments of one name whose terminology says that they are not the same."""
    meanings: dict[str, set[tuple[str, ...]]] = {}
    for label in labels_of(node):
        key = terminology_key(label.terminology)
        if key is not None:
            meanings.setdefault(normalized(label.name), set()).add(key)
        if len(meanings.get(normalized(label.name), ())) > 1:
            raise UserError(
                _("'{labels}' has two segments '{name}' whose terminology differs.").format(
                    labels=node.GetName(), name=label.name
                ),
                _("Rename one of them, for example to tell left from right."),
            )


# Files


def _segment_header(values: Mapping[str, int], labels: Sequence[Label], geometry: Geometry) -> dict[str, str]:
    """Header fields of a .seg.nrrd, by which Slicer and the engine know the segments; all share one layer."""
    extent = " ".join(f"0 {n - 1}" for n in geometry.size)
    header = {
        "Segmentation_MasterRepresentation": "Binary labelmap",
        "Segmentation_ReferenceImageExtentOffset": "0 0 0",
    }
    names: dict[int, str] = {}
    for name, value in values.items():
        names.setdefault(value, name)
    own = {normalized(label.name): label for label in reversed(labels)}
    for number, (value, name) in enumerate(sorted(names.items())):
        aliases = [alias for alias, other in values.items() if other == value]
        label = next((own[normalized(alias)] for alias in aliases if normalized(alias) in own), None)
        fields = {
            "ID": f"Segment_{value}",
            "Name": name,
            "LabelValue": str(value),
            "Layer": "0",
            "Extent": extent,
        }
        if label is not None:
            fields["Color"] = " ".join(repr(part) for part in label.color)
            if label.terminology:
                fields["Tags"] = f"TerminologyEntry:{label.terminology.replace('|', ' ')}|"
        header |= {f"Segment{number}_{key}": text for key, text in fields.items()}
    return header


def _write(voxels: npt.NDArray[Any], geometry: Geometry, path: Path, header: Mapping[str, str]) -> None:
    """Write an image uncompressed, so that the path holds either what it held before or the whole new file."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(voxels))
    geometry.apply_to(image)
    if path.name.endswith(".seg.nrrd"):
        for key, text in header.items():
            image.SetMetaData(key, text)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")  # the same ending, by which ITK picks the format
    with _writing(path):
        try:
            sitk.WriteImage(image, str(temporary), useCompression=False)
            if temporary.stat().st_size < voxels.nbytes:  # ITK does not notice a disk that fills up
                raise OSError
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    with _writing(path):
        try:
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn what goes wrong when a file is written into a sentence."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        folder = next((one for one in (path, *path.parents) if one.is_dir()), Path(path.anchor or "."))
        if not os.access(folder, os.W_OK):
            raise UserError(
                _("'{path}' cannot be written: the folder '{folder}' is write-protected.").format(
                    path=path, folder=folder
                ),
                _("Choose a folder in which you may write."),
            ) from error
        free = shutil.disk_usage(folder).free / 1e6
        raise UserError(
            _("'{path}' cannot be written ({free:.0f} MB are free on that disk).").format(path=path, free=free),
            _("Make room on the disk, or choose another folder with a shorter path."),
        ) from error
