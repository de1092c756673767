"""What a bundle's config does with a scan before its network, and with the network's output: read as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

from tcurlora.errors import InputError
from tcurlora.models.base_model import Activation, Windowing
from tcurlora.models.bundle_config import BundleConfig, Unknown, first_unknown
from tcurlora.models.monai_transforms import GEOMETRY, INTENSITY, ORIENTATION, Step, known_axcodes

Bad: TypeAlias = Callable[..., InputError]

# Steps that this program does in its own way, or that change nothing here.
UNDERSTOOD = ("LoadImage", "EnsureChannelFirst", "AddChannel", "EnsureType", "ToTensor", "CastToType", "ToDevice")
CLICKS = (
    "OrientationGuidanceMultipleLabelDeepEdit",
    "AddGuidanceFromPointsDeepEdit",
    "ResizeGuidanceMultipleLabelDeepEdit",
    "AddGuidanceSignalDeepEdit",
)
"""Steps of DeepEdit that bring in the clicks of a user. Without clicks, what they add to the image is zero."""
JOINS = ("ConcatImages", "ConcatItems")
"""Steps that make one image of several files."""
SAVES = ("SaveImage", "MergeClasses", "EnsureType", "ToDevice", "CastToType", "Lambda", "MapLabelValue", "ToTensor")
"""Steps behind the network that only say how its result is written to a file, which this program does itself."""

LARGEST_WINDOW = 1024
_OPTIONS: dict[str, tuple[str, ...]] = {
    "Spacing": (
        "pixdim",
        "diagonal",
        "mode",
        "padding_mode",
        "align_corners",
        "scale_extent",
        "recompute_affine",
        "min_pixdim",
        "max_pixdim",
    ),
    "CropForeground": ("channel_indices", "margin", "allow_smaller", "k_divisible", "mode"),
    "Resize": ("spatial_size", "size_mode", "mode", "align_corners"),
}
_IGNORED = ("keys", "allow_missing_keys", "lazy", "source_key", "start_coord_key", "end_coord_key", "image_only")
_PADDING = ("constant", "reflect", "replicate", "circular")


@dataclass(frozen=True)
class Steps:
    """A bundle's preprocessing.

    Attributes:
        steps: transforms in their order.
        spacing: voxel size in mm along the axes of the prepared array; None where that of the scan is kept.
        joined: names of the images that are joined to the channels of one, when there are several.
        image_channels: channels of the image before those for clicks are added; None where there are none of these.
    """

    steps: tuple[Step, ...]
    spacing: tuple[float, float, float] | None
    joined: tuple[str, ...] = ()
    image_channels: int | None = None


@dataclass(frozen=True)
class Postprocessing:
    """What becomes of the logits, as in `MonaiTransforms`."""

    activation: Activation = "softmax"
    back: Literal["probabilities", "logits", "labels"] = "probabilities"
    largest_only: bool = False


def read_steps(config: BundleConfig, bad: Bad) -> Steps:
    """Read the transforms in front of the network.

    Args:
        config: of the bundle.
        bad: makes an error about the bundle.

    Raises:
        InputError: when one is not known.
    """
    steps: list[Step] = []
    spacing: tuple[float, float, float] | None = None
    joined: tuple[str, ...] = ()
    image_channels: int | None = None
    for name, entry in _transforms(config, "preprocessing", bad):
        arguments = {key: value for key, value in entry.items() if key not in _IGNORED and not key.startswith("_")}
        if name == ORIENTATION:
            axcodes = "RAS" if arguments.get("as_closest_canonical") is True else arguments.get("axcodes", "RAS")
            known = known_axcodes(axcodes)
            if known is None:
                raise bad(f"wants the orientation {_said(axcodes)}, which is not one")
            steps.append((ORIENTATION, {"axcodes": known}))
        elif name in GEOMETRY:
            arguments = _geometry(name, arguments, bad)
            steps.append((name, arguments))
            if name == "Spacing":
                spacing = _plain_spacing(arguments)
            elif name == "Resize":
                spacing = None
        elif name in INTENSITY:
            steps.append((name, _intensity(name, arguments, bad)))
        elif name in JOINS:
            names = arguments.get("keys_merge", entry.get("keys"))
            if not isinstance(names, list) or not all(isinstance(key, str) for key in names):
                raise bad(f"joins images ('{name}') without naming them")
            joined = tuple(names)
        elif name == "AddGuidanceSignalDeepEdit":
            image_channels = arguments.get("number_intensity_ch", 1)
        elif name not in UNDERSTOOD and name not in CLICKS:
            raise bad(f"has the preprocessing step '{name}', which is not supported")
    return Steps(tuple(steps), spacing, joined, image_channels)


def read_inferer(config: BundleConfig, default_size: Any, bad: Bad) -> Windowing:
    """Read how the network is run over a scan.

    Args:
        config: of the bundle.
        default_size: size of the window where the inferer says none, because it takes the whole scan.
        bad: makes an error about the bundle.

    Raises:
        InputError: when it is another inferer, or there is no size.
    """
    inferer = config.get("inferer", {})
    if not isinstance(inferer, dict):
        raise bad("does not say the window size (inferer.roi_size) in its inference config")
    name = str(inferer.get("_target_", "SlidingWindowInferer")).rpartition(".")[2]
    if name not in ("SlidingWindowInferer", "SlidingWindowInfererAdapt", "SimpleInferer"):
        raise bad(f"runs its network with '{name}', which is not supported")
    roi = _window_size(inferer.get("roi_size") or default_size, default_size)
    if roi is None:
        raise bad("does not say the window size (inferer.roi_size) in its inference config")
    if name == "SimpleInferer":
        # It takes the scan as a whole: one window, as long as the scan is no larger.
        return Windowing(roi, blend="logits")
    overlap, mode = inferer.get("overlap", 0.25), inferer.get("mode", "constant")
    sigma, padding = inferer.get("sigma_scale", 0.125), inferer.get("padding_mode", "constant")
    if isinstance(overlap, list) and overlap and all(part == overlap[0] for part in overlap):
        overlap = overlap[0]
    if isinstance(overlap, bool) or not isinstance(overlap, int | float) or not 0 <= overlap < 1:
        raise bad(f"has windows with the overlap {_said(overlap)}, which is not supported")
    if mode not in ("constant", "gaussian"):
        raise bad(f"weights its windows with {_said(mode)}, which is not supported")
    if isinstance(sigma, bool) or not isinstance(sigma, int | float) or not 0.001 <= sigma <= 10:
        raise bad(f"has windows with the sigma_scale {_said(sigma)}, which is not supported")
    if padding not in _PADDING or inferer.get("cval", 0) != 0:
        raise bad(f"fills windows up with {_said(padding)} and {_said(inferer.get('cval', 0))}, which is not supported")
    return Windowing(
        roi,
        overlap=float(overlap),
        mode=cast("Literal['constant', 'gaussian']", mode),
        sigma_scale=float(sigma),
        padding_mode=cast("Literal['constant', 'reflect', 'replicate', 'circular']", padding),
        blend="logits",
    )


def read_postprocessing(config: BundleConfig, joins_channels: Callable[[str], bool], bad: Bad) -> Postprocessing:
    """Read what becomes of the network's output.

    Args:
        config: of the bundle.
        joins_channels: tells whether a function behind the activation only adds up channels of one name.
        bad: makes an error about the bundle.

    Raises:
        InputError: when it cannot be read as classes that exclude each other, or as regions.
    """
    activation: Activation | None = None
    back: Literal["probabilities", "logits", "labels"] | None = None
    decided = largest = False
    for name, entry in _transforms(config, "postprocessing", bad) if "postprocessing" in config else ():
        if name == "Activations":
            sigmoid, softmax = _first(entry.get("sigmoid", False)), _first(entry.get("softmax", False))
            other = _first(entry.get("other"))
            if other is not None and not (isinstance(other, Unknown) and joins_channels(other.text)):
                raise bad(f"has a function of its own behind its network ({_said(other)}), which is never executed")
            for value in (sigmoid, softmax):
                if not isinstance(value, bool):
                    raise bad(f"has the activation {_said(value)}, which cannot be told")
            activation = "sigmoid" if sigmoid else "softmax" if softmax else activation
        elif name == "Invert":
            back = back or ("labels" if decided else "probabilities" if activation else "logits")
        elif name == "AsDiscrete":
            decided = True
            threshold = _first(entry.get("threshold"))
            if threshold is not None and threshold is not False and _first(entry.get("argmax")) is not True:
                if activation != "sigmoid":
                    raise bad(
                        "cuts off what its network gives at a threshold, with no sigmoid before: its structures may "
                        "overlap, and what the numbers mean is not said",
                        "Choose a model with a softmax or a sigmoid behind its network.",
                    )
                if isinstance(threshold, bool) or not isinstance(threshold, int | float) or threshold != 0.5:
                    raise bad(f"has regions from a probability of {_said(threshold)} on; only 0.5 is supported")
        elif name == "KeepLargestConnectedComponent":
            largest = True
            if entry.get("independent", True) is not True or entry.get("num_components", 1) != 1:
                raise bad("keeps connected components in an unusual way, which is not supported")
        elif name not in SAVES:
            raise bad(f"has the postprocessing step '{name}', which is not supported")
    return Postprocessing(activation or "softmax", back or "probabilities", largest)


def _transforms(config: BundleConfig, key: str, bad: Bad) -> list[tuple[str, dict[str, Any]]]:
    """The transforms of a `Compose`, with their names as for arrays, without those that are disabled or for labels."""
    content = config.get(key, {})
    transforms = content.get("transforms", []) if isinstance(content, dict) else content
    if isinstance(transforms, Unknown):
        raise bad(f"has a {key} that {transforms.why} ('{transforms.text}'); expressions are never executed")
    if not isinstance(transforms, list) or not all(isinstance(entry, dict) for entry in transforms):
        raise bad(f"has a {key} in its inference config that is not a list of transforms")
    found = []
    for entry in transforms:
        if _is_disabled(entry, key, bad):
            continue
        target = entry.get("_target_", "")
        name = str(target.text if isinstance(target, Unknown) else target).rpartition(".")[2]
        name = name.removesuffix("Dict").removesuffix("D")
        keys = entry.get("keys")
        if keys in ("label", ["label"]):
            continue
        found.append((name.removesuffix("d"), entry))
    return found


def _is_disabled(entry: Mapping[str, Any], key: str, bad: Bad) -> bool:
    """Whether MONAI would leave this step out."""
    disabled = entry.get("_disabled_", False)
    if isinstance(disabled, Unknown):
        raise bad(f"has a step in its {key} of which cannot be told whether it is disabled ('{disabled.text}')")
    return disabled.strip().casefold() == "true" if isinstance(disabled, str) else bool(disabled)


def _geometry(name: str, arguments: Mapping[str, Any], bad: Bad) -> dict[str, Any]:
    arguments = _in_single_precision(name, arguments, bad)
    known = {key: value for key, value in arguments.items() if key in _OPTIONS[name]}
    others = [key for key in arguments if key not in _OPTIONS[name]]
    unknown = first_unknown(known)
    if others or unknown is not None:
        what = f"'{others[0]}'" if others else f"'{unknown.text if unknown else ''}'"
        raise bad(f"has {what} in its preprocessing ('{name}'), which is not supported; it is never executed")
    for key in ("mode", "padding_mode", "align_corners"):
        if isinstance(known.get(key), list):
            known[key] = _first(known[key])
    if name == "Spacing":
        pixdim = known.get("pixdim")
        if isinstance(pixdim, int | float) and not isinstance(pixdim, bool):
            pixdim = known["pixdim"] = [pixdim] * 3
        if (
            not isinstance(pixdim, list)
            or len(pixdim) != 3
            or not all(isinstance(v, int | float) and not isinstance(v, bool) and (v > 0 or v == -1) for v in pixdim)
        ):
            raise bad(f"has the voxel size {_said(pixdim)} in its preprocessing, which is not three numbers")
        if known.get("mode", "bilinear") not in ("bilinear", "nearest"):
            raise bad(f"resamples scans with {_said(known['mode'])}, which is not supported")
    elif name == "Resize" and _window_size(known.get("spatial_size"), None) is None:
        raise bad(f"brings scans to {_said(known.get('spatial_size'))} voxels, which is not a size")
    elif name == "CropForeground":
        numbers = [known.get("margin", 0), known.get("k_divisible", 1)]
        if not all(0 <= n <= LARGEST_WINDOW for v in numbers for n in (v if isinstance(v, list) else [v])):
            raise bad("cuts scans off with a margin that is not a number of voxels")
    return known


def _in_single_precision(name: str, arguments: Mapping[str, Any], bad: Bad) -> dict[str, Any]:
    """Leave out the type of numbers, which is float32 here; resampling computes places in float64 as MONAI does."""
    dtype = arguments.get("dtype")
    if isinstance(dtype, Unknown | dict | list) or dtype not in (None, "float32", "float", "float64", "double"):
        raise bad(f"has numbers of the type {_said(dtype)} in its preprocessing ('{name}'), which is never executed")
    return {key: value for key, value in arguments.items() if key != "dtype"}


def _plain_spacing(arguments: Mapping[str, Any]) -> tuple[float, float, float] | None:
    """The voxel size that every scan is brought to, if there is one."""
    pixdim = arguments["pixdim"]
    if any(v <= 0 for v in pixdim) or arguments.get("min_pixdim") or arguments.get("max_pixdim"):
        return None
    return float(pixdim[0]), float(pixdim[1]), float(pixdim[2])


def _intensity(name: str, arguments: Mapping[str, Any], bad: Bad) -> dict[str, Any]:
    arguments = _in_single_precision(name, arguments, bad)
    unknown = first_unknown(arguments)
    if unknown is not None or any(isinstance(v, dict) for v in arguments.values()):
        text = f"'{unknown.text}'" if unknown is not None else "a component"
        raise bad(f"has {text} in its preprocessing ('{name}'), which is never executed")
    # To MONAI any text is true.
    said = {key: {"true": True}.get(v.casefold(), v) if isinstance(v, str) else v for key, v in arguments.items()}
    wrong = next((f"{key}: '{v}'" for key, v in said.items() if isinstance(v, str)), None)
    if wrong is not None:
        raise bad(f"has a text where a number is meant in its intensity transform '{name}' ({wrong})")
    return said


def _window_size(size: Any, whole: Any) -> tuple[int, int, int] | None:
    if isinstance(size, int) and not isinstance(size, bool):
        size = [size] * 3
    if not isinstance(size, list) or len(size) != 3:
        return None
    if isinstance(whole, list) and len(whole) == 3:
        # A size that is not positive stands for that of the scan.
        size = [b if isinstance(a, int) and a <= 0 else a for a, b in zip(size, whole, strict=True)]
    if not all(isinstance(v, int) and not isinstance(v, bool) and 0 < v <= LARGEST_WINDOW for v in size):
        return None
    return size[0], size[1], size[2]


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list) and value else value


def _said(value: Any) -> str:
    return f"'{value.text}'" if isinstance(value, Unknown) else repr(value)[:80]
