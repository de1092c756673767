"""Train the base model that ships with the extension: a small UNETR for the hippocampus in T1 MRI.

Run from the project's root, with the data folder of the Medical Segmentation Decathlon hippocampus task:

    python Testing/Benchmarks/train_base_model.py --data ../shared/data/msd_hippocampus --out DIR
    python Testing/Benchmarks/train_base_model.py --out DIR --install

The split is by subject and by seed; it is written beside the weights, so that every later comparison can use the
same held-out subjects. The weights that ship are the exponential moving average at the best validation Dice. The second
command puts them into the bundle, with split, reached Dice and model card, and their hash into the catalogue.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from monai.losses import DiceCELoss
from monai.metrics import DiceMetric
from monai.networks.nets import UNETR
from monai.networks.utils import one_hot
from monai.transforms import (
    Compose,
    EnsureTyped,
    NormalizeIntensityd,
    RandAdjustContrastd,
    RandAffined,
    RandFlipd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandScaleIntensityd,
    RandSimulateLowResolutiond,
    ResizeWithPadOrCropd,
)
from monai.utils import set_determinism
from safetensors.torch import save_file
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

PATCH = (48, 64, 48)
NETWORK = {
    "in_channels": 1,
    "out_channels": 3,
    "img_size": list(PATCH),
    "feature_size": 8,
    "hidden_size": 192,
    "mlp_dim": 768,
    "num_heads": 12,
}
KEYS = ("image", "label")
BUNDLE = Path(__file__).resolve().parents[2] / "Resources" / "BaseModels" / "hippocampus_t1_unetr"
CARD = """# Hippocampus in T1 MRI (small UNETR)

Segments the anterior and the posterior part of one hippocampus, left or right, in a T1-weighted MR scan that is cropped
to its surroundings: about 35 x 50 x 35 mm, resampled to 1 mm. It was made to be adapted to other scanners and other
labels with TCurLoraSegment, and to be small. It is not a medical device.

- Network: MONAI's UNETR, feature size 8, hidden size 192, MLP 768, 12 heads, 6,970,555 numbers, stored as float16
- Input: one channel, 1 mm, axes to R, A, S, z-score over non-zero voxels; window 48 x 64 x 48
- Output: background, anterior hippocampus, posterior hippocampus
- Training: {crops} crops, 10,000 steps of batch 2 in bfloat16 on two processor cores, mirrored left to right at random,
  seed 0; `Testing/Benchmarks/train_base_model.py` does it again, `configs/split.json` says who was in which set

## Dice

Mean over crops; no subject is in two sets. The validation set chose the step whose weights were kept. The test set
was looked at once for each version; that the second was trained longer than the first is all that it decided. It is
the set to go by: the validation set is small, and chose the weights.

| set | crops | whole hippocampus | anterior | posterior |
|---|---:|---:|---:|---:|
{dice}

## Data, authors, licence

Medical Segmentation Decathlon, Task04 Hippocampus: T1 MPRAGE of 90 healthy adults and 105 adults with a psychotic
disorder, labeled by hand at Vanderbilt University Medical Center, licence CC BY-SA 4.0. Please cite Simpson et al.,
arXiv:1902.09063, 2019, and Antonelli et al., Nature Communications 13, 4128, 2022. 214 crops of 140 subjects were used.

The weights were trained by the authors of TCurLoraSegment and are licensed CC BY-SA 4.0, as the data are.

## Limits

One hospital, one field of view: outside such a crop it finds hippocampi where there are none. Other scanners cost
accuracy (see the project's docs/evaluation.md), which is what adaptation is for.
"""


def split_by_subject(cases_csv: Path, seed: int, held_out: int = 30, validation: int = 10) -> dict[str, list[str]]:
    """Split the files of `cases.csv` into train, validation and test by subject, so that no person is in two sets."""
    with cases_csv.open(encoding="utf-8", newline="") as stream:
        subject_of = {row["file"]: row["subject"] for row in csv.DictReader(stream)}
    subjects = sorted(set(subject_of.values()))
    random.Random(seed).shuffle(subjects)
    sets = {
        "test": set(subjects[:held_out]),
        "validation": set(subjects[held_out : held_out + validation]),
        "train": set(subjects[held_out + validation :]),
    }
    return {name: sorted(f for f, s in subject_of.items() if s in chosen) for name, chosen in sets.items()}


def read(data: Path, files: list[str]) -> list[dict[str, torch.Tensor]]:
    """Read image and label pairs as (1, x, y, z) tensors; the volumes are 1 mm and RAS already."""
    cases = []
    for file in files:
        image, label = (sitk.GetArrayFromImage(sitk.ReadImage(data / kind / file)) for kind in ("images", "labels"))
        cases.append(
            {
                "image": torch.from_numpy(image.astype(np.float32).transpose(2, 1, 0)[None].copy()),
                "label": torch.from_numpy(label.astype(np.int64).transpose(2, 1, 0)[None].copy()),
            }
        )
    return cases


def augmentation() -> Compose:
    """Random pose, side, contrast, noise and resolution: hospitals differ in all of them, and so do left and right."""
    return Compose(
        [
            RandFlipd(KEYS, prob=0.5, spatial_axis=0),
            RandAffined(
                KEYS,
                prob=0.8,
                rotate_range=(0.2, 0.2, 0.2),
                scale_range=(0.15, 0.15, 0.15),
                translate_range=(4, 4, 4),
                mode=("bilinear", "nearest"),
                padding_mode="zeros",
            ),
            RandSimulateLowResolutiond("image", prob=0.2, zoom_range=(0.6, 1.0)),
            RandGaussianSmoothd("image", prob=0.2, sigma_x=(0.3, 0.8), sigma_y=(0.3, 0.8), sigma_z=(0.3, 0.8)),
            RandGaussianNoised("image", prob=0.3, std=0.1),
            RandAdjustContrastd("image", prob=0.4, gamma=(0.7, 1.4), retain_stats=True),
            RandScaleIntensityd("image", prob=0.4, factors=0.15),
            EnsureTyped(KEYS, track_meta=False),
        ]
    )


def read_sets(
    data: Path, split: dict[str, list[str]], patch: tuple[int, int, int]
) -> dict[str, list[dict[str, torch.Tensor]]]:
    """Read the cases of each set, normalized and padded to the patch; of what is larger, its middle."""
    prepare = Compose(
        [NormalizeIntensityd("image", nonzero=True, channel_wise=True), ResizeWithPadOrCropd(KEYS, patch)]
    )
    return {name: [prepare(case) for case in read(data, files)] for name, files in split.items()}


def train(
    model: torch.nn.Module,
    training: list[dict[str, torch.Tensor]],
    validation: list[dict[str, torch.Tensor]],
    steps: int,
    batch: int,
    lr: float,
    seed: int,
    amp: bool = False,
) -> Iterator[dict[str, torch.Tensor]]:
    """Train; yield the averaged weights, as float16, each time that they are the best on the validation set so far.

    With `amp` the network works in bfloat16 as far as autocast finds that safe; weights, loss and validation do not.
    """
    model.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.998))
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    loss_function = DiceCELoss(to_onehot_y=True, softmax=True, include_background=False, batch=True)
    augment = augmentation()
    augment.set_random_state(seed)
    order = random.Random(seed)
    queue: list[dict[str, torch.Tensor]] = []
    best, losses, started = -1.0, [], time.monotonic()
    for step in range(1, steps + 1):
        if len(queue) < batch:
            queue = list(training)
            order.shuffle(queue)
        cases = [augment(queue.pop()) for _ in range(batch)]
        model.train()
        image = torch.stack([case["image"] for case in cases]).to(memory_format=torch.channels_last_3d)
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            logits = model(image)
        loss = loss_function(logits.float(), torch.stack([case["label"] for case in cases]))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        average.update_parameters(model)
        losses.append(loss.item())
        if step % 250 == 0 or step == steps:
            reached = dice(average.module, validation)
            minutes = (time.monotonic() - started) / 60
            print(f"{step} {minutes:.1f} min, loss {np.mean(losses[-250:]):.4f}, validation {reached}", flush=True)
            score = sum(reached.values()) / len(reached)
            if score > best:
                best = score
                yield {k: v.half().contiguous() for k, v in average.module.state_dict().items()}


def dice(model: torch.nn.Module, cases: list[dict[str, torch.Tensor]]) -> dict[str, float]:
    """Mean Dice of the whole hippocampus, and of its two parts where the model tells them apart."""
    model.eval()
    per_structure, whole = DiceMetric(include_background=False), DiceMetric(include_background=False)
    with torch.no_grad():
        for case in cases:
            logits = model(case["image"][None])
            predicted, truth = logits.argmax(1, keepdim=True), case["label"][None]
            per_structure(one_hot(predicted, logits.shape[1]), one_hot(truth, logits.shape[1]))
            whole(one_hot((predicted > 0).long(), 2), one_hot((truth > 0).long(), 2))
    reached = {"whole": whole.get_buffer().mean().item()}
    parts = per_structure.get_buffer().mean(0).tolist()
    return reached if len(parts) == 1 else {"anterior": parts[0], "posterior": parts[1], **reached}


def install(trained: Path) -> None:
    """Put trained weights into the bundle that ships, and say in card, metadata and catalogue what they are."""
    reached = json.loads((trained / "dice.json").read_text(encoding="utf-8"))
    split = json.loads((trained / "split.json").read_text(encoding="utf-8"))
    weights = BUNDLE / "models" / "model.safetensors"
    weights.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(trained / "model.safetensors", weights)
    shutil.copyfile(trained / "split.json", BUNDLE / "configs" / "split.json")
    (BUNDLE / "docs").mkdir(exist_ok=True)
    rows = [
        f"| {name} | {len(split[name])} | {d['whole']:.3f} | {d['anterior']:.3f} | {d['posterior']:.3f} |"
        for name, d in reached.items()
    ]
    card = CARD.format(crops=len(split["train"]), dice="\n".join(rows))
    (BUNDLE / "docs" / "README.md").write_text(card, encoding="utf-8")
    for path in (BUNDLE / "configs" / "metadata.json", BUNDLE.parent / "catalogue.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        if path.name == "metadata.json":
            content["eval_metrics"] = {f"{k}_dice": round(v, 4) for k, v in reached["test"].items()}
        else:
            entry = next(model for model in content["models"] if model["name"] == BUNDLE.name)
            entry |= {"size": weights.stat().st_size, "sha256": hashlib.sha256(weights.read_bytes()).hexdigest()}
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--amp", action=argparse.BooleanOptionalAction, default=True, help="train in bfloat16")
    parser.add_argument("--install", action="store_true", help="put what is in --out into the bundle that ships")
    args = parser.parse_args()
    if args.install:
        install(args.out)
        return
    if args.data is None:
        parser.error("--data is needed for training")

    torch.set_num_threads(args.threads)
    split = split_by_subject(args.data / "cases.csv", args.seed)
    sets = read_sets(args.data, split, PATCH)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "split.json").write_text(json.dumps(split, indent=1) + "\n", encoding="utf-8")
    set_determinism(args.seed)
    model = UNETR(**NETWORK)
    given = (args.steps, args.batch, args.lr, args.seed, args.amp)
    for weights in train(model, sets["train"], sets["validation"], *given):
        save_file(weights, args.out / "model.safetensors")

    final = UNETR(**NETWORK)
    final.load_state_dict({k: v.float() for k, v in weights.items()})
    report = {name: dice(final, sets[name]) for name in ("train", "validation", "test")}
    (args.out / "dice.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
