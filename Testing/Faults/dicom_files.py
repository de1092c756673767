"""DICOM scans as scanners and archives write them: series of slices, and multi-frame objects of several kinds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    LegacyConvertedEnhancedMRImageStorage,
    MRImageStorage,
    NuclearMedicineImageStorage,
    generate_uid,
)

MR, ENHANCED_MR, ENHANCED_CT = MRImageStorage, EnhancedMRImageStorage, EnhancedCTImageStorage
LEGACY_MR, NUCLEAR = LegacyConvertedEnhancedMRImageStorage, NuclearMedicineImageStorage
AXIAL = (1, 0, 0, 0, 1, 0)


def volume(slices: int = 8, rows: int = 6, columns: int = 7, seed: int = 0) -> np.ndarray:
    """Stored values as (slice, row, column)."""
    return (np.random.default_rng(seed).random((slices, rows, columns)) * 1000).astype(np.int16)


def picture(values: np.ndarray, kind: str, **elements: Any) -> Dataset:
    """Make an object with pixels; elements by keyword, None to leave one out."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = kind
    entropy = [kind, str(elements), values.tobytes().hex()]
    uid = elements.pop("SOPInstanceUID", None) or generate_uid(entropy_srcs=entropy)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = uid
    dataset.Modality, dataset.PatientID = "MR", "X"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = "1.2", "1.2.3", "1.9"
    dataset.Rows, dataset.Columns = values.shape[-2:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 8 * values.dtype.itemsize
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(values.dtype.kind == "i")
    dataset.PixelData = values.tobytes()
    for keyword, value in elements.items():
        if value is not None:
            setattr(dataset, keyword, value)
        elif keyword in dataset:
            delattr(dataset, keyword)
    return dataset


def numbers(values: Sequence[float]) -> list[str]:
    return [f"{value:g}" for value in values]


def write_series(
    folder: Path,
    values: np.ndarray,
    places: Sequence[Sequence[float]] | None = None,
    each: Mapping[int, Mapping[str, Any]] | None = None,
    **elements: Any,
) -> Path:
    """Write slices 2 mm apart, or at given places; `each` changes elements of single ones."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, plane in enumerate(values):
        place = (-30, -40, -50 + 2 * index) if places is None else places[index]
        given = {
            "ImagePositionPatient": numbers(place),
            "ImageOrientationPatient": numbers(AXIAL),
            "PixelSpacing": ["1.5", "1"],
            "SliceThickness": "2",
            "InstanceNumber": index + 1,
            **elements,
            **(each or {}).get(index, {}),
        }
        dataset = picture(plane, MR, **given)
        dataset.save_as(folder / f"IM{index:03d}.dcm", enforce_file_format=True)
    return folder


def sequence(**elements: Any) -> list[Dataset]:
    item = Dataset()
    for keyword, value in elements.items():
        if value is not None:
            setattr(item, keyword, value)
    return [item]


def multi_frame(
    values: np.ndarray,
    order: Sequence[int] | None = None,
    places: Sequence[Sequence[float]] | None = None,
    slopes: Sequence[float] | None = None,
    content: Mapping[int, Mapping[str, Any]] | None = None,
    groups: Mapping[int, Mapping[str, Any]] | None = None,
    orientation: Sequence[float] = AXIAL,
    measures: Mapping[str, Any] | None = None,
    shared: bool = True,
    kind: str = ENHANCED_MR,
    **elements: Any,
) -> Dataset:
    """Make an enhanced object whose frames stand in any order.

    Args:
        values: in the order of space.
        order: which of them each frame holds.
        places: in the order of space; else 2 mm apart.
        slopes: factor of each, in the order of space.
        content: further elements of the frame content, by number in space.
        groups: further functional groups, by number in space.
        orientation: of all frames.
        measures: elements of the pixel measures.
        shared: whether what is equal in all frames is given once.
        kind: class of the object.
        elements: further ones of the object.
    """
    order = list(range(len(values))) if order is None else list(order)
    dataset = picture(values[order], kind, NumberOfFrames=len(order), **elements)
    spacing = {"PixelSpacing": ["1.5", "1"], "SliceThickness": "2", "SpacingBetweenSlices": "2", **(measures or {})}
    common = {
        "PixelMeasuresSequence": sequence(**spacing),
        "PlaneOrientationSequence": sequence(ImageOrientationPatient=numbers(orientation)),
    }
    dataset.SharedFunctionalGroupsSequence = sequence(**(common if shared else {}))
    frames = []
    for index in order:
        place = (-30, -40, -50 + 2 * index) if places is None else places[index]
        of_stack = {"StackID": "1", "InStackPositionNumber": index + 1, **(content or {}).get(index, {})}
        scaling = {"RescaleSlope": f"{1 if slopes is None else slopes[index]:g}", "RescaleIntercept": "0"}
        groups_of = {
            **({} if shared else common),
            "PlanePositionSequence": sequence(ImagePositionPatient=None if place is None else numbers(place)),
            "FrameContentSequence": sequence(**of_stack),
            "PixelValueTransformationSequence": sequence(**scaling, RescaleType="US"),
            **(groups or {}).get(index, {}),
        }
        frames += sequence(**groups_of)
    dataset.PerFrameFunctionalGroupsSequence = frames
    return dataset


def save(dataset: Dataset, path: Path) -> Path:
    dataset.save_as(path, enforce_file_format=True)
    return path


def stored(path: Path) -> pydicom.Dataset:
    return pydicom.dcmread(path)
