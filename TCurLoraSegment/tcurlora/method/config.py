"""The configuration of an adapter: what of a network is stacked, trained and saved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from tcurlora.errors import InputError
from tcurlora.method.channels import Channel
from tcurlora.method.stacks import KernelMode, Slice, StackSpec
from tcurlora.method.tensor_cur import (
    FactorMode,
)

PEFT_TYPE = "TCURLORA"


Activation = Literal["softmax", "sigmoid"]
"""What turns logits into probabilities: one class for each voxel, or regions of their own that may overlap."""
KINDS = ("linear", "convolution", "transposed")


@dataclass(frozen=True)
class TensorCurConfig:
    """What is adapted and how; peft's words where they fit.

    Attributes:
        r: tubal rank of every core, cut to the smaller side of a stack where that is less.
        alpha: factor on C * U * R.
        factors: `relative` (one learning rate moves every stack by the same part of its weights), `orthonormal` (by the
            same amount) or `raw` (the paper's).
        selection: `cur` (the most energetic rows and columns) or `random` (a control).
        kinds: kinds of layers that are stacked: `linear`, `convolution`, `transposed`.
        kernels: `taps` stacks a matrix for each voxel of a kernel, `flat` one for each kernel.
        target_modules: regular expressions on module names; None takes all modules of these kinds.
        modules_to_save: regular expressions on parameter names that are trained as they are and saved whole.
        head: name of the convolution that makes the output channels; trained whole, None if it stays frozen.
        channels: new layout of the head's output channels; None keeps the base's.
        stacks: the stacks in their order; found in the network when None.
        seed: for the random selection.
        activation: what turns the logits of the output channels into probabilities.
    """

    r: int = 8
    alpha: float = 1.0
    factors: FactorMode = "relative"
    selection: Literal["cur", "random"] = "cur"
    kinds: tuple[str, ...] = KINDS
    kernels: KernelMode = "taps"
    target_modules: tuple[str, ...] | None = None
    modules_to_save: tuple[str, ...] = ()
    head: str | None = None
    channels: tuple[Channel, ...] | None = None
    stacks: tuple[StackSpec, ...] | None = field(default=None, repr=False)
    seed: int = 0
    activation: Activation = "softmax"

    @property
    def has_new_channels(self) -> bool:
        """Whether a channel starts from none of the base's, or shares one with another, and has far to go."""
        sources = [channel.source for channel in self.channels or ()]
        return None in sources or len(set(sources)) < len(sources)

    def __post_init__(self) -> None:
        if self.r < 1:
            raise InputError(f"The rank is {self.r}, but it must be at least 1.", "Choose for example 8.", "bad_rank")
        for value, known in (
            (self.factors, ("relative", "orthonormal", "raw")),
            (self.selection, ("cur", "random")),
            (self.kernels, ("taps", "flat")),
            (self.activation, ("softmax", "sigmoid")),
            *((kind, KINDS) for kind in self.kinds),
        ):
            if value not in known:
                raise InputError(
                    f"The adapter's configuration has the word '{value}', which is not known.",
                    f"Choose among {', '.join(known)}.",
                    "unknown_word",
                )

    def to_dict(self) -> dict[str, Any]:
        """Describe the configuration as JSON types."""
        content = asdict(self)
        content["stacks"] = None if self.stacks is None else [_stack_to_dict(spec) for spec in self.stacks]
        return {"peft_type": PEFT_TYPE, **content}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> TensorCurConfig:
        """Read what `to_dict` wrote; keys of others are ignored.

        Raises:
            InputError: when the content is no tCURLoRA configuration.
        """
        if content.get("peft_type") != PEFT_TYPE:
            raise InputError(
                f"The adapter's peft_type is {content.get('peft_type')!r}, not {PEFT_TYPE!r}.",
                "Choose an adapter that this program made.",
                "not_an_adapter",
            )
        try:
            channels = content.get("channels")
            stacks = content.get("stacks")
            target_modules = content.get("target_modules")
            return cls(
                r=int(content["r"]),
                alpha=float(content["alpha"]),
                factors=content["factors"],
                selection=content["selection"],
                kinds=tuple(content["kinds"]),
                kernels=content["kernels"],
                target_modules=None if target_modules is None else tuple(target_modules),
                modules_to_save=tuple(content["modules_to_save"]),
                head=content["head"],
                channels=None if channels is None else tuple(_channel_from_dict(c) for c in channels),
                stacks=None if stacks is None else tuple(_stack_from_dict(entry) for entry in stacks),
                seed=int(content["seed"]),
                activation=content.get("activation", "softmax"),  # of which older adapters say nothing
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise InputError(
                f"The adapter's configuration cannot be read ({error!r}).",
                "The file adapter_config.json is damaged; use another copy of the adapter.",
                "damaged_adapter",
            ) from error


def _channel_from_dict(entry: Mapping[str, Any]) -> Channel:
    return Channel(str(entry["name"]), None if entry["source"] is None else int(entry["source"]))


def _stack_to_dict(spec: StackSpec) -> dict[str, Any]:
    return {"kind": spec.kind, "shape": list(spec.shape), "taps": spec.taps, "slices": [str(s) for s in spec.slices]}


def _stack_from_dict(entry: Mapping[str, Any]) -> StackSpec:
    out, inside = entry["shape"]
    slices = tuple(Slice.parse(text) for text in entry["slices"])
    return StackSpec(entry["kind"], (int(out), int(inside)), slices, int(entry["taps"]))
