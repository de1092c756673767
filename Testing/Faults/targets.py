"""What is fuzzed: for each reader the files that are damaged, how, and what counts as a right result."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import mutations as m
import numpy as np
import SimpleITK as sitk
import torch
from readings import Unreadable, read, read_dicom_labels, read_frames, read_safetensors

from tcurlora.cases.checks import check_cases
from tcurlora.cases.dataset import find_cases
from tcurlora.cases.labels import read_structures
from tcurlora.errors import TCurLoraError
from tcurlora.imaging.images import read_image
from tcurlora.imaging.label_layers import mask_of
from tcurlora.imaging.placing import on_scan
from tcurlora.imaging.segmentations import read_segmentation
from tcurlora.imaging.structures import Structure, normalized
from tcurlora.inference.segmenter import Segmenter
from tcurlora.method.config import TensorCurConfig
from tcurlora.method.model import TensorCurModel
from tcurlora.models.adapter_files import load_adapter, read_adapter_config
from tcurlora.models.adapter_library import import_adapter, list_adapters
from tcurlora.models.base_model import Windowing
from tcurlora.models.catalogue import add_model
from tcurlora.models.monai_preprocessing import MonaiPreprocessing
from tcurlora.models.opening import load_base_model
from tcurlora.models.weights_files import read_weights
from tcurlora.runtime.job_folder import JobFolder
from tcurlora.training import trainer as training


class Wrong(Exception):
    """The engine took a damaged file for something that it is not."""


Check = Callable[[Path, Path], None]
"""Reads the damaged file (first), knowing the sound one; raises the engine's errors, or `Wrong`."""


@dataclass(frozen=True)
class Target:
    """One file of the samples, the ways to damage it and the reading that must be right or refused."""

    name: str
    group: str
    file: str
    mutators: tuple[m.Mutator, ...]
    check: Check


# Images


def check_image(path: Path, sound: Path) -> None:
    image = read_image(path)
    expect_same_image(image, path, sound)
    if image.GetNumberOfComponentsPerPixel() == 1:
        segment(image)


def check_nrrd_of_any_kind(path: Path, sound: Path) -> None:
    check_image(path, sound)


def expect_same_image(image: sitk.Image, path: Path, sound: Path) -> None:
    voxels = sitk.GetArrayFromImage(image)
    original = read_image(sound)
    if same_voxels(voxels, sitk.GetArrayFromImage(original)) and same_place(image, [matrix_of(original)]):
        return
    try:
        other = read(path)
    except Unreadable as error:
        raise Wrong(f"read {image.GetSize()}, another reader says: {error}") from error
    if not same_voxels(voxels, other.voxels):
        raise Wrong(f"voxels differ from another reader's: {voxels.shape} {other.voxels.shape}")
    if not same_place(image, other.affines):
        raise Wrong(f"geometry differs from another reader's: {matrix_of(image).tolist()}")


def same_voxels(a: np.ndarray, b: np.ndarray) -> bool:
    if a.shape != b.shape:
        return False
    with np.errstate(all="ignore"):
        # What a single-precision number cannot hold is infinite in one reader and large in the other.
        a, b = (np.clip(voxels.astype(np.float64), -3e38, 3e38) for voxels in (a, b))
        return bool(np.allclose(a, b, rtol=1e-5, atol=1e-30, equal_nan=True))


def matrix_of(image: sitk.Image) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    matrix[:3, 3] = image.GetOrigin()
    return matrix


def same_place(image: sitk.Image, affines: Sequence[np.ndarray]) -> bool:
    own = matrix_of(image)
    corner = np.array([*(n - 1 for n in image.GetSize()), 1.0])
    for affine in affines:
        scale = max(1.0, float(np.abs(affine).max()), float(np.abs(affine @ corner).max()))
        if np.allclose(own, affine, atol=1e-4 * scale) and np.allclose(
            own @ corner, affine @ corner, atol=1e-3 * scale
        ):
            return True
    return False


class Brightness(torch.nn.Module):
    """Stands in for a network: votes for brightness, so that a scan without meaning has no label by itself."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.zeros_like(x), x], 1)


@cache
def segmenter() -> Segmenter:
    preprocessing = MonaiPreprocessing((1.0, 1.0, 1.0), (("NormalizeIntensity", {"channel_wise": True}),))
    structures = [Structure("bright", 1)]
    return Segmenter(
        Brightness(), ["background", "bright"], structures, preprocessing, Windowing((16, 16, 16)), torch.device("cpu")
    )


def segment(image: sitk.Image) -> None:
    """Segment what was read: the labels must lie on it, and NaN must not silently give none."""
    labels, _ = segmenter().segment(image)
    if labels.GetSize() != image.GetSize() or not same_place(labels, [matrix_of(image)]):
        raise Wrong("labels are not in the geometry of the scan")
    if not np.isfinite(sitk.GetArrayViewFromImage(image)).all():
        raise Wrong("a scan with values that are no numbers was segmented")


def check_series(path: Path, sound: Path) -> None:
    image, original = read_image(path.parent), read_image(sound.parent)
    voxels, expected = sitk.GetArrayFromImage(image), sitk.GetArrayFromImage(original)
    import pydicom

    if image.GetNumberOfComponentsPerPixel() == 1 and image.GetSize() == original.GetSize():
        changed = [k for k in range(len(voxels)) if not np.array_equal(voxels[k], expected[k])]
        if len(changed) > 1:
            raise Wrong(f"damage to one slice changed slices {changed}")
        if not same_place(image, [matrix_of(original)]):
            first = pydicom.dcmread(path, force=True)
            if list(map(float, first.ImageOrientationPatient)) == [0, 1, 0, 0, 0, -1] and "SliceThickness" in first:
                expect_place_of_slices(image, path.parent)
        if changed:
            expect_slice(voxels[changed[0]], path)
    elif image.GetSize()[2] > original.GetSize()[2]:
        raise Wrong(f"more slices than files: {image.GetSize()}")
    segment(image) if image.GetNumberOfComponentsPerPixel() == 1 else None


def check_frames(path: Path, sound: Path) -> None:
    image = read_image(path)
    voxels = sitk.GetArrayFromImage(image)
    original = read_image(sound)
    if not same_place(image, [matrix_of(original)]) or not same_voxels(voxels, sitk.GetArrayFromImage(original)):
        try:
            other = read_frames(path)
        except Unreadable as error:
            raise Wrong(f"read {image.GetSize()}, another reader says: {error}") from error
        if not same_voxels(voxels, other.voxels):
            raise Wrong(f"voxels differ from another reader's: {voxels.shape} {other.voxels.shape}")
        if not same_place(image, other.affines):
            raise Wrong(f"geometry differs from another reader's: {matrix_of(image).tolist()}")
    segment(image)


def expect_place_of_slices(image: sitk.Image, folder: Path) -> None:
    import pydicom

    files = [pydicom.dcmread(file, force=True) for file in folder.glob("*.dcm")]
    places = sorted(float(file.ImagePositionPatient[0]) for file in files)
    own = sorted(image.TransformIndexToPhysicalPoint((0, 0, k))[0] for k in range(image.GetSize()[2]))
    if len(places) == len(own) and not np.allclose(places, own, atol=0.05):
        raise Wrong(f"slices at {own}, the files say {places}")


def expect_slice(voxels: np.ndarray, path: Path) -> None:
    import pydicom

    try:
        file = pydicom.dcmread(path, force=True)
        file.SamplesPerPixel = file.get("SamplesPerPixel", 1)  # which it is when nothing is said
        stored = file.pixel_array.reshape(-1, *voxels.shape)[0].astype(float)  # more than was promised does no harm
        if file.PhotometricInterpretation == "MONOCHROME1":
            stored = -1 - stored  # ITK inverts it, so that what is bright there is bright here
        expected = stored * float(file.get("RescaleSlope", 1)) + float(file.get("RescaleIntercept", 0))
    except Exception as error:
        raise Wrong(f"a slice changed that another reader cannot read: {error}") from error
    if not same_voxels(voxels.astype(float), expected):
        raise Wrong("a slice differs from another reader's")


# Segmentations and cases


def check_segmentation(path: Path, sound: Path) -> None:
    labels, structures = read_segmentation(path)
    own = (sitk.GetArrayFromImage(labels), [(normalized(s.name), s.value) for s in structures])
    original_labels, original_structures = read_segmentation(sound)
    original = (
        sitk.GetArrayFromImage(original_labels),
        [(normalized(s.name), s.value) for s in original_structures],
    )
    if len({name for name, _ in own[1]}) < len(own[1]) or len({value for _, value in own[1]}) < len(own[1]):
        raise Wrong(f"structures repeat themselves: {own[1]}")
    if any(not 0 < value < 2**31 for _, value in own[1]):
        raise Wrong(f"impossible label numbers: {own[1]}")
    if np.array_equal(own[0], original[0]) and own[1] == original[1]:
        return
    try:
        other = read(path)
    except Unreadable as error:
        raise Wrong(f"another reader says: {error}") from error
    if other.voxels.ndim == 3 and not same_voxels(own[0], other.voxels):
        raise Wrong("labels differ from another reader's")
    if other.voxels.ndim == 4:
        for name, number in named_segments(other.header):
            layer, value = number
            mine = [v for n, v in own[1] if n == normalized(name) or not name]
            same = bool(mine) and np.array_equal(own[0] == mine[0], other.voxels[..., layer] == value)
            if name and not same:
                raise Wrong(f"segment '{name}' differs from another reader's")


def named_segments(header: dict[str, str]) -> list[tuple[str, tuple[int, int]]]:
    found, index = [], 0
    while f"Segment{index}_Name" in header:
        layer = int(header.get(f"Segment{index}_Layer", index))
        found.append((header[f"Segment{index}_Name"], (layer, int(header.get(f"Segment{index}_LabelValue", 1)))))
        index += 1
    return found


def check_dicom_labels(path: Path, sound: Path) -> None:
    """Each structure must have the voxels that another reader finds for it, at the same places of the patient."""
    scan = read_image(path.with_name("scan"))
    labels, structures = read_segmentation(path, overlaps=True, scan=scan)
    if len({normalized(s.name) for s in structures}) < len(structures):
        raise Wrong(f"structures repeat themselves: {structures}")
    placed = on_scan(labels, scan, path.with_name("scan"), cropped=True)
    if placed is None:
        return  # which the check of the case tells
    others = read_dicom_labels(path, scan)
    for structure in structures:
        own = mask_of(placed, structure.value)
        same = [mask for name, mask in others if name == structure.name]
        if not same or not np.array_equal(own, np.logical_or.reduce(same)):
            raise Wrong(f"'{structure.name}' differs from another reader's")


def check_color_table(path: Path, sound: Path) -> None:
    check_segmentation(path.with_name("table.nii.gz"), sound.with_name("table.nii.gz"))


def check_site_table(path: Path, sound: Path) -> None:
    expect_cases(path.parent, sound.parent)


def check_datalist(path: Path, sound: Path) -> None:
    expect_cases(path, sound)


def expect_cases(data: Path, sound: Path) -> None:
    """Whatever the file says now, scans stay with their own labels, and all that is read must be there."""
    dataset = find_cases(data)
    if len({case.name for case in dataset.cases}) < len(dataset.cases):
        raise Wrong("two cases share a name")
    for case in dataset.cases:
        if not case.image.exists() or not case.label.exists():
            raise Wrong(f"a case names files that are not there: {case}")
        if "/" in case.name or "\0" in case.name or case.name in ("", ".", ".."):
            raise Wrong(f"a case's name leads out of a folder: {case.name!r}")
    values = [structure.value for structure in dataset.structures]
    if any(not 0 < value < 2**31 for value in values):
        raise Wrong(f"impossible label numbers: {values}")
    structures = read_structures(dataset, strict=False)
    check_cases(dataset, structures)


# Base models


def check_bundle(path: Path, sound: Path) -> None:
    folder = path.parent.parent
    try:
        base = load_base_model(folder)
        base.labelled_structures()
        network = base.build()
    finally:
        if Path("canary").exists():
            raise Wrong("an expression was executed")
    outputs = {len(base.channels)}
    with torch.no_grad():
        found = network(torch.zeros(1, base.in_channels, *base.windows.roi_size)).shape[1]
    if found not in outputs:
        raise Wrong(f"{found} output channels for {len(base.channels)} names")
    scan = read_image(sound.parents[2] / "images" / "plain.nii")
    opened = Segmenter.of_base(base, torch.device("cpu"), network)
    if base.in_channels == 1:
        labels, _ = opened.segment(scan)
        allowed = {0, *(s.value for s in base.labelled_structures())}
        if not set(np.unique(sitk.GetArrayFromImage(labels)).tolist()) <= allowed:
            raise Wrong("labels that no structure has")


def check_nnunet(path: Path, sound: Path) -> None:
    folder = next(part for part in path.parents if "__" in part.name)
    base = load_base_model(folder)
    network = base.build()
    if math.prod(base.windows.roi_size) > 48**3:
        return  # its damage is a window that is large, and could be meant so
    with torch.no_grad():
        found = network(torch.zeros(1, base.in_channels, *base.windows.roi_size)).shape[1]
    if found != len(base.channels):
        raise Wrong(f"{found} output channels for {len(base.channels)} names")
    if base.in_channels == 1:
        scan = read_image(samples_of(sound) / "images" / "plain.nii")
        labels, _ = Segmenter.of_base(base, torch.device("cpu"), network).segment(scan)
        if not set(np.unique(sitk.GetArrayFromImage(labels)).tolist()) <= {0, *base.label_values}:
            raise Wrong("labels that no structure has")


def samples_of(sound: Path) -> Path:
    """The folder of all samples."""
    return next(part for part in sound.parents if part.name == "samples")


def check_nnunet_archive(path: Path, sound: Path) -> None:
    home = path.parent / "home"
    shutil.rmtree(home, ignore_errors=True)
    before = os.environ.get("TCURLORA_HOME")
    os.environ["TCURLORA_HOME"] = str(home)
    try:
        load_base_model(add_model(path, lambda folder: load_base_model(folder).build(), "sample")).build()
    except TCurLoraError:
        left = sorted(p.name for p in (home / "models").iterdir()) if (home / "models").is_dir() else []
        if left not in ([], ["sample"]):
            raise Wrong(f"left among the models: {left}") from None
        raise
    finally:
        os.environ.pop("TCURLORA_HOME")
        if before is not None:
            os.environ["TCURLORA_HOME"] = before
    outside = sorted(p.name for p in path.parent.iterdir() if p.name not in (path.name, "home"))
    if outside:
        raise Wrong(f"written outside of the models: {outside}")


def check_weights(path: Path, sound: Path) -> None:
    base = load_base_model(path.parent.parent)
    base.build()
    found = read_weights(path)
    if path.suffix == ".safetensors":
        expected = read_safetensors(path)
    else:
        expected = {name: tensor.numpy() for name, tensor in read_weights(sound).items()}
        if found.keys() != expected.keys():
            raise Wrong("other names")
        return  # a changed number in a file without a checksum cannot be told from another model's
    for name, tensor in found.items():
        if not np.array_equal(tensor.numpy(), expected[name].astype(tensor.numpy().dtype), equal_nan=True):
            raise Wrong(f"{name} differs from another reader's")
    if not all(bool(torch.isfinite(tensor).all()) for tensor in found.values() if tensor.is_floating_point()):
        raise Wrong("weights that are no numbers were accepted")


# Adapters


@cache
def base_network(samples: Path) -> torch.nn.Module:
    return load_base_model(samples / "bundle").build()


def check_adapter(path: Path, sound: Path) -> None:
    samples = sound.parents[1]
    list_adapters(path.parent.parent)
    model = load_adapter(base_network(samples), path.parent)
    with torch.no_grad():
        model(torch.zeros(1, 1, 16, 16, 16))
    state = model.trained_state()
    if path.name.endswith(".safetensors"):
        original = read_safetensors(sound)
        if not all(np.array_equal(value.numpy(), original[name]) for name, value in state.items()):
            raise Wrong("damaged weights were accepted")


def check_adapter_without_hash(path: Path, sound: Path) -> None:
    """An attacker writes the hash that fits: what is accepted must still be sound."""
    config = read_adapter_config(path.parent)
    config.pop("weights_sha256", None)
    (path.parent / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    model = load_adapter(base_network(sound.parents[1]), path.parent)
    state = model.trained_state()
    expected = read_safetensors(path)
    for name, value in state.items():
        if not np.array_equal(value.numpy(), expected[name].astype(value.numpy().dtype)):
            raise Wrong(f"{name} differs from another reader's")
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise Wrong(f"{name} holds values that are no numbers")


def check_archive(path: Path, sound: Path) -> None:
    library = path.parent / "library"
    shutil.rmtree(library, ignore_errors=True)
    try:
        found = import_adapter(path, library, "sample")
        load_adapter(base_network(sound.parents[1]), found)
    except TCurLoraError:
        left = sorted(p.name for p in library.iterdir()) if library.is_dir() else []
        if left not in ([], ["sample"]):
            raise Wrong(f"left in the library: {left}") from None
        raise
    outside = sorted(p.name for p in path.parent.iterdir() if p.name not in (path.name, "library"))
    if outside:
        raise Wrong(f"written outside of the library: {outside}")


# Jobs


def check_job(path: Path, sound: Path) -> None:
    wanted = json.loads(sound.read_text(encoding="utf-8"))
    JobFolder.resume(path.parent, wanted["command"], wanted["request"], wanted["inputs"])
    found = json.loads(path.read_text(encoding="utf-8"))
    if {key: found.get(key) for key in wanted} != wanted:
        raise Wrong("another job was resumed")


def check_remembered(path: Path, sound: Path) -> None:
    value = JobFolder(path.parent.parent).remembered(path.stem)
    if value is not None and value != json.loads(sound.read_text(encoding="utf-8"))["value"]:
        raise Wrong(f"a damaged intermediate result was believed: {str(value)[:80]}")


def check_checkpoint(path: Path, sound: Path) -> None:
    settings = training.TrainingSettings()
    found = training._load_checkpoint(path, settings)
    if found is None:
        return
    original = training._load_checkpoint(sound, settings)
    assert original is not None
    if found.result != original.result or found.tensors.keys() != original.tensors.keys():
        raise Wrong("another training was resumed")
    if not all(torch.equal(found.tensors[name], value) for name, value in original.tensors.items()):
        raise Wrong("damaged weights were resumed from")


def fresh_model(samples: Path) -> TensorCurModel:
    return TensorCurModel(base_network(samples), TensorCurConfig(r=2))


NNUNET = "nnUNetTrainer__nnUNetPlans__3d_fullres"
MULTI_FRAME = (m.damaged, m.dicom, m.dicom_frames, m.dicom_frames)
TARGETS = (
    *(
        Target(f"NIfTI {f}", "images", f, (m.damaged, m.nifti, m.nifti), check_image)
        for f in ("plain.nii", "packed.nii.gz", "whole.nii.gz")
    ),
    Target("NRRD raw", "images", "plain.nrrd", (m.damaged, m.nrrd, m.absurd_nrrd), check_image),
    Target("NRRD gzip", "images", "packed.nrrd", (m.damaged, m.nrrd, m.absurd_nrrd, m.repacked_gzip), check_image),
    Target("MHA raw", "images", "plain.mha", (m.damaged, m.meta_image, m.absurd_meta_image), check_image),
    Target("MHA zlib", "images", "packed.mha", (m.damaged, m.meta_image, m.repacked_zlib), check_image),
    Target("DICOM first slice", "series", "slice0.dcm", (m.damaged, m.dicom), check_series),
    Target("DICOM middle slice", "series", "slice2.dcm", (m.damaged, m.dicom), check_series),
    *(
        Target(
            f"DICOM frames {f}",
            "frames",
            f"{f}.dcm",
            (m.damaged, m.dicom, m.dicom_frames, m.dicom_frames),
            check_frames,
        )
        for f in ("enhanced", "legacy", "packed")
    ),
    Target("seg.nrrd", "segmentations", "one.seg.nrrd", (m.damaged, m.nrrd, m.repacked_gzip), check_segmentation),
    Target("seg.nrrd layers", "segmentations", "layers.seg.nrrd", (m.damaged, m.nrrd), check_segmentation),
    Target("color table", "segmentations", "table.ctbl", (m.damaged, m.csv_text), check_color_table),
    Target("DICOM SEG", "DICOM labels", "seg.dcm", (m.damaged, m.dicom, m.dicom_labels), check_dicom_labels),
    Target("DICOM RTSTRUCT", "DICOM labels", "rtstruct.dcm", (m.damaged, m.dicom_labels), check_dicom_labels),
    *(
        Target(f"cases.csv{words}", f"site{words}", "cases.csv", (m.damaged, m.csv_text), check_site_table)
        for words in ("", " utf-16", " cp1252")
    ),
    Target("dataset.json", "site", "dataset.json", (m.damaged, m.json_text), check_site_table),
    Target("datalist", "site", "datalist.json", (m.damaged, m.json_text, m.json_text), check_datalist),
    Target("bundle inference", "bundle", "configs/inference.json", (m.damaged, m.json_text, m.json_text), check_bundle),
    Target("bundle metadata", "bundle", "configs/metadata.json", (m.damaged, m.json_text), check_bundle),
    Target(
        "bundle with references",
        "referring bundle",
        "configs/inference.yaml",
        (m.damaged, m.json_text, m.config_text, m.config_text),
        check_bundle,
    ),
    Target("bundle weights", "bundle", "models/model.safetensors", (m.damaged, m.safetensors), check_weights),
    Target("bundle pickle", "pickled bundle", "models/model.pt", (m.damaged,), check_weights),
    Target("nnU-Net plans", "nnU-Net", f"{NNUNET}/plans.json", (m.damaged, m.json_text, m.json_text), check_nnunet),
    Target("nnU-Net dataset", "nnU-Net", f"{NNUNET}/dataset.json", (m.damaged, m.json_text), check_nnunet),
    Target("nnU-Net checkpoint", "nnU-Net", f"{NNUNET}/fold_0/checkpoint_final.pth", (m.damaged,), check_nnunet),
    Target("nnU-Net zip", "nnU-Net archive", "model.zip", (m.damaged,), check_nnunet_archive),
    Target("adapter config", "adapter", "adapter_config.json", (m.damaged, m.json_text, m.json_text), check_adapter),
    Target("adapter weights", "adapter", "adapter_model.safetensors", (m.damaged, m.safetensors), check_adapter),
    Target(
        "adapter weights, hash forged",
        "adapter",
        "adapter_model.safetensors",
        (m.damaged, m.safetensors, m.safetensors),
        check_adapter_without_hash,
    ),
    Target("adapter report", "adapter", "report.json", (m.damaged, m.json_text), check_adapter),
    Target("adapter zip", "archive", "sample.zip", (m.damaged,), check_archive),
    Target("job.json", "job", "job.json", (m.damaged, m.json_text), check_job),
    Target("job's intermediate result", "job", "done/fold-1.json", (m.damaged, m.json_text), check_remembered),
    Target("checkpoint", "job", "checkpoint.safetensors", (m.damaged, m.safetensors), check_checkpoint),
)
