"""Train other base models than the one that ships, to see what adapting does to other networks and other labels.

    python Testing/Benchmarks/other_bases.py --data ../shared/data/msd_hippocampus --out DIR
    tcurlora compare --base DIR/segresnet ...

They are trained as the shipped model is (`train_base_model.py`), on the same split, with fewer steps. DIR gets a bundle
folder for each, with its Dice on validation and test subjects in `dice.json`.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.networks import nets
from monai.utils import set_determinism
from safetensors.torch import save_file
from train_base_model import BUNDLE, NETWORK, PATCH, dice, read_sets, split_by_subject, train

STRUCTURES = ("anterior hippocampus", "posterior hippocampus")


@dataclass(frozen=True)
class Base:
    """A network, its window, and what it is to segment."""

    network: str
    arguments: dict[str, Any]
    window: tuple[int, int, int] = PATCH
    structures: tuple[str, ...] = STRUCTURES


BASES = {
    # The shipped network, which is told of the whole hippocampus only.
    "whole": Base("UNETR", {**NETWORK, "out_channels": 2}, structures=("hippocampus",)),
    "segresnet": Base("SegResNet", {"in_channels": 1, "out_channels": 3, "init_filters": 8}),
    # Its windows must be multiples of 32.
    "swinunetr": Base(
        "SwinUNETR", {"in_channels": 1, "out_channels": 3, "feature_size": 12, "depths": [2, 2, 2, 2]}, (32, 64, 32)
    ),
}


def write_configs(folder: Path, name: str, base: Base) -> None:
    """Describe the model as the shipped one is described, except for its network and its structures."""
    metadata, inference = (
        json.loads((BUNDLE / "configs" / f"{part}.json").read_text(encoding="utf-8"))
        for part in ("metadata", "inference")
    )
    channels = dict(enumerate(("background", *base.structures)))
    metadata["name"] = name
    metadata["structures"] = [{"name": text, "value": number} for number, text in channels.items() if number]
    metadata["network_data_format"]["outputs"]["pred"] |= {"num_channels": len(channels), "channel_def": channels}
    inference["network_def"] = {"_target_": f"monai.networks.nets.{base.network}", **base.arguments}
    inference["inferer"]["roi_size"] = list(base.window)
    (folder / "configs").mkdir(parents=True)
    for part, content in (("metadata", metadata), ("inference", inference)):
        (folder / "configs" / f"{part}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default=",".join(BASES), help="names of bases, separated by commas")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    split = split_by_subject(args.data / "cases.csv", seed=0)
    for name in args.only.split(","):
        base = BASES[name]
        write_configs(args.out / name, name, base)
        sets = read_sets(args.data, split, base.window)
        if len(base.structures) == 1:
            for case in (case for cases in sets.values() for case in cases):
                case["label"] = (case["label"] > 0).long()
        set_determinism(0)
        network = getattr(nets, base.network)(**base.arguments)
        models = args.out / name / "models"
        models.mkdir()
        for weights in train(network, sets["train"], sets["validation"], args.steps, batch=2, lr=1e-3, seed=0):
            save_file(weights, models / "model.safetensors")
        network.load_state_dict({key: value.float() for key, value in weights.items()})
        report = {part: dice(network, sets[part]) for part in ("validation", "test")}
        (args.out / name / "dice.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        print(name, json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
