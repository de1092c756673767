"""Intensities that are no numbers to a network, and extreme ones that ruin its normalization."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from tcurlora.cases.case import Case, Dataset
from tcurlora.cases.checks import check_cases
from tcurlora.errors import InputError
from tcurlora.imaging.image_warnings import ImageWarning
from tcurlora.imaging.images import read_image
from tcurlora.imaging.intensities import check_intensities, extremes, require_finite_image
from tcurlora.imaging.structures import Structure

RNG = np.random.default_rng(0)
SHAPE = (20, 24, 22)


def scan(kind: str) -> np.ndarray:
    """Intensities as scanners and programs make them, without extreme ones."""
    noise = RNG.normal(size=SHAPE)
    ball = ((np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")) ** 2).sum(0)) < 0.7
    return {
        "MRI": np.abs(40 * noise + 400 * ball + 100 * RNG.random(SHAPE)),
        "MRI with a masked background": ball * np.clip(500 + 120 * noise, 50, None),
        "CT": np.where(ball, 40 + 120 * noise, -1000 + 15 * noise) + 900 * (np.abs(noise) > 2.5) * ball,
        "CT with metal": np.where(ball, 40 + 120 * noise, -1000 + 15 * noise) + 20000 * (noise > 3.3) * ball,
        "normalized": noise,
        "normalized with a background": np.where(ball, noise, -2.0),
        "one bright vessel": np.abs(100 + 30 * noise + 900 * (RNG.random(SHAPE) > 0.9995)),
        "a mask": ball.astype(float),
        "probabilities": 1 / (1 + np.exp(-8 * (ball - 0.5) + noise)),
        "PET": np.exp(2 * noise + 3 * ball),
    }[kind]


KINDS = (
    *("MRI", "MRI with a masked background", "CT", "CT with metal", "normalized", "normalized with a background"),
    *("one bright vessel", "a mask", "probabilities", "PET"),
)


@pytest.mark.parametrize("kind", KINDS)
def test_usual_scans_have_no_extreme_values(kind: str) -> None:
    values = scan(kind)
    assert extremes(values.astype(np.float32)) is None
    assert extremes((values * 1000 if np.abs(values).max() < 50 else values).astype(np.int32)) is None


@pytest.mark.parametrize("kind", ["MRI", "MRI with a masked background", "CT", "normalized"])
@pytest.mark.parametrize("value", [-3024, -32768, 1e9, -1e6, 32767])
@pytest.mark.parametrize("part", [0.02, 0.1, 0.4])
def test_padding_far_from_all_values_is_found(kind: str, value: float, part: float) -> None:
    values = scan(kind).astype(np.float32)
    padded = RNG.random(SHAPE) < part
    values[padded] = value
    found = extremes(values)
    assert found is not None
    assert found[0] == padded.sum()
    assert (found[1], found[2]) == (value, value)


def test_single_voxels_and_both_ends_are_found() -> None:
    values = scan("MRI").astype(np.float64)
    values[3, 3, 3] = 1e9
    assert extremes(values) is not None
    values[4, 4, 4] = -1e9
    values[5, 5, 5] = 1e12
    found = extremes(values)
    assert found is not None
    assert found[0] == 3
    values = scan("CT").astype(np.int16)
    values[:2], values[3, 3, 3] = -32768, 32767
    found = extremes(values)
    assert found is not None
    assert found[0] == 2 * 24 * 22 + 1


NOT_FINITE = {
    "NaN": np.nan,
    "infinite": np.inf,
    "too large for single precision": 1e300,
    "too small for single precision": -1e39,
}


@pytest.mark.parametrize("what", NOT_FINITE)
def test_values_that_a_network_cannot_take_are_refused_with_their_number(tmp_path: Path, what: str) -> None:
    values = scan("MRI").astype(np.float64)
    values[1, 2, 3], values[4, 5, 6] = NOT_FINITE[what], NOT_FINITE[what]
    image = sitk.GetImageFromArray(values)
    with pytest.raises(InputError, match=r"2 voxels.*\(") as caught:
        require_finite_image(image, "scan")
    assert caught.value.code == "non_finite"
    for part in ("image", "label"):
        sitk.WriteImage(image if part == "image" else sitk.Cast(image > 1e30, sitk.sitkUInt8), tmp_path / f"{part}.mha")
    case = Case("a", tmp_path / "image.mha", tmp_path / "label.mha", "a")
    findings = check_cases(Dataset(tmp_path, (case,), ()), [Structure("x", 1)], minimum=1)
    assert [f.severity for f in findings if f.code == "non_finite"] == ["error"]


def test_values_that_overflow_in_their_scaling_are_refused(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(scan("MRI").astype(np.int16)), tmp_path / "a.nii")
    raw = bytearray((tmp_path / "a.nii").read_bytes())
    struct.pack_into("<2f", raw, 112, 1e38, 0)
    (tmp_path / "a.nii").write_bytes(bytes(raw))
    with pytest.raises(InputError) as caught:
        require_finite_image(read_image(tmp_path / "a.nii"), "a.nii")
    assert caught.value.code == "non_finite"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_numbers_that_itk_reads_as_0_are_told(tmp_path: Path, ending: str, dtype: type) -> None:
    values = scan("MRI").astype(dtype)
    sitk.WriteImage(sitk.GetImageFromArray(values), tmp_path / f"a{ending}")
    warnings: list[ImageWarning] = []
    read_image(tmp_path / f"a{ending}", warnings.append)
    assert not warnings
    values[0, 0, 0], values[1, 2, 3], values[-1, -1, -1] = np.nan, -np.inf, np.nan
    sitk.WriteImage(sitk.GetImageFromArray(values), tmp_path / f"a{ending}")
    read_image(tmp_path / f"a{ending}", warnings.append)
    assert [warning.code for warning in warnings] == ["not_numbers"]
    assert "3 voxels" in warnings[0].message


def test_large_whole_numbers_are_finite() -> None:
    for dtype, value in ((np.int64, 2**62), (np.uint64, 2**63 + 1)):
        values = np.ones(SHAPE, dtype)
        values[0, 0, 0] = value
        require_finite_image(sitk.GetImageFromArray(values), "scan")


def test_extreme_values_are_warned_of_in_each_channel(tmp_path: Path) -> None:
    values = np.stack([scan("MRI"), scan("CT")], -1).astype(np.float32)
    values[:3, ..., 1] = -32768
    warnings: list[ImageWarning] = []
    check_intensities(sitk.GetImageFromArray(values, isVector=True), "scan", warnings.append)
    assert [warning.code for warning in warnings] == ["extreme_values"]
    assert "-32768" in warnings[0].message
