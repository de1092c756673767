"""Sites that label a part: some of the base's structures, some voxels, or one of several regions."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from tcurlora.cases import cached_case
from tcurlora.cases.cached_case import cache_case, list_voxels, unlabeled
from tcurlora.cases.case import Case
from tcurlora.cases.dataset import find_cases
from tcurlora.errors import InputError
from tcurlora.imaging.grids import label_array
from tcurlora.imaging.label_layers import in_layers
from tcurlora.imaging.structures import Structure
from tcurlora.inference.segmenter_cache import SegmenterCache
from tcurlora.method.model import TensorCurModel
from tcurlora.models.adapter_files import read_adapter_config, read_adapter_structures
from tcurlora.models.opening import load_base_model
from tcurlora.runtime.events import NullEvents
from tcurlora.training import target_site
from tcurlora.training.adaptation import AdaptRequest, run_adapt
from tcurlora.training.target_site import check_site, open_site, score_cases
from tcurlora.training.trainer import TrainingSettings, train

CPU = torch.device("cpu")
POSTERIOR = "posterior hippocampus"


def case_of(folder: Path) -> Case:
    return next(case for case in find_cases(folder).cases if case.name == "scan1")


# Structures that the site does not label


def test_base_structures_that_the_site_does_not_label_are_kept_under_free_numbers(
    bundle: Path, make_site: Callable[..., Path], tmp_path: Path
) -> None:
    data = make_site(tmp_path / "site", names={"1": "anterior hippocampus"})
    for name in ("images", "labels"):
        (data / name).mkdir(exist_ok=True)
    site = open_site(str(bundle), str(data), labels="2=anterior hippocampus,1=lesion")
    assert [(s.name, s.value) for s in site.structures] == [("lesion", 1), ("anterior hippocampus", 2)]
    assert [(s.name, s.value) for s in site.kept] == [(POSTERIOR, 3)]
    config = site.config(site.base.build(), "compact")
    assert [c.name for c in config.channels or ()] == ["background", "anterior hippocampus", POSTERIOR, "lesion"]
    assert site.groups(config) == [[0, 2], [3], [1]]
    complete = replace(site, labels_complete=True)
    assert complete.kept == ()
    assert [c.name for c in complete.config(site.base.build(), "compact").channels or ()].count("background") == 2
    codes = [finding.code for finding in check_site(site)]
    assert "kept_structures" in codes and "kept_structures" not in [f.code for f in check_site(complete)]


def test_structure_that_the_site_maps_elsewhere_is_not_kept_under_its_name(bundle: Path, site: Path) -> None:
    mapped = open_site(str(bundle), str(site), "1=anterior hippocampus", ["anterior hippocampus=posterior hippocampus"])
    assert mapped.kept == ()  # two structures of one name would be in the result


@pytest.mark.parametrize("complete", [False, True])
def test_adapter_segments_what_it_kept(
    bundle: Path, make_site: Callable[..., Path], tmp_path: Path, complete: bool
) -> None:
    data, out = make_site(tmp_path / "site", names={"1": "anterior hippocampus"}), tmp_path / "adapter"
    request = AdaptRequest(str(bundle), str(data), str(out), steps=2, folds=2, labels_complete=complete)
    run_adapt(request, tmp_path / "job", NullEvents())
    names = ["anterior hippocampus"] + ([] if complete else [POSTERIOR])
    assert [structure.name for structure in read_adapter_structures(out)] == names
    assert read_adapter_config(out)["kept_structures"] == names[1:]
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    scored = {case["structure"] for case in report["cross_validation"]["adapted"]["cases"]}
    assert scored == {"anterior hippocampus"}
    image = sitk.ReadImage(data / "images" / "scan1.nii.gz")
    labels, _ = SegmenterCache().open(str(out), str(bundle)).segment(image)
    assert set(np.unique(sitk.GetArrayFromImage(labels))) == {0, 1} | (set() if complete else {2})


# Voxels that nobody labeled


@pytest.fixture
def partly(tmp_path: Path, site: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Case]:
    """A site whose scans are labeled in every third slice."""
    data = tmp_path / "partly"
    shutil.copytree(site, data)
    for path in (data / "labels").iterdir():
        labels = sitk.ReadImage(path)
        voxels = sitk.GetArrayFromImage(labels)
        voxels[np.arange(len(voxels)) % 3 != 1] = 7
        ignoring = sitk.GetImageFromArray(voxels)
        ignoring.CopyInformation(labels)
        sitk.WriteImage(ignoring, path)

    declared = {"labels": {"background": 0, "hippocampus": 1, "ignore": 7}}
    (data / "dataset.json").write_text(json.dumps(declared), encoding="utf-8")
    return data, case_of(data)


def test_unlabeled_voxels_are_marked_and_no_patch_is_drawn_around_them(
    partly: tuple[Path, Case], bundle: Path, tmp_path: Path
) -> None:
    base = load_base_model(bundle)
    cached = cache_case(partly[1], [Structure("hippocampus", 1)], base.preprocessing, tmp_path / "cache")
    _, label = cached.load()
    assert set(np.unique(label)) == {0, 1, 255} and unlabeled(label) == 255
    foreground, background = cached.voxels()
    assert set(label.flat[foreground]) == {1} and set(label.flat[background]) == {0}
    assert len(foreground) + len(background) == int((label != 255).sum())


def test_scans_that_are_labeled_in_some_slices_train_and_are_scored(
    partly: tuple[Path, Case], bundle: Path, tmp_path: Path
) -> None:
    data, _ = partly
    out = tmp_path / "adapter"
    run_adapt(AdaptRequest(str(bundle), str(data), str(out), steps=8, folds=2), tmp_path / "job", NullEvents())
    assert [structure.name for structure in read_adapter_structures(out)] == ["hippocampus"]
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    mean = report["cross_validation"]["comparison"]["mean"]
    assert mean["base_dice"] > 0.6 and mean["adapted_dice"] > mean["base_dice"] + 0.02


# Regions that overlap


@pytest.fixture
def tumor_base(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The tiny base as a model of three overlapping regions."""
    channels = ("tumor core", "whole tumor", "enhancing tumor")
    base = replace(load_base_model(bundle), activation="sigmoid", channels=channels)
    monkeypatch.setattr(target_site, "load_base_model", lambda _: base)
    return str(bundle)


def test_overlapping_structures_become_bits(
    site: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = case_of(site)
    plain = sitk.ReadImage(case.label)
    outer = sitk.GetArrayFromImage(plain) == 1
    inner = outer.copy()
    inner[:, :, : inner.shape[2] // 2] = False
    layered = in_layers([(1, outer), (4, inner)], plain)
    monkeypatch.setattr(cached_case, "read_case_labels", lambda *_: layered)
    structures = [Structure("whole tumor", 1), Structure("tumor core", 4)]
    base = load_base_model(bundle)
    cached = cache_case(case, structures, base.preprocessing, tmp_path / "bits", overlapping=True)
    _, label = cached.load()
    assert int((label == 1).sum()) == int((outer & ~inner).sum()) and int((label == 3).sum()) == int(inner.sum())
    with pytest.raises(InputError) as caught:
        cache_case(case, structures, base.preprocessing, tmp_path / "classes")
    assert caught.value.code == "overlap" and not (tmp_path / "classes").exists()
    many = [Structure(str(number), number) for number in range(1, 40)]
    with pytest.raises(InputError) as caught:
        cache_case(case, many, base.preprocessing, tmp_path / "many", overlapping=True)
    assert caught.value.code == "too_many_regions"


def test_site_adapts_one_region_alone(tumor_base: str, site: Path, tmp_path: Path) -> None:
    tumor = open_site(tumor_base, str(site), labels="1=whole tumor,2=necrosis")
    assert [s.name for s in tumor.kept] == ["tumor core", "enhancing tumor"]
    config = tumor.config(tumor.base.build(), "compact")
    assert config.activation == "sigmoid" and tumor.groups(config) == [[1], [3]]
    only = open_site(tumor_base, str(site), labels="1=whole tumor")
    network = only.base.build()
    config = only.config(network, "compact")
    cases = [
        cache_case(case, only.structures, only.base.preprocessing, tmp_path / "cache", only.overlapping)
        for case in only.dataset.cases
    ]
    groups, kept = only.groups(config), only.kept_channels(network, config)
    assert kept is not None and (kept.channels, kept.sources) == ((0, 2), (0, 2))
    settings = TrainingSettings(steps=16, check_every=8, lr_core=0.02, lr_whole=0.02)
    image = torch.from_numpy(np.array(cases[0].load()[0]))[None, :, :16, :16, :16]
    dice, moved = [], []
    for keeping in (kept, None):
        model = TensorCurModel(network, config)
        before = score_cases(only.segmenter(model, CPU), only.dataset.cases, only.structures)
        train(model, cases, groups, only.base.windows.roi_size, settings, CPU, NullEvents(), None, None, keeping)
        after = score_cases(only.segmenter(model, CPU), only.dataset.cases, only.structures)
        dice.append([np.mean([score.dice or 0 for score in scores]) for scores in (before, after)])
        with torch.no_grad():
            change = model.eval()(image).sigmoid() - network.eval()(image).sigmoid()
        moved.append(change.abs().mean((0, 2, 3, 4)))
    assert all(adapted > base + 0.1 for base, adapted in dice), dice
    # The others stay nearer to where they were than without a word about them.
    assert (1.5 * moved[0][[0, 2]] < moved[1][[0, 2]]).all(), moved


# Input that is not finite


def test_scan_that_is_not_finite_after_the_normalization_is_refused(
    site: Path, bundle: Path, tmp_path: Path, recorder: Any
) -> None:
    data = tmp_path / "huge"
    shutil.copytree(site, data)
    image = sitk.Cast(sitk.ReadImage(data / "images" / "scan2.nii.gz"), sitk.sitkFloat64)
    image[3, 4, 5] = 1e300  # finite as a 64 bit number only
    path = data / "images" / "scan2.nii.gz"
    sitk.WriteImage(image, path)
    base = load_base_model(bundle)
    case = Case("scan2", path, data / "labels" / "scan2.nii.gz", "a")
    with pytest.raises(InputError) as caught:
        cache_case(case, [Structure("hippocampus", 1)], base.preprocessing, tmp_path / "cache")
    assert caught.value.code == "non_finite"
    with pytest.raises(InputError) as caught:
        SegmenterCache().open(str(bundle)).segment(image)
    assert caught.value.code == "non_finite" and any(character.isdigit() for character in caught.value.message)


def test_labels_of_unlabeled_voxels_do_not_collide_with_classes() -> None:
    label = np.array([[[0, 254, 255]]], np.uint8)
    foreground, background = list_voxels(label)
    assert foreground.tolist() == [1] and background.tolist() == [0]
    assert label_array(sitk.GetImageFromArray(label)).shape == (3, 1, 1)
