"""Reading and writing of scans and segmentations, with files as they occur: whole, cut short, foreign and odd."""

from __future__ import annotations

import gzip
import itertools
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from tcurlora.errors import InputError, TCurLoraError
from tcurlora.imaging.grids import geometry_difference
from tcurlora.imaging.images import WRITABLE_SUFFIXES, files_of, images_in, read_image, stem, write_image
from tcurlora.imaging.segmentations import default_color, read_segmentation, write_segmentation
from tcurlora.imaging.structures import Structure

TERMINOLOGY = (
    "Segmentation category and type - 3D Slicer General Anatomy list~SCT^123037004^Anatomical Structure"
    "~SCT^4421005^Hippocampus~^^~Anatomic codes - DICOM master list~^^~^^"
)
STRUCTURES = [
    Structure("anterior hippocampus", 1, (0.1, 0.25, 1 / 3), TERMINOLOGY),
    Structure("Mandelkern 扁桃体", 7, (1.0, 0.0, 0.5)),
]


def oblique(array: np.ndarray) -> sitk.Image:
    """Make an image from a (z, y, x) array with a rotated grid of uneven spacing."""
    image = sitk.GetImageFromArray(array)
    c, s = math.cos(0.3), math.sin(0.3)
    image.SetDirection((c, -s, 0, s, c, 0, 0, 0, 1))
    image.SetSpacing((1.1, 0.9, 2.5))
    image.SetOrigin((-31.2, 44.4, 7.7))
    return image


@pytest.fixture
def scan() -> sitk.Image:
    return oblique(np.random.default_rng(0).normal(100, 20, (10, 12, 14)).astype(np.float32))


@pytest.fixture
def labels() -> sitk.Image:
    array = np.zeros((10, 12, 14), np.int32)
    array[2:5, 3:6, 4:9] = 1
    array[6:9, 3:6, 10:12] = 7
    return oblique(array)


def voxels(image: sitk.Image) -> np.ndarray:
    return sitk.GetArrayFromImage(image)


def write_series(folder: Path, array: np.ndarray, skip: tuple[int, ...] = (), uid: str = "1.2.826.0.1.1") -> None:
    """Write real DICOM slices, sagittal, 1.5 mm apart, in an order of names that is not their order in space."""
    folder.mkdir(parents=True, exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for index in range(array.shape[0]):
        if index in skip:
            continue
        piece = sitk.GetImageFromArray(array[index : index + 1])
        piece.SetSpacing((0.8, 0.9, 1.5))
        tags = {
            "0008|0060": "MR",
            "0008|0008": "DERIVED\\SECONDARY",
            "0010|0010": "Doe^Jane",
            "0020|000d": "1.2.826.0.1",
            "0020|000e": uid,
            "0008|0018": f"{uid}.{index + 1}",
            "0020|0013": str(index + 1),
            "0020|0032": f"{-20 + 1.5 * index}\\-5\\30",
            "0020|0037": "0\\1\\0\\0\\0\\-1",
            "0018|0050": "1.5",
        }
        for tag, value in tags.items():
            piece.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{uid}_{(index * 7) % 11:02d}.dcm"))
        writer.Execute(piece)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.nii.gz", "a"),
        ("a.seg.nrrd", "a"),
        ("b.1.nrrd", "b.1"),
        ("Größe 海.MHA", "Größe 海"),
        ("c.nii", "c"),
        ("series", "series"),
        ("notes.txt", "notes.txt"),
        ("1.2.840", "1.2.840"),
    ],
)
def test_stem_drops_the_image_ending_only(name: str, expected: str) -> None:
    assert stem(Path("some.nrrd") / name) == expected


@pytest.mark.parametrize("ending", WRITABLE_SUFFIXES)
def test_image_comes_back_as_written(tmp_path: Path, scan: sitk.Image, ending: str) -> None:
    path = tmp_path / "Ordner mit Größe 海馬" / f"scan ü 一{ending}"
    path.parent.mkdir()
    write_image(scan, path)
    again = read_image(path)
    assert np.array_equal(voxels(again), voxels(scan))
    assert geometry_difference(again, scan) is None
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_writing_leaves_out_the_patient(tmp_path: Path, scan: sitk.Image) -> None:
    scan.SetMetaData("0010|0010", "Doe^Jane")
    write_image(scan, tmp_path / "a.nrrd")
    write_segmentation(sitk.Cast(scan > 100, sitk.sitkUInt8), [], tmp_path / "b.seg.nrrd")
    assert b"Doe" not in (tmp_path / "a.nrrd").read_bytes() + (tmp_path / "b.seg.nrrd").read_bytes()
    assert scan.GetMetaData("0010|0010") == "Doe^Jane"


def test_single_time_point_counts_as_3d_and_more_do_not(tmp_path: Path, scan: sitk.Image) -> None:
    sitk.WriteImage(sitk.JoinSeries([scan]), str(tmp_path / "one.nii.gz"))
    sitk.WriteImage(sitk.JoinSeries([scan, scan]), str(tmp_path / "two.nii.gz"))
    one = read_image(tmp_path / "one.nii.gz")
    assert one.GetSize() == scan.GetSize()
    assert geometry_difference(one, scan) is None
    with pytest.raises(InputError, match=r"two\.nii\.gz is not a 3D image but 4D, of size 14x12x10x2") as caught:
        read_image(tmp_path / "two.nii.gz")
    assert caught.value.code == "not_3d"
    assert caught.value.remedy


def test_flat_picture_is_refused(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.Image(5, 6, sitk.sitkUInt8), str(tmp_path / "flat.png"))
    with pytest.raises(InputError) as caught:
        read_image(tmp_path / "flat.png")
    assert caught.value.code == "not_3d"


@pytest.mark.parametrize("kept", [0.02, 0.5, 0.97])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".nrrd", ".mha", ".raw.mha", ".raw.nrrd"])
def test_file_that_was_cut_short_is_refused(
    tmp_path: Path, scan: sitk.Image, ending: str, kept: float, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"cut{ending}"
    sitk.WriteImage(scan, str(path), useCompression="raw" not in ending)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(InputError, match=re.escape(str(path))) as caught:
        read_image(path)
    assert caught.value.code == "unreadable"
    assert caught.value.remedy
    assert "ITK" not in str(caught.value)
    assert "\n" not in str(caught.value)
    if kept > 0.1:  # the format's own library complains about half a header, and cannot be told not to
        assert capfd.readouterr().err == ""


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_file_with_damaged_voxels_is_refused(tmp_path: Path, scan: sitk.Image, ending: str) -> None:
    path = tmp_path / f"damaged{ending}"
    sitk.WriteImage(scan, str(path), useCompression=True)
    content = bytearray(path.read_bytes())
    for index in range(len(content) * 2 // 3, len(content) * 2 // 3 + 50):
        content[index] ^= 0x5A
    path.write_bytes(bytes(content))
    with pytest.raises(InputError) as caught:
        read_image(path)
    assert caught.value.code == "unreadable"


def test_trailing_bytes_after_compressed_data_do_no_harm(tmp_path: Path, scan: sitk.Image) -> None:
    write_image(scan, tmp_path / "a.nii.gz")
    with (tmp_path / "a.nii.gz").open("ab") as stream:
        stream.write(b"padding")
    assert np.array_equal(voxels(read_image(tmp_path / "a.nii.gz")), voxels(scan))


@pytest.mark.parametrize(("content", "name"), [(b"", "a.nii.gz"), (b"hello" * 99, "b.nii.gz"), (b"hi" * 99, "c.nrrd")])
def test_what_is_no_image_is_refused(tmp_path: Path, content: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=name.replace(".", r"\.")) as caught:
        read_image(tmp_path / name)
    assert caught.value.code == "unreadable"


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no file .*niemand") as caught:
        read_image(tmp_path / "niemand.nii.gz")
    assert caught.value.code == "not_found"


NRRD = """NRRD0004
type: short
dimension: 3
space: left-posterior-superior
sizes: {sizes}
space directions: {directions}
kinds: domain domain domain
endian: little
encoding: raw
space origin: {origin}

"""


@pytest.mark.parametrize(
    ("sizes", "directions", "origin", "code"),
    [
        ("90000 90000 90000", "(1,0,0) (0,1,0) (0,0,1)", "(0,0,0)", "too_large"),
        ("4 4 4", "(1,0,0) (1,0,0) (0,0,1)", "(0,0,0)", None),
        ("4 4 4", "(1,0,0) (0,0,0) (0,0,1)", "(0,0,0)", None),
        ("4 4 4", "(1,0,0) (0,1,0) (0,0,1)", "(nan,0,0)", None),
    ],
)
def test_senseless_header_is_refused_before_voxels_are_read(
    tmp_path: Path, sizes: str, directions: str, origin: str, code: str | None
) -> None:
    path = tmp_path / "odd.nrrd"
    header = NRRD.format(sizes=sizes, directions=directions, origin=origin)
    path.write_bytes(header.encode() + bytes(128))
    with pytest.raises(InputError, match=r"odd\.nrrd") as caught:
        read_image(path)
    assert caught.value.remedy
    assert code is None or caught.value.code == code


def test_sheared_nifti_is_refused_with_its_reason(tmp_path: Path, scan: sitk.Image) -> None:
    write_image(scan, tmp_path / "a.nii.gz")
    raw = bytearray(gzip.decompress((tmp_path / "a.nii.gz").read_bytes()))
    raw[252:254] = (0).to_bytes(2, "little")  # qform_code
    raw[254:256] = (1).to_bytes(2, "little")  # sform_code
    raw[280:328] = np.array([[1, 0.5, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]], "<f4").tobytes()
    (tmp_path / "sheared.nii").write_bytes(bytes(raw))
    with pytest.raises(InputError, match="right angles") as caught:
        read_image(tmp_path / "sheared.nii")
    assert caught.value.code == "sheared"


def test_dicom_series_is_read_in_the_order_of_space(tmp_path: Path) -> None:
    array = np.random.default_rng(1).integers(0, 4000, (9, 8, 7)).astype(np.int16)
    write_series(tmp_path / "Serie 一", array)
    (tmp_path / "Serie 一" / "notes.txt").write_text("not a slice")
    image = read_image(tmp_path / "Serie 一")
    assert image.GetSize() == (7, 8, 9)
    assert image.GetSpacing() == pytest.approx((0.8, 0.9, 1.5))
    # Slice 4, row 2, column 3: 3 columns of 0.8 mm along +y, 2 rows of 0.9 mm along -z, 4 slices of 1.5 mm along x.
    place = (-20 + 4 * 1.5, -5 + 3 * 0.8, 30 - 2 * 0.9)
    assert image.GetPixel(image.TransformPhysicalPointToIndex(place)) == array[4, 2, 3]


def test_incomplete_or_mixed_series_is_refused(tmp_path: Path) -> None:
    array = np.random.default_rng(1).integers(0, 4000, (9, 8, 7)).astype(np.int16)
    write_series(tmp_path / "gap", array, skip=(4,))
    write_series(tmp_path / "two", array)
    write_series(tmp_path / "two", array, uid="1.2.826.0.1.2")
    (tmp_path / "none").mkdir()
    for folder, code in (("gap", "uneven_slices"), ("two", "several_series"), ("none", "no_series")):
        with pytest.raises(InputError, match=folder) as caught:
            read_image(tmp_path / folder)
        assert caught.value.code == code
        assert caught.value.remedy


def header_of(path: Path) -> dict[str, str]:
    """Read the text header of an NRRD without any library."""
    text = path.read_bytes().split(b"\n\n", 1)[0].decode("utf-8")
    lines = [line for line in text.splitlines()[1:] if not line.startswith("#")]
    return dict(line.split(":=" if ":=" in line else ": ", 1) for line in lines)


def test_segmentation_has_the_header_that_slicer_writes(tmp_path: Path, labels: sitk.Image) -> None:
    path = tmp_path / "a.seg.nrrd"
    write_segmentation(labels, [*STRUCTURES, Structure("plain", 3)], path)
    header = header_of(path)
    assert header["encoding"] == "gzip"
    assert header["type"] in ("unsigned char", "uchar", "uint8")
    assert header["space"] == "left-posterior-superior"
    expected = {
        "Segmentation_ContainedRepresentationNames": "Binary labelmap|",
        "Segmentation_MasterRepresentation": "Binary labelmap",
        "Segmentation_SourceRepresentation": "Binary labelmap",
        "Segmentation_ReferenceImageExtentOffset": "0 0 0",
        "Segment0_ID": "Segment_1",
        "Segment0_Name": "anterior hippocampus",
        "Segment0_NameAutoGenerated": "0",
        "Segment0_ColorAutoGenerated": "0",
        "Segment0_LabelValue": "1",
        "Segment0_Layer": "0",
        "Segment0_Extent": "0 13 0 11 0 9",
        "Segment1_Name": "Mandelkern 扁桃体",
        "Segment1_LabelValue": "7",
        "Segment2_ID": "Segment_3",
        "Segment2_ColorAutoGenerated": "1",
    }
    assert {key: header.get(key) for key in expected} == expected
    assert [float(part) for part in header["Segment0_Color"].split()] == [0.1, 0.25, 1 / 3]
    assert f"TerminologyEntry:{TERMINOLOGY}|" in header["Segment0_Tags"]
    assert "TerminologyEntry" not in header["Segment1_Tags"]
    assert header["Segment1_Tags"].endswith("|")
    parameters = dict(p.split("|")[:2] for p in header["Segmentation_ConversionParameters"].split("&") if p)
    assert parameters["Collapse labelmaps"] == "1"
    numbers = [float(part) for part in parameters["Reference image geometry"].split(";") if part]
    matrix, extent = np.reshape(numbers[:16], (4, 4)), numbers[16:]
    assert extent == [0, 13, 0, 11, 0, 9]
    right_anterior_superior = np.array(labels.TransformIndexToPhysicalPoint((13, 2, 5))) * (-1, -1, 1)
    assert matrix @ (13, 2, 5, 1) == pytest.approx([*right_anterior_superior, 1])


def test_nrrd_space_and_directions_say_where_the_voxels_are(tmp_path: Path, labels: sitk.Image) -> None:
    write_segmentation(labels, STRUCTURES, tmp_path / "a.seg.nrrd")
    header = header_of(tmp_path / "a.seg.nrrd")
    vectors = [[float(x) for x in v.split(",")] for v in re.findall(r"\(([^)]*)\)", header["space directions"])]
    origin = [float(x) for x in header["space origin"].strip("()").split(",")]
    place = np.array(origin) + np.array([4, 5, 6]) @ np.array(vectors)
    assert place == pytest.approx(labels.TransformIndexToPhysicalPoint((4, 5, 6)))
    again, _ = read_segmentation(tmp_path / "a.seg.nrrd")
    assert geometry_difference(again, labels) is None


@pytest.mark.parametrize("ending", WRITABLE_SUFFIXES)
def test_names_colors_and_terminology_come_back(tmp_path: Path, labels: sitk.Image, ending: str) -> None:
    path = tmp_path / f"Fall ü 一{ending}"
    write_segmentation(labels, STRUCTURES, path)
    again, structures = read_segmentation(path)
    assert structures == STRUCTURES
    assert np.array_equal(voxels(again), voxels(labels))
    assert again.GetPixelID() == sitk.sitkUInt16
    assert geometry_difference(again, labels) is None


def test_label_numbers_beyond_a_byte_survive(tmp_path: Path, labels: sitk.Image) -> None:
    for value in (300, 70000):
        big = sitk.Cast(labels == 1, sitk.sitkInt32) * value
        for ending in (".seg.nrrd", ".nii.gz"):
            path = tmp_path / f"{value}{ending}"
            write_segmentation(big, [Structure("big", value, (1.0, 0.0, 0.0))], path)
            again, structures = read_segmentation(path)
            assert np.array_equal(voxels(again), voxels(big))
            assert structures[0].value == value


def test_color_table_is_slicers_and_edits_of_it_count(tmp_path: Path, labels: sitk.Image) -> None:
    write_segmentation(labels, STRUCTURES, tmp_path / "a.nii.gz")
    table = tmp_path / "a.ctbl"
    rows = [line.split() for line in table.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    assert rows[0] == ["0", "Background", "0", "0", "0", "0"]
    assert rows[1] == ["1", "anterior_hippocampus", "25.5", "63.75", "85", "255"]
    assert rows[2][:2] == ["7", "Mandelkern_扁桃体"]
    table.write_text(
        table.read_text(encoding="utf-8").replace("7 Mandelkern_扁桃体 255", "7 left_amygdala 255"), encoding="utf-8"
    )
    assert [s.name for s in read_segmentation(tmp_path / "a.nii.gz")[1]] == ["anterior hippocampus", "left amygdala"]


def test_color_table_of_slicer_gives_names_of_present_labels_only(tmp_path: Path, labels: sitk.Image) -> None:
    write_image(sitk.Cast(labels, sitk.sitkUInt8), tmp_path / "a.nii.gz")
    lines = [
        "# Color table file",
        "# 9 values",
        "0 Background 0 0 0 0",
        "1 left_amygdala 255 0 51 255",
        "8 bone 1 2 3 255",
    ]
    (tmp_path / "a_ColorTable.ctbl").write_text("\n".join(lines))
    assert read_segmentation(tmp_path / "a.nii.gz")[1] == [Structure("left amygdala", 1, (1.0, 0.0, 0.2))]
    (tmp_path / "a_ColorTable.ctbl").write_text("1 name red\n")
    with pytest.raises(InputError, match=r"a_ColorTable\.ctbl") as caught:
        read_segmentation(tmp_path / "a.nii.gz")
    assert caught.value.code == "bad_color_table"


def test_file_without_names_has_no_structures(tmp_path: Path, labels: sitk.Image) -> None:
    write_image(sitk.Cast(labels, sitk.sitkFloat32), tmp_path / "a.nii.gz")
    again, structures = read_segmentation(tmp_path / "a.nii.gz")
    assert structures == []
    assert np.array_equal(voxels(again), voxels(labels))


@pytest.mark.parametrize("wrong", [0.5, -1.0, np.nan, 3e9])
def test_values_that_are_no_labels_are_refused(tmp_path: Path, scan: sitk.Image, wrong: float) -> None:
    array = np.zeros((10, 12, 14), np.float32)
    array[3, 3, 3] = wrong
    write_image(oblique(array), tmp_path / "a.mha")
    with pytest.raises(InputError, match=r"a\.mha") as caught:
        read_segmentation(tmp_path / "a.mha")
    assert caught.value.code == "not_labels"


def layered(tmp_path: Path, first: np.ndarray, second: np.ndarray, values: tuple[int, int]) -> Path:
    """Write a .seg.nrrd with two layers and one segment in each, as Slicer does where segments may overlap."""
    image = sitk.Compose(oblique(first.astype(np.uint8) * values[0]), oblique(second.astype(np.uint8) * values[1]))
    for index, value in enumerate(values):
        image.SetMetaData(f"Segment{index}_ID", f"Segment_{index + 1}")
        image.SetMetaData(f"Segment{index}_Name", f"part {index}")
        image.SetMetaData(f"Segment{index}_LabelValue", str(value))
        image.SetMetaData(f"Segment{index}_Layer", str(index))
    path = tmp_path / "layers.seg.nrrd"
    sitk.WriteImage(image, str(path), useCompression=True)
    return path


@pytest.mark.parametrize("values", [(1, 1), (1, 2), (4, 4)])
def test_layers_are_merged_when_they_do_not_overlap(tmp_path: Path, values: tuple[int, int]) -> None:
    first, second = np.zeros((10, 12, 14), bool), np.zeros((10, 12, 14), bool)
    first[2:4, 2:4, 2:5], second[6:8, 2:4, 2:5] = True, True
    path = layered(tmp_path, first, second, values)
    labels, structures = read_segmentation(path)
    number = {s.name: s.value for s in structures}
    assert sorted(number) == ["part 0", "part 1"]
    assert np.array_equal(voxels(labels) == number["part 0"], first)
    assert np.array_equal(voxels(labels) == number["part 1"], second)


def test_layers_that_overlap_are_refused(tmp_path: Path) -> None:
    first, second = np.zeros((10, 12, 14), bool), np.zeros((10, 12, 14), bool)
    first[2:4, 2:4, 2:5], second[3:8, 2:4, 2:5] = True, True
    with pytest.raises(InputError, match="overlap in 6 voxels") as caught:
        read_segmentation(layered(tmp_path, first, second, (1, 1)))
    assert caught.value.code == "overlapping_segments"


def test_layer_of_background_overlaps_nothing(tmp_path: Path) -> None:
    first, second = np.zeros((10, 12, 14), bool), np.ones((10, 12, 14), bool)
    first[2:4, 2:4, 2:5] = True
    path = layered(tmp_path, first, second, (1, 1))
    image = sitk.ReadImage(path)
    image.SetMetaData("Segment1_Name", "background")
    sitk.WriteImage(image, str(path), useCompression=True)
    labels, structures = read_segmentation(path)
    assert [(s.name, s.value) for s in structures] == [("part 0", 1)]
    assert np.array_equal(voxels(labels), first)


def test_images_of_a_folder_are_listed_without_side_files_and_voxels_of_headers(tmp_path: Path) -> None:
    names = ["a.hdr", "a.IMG", "b.HDR", "b.img.gz", "c.img", "d.nii.gz", "e.dcm", "._d.nii.gz", "notes.txt", "a.ctbl"]
    for name in names:
        (tmp_path / name).write_text("x")
    (tmp_path / "folder.nii").mkdir()
    assert [path.name for path in images_in(tmp_path)] == ["a.hdr", "b.HDR", "c.img", "d.nii.gz", "e.dcm"]


def test_files_of_an_image_are_all_that_it_is_read_from(tmp_path: Path) -> None:
    series = tmp_path / "series"
    series.mkdir()
    for name in (
        "a[1].mhd",
        "a[1].zraw",
        "a1.zraw",
        "b.hdr",
        "b.img",
        "c.nii.gz",
        "c.json",
        "series/2.dcm",
        "series/1",
    ):
        (tmp_path / name).write_text("x")
    (series / ".DS_Store").write_text("x")

    def names(path: Path) -> list[str]:
        return [file.name for file in files_of(path)]

    assert names(tmp_path / "a[1].mhd") == ["a[1].mhd", "a[1].zraw"]
    assert names(tmp_path / "b.hdr") == names(tmp_path / "b.img") == ["b.hdr", "b.img"]
    assert names(tmp_path / "c.nii.gz") == ["c.nii.gz"]
    assert names(series) == ["1", "2.dcm"]


def test_two_segments_of_one_name_are_refused(tmp_path: Path, labels: sitk.Image) -> None:
    with pytest.raises(InputError):
        write_segmentation(labels, [Structure("a", 1), Structure("A", 2)], tmp_path / "a.seg.nrrd")
    assert list(tmp_path.iterdir()) == []


def test_default_colors_differ() -> None:
    colors = [default_color(value) for value in range(1, 41)]
    assert len(set(colors)) == 40
    assert all(0 <= part <= 1 for color in colors for part in color)
    assert min(math.dist(a, b) for a, b in itertools.pairwise(colors)) > 0.2


def test_unknown_ending_and_missing_folder_are_named(tmp_path: Path, scan: sitk.Image, labels: sitk.Image) -> None:
    with pytest.raises(InputError, match=r"a\.txt") as caught:
        write_image(scan, tmp_path / "a.txt")
    assert caught.value.code == "unknown_format"
    with pytest.raises(InputError):
        write_segmentation(labels, STRUCTURES, tmp_path / "a.png")
    with pytest.raises(TCurLoraError, match="no folder"):
        write_image(scan, tmp_path / "nowhere" / "a.nrrd")
    with pytest.raises(TCurLoraError, match="no folder"):
        write_segmentation(labels, STRUCTURES, tmp_path / "nowhere" / "a.nii.gz")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on file sizes")
@pytest.mark.parametrize("ending", WRITABLE_SUFFIXES)
def test_full_disk_leaves_the_old_file(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a{ending}"
    path.write_bytes(b"old")
    program = """
import resource, sys
from pathlib import Path
import numpy as np, SimpleITK as sitk
from tcurlora.errors import TCurLoraError
from tcurlora.imaging.images import write_image
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
image = sitk.GetImageFromArray(np.random.default_rng(0).normal(size=(30, 30, 30)).astype(np.float32))
try:
    write_image(image, Path(sys.argv[1]))
except TCurLoraError as error:
    print(error.code)
"""
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, env=environment())
    assert done.stdout.strip() == "not_written", done.stderr
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def test_light_modules_load_no_torch() -> None:
    program = (
        "import sys, tcurlora.imaging.images, tcurlora.imaging.grids, tcurlora.cases.dataset; "
        "print(sorted({'torch', 'monai', 'scipy', 'slicer', 'vtk', 'qt'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment())
    assert done.stdout.strip() == "[]", done.stderr
