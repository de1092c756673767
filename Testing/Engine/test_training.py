"""Training: it learns, repeats itself bit for bit, resumes exactly, and keeps the best weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tcurlora.cases.cached_case import CachedCase, save_case
from tcurlora.errors import InputError, MemoryExhausted, TCurLoraError
from tcurlora.method.channels import Channel
from tcurlora.method.config import TensorCurConfig
from tcurlora.method.model import TensorCurModel
from tcurlora.models.opening import load_base_model
from tcurlora.runtime.events import NullEvents
from tcurlora.training import trainer as training
from tcurlora.training.presets import training_settings
from tcurlora.training.trainer import TrainingResult, TrainingSettings, learning_rate_factor, train

CPU = torch.device("cpu")
ROI = (16, 16, 16)
GROUPS = [[0], [1, 2]]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory, make_scan: Callable[..., Any]) -> list[CachedCase]:
    folder = tmp_path_factory.mktemp("cache")
    cached = []
    for seed in range(3):
        image, labels = (sitk.GetArrayFromImage(part).T for part in make_scan(seed))
        normalized = ((image - image.mean()) / image.std())[None].astype(np.float32)
        cached.append(save_case(f"case{seed}", normalized, labels.astype(np.uint8), folder, str(seed)))
    return cached


@pytest.fixture
def model(bundle: Path) -> TensorCurModel:
    return adapted(bundle)


def adapted(bundle: Path) -> TensorCurModel:
    return TensorCurModel(load_base_model(bundle).build(), TensorCurConfig(head="conv_final.2.conv"))


def settings(**changes: Any) -> TrainingSettings:
    return TrainingSettings(**{"steps": 8, "check_every": 2, "lr_core": 1e-2, "lr_whole": 3e-3, **changes})


def run(
    model: TensorCurModel,
    cases: list[CachedCase],
    events: Any = None,
    checkpoint: Path | None = None,
    **changes: Any,
) -> TrainingResult:
    return train(model, cases, GROUPS, ROI, settings(**changes), CPU, events or NullEvents(), checkpoint)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_training_lowers_the_loss_and_moves_cores_and_head_only(
    model: TensorCurModel, cases: list[CachedCase], recorder: Any
) -> None:
    start, loss_at_start = model.trained_state(), run(model, cases, steps=0).best_loss
    frozen = {name: value.clone() for name, value in model.network.state_dict().items()}
    events = recorder()
    result = run(model, cases, events, steps=16, check_every=4)
    monitored = [point["monitor_loss"] for point in result.curve]
    assert [point["step"] for point in result.curve] == [4, 8, 12, 16]
    assert all(later < loss_at_start for later in monitored) and monitored[-1] < monitored[0]
    assert min(monitored) < loss_at_start - 0.04
    assert result.steps == 16 and result.best_loss == min(monitored)
    end = model.trained_state()
    for name in start:
        assert torch.equal(start[name], end[name]) == name.startswith(("rows", "columns")), name
    assert same(frozen, dict(model.network.state_dict()))
    steps = [event["step"] for event in events.of("progress")]
    assert steps == list(range(1, 17))
    assert all(math.isfinite(event["loss"]) and event["eta_s"] >= 0 for event in events.of("progress"))


def test_same_seed_repeats_bit_for_bit_and_another_does_not(bundle: Path, cases: list[CachedCase]) -> None:
    states = []
    for seed in (3, 3, 4):
        torch.manual_seed(len(states))  # what ran before must not matter
        np.random.seed(len(states))
        model = adapted(bundle)
        run(model, cases, steps=3, seed=seed)
        states.append(model.trained_state())
    assert same(states[0], states[1])
    assert not same(states[0], states[2])


class Watched(nn.Module):
    """A network that keeps what it is trained on."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.seen = network, list[bytes]()

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen += [patch.numpy().tobytes() for patch in x]
        result: Tensor = self.network(x)
        return result


def test_every_patch_is_drawn_anew_and_again_by_the_same_seed(bundle: Path, cases: list[CachedCase]) -> None:
    seen = []
    for seed in (3, 3, 4):
        network = Watched(load_base_model(bundle).build())
        run(TensorCurModel(network, TensorCurConfig(head="network.conv_final.2.conv")), cases, steps=4, seed=seed)
        seen.append(network.seen)
    assert seen[0] == seen[1]
    assert len({*seen[0], *seen[2]}) == 16


@pytest.mark.parametrize("stop", [1, 3, 4, 7, 8])
def test_resumed_training_equals_an_unbroken_one(
    bundle: Path, cases: list[CachedCase], tmp_path: Path, recorder: Any, stop: int, unbroken: Any
) -> None:
    checkpoint = tmp_path / "checkpoint.safetensors"
    broken = recorder(lambda kind, fields: kind == "progress" and fields["step"] == stop)
    with pytest.raises(KeyboardInterrupt):
        run(adapted(bundle), cases, broken, checkpoint)
    model, events = adapted(bundle), recorder()
    result = run(model, cases, events, checkpoint)
    # The event of a step comes before its check, so the last checkpoint is of an earlier even step.
    assert events.of("progress")[0]["step"] == (stop - 1) // 2 * 2 + 1
    assert same(model.trained_state(), unbroken[0])
    assert result == unbroken[1]
    assert [path.name for path in tmp_path.glob("*")] == ["checkpoint.safetensors"]


def test_resumed_training_leaves_its_checkpoint_free_to_be_replaced(
    bundle: Path, cases: list[CachedCase], tmp_path: Path, recorder: Any
) -> None:
    """Windows refuses to replace a file that is mapped into memory."""
    checkpoint, maps = tmp_path / "checkpoint.safetensors", Path("/proc/self/maps")
    with pytest.raises(KeyboardInterrupt):
        run(adapted(bundle), cases, recorder(lambda _, fields: fields.get("step") == 5), checkpoint)
    before, mapped = checkpoint.read_bytes(), list[bool]()

    def look(_kind: str, _fields: dict[str, Any]) -> bool:
        mapped.append(maps.exists() and str(checkpoint) in maps.read_text(encoding="utf-8"))
        return False

    run(adapted(bundle), cases, recorder(look), checkpoint)
    assert len(mapped) > 4 and not any(mapped)
    assert checkpoint.read_bytes() != before


@pytest.fixture(scope="module")
def unbroken(bundle: Path, cases: list[CachedCase]) -> tuple[dict[str, Tensor], TrainingResult]:
    model = adapted(bundle)
    result = run(model, cases)
    return model.trained_state(), result


def test_checkpoint_of_other_settings_or_damaged_is_not_used(
    bundle: Path, cases: list[CachedCase], tmp_path: Path, recorder: Any
) -> None:
    checkpoint = tmp_path / "checkpoint.safetensors"
    run(adapted(bundle), cases, None, checkpoint, steps=2)
    for damage in (False, True):
        if damage:
            checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
        events = recorder()
        run(adapted(bundle), cases, events, checkpoint, steps=2, seed=0 if damage else 1)
        assert [event["step"] for event in events.of("progress")] == [1, 2]


def test_checkpoint_that_cannot_be_written_is_said(
    model: TensorCurModel, cases: list[CachedCase], tmp_path: Path
) -> None:
    with pytest.raises(TCurLoraError, match=r"checkpoint.*could not be written.*--resume"):
        run(model, cases, None, tmp_path / "gone" / "checkpoint.safetensors", steps=2)


def diverging_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every later step climb the loss instead of descending it."""
    monkeypatch.setattr(training, "learning_rate_factor", lambda s, _: 1.0 if s < step else -1.0)


def test_best_weights_are_kept_and_not_the_last(
    bundle: Path, cases: list[CachedCase], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = adapted(bundle)
    monkeypatch.setattr(training, "learning_rate_factor", lambda *_: 1.0)
    run(good, cases, steps=4)
    diverging_after(4, monkeypatch)
    checkpoint = tmp_path / "checkpoint.safetensors"
    bad = adapted(bundle)
    result = run(bad, cases, None, checkpoint, steps=8)
    assert result.best_step == 4 and result.steps == 8
    assert result.curve[-1]["monitor_loss"] > result.best_loss + 0.1
    assert same(bad.trained_state(), good.trained_state())
    last = {name.removeprefix("model."): t for name, t in load_file(checkpoint).items() if name.startswith("model.")}
    assert not same(last, good.trained_state())
    # The best weights come back from the checkpoint as well.
    again = adapted(bundle)
    assert run(again, cases, None, checkpoint, steps=8) == result
    assert same(again.trained_state(), good.trained_state())


def test_training_that_only_harms_ends_where_it_started(
    model: TensorCurModel, cases: list[CachedCase], monkeypatch: pytest.MonkeyPatch
) -> None:
    diverging_after(0, monkeypatch)
    start = model.trained_state()
    result = run(model, cases, steps=4)
    assert result.best_step == 0
    assert min(point["monitor_loss"] for point in result.curve) > result.best_loss
    assert same(model.trained_state(), start)


def test_patience_ends_training_early_and_so_does_a_resumed_one(
    bundle: Path, cases: list[CachedCase], tmp_path: Path, recorder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    diverging_after(2, monkeypatch)
    checkpoint = tmp_path / "checkpoint.safetensors"
    model = adapted(bundle)
    result = run(model, cases, None, checkpoint, steps=40, patience=2)
    assert (result.best_step, result.steps) == (2, 6)
    events, again = recorder(), adapted(bundle)
    assert run(again, cases, events, checkpoint, steps=40, patience=2) == result
    assert events.of("progress") == []
    assert same(again.trained_state(), model.trained_state())


class Crowded(nn.Module):
    """A network for which memory is enough for a few patches only."""

    def __init__(self, network: nn.Module, most: int) -> None:
        super().__init__()
        self.network, self.most = network, most

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.most:
            raise torch.OutOfMemoryError("Tried to allocate 20.00 GiB")
        result: Tensor = self.network(x)
        return result


def test_too_little_memory_for_two_patches_goes_on_with_one(
    bundle: Path, cases: list[CachedCase], recorder: Any
) -> None:
    # Dropout is drawn for both patches also when they are computed one by one.
    def make(most: int) -> TensorCurModel:
        network = load_base_model(bundle).build()
        return TensorCurModel(Crowded(network, most), TensorCurConfig(head="network.conv_final.2.conv"))

    events, crowded, roomy = recorder(), make(1), make(2)
    result = run(crowded, cases, events, steps=3)
    assert result.steps == 3
    assert [event["message"] for event in events.of("warning")] == [
        "Memory ran out; going on with one patch at a time."
    ]
    with_room = recorder()
    run(roomy, cases, with_room, steps=3)
    losses = [[event["loss"] for event in each.of("progress")] for each in (events, with_room)]
    assert losses[0] == pytest.approx(losses[1], abs=2e-4)
    for name, value in roomy.trained_state().items():
        # Sums of another order, which the first steps of Adam magnify.
        torch.testing.assert_close(crowded.trained_state()[name], value, atol=1e-4, rtol=0)
    assert not same(crowded.trained_state(), make(1).trained_state())


def test_process_without_a_row_takes_the_steps_of_the_others_in_half_precision(
    bundle: Path, cases: list[CachedCase], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its gradients are the others', scaled as theirs, although it never scales a loss."""
    monkeypatch.setattr(training, "half_precision", lambda _: torch.float16)
    summed: list[tuple[float, list[Tensor | None]]] = []

    def keep(parameters: list[nn.Parameter], loss: float, _device: torch.device) -> float:
        summed.append((loss, [None if p.grad is None else p.grad.clone() for p in parameters]))
        return loss

    def receive(parameters: list[nn.Parameter], _loss: float, _device: torch.device) -> float:
        loss, gradients = summed.pop(0)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        return loss

    working, idle = adapted(bundle), adapted(bundle)
    monkeypatch.setattr(training.distributed, "sum_gradients", keep)
    result = run(working, cases, steps=3)
    assert max(float(g.abs().max()) for _, gradients in summed for g in gradients if g is not None) > 100
    monkeypatch.setattr(training.distributed, "sum_gradients", receive)
    monkeypatch.setattr(training.distributed, "own_rows", lambda _: range(0))
    assert run(idle, cases, steps=3) == result
    assert same(idle.trained_state(), working.trained_state())


def test_decay_pulls_the_cores_towards_the_base(bundle: Path, cases: list[CachedCase]) -> None:
    free, held = adapted(bundle), adapted(bundle)
    run(free, cases)
    run(held, cases, core_decay=30.0)
    far, near = (sum(float(core.detach().norm()) for core in model.cores()) for model in (free, held))
    assert 0 < near < 0.9 * far
    decays = {
        id(p): group["weight_decay"]
        for group in training._optimizer(held, settings()).param_groups
        for p in group["params"]
    }
    assert {decays[id(core)] for core in held.cores()} == {0.0}
    assert {decays[id(parameter)] for parameter in held.whole_parameters()} == {1e-2}


@pytest.mark.parametrize(
    ("sources", "new"),
    [((0, 1, 2), False), ((0, 2, 1), False), ((0, 1, 1), True), ((0, 1, 2, None), True)],
)
def test_head_that_has_far_to_go_takes_larger_steps(bundle: Path, sources: tuple[int | None, ...], new: bool) -> None:
    channels = tuple(Channel(f"channel {number}", source) for number, source in enumerate(sources))
    config = TensorCurConfig(head="conv_final.2.conv", channels=channels, modules_to_save=("convInit",))
    model = TensorCurModel(load_base_model(bundle).build(), config)
    groups = training._optimizer(model, settings(lr_new_head=0.5)).param_groups
    peak_of = {id(parameter): group["peak"] for group in groups for parameter in group["params"]}
    head = {id(parameter) for parameter in model.head_parameters()}
    assert len(head) == 2 and len(peak_of) == len(model.cores()) + len(model.whole_parameters())
    assert {peak_of[id(core)] for core in model.cores()} == {1e-2}
    assert {peak_of[number] for number in head} == {0.5 if new else 3e-3}
    assert {peak_of[id(p)] for p in model.whole_parameters() if id(p) not in head} == {3e-3}


def test_too_little_memory_for_one_patch_is_said(bundle: Path, cases: list[CachedCase]) -> None:
    network = Crowded(load_base_model(bundle).build(), 0)
    model = TensorCurModel(network, TensorCurConfig(head="network.conv_final.2.conv"))
    with pytest.raises(MemoryExhausted, match="ran out of memory") as caught:
        run(model, cases, steps=2)
    assert caught.value.exit_code == 3


def test_loss_that_is_no_number_is_said(bundle: Path, cases: list[CachedCase], tmp_path: Path) -> None:
    image, label = cases[0].load()
    broken = save_case("broken", np.full_like(image, np.nan), label, tmp_path, "broken")
    with pytest.raises(TCurLoraError, match="loss became nan at step 1") as caught:
        run(adapted(bundle), [broken], steps=2)
    assert caught.value.remedy


def test_learning_rate_rises_then_falls_to_zero() -> None:
    s = settings(steps=100, warmup=0.1)
    factors = [learning_rate_factor(step, s) for step in range(101)]
    assert factors[0] == pytest.approx(0.1) and factors[10] == 1.0 == max(factors)
    assert factors[:10] == sorted(set(factors[:10]))
    assert factors[10:] == sorted(set(factors[10:]), reverse=True)
    assert factors[100] == pytest.approx(0, abs=1e-12)


def test_every_method_has_settings_and_an_unknown_one_is_refused() -> None:
    assert training_settings("paper", 7).seed == 7
    assert training_settings("paper").lr_core < training_settings("compact").lr_core
    with pytest.raises(InputError, match=r"no method 'magic'.*compact"):
        training_settings("magic")
