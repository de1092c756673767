"""DICOM series and multi-frame objects: each voxel where its slice or frame says, or refused with a reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_files import (
    ENHANCED_CT,
    ENHANCED_MR,
    LEGACY_MR,
    NUCLEAR,
    multi_frame,
    picture,
    save,
    sequence,
    volume,
    write_series,
)
from pydicom.uid import RLELossless

from tcurlora.errors import InputError
from tcurlora.imaging.image_warnings import ImageWarning
from tcurlora.imaging.images import read_image

V = volume()


def refused(path: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        read_image(path)
    assert caught.value.remedy
    return caught.value


def read_with_warnings(path: Path) -> tuple[sitk.Image, dict[str, ImageWarning]]:
    warnings: list[ImageWarning] = []
    image = read_image(path, warnings.append)
    assert all(warning.message and warning.remedy for warning in warnings)
    return image, {warning.code: warning for warning in warnings}


def expect_in_place(image: sitk.Image, values: np.ndarray, step: float = 2.0) -> None:
    """Each slice of `values` at its place, whatever the order of storage."""
    assert image.GetSpacing() == pytest.approx((1, 1.5, step))
    assert image.GetSize() == values.shape[::-1]
    for index in range(len(values)):
        place = (-30 + 2, -40 + 3 * 1.5, -50 + step * index)
        voxel = image.TransformPhysicalPointToIndex(place)
        assert image.TransformIndexToPhysicalPoint(voxel) == pytest.approx(place, abs=1e-6)
        assert image.GetPixel(voxel) == pytest.approx(values[index, 3, 2])


ORDERS = {
    "feet first": range(8),
    "head first": range(7, -1, -1),
    "interleaved": [0, 2, 4, 6, 1, 3, 5, 7],
    "at random": [3, 0, 7, 5, 1, 6, 2, 4],
}


@pytest.mark.parametrize("kind", [ENHANCED_MR, ENHANCED_CT, LEGACY_MR])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("order", ORDERS)
def test_frames_are_read_in_the_order_of_space(tmp_path: Path, order: str, shared: bool, kind: str) -> None:
    path = save(multi_frame(V, ORDERS[order], shared=shared, kind=kind), tmp_path / "Aufnahme 一.dcm")
    image, warnings = read_with_warnings(path)
    expect_in_place(image, V)
    assert not warnings
    (tmp_path / "folder").mkdir()
    save(multi_frame(V, ORDERS[order], shared=shared, kind=kind), tmp_path / "folder" / "IM1")
    expect_in_place(read_image(tmp_path / "folder"), V)


@pytest.mark.parametrize("compressed", [False, True])
def test_each_frame_has_its_own_factors(tmp_path: Path, compressed: bool) -> None:
    slopes = [1, 2, 0.5, 3, 1, 1, 0.25, 10]
    dataset = multi_frame(V, ORDERS["at random"], slopes=slopes)
    if compressed:
        dataset.compress(RLELossless)
    image, _ = read_with_warnings(save(dataset, tmp_path / "a.dcm"))
    expect_in_place(image, V * np.array(slopes)[:, None, None])


def test_factors_of_whole_numbers_keep_whole_numbers(tmp_path: Path) -> None:
    dataset = multi_frame(V.astype(np.uint16), RescaleIntercept="-1024")
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        del frame.PixelValueTransformationSequence
    image = read_image(save(dataset, tmp_path / "a.dcm"))
    assert image.GetPixelID() == sitk.sitkInt16
    expect_in_place(image, V.astype(int) - 1024)


@pytest.mark.parametrize("compressed", [False, True])
def test_inverted_frames_are_told(tmp_path: Path, compressed: bool) -> None:
    dataset = multi_frame(V, ORDERS["interleaved"], PhotometricInterpretation="MONOCHROME1")
    if compressed:
        dataset.compress(RLELossless)
    image, warnings = read_with_warnings(save(dataset, tmp_path / "a.dcm"))
    assert warnings.keys() == {"inverted"}
    series, of_series = read_with_warnings(
        write_series(tmp_path / "series", V, PhotometricInterpretation="MONOCHROME1")
    )
    assert of_series.keys() == {"inverted"}
    expect_in_place(image, -1 - V.astype(int))
    expect_in_place(series, -1 - V.astype(int))


def at(step: Callable[[int], tuple[float, float, float]]) -> list[tuple[float, float, float]]:
    return [step(index) for index in range(len(V))]


def straight(index: int) -> tuple[float, float, float]:
    return (-30, -40, -50 + 2 * index)


STACKS: dict[str, tuple[str, dict[str, Any]]] = {
    "gap": ("uneven_slices", {"places": at(lambda i: straight(i + (i > 3)))}),
    "uneven": ("uneven_slices", {"places": at(lambda i: straight(i + 0.3 * (i % 2)))}),
    "two distances": ("uneven_slices", {"places": at(lambda i: straight(i + 0.1 * max(0, i - 4)))}),
    "doubled": ("uneven_slices", {"places": at(lambda i: straight(i - (i > 3)))}),
    "tilted": ("tilted", {"places": at(lambda i: (-30, -40 + 0.5 * i, -50 + 2 * i))}),
    "one aside": ("tilted", {"places": at(lambda i: (-30, -40 + 3 * (i == 4), -50 + 2 * i))}),
    "two volumes": ("several_volumes", {"places": at(lambda i: straight(i % 4))}),
}


@pytest.mark.parametrize("stack", STACKS)
def test_frames_are_refused_for_what_slices_are(tmp_path: Path, stack: str) -> None:
    code, arguments = STACKS[stack]
    for order in (None, ORDERS["at random"]):
        assert refused(save(multi_frame(V, order, **arguments), tmp_path / "a.dcm")).code == code
    assert refused(write_series(tmp_path / "series", V, **arguments)).code == code


APART: dict[str, dict[str, Any]] = {
    "stacks": {"content": {i: {"StackID": str(1 + i // 4)} for i in range(8)}},
    "time points": {"content": {i: {"TemporalPositionIndex": 1 + i % 2} for i in range(8)}},
    "echo times": {"groups": {i: {"MREchoSequence": sequence(EffectiveEchoTime=5.0 + 5 * (i % 2))} for i in range(8)}},
    "b-values": {"groups": {i: {"MRDiffusionSequence": sequence(DiffusionBValue=500.0 * (i % 2))} for i in range(8)}},
    "phases": {
        "groups": {
            i: {"MRImageFrameTypeSequence": sequence(ComplexImageComponent=("MAGNITUDE", "PHASE")[i % 2])}
            for i in range(8)
        }
    },
}


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("what", APART)
def test_several_volumes_in_a_file_are_refused(tmp_path: Path, what: str, together: bool) -> None:
    """In the same places, and even where their frames would make one even stack."""
    places = at(lambda i: straight(i // 2)) if together and what != "stacks" else None
    error = refused(save(multi_frame(V, places=places, **APART[what]), tmp_path / "a.dcm"))
    assert error.code == "several_volumes"


def without(dataset: pydicom.Dataset, group: str, frame: int | None = 3) -> pydicom.Dataset:
    sources = dataset.SharedFunctionalGroupsSequence if frame is None else dataset.PerFrameFunctionalGroupsSequence
    delattr(sources[frame or 0], group)
    return dataset


def test_frames_without_geometry_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    assert refused(save(without(multi_frame(V), "PlanePositionSequence"), path)).code == "bad_geometry"
    assert refused(save(without(multi_frame(V), "PlaneOrientationSequence", None), path)).code == "bad_geometry"
    assert refused(save(without(multi_frame(V), "PixelMeasuresSequence", None), path)).code == "bad_geometry"
    assert "frame 4" in refused(save(without(multi_frame(V), "PlanePositionSequence"), path)).message
    film = picture(V, "1.2.840.10008.5.1.4.1.1.7.3", NumberOfFrames=8)
    assert refused(save(film, path)).code == "bad_geometry"
    turned = multi_frame(V, groups={4: {"PlaneOrientationSequence": sequence(ImageOrientationPatient=list("010001"))}})
    assert refused(save(turned, path)).code == "uneven_slices"
    sized = multi_frame(V, groups={4: {"PixelMeasuresSequence": sequence(PixelSpacing=["1.6", "1"])}})
    assert refused(save(sized, path)).code == "uneven_slices"
    short = multi_frame(V)
    short.PerFrameFunctionalGroupsSequence = short.PerFrameFunctionalGroupsSequence[:-1]
    assert refused(save(short, path)).code == "unreadable"
    part = multi_frame(V, ConcatenationUID="1.2.3.4.5", InConcatenationNumber=1, InConcatenationTotalNumber=2)
    assert refused(save(part, path)).code == "several_volumes"


def test_factor_of_nothing_is_refused(tmp_path: Path) -> None:
    frames = multi_frame(V, slopes=[1, 1, 0, 1, 1, 1, 1, 1])
    assert refused(save(frames, tmp_path / "a.dcm")).code == "bad_scaling"
    assert refused(write_series(tmp_path / "one", V, each={3: {"RescaleSlope": "0"}})).code == "bad_scaling"
    assert "IM003" in refused(tmp_path / "one").message


def test_sagittal_and_oblique_frames(tmp_path: Path) -> None:
    c, s = np.cos(0.4), np.sin(0.4)
    for orientation in ((0, 1, 0, 0, 0, -1), (c, s, 0, -s, c, 0)):
        normal = np.cross(orientation[:3], orientation[3:])
        places = [np.array([5, 6, 7]) + 2.5 * i * normal for i in range(8)]
        dataset = multi_frame(
            V, ORDERS["at random"], places, orientation=orientation, measures={"SpacingBetweenSlices": "2.5"}
        )
        image, warnings = read_with_warnings(save(dataset, tmp_path / "a.dcm"))
        assert not warnings
        for index in (0, 3, 7):
            place = places[index] + 2 * np.array(orientation[:3]) + 3 * 1.5 * np.array(orientation[3:])
            voxel = image.TransformPhysicalPointToIndex([float(x) for x in place])
            assert image.TransformIndexToPhysicalPoint(voxel) == pytest.approx(place, abs=1e-4)
            assert image.GetPixel(voxel) == V[index, 3, 2]


@pytest.mark.parametrize("step", [2.0, -2.0])
def test_nuclear_medicine_frames_follow_their_detector(tmp_path: Path, step: float) -> None:
    detector = sequence(ImagePositionPatient=["-30", "-40", "-50"], ImageOrientationPatient=list("100010"))
    dataset = picture(
        V.astype(np.uint16),
        NUCLEAR,
        NumberOfFrames=8,
        PixelSpacing=["1.5", "1"],
        SpacingBetweenSlices=f"{step:g}",
        DetectorInformationSequence=detector,
    )
    image = read_image(save(dataset, tmp_path / "a.dcm"))
    for index in range(8):
        voxel = image.TransformPhysicalPointToIndex((-28, -35.5, -50 + step * index))
        assert image.GetPixel(voxel) == V[index, 3, 2]


CONTRADICTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "distance": ("sizes_differ", {"SpacingBetweenSlices": "3"}),
    "imager": ("sizes_differ", {"ImagerPixelSpacing": ["2", "2"]}),
    "numbers": ("missing_slices", {"each": {i: {"InstanceNumber": i + 1 + (i > 3)} for i in range(8)}}),
    "first number": ("missing_slices", {"each": {i: {"InstanceNumber": i + 3} for i in range(8)}}),
    "count": ("missing_slices", {"NumberOfSlices": 10}),
}


@pytest.mark.parametrize("what", CONTRADICTIONS)
def test_contradictions_of_a_series_are_told(tmp_path: Path, what: str) -> None:
    code, arguments = CONTRADICTIONS[what]
    image, warnings = read_with_warnings(write_series(tmp_path / "series", V, **arguments))
    assert warnings.keys() == {code}
    expect_in_place(image, V)


def test_contradictions_of_frames_are_told(tmp_path: Path) -> None:
    image, warnings = read_with_warnings(
        save(multi_frame(V, measures={"SpacingBetweenSlices": "4"}), tmp_path / "a.dcm")
    )
    assert warnings.keys() == {"sizes_differ"}
    expect_in_place(image, V)
    numbered = {i: {"InStackPositionNumber": i + 1 + (i > 5)} for i in range(8)}
    assert read_with_warnings(save(multi_frame(V, content=numbered), tmp_path / "b.dcm"))[1].keys() == {
        "missing_slices"
    }


def test_thickness_that_is_not_the_distance_is_common(tmp_path: Path) -> None:
    image, warnings = read_with_warnings(write_series(tmp_path / "series", V, SliceThickness="5"))
    assert not warnings
    expect_in_place(image, V)


@pytest.mark.parametrize("keyword", ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"])
@pytest.mark.parametrize("which", ["all", "one"])
def test_series_without_geometry_is_refused(tmp_path: Path, keyword: str, which: str) -> None:
    arguments: dict[str, Any] = {keyword: None} if which == "all" else {"each": {3: {keyword: None}}}
    error = refused(write_series(tmp_path / "series", V, **arguments))
    assert error.code == "bad_geometry"
    assert keyword in error.message


SPOILED: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "100 bytes": lambda content: content[:100],
    "only the preamble": lambda content: content[:132],
    "noughts": lambda content: bytes(len(content)),
    "half": lambda content: content[: len(content) // 2],
}


@pytest.mark.parametrize("place", [0, 3, 7])
@pytest.mark.parametrize("name", ["{}", "{}.dcm", "{}.IMA", "MR.1.2.840.{}", "{}.mr"])
@pytest.mark.parametrize("spoiled", SPOILED)
def test_slice_that_cannot_be_read_is_named_and_not_left_out(
    tmp_path: Path, spoiled: str, name: str, place: int
) -> None:
    folder = write_series(tmp_path / "series", V)
    for file in list(folder.iterdir()):
        file.rename(folder / name.format(file.stem[2:]))
    victim = folder / name.format(f"{place:03d}")
    victim.write_bytes(SPOILED[spoiled](victim.read_bytes()))
    error = refused(folder)
    assert error.code == "unreadable"
    assert str(victim) in error.message
    victim.unlink()  # what is left is a shorter series, of which only the numbers tell
    if place == 0:
        assert read_with_warnings(folder)[0].GetSize()[2] == 7


def test_other_files_beside_slices_do_no_harm(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "series", V)
    (folder / "notes.txt").write_text("")
    (folder / "README").write_text("slices of a patient")
    (folder / "report.pdf").write_bytes(b"%PDF-1.4\0")
    (folder / ".DS_Store").write_bytes(b"")
    (folder / "further").mkdir()
    image, warnings = read_with_warnings(folder)
    expect_in_place(image, V)
    assert not warnings


def test_several_volumes_in_a_series_are_refused_and_named(tmp_path: Path) -> None:
    places = at(lambda i: straight(i // 2))
    each = {i: {"TemporalPositionIdentifier": 1 + i % 2, "InstanceNumber": i + 1} for i in range(8)}
    error = refused(write_series(tmp_path / "times", V, places, each))
    assert error.code == "several_volumes"
    assert "time points" in error.message
    twice = write_series(tmp_path / "twice", V)
    for file in list(twice.iterdir()):
        (twice / f"copy of {file.name}").write_bytes(file.read_bytes())
    assert refused(twice).code == "several_volumes"
    frames = tmp_path / "frames"
    frames.mkdir()
    for number in range(2):
        save(multi_frame(V, SOPInstanceUID=f"1.2.3.{number}"), frames / f"{number}.dcm")
    assert refused(frames).code == "several_volumes"


def test_single_slice_of_a_series_is_told(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "series", V)
    image, warnings = read_with_warnings(folder / "IM003.dcm")
    assert warnings.keys() == {"single_slice"}
    assert image.GetSize() == (7, 6, 1)
    assert image.GetOrigin() == pytest.approx((-30, -40, -44))


def test_small_tilt_is_told(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "series", V, at(lambda i: (-30, -40 + 0.03 * i, -50 + 2 * i)))
    _, warnings = read_with_warnings(folder)
    assert warnings.keys() == {"straightened"}


NOT_SCANS = {
    "SEG": "1.2.840.10008.5.1.4.1.1.66.4",
    "RTSTRUCT": "1.2.840.10008.5.1.4.1.1.481.3",
    "RTDOSE": "1.2.840.10008.5.1.4.1.1.481.2",
}


@pytest.mark.parametrize("name", NOT_SCANS)
def test_objects_that_are_not_scans_are_named(tmp_path: Path, name: str) -> None:
    dataset = picture(V.astype(np.uint8), NOT_SCANS[name], NumberOfFrames=8)
    if name == "RTSTRUCT":
        for keyword in ("Rows", "Columns", "PixelData"):
            delattr(dataset, keyword)
    error = refused(save(dataset, tmp_path / "a.dcm"))
    assert error.code == "not_a_scan"
    assert name in error.message


def test_compression_that_is_not_read_is_named(tmp_path: Path) -> None:
    dataset = multi_frame(V)
    dataset.PixelData = pydicom.encaps.encapsulate([b"\xff\x4f\xff\x51" + bytes(60) for _ in V])
    dataset["PixelData"].VR = "OB"
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.201"
    error = refused(save(dataset, tmp_path / "a.dcm"))
    assert error.code == "unreadable"
    assert "High-Throughput JPEG 2000" in error.message


def test_slices_from_before_there_was_a_preamble(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "series", V)
    for file in folder.iterdir():
        content = file.read_bytes()
        dataset = pydicom.dcmread(file)
        meta_length = dataset.file_meta.FileMetaInformationGroupLength
        file.write_bytes(content[132 + 12 + meta_length :])
    image, _ = read_with_warnings(folder)
    expect_in_place(image, V)
    last = folder / "IM007.dcm"
    last.write_bytes(last.read_bytes()[:-20])
    assert refused(folder).code == "unreadable"
