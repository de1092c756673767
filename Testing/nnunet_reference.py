"""nnU-Net itself, for tests and benchmarks: small models made by its own trainer, and its own predictor in float32."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import SimpleITK as sitk

VARIABLES = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
THREADS = "nnUNet_def_n_proc"
"""What nnU-Net reads its number of threads from, when it is imported."""
DATASET = "Dataset042_Blobs"
# nnU-Net finds a trainer by importing all of them, some of which need packages that the tests do without.
TRAINERS = {
    "nnUNetTrainer": "nnunetv2.training.nnUNetTrainer.nnUNetTrainer",
    "nnUNetTrainerNoMirroring": "nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoMirroring",
}
# So does a class in the place where plans of 2023 name it, which has moved since.
MOVED = "dynamic_network_architectures.architectures.residual_unet"
CT = {"mean": 100.0, "std": 50.0, "percentile_00_5": -20.0, "percentile_99_5": 230.0}


@dataclass(frozen=True)
class Variant:
    """A model as nnU-Net would plan it; the fields are those of its plans and of dataset.json."""

    network: str = "PlainConvUNet"
    old_plans: bool = False
    configuration: str = "3d_fullres"
    patch: tuple[int, ...] = (16, 16, 16)
    spacing: tuple[float, ...] = (1.0, 1.0, 1.0)
    strides: tuple[tuple[int, ...], ...] = ((1, 1, 1), (2, 2, 2), (2, 2, 2))
    kernels: tuple[tuple[int, ...], ...] = ((3, 3, 3), (3, 3, 3), (3, 3, 3))
    features: int = 4
    normalization: tuple[str, ...] = ("ZScoreNormalization",)
    use_mask: tuple[bool, ...] = (False,)
    transpose: tuple[int, int, int] = (0, 1, 2)
    labels: Mapping[str, Any] = field(default_factory=lambda: {"background": 0, "left": 1, "right": 2})
    regions_class_order: tuple[int, ...] | None = None
    channel_names: tuple[str, ...] = ("MRI",)
    reader: str = "SimpleITKIO"
    trainer: str = "nnUNetTrainer"
    resampling: str = "resample_data_or_seg_to_shape"
    mirrored: bool = True

    @property
    def folder_name(self) -> str:
        """TRAINER__PLANS__CONFIGURATION."""
        return f"{self.trainer}__nnUNetPlans__{self.configuration}"


@contextlib.contextmanager
def nnunet_folders(top: Path) -> Iterator[None]:
    """Let nnU-Net keep its data in a folder, work alone, and say nothing."""
    values = {name: str(top / name) for name in VARIABLES}
    for folder in values.values():
        Path(folder).mkdir(parents=True, exist_ok=True)
    values |= {THREADS: os.environ.get(THREADS, "1"), "nnUNet_n_proc_DA": "0", "nnUNet_compile": "f"}
    from dynamic_network_architectures import architectures
    from dynamic_network_architectures.architectures import unet

    sys.modules.setdefault(MOVED, unet)
    setattr(architectures, MOVED.rpartition(".")[2], unet)
    with patch.dict(os.environ, values), contextlib.redirect_stdout(io.StringIO()):
        yield


def plans_of(variant: Variant) -> dict[str, Any]:
    """Write plans as nnU-Net's planner does."""
    stages, channels = len(variant.strides), len(variant.channel_names)
    repeats = "n_conv_per_stage" if variant.network == "PlainConvUNet" else "n_blocks_per_stage"
    per_stage = [2] * stages if variant.network == "PlainConvUNet" else [1, *[2] * (stages - 1)]
    in_decoder = [2 if variant.network == "PlainConvUNet" else 1] * (stages - 1)
    configuration: dict[str, Any] = {
        "data_identifier": f"nnUNetPlans_{variant.configuration}",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(variant.patch),
        "median_image_size_in_voxels": [24.0, 24.0, 24.0],
        "spacing": list(variant.spacing),
        "normalization_schemes": list(variant.normalization),
        "use_mask_for_norm": list(variant.use_mask),
        "resampling_fn_data": variant.resampling,
        "resampling_fn_seg": variant.resampling,
        "resampling_fn_probabilities": variant.resampling,
        "batch_dice": True,
    }
    shared = {"force_separate_z": None}
    spline = variant.resampling == "resample_data_or_seg_to_shape"
    for what, order in (("data", 3), ("seg", 1), ("probabilities", 1)):
        kwargs = {"is_seg": what == "seg", "order": order, "order_z": 0} if spline else {"is_seg": what == "seg"}
        configuration[f"resampling_fn_{what}_kwargs"] = kwargs | shared
    if variant.old_plans:
        configuration |= {
            "UNet_class_name": variant.network,
            "UNet_base_num_features": variant.features,
            "n_conv_per_stage_encoder": per_stage,
            "n_conv_per_stage_decoder": in_decoder,
            "num_pool_per_axis": [2, 2, 2],
            "pool_op_kernel_sizes": [list(stride) for stride in variant.strides],
            "conv_kernel_sizes": [list(kernel) for kernel in variant.kernels],
            "unet_max_num_features": 4 * variant.features,
        }
    else:
        configuration["architecture"] = {
            "network_class_name": f"dynamic_network_architectures.architectures.unet.{variant.network}",
            "arch_kwargs": {
                "n_stages": stages,
                "features_per_stage": [variant.features * 2**stage for stage in range(stages)],
                "conv_op": "torch.nn.modules.conv.Conv3d",
                "kernel_sizes": [list(kernel) for kernel in variant.kernels],
                "strides": [list(stride) for stride in variant.strides],
                repeats: per_stage,
                "n_conv_per_stage_decoder": in_decoder,
                "conv_bias": True,
                "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
                "norm_op_kwargs": {"eps": 1e-05, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        }
    return {
        "dataset_name": DATASET,
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [1.0, 1.0, 1.0],
        "original_median_shape_after_transp": [24, 24, 24],
        "image_reader_writer": variant.reader,
        "transpose_forward": list(variant.transpose),
        "transpose_backward": [variant.transpose.index(axis) for axis in range(3)],
        "configurations": {variant.configuration: configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            str(number): {"max": 400.0, "min": -100.0, "median": 100.0, **CT} for number in range(channels)
        },
    }


def dataset_json_of(variant: Variant, cases: int = 4) -> dict[str, Any]:
    """Write dataset.json."""
    content: dict[str, Any] = {
        "channel_names": {str(number): name for number, name in enumerate(variant.channel_names)},
        "labels": dict(variant.labels),
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
    if variant.regions_class_order is not None:
        content["regions_class_order"] = list(variant.regions_class_order)
    return content


def make_scan(
    seed: int,
    size: tuple[int, int, int] = (26, 22, 20),
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    channels: int = 1,
    direction: tuple[float, ...] = (1, 0, 0, 0, 1, 0, 0, 0, 1),
    margin: int = 2,
) -> tuple[list[sitk.Image], sitk.Image]:
    """Make a scan of two bright blobs in a noisy body, zero around that, as (x, y, z); and their labels 1 and 2."""
    random = np.random.default_rng(seed)
    shape = size[::-1]
    points = np.stack(np.meshgrid(*((np.arange(n) + 0.5) / n for n in shape), indexing="ij"))
    labels = np.zeros(shape, np.uint8)
    for value, center in ((1, (0.5, 0.35, 0.4)), (2, (0.5, 0.65, 0.6))):
        middle = (np.array(center) + random.uniform(-0.05, 0.05, 3))[:, None, None, None]
        labels[(((points - middle) / 0.17) ** 2).sum(0) < 1] = value
    body = np.zeros(shape, bool)
    body[tuple(slice(min(margin, n // 4), n - min(margin, n // 4)) for n in shape)] = True
    images = []
    for channel in range(channels):
        voxels = random.normal(60, 20, shape) + (90.0 if channel % 2 == 0 else -40.0) * labels
        voxels[(points[0] - 0.3) ** 2 + (points[1] - 0.5) ** 2 < 0.003] = 0  # a hole
        images.append(_image(np.where(body, voxels, 0).astype(np.float32), spacing, direction))
    return images, _image(labels, spacing, direction)


def _image(array: np.ndarray, spacing: Sequence[float], direction: Sequence[float]) -> sitk.Image:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    image.SetDirection(direction)
    image.SetOrigin((-11.5, 4.25, 30.0))
    return image


def train(top: Path, variant: Variant, steps: int = 0, fold: int | str = 0, seed: int = 0) -> Path:
    """Make a trained model with nnU-Net's own trainer.

    Args:
        top: folder for nnU-Net's data.
        variant: what is trained.
        steps: of its optimizer; with 0 the weights are those that nnU-Net begins with, each a little off.
        fold: number, or `all`.
        seed: of the weights.

    Returns:
        TRAINER__PLANS__CONFIGURATION.
    """
    import torch

    with nnunet_folders(top):
        plans, dataset = plans_of(variant), dataset_json_of(variant)
        preprocessed = top / "nnUNet_preprocessed" / DATASET
        folder = preprocessed / f"nnUNetPlans_{variant.configuration}"
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in (("dataset_fingerprint", {}), ("dataset", dataset), ("nnUNetPlans", plans)):
            (preprocessed / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
        _preprocess(top, variant, folder, cases=5 if steps else 1)
        torch.manual_seed(seed)
        np.random.seed(seed)
        trainer = getattr(importlib.import_module(TRAINERS[variant.trainer]), variant.trainer)(
            {**plans, "continue_training": False}, variant.configuration, fold, dataset, torch.device("cpu")
        )
        if steps:
            trainer.num_epochs = 1
            trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = steps, 1
            trainer.plot_network_architecture = lambda: None
            trainer.logger.plot_progress_png = lambda *_: None
            trainer.run_training()
        else:
            trainer.initialize()
            with torch.no_grad():
                for parameter in trainer.network.parameters():
                    parameter += 0.1 * torch.randn_like(parameter) * (parameter.std() if parameter.numel() > 8 else 1)
            trainer.inference_allowed_mirroring_axes = (0, 1, 2) if variant.mirrored else None
            trainer._best_ema = np.float32(0.5)  # what makes a real checkpoint unreadable with weights_only alone
            trainer.save_checkpoint(os.path.join(trainer.output_folder, "checkpoint_final.pth"))
            for name, content in (("plans", plans), ("dataset", dataset)):
                Path(trainer.output_folder_base, f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
        shutil.rmtree(folder)
    return top / "nnUNet_results" / DATASET / variant.folder_name


def write_model(folder: Path, variant: Variant, seed: int = 0) -> Path:
    """Write a model as the trainer does, but without nnU-Net, which takes long to import; weights are random.

    Returns:
        TRAINER__PLANS__CONFIGURATION.
    """
    import torch

    from tcurlora.models.nnunet import whole_network
    from tcurlora.models.nnunet_files import read_trained

    model = folder / variant.folder_name
    (model / "fold_0").mkdir(parents=True)
    plans, dataset = plans_of(variant), dataset_json_of(variant)
    for name, content in (("plans", plans), ("dataset", dataset)):
        (model / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    torch.manual_seed(seed)
    trained = read_trained(model, look=False)
    checkpoint = {
        "network_weights": whole_network(trained, len(trained.channels)).state_dict(),
        "optimizer_state": {},
        "grad_scaler_state": None,
        "logging": {"mean_fg_dice": [0.5]},
        "_best_ema": np.float32(0.5),
        "current_epoch": 1,
        "init_args": {"plans": plans, "configuration": variant.configuration, "fold": 0, "dataset_json": dataset},
        "trainer_name": variant.trainer,
        "inference_allowed_mirroring_axes": (0, 1, 2) if variant.mirrored else None,
    }
    torch.save(checkpoint, model / "fold_0" / "checkpoint_final.pth")
    return model


def _preprocess(top: Path, variant: Variant, folder: Path, cases: int) -> None:
    """Preprocess cases with nnU-Net's own preprocessor, in this process."""
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(plans_of(variant))
    configuration = manager.get_configuration(variant.configuration)
    with tempfile.TemporaryDirectory(dir=top) as scratch:
        for number in range(cases):
            images, labels = make_scan(100 + number, channels=len(variant.channel_names))
            files = write_channels(images, Path(scratch) / f"case{number}")
            sitk.WriteImage(labels, f"{scratch}/labels.nii.gz")
            DefaultPreprocessor(verbose=False).run_case_save(
                str(folder / f"case{number}"),
                [str(file) for file in files],
                f"{scratch}/labels.nii.gz",
                manager,
                configuration,
                dataset_json_of(variant),
            )


def write_channels(images: Sequence[sitk.Image], stem: Path) -> list[Path]:
    """Write a case as nnU-Net wants it: one file a channel."""
    files = [stem.with_name(f"{stem.name}_{number:04d}.nii.gz") for number in range(len(images))]
    for image, file in zip(images, files, strict=True):
        sitk.WriteImage(image, file)
    return files


def predict(
    model: Path, files: Sequence[Path], folds: Sequence[int | str] = (0,), mirror: bool = False, half: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Segment a case with nnU-Net's own predictor.

    Args:
        model: TRAINER__PLANS__CONFIGURATION.
        files: one a channel.
        folds: whose logits are averaged.
        mirror: along all axes that the checkpoint allows.
        half: add up in half precision, as nnU-Net does, and not in float32.

    Returns:
        The labels that it writes, as its reader has the axes; and the logits for each voxel of the crop it works on,
        put into the same axes, NaN outside.
    """
    import torch

    with nnunet_folders(model.parents[2]), _sums_in(torch.half if half else torch.float32):
        from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

        predictor = nnUNetPredictor(
            use_mirroring=mirror, device=torch.device("cpu"), allow_tqdm=False, perform_everything_on_device=False
        )
        predictor.initialize_from_trained_model_folder(str(model), list(folds))
        plans, configuration = predictor.plans_manager, predictor.configuration_manager
        data, properties = plans.image_reader_writer_class().read_images([str(file) for file in files])
        preprocessor = configuration.preprocessor_class(verbose=False)
        array, _, properties = preprocessor.run_case_npy(
            data, None, properties, plans, configuration, predictor.dataset_json
        )
        logits = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(array))
        labels = convert_predicted_logits_to_segmentation_with_correct_shape(
            logits, plans, configuration, predictor.label_manager, properties, num_threads_torch=1
        )
        spacing = [properties["spacing"][axis] for axis in plans.transpose_forward]
        shape = properties["shape_after_cropping_and_before_resampling"]
        resampled = np.asarray(configuration.resampling_fn_probabilities(logits, shape, configuration.spacing, spacing))
        whole = np.full((len(resampled), *properties["shape_before_cropping"]), np.nan)
        box = tuple(slice(low, high) for low, high in properties["bbox_used_for_cropping"])
        whole[(slice(None), *box)] = resampled
        return labels, whole.transpose(0, *(axis + 1 for axis in plans.transpose_backward))


@contextlib.contextmanager
def _sums_in(dtype: Any) -> Iterator[None]:
    """Let nnU-Net add windows up in another precision than half."""
    from nnunetv2.inference import predict_from_raw_data as module

    gaussian = partial(module.compute_gaussian.__wrapped__, dtype=dtype)
    gaussian.cache_clear = lambda: None  # type: ignore[attr-defined]
    with patch.object(module, "torch", _Torch(dtype)), patch.object(module, "compute_gaussian", gaussian):
        yield


class _Torch:
    """torch, in which `half` is another precision."""

    def __init__(self, half: Any) -> None:
        self.half = half

    def __getattr__(self, name: str) -> Any:
        import torch

        return getattr(torch, name)
