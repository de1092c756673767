"""Merged bundles: they segment like adapter and base together, here and in MONAI alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import monai.networks.nets as nets
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.bundle import ConfigParser, load
from monai.data import MetaTensor

from tcurlora.errors import InputError
from tcurlora.imaging.structures import Structure
from tcurlora.inference.segmenter import Segmenter
from tcurlora.method.channels import Channel
from tcurlora.method.config import TensorCurConfig
from tcurlora.method.head import find_head
from tcurlora.method.model import TensorCurModel
from tcurlora.models.adapter_files import load_adapter, save_adapter
from tcurlora.models.base_model import BaseModel, Windowing
from tcurlora.models.merged_bundles import inference_config, merge_adapter
from tcurlora.models.monai_bundle import write_bundle
from tcurlora.models.monai_preprocessing import MonaiPreprocessing
from tcurlora.models.opening import load_base_model

SIDE = 32
NETWORKS: dict[str, dict[str, Any]] = {
    "SegResNet": {"spatial_dims": 3, "init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]},
    "UNETR": {"img_size": [SIDE] * 3, "feature_size": 4, "hidden_size": 24, "mlp_dim": 48, "num_heads": 2},
    "DynUNet": {
        "spatial_dims": 3,
        "kernel_size": [3, 3, 3],
        "strides": [1, 2, 2],
        "upsample_kernel_size": [2, 2],
        "filters": [4, 8, 8],
    },
}
HEAD, TAIL, NEW = Structure("head", 1), Structure("tail", 2), Structure("new part", 3)
WHOLE = Structure("hippocampus", 17, (0.5, 0.25, 1.0), "Segmentation category~Übersicht")
SAME = (Channel("background", 0), Channel("head", 1), Channel("tail", 2))
VOTING = (Channel("background", 0), Channel("hippocampus", 1), Channel("hippocampus", 2), Channel("new part", None))


def make_base(folder: Path, kind: str, shape: dict[str, Any] | None = None) -> BaseModel:
    torch.manual_seed(0)
    shape = NETWORKS[kind] if shape is None else shape
    network_def = {"_target_": f"monai.networks.nets.{kind}", "in_channels": 1, "out_channels": 3, **shape}
    metadata = {
        "name": "Tiny",
        "authors": "Jané Böe",
        "licence": "CC0",
        "network_data_format": {
            "inputs": {"image": {"modality": "MR", "num_channels": 1, "spatial_shape": [1, 1, 1]}},
            "outputs": {"pred": {"channel_def": {"0": "background", "1": "head", "2": "tail"}}},
        },
    }
    preprocessing = MonaiPreprocessing((1, 1, 1), (("NormalizeIntensity", {"nonzero": True}),))
    inference = inference_config(
        network_def, preprocessing, Windowing((SIDE,) * 3), ["background", "head", "tail"], [HEAD, TAIL]
    )
    arguments = {key: value for key, value in network_def.items() if key != "_target_"}
    state = getattr(nets, kind)(**arguments).state_dict()
    write_bundle(folder, {"metadata": metadata, "inference": inference}, "# Tiny\n", state)
    return load_base_model(folder)


def make_adapter(
    folder: Path,
    base: BaseModel,
    structures: Sequence[Structure],
    channels: tuple[Channel, ...] | None,
    name: str = "My adapter",
) -> Path:
    """Save an adapter whose every trained number has moved from its start, and which finds all of its structures."""
    network = base.build()
    head = find_head(network, torch.zeros(1, 1, SIDE, SIDE, SIDE), 3)
    model = TensorCurModel(network, TensorCurConfig(r=2, head=head, channels=channels))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
        model.whole[f"{head}.bias".replace(".", "/")] -= model.eval()(
            torch.randn(1, 1, SIDE, SIDE, SIDE, generator=generator)
        ).mean((0, 2, 3, 4))
    details = {"name": name, "structures": [s.to_dict() for s in structures], "base_model": {"name": base.name}}
    save_adapter(model, folder, details, {"summary": "On your 8 scans the adapter helps."})
    return folder


def merged(
    tmp_path: Path,
    kind: str,
    structures: Sequence[Structure],
    channels: tuple[Channel, ...] | None,
    shape: dict[str, Any] | None = None,
) -> Path:
    base = make_base(tmp_path / "base", kind, shape)
    adapter = make_adapter(tmp_path / "adapter", base, structures, channels)
    merge_adapter(adapter, tmp_path / "Zusammen 海馬", base)
    return tmp_path / "Zusammen 海馬"


def scan(size: Sequence[int] = (20, 30, 26), seed: int = 0) -> sitk.Image:
    """A scan in LPS order with bright and dark bodies, smaller than one window, 1 mm."""
    rng = np.random.default_rng(seed)
    image = sitk.GetImageFromArray(rng.normal(100, 40, size[::-1]).astype(np.float32))
    image = sitk.SmoothingRecursiveGaussian(image, 2.0)
    image.SetOrigin((5, -3, 12))
    return image


def ours(folder: Path, image: sitk.Image) -> sitk.Image:
    base = load_base_model(folder)
    segmenter = Segmenter.of_base(base, torch.device("cpu"))
    return segmenter.segment(image)[0]


def assert_alike(a: np.ndarray, b: np.ndarray) -> None:
    """The same label in every voxel, save ties: a rounding error may turn at most one voxel in a thousand."""
    assert len(np.unique(a)) > 1, "an empty segmentation proves nothing"
    assert a.shape == b.shape
    assert np.mean(a != b) <= 1e-3


@pytest.mark.parametrize(
    ("kind", "channels"),
    [("SegResNet", None), ("SegResNet", VOTING), ("UNETR", VOTING), ("DynUNet", SAME)],
)
def test_the_merged_network_computes_what_the_adapter_does(
    tmp_path: Path, kind: str, channels: tuple[Channel, ...] | None
) -> None:
    structures = [WHOLE, NEW] if channels is VOTING else [HEAD, TAIL]
    folder = merged(tmp_path, kind, structures, channels)
    base = load_base_model(tmp_path / "base")
    adapted = load_adapter(base.build(), tmp_path / "adapter").eval()
    window = torch.randn(1, 1, SIDE, SIDE, SIDE)
    with torch.no_grad():
        expected = adapted(window)
        assert torch.allclose(load_base_model(folder).build()(window), expected, atol=1e-5, rtol=1e-5)
        assert expected.shape[1] == (4 if channels is VOTING else 3)
        assert expected.shape[1] == 4 or not torch.allclose(base.build()(window), expected, atol=1e-2)


def test_monai_loads_strictly_what_was_made_from_a_deeply_supervised_base(tmp_path: Path) -> None:
    deep = {**NETWORKS["DynUNet"], "deep_supervision": True, "deep_supr_num": 1}
    folder = merged(tmp_path, "DynUNet", [WHOLE, NEW], VOTING, deep)
    network_def = json.loads((folder / "configs" / "inference.json").read_text(encoding="utf-8"))["network_def"]
    stock = nets.DynUNet(**{key: value for key, value in network_def.items() if key != "_target_"}).eval()
    stock.load_state_dict(torch.load(folder / "models" / "model.pt", weights_only=True))
    assert not any("head" in name for name in stock.state_dict())
    window = torch.randn(1, 1, SIDE, SIDE, SIDE)
    base = load_base_model(tmp_path / "base")
    with torch.no_grad():
        expected = load_adapter(base.build(), tmp_path / "adapter").eval()(window)
        assert expected.shape[1] == 4 and torch.allclose(stock(window), expected, atol=1e-5, rtol=1e-5)


def test_our_own_program_segments_alike_with_both(tmp_path: Path) -> None:
    folder = merged(tmp_path, "SegResNet", [WHOLE, NEW], VOTING)
    base = load_base_model(tmp_path / "base")
    network = load_adapter(base.build(), tmp_path / "adapter").merged()
    segmenter = Segmenter(
        network, [c.name for c in VOTING], [WHOLE, NEW], base.preprocessing, base.windows, torch.device("cpu")
    )
    image = scan((40, 30, 26))
    labels, expected = ours(folder, image), segmenter.segment(image)[0]
    assert set(np.unique(sitk.GetArrayFromImage(labels))) == {0, 17, 3}
    assert np.array_equal(sitk.GetArrayFromImage(labels), sitk.GetArrayFromImage(expected))
    assert load_base_model(folder).labelled_structures() == [WHOLE, NEW]


def test_the_bundle_says_what_it_is_and_where_it_comes_from(tmp_path: Path) -> None:
    folder = merged(tmp_path, "SegResNet", [WHOLE, NEW], VOTING)
    metadata = json.loads((folder / "configs" / "metadata.json").read_text(encoding="utf-8"))
    for key in ("version", "monai_version", "pytorch_version", "numpy_version", "task", "description"):
        assert metadata[key]
    assert (metadata["name"], metadata["authors"], metadata["licence"]) == ("My adapter", "Jané Böe", "CC0")
    image, pred = metadata["network_data_format"]["inputs"]["image"], metadata["network_data_format"]["outputs"]["pred"]
    assert (image["modality"], image["num_channels"], image["spatial_shape"]) == ("MR", 1, [SIDE] * 3)
    assert pred["channel_def"] == {"0": "background", "1": "hippocampus", "2": "hippocampus", "3": "new part"}
    assert pred["num_channels"] == 4
    assert metadata["merged_from"]["base_model"]["sha256"] == load_base_model(tmp_path / "base").sha256
    card = (folder / "docs" / "README.md").read_text(encoding="utf-8")
    assert "| 17 | hippocampus |" in card
    assert "On your 8 scans the adapter helps." in card
    assert str(tmp_path) not in card + json.dumps(metadata)


def monai_alone(folder: Path, image: sitk.Image) -> np.ndarray:
    """Run network, pre- and postprocessing as MONAI's own parser makes them; the scan is given in memory, as RAS."""
    parser = ConfigParser()
    parser.read_config(folder / "configs" / "inference.json")
    parser.read_meta(folder / "configs" / "metadata.json")
    parser["bundle_root"] = str(folder)
    transforms = parser["preprocessing"]["transforms"]
    assert [step["_target_"] for step in transforms[:3]] == ["LoadImaged", "EnsureChannelFirstd", "Orientationd"]
    # Reading files and orientations needs nibabel; the test with a file does.
    for step in (*transforms[:3], parser["postprocessing"]["transforms"][-1]):
        step["_disabled_"] = True
    parser.parse(True)
    network = parser.get_parsed_content("network").cpu().eval()
    network.load_state_dict(torch.load(folder / "models" / "model.pt", weights_only=True))
    oriented = sitk.DICOMOrient(image, "RAS")
    array = sitk.GetArrayFromImage(oriented).transpose(2, 1, 0)[None]
    item = {"image": MetaTensor(array.astype(np.float32), affine=np.diag([*oriented.GetSpacing(), 1.0]))}
    item = parser.get_parsed_content("preprocessing")(item)
    with torch.no_grad():
        item["pred"] = parser.get_parsed_content("inferer")(item["image"][None], network)[0]
    labels = np.asarray(parser.get_parsed_content("postprocessing")(item)["pred"])[0]
    back = sitk.GetImageFromArray(labels.transpose(2, 1, 0))
    back.CopyInformation(oriented)
    return sitk.GetArrayFromImage(sitk.Resample(back, image, sitk.Transform(), sitk.sitkNearestNeighbor))


@pytest.mark.parametrize(
    ("kind", "structures", "channels"),
    [("SegResNet", [HEAD, TAIL], None), ("UNETR", [WHOLE, NEW], VOTING)],
    ids=["as in the base", "voting"],
)
def test_monai_alone_finds_the_same_labels(
    tmp_path: Path, kind: str, structures: list[Structure], channels: tuple[Channel, ...] | None
) -> None:
    folder = merged(tmp_path, kind, structures, channels)
    image = scan()
    assert_alike(sitk.GetArrayFromImage(ours(folder, image)), monai_alone(folder, image))


def test_monai_alone_brings_other_spacings_back(tmp_path: Path) -> None:
    """Interpolation differs at the borders of structures, so this compares overlap."""
    folder = merged(tmp_path, "SegResNet", [HEAD, TAIL], None)
    image = scan()
    image.SetSpacing((1.0, 0.9, 1.1))
    labels, theirs = sitk.GetArrayFromImage(ours(folder, image)), monai_alone(folder, image)
    assert labels.shape == theirs.shape
    assert np.mean(labels == theirs) > 0.8


def test_monai_loads_the_bundle_by_its_own_function(tmp_path: Path) -> None:
    folder = merged(tmp_path, "SegResNet", [WHOLE, NEW], VOTING)
    network = load_base_model(folder).build()
    arguments = {**NETWORKS["SegResNet"], "in_channels": 1, "out_channels": 4}
    loaded = load(folder.name, model=nets.SegResNet(**arguments), bundle_dir=tmp_path, device="cpu").eval()
    window = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        assert torch.equal(loaded(window), network(window))


def test_monai_runs_the_bundle_on_a_file(tmp_path: Path) -> None:
    """The way of the card: `monai.bundle run` reads a NIfTI file and writes the labels in its geometry."""
    from monai.bundle import run

    folder = merged(tmp_path, "SegResNet", [WHOLE, NEW], VOTING)
    image = scan()
    angle = np.radians(10)
    turn = [np.cos(angle), -np.sin(angle), 0, np.sin(angle), np.cos(angle), 0, 0, 0, 1]
    image.SetDirection(turn)
    (tmp_path / "scans").mkdir()
    sitk.WriteImage(image, tmp_path / "scans" / "scan.nii.gz")
    run(
        config_file=str(folder / "configs" / "inference.json"),
        meta_file=str(folder / "configs" / "metadata.json"),
        bundle_root=str(folder),
        dataset_dir=str(tmp_path / "scans"),
        output_dir=str(tmp_path / "out"),
        device="$torch.device('cpu')",
    )
    written = sitk.ReadImage(next((tmp_path / "out").rglob("*.nii.gz")))
    expected = ours(folder, sitk.ReadImage(tmp_path / "scans" / "scan.nii.gz"))
    assert written.GetSize() == image.GetSize()
    for a, b in ((written.GetOrigin(), image.GetOrigin()), (written.GetDirection(), image.GetDirection())):
        assert np.allclose(a, b, atol=1e-4)
    assert_alike(sitk.GetArrayFromImage(expected), sitk.GetArrayFromImage(written))


def test_another_base_or_an_existing_folder_is_refused(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", "SegResNet")
    adapter = make_adapter(tmp_path / "adapter", base, [HEAD, TAIL], None)
    other = make_base(tmp_path / "other", "UNETR")
    with pytest.raises(InputError, match="another base"):
        merge_adapter(adapter, tmp_path / "out", other)
    with pytest.raises(InputError, match="exists"):
        merge_adapter(adapter, tmp_path / "base", base)
    with pytest.raises(InputError, match="no adapter"):
        merge_adapter(tmp_path / "base", tmp_path / "out", base)
    config = json.loads((adapter / "adapter_config.json").read_text())
    for structures in (None, [{}], [{"name": "x", "value": "many"}], "text"):
        (adapter / "adapter_config.json").write_text(json.dumps({**config, "structures": structures}))
        with pytest.raises(InputError, match="structures"):
            merge_adapter(adapter, tmp_path / "out", base)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base", "other"]


@pytest.mark.parametrize(
    ("name", "structures", "channels"),
    [
        ("$__import__('os').system('touch canary')", [HEAD, TAIL], None),
        ("x", [Structure("head", 1, None, "@network"), TAIL], None),
        ("x", [Structure("%/etc/passwd", 1)], (Channel("background", 0), Channel("%/etc/passwd", 1))),
    ],
)
def test_a_text_that_monai_would_execute_is_refused(
    tmp_path: Path, name: str, structures: list[Structure], channels: tuple[Channel, ...] | None
) -> None:
    base = make_base(tmp_path / "base", "SegResNet")
    adapter = make_adapter(tmp_path / "adapter", base, structures, channels, name)
    with pytest.raises(InputError, match="execute"):
        merge_adapter(adapter, tmp_path / "out", base)
    assert not (tmp_path / "out").exists()
