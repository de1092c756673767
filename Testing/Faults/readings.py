"""Second opinions: small readers of their own for what the engine reads with SimpleITK, safetensors and own code."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

DTYPES = {
    "signed char": "i1",
    "int8": "i1",
    "int8_t": "i1",
    "uchar": "u1",
    "unsigned char": "u1",
    "uint8": "u1",
    "uint8_t": "u1",
    "short": "i2",
    "short int": "i2",
    "signed short": "i2",
    "int16": "i2",
    "int16_t": "i2",
    "ushort": "u2",
    "unsigned short": "u2",
    "uint16": "u2",
    "uint16_t": "u2",
    "int": "i4",
    "int32": "i4",
    "uint": "u4",
    "unsigned int": "u4",
    "uint32": "u4",
    "longlong": "i8",
    "int64": "i8",
    "uint64": "u8",
    "float": "f4",
    "double": "f8",
}
META_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
}


class Reading(NamedTuple):
    """Voxels as (z, y, x) or (z, y, x, component), and the places that its geometry may be understood to mean.

    Each of `affines` is 4 x 4, from index to left-posterior-superior mm; a NIfTI file may hold two.
    """

    voxels: np.ndarray
    affines: list[np.ndarray]
    header: dict[str, str]


class Unreadable(Exception):
    """This reader makes nothing of the file."""


def read(path: Path) -> Reading:
    """Read a NIfTI, NRRD or MHA file independently.

    Raises:
        Unreadable: when it cannot.
    """
    name = path.name.lower()
    reader = _nifti if ".nii" in name else _nrrd if name.endswith(".nrrd") else _meta_image
    try:
        return reader(path)
    except Unreadable:
        raise
    except Exception as error:
        raise Unreadable(f"{type(error).__name__}: {error}") from error


def _nifti(path: Path) -> Reading:
    import nibabel

    raw = path.read_bytes()
    raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    image = nibabel.Nifti1Image.from_bytes(raw)
    header = image.header
    voxels = np.asarray(image.dataobj)
    if voxels.dtype.kind == "f":
        voxels = np.where(np.isfinite(voxels), voxels, 0)  # as every program does that reads with ITK
    if voxels.dtype.names:
        voxels = np.stack([voxels[name] for name in voxels.dtype.names], -1)  # colors
        return Reading(voxels.transpose(2, 1, 0, 3), _nifti_affines(header), {})
    while voxels.ndim > 3 and voxels.shape[-1] == 1:
        voxels = voxels[..., 0]
    return Reading(voxels.transpose(2, 1, 0), _nifti_affines(header), {})


def _nifti_affines(header: Any) -> list[np.ndarray]:
    """All that the header may mean, in left-posterior-superior mm."""
    ways = (header.get_sform, header.get_qform, header.get_base_affine)
    return [np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.asarray(way(), float) for way in ways]


def read_frames(path: Path) -> Reading:
    """Read a multi-frame DICOM file with pydicom: the frames in the order of their places, each with its factors.

    Raises:
        Unreadable: when it cannot, or the frames are not one even stack.
    """
    import warnings

    import pydicom

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(path, force=True)
            shared = dataset.SharedFunctionalGroupsSequence[0]
            frames = list(dataset.PerFrameFunctionalGroupsSequence)

            def value(frame: Any, group: str, keyword: str, default: Any = None) -> Any:
                for source in (frame, shared):
                    if source.get(group):
                        return source[group].value[0].get(keyword, default)
                return default

            places = [[float(x) for x in value(f, "PlanePositionSequence", "ImagePositionPatient")] for f in frames]
            turns = [
                [float(x) for x in value(f, "PlaneOrientationSequence", "ImageOrientationPatient")] for f in frames
            ]
            sizes = [[float(x) for x in value(f, "PixelMeasuresSequence", "PixelSpacing")] for f in frames]
            scale = "PixelValueTransformationSequence"
            slopes = [float(value(f, scale, "RescaleSlope", None) or dataset.get("RescaleSlope", 1)) for f in frames]
            plus = [
                float(value(f, scale, "RescaleIntercept", None) or dataset.get("RescaleIntercept", 0)) for f in frames
            ]
            stored = dataset.pixel_array.astype(float).reshape(len(frames), dataset.Rows, dataset.Columns)
            if dataset.PhotometricInterpretation == "MONOCHROME1":
                stored = (-1 if dataset.PixelRepresentation else 2**dataset.BitsStored - 1) - stored
    except Exception as error:
        raise Unreadable(f"{type(error).__name__}: {error}") from error
    row, column = np.array(turns[0][:3]), np.array(turns[0][3:])
    normal = np.cross(row, column)
    order = sorted(range(len(frames)), key=lambda index: float(np.array(places[index]) @ normal))
    voxels = np.stack([stored[index] * slopes[index] + plus[index] for index in order])
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = row * sizes[0][1], column * sizes[0][0]
    depths = [float(np.array(place) @ normal) for place in places]
    beside = np.median([np.array(place) - depth * normal for place, depth in zip(places, depths, strict=True)], axis=0)
    step = (max(depths) - min(depths)) / max(1, len(frames) - 1)
    affine[:3, 2], affine[:3, 3] = step * normal, beside + min(depths) * normal
    even = [affine[:3, 3] + number * affine[:3, 2] for number in range(len(frames))]
    if max(float(np.abs(np.array(places[i]) - place).max()) for i, place in zip(order, even, strict=True)) > 0.5:
        raise Unreadable("frames that are not one even stack")
    return Reading(voxels, [affine], {})


def _nrrd(path: Path) -> Reading:
    raw = path.read_bytes()
    text, found, body = raw.partition(b"\n\n")
    if not found or not text.startswith(b"NRRD"):
        raise Unreadable("no NRRD")
    fields: dict[str, str] = {}
    for line in text.decode("utf-8", "replace").replace("\r", "").split("\n")[1:]:
        if line.startswith("#"):
            continue
        match = re.match(r"([^:]+):=?\s*(.*)", line)
        if match:
            fields[match.group(1).strip()] = match.group(2).strip()
    sizes = [int(word) for word in fields["sizes"].split()]
    order = ">" if fields.get("endian", "little") == "big" else "<"
    dtype = np.dtype(order + DTYPES[fields["type"]])
    if fields["encoding"] in ("gzip", "gz"):
        body = zlib.decompressobj(31).decompress(body)
    elif fields["encoding"] != "raw":
        raise Unreadable("encoding")
    count = int(np.prod(sizes))
    flat = np.frombuffer(body, dtype, count)
    directions = re.findall(r"\(([^)]*)\)|(none)", fields["space directions"])
    vectors = [np.array([float(x) for x in v.split(",")]) for v, none in directions if not none]
    places = [i for i, (v, none) in enumerate(directions) if not none]
    affine = np.eye(4)
    affine[:3, :3] = np.stack(vectors, 1)
    affine[:3, 3] = [float(x) for x in fields.get("space origin", "(0,0,0)").strip("()").split(",")]
    flips = {
        "left-posterior-superior": [1, 1, 1],
        "LPS": [1, 1, 1],
        "right-anterior-superior": [-1, -1, 1],
        "RAS": [-1, -1, 1],
        "left-anterior-superior": [1, -1, 1],
        "LAS": [1, -1, 1],
    }
    affine = np.diag([*flips[fields["space"].replace("Left", "left")], 1.0]) @ affine
    voxels = flat.reshape(sizes, order="F")
    others = [i for i in range(len(sizes)) if i not in places]
    voxels = voxels.transpose([*reversed(places), *others])
    return Reading(voxels, [affine], fields)


def _meta_image(path: Path) -> Reading:
    raw = path.read_bytes()
    match = re.match(rb"(?s)(.*?)^ElementDataFile\s*=\s*LOCAL\r?\n", raw, re.MULTILINE)
    if match is None:
        raise Unreadable("no header")
    pairs = (line.partition("=") for line in match.group(1).decode("utf-8", "replace").split("\n"))
    fields = {key.strip(): value.strip() for key, found, value in pairs if found}
    sizes = [int(word) for word in fields["DimSize"].split()]
    channels = int(fields.get("ElementNumberOfChannels", "1"))
    order = ">" if fields.get("BinaryDataByteOrderMSB", "False") == "True" else "<"
    dtype = np.dtype(order + META_TYPES[fields["ElementType"]])
    body = raw[match.end() :]
    if fields.get("CompressedData", "False") == "True":
        body = zlib.decompressobj(15).decompress(body)
    flat = np.frombuffer(body, dtype, int(np.prod(sizes)) * channels)
    affine = np.eye(4)
    matrix = np.array([float(x) for x in fields.get("TransformMatrix", "1 0 0 0 1 0 0 0 1").split()]).reshape(3, 3).T
    affine[:3, :3] = matrix * np.array([float(x) for x in fields["ElementSpacing"].split()])
    affine[:3, 3] = [float(x) for x in fields.get("Offset", "0 0 0").split()]
    shape = (*sizes[::-1], channels) if channels > 1 else tuple(sizes[::-1])
    return Reading(flat.reshape(shape), [affine], fields)


def read_dicom_labels(path: Path, scan: Any) -> list[tuple[str, np.ndarray]]:
    """Read the structures of a DICOM segmentation or structure set as (z, y, x) masks of their scan, by hand.

    Raises:
        Unreadable: when it cannot.
    """
    import pydicom

    try:
        dataset = pydicom.dcmread(path)
        return _segments(dataset, scan) if "SegmentSequence" in dataset else _contours(dataset, scan)
    except Exception as error:
        raise Unreadable(f"{type(error).__name__}: {error}") from error


def _segments(dataset: Any, scan: Any) -> list[tuple[str, np.ndarray]]:
    names = {int(item.SegmentNumber): str(item.SegmentLabel).strip() for item in dataset.SegmentSequence}
    masks = {number: np.zeros(scan.GetSize()[::-1], bool) for number in names}
    rows, columns, count = int(dataset.Rows), int(dataset.Columns), int(dataset.NumberOfFrames)
    bits = np.unpackbits(np.frombuffer(dataset.PixelData, np.uint8), bitorder="little")
    frames = bits[: rows * columns * count].reshape(count, rows, columns)
    for frame, item in zip(frames, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        number = int(item.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        place = [float(value) for value in item.PlanePositionSequence[0].ImagePositionPatient]
        index = scan.TransformPhysicalPointToIndex(place)
        masks[number][index[2], index[1] : index[1] + rows, index[0] : index[0] + columns] |= frame > 0
    return [(name, masks[number]) for number, name in names.items()]


def _contours(dataset: Any, scan: Any) -> list[tuple[str, np.ndarray]]:
    from matplotlib.path import Path as Polygon

    names = {int(item.ROINumber): str(item.ROIName).strip() for item in dataset.StructureSetROISequence}
    columns, rows, _ = scan.GetSize()
    grid = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), -1).reshape(-1, 2)
    found = []
    for item in dataset.ROIContourSequence:
        mask = np.zeros(scan.GetSize()[::-1], bool)
        for contour in item.get("ContourSequence", ()):
            points = np.array([float(value) for value in contour.ContourData]).reshape(-1, 3)
            indices = np.array([scan.TransformPhysicalPointToContinuousIndex(point.tolist()) for point in points])
            corners = np.concatenate([indices[:, :2], indices[:1, :2]])
            inside = Polygon(corners, closed=True).contains_points(grid).reshape(rows, columns)
            mask[round(float(indices[:, 2].mean()))] ^= inside
        found.append((names[int(item.ReferencedROINumber)], mask))
    return found


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Read float32 and int64 tensors by hand.

    Raises:
        Unreadable: when the file is anything else.
    """
    kinds = {
        "F32": "<f4",
        "I64": "<i8",
        "I32": "<i4",
        "F64": "<f8",
        "F16": "<f2",
        "U8": "u1",
        "BOOL": "?",
        "I16": "<i2",
    }
    try:
        raw = path.read_bytes()
        length = int.from_bytes(raw[:8], "little")
        header: dict[str, Any] = json.loads(raw[8 : 8 + length])
        body = raw[8 + length :]
        found = {}
        for name, entry in header.items():
            if name != "__metadata__":
                start, end = entry["data_offsets"]
                found[name] = np.frombuffer(body[start:end], kinds[entry["dtype"]]).reshape(entry["shape"])
        return found
    except Exception as error:
        raise Unreadable(str(error)) from error
