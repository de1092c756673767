"""DICOM files element by element: what scanners write beside and inside of slices, and what is damaged."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from tcurlora.errors import InputError
from tcurlora.imaging.headers import has_sound_header
from tcurlora.imaging.images import read_image

MR = "1.2.840.10008.5.1.4.1.1.4"
UNDEFINED = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END = (struct.pack("<2H", 0xFFFE, number) for number in (0xE000, 0xE00D, 0xE0DD))
WITHOUT_PIXELS = {
    "structured report": "1.2.840.10008.5.1.4.1.1.88.22",
    "presentation state": "1.2.840.10008.5.1.4.1.1.11.1",
    "raw data": "1.2.840.10008.5.1.4.1.1.66",
    "registration": "1.2.840.10008.5.1.4.1.1.66.1",
    "plan": "1.2.840.10008.5.1.4.1.1.481.5",
    "spectrum": "1.2.840.10008.5.1.4.1.1.4.2",
    "private": "1.3.46.670589.11.0.0.12.2",
    "DICOMDIR": "1.2.840.10008.1.3.10",
}


def element(group: int, number: int, kind: str, value: bytes | str, undefined: bool = False) -> bytes:
    """An element with its value representation in words, little-endian."""
    content = value.encode() if isinstance(value, str) else value
    content += (b"\0" if kind == "UI" else b" ") * (len(content) % 2)
    length = UNDEFINED if undefined else len(content)
    long = kind in ("OW", "SQ", "UN")
    return struct.pack("<2H", group, number) + kind.encode() + struct.pack("<2xI" if long else "<H", length) + content


def implicit(group: int, number: int, value: bytes, undefined: bool = False) -> bytes:
    return struct.pack("<2HI", group, number, UNDEFINED if undefined else len(value)) + value


def item(content: bytes, undefined: bool) -> bytes:
    length = UNDEFINED if undefined else len(content)
    return ITEM + struct.pack("<I", length) + content + (ITEM_END + bytes(4) if undefined else b"")


def sequence(*items: bytes) -> bytes:
    """The value of a sequence of undefined length."""
    return b"".join(items) + SEQUENCE_END + bytes(4)


def head(kind: str, uid: str) -> bytes:
    meta = element(2, 2, "UI", kind) + element(2, 3, "UI", uid) + element(2, 0x10, "UI", "1.2.840.10008.1.2.1")
    return bytes(128) + b"DICM" + element(2, 0, "UL", struct.pack("<I", len(meta))) + meta


def slice_elements(number: int) -> list[bytes]:
    def short(number: int, value: int) -> bytes:
        return element(0x28, number, "US", struct.pack("<H", value))

    return [
        element(8, 0x16, "UI", MR),
        element(8, 0x18, "UI", f"1.2.3.{number}"),
        element(8, 0x60, "CS", "MR"),
        element(0x18, 0x50, "DS", "2"),
        element(0x20, 0xD, "UI", "1.2.3"),
        element(0x20, 0xE, "UI", "1.2.3.4"),
        element(0x20, 0x13, "IS", str(number)),
        element(0x20, 0x32, "DS", f"0\\0\\{2 * number}"),
        element(0x20, 0x37, "DS", "1\\0\\0\\0\\1\\0"),
        short(2, 1),
        element(0x28, 4, "CS", "MONOCHROME2"),
        short(0x10, 6),
        short(0x11, 8),
        element(0x28, 0x30, "DS", "1\\1"),
        *(short(tag, value) for tag, value in ((0x100, 16), (0x101, 16), (0x102, 15), (0x103, 0))),
    ]


def write_slice(path: Path, number: int, private: bytes = b"", kind: str = MR) -> Path:
    pixels = element(0x7FE0, 0x10, "OW", (np.arange(48) + 7 * number).astype("<u2").tobytes())
    path.write_bytes(head(kind, f"1.2.3.{number}") + b"".join(slice_elements(number)) + private + pixels)
    return path


def write_series(folder: Path, private: bytes = b"", slices: int = 4) -> Path:
    folder.mkdir()
    for number in range(slices):
        write_slice(folder / f"IM{number}", number, private)
    return folder


def write_without_pixels(path: Path, kind: str) -> Path:
    content = item(element(8, 0x100, "SH", "121071"), undefined=True)
    elements = [
        element(8, 0x16, "UI", kind),
        element(8, 0x18, "UI", "1.2.3.99"),
        element(0x20, 0xD, "UI", "1.2.3"),
        element(0x20, 0xE, "UI", "1.2.3.5"),
        element(0x40, 0xA730, "SQ", sequence(content), undefined=True),
    ]
    path.write_bytes(head(kind, "1.2.3.99") + b"".join(elements))
    return path


def voxels(folder: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(read_image(folder))


NESTED = implicit(0x2005, 0x1, sequence(item(implicit(8, 0x104, b"in it "), True)), undefined=True)
UNKNOWN = {
    "one value": [implicit(8, 0x100, b"CODE")],
    "two items": [implicit(8, 0x100, b"CODE"), implicit(8, 0x102, b"DCM ")],
    "sequence in it": [NESTED + implicit(8, 0x100, b"CODE")],
    "nothing": [],
    # PS3.5 6.2.2 forbids it, but some programs wrote it so, and ITK reads it.
    "explicit": [element(8, 0x100, "SH", "CODE") + element(8, 0x1140, "SQ", sequence(), undefined=True)],
}


@pytest.mark.parametrize("place", ["first", "in a sequence"])
@pytest.mark.parametrize("undefined", [True, False])
@pytest.mark.parametrize("content", UNKNOWN)
def test_private_sequence_of_unknown_kind_is_passed_over(
    tmp_path: Path, content: str, undefined: bool, place: str
) -> None:
    """An element of kind UN and undefined length holds items without value representations."""
    items = [item(part, undefined) for part in UNKNOWN[content]]
    private = element(0x2005, 0x140F, "UN", sequence(*items), undefined=True)
    if place == "in a sequence":
        private = element(0x2005, 0x1402, "SQ", sequence(item(private, undefined=True)), undefined=True)
    owner = element(0x2005, 0x14, "LO", "Philips MR Imaging DD 005")
    series = write_series(tmp_path / "with", owner + private)
    assert np.array_equal(voxels(series), voxels(write_series(tmp_path / "without")))
    # Behind it, nothing may be missing either.
    path = series / "IM2"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(InputError, match="damaged"):
        read_image(series)


@pytest.mark.parametrize("kind", WITHOUT_PIXELS)
def test_what_has_no_pixels_beside_the_slices_is_passed_over(tmp_path: Path, kind: str) -> None:
    expected = voxels(write_series(tmp_path / "alone"))
    series = write_series(tmp_path / "together")
    write_without_pixels(series / ("DICOMDIR" if kind == "DICOMDIR" else "A0000"), WITHOUT_PIXELS[kind])
    assert np.array_equal(voxels(series), expected)


def test_what_has_no_pixels_is_no_scan(tmp_path: Path) -> None:
    path = write_without_pixels(tmp_path / "report.dcm", WITHOUT_PIXELS["structured report"])
    with pytest.raises(InputError, match=r"report\.dcm"):
        read_image(path)


def test_slice_cut_short_at_any_byte_is_damaged(tmp_path: Path) -> None:
    """Also between two elements, where it looks like an object without pixels, and ITK would leave it out."""
    whole = write_slice(tmp_path / "whole", 1, element(0x2005, 0x140F, "UN", sequence(), undefined=True)).read_bytes()
    cut = tmp_path / "cut"
    for length in range(132, len(whole)):
        cut.write_bytes(whole[:length])
        assert not has_sound_header(cut), length
    cut.write_bytes(whole)
    assert has_sound_header(cut)


@pytest.mark.parametrize("kept", range(len(slice_elements(0)) + 1))
def test_last_slice_without_its_last_elements_is_not_left_out(tmp_path: Path, kept: int) -> None:
    series = write_series(tmp_path / "series")
    (series / "IM3").write_bytes(head(MR, "1.2.3.3") + b"".join(slice_elements(3)[:kept]))
    with pytest.raises(InputError, match="damaged"):
        read_image(series)


@pytest.mark.parametrize(
    "kind",
    [
        *("1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4.1", "1.2.840.10008.5.1.4.1.1.128"),
        *("1.2.840.10008.5.1.4.1.1.7.2", "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.481.2", ""),
    ],
)
def test_image_without_pixels_is_damaged(tmp_path: Path, kind: str) -> None:
    assert not has_sound_header(write_without_pixels(tmp_path / "image", kind))


def test_report_cut_short_is_damaged(tmp_path: Path) -> None:
    report = write_without_pixels(tmp_path / "report", WITHOUT_PIXELS["structured report"])
    content = report.read_bytes()
    for missing in range(1, 40):
        report.write_bytes(content[:-missing])
        assert not has_sound_header(report), missing


def test_deep_sequences_of_unknown_kind_take_no_time(tmp_path: Path) -> None:
    opened = element(0x2005, 0x140F, "UN", ITEM + struct.pack("<I", UNDEFINED), undefined=True)
    assert not has_sound_header(write_slice(tmp_path / "deep", 1, opened * 50_000))
