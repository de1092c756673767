"""Small sound files of every kind that the engine reads, to be damaged."""

from __future__ import annotations

import json
import locale
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import dicom_samples
import nnunet_reference
import numpy as np
import SimpleITK as sitk
from dicom_files import LEGACY_MR, multi_frame, save, volume
from pydicom.uid import RLELossless

NETWORK = {
    "_target_": "SegResNet",
    "in_channels": 1,
    "out_channels": 3,
    "init_filters": 4,
    "blocks_down": [1, 1],
    "blocks_up": [1],
    "norm": ["GROUP", {"num_groups": 4}],
}
CHANNELS = {"0": "background", "1": "anterior hippocampus", "2": "posterior hippocampus"}
SHAPE = (10, 12, 14)


def make_scan(seed: int = 0, dtype: Any = np.float32) -> sitk.Image:
    """A noisy scan on an oblique grid of uneven spacing, whose (z, y, x) shape is `SHAPE`."""
    image = sitk.GetImageFromArray(np.random.default_rng(seed).normal(100, 20, SHAPE).astype(dtype))
    return on_oblique_grid(image)


def make_labels() -> sitk.Image:
    """Two boxes, labeled 1 and 7, on the same grid."""
    array = np.zeros(SHAPE, np.uint8)
    array[2:5, 3:6, 4:9] = 1
    array[6:9, 3:6, 10:12] = 7
    return on_oblique_grid(sitk.GetImageFromArray(array))


def on_oblique_grid(image: sitk.Image) -> sitk.Image:
    c, s = np.cos(0.3), np.sin(0.3)
    image.SetDirection((c, -s, 0, s, c, 0, 0, 0, 1))
    image.SetSpacing((1.1, 0.9, 1.25))
    image.SetOrigin((-31.25, 44.5, 7.75))
    return image


def make_samples(folder: Path) -> Path:
    """Write the samples, one folder for each group of files that are read together."""
    (folder / "images").mkdir(parents=True)
    scan, whole = make_scan(), make_scan(1, np.int16)
    write = sitk.WriteImage
    write(scan, folder / "images" / "plain.nii", False)
    write(scan, folder / "images" / "packed.nii.gz", True)
    write(whole, folder / "images" / "whole.nii.gz", True)
    write(whole, folder / "images" / "plain.nrrd", False)
    write(scan, folder / "images" / "packed.nrrd", True)
    write(whole, folder / "images" / "plain.mha", False)
    write(scan, folder / "images" / "packed.mha", True)
    _write_series(folder / "series")
    _write_multi_frame(folder / "frames")
    _write_segmentations(folder / "segmentations")
    _write_dicom_labels(folder / "DICOM labels")
    _write_site(folder / "site")
    for encoding in ("utf-16", "cp1252"):
        _write_site(folder / f"site {encoding}", encoding)
    _write_models(folder)
    return folder


def _write_series(folder: Path) -> None:
    folder.mkdir()
    before = locale.setlocale(locale.LC_ALL)
    array = np.random.default_rng(1).integers(0, 4000, (5, 8, 7)).astype(np.int16)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for index in range(len(array)):
        piece = sitk.GetImageFromArray(array[index : index + 1])
        piece.SetSpacing((0.8, 0.9, 1.5))
        tags = {
            "0008|0060": "MR",
            "0010|0010": "Doe^Jane",
            "0020|000d": "1.2.826.0.1",
            "0020|000e": "1.2.826.0.1.1",
            "0008|0018": f"1.2.826.0.1.1.{index + 1}",
            "0020|0013": str(index + 1),
            "0020|0032": f"{-20 + 1.5 * index}\\-5\\30",
            "0020|0037": "0\\1\\0\\0\\0\\-1",
            "0018|0050": "1.5",
        }
        for tag, value in tags.items():
            piece.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"slice{index}.dcm"))
        writer.Execute(piece)
    locale.setlocale(locale.LC_ALL, before)  # which writing DICOM has changed


def _write_multi_frame(folder: Path) -> None:
    """Frames out of order, each with its own factor; in one file and, as another kind, each with its own geometry."""
    folder.mkdir()
    values, order = volume(5, 8, 7), [3, 0, 4, 2, 1]
    save(multi_frame(values, order, slopes=[1, 2, 0.5, 1, 3]), folder / "enhanced.dcm")
    save(multi_frame(values, order, shared=False, kind=LEGACY_MR), folder / "legacy.dcm")
    packed = multi_frame(values, order)
    packed.compress(RLELossless)
    save(packed, folder / "packed.dcm")


def _write_segmentations(folder: Path) -> None:
    from tcurlora.imaging.segmentations import write_segmentation
    from tcurlora.imaging.structures import Structure

    folder.mkdir()
    structures = [Structure("anterior hippocampus", 1, (0.1, 0.25, 0.5)), Structure("amygdala", 7)]
    write_segmentation(make_labels(), structures, folder / "one.seg.nrrd")
    write_segmentation(make_labels(), structures, folder / "table.nii.gz")
    text, _, _ = (folder / "one.seg.nrrd").read_bytes().partition(b"\n\n")
    array = sitk.GetArrayFromImage(make_labels())
    layers = np.stack([(array == 1), (array == 7)], -1).astype(np.uint8)
    header = text.decode("utf-8").replace("dimension: 3", "dimension: 4").replace("encoding: gzip", "encoding: raw")
    header = header.replace("sizes: 14 12 10", "sizes: 2 14 12 10").replace(
        "space directions: ", "space directions: none "
    )
    header = header.replace("kinds: ", "kinds: list ").replace("Segment1_Layer:=0", "Segment1_Layer:=1")
    header = header.replace("Segment1_LabelValue:=7", "Segment1_LabelValue:=1")
    (folder / "layers.seg.nrrd").write_bytes(header.encode() + b"\n\n" + layers.tobytes())


def _write_dicom_labels(folder: Path) -> None:
    source = dicom_samples.write_series(folder / "scan")
    array = np.zeros(dicom_samples.SIZE[::-1], np.uint8)
    array[3:8, 4:10, 5:12] = 1
    array[5:9, 10:13, 5:9] = 2
    dicom_samples.write_seg(folder / "seg.dcm", source, array, ["liver", "amygdala"])
    box = (4.6, 11.4), (3.6, 9.4)
    triangle = [dicom_samples.rectangle(*box, level)[:3] for level in range(5, 8)]
    boxes = [dicom_samples.rectangle((12.6, 16.4), (3.6, 9.4), level) for level in range(3, 8)]
    dicom_samples.write_rtstruct(folder / "rtstruct.dcm", source, {"liver": triangle, "amygdala": boxes})


def _write_site(folder: Path, encoding: str = "utf-8") -> None:
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    rows, entries = ["file,subject"], []
    for number in range(1, 5):
        sitk.WriteImage(make_scan(number), folder / "images" / f"scan{number}.nii.gz")
        sitk.WriteImage(make_labels(), folder / "labels" / f"scan{number}.nii.gz")
        rows.append(f"scan{number}.nii.gz,subject{number % 2 + 1}")
        pair = {part: f"{part}s/scan{number}.nii.gz" for part in ("image", "label")}
        entries.append({**pair, "subject": f"subject{number % 2 + 1}"})
    text = "\n".join(rows) + "\n"
    if encoding != "utf-8":  # as Excel saves it
        text = "sep=;\r\n" + text.replace(",", ";").replace("\n", "\r\n").replace("subject1", "Müller")
    (folder / "cases.csv").write_bytes(text.encode(encoding))
    declared = {"labels": {"0": "background", "1": "hippocampus", "7": "amygdala"}}
    (folder / "dataset.json").write_text(json.dumps(declared), encoding="utf-8")
    datalist = {**declared, "training": entries}
    (folder / "datalist.json").write_text(json.dumps(datalist), encoding="utf-8")


def write_bundle(folder: Path, pickled: bool = False, window: int = 16) -> Path:
    """Write a tiny base model with seeded random weights."""
    import torch
    from monai.networks import nets
    from safetensors.torch import save_file

    for part in ("configs", "models"):
        (folder / part).mkdir(parents=True)
    torch.manual_seed(0)
    arguments = {key: value for key, value in NETWORK.items() if key != "_target_"}
    state = {name: value.contiguous() for name, value in nets.SegResNet(**arguments).state_dict().items()}
    inference = {
        "network_def": NETWORK,
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": "image"},
                {"_target_": "Spacingd", "keys": "image", "pixdim": [1.0, 1.0, 1.0]},
                {"_target_": "NormalizeIntensityd", "keys": "image", "channel_wise": True},
            ],
        },
        "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [window] * 3},
    }
    structures = [{"name": name, "value": int(number)} for number, name in CHANNELS.items() if number != "0"]
    metadata = {
        "version": "0.1.0",
        "structures": structures,
        "network_data_format": {"outputs": {"pred": {"channel_def": CHANNELS}}},
    }
    for name, content in (("inference", inference), ("metadata", metadata)):
        (folder / "configs" / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    if pickled:
        torch.save(state, folder / "models" / "model.pt")
    else:
        save_file(state, folder / "models" / "model.safetensors")
    return folder


def _refer(folder: Path) -> None:
    """Write a bundle's inference config as people of the zoo do: in YAML, with references and expressions."""
    path = folder / "configs" / "inference.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    transforms = content["preprocessing"].pop("transforms")
    content["network_def"]["in_channels"] = "$len(@keys)"
    content["network_def"]["out_channels"] = "@classes"
    transforms[1]["pixdim"] = "$[1.0] * 3 if @highres else [3.0] * 3"
    content["preprocessing"]["transforms"] = "$@first + @second"
    content["inferer"]["roi_size"] = "@display::window"
    content["postprocessing"] = {
        "_target_": "Compose",
        "transforms": [{"_target_": "Activationsd", "softmax": True}, {"_target_": "AsDiscreted", "argmax": True}],
    }
    loader = {"_target_": "CheckpointLoader", "load_path": "$@root + '/models/' + @name", "load_dict": {"model": "@n"}}
    content |= {"first": transforms[:1], "second": transforms[1:], "keys": ["image"], "classes": len(CHANNELS)}
    content |= {"highres": True, "display": {"window": [16] * 3}, "root": ".", "name": "model.pt", "handlers": [loader]}
    path.unlink()
    # JSON is YAML, and one line for each value gives mutators of lines something to do.
    path.with_suffix(".yaml").write_text(json.dumps(content, indent=1), encoding="utf-8")


def _write_models(folder: Path) -> None:
    import torch

    from tcurlora.method.channels import Channel
    from tcurlora.method.config import TensorCurConfig
    from tcurlora.method.model import TensorCurModel
    from tcurlora.models.adapter_files import save_adapter
    from tcurlora.models.adapter_library import export_adapter
    from tcurlora.models.opening import load_base_model
    from tcurlora.runtime.job_folder import JobFolder
    from tcurlora.training import trainer as training

    model = nnunet_reference.write_model(folder / "nnU-Net", nnunet_reference.Variant(features=2))
    (folder / "nnU-Net archive").mkdir()
    with zipfile.ZipFile(folder / "nnU-Net archive" / "model.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(model.rglob("*")):
            archive.write(file, Path("Dataset042_Blobs", file.relative_to(model.parent)))

    base = load_base_model(write_bundle(folder / "bundle"))
    write_bundle(folder / "pickled bundle", pickled=True)
    _refer(write_bundle(folder / "referring bundle"))
    channels = (Channel("background", 0), Channel("hippocampus", 1), Channel("hippocampus", 2))
    config = TensorCurConfig(r=2, head="conv_final.2.conv", channels=channels, modules_to_save=(r"norm1",))
    model = TensorCurModel(base.build(), config)
    details = {
        "base_model": {"name": base.name, "sha256": base.sha256},
        "structures": [{"name": "hippocampus", "value": 1}],
        "name": "sample",
    }
    save_adapter(model, folder / "adapter", details, {"summary": "", "size": {"trained_numbers": 1}})
    (folder / "archive").mkdir()
    export_adapter(folder / "adapter", folder / "archive" / "sample.zip")

    job = JobFolder.start(folder / "job", "adapt", {"base": "b", "steps": 3, "mapping": ["a=b"]}, {"x": [1, 2]})
    job.remember("fold-1", {"cases": ["a"], "best_step": 1, "base": [], "adapted": []})
    job.remember("steps", 40)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    sum(p.sum() for p in model.parameters() if p.requires_grad).backward()
    optimizer.step()
    training._save_checkpoint(
        job.checkpoint,
        training.TrainingSettings(),
        model,
        optimizer,
        torch.amp.GradScaler("cpu", enabled=False),
        training.TrainingResult(20, 20, 0.5, [{"step": 20, "loss": 1.0, "monitor_loss": 0.5}]),
        model.trained_state(),
    )


def copy_group(samples: Path, group: str, target: Path) -> Path:
    """Copy one group of samples, in place of what was there."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(samples / group, target)
    return target
