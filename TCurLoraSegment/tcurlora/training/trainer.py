"""Train what an adapter trains, on cached cases, in a way that can be broken off at any step and resumed exactly."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.transforms import Compose
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tcurlora.cases.cached_case import CachedCase
from tcurlora.errors import Diverged, MemoryExhausted, TCurLoraError
from tcurlora.method.adapted_model import AdaptedModel
from tcurlora.runtime import distributed
from tcurlora.runtime.atomic_files import whole_file
from tcurlora.runtime.devices import autocast, half_precision, out_of_memory_as_error
from tcurlora.runtime.events import EventSink
from tcurlora.training.losses import KeptChannels, kept_loss, segmentation_loss
from tcurlora.training.patches import KEYS, middle_patch, patch_transform

SECONDS_BETWEEN_LOSSES = 0.2
"""Quick steps report only some of their losses, which is enough for a plot."""


@dataclass(frozen=True)
class TrainingSettings:
    """How long and how fast to train.

    Attributes:
        steps: optimizer steps.
        batch: patches a step.
        lr_core: peak learning rate of the cores.
        lr_whole: peak learning rate of parameters that are trained whole.
        lr_new_head: the same of a head whose channels have to become something else than the base's.
        weight_decay: of parameters that are trained whole.
        core_decay: of the cores, which pulls the weights towards the base's.
        warmup: fraction of the steps in which the learning rate rises.
        check_every: steps between checks of the best weights; each also writes a checkpoint.
        patience: checks without a better loss after which training ends early.
        seed: of patches, augmentation and dropout.
        at_once: patches that are computed at once, for less memory; the whole batch when None. The step is the same.
    """

    steps: int = 160
    batch: int = 2
    lr_core: float = 6e-3
    lr_whole: float = 1e-3
    lr_new_head: float = 3e-2
    weight_decay: float = 1e-2
    core_decay: float = 0.0
    warmup: float = 0.1
    check_every: int = 20
    patience: int = 5
    seed: int = 0
    at_once: int | None = None


@dataclass
class TrainingResult:
    """What a training did: steps taken, the step whose weights were kept, and the curve of losses."""

    steps: int = 0
    best_step: int = 0
    best_loss: float = math.inf
    curve: list[dict[str, float]] = field(default_factory=list)


class _Checkpoint(NamedTuple):
    tensors: dict[str, Tensor]
    result: TrainingResult
    scaler: dict[str, Any]


def learning_rate_factor(step: int, settings: TrainingSettings) -> float:
    """Linear warm-up, then a cosine to zero; a function of the step alone, so that resuming needs no state."""
    warmup = max(1, round(settings.warmup * settings.steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, settings.steps - warmup)))


def train(
    model: AdaptedModel,
    cases: Sequence[CachedCase],
    groups: Sequence[Sequence[int]],
    roi_size: Sequence[int],
    settings: TrainingSettings,
    device: torch.device,
    events: EventSink,
    checkpoint: Path | None = None,
    after_step: Callable[[int], None] | None = None,
    kept: KeptChannels | None = None,
) -> TrainingResult:
    """Train a model and leave the best weights in it.

    With a handful of cases none can be spared for validation. The weights that are kept are those with the lowest
    loss on fixed patches of the training cases without augmentation: this guards against a run that diverges, and
    leaves held-out cases untouched for an honest estimate.

    Args:
        model: at its start; on its way from the checkpoint where there is one.
        cases: the training cases.
        groups: channel indices of each class, as `segmentation_loss` takes them.
        roi_size: patch size in voxels.
        settings: how long and how fast.
        device: where to train.
        events: told of progress.
        checkpoint: file to resume from and to write to.
        after_step: called with the number of each step, when the model is as that step left it. After an interruption
            it is called again for the steps since the last checkpoint.
        kept: what of the base is kept although no case is labeled with it.

    Raises:
        MemoryExhausted: when memory runs out also with one patch at a time.
        Diverged: when the loss is not finite.
    """
    model.to(device)
    if kept is not None:
        kept.base.to(device)
    optimizer = _optimizer(model, settings)
    # Float16 gradients of the cores underflow without scaling; bfloat16 and float32 need none.
    scaler = torch.amp.GradScaler(device.type, enabled=half_precision(device) == torch.float16)
    # A process without a row of its own scales no loss, and would not know the scale of the others' gradients.
    scaler.scale(torch.zeros((), device=device))
    state = distributed.first(lambda: _load_checkpoint(checkpoint, settings)) if checkpoint else None
    result, best = _restore(state, model, optimizer, scaler) if state else (TrainingResult(), model.trained_state())
    transform = patch_transform(roi_size)
    monitor = _in_pairs([middle_patch(case, roi_size) for case in cases[:8]])
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    rows = distributed.own_rows(settings.batch)
    micro_batch = max(1, min(len(rows), settings.at_once or len(rows)))
    started, first_step = time.monotonic(), result.steps
    last_loss_at = -math.inf

    def batch_loss(batch: dict[str, Tensor]) -> Tensor:
        image = batch["image"].to(device, non_blocking=True, memory_format=torch.channels_last_3d)
        with autocast(device):
            logits = model(image)
        label, activation = batch["label"].to(device, non_blocking=True), model.config.activation
        loss = segmentation_loss(logits.float(), label, groups, activation)
        if kept is None:
            return loss
        return loss + kept_loss(logits.float(), _of_base(kept.base, image), label, kept, activation)

    def monitor_loss() -> float:
        model.eval()

        def measure(patches: dict[str, Tensor]) -> float:
            try:
                with torch.no_grad(), out_of_memory_as_error(device):
                    return batch_loss(patches).item()
            except MemoryExhausted:
                if len(patches["image"]) == 1:
                    raise
                return float(np.mean([measure(single) for single in _singles(patches)]))

        weights = [len(patches["image"]) for patches in monitor]
        return float(np.average(distributed.shared(measure, monitor), weights=weights))

    if state is None:
        result.best_loss = monitor_loss()  # a training that only makes things worse ends where it started
    while result.steps < settings.steps and not _stalled(result, settings):
        step = result.steps
        patches = _draw_patches(cases, transform, settings, step, rows)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * learning_rate_factor(step, settings)
        model.train()
        while True:
            try:
                with out_of_memory_as_error(device):
                    loss = 0.0
                    for start in range(0, len(rows), micro_batch):
                        part = slice(start, start + micro_batch)
                        # Dropout is seeded by the step, so that a resumed, repeated or shared step is the same step.
                        torch.manual_seed(settings.seed * 1_000_003 + step)
                        with _dropout(rows[part], settings.batch):
                            part_loss = batch_loss(_stack(patches[part])) * (len(rows[part]) / settings.batch)
                        scaler.scale(part_loss).backward()
                        loss += part_loss.item()
                break
            except MemoryExhausted:
                optimizer.zero_grad()
                if micro_batch == 1:
                    raise
                micro_batch = 1
                events.emit("warning", message="Memory ran out; going on with one patch at a time.")
        loss = distributed.sum_gradients(trained, loss, device)
        if not math.isfinite(loss):
            raise Diverged(
                f"The training loss became {loss} at step {step + 1}.",
                "Look for cases with extreme intensities ('tcurlora check' names them) and leave them out; "
                "or choose the method 'compact', or another seed (--seed).",
            )
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(trained, 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        result.steps = step + 1
        remaining = (time.monotonic() - started) / (step + 1 - first_step) * (settings.steps - step - 1)
        events.emit("progress", step=step + 1, total=settings.steps, loss=round(loss, 4), eta_s=round(remaining, 1))
        if time.monotonic() - last_loss_at >= SECONDS_BETWEEN_LOSSES:
            events.emit("metric", name="loss", value=round(loss, 4), step=step + 1)
            last_loss_at = time.monotonic()
        if after_step:  # before the checkpoint, so that no step is left out when it is broken off between the two
            after_step(step + 1)
        if (step + 1) % settings.check_every == 0 or step + 1 == settings.steps:
            monitored = monitor_loss()
            events.emit("metric", name="monitor_loss", value=round(monitored, 4), step=step + 1)
            result.curve.append({"step": step + 1, "loss": loss, "monitor_loss": monitored})
            if monitored < result.best_loss:
                result.best_loss, result.best_step, best = monitored, step + 1, model.trained_state()
            if checkpoint and distributed.rank() == 0:
                _save_checkpoint(checkpoint, settings, model, optimizer, scaler, result, best)
    model.load_trained_state(best)
    return result


def _of_base(network: nn.Module, image: Tensor) -> Tensor:
    """Return what the base says of some patches; its network may be a part of the model that is trained."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    with torch.no_grad(), autocast(image.device):
        logits: Tensor = network(image)
    for module, mode in modes.items():
        module.training = mode
    return logits.float()


def _stalled(result: TrainingResult, settings: TrainingSettings) -> bool:
    return sum(point["step"] > result.best_step for point in result.curve) >= settings.patience


def _optimizer(model: AdaptedModel, settings: TrainingSettings) -> torch.optim.Optimizer:
    cores, head = model.cores(), model.head_parameters() if model.config.has_new_channels else []
    whole = [parameter for parameter in model.whole_parameters() if all(parameter is not other for other in head)]
    groups: list[dict[str, Any]] = []
    if cores:
        groups.append({"params": cores, "peak": settings.lr_core, "weight_decay": settings.core_decay})
    if whole:
        groups.append({"params": whole, "peak": settings.lr_whole, "weight_decay": settings.weight_decay})
    if head:
        groups.append({"params": head, "peak": settings.lr_new_head, "weight_decay": settings.weight_decay})
    return torch.optim.AdamW(groups, lr=0.0)


def _draw_patches(
    cases: Sequence[CachedCase], transform: Compose, settings: TrainingSettings, step: int, rows: Sequence[int]
) -> list[dict[str, Tensor]]:
    """Draw and augment patches of one step's batch; they depend on seed, step and row only."""
    epoch_length = len(cases)
    patches = []
    for row in rows:
        position = step * settings.batch + row
        epoch, index = divmod(position, epoch_length)
        order = np.random.default_rng((settings.seed, epoch)).permutation(epoch_length)
        patch_seed = int(np.random.default_rng((settings.seed, 1, position)).integers(2**31))
        transform.set_random_state(patch_seed)
        patches.append(transform(cases[order[index]]))
    return patches


def _stack(patches: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {key: torch.stack([patch[key] for patch in patches]) for key in KEYS}


def _dropout(rows: Sequence[int], batch: int) -> AbstractContextManager[Any]:
    return nullcontext() if len(rows) == batch else distributed.DropoutOfBatch(rows, batch)


def _in_pairs(patches: Sequence[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Batches of two: for one small patch torch takes a slow way to compute convolutions."""
    pairs = [patches[start : start + 2] for start in range(0, len(patches), 2)]
    return [{key: torch.cat([patch[key] for patch in pair]) for key in KEYS} for pair in pairs]


def _singles(patches: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    return [{key: patches[key][i : i + 1] for key in KEYS} for i in range(len(patches["image"]))]


def _save_checkpoint(
    path: Path,
    settings: TrainingSettings,
    model: AdaptedModel,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    result: TrainingResult,
    best: dict[str, Tensor],
) -> None:
    tensors = {f"model.{name}": value for name, value in model.trained_state().items()}
    tensors |= {f"best.{name}": value for name, value in best.items()}
    for i, entry in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{name}": value.cpu().clone() for name, value in entry.items()}
    parts = {"settings": vars(settings), "result": vars(result), "scaler": scaler.state_dict()}
    meta = {name: json.dumps(part) for name, part in parts.items()}
    tensors = {name: value.cpu().contiguous() for name, value in tensors.items()}
    meta["sha256"] = _digest(tensors, meta)
    try:
        with whole_file(path) as temporary:
            save_file(tensors, temporary, metadata=meta)
    except (OSError, SafetensorError) as error:
        raise TCurLoraError(
            f"The checkpoint in '{path.parent.name}' could not be written ({error}).",
            "Free some space and go on (with --resume).",
            "cannot_write",
        ) from error


def _load_checkpoint(path: Path, settings: TrainingSettings) -> _Checkpoint | None:
    """Read a checkpoint; None where there is none, or it is damaged or belongs to other settings."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as stream:
            meta = stream.metadata()
            if json.loads(meta["settings"]) != vars(settings):
                return None
            names = stream.keys()  # safe_open is no mapping that could be iterated over
            # Copies, because a file that is mapped into memory cannot be replaced on Windows, as the next one has to.
            tensors = {name: stream.get_tensor(name).clone() for name in names}
            # One wrong bit would end in another adapter than that of an unbroken run.
            if meta.pop("sha256") != _digest(tensors, meta):
                return None
            return _Checkpoint(tensors, TrainingResult(**json.loads(meta["result"])), json.loads(meta["scaler"]))
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError, RecursionError):
        # A damaged checkpoint costs time, not correctness: the training starts again.
        return None


def _digest(tensors: dict[str, Tensor], meta: dict[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(meta, sort_keys=True).encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.numpy().data)
    return digest.hexdigest()


def _restore(
    state: _Checkpoint, model: AdaptedModel, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
) -> tuple[TrainingResult, dict[str, Tensor]]:
    tensors, result = state.tensors, state.result
    model.load_trained_state(_under(tensors, "model."))
    if scaler.is_enabled():
        scaler.load_state_dict(state.scaler)
    content = optimizer.state_dict()
    entries: dict[int, dict[str, Tensor]] = {}
    for name, value in _under(tensors, "optimizer.").items():
        index, _, key = name.partition(".")
        entries.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({**content, "state": entries})
    return result, _under(tensors, "best.")


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
