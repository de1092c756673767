"""Segment with the bundles of MONAI's Model Zoo, once as their configs say with MONAI itself, once with this program.

    python Testing/Benchmarks/zoo_bundles.py --window 64 --out Testing/Benchmarks/results/zoo_bundles.json

The configs are read where they lie: in the folder that TCURLORA_ZOO names (such as `models` of a clone of the zoo), or
beside the project. The weights are random, of the networks that the configs describe. What is compared: the
scan as the network gets it, the probabilities, and the labels on the scan. Each bundle runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import monai
import numpy as np
import SimpleITK as sitk
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd
from torch import Tensor

from tcurlora.imaging.label_layers import mask_of
from tcurlora.inference.segmenter import Segmenter
from tcurlora.models.bundle_files import inference_file
from tcurlora.models.monai_bundle import MonaiBundle, open_bundle
from tcurlora.models.monai_transforms import affine_of

ROOT = Path(__file__).resolve().parents[2]
ZOO = Path(os.environ.get("TCURLORA_ZOO") or ROOT.parent / "shared" / "data" / "zoo_configs")
TAKEN = (
    "brats_mri_segmentation",
    "pancreas_ct_dints_segmentation",
    "pediatric_abdominal_ct_segmentation",
    "prostate_mri_anatomy",
    "renalStructures_CECT_segmentation",
    "segmentation_template",
    "spleen_ct_segmentation",
    "spleen_deepedit_annotation",
    "swin_unetr_btcv_segmentation",
    "wholeBody_ct_segmentation",
)
REFUSED = ("renalStructures_UNEST_segmentation", "vista3d", "wholeBrainSeg_Large_UNEST_segmentation")
NEAR_TIE = 1e-4
_BY_HAND = (
    "LoadImaged",
    "EnsureChannelFirstd",
    "SaveImaged",
    "Lambdad",
    "MergeClassesd",
    "KeepLargestConnectedComponentd",
)


@dataclass(frozen=True)
class Difference:
    """How far this program's result is from MONAI's.

    Attributes:
        prepared: largest difference of the scan as the network gets it.
        probabilities: largest difference of the probabilities on the network's grid.
        voxels: of the scan that have another label.
        no_ties: those of them whose two best probabilities differ by more than `NEAR_TIE` in MONAI's result.
        labels: how many labels MONAI's result has, the background included.
    """

    prepared: float
    probabilities: float
    voxels: int
    no_ties: int
    labels: int


def make_bundle(name: str, folder: Path, window: int | None = None, config: str = "", weights: bool = True) -> Path:
    """Write a bundle of the zoo with random weights.

    Args:
        name: of the bundle.
        folder: that is made.
        window: another size of the window, so that it is quick.
        config: another inference config of the bundle.
        weights: whether the weights file holds weights; it is empty otherwise.
    """
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    source = inference_file(ZOO / name)
    target = folder / "configs" / source.name
    shutil.copyfile(source.with_name(config) if config else source, target)
    shutil.copyfile(ZOO / name / "configs" / "metadata.json", folder / "configs" / "metadata.json")
    if window is not None:
        content = ConfigParser.load_config_file(target)
        if content["inferer"]["_target_"] == "SimpleInferer":
            content["spatial_size"] = [window] * 3
            _rewrite(folder / "configs" / "metadata.json", window)
        else:
            content["inferer"]["roi_size"] = [window] * 3
        ConfigParser.export_config_file(content, target, fmt=target.suffix.removeprefix("."))
    torch.manual_seed(1)
    if name == "pancreas_ct_dints_segmentation":
        random = np.random.default_rng(0)
        code = {"arch_code_a": random.integers(0, 2, (12, 10)), "arch_code_c": random.integers(0, 5, (12, 10))}
        code["arch_code_a"][:, [0, 3, 6, 9]] = 1  # one way through at every resolution
        torch.save({**code, "node_a": np.ones((13, 4), np.int64)}, folder / "models" / "search_code_18590.pt")
    if not weights:
        (folder / "models" / weights_name(name, config)).touch()
        return folder
    network = _parser(folder).get_parsed_content("network_def").eval()
    with torch.no_grad():
        # So that its output is not about the same everywhere.
        for module in network.modules():
            if isinstance(module, torch.nn.Conv3d) and module.kernel_size == (1, 1, 1):
                module.weight *= 4
    torch.save({"model": network.state_dict(), "epoch": 3}, folder / "models" / weights_name(name, config))
    return folder


def weights_name(name: str, config: str = "") -> str:
    """The name that a bundle gives its weights file."""
    if name.startswith("pediatric"):
        return config.removeprefix("inference_").removesuffix(".yaml") + "_FT.pt" if config else "dynunet_FT.pt"
    return "model.pt"


def _rewrite(path: Path, window: int) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    content["network_data_format"]["inputs"]["image"]["spatial_shape"] = [window] * 3
    path.write_text(json.dumps(content), encoding="utf-8")


def make_scan(base: MonaiBundle, larger: float = 1.1, seed: int = 0) -> sitk.Image:
    """Make a scan of bodies in noise whose prepared array is a little larger than one window.

    It is stored in another orientation and with another voxel size than the network takes.
    """
    spacing = base.preprocessing.spacing or (1.0, 1.0, 1.0)
    own = [spacing[0] * 0.8, spacing[1] * 1.25, spacing[2] * 1.5] if base.preprocessing.spacing else [1.0, 1.0, 1.0]
    whole = not base.preprocessing.spacing
    factors = (1, 1, 1) if whole and larger <= 1.2 else (larger, 1, 1)
    size = [
        max(8, round(n * factor * step / mm))
        for n, factor, step, mm in zip(base.windows.roi_size, factors, spacing, own, strict=True)
    ]
    random = np.random.default_rng(seed)
    channels = []
    for _ in range(base.in_channels):
        noise = sitk.GetImageFromArray(random.normal(0, 1, size[::-1]).astype(np.float32))
        smooth = sitk.GetArrayFromImage(sitk.SmoothingRecursiveGaussian(noise, 3.0))
        voxels = 100 * smooth / smooth.std() + 30 * random.normal(0, 1, smooth.shape)
        voxels[:3] = 0  # something to crop, and nothing to normalize
        channels.append(sitk.GetImageFromArray(voxels.astype(np.float32)))
    image = channels[0] if len(channels) == 1 else sitk.Compose(channels)
    image.SetSpacing(own)
    image.SetOrigin((12.0, -30.0, 5.0))
    angle = 0.0 if whole else 0.1
    image.SetDirection((np.cos(angle), -np.sin(angle), 0, np.sin(angle), np.cos(angle), 0, 0, 0, 1))
    return image


def compare(folder: Path, image: sitk.Image) -> Difference:
    """Segment a scan in both ways."""
    base = open_bundle(folder)
    expected = with_monai(folder, image, base.input_channels)
    segmenter = Segmenter.of_base(base, torch.device("cpu"))
    prepared = segmenter.preprocessing.prepare(image)
    labels, _ = segmenter.segment(image)
    own = segmenter.probabilities(prepared.array)
    differs, margin, found = _other_labels(base, labels, expected)
    wanted = expected["probabilities"].numpy()
    if base.activation == "sigmoid":
        wanted = wanted[[number for number, name in enumerate(base.channels) if name != "background"]]
    image_of_network = expected["image"].as_tensor().numpy()[: prepared.array.shape[0]]
    return Difference(
        prepared=float(np.abs(prepared.array - image_of_network).max()),
        probabilities=float(np.abs(own - wanted).max()),
        voxels=int(differs.sum()),
        no_ties=int((differs & (margin > NEAR_TIE)).sum()),
        labels=found,
    )


def _other_labels(
    base: MonaiBundle, labels: sitk.Image, expected: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray, int]:
    """Where labels differ, how clear MONAI's decision is there, and how many labels MONAI found."""
    scores = expected["scores"].as_tensor()
    names = {name: number for number, name in enumerate(base.channels)}
    if base.activation == "sigmoid":
        differs, margin, found = np.zeros(scores.shape[1:], bool), np.ones(scores.shape[1:], np.float32), 0
        for structure in base.labelled_structures():
            own = mask_of(labels, structure.value).transpose(2, 1, 0)
            score = scores[names[structure.name]].numpy()
            other = own != (score > 0.5)
            differs |= other
            margin[other] = np.minimum(margin[other], np.abs(score - 0.5)[other])
            found += int((score > 0.5).any())
        return differs, margin, found + 1
    values = np.array([0, *(s.value for s in base.labelled_structures())])
    own = sitk.GetArrayFromImage(labels).transpose(2, 1, 0)
    if scores.shape[0] == 1:  # labels, which MONAI brings back as they are
        best, margin = np.rint(scores[0].numpy()).astype(int), np.ones(own.shape, np.float32)
    else:
        two = scores.topk(2, dim=0)
        best, margin = two.indices[0].numpy(), (two.values[0] - two.values[1]).numpy()
    return own != values[best], margin, len(np.unique(best))


def with_monai(folder: Path, image: sitk.Image, names: Sequence[str]) -> dict[str, Any]:
    """Run a bundle's own transforms, network and inferer.

    Returns:
        `image` as the network gets it, `probabilities` on its grid, and `scores` or labels brought back to the scan.
    """
    parser = _parser(folder)
    voxels = sitk.GetArrayFromImage(image)
    channels = voxels[None] if voxels.ndim == 3 else np.moveaxis(voxels, -1, 0)
    array = torch.from_numpy(np.ascontiguousarray(channels.transpose(0, 3, 2, 1), dtype=np.float32))
    affine = affine_of(image)
    data: dict[str, Any] = {"image": MetaTensor(array, affine=affine)}
    data |= {name: MetaTensor(array[[i]], affine=affine) for i, name in enumerate(names)}
    applied = []
    clicks = 0
    for entry in _transforms(parser, "preprocessing"):
        name = str(entry["_target_"]).rpartition(".")[2]
        if name in _BY_HAND or "Guidance" in name:
            clicks = 2 if "Guidance" in name else clicks
        elif name == "ConcatImages":
            joined = torch.cat([data[key].as_tensor() for key in entry["keys_merge"]])
            data["image"] = MetaTensor(
                joined, meta=data["artery"].meta, applied_operations=data["artery"].applied_operations
            )
        else:
            transform = _instance(parser, {**entry, "allow_missing_keys": True})
            data = transform(data)
            applied.append(transform)
    network = parser.get_parsed_content("network_def").eval()
    state = torch.load(next((folder / "models").glob("*[lT].pt")), weights_only=True)
    network.load_state_dict(state["model"])
    inferer = parser.get_parsed_content("inferer")
    inputs = data["image"].as_tensor()
    inputs = torch.cat([inputs, torch.zeros(clicks, *inputs.shape[1:])])[None]
    with torch.no_grad():
        logits: Tensor = inferer(inputs, network)[0]
    pred: Tensor = MetaTensor(logits, meta=data["image"].meta)
    result = {"image": data["image"]}
    steps = _transforms(parser, "postprocessing")
    names_of_steps = [str(s["_target_"]).rpartition(".")[2] for s in steps]
    sigmoid = any(s.get("sigmoid") for s in steps)
    result["probabilities"] = logits.sigmoid() if sigmoid else logits.softmax(0)
    decided = False
    for name, entry in zip(names_of_steps, steps, strict=True):
        if name == "Activationsd":
            pred = MetaTensor(pred.sigmoid() if sigmoid else pred.softmax(0), meta=data["image"].meta)
        elif (
            name == "AsDiscreted" and entry.get("argmax") and "Invertd" in names_of_steps[names_of_steps.index(name) :]
        ):
            pred, decided = MetaTensor(pred.argmax(0, keepdim=True).float(), meta=data["image"].meta), True
        elif name == "KeepLargestConnectedComponentd":
            pred = _instance(parser, entry)({"pred": pred})["pred"]
        elif name == "Invertd":
            # Labels are never interpolated here, whatever the config says: there is nothing between two organs.
            nearest = bool(entry.get("nearest_interp")) or decided
            original = entry["orig_keys"] if entry["orig_keys"] in data else "image"
            back = Invertd("pred", Compose(applied), original, nearest_interp=nearest, to_tensor=True)
            pred = back({**data, "pred": pred})["pred"]
    result["scores"] = pred if isinstance(pred, MetaTensor) else MetaTensor(pred)
    return result


def _transforms(parser: ConfigParser, key: str) -> list[dict[str, Any]]:
    """The transforms of a config, which may be those of several lists."""
    found = parser[f"{key}::transforms"]
    return (
        found if isinstance(found, list) else [entry for name in re.findall(r"@(\w+)", found) for entry in parser[name]]
    )


def _instance(parser: ConfigParser, entry: dict[str, Any]) -> Any:
    parser["one_step"] = entry
    return parser.get_parsed_content("one_step")


def _parser(folder: Path) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config(inference_file(folder))
    parser["bundle_root"] = str(folder)
    if "arch_ckpt" in parser.config:
        code = torch.load(folder / "models" / "search_code_18590.pt", weights_only=False)
        parser["arch_ckpt"] = code
        parser["dints_space::device"] = "cpu"
    if str(parser["network_def"]["_target_"]).endswith("SwinUNETR"):
        parser["network_def"].pop("img_size")
    return parser


def measure(name: str, window: int | None) -> dict[str, Any]:
    """Segment with one bundle in both ways, in this process."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = make_bundle(name, Path(scratch, name), window)
        base = open_bundle(folder)
        image = make_scan(base)
        return {
            "network": base.network_name,
            "parameters": sum(p.numel() for p in base.build(trial=False).parameters()),
            "window": list(base.windows.roi_size),
            "scan": list(image.GetSize()),
            **asdict(compare(folder, image)),
        }


def measure_memory(name: str) -> dict[str, Any]:
    """Segment a scan of one window of the bundle's own size, in this process, and say what that took."""
    with tempfile.TemporaryDirectory() as scratch:
        base = open_bundle(make_bundle(name, Path(scratch, name)))
        array = np.random.default_rng(0).normal(0, 1, (base.in_channels, *base.windows.roi_size)).astype(np.float32)
        Segmenter.of_base(base, torch.device("cpu")).probabilities(array)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        return {"own_window": list(base.windows.roi_size), "peak_mb": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="file for the results (JSON)")
    parser.add_argument("--window", type=int, help="compare with windows of this size instead of the bundles' own")
    parser.add_argument("--bundle", choices=TAKEN, help="this one alone, and only print its result")
    parser.add_argument("--memory", action="store_true", help="with --bundle: what one window of its own size takes")
    options = parser.parse_args()
    if options.bundle:
        warnings.simplefilter("ignore")
        found = measure_memory(options.bundle) if options.memory else measure(options.bundle, options.window)
        print(json.dumps(found))
        return
    results: dict[str, Any] = {}
    window = ["--window", str(options.window)] if options.window else []
    for arguments in (window, ["--memory"]):
        for name in TAKEN:
            command = [sys.executable, __file__, "--bundle", name, *arguments]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            results.setdefault(name, {}).update(json.loads(output.splitlines()[-1]))
            print(name, results[name], flush=True)
            if options.out:
                report = {"monai": monai.__version__, "torch": torch.__version__, "bundles": results}
                options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
