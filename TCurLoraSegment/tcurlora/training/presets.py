"""Presets: which parts of a MONAI network each method trains."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from tcurlora.errors import InputError
from tcurlora.method.config import TensorCurConfig
from tcurlora.method.stacks import find_stacks
from tcurlora.training.trainer import TrainingSettings
from tcurlora_contract.methods import METHODS

DECODERS: dict[str, tuple[str, ...]] = {
    "UNETR": (r"^decoder\d",),
    "SwinUNETR": (r"^decoder\d",),
    "SegResNet": (r"^up_layers\.", r"^up_samples\.", r"^conv_final\."),
    "DynUNet": (r"^upsamples\.", r"^output_block\."),
    "UNet": (r"^model\.(1\.submodule\.)*2\.",),
    "BasicUNet": (r"^upcat_", r"^final_conv\."),
    "BasicUNetPlusPlus": (r"^upcat_", r"^final_conv_0_4\."),
    "VNet": (r"^up_tr", r"^out_tr\."),
    "SegResNetDS": (r"^up_layers\.",),
    "FlexibleUNet": (r"^decoder\.", r"^segmentation_head\."),
    "PlainConvUNet": (r"^decoder\.",),
    "ResidualEncoderUNet": (r"^decoder\.",),
}
PRESETS = tuple(METHODS)
KERNELS = ("convolution", "transposed")
COMPACT_RANK = 4
COMPACT_CORE_DECAY = 1.0


def preset(name: str, network: nn.Module, **changes: Any) -> TensorCurConfig:
    """Configure a method for a network.

    `compact` trains the cores of the convolution kernels and the head; of a network without kernels, those of its
    linear layers. `paper` trains the cores of the transformer's linear layers with raw factors and the whole decoder
    (arXiv 2501.02227). `decoder` and `full` are baselines without cores.

    Args:
        name: one of `PRESETS`.
        network: the base; its class tells which modules are its decoder.
        changes: fields of `TensorCurConfig` that differ from the preset.

    Raises:
        InputError: for an unknown preset, or one that does not suit the network: its decoder is not known, or it has no
            linear layers for `paper`.
    """
    _require_known(name)
    if name == "compact":
        convolutional = any(stack.kind in KERNELS for stack in find_stacks(network))
        return TensorCurConfig(**{"r": COMPACT_RANK, "kinds": KERNELS if convolutional else ("linear",), **changes})
    if name == "full":
        return TensorCurConfig(**{"kinds": (), "modules_to_save": (".*",), **changes})
    decoder = decoder_modules(network, name)
    if name == "decoder":
        return TensorCurConfig(**{"kinds": (), "modules_to_save": decoder, **changes})
    if not any(stack.kind == "linear" for stack in find_stacks(network)):
        raise InputError(
            f"{type(network).__name__} has no linear layers, whose cores the method '{name}' trains.",
            "Choose the method 'compact', which trains cores of convolutions, or 'decoder', which trains none; "
            "leave this one out of a comparison (--methods).",
            "no_linear_layers",
        )
    return TensorCurConfig(**{"kinds": ("linear",), "factors": "raw", "modules_to_save": decoder, **changes})


def decoder_modules(network: nn.Module, method: str) -> tuple[str, ...]:
    """Regular expressions for the modules of a network's decoder.

    Args:
        network: a MONAI network.
        method: what needs to know them.

    Raises:
        InputError: where they are not known.
    """
    decoder = DECODERS.get(type(network).__name__)
    if decoder is None:
        raise InputError(
            f"The decoder of {type(network).__name__} is not known, so '{method}' cannot be used with it.",
            "Choose the method 'compact', which needs no decoder.",
            "unknown_decoder",
        )
    return decoder


def training_settings(name: str, seed: int = 0) -> TrainingSettings:
    """Say how a preset is trained: raw factors need the paper's small learning rate, relative ones a larger one.

    Raises:
        InputError: for an unknown preset.
    """
    _require_known(name)
    settings = {
        "compact": TrainingSettings(lr_core=6e-3, lr_whole=3e-3, core_decay=COMPACT_CORE_DECAY),
        "paper": TrainingSettings(lr_core=1e-3, lr_whole=1e-3),
        "decoder": TrainingSettings(lr_whole=1e-3),
        "full": TrainingSettings(lr_whole=5e-4),
    }[name]
    return replace(settings, seed=seed)


def _require_known(name: str) -> None:
    if name not in PRESETS:
        raise InputError(f"There is no method '{name}'.", f"Choose one of {', '.join(PRESETS)}.", "unknown_method")
