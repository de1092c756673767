"""DICOM series, segmentations and structure sets for tests."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid

SIZE = (20, 16, 12)
SPACING = (1.0, 1.5, 2.0)
ORIGIN = (-30.0, -40.0, 5.0)


def series(count: int = SIZE[2], **elements: Any) -> list[Dataset]:
    """Make the slices of a CT of `SIZE` on a grid of uneven spacing."""
    rng = np.random.default_rng(0)
    study, own, frame = generate_uid(), generate_uid(), generate_uid()
    slices = []
    for index in range(count):
        ds = Dataset()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = CTImageStorage
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = generate_uid()
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = study, own, frame
        ds.Modality, ds.PatientID, ds.PatientName = "CT", "P1", "Doe^Jane"
        ds.Rows, ds.Columns, ds.InstanceNumber = SIZE[1], SIZE[0], index + 1
        ds.ImagePositionPatient = [ORIGIN[0], ORIGIN[1], ORIGIN[2] + SPACING[2] * index]
        ds.ImageOrientationPatient, ds.PixelSpacing = [1, 0, 0, 0, 1, 0], [SPACING[1], SPACING[0]]
        ds.SliceThickness, ds.SamplesPerPixel, ds.PhotometricInterpretation = SPACING[2], 1, "MONOCHROME2"
        ds.BitsAllocated = ds.BitsStored = 16
        ds.HighBit, ds.PixelRepresentation = 15, 1
        ds.PixelData = rng.integers(0, 900, SIZE[1::-1]).astype(np.int16).tobytes()
        for name in ("PatientBirthDate", "PatientSex", "StudyID", "AccessionNumber", "ReferringPhysicianName"):
            setattr(ds, name, "")
        ds.StudyDate, ds.StudyTime = "20260101", "120000"
        for name, value in elements.items():
            setattr(ds, name, value)
        slices.append(ds)
    return slices


def write_series(folder: Path, slices: list[Dataset] | None = None, **elements: Any) -> list[Dataset]:
    """Write the slices of a CT, one file each."""
    folder.mkdir(parents=True)
    slices = series(**elements) if slices is None else slices
    for index, ds in enumerate(slices):
        ds.save_as(folder / f"IM{index:03d}.dcm", enforce_file_format=True)
    return slices


def write_seg(path: Path, source: list[Dataset], labels: np.ndarray, names: list[str], kind: str = "BINARY") -> None:
    """Write (z, y, x) labels as a DICOM segmentation; frames without a label are left out, as usual."""
    import highdicom as hd
    from pydicom.sr.codedict import codes

    described = [
        hd.seg.SegmentDescription(
            number, name, codes.SCT.Organ, codes.SCT.Liver, hd.seg.SegmentAlgorithmTypeValues.MANUAL
        )
        for number, name in enumerate(names, start=1)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hd.seg.Segmentation(
            source, labels, hd.seg.SegmentationTypeValues[kind], described, generate_uid(), 2, generate_uid(), 1,
            "maker", "model", "1", "1",
        ).save_as(path)  # fmt: skip


def write_rtstruct(
    path: Path, source: list[Dataset], contours: dict[str, list[Any]], kind: str = "CLOSED_PLANAR"
) -> None:
    """Write contours, each (n, 3) points in mm, by the name of their structure."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = RTStructureSetStorage
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = generate_uid()
    ds.Modality, ds.PatientID, ds.StructureSetLabel = "RTSTRUCT", "P1", "x"
    reference = Dataset()
    reference.FrameOfReferenceUID = source[0].FrameOfReferenceUID
    ds.ReferencedFrameOfReferenceSequence = Sequence([reference])
    names, items = [], []
    for number, (name, polygons) in enumerate(contours.items(), start=1):
        named, item = Dataset(), Dataset()
        named.ROINumber, named.ROIName, named.ROIGenerationAlgorithm = number, name, "MANUAL"
        named.ReferencedFrameOfReferenceUID = source[0].FrameOfReferenceUID
        item.ReferencedROINumber, item.ROIDisplayColor = number, [255, 0, 51]
        item.ContourSequence = Sequence([])
        for points in polygons:
            contour = Dataset()
            contour.ContourGeometricType, contour.NumberOfContourPoints = kind, len(points)
            contour.ContourData = [f"{value:.5g}" for point in points for value in point]
            item.ContourSequence.append(contour)
        names.append(named)
        items.append(item)
    ds.StructureSetROISequence, ds.ROIContourSequence = Sequence(names), Sequence(items)
    ds.save_as(path, enforce_file_format=True)


def rectangle(
    columns: tuple[float, float], rows: tuple[float, float], level: float
) -> list[tuple[float, float, float]]:
    """Corners in mm of a rectangle around the voxels between two columns and two rows of a slice."""
    (x0, x1), (y0, y1) = columns, rows
    corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
    return [
        (ORIGIN[0] + SPACING[0] * x, ORIGIN[1] + SPACING[1] * y, ORIGIN[2] + SPACING[2] * level) for x, y in corners
    ]


def labels_on(array: np.ndarray) -> sitk.Image:
    """Make an image of (z, y, x) labels on the grid of the series."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(SPACING)
    image.SetOrigin(ORIGIN)
    return image
