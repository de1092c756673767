"""What a training step costs: time, memory and operations, for each method on the paper's UNETR and the shipped one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from cost_measuring import MIB, PeakMemory, Times, held_memory, in_own_process, in_turns, matmul_rate
from cost_results import Figure, Section
from monai.losses import DiceCELoss
from monai.networks.nets import UNETR
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tcurlora.comparison.methods import METHODS
from tcurlora.method.adapted_model import AdaptedModel
from tcurlora.method.head import find_head
from tcurlora.models.opening import load_base_model
from tcurlora.runtime.devices import autocast
from tcurlora.training.presets import preset

TITLES = {"paper": "the paper's UNETR at 96 x 96 x 96", "shipped": "the shipped small UNETR"}
COMPARED = ("full", "decoder", "lora", "compact", "compact-decoder", "paper-lora", "paper")
PEER = {"compact": "lora", "compact-decoder": "lora", "paper": "paper-lora"}
"""LoRA on the same layers, with the same parts trained whole."""


@dataclass(frozen=True)
class Subject:
    """A network and the size of the patch that it is trained on."""

    network: nn.Module
    size: tuple[int, ...]
    out_channels: int


def make_subject(name: str) -> Subject:
    """Build `paper` (the paper's UNETR) or `shipped` (the small one that comes with this project)."""
    if name == "paper":
        torch.manual_seed(0)
        network = UNETR(1, 2, (96, 96, 96), feature_size=16, hidden_size=768, mlp_dim=3072, num_heads=12)
        return Subject(network, (96, 96, 96), 2)
    base = load_base_model("hippocampus_t1_unetr")
    return Subject(base.build(), base.windows.roi_size, len(base.channels))


def make_step(subject: Subject, method: str, device: torch.device) -> tuple[AdaptedModel, Callable[[], None]]:
    """Adapt the network by a method; the step is forward, backward and optimizer, with one patch."""
    chosen = METHODS[method]
    head = find_head(subject.network, torch.zeros(1, 1, *subject.size), subject.out_channels)
    config = preset(chosen.preset, subject.network, **{"head": head, "r": chosen.rank, **chosen.changes})
    model = chosen.make(subject.network, config)
    model.to(device)
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    loss_function = DiceCELoss(to_onehot_y=True, softmax=True, include_background=False)
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, 1, *subject.size, generator=generator).to(device, memory_format=torch.channels_last_3d)
    label = (torch.rand(1, 1, *subject.size, generator=generator) < 0.1).long().to(device)

    def step() -> None:
        with autocast(device):
            logits = model(image)
        loss_function(logits.float(), label).backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return model, step


def step_memory(subject_name: str, method: str, device_name: str, threads: int) -> int:
    """Most bytes of two steps beyond the process with the base's weights loaded; for a process of its own.

    What making the adapter takes for a moment, once, does not count.
    """
    torch.set_num_threads(threads)
    device = torch.device(device_name)
    subject = make_subject(subject_name)
    subject.network.to(device)
    nn.Conv3d(1, 8, 3)(torch.zeros(1, 1, 32, 32, 32)).sum().backward()  # so that libraries are loaded
    loaded = held_memory(device)
    _, step = make_step(subject, method, device)
    del subject  # LoRA has made a copy of the network, of which one is enough
    during = PeakMemory(device)
    step()
    step()
    return during.bytes() - loaded


def measure(subject_name: str, device: torch.device, rounds: int, methods: Sequence[str] = COMPARED) -> Section:
    """Compare training steps.

    Args:
        subject_name: `paper` or `shipped`.
        device: where.
        rounds: steps of each method that count, taken in turns.
        methods: of `tcurlora.comparison.methods.METHODS`.
    """
    threads = torch.get_num_threads()
    memory = {
        method: in_own_process(step_memory, subject_name, method, str(device), threads, returning_memory=True) / MIB
        for method in methods
    }
    subject = make_subject(subject_name)
    subject.network.to(device)
    models_and_steps = {method: make_step(subject, method, device) for method in methods}
    times = in_turns({method: step for method, (_, step) in models_and_steps.items()}, rounds, device)
    rate = matmul_rate(device) / 1e9
    section = Section(f"Training step, {TITLES[subject_name]} (a matrix product here: {rate:.0f} GFLOP/s)")
    for method, (model, step) in models_and_steps.items():
        with FlopCounterMode(display=False) as operations:
            step()
        section.rows.append(
            {
                "trained": method,
                "numbers": model.trained_counts()["total"],
                "wall, s": times[method].seconds,
                "processor, s": times[method].processor_seconds,
                "memory, MiB": memory[method],
                "GFLOP": operations.get_total_flops() / 1e9,
            }
        )
    for method in methods:
        for other, time_goal, memory_goal in ((PEER.get(method, ""), 1.0, 1.0), ("full", 0.7, 0.5)):
            if method in PEER and other in methods:
                time_ratio = _ratio(times[method], times[other], device)
                section.figures += [
                    Figure(f"{method} against {other}, time", time_ratio, "", time_goal),
                    Figure(f"{method} against {other}, memory", memory[method] / memory[other], "", memory_goal),
                ]
    return section


def _ratio(times: Times, others: Times, device: torch.device) -> float:
    """Of processor times, which others' programs do not change; a graphics card's time shows on the wall clock only."""
    return times.ratio_to(others) if device.type == "cuda" else times.processor_ratio_to(others)
