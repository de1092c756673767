"""MONAI's networks that a base model may be made of: an allow-list, and how one is made and given its weights."""

from __future__ import annotations

import contextlib
import inspect
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from monai.networks import nets
from torch import Tensor, nn

from tcurlora.models.channels_last_norms import replace_norms
from tcurlora.models.network_building import build_within, of_size
from tcurlora.models.weights_files import misfits, named_as

LARGEST_ARGUMENT = 8192
"""No size, width or count in a network's arguments is larger than this."""


@dataclass(frozen=True)
class NetworkClass:
    """What has to be known of a class of networks.

    Attributes:
        made_as: the class that is made in its place, where only a part of it is run.
        outputs: the argument that counts the output channels.
        fixed: arguments that change nothing in what the network computes, but how it is trained or what it returns
            besides, and their values here.
        dropped: arguments of other releases of MONAI, or of a part that is not made.
    """

    made_as: str = ""
    outputs: str = "out_channels"
    fixed: Mapping[str, Any] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()


# The outputs of deep supervision have the base's channels, and what is computed again in the backward pass is so with
# the base's weights; neither is made.
_SUPERVISED = NetworkClass(fixed={"deep_supervision": False})
_VAE = ("input_image_size", "vae_estimate_std", "vae_default_std", "vae_nz")
NETWORKS: dict[str, NetworkClass] = {
    "UNETR": NetworkClass(),
    "SwinUNETR": NetworkClass(fixed={"use_checkpoint": False}, dropped=("img_size",)),
    "SegResNet": NetworkClass(),
    "DynUNet": _SUPERVISED,
    "UNet": NetworkClass(),
    "BasicUNet": NetworkClass(),
    "BasicUNetPlusPlus": _SUPERVISED,
    "AttentionUnet": NetworkClass(),
    "VNet": NetworkClass(),
    "SegResNetDS": NetworkClass(fixed={"dsdepth": 1}),
    "SegResNetVAE": NetworkClass(made_as="SegResNet", dropped=_VAE),
    "DiNTS": NetworkClass(outputs="num_classes"),
    "FlexibleUNet": NetworkClass(fixed={"pretrained": False}),
    "HighResNet": NetworkClass(),
    "AHNet": NetworkClass(fixed={"pretrained": False}, dropped=("progress",)),
    "MedNeXt": _SUPERVISED,
    "MedNeXtS": _SUPERVISED,
    "MedNeXtB": _SUPERVISED,
    "MedNeXtM": _SUPERVISED,
    "MedNeXtL": _SUPERVISED,
}
"""Three-dimensional classes of `monai.networks.nets` that take an image and give logits."""

REFUSED: dict[str, str] = {
    "UNesT": "UNesT, whose code is not a part of MONAI but lies in the bundle's folder 'scripts', which is never run",
    "VISTA3D": "VISTA3D, which answers prompts (classes and clicks) and has no output channels of its own",
    "vista3d132": "VISTA3D, which answers prompts (classes and clicks) and has no output channels of its own",
    "SegResNetDS2": "SegResNetDS2, a part of VISTA3D, which answers prompts and has no output channels of its own",
    "HoVerNet": "HoVerNet, which is for slides of cells and not for volumes",
}
"""Networks that people meet and that are not taken, and why."""

_NEVER_RUN = re.compile(
    r"\.(norm_)?cross_attn\.|(^|\.)(deep_supervision_heads|super_head)\.|^up_layers\.\d+\.head\.|^vae_|^out_blocks\."
)
_TOPOLOGY = "TopologyInstance"


def network_class(target: str) -> str | None:
    """Return the name in `NETWORKS` of what a config's `_target_` names, such as `monai.networks.nets.Unet`."""
    if not re.fullmatch(r"(monai\.networks\.nets\.(\w+\.)?)?\w+", target):
        return None
    made = getattr(nets, target.rpartition(".")[2], None)
    return next((name for name in NETWORKS if made is not None and getattr(nets, name) is made), None)


def spatial_dims(network_def: Mapping[str, Any]) -> Any:
    """The number of axes that a network works on, as its arguments or its class say."""
    parameters = inspect.signature(getattr(nets, network_def["_target_"])).parameters
    default = parameters["spatial_dims"].default if "spatial_dims" in parameters else 3
    return network_def.get("spatial_dims", default)


def usual_arguments(class_name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what other releases of MONAI know, and switch off what only helps to train the network whole.

    Returns:
        A description with `_target_`.
    """
    known = NETWORKS[class_name]
    kept = {key: value for key, value in arguments.items() if key not in known.dropped}
    fixed = {key: value for key, value in known.fixed.items() if key in kept}
    return {**kept, **fixed, "_target_": known.made_as or class_name}


def is_modest(value: Any, items: int = 64) -> bool:
    """Return whether no number, or list of numbers, in a network's arguments could make it absurdly large."""
    if isinstance(value, dict):
        return len(value) <= 64 and all(is_modest(v, items) for v in value.values())
    if isinstance(value, list):
        return len(value) <= items and all(is_modest(v, items) for v in value)
    return not isinstance(value, int | float) or abs(value) <= LARGEST_ARGUMENT


def make_network(network_def: Mapping[str, Any], parameters: int) -> nn.Module:
    """Make a network without weights.

    Args:
        network_def: `_target_`, a name in `NETWORKS`, and plain arguments.
        parameters: in its weights file; it is not made when it would be much larger.

    Raises:
        Exception: of any kind, as MONAI's networks raise them on arguments that do not fit.
    """
    arguments = {key: value for key, value in network_def.items() if key != "_target_"}
    make = getattr(nets, network_def["_target_"])
    with contextlib.redirect_stdout(io.StringIO()):  # some networks print, and the output is read by programs
        if "dints_space" in arguments:
            with of_size(parameters):
                network: nn.Module = make(**_with_topology(arguments))
        else:
            network = build_within(lambda: make(**arguments), parameters)
    if isinstance(network, nets.BasicUNetPlusPlus):
        network.register_forward_hook(_last_output)
    return network


def as_config(network_def: Mapping[str, Any]) -> dict[str, Any]:
    """Describe a network for MONAI's config parser, which instantiates it."""
    described = {**network_def, "_target_": f"monai.networks.nets.{network_def['_target_']}"}
    if "dints_space" in described:
        space = described["dints_space"]
        codes = [f"$np.array({code})" for code in space["arch_code"]]
        target = f"monai.networks.nets.{_TOPOLOGY}"
        described["dints_space"] = {**space, "_target_": target, "arch_code": codes, "device": "cpu"}
        described["node_a"] = f"$torch.from_numpy(np.array({described['node_a']}))"
    return described


def give_weights(network: nn.Module, state: Mapping[str, Tensor]) -> str:
    """Load weights into a network, and prepare it for use.

    Returns:
        What does not fit; an empty text where the weights were loaded.
    """
    own = network.state_dict()
    fitted = _of_any_release(_of_fewer_inputs(named_as(state, own), own), own)
    wrong = misfits(fitted, own)
    if wrong:
        return wrong
    network.load_state_dict(fitted)
    # The layout that convolutions run fastest in, on processors and on graphics cards.
    network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    replace_norms(network)
    network.eval()
    return ""


def _last_output(_network: nn.Module, _inputs: Any, output: Any) -> Any:
    return output[-1] if isinstance(output, list | tuple) else output


def _with_topology(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Make the searched architecture of a DiNTS from its codes."""
    space = {key: value for key, value in arguments["dints_space"].items() if key != "_target_"}
    codes = [np.asarray(code) for code in space.pop("arch_code")]
    node_a = torch.as_tensor(np.asarray(arguments["node_a"]))
    topology = getattr(nets, _TOPOLOGY)(**space, arch_code=codes, device="cpu")
    return {**arguments, "dints_space": topology, "node_a": node_a}


def _of_fewer_inputs(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leave out the weights of input channels that are always zero, such as those for clicks that nobody gives.

    The network is made without these inputs; they come last.
    """
    return {
        name: tensor[:, : own[name].shape[1]]
        if name in own and _differ_in_inputs(tensor, own[name]) and own[name].shape[1] < tensor.shape[1]
        else tensor
        for name, tensor in state.items()
    }


def _differ_in_inputs(a: Tensor, b: Tensor) -> bool:
    return a.ndim == b.ndim == 5 and a.shape[0] == b.shape[0] and a.shape[2:] == b.shape[2:]


def _of_any_release(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leave out weights that are never run here, and fit the rest to the installed MONAI.

    Some releases of it make layers for cross-attention that are never run.

    Args:
        state: weights of a file.
        own: weights of a network that was just made.
    """
    if any(".cross_attn." in name for name in own):
        return dict(state)  # here they may be run
    norms = {name: tensor for name, tensor in own.items() if ".norm_cross_attn." in name}
    kept = {name: tensor for name, tensor in state.items() if not (_NEVER_RUN.search(name) and name not in own)}
    return norms | kept
