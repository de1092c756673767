"""nnU-Net's trained models on disk: found, and read as data; without torch.

A trained model is the folder TRAINER__PLANS__CONFIGURATION that nnU-Net v2 writes, with `plans.json`, `dataset.json`
and a folder for each fold. Everything that its files say is checked here, so that nothing after it meets a number that
is absurd or a name that is not on a list.
"""

from __future__ import annotations

import glob
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from tcurlora.errors import InputError
from tcurlora.imaging.structures import BACKGROUND, is_background

KIND = "nnU-Net"
PLANS = "plans.json"
DATASET = "dataset.json"
SETTINGS = "tcurlora.json"
"""What this program adds beside an nnU-Net's own files: the orientation of its training data."""
CHECKPOINT = "checkpoint_final.pth"
DEFAULT_FOLDS = ("0", "all")
"""The folds that are taken where the user names none: the first of these that is there."""

CONFIGURATIONS = ("3d_fullres", "3d_lowres")
"""What a remedy names; plans may have configurations of other names that inherit from these."""
ARCHITECTURES = {"PlainConvUNet": "n_conv_per_stage", "ResidualEncoderUNet": "n_blocks_per_stage"}
"""Network classes, and what each calls the number of its convolutions or blocks in a stage."""
OPERATIONS: dict[str, tuple[str, ...]] = {
    "conv_op": ("Conv3d",),
    "norm_op": ("InstanceNorm3d", "BatchNorm3d"),
    "dropout_op": ("Dropout3d", "Dropout"),
    "nonlin": ("LeakyReLU", "ReLU", "ELU", "GELU", "PReLU", "SiLU", "Mish"),
}
"""Arguments of a network that are classes of torch.nn, and which."""
NORMALIZATIONS = (
    "CTNormalization",
    "ZScoreNormalization",
    "RescaleTo01Normalization",
    "RGBTo01Normalization",
    "NoNormalization",
)
SPLINE, TORCH = "resample_data_or_seg_to_shape", "resample_torch_fornnunet"
REORIENTING = ("NibabelIOWithReorient", "SimpleITKIOWithReorient")
"""Readers of nnU-Net that bring each scan to RAS themselves."""
ANISOTROPY = 3.0
"""Voxels longer than this, relative to their shortest side, are resampled apart along that axis: nnU-Net's default."""

MOST_JSON_BYTES = 32 * 2**20
MOST_FOLDERS = 4000
DEEPEST = 5
"""Folders below the given one that are looked into: of results, data set and trained model, and two above them."""
LARGEST = {
    "stages": 12,
    "features": 8192,
    "kernel": 15,
    "stride": 16,
    "repeats": 32,
    "patch": 1024,
    "voxels": 2**25,
    "channels": 64,
}
MOST_LABELS = 4096
LOOKED_AT = 3
"""Training scans whose orientation is looked at."""

_TRAINED = re.compile(r"(?P<trainer>.+?)__(?P<plans>.+)__(?P<configuration>[^_].*)")
_FOLD = re.compile(r"fold_(all|\d{1,3})")
_ORIENTATION = re.compile(r"(?=.*[RL])(?=.*[AP])(?=.*[SI])[RLAPSI]{3}")


@dataclass(frozen=True)
class Normalization:
    """How nnU-Net normalizes one input channel.

    Attributes:
        scheme: one of `NORMALIZATIONS`.
        use_mask: take mean and deviation inside of the nonzero mask only, and leave what is outside at 0.
        mean, std, low, high: of the training data's foreground, for CTNormalization.
    """

    scheme: str
    use_mask: bool = False
    mean: float = 0.0
    std: float = 1.0
    low: float = 0.0
    high: float = 0.0


@dataclass(frozen=True)
class Resampling:
    """How nnU-Net resamples arrays to a shape.

    Attributes:
        function: `SPLINE` or `TORCH`.
        order: of the spline; of `TORCH` 1.
        order_z: of the spline along the coarse axis, where that is resampled apart.
        separate_z: whether it is; None decides by the spacing.
        threshold: ratio of the largest to the smallest spacing from which it is.
        nearest: of `TORCH`, the mode along the coarse axis.
    """

    function: str = SPLINE
    order: int = 3
    order_z: int = 0
    separate_z: bool | None = None
    threshold: float = ANISOTROPY
    nearest: str = "nearest-exact"


@dataclass(frozen=True)
class TrainedModel:
    """What the files of a trained nnU-Net say, all of it checked.

    Attributes:
        folder: TRAINER__PLANS__CONFIGURATION.
        dataset: name of its data set.
        trainer: name of nnU-Net's trainer class.
        configuration: such as `3d_fullres`.
        folds: those that have weights.
        patch: window in voxels along the network's axes.
        spacing: voxel size in mm along these.
        transpose: of the axes (z, y, x) of a scan, those of the network: `transpose_forward` in the plans.
        architecture: class of the network.
        arguments: of the network: JSON types, with names of torch.nn where `OPERATIONS` says so.
        normalizations: of each input channel.
        resampling: of the scan.
        resampling_back: of the network's output.
        input_channels: names.
        channels: names of the output channels; of labels the background first, of regions without it.
        values: label value that nnU-Net writes for each output channel.
        regions: whether the output channels are regions, which may overlap.
        orientation: of its training data, such as `RAS`; None takes scans as they are stored, as nnU-Net does.
        orientation_from: what says so: `settings`, `reader`, `TotalSegmentator`, `training data`, or `` for None.
        dataset_json: the content of dataset.json.
        plans: the content of plans.json.
    """

    folder: Path
    dataset: str
    trainer: str
    configuration: str
    folds: tuple[str, ...]
    patch: tuple[int, int, int]
    spacing: tuple[float, float, float]
    transpose: tuple[int, int, int]
    architecture: str
    arguments: Mapping[str, Any]
    normalizations: tuple[Normalization, ...]
    resampling: Resampling
    resampling_back: Resampling
    input_channels: tuple[str, ...]
    channels: tuple[str, ...]
    values: tuple[int, ...]
    regions: bool
    orientation: str | None
    orientation_from: str
    dataset_json: Mapping[str, Any]
    plans: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Name of the model: of its data set, and of the configuration where that is not the usual one."""
        return model_name(self.dataset, self.configuration)

    def weights(self, fold: str) -> Path:
        """The checkpoint of a fold."""
        return self.folder / f"fold_{fold}" / CHECKPOINT


def model_name(dataset: str, configuration: str) -> str:
    """Name a trained model by its data set, and by its configuration where that is not the usual one."""
    name = dataset if configuration == "3d_fullres" else f"{dataset}-{configuration}"
    return re.sub(r"[^\w .-]+", "-", name).strip(" .-") or "nnU-Net"


# Finding


def trained_folders(path: Path) -> list[Path]:
    """Find the trained models that a path leads to: itself, a folder above it, or a fold or a checkpoint in it."""
    with suppress(OSError, ValueError):
        for folder in (path, path.parent, path.parent.parent) if _is_of_a_fold(path) else (path,):
            if _is_trained(folder):
                return [folder]
        return sorted(_below(path)) if path.is_dir() else []
    return []


def _is_of_a_fold(path: Path) -> bool:
    return path.name == CHECKPOINT or bool(_FOLD.fullmatch(path.name))


def is_nnunet(path: Path) -> bool:
    """Return whether a path leads to trained models of nnU-Net."""
    return bool(trained_folders(path))


def _is_trained(folder: Path) -> bool:
    return (folder / PLANS).is_file() and (folder / DATASET).is_file()


def _below(top: Path) -> Iterator[Path]:
    """Trained models in a folder, level by level, without looking at more folders than results have."""
    level, seen = [top], 0
    for _ in range(DEEPEST):
        below: list[Path] = []
        for folder in level:
            try:
                inside = sorted(Path(entry.path) for entry in os.scandir(folder) if entry.is_dir())
            except OSError:
                continue
            seen += len(inside)
            if seen > MOST_FOLDERS:
                return
            found = [entry for entry in inside if _TRAINED.fullmatch(entry.name) and _is_trained(entry)]
            yield from found
            below += [entry for entry in inside if entry not in found and not _FOLD.fullmatch(entry.name)]
        level = below


def the_trained_folder(path: Path) -> Path:
    """The one trained model in 3D that a path leads to.

    Raises:
        InputError: when there is none, or several to choose from.
    """
    found = trained_folders(path)
    if not found:
        raise InputError(
            f"'{path.name or path}' does not lead to a trained nnU-Net: there is no folder with {PLANS} and {DATASET}.",
            "Choose the folder TRAINER__PLANS__CONFIGURATION in nnUNet_results, or one above it.",
            "bad_bundle",
        )
    if len(found) == 1:
        return found[0]
    usable = [folder for folder in found if _configuration_of(folder) in CONFIGURATIONS]
    if len(usable) == 1:
        return usable[0]
    several = usable or found
    names = ", ".join(f"'{folder.relative_to(path).as_posix()}'" for folder in several[:12])
    raise InputError(
        f"'{path.name or path}' holds {len(several)} trained models of nnU-Net.",
        f"Choose one of its folders: {names}{', ...' if len(several) > 12 else ''}.",
        "several_models",
    )


def _configuration_of(folder: Path) -> str:
    match = _TRAINED.fullmatch(folder.name)
    return match["configuration"] if match else ""


def folds_of(folder: Path) -> tuple[str, ...]:
    """Names of the folds that have weights: numbers in order, then `all`."""
    names = [match[1] for entry in _entries(folder) if (match := _FOLD.fullmatch(entry.name))]
    with_weights = [name for name in names if (folder / f"fold_{name}" / CHECKPOINT).is_file()]
    return tuple(sorted(with_weights, key=lambda name: (name == "all", int(name) if name != "all" else 0)))


def choose_folds(trained: TrainedModel, text: str = "") -> tuple[str, ...]:
    """Read which folds the user wants.

    Args:
        trained: the model.
        text: such as `0`, `all` (nnU-Net's fold_all) or `0,1,2`; fold 0, or else `all`, when empty.

    Raises:
        InputError: when one is not there.
    """
    there = ", ".join(trained.folds) or "none"
    if not text:
        for name in (*DEFAULT_FOLDS, *trained.folds[:1]):
            if name in trained.folds:
                return (name,)
    wanted = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    missing = [name for name in wanted if name not in trained.folds]
    if missing:
        raise InputError(
            f"The nnU-Net '{trained.name}' has no {CHECKPOINT} of fold {missing[0] or '0'}.",
            f"Its folds with weights: {there}." if trained.folds else "Choose a model whose training has ended.",
            "no_fold",
        )
    return wanted


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


# Reading


def read_trained(path: Path, look: bool = True) -> TrainedModel:
    """Read what the files of a trained model say.

    Args:
        path: TRAINER__PLANS__CONFIGURATION, or a folder that leads to it.
        look: at the training data for its orientation, where it is on this computer and nothing else says it.

    Raises:
        InputError: when they cannot be read, or say something that this program does not do as nnU-Net does.
    """
    folder = the_trained_folder(path)
    return _Reader(folder, look).read()


def describe_trained(path: Path) -> dict[str, Any]:
    """Describe a model for lists, as far as its files can be read: `kind`, `title`, `structures` and the like."""
    try:
        trained = read_trained(path, look=False)
    except InputError as error:
        return {"kind": KIND, "title": path.name, "structures": [], "problem": error.message}
    return {
        "kind": KIND,
        "title": f"{trained.dataset} {trained.configuration}",
        "structures": [name for name in trained.channels if name != BACKGROUND],
        "input_channels": list(trained.input_channels),
        "spacing": [trained.spacing[trained.transpose.index(axis)] for axis in (2, 1, 0)],
        "folds": list(trained.folds),
    }


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file of an nnU-Net.

    Raises:
        InputError: when it is not readable as an object, or larger than any that nnU-Net writes.
    """
    try:
        if path.stat().st_size > MOST_JSON_BYTES:
            raise ValueError("it is too large")
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"The {path.name} of the nnU-Net '{path.parent.name}' cannot be read.",
            "Get the model again from its source.",
            "bad_bundle",
        ) from error
    if not isinstance(content, dict):
        raise InputError(
            f"The {path.name} of the nnU-Net '{path.parent.name}' is not a JSON object.",
            "Get the model again from its source.",
            "bad_bundle",
        )
    return content


class _Reader:
    """Reads one trained model; every value that is taken over has been looked at."""

    def __init__(self, folder: Path, look: bool) -> None:
        self.folder = folder
        self.look = look
        self.plans = read_json(folder / PLANS)
        self.dataset = read_json(folder / DATASET)
        match = _TRAINED.fullmatch(folder.resolve().name)
        self.trainer = match["trainer"] if match else ""
        self.configuration = match["configuration"] if match else self._only_configuration()

    def read(self) -> TrainedModel:
        configuration = self._resolved(self.configuration)
        self._require_3d(configuration)
        self._require_default(configuration)
        transpose = self._transpose()
        architecture, arguments = self._architecture(configuration)
        input_channels = self._input_channels()
        channels, values, regions = self._labels()
        orientation, orientation_from = self._orientation()
        patch = self._three(configuration, "patch_size", 1, LARGEST["patch"], whole=True)
        if math.prod(patch) > LARGEST["voxels"]:
            self.bad(f"has the patch_size {list(patch)} in its plans, which no computer could train it with")
        return TrainedModel(
            folder=self.folder,
            dataset=self._dataset_name(),
            trainer=self.trainer,
            configuration=self.configuration,
            folds=folds_of(self.folder),
            patch=patch,
            spacing=self._three(configuration, "spacing", 1e-3, 1e3),
            transpose=transpose,
            architecture=architecture,
            arguments=arguments,
            normalizations=self._normalizations(configuration, len(input_channels)),
            resampling=self._resampling(configuration, "data", 3),
            resampling_back=self._resampling(configuration, "probabilities", 1),
            input_channels=input_channels,
            channels=channels,
            values=values,
            regions=regions,
            orientation=orientation,
            orientation_from=orientation_from,
            dataset_json=self.dataset,
            plans=self.plans,
        )

    def bad(self, what: str, remedy: str = "Choose another model.") -> NoReturn:
        raise InputError(f"The nnU-Net '{self.folder.name}' {what}.", remedy, "bad_bundle")

    def _only_configuration(self) -> str:
        """The configuration of a folder that has been renamed."""
        configurations = self.plans.get("configurations")
        names = list(configurations) if isinstance(configurations, dict) else []
        if len(names) == 1:
            return str(names[0])
        self.bad(
            "does not say in its folder's name which configuration it is",
            "Give the folder the name that nnU-Net gave it: TRAINER__PLANS__CONFIGURATION.",
        )

    def _dataset_name(self) -> str:
        name = self.plans.get("dataset_name")
        return name if isinstance(name, str) and 0 < len(name) < 200 else self.folder.resolve().parent.name

    def _resolved(self, name: str) -> dict[str, Any]:
        """A configuration with what it inherits."""
        configurations = self.plans.get("configurations")
        chain: list[dict[str, Any]] = []
        visited: list[str] = []
        following: Any = name
        while following is not None:
            if following in visited:
                self.bad("has configurations in its plans that inherit from one another in a circle")
            found = configurations.get(following) if isinstance(configurations, dict) else None
            if not isinstance(following, str) or not isinstance(found, dict):
                self.bad(f"has no configuration '{following}' in its plans")
            chain.append(found)
            visited.append(following)
            following = found.get("inherits_from")
        return {key: value for found in reversed(chain) for key, value in found.items()}

    def _require_3d(self, configuration: Mapping[str, Any]) -> None:
        instead = "Choose the 3d_fullres or the 3d_lowres model of the same data set."
        if configuration.get("previous_stage") is not None:
            self.bad("is the second stage of a cascade, which needs the result of the first as its input", instead)
        patch = configuration.get("patch_size")
        if isinstance(patch, list) and len(patch) == 2:
            self.bad("is a 2D model, and this program works in 3D", instead)

    def _require_default(self, configuration: Mapping[str, Any]) -> None:
        for key, usual, where in (
            ("preprocessor_name", "DefaultPreprocessor", configuration),
            ("label_manager", "LabelManager", self.plans),
        ):
            if where.get(key, usual) != usual:
                self.bad(f"was made with the {key} '{where[key]}', and only nnU-Net's {usual} is supported")

    def _three(
        self, where: Mapping[str, Any], key: str, least: float, most: float, whole: bool = False
    ) -> tuple[Any, Any, Any]:
        value = where.get(key)
        if (
            not isinstance(value, list)
            or len(value) != 3
            or not all(_is_number(v, whole) and least <= v <= most for v in value)
        ):
            self.bad(f"has the {key} {_short(value)} in its plans, which are not three numbers from {least} to {most}")
        return tuple(int(v) if whole else float(v) for v in value)  # type: ignore[return-value]

    def _transpose(self) -> tuple[int, int, int]:
        forward, backward = self.plans.get("transpose_forward"), self.plans.get("transpose_backward")
        if not isinstance(forward, list) or sorted(map(str, forward)) != ["0", "1", "2"]:
            self.bad(f"has the transpose_forward {_short(forward)} in its plans, which is not an order of three axes")
        if backward is not None and backward != [forward.index(axis) for axis in range(3)]:
            self.bad("has a transpose_backward in its plans that does not undo its transpose_forward")
        return forward[0], forward[1], forward[2]

    def _architecture(self, configuration: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        found = configuration.get("architecture")
        if found is None:
            return self._old_architecture(configuration)
        if not isinstance(found, dict) or not isinstance(found.get("arch_kwargs"), dict):
            self.bad("has an architecture in its plans that cannot be read")
        name = self._class_name(found.get("network_class_name"))
        given = dict(found["arch_kwargs"])
        named = found.get("_kw_requires_import", [])
        if not isinstance(named, list) or not set(map(str, named)) <= set(OPERATIONS):
            self.bad(f"imports {_short(named)} in its plans, which is more than {', '.join(OPERATIONS)}")
        return name, self._arguments(name, given)

    def _old_architecture(self, configuration: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """The network of plans from before 2024, which name its sizes one by one."""
        name = self._class_name(configuration.get("UNet_class_name"))
        repeats = configuration.get("n_conv_per_stage_encoder")
        base: Any = configuration.get("UNet_base_num_features")
        most: Any = configuration.get("unet_max_num_features")
        if not isinstance(repeats, list) or not 0 < len(repeats) <= LARGEST["stages"]:
            self.bad("does not say in its plans how many stages its network has")
        if not all(_is_number(v, True) and 0 < v <= LARGEST["features"] for v in (base, most)):
            self.bad("does not say in its plans how many features its network has")
        given = {
            "n_stages": len(repeats),
            "features_per_stage": [min(int(base) * 2**i, int(most)) for i in range(len(repeats))],
            "conv_op": "Conv3d",
            "kernel_sizes": configuration.get("conv_kernel_sizes"),
            "strides": configuration.get("pool_op_kernel_sizes"),
            ARCHITECTURES[name]: repeats,
            "n_conv_per_stage_decoder": configuration.get("n_conv_per_stage_decoder"),
            "conv_bias": True,
            "norm_op": "InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        }
        return name, self._arguments(name, given)

    def _class_name(self, value: Any) -> str:
        name = value.rpartition(".")[2] if isinstance(value, str) else ""
        if name not in ARCHITECTURES or not re.fullmatch(r"(dynamic_network_architectures\.[\w.]+\.)?\w+", str(value)):
            self.bad(
                f"has the network {_short(value)}, which is not one of {', '.join(ARCHITECTURES)}",
                "Choose a model that was trained with nnU-Net's own plans (nnUNetPlans or nnUNetResEncUNet*Plans).",
            )
        return name

    def _arguments(self, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
        repeats = ARCHITECTURES[name]
        checks = {
            "n_stages": lambda v: _is_number(v, True) and 2 <= v <= LARGEST["stages"],
            "features_per_stage": lambda v: _is_size(v, LARGEST["features"]),
            "kernel_sizes": lambda v: _is_size(v, LARGEST["kernel"]),
            "strides": lambda v: _is_size(v, LARGEST["stride"]),
            repeats: lambda v: _is_size(v, LARGEST["repeats"]),
            "n_conv_per_stage_decoder": lambda v: _is_size(v, LARGEST["repeats"]),
            "conv_bias": lambda v: isinstance(v, bool),
            "norm_op_kwargs": _is_plain,
            "dropout_op_kwargs": _is_plain,
            "nonlin_kwargs": _is_plain,
            "nonlin_first": lambda v: isinstance(v, bool),
            "deep_supervision": lambda v: isinstance(v, bool),
        }
        if name == "ResidualEncoderUNet":
            del checks["nonlin_first"]
            checks["stem_channels"] = lambda v: v is None or (_is_size(v, LARGEST["features"]) and isinstance(v, int))
            checks["bottleneck_channels"] = lambda v: v is None or _is_size(v, LARGEST["features"])
        arguments: dict[str, Any] = {}
        for key, value in given.items():
            if key in OPERATIONS:
                arguments[key] = self._operation(key, value)
            elif key not in checks:
                self.bad(f"gives its network the argument '{_short(key)}', which is not known here")
            elif not checks[key](value):
                self.bad(f"gives its network the {key} {_short(value)}, which cannot be")
            elif key != "deep_supervision":
                arguments[key] = value
        needed = ("n_stages", "features_per_stage", "kernel_sizes", "strides", repeats, "n_conv_per_stage_decoder")
        missing = [key for key in (*needed, "conv_op") if key not in arguments]
        if missing:
            self.bad(f"does not say the {missing[0]} of its network in its plans")
        return arguments

    def _operation(self, key: str, value: Any) -> str | None:
        if value is None and key != "conv_op":
            return None
        name = value.rpartition(".")[2] if isinstance(value, str) else ""
        if name not in OPERATIONS[key] or not re.fullmatch(r"(torch\.nn\.([a-z.]+\.)?)?\w+", str(value)):
            self.bad(f"gives its network the {key} {_short(value)}, which is not one of {', '.join(OPERATIONS[key])}")
        return name

    def _input_channels(self) -> tuple[str, ...]:
        # nnU-Net looks at the older name first.
        named = self.dataset.get("modality", self.dataset.get("channel_names"))
        if not isinstance(named, dict) or not 0 < len(named) <= LARGEST["channels"]:
            self.bad("does not name its input channels in dataset.json")
        numbers = {str(number): str(name) for number, name in named.items()}
        if set(numbers) != {str(number) for number in range(len(numbers))}:
            self.bad("does not number its input channels from 0 on in dataset.json")
        return tuple(numbers[str(number)] or f"channel {number + 1}" for number in range(len(numbers)))

    def _labels(self) -> tuple[tuple[str, ...], tuple[int, ...], bool]:
        """Names of the output channels, the values that nnU-Net writes for them, and whether they are regions."""
        labels = self.dataset.get("labels")
        if not isinstance(labels, dict) or not 1 < len(labels) <= MOST_LABELS:
            self.bad("does not name its labels in dataset.json")
        members = {str(name): value if isinstance(value, list) else [value] for name, value in labels.items()}
        for name, values in members.items():
            if (
                not values
                or len(values) > MOST_LABELS
                or not all(_is_number(v, True) and 0 <= v < 2**15 for v in values)
            ):
                self.bad(f"has the label '{_short(name)}' without a label number in dataset.json")
        if members.get(BACKGROUND) != [0]:
            self.bad(f"has no label '{BACKGROUND}' of number 0 in dataset.json")
        members.pop("ignore", None)
        regions = any(len(values) > 1 for values in members.values())
        foreground = {name: values for name, values in members.items() if set(values) != {0}}
        if not foreground or any(is_background(name) for name in foreground):
            self.bad("names no structure in dataset.json, or one that is called background")
        if regions:
            order = self.dataset.get("regions_class_order")
            if (
                not isinstance(order, list)
                or len(order) != len(foreground)
                or not all(_is_number(v, True) and 0 < v < 2**15 for v in order)
                or len(set(order)) < len(order)
            ):
                self.bad("has regions but no regions_class_order in dataset.json that gives each its own number")
            return tuple(foreground), tuple(int(v) for v in order), True
        by_value = sorted((int(values[0]), name) for name, values in foreground.items())
        if [value for value, _ in by_value] != list(range(1, len(by_value) + 1)):
            self.bad("does not number its labels 1, 2, 3 and so on in dataset.json, as nnU-Net wants it")
        return (BACKGROUND, *(name for _, name in by_value)), tuple(range(len(by_value) + 1)), False

    def _normalizations(self, configuration: Mapping[str, Any], count: int) -> tuple[Normalization, ...]:
        schemes, masks = configuration.get("normalization_schemes"), configuration.get("use_mask_for_norm")
        if not isinstance(schemes, list) or len(schemes) < count:
            self.bad(f"has normalization_schemes for fewer than its {count} input channels in its plans")
        if not isinstance(masks, list) or len(masks) < count:
            masks = [False] * count
        return tuple(self._normalization(number, schemes[number], masks[number] is True) for number in range(count))

    def _normalization(self, number: int, scheme: Any, use_mask: bool) -> Normalization:
        if scheme not in NORMALIZATIONS:
            self.bad(f"has the normalization {_short(scheme)}, which is not one of {', '.join(NORMALIZATIONS)}")
        if scheme != "CTNormalization":
            return Normalization(scheme, use_mask and scheme == "ZScoreNormalization")
        everyone = self.plans.get(
            "foreground_intensity_properties_per_channel", self.plans.get("foreground_intensity_properties_by_modality")
        )
        known = everyone.get(str(number)) if isinstance(everyone, dict) else None
        keys = ("mean", "std", "percentile_00_5", "percentile_99_5")
        found = [known.get(key) if isinstance(known, dict) else None for key in keys]
        if not all(_is_number(v) and abs(v) < 1e9 for v in found) or found[2] > found[3]:  # type: ignore[operator,arg-type]
            self.bad(f"has no intensities of its training data in its plans for the CT channel {number}")
        mean, std, low, high = (float(v) for v in found)  # type: ignore[arg-type]
        return Normalization(scheme, False, mean, std, low, high)

    def _resampling(self, configuration: Mapping[str, Any], what: str, order: int) -> Resampling:
        function = configuration.get(f"resampling_fn_{what}", SPLINE)
        if function not in (SPLINE, TORCH):
            self.bad(f"resamples with {_short(function)}, which is not one of {SPLINE}, {TORCH}")
        given = configuration.get(f"resampling_fn_{what}_kwargs", {})
        given = {} if given is None else given
        known = {
            "is_seg": lambda v: v is False,
            "force_separate_z": lambda v: v is None or isinstance(v, bool),
            "separate_z_anisotropy_threshold": lambda v: _is_number(v) and 1 <= v < 1e6,
        }
        if function == SPLINE:
            orders = lambda v: _is_number(v, True) and 0 <= v <= 5  # noqa: E731
            known |= {"order": orders, "order_z": orders}
        else:
            known |= {
                "num_threads": _is_number,
                "device": lambda v: isinstance(v, str),
                "memefficient_seg_resampling": lambda v: isinstance(v, bool),
                "mode": lambda v: v == "linear",
                "aniso_axis_mode": lambda v: v in ("nearest", "nearest-exact"),
            }
        if not isinstance(given, dict) or not all(key in known and known[key](value) for key, value in given.items()):
            self.bad(f"has resampling_fn_{what}_kwargs in its plans that are not known here: {_short(given)}")
        # nnU-Net's own default differs between its two functions.
        separate = given.get("force_separate_z", False if function == SPLINE else None)
        return Resampling(
            function,
            int(given.get("order", 3)) if function == SPLINE else 1,
            int(given.get("order_z", 0)),
            separate,
            float(given.get("separate_z_anisotropy_threshold", ANISOTROPY)),
            str(given.get("aniso_axis_mode", "nearest-exact")),
        )

    def _orientation(self) -> tuple[str | None, str]:
        settings = self.folder / SETTINGS
        if settings.is_file():
            found = read_json(settings).get("orientation")
            if found is not None and not (isinstance(found, str) and is_orientation(found)):
                self.bad(
                    f"has the orientation {_short(found)} in {SETTINGS}", "Write three letters there, such as RAS."
                )
            return found, "settings"
        if self.plans.get("image_reader_writer") in REORIENTING:
            return "RAS", "reader"
        if "TotalSegmentator" in self._dataset_name() or _is_inside(self.folder, totalsegmentator_folder()):
            # It brings each scan to RAS before nnU-Net sees it.
            return "RAS", "TotalSegmentator"
        found = self._orientation_of_training_data() if self.look else None
        return found, "training data" if found else ""

    def _orientation_of_training_data(self) -> str | None:
        """The orientation of the first training scans, where these are on this computer and agree."""
        ending = self.dataset.get("file_ending")
        results = self.folder.resolve().parents[1] if len(self.folder.resolve().parents) > 1 else self.folder
        raws = [os.environ.get("nnUNet_raw") or "", str(results.parent / "nnUNet_raw")]  # noqa: SIM112
        names = dict.fromkeys((self._dataset_name(), self.folder.resolve().parent.name))
        for folder in (Path(raw, name, "imagesTr") for raw in filter(None, raws) for name in names):
            if isinstance(ending, str) and (scans := sorted(folder.glob(f"*_0000{glob.escape(ending)}"))[:LOOKED_AT]):
                found = {_stored_orientation(scan) for scan in scans}
                return found.pop() if len(found) == 1 else None
        return None


def totalsegmentator_folder() -> Path:
    """Where TotalSegmentator keeps its models, as it looks for them itself; it may not exist."""
    if os.environ.get("TOTALSEG_WEIGHTS_PATH"):
        return Path(os.environ["TOTALSEG_WEIGHTS_PATH"])
    home = os.environ.get("TOTALSEG_HOME_DIR")
    return (Path(home) if home else Path.home() / ".totalsegmentator") / "nnunet" / "results"


def _is_inside(folder: Path, top: Path) -> bool:
    with suppress(OSError, ValueError, RuntimeError):
        return top.resolve() in folder.resolve().parents
    return False


def _stored_orientation(scan: Path) -> str | None:
    """Read where the axes of a scan point to, from its header."""
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(scan))
    try:
        reader.ReadImageInformation()
        code = sitk.DICOMOrientImageFilter_GetOrientationFromDirectionCosines(reader.GetDirection())
    except RuntimeError:
        return None
    return str(code) if is_orientation(str(code)) else None


def is_orientation(text: str) -> bool:
    """Return whether three letters name an orientation: where the axes of an array point to, such as RAS."""
    return bool(_ORIENTATION.fullmatch(text))


def _is_number(value: Any, whole: bool = False) -> bool:
    """Whether a JSON value is a finite number, and a whole one where asked for."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 1e300 and (not whole or isinstance(value, int) or value == int(value))


def _is_size(value: Any, most: int, depth: int = 0) -> bool:
    """Whether a value is a size of a network, or a list of sizes, or of such lists."""
    if isinstance(value, list):
        return depth < 2 and 0 < len(value) <= 64 and all(_is_size(part, most, depth + 1) for part in value)
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def _is_plain(value: Any) -> bool:
    """Whether a value is None, or a few numbers and switches by name."""
    return value is None or (
        isinstance(value, dict)
        and len(value) <= 16
        and all(isinstance(key, str) and (isinstance(v, bool) or _is_number(v)) for key, v in value.items())
    )


def _short(value: Any) -> str:
    text = str(value)
    return (
        repr(value)
        if len(text) <= 60 and not isinstance(value, str)
        else f"'{text[:60]}{'...' if len(text) > 60 else ''}'"
    )


# Copying


def name_of(path: Path) -> str:
    """What a model is called when it is added without a name: as its description says."""
    folder = the_trained_folder(path)
    plans = read_json(folder / PLANS).get("dataset_name")
    dataset = plans if isinstance(plans, str) and 0 < len(plans) < 200 else folder.resolve().parent.name
    return model_name(dataset, _configuration_of(folder.resolve()) or CONFIGURATIONS[0])


def files_to_copy(path: Path, fold: str) -> list[tuple[Path, PurePosixPath]]:
    """List the files of a trained model that a base model needs, each with its place in a copy.

    The copy keeps the folder's name, which says the configuration, so that nnU-Net itself can run it too.

    Args:
        path: leads to the model.
        fold: whose weights to copy, as for `choose_folds`.

    Raises:
        InputError: when there is no such model, or no such fold.
    """
    trained = read_trained(path)
    files = [trained.folder / PLANS, trained.folder / DATASET]
    files += [trained.weights(name) for name in choose_folds(trained, fold)]
    files += [entry for entry in _entries(trained.folder) if _is_license(entry) and entry.is_file()]
    top = trained.folder.resolve().name
    return [(file, PurePosixPath(top, *file.relative_to(trained.folder).parts)) for file in files]


def settings_of_copy(path: Path, orientation: str) -> dict[PurePosixPath, str]:
    """What a copy says about the orientation of the training data, which is not known any more elsewhere.

    Args:
        path: leads to the model.
        orientation: such as `RAS`; `stored` for scans as they are stored; what can be found out when empty.

    Raises:
        InputError: when it is not an orientation.
    """
    trained = read_trained(path)
    code: str | None = orientation.strip().upper()
    if code == "STORED":
        code = None
    elif not code:
        code = trained.orientation
    elif not is_orientation(code):
        raise InputError(
            f"'{orientation}' is not an orientation.",
            "Write three letters that say where the axes point to, such as RAS or LPS, or 'stored'.",
            "usage",
        )
    text = json.dumps({"orientation": code}, indent=2) + "\n"
    return {PurePosixPath(trained.folder.resolve().name, SETTINGS): text}


def _is_license(path: Path) -> bool:
    return path.name.upper().startswith(("LICENSE", "LICENCE"))
