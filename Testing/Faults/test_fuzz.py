"""A part of what `fuzz.py` does with thousands of damaged files, and one test for each kind of damage that got through.

ITK has read each of these files without an error.
"""

from __future__ import annotations

import gzip
import json
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fuzz
import numpy as np
import pytest
import SimpleITK as sitk
from safetensors.torch import load_file, save_file
from samples import make_samples

from tcurlora.cases.dataset import find_cases
from tcurlora.errors import InputError
from tcurlora.imaging.grids import to_model_grid
from tcurlora.imaging.images import read_image
from tcurlora.models.opening import load_base_model
from tcurlora.runtime.job_folder import JobFolder
from tcurlora.training import trainer as training

needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="looks at memory in /proc")


@needs_proc
def test_damaged_files_end_in_a_sentence_or_a_right_result() -> None:
    outcomes, failures = fuzz.run(count=100, seed=1)
    assert not failures
    assert sum(outcomes.values()) == 100
    # Damage that is always refused, or never, would prove nothing.
    assert min(sum(n for key, n in outcomes.items() if key.endswith(end)) for end in ("refused", "right")) > 15


@needs_proc
def test_fuzzer_notices_what_it_looks_for(tmp_path: Path) -> None:
    def fails(error: Exception) -> Callable[[Path, Path], None]:
        def check(path: Path, sound: Path) -> None:
            raise error

        return check

    assert fuzz._judge(fails(ValueError("x")), tmp_path, tmp_path)[0] == "exception"
    assert fuzz._judge(fails(InputError("")), tmp_path, tmp_path)[0] == "speechless"
    assert fuzz._judge(fails(InputError("a file is damaged")), tmp_path, tmp_path)[0] == "refused"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_samples(tmp_path_factory.mktemp("sound") / "samples")


def replaced(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        assert old in data
        return data.replace(old, new, 1)

    return change


def packed_into(code: str, offset: int, value: Any) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        raw = bytearray(data)
        struct.pack_into(code, raw, offset, value)
        return bytes(raw)

    return change


def wrong_checksum(data: bytes) -> bytes:
    return data[:-8] + bytes(4) + data[-4:]


def shortened_inside(data: bytes) -> bytes:
    return data[:3000] + data[3004:]


def claims_gigabytes(data: bytes) -> bytes:
    return data.replace(b"sizes: 14 12 10", b"sizes: 1200 1200 1200", 1)


DAMAGES = {
    "nifti_lost_bytes": ("images/plain.nii", shortened_inside),
    "nifti_voxels_begin_in_header": ("images/plain.nii", packed_into("<f", 108, 351.0)),
    "nifti_voxels_begin_nowhere": ("images/plain.nii", packed_into("<f", 108, float("nan"))),
    "nifti_voxels_begin_late": ("images/plain.nii", packed_into("<f", 108, 400.0)),
    "nifti_mark_of_the_format": ("images/plain.nii", packed_into("4s", 344, b"n+1\x80")),
    "nifti_factor_that_itk_takes_for_1": ("images/plain.nii", packed_into("<f", 112, 1e-20)),
    "nifti_voxels_without_width": ("images/plain.nii", packed_into("<f", 80, 1e-30)),
    "nifti_bits_of_another_type": ("images/plain.nii", packed_into("<h", 72, 8)),
    "nrrd_wrong_checksum": ("images/packed.nrrd", wrong_checksum),
    "nrrd_claims_gigabytes": ("images/plain.nrrd", claims_gigabytes),
    "nrrd_packed_claims_gigabytes": ("images/packed.nrrd", claims_gigabytes),
    "nrrd_without_directions": ("images/plain.nrrd", replaced(b"space directions", b"#")),
    "nrrd_direction_is_no_number": ("images/plain.nrrd", replaced(b"directions: (1.", b"directions: (1x.")),
    "mha_minus_one_axes": ("images/plain.mha", replaced(b"NDims = 3", b"NDims = -1")),  # ends the process in ITK
    "mha_infinite_origin": ("images/plain.mha", replaced(b"Offset = -31.25 44.5", b"Offset = -31.25 inf")),
    "mha_without_spacing": ("images/plain.mha", replaced(b"ElementSpacing", b"Comment")),
    "mha_line_without_a_value": ("images/plain.mha", replaced(b"TransformMatrix =", b"TransformMatrix  ")),
    "mha_order_of_bytes": ("images/plain.mha", replaced(b"OrderMSB = False", b"OrderMSB = x")),
    "mha_without_packed_size": ("images/packed.mha", replaced(b"CompressedDataSize", b"Comment")),
    "dicom_lacks_voxels": ("series/slice2.dcm", replaced(b"\xe0\x7f\x10\0\x70", b"\xe0\x7f\x10\0\x08")),
    "dicom_without_a_word_on_colors": ("series/slice2.dcm", replaced(b"(\0\x04\0", b"(\0\x05\0")),
    "dicom_color_of_one_value": ("series/slice2.dcm", replaced(b"MONOCHROME2 ", b"RGB         ")),
    "dicom_more_bits_than_room": (
        "series/slice2.dcm",
        replaced(b"(\0\0\x01\x02\0\0\0\x10", b"(\0\0\x01\x02\0\0\0\x08"),
    ),
    "dicom_slice_of_another_orientation": ("series/slice2.dcm", replaced(b"0\\1\\0\\0\\0\\-1", b"0\\1\\0\\1\\0\\00")),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_that_itk_overlooks_is_refused(sound: Path, tmp_path: Path, name: str) -> None:
    file, damage = DAMAGES[name]
    folder = tmp_path / "damaged"
    folder.mkdir()
    source = sound / file
    for other in source.parent.iterdir() if source.suffix == ".dcm" else [source]:
        (folder / other.name).write_bytes(other.read_bytes())
    (folder / source.name).write_bytes(damage(source.read_bytes()))
    with pytest.raises(InputError) as caught:
        read_image(folder if source.suffix == ".dcm" else folder / source.name)
    assert "damaged" in str(caught.value)
    assert caught.value.remedy


def test_tilted_gantry_is_refused(sound: Path, tmp_path: Path) -> None:
    for index in range(5):
        raw = (sound / "series" / f"slice{index}.dcm").read_bytes()
        place = f"{-20 + 1.5 * index:g}\\-5\\30".encode()
        tilted = f"{-20 + 1.5 * index:g}\\-5\\3{index}".encode()
        assert place in raw
        (tmp_path / f"{index}.dcm").write_bytes(raw.replace(place, tilted, 1))
    with pytest.raises(InputError) as caught:
        read_image(tmp_path)
    assert caught.value.code == "tilted"


@pytest.mark.parametrize("unit", [1e-3, 1e3])
def test_voxel_size_in_another_unit_is_refused_before_memory_is_taken(unit: float) -> None:
    image = sitk.Image(300, 300, 100, sitk.sitkInt16)
    image.SetSpacing((unit, unit, unit))
    for label in (False, True):
        with pytest.raises(InputError, match="which cannot be brought to the model's") as caught:
            to_model_grid(image, (1.0, 1.0, 1.0), label)
        assert caught.value.code == "bad_spacing"


def test_subjects_of_a_short_row_do_no_harm(sound: Path, tmp_path: Path) -> None:
    for part in ("images", "labels"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "scan1.nii.gz").write_bytes((sound / "site" / part / "scan1.nii.gz").read_bytes())
    (tmp_path / "cases.csv").write_text("subject,file\nanna,scan1.nii.gz\nbert\n", encoding="utf-8")
    assert [case.subject for case in find_cases(tmp_path).cases] == ["anna"]


def test_json_nested_without_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "datalist.json").write_text('{"training": ' + "[" * 100_000 + "]" * 100_000 + "}", encoding="utf-8")
    with pytest.raises(InputError) as caught:
        find_cases(tmp_path / "datalist.json")
    assert caught.value.code == "bad_json"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(sound: Path, tmp_path: Path, value: float) -> None:
    from samples import write_bundle

    bundle = write_bundle(tmp_path / "bundle")
    weights = bundle / "models" / "model.safetensors"
    state = load_file(weights)
    next(iter(state.values())).view(-1)[0] = value
    save_file(state, weights)
    with pytest.raises(InputError) as caught:
        load_base_model(bundle).build()
    assert caught.value.code == "bad_weights"


def test_one_wrong_bit_in_a_checkpoint_is_noticed(sound: Path, tmp_path: Path) -> None:
    raw = bytearray((sound / "job" / "checkpoint.safetensors").read_bytes())
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(raw)
    settings = training.TrainingSettings()
    found = training._load_checkpoint(path, settings)
    assert found is not None and found.result.steps == 20
    raw[-100] ^= 1
    path.write_bytes(raw)
    assert training._load_checkpoint(path, settings) is None


def test_damaged_intermediate_result_is_computed_again(tmp_path: Path) -> None:
    job = JobFolder.start(tmp_path / "job", "adapt", {}, {})
    job.remember("fold-1", {"dice": 0.5})
    path = tmp_path / "job" / "done" / "fold-1.json"
    assert job.remembered("fold-1") == {"dice": 0.5}
    for damaged in (path.read_bytes().replace(b"0.5", b"0.9"), b"\xff", b"[]", b"", b"[" * 100_000):
        path.write_bytes(damaged)
        assert job.remembered("fold-1") is None


def test_more_than_255_structures_keep_their_labels(tmp_path: Path) -> None:
    from tcurlora.cases.cached_case import cache_case
    from tcurlora.cases.case import Case
    from tcurlora.imaging.structures import Structure
    from tcurlora.models.monai_preprocessing import MonaiPreprocessing

    values = np.arange(1, 301).reshape(5, 6, 10)
    sitk.WriteImage(sitk.GetImageFromArray(values.astype(np.float32)), tmp_path / "a.nii.gz")
    sitk.WriteImage(sitk.GetImageFromArray(values.astype(np.uint16)), tmp_path / "l.nii.gz")
    case = Case("a", tmp_path / "a.nii.gz", tmp_path / "l.nii.gz", "a")
    structures = [Structure(f"s{value}", value) for value in range(1, 301)]
    cached = cache_case(case, structures, MonaiPreprocessing(None, ()), tmp_path / "cache")
    # The scan's intensities are the labels, so that both must come out alike.
    image, label = cached.load()
    assert np.array_equal(np.asarray(image)[0].astype(int), np.asarray(label))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scan_with_values_that_are_no_numbers_is_not_segmented(value: float) -> None:
    from targets import segment

    voxels = np.random.default_rng(0).normal(size=(9, 10, 11)).astype(np.float32)
    segment(sitk.GetImageFromArray(voxels))
    voxels[4, 4, 4] = value
    with pytest.raises(InputError) as caught:
        segment(sitk.GetImageFromArray(voxels))
    assert caught.value.code == "non_finite"


def test_itk_reads_values_of_a_nifti_that_are_no_numbers_as_0(tmp_path: Path) -> None:
    """As it is, for all programs that read with ITK; the day that it changes, the check above takes over."""
    voxels = np.ones((4, 5, 6), np.float32)
    voxels[1, 1, 1] = np.nan
    sitk.WriteImage(sitk.GetImageFromArray(voxels), tmp_path / "a.nii.gz")
    assert np.isnan(np.frombuffer(gzip.decompress((tmp_path / "a.nii.gz").read_bytes())[352:], "<f4")).sum() == 1
    assert sitk.GetArrayFromImage(read_image(tmp_path / "a.nii.gz"))[1, 1, 1] == 0


def test_huge_numbers_of_labels_are_refused(tmp_path: Path) -> None:
    for part in ("images", "labels"):
        (tmp_path / part).mkdir()
        sitk.WriteImage(sitk.Image(4, 4, 4, sitk.sitkUInt8), tmp_path / part / "a.nii.gz")
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {str(2**31): "x"}}), encoding="utf-8")
    with pytest.raises(InputError) as caught:
        find_cases(tmp_path)
    assert caught.value.code == "bad_labels"
