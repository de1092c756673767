"""The label map of `segment` is that of nnU-Net's own predictor, for models of each of nnU-Net's variants."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import nnunet_reference as nnunet
from nnunet_reference import Variant

from tcurlora.cli.commands import main
from tcurlora.errors import InputError
from tcurlora.imaging.images import read_image
from tcurlora.imaging.label_layers import flattened
from tcurlora.inference.segmenter_cache import open_once
from tcurlora.models.opening import load_base_model

EQUAL = 0.9999
"""Part of the voxels that must have nnU-Net's label."""
NEAR_TIE = 1e-2
"""Every other voxel must be one whose two best logits differ by less."""

TRAINED = 3
"""Steps of nnU-Net's own training; the other models have the weights that it begins with, each changed a little."""
COARSE = (0.8, 0.9, 4.0)
REGIONS = {"background": 0, "whole": [1, 2], "core": 2}
FLAT = Variant(
    spacing=(4.0, 0.9, 0.9),
    patch=(8, 24, 16),
    kernels=((1, 3, 3), (3, 3, 3), (3, 3, 3)),
    strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)),
)
VARIANTS: dict[str, tuple[Variant, int]] = {
    "trained": (Variant(), TRAINED),
    "trained residual": (Variant(network="ResidualEncoderUNet"), TRAINED),
    "trained regions": (Variant(labels=REGIONS, regions_class_order=(1, 2)), TRAINED),
    "old plans": (Variant(old_plans=True), 0),
    "old plans, residual": (Variant(old_plans=True, network="ResidualEncoderUNet"), 0),
    "lowres": (Variant(configuration="3d_lowres", spacing=(1.7, 1.6, 1.5)), 0),
    "two channels": (
        Variant(
            channel_names=("CT", "PET"),
            normalization=("CTNormalization", "ZScoreNormalization"),
            use_mask=(False, True),
        ),
        0,
    ),
    "regions": (Variant(labels={**REGIONS, "other": 3}, regions_class_order=(1, 3, 2)), 0),
    "ignore label": (Variant(labels={"background": 0, "b": 2, "a": 1, "ignore": 3}), TRAINED),
    "CT": (Variant(normalization=("CTNormalization",)), 0),
    "mask": (Variant(use_mask=(True,)), 0),
    "rescale": (Variant(normalization=("RescaleTo01Normalization",)), 0),
    "none": (Variant(normalization=("NoNormalization",)), 0),
    "anisotropic": (FLAT, 0),
    "anisotropic, residual": (Variant(**{**FLAT.__dict__, "network": "ResidualEncoderUNet"}), 0),
    "transposed": (Variant(transpose=(2, 0, 1), patch=(24, 16, 8), spacing=(1.2, 0.9, 1.0)), 0),
    "transposed, anisotropic": (Variant(**{**FLAT.__dict__, "transpose": (1, 2, 0), "old_plans": True}), 0),
    "resampled by torch": (Variant(resampling="resample_torch_fornnunet", spacing=(1.3, 1.1, 0.9)), 0),
    "resampled by torch, anisotropic": (Variant(**{**FLAT.__dict__, "resampling": "resample_torch_fornnunet"}), 0),
}
SCANS = {
    "as trained": {"seed": 1},
    "finer": {"seed": 2, "size": (31, 37, 23), "spacing": (0.7, 0.6, 0.8)},
    "thick slices": {"seed": 3, "size": (29, 27, 7), "spacing": COARSE, "margin": 1},
    "small": {"seed": 4, "size": (9, 11, 10), "margin": 1},
}
LPS = (1, 0, 0, 0, 1, 0, 0, 0, 1)
Trained = Callable[..., Path]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Make a model with nnU-Net's trainer, once for each variant."""
    made: dict[str, Path] = {}

    def make(variant: Variant, steps: int = 0, fold: int | str = 0, seed: int = 0, name: str = "") -> Path:
        key = f"{variant} {steps} {name}"
        if key not in made:
            made[key] = tmp_path_factory.mktemp("nnU-Net ü")
        if not (made[key] / "nnUNet_results" / nnunet.DATASET / variant.folder_name / f"fold_{fold}").exists():
            return nnunet.train(made[key], variant, steps, fold, seed)
        return made[key] / "nnUNet_results" / nnunet.DATASET / variant.folder_name

    return make


def require_equal(ours: np.ndarray, theirs: np.ndarray, logits: np.ndarray, regions: bool = False) -> None:
    assert ours.shape == theirs.shape
    different = ours != theirs
    assert different.mean() <= 1 - EQUAL, f"{different.sum()} of {ours.size} voxels differ"
    assert len(np.unique(theirs)) > 1, "the model says nothing about this scan"
    two_best = np.sort(logits, 0)[-2:] if not regions else None
    distance = np.abs(logits).min(0) if two_best is None else two_best[1] - two_best[0]
    assert (distance[different] < NEAR_TIE).all(), distance[different]


def segmented(model: Path, files: Sequence[Path], **options: object) -> np.ndarray:
    """Segment a case, and bring it into one layer as nnU-Net does."""
    segmenter = open_once(str(model), device="cpu", **options)  # type: ignore[arg-type]
    images = [read_image(file) for file in files]
    labels, _ = segmenter.segment(images[0] if len(images) == 1 else sitk.Compose(images))
    flat = flattened(labels, [structure.value for structure in segmenter.structures])
    assert flat.GetDirection() == images[0].GetDirection() and flat.GetOrigin() == images[0].GetOrigin()
    array: np.ndarray = sitk.GetArrayFromImage(flat)
    return array


@pytest.mark.parametrize("name", VARIANTS)
def test_labels_are_those_of_nnunets_own_predictor(name: str, trained: Trained, tmp_path: Path) -> None:
    variant, steps = VARIANTS[name]
    model = trained(variant, steps)
    for scan, how in SCANS.items():
        images, _ = nnunet.make_scan(channels=len(variant.channel_names), **how)  # type: ignore[arg-type]
        files = nnunet.write_channels(images, tmp_path / scan)
        theirs, logits = nnunet.predict(model, files)
        require_equal(segmented(model, files), theirs, logits, variant.regions_class_order is not None)


def test_the_command_line_gives_the_same(trained: Trained, tmp_path: Path) -> None:
    model = trained(Variant(), TRAINED)
    files = nnunet.write_channels(nnunet.make_scan(5, (30, 28, 26), (0.9, 0.8, 1.1))[0], tmp_path / "c")
    out = tmp_path / "out.nii.gz"
    # A folder above the trained model leads to it.
    assert main(["segment", "--model", str(model.parents[1]), "--input", str(files[0]), "--out", str(out)]) == 0
    theirs, logits = nnunet.predict(model, files)
    require_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(out))), theirs, logits)


def test_nnunets_half_precision_differs_in_near_ties_and_rounded_corners_only(trained: Trained, tmp_path: Path) -> None:
    model = trained(Variant(), TRAINED)
    files = nnunet.write_channels(nnunet.make_scan(6)[0], tmp_path / "c")
    theirs, _ = nnunet.predict(model, files, half=True)
    assert (segmented(model, files) == theirs).mean() > 0.995


def test_mirroring_and_folds_are_nnunets(trained: Trained, tmp_path: Path) -> None:
    variant = Variant(patch=(16, 20, 12))
    model = trained(variant, fold=0, name="folds")
    trained(variant, fold=1, seed=1, name="folds")
    trained(variant, fold="all", seed=2, name="folds")
    files = nnunet.write_channels(nnunet.make_scan(7, (24, 20, 18))[0], tmp_path / "c")
    results = []
    for folds, mirror in (((0,), True), ((1,), False), (("all",), False), ((0, 1, "all"), True)):
        theirs, logits = nnunet.predict(model, files, folds, mirror)
        ours = segmented(model, files, mirror=mirror, fold=",".join(map(str, folds)))
        require_equal(ours, theirs, logits)
        results.append(ours)
    assert all((a != b).any() for a, b in itertools.pairwise(results))


def test_fold_all_is_taken_where_there_is_no_fold_0(trained: Trained) -> None:
    model = trained(Variant(features=2), fold="all", name="only all")
    assert load_base_model(model).weights.parent.name == "fold_all"
    with pytest.raises(InputError) as caught:
        load_base_model(model, "3")
    assert caught.value.code == "no_fold"


def test_mirroring_is_refused_where_nnunet_was_not_trained_with_it(trained: Trained) -> None:
    model = trained(Variant(mirrored=False, trainer="nnUNetTrainerNoMirroring", features=2))
    with pytest.raises(InputError) as caught:
        open_once(str(model), mirror=True)
    assert caught.value.code == "no_mirroring"


@pytest.mark.parametrize("direction", [LPS, (0, 1, 0, -1, 0, 0, 0, 0, 1)])
def test_a_reader_that_reorients_sees_every_scan_in_ras(
    direction: tuple[int, ...], trained: Trained, tmp_path: Path
) -> None:
    model = trained(Variant(reader="NibabelIOWithReorient", patch=(16, 20, 12)))
    files = nnunet.write_channels(nnunet.make_scan(8, (25, 21, 18), direction=direction)[0], tmp_path / "c")
    theirs, logits = nnunet.predict(model, files)  # in the axes of RAS
    image = read_image(files[0])
    in_ras = sitk.GetImageFromArray(segmented(model, files))
    in_ras.CopyInformation(image)
    require_equal(sitk.GetArrayFromImage(sitk.DICOMOrient(in_ras, "RAS")), theirs, logits)


def test_orientation_of_the_training_data_is_a_setting(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same voxels stored as LPS give the same labels, when the model is said to know LPS."""
    monkeypatch.setenv("TCURLORA_HOME", str(tmp_path / "home"))
    model = trained(Variant(), TRAINED)
    assert load_base_model(model).preprocessing.to_dict()["orientation"] is None
    assert main(["models", "add", str(model), "--orientation", "LPS", "--name", "knows LPS"]) == 0
    as_lps = nnunet.write_channels(nnunet.make_scan(9, direction=LPS)[0], tmp_path / "c")
    theirs, logits = nnunet.predict(model, as_lps)
    require_equal(segmented(Path("knows LPS"), as_lps), theirs, logits)
    as_ras = tmp_path / "ras.nii.gz"
    sitk.WriteImage(sitk.DICOMOrient(sitk.ReadImage(str(as_lps[0])), "RAS"), as_ras)
    ours = segmented(Path("knows LPS"), [as_ras])
    require_equal(ours[:, ::-1, ::-1], theirs, logits)


def test_an_empty_scan_has_no_labels_that_nnunet_would_not_give(trained: Trained) -> None:
    image = sitk.Image(20, 18, 16, sitk.sitkFloat32)
    labels, _ = open_once(str(trained(Variant(), TRAINED)), device="cpu").segment(image)
    assert labels.GetSize() == image.GetSize()
