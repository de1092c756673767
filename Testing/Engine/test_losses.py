"""The loss: what nobody labeled has none, what the site does not label is not unlearned, and regions may overlap."""

from __future__ import annotations

import pytest
import torch
from monai.losses import DiceCELoss
from torch import Tensor, nn

from tcurlora.method.channels import Channel
from tcurlora.method.head import laid_out
from tcurlora.training.losses import KeptChannels, kept_loss, segmentation_loss

PLAIN = [[0], [1], [2]]


def batch(seed: int = 0, channels: int = 3, samples: int = 2) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    return torch.randn(samples, channels, 6, 6, 6, requires_grad=True), torch.randint(0, 3, (samples, 1, 6, 6, 6))


def test_loss_of_whole_labels_is_that_of_monai() -> None:
    logits, label = batch()
    expected = DiceCELoss(to_onehot_y=True, softmax=True, include_background=False)(logits, label)
    assert torch.equal(segmentation_loss(logits, label, PLAIN), expected)


@pytest.mark.parametrize(("activation", "groups"), [("softmax", PLAIN), ("sigmoid", [[0], [1]])])
def test_unlabeled_voxels_count_as_if_they_were_not_there(activation: str, groups: list[list[int]]) -> None:
    logits, label = batch(channels=len(groups))
    label[..., 3:] = -1
    loss = segmentation_loss(logits, label, groups, activation)  # type: ignore[arg-type]
    cropped = segmentation_loss(logits[..., :3], label[..., :3], groups, activation)  # type: ignore[arg-type]
    assert loss.item() == pytest.approx(cropped.item(), abs=1e-5)
    loss.backward()
    assert logits.grad is not None
    assert not logits.grad[..., 3:].any() and logits.grad[..., :3].all()


@pytest.mark.parametrize(("activation", "groups"), [("softmax", PLAIN), ("sigmoid", [[0], [1]])])
def test_batch_may_be_computed_in_parts_however_much_of_each_is_labeled(
    activation: str, groups: list[list[int]]
) -> None:
    logits, label = batch(channels=len(groups), samples=3)
    label[0, ..., 1:] = -1
    label[1] = -1
    together = segmentation_loss(logits, label, groups, activation)  # type: ignore[arg-type]
    parts = [
        segmentation_loss(logits[i : i + 1], label[i : i + 1], groups, activation)  # type: ignore[arg-type]
        for i in range(3)
    ]
    assert together.item() == pytest.approx(sum(part.item() for part in parts) / 3, abs=1e-5)
    assert torch.isfinite(together)


def test_structure_that_the_site_does_not_label_is_not_pushed_towards_the_background() -> None:
    """Channels: background, labeled, not labeled; no voxel is labeled."""
    gradients = {}
    for name, groups in (("marginal", [[0, 2], [1]]), ("complete", [[0], [1], [2]])):
        logits, _ = batch()
        segmentation_loss(logits, torch.zeros(2, 1, 6, 6, 6), groups).backward()
        assert logits.grad is not None
        gradients[name] = logits.grad
        shares = logits.detach().softmax(1)
    # Both are raised in proportion to their probability: what a voxel is of the two stays open.
    background, _, other = gradients["marginal"].unbind(1)
    assert (background < 0).all() and (other < 0).all()
    torch.testing.assert_close(background * shares[:, 2], other * shares[:, 0], atol=1e-8, rtol=1e-3)
    assert (gradients["complete"][:, 2] > 0).all()


def test_regions_overlap_and_those_in_no_group_have_no_loss() -> None:
    logits, _ = batch(channels=3)
    label = torch.zeros(2, 1, 6, 6, 6, dtype=torch.long)
    label[..., :4] = 1  # the first region of the site
    label[..., 2:4] = 3  # both
    groups = [[2], [0]]
    good = torch.full((2, 3, 6, 6, 6), -20.0)
    good[:, 2, ..., :4] = good[:, 0, ..., 2:4] = 20.0
    assert segmentation_loss(good, label, groups, "sigmoid").item() == pytest.approx(0, abs=1e-4)
    segmentation_loss(logits, label, groups, "sigmoid").backward()
    assert logits.grad is not None
    assert not logits.grad[:, 1].any() and logits.grad[:, 0].all() and logits.grad[:, 2].all()


def test_label_as_augmentation_leaves_it_is_taken() -> None:
    logits, label = batch(channels=2)
    label[0, 0, 0] = -1
    for activation, groups in (("softmax", [[0], [1]]), ("sigmoid", [[0], [1]])):
        kept = label.clamp(max=1) if activation == "softmax" else label
        losses = [segmentation_loss(logits, each, groups, activation) for each in (kept, kept.float())]  # type: ignore[arg-type]
        assert torch.equal(*losses)


def test_new_region_starts_improbable_and_the_others_as_they_were() -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(2, 5, 1, 1, 1), torch.randn(2)
    channels = [Channel("whole tumor", 0), Channel("again", 0), Channel("core", 1), Channel("new", None)]
    rows, offsets = (laid_out(t, channels, is_bias, "sigmoid") for t, is_bias in ((weight, False), (bias, True)))
    features = torch.randn(7, 5)
    before, after = features @ weight.flatten(1).T + bias, features @ rows.flatten(1).T + offsets
    torch.testing.assert_close(after[:, :3], before[:, [0, 0, 1]])
    assert after[:, 3].sigmoid().max() < 0.03


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_what_is_kept_is_at_its_best_where_the_base_says_the_same(activation: str) -> None:
    """Channels: background, labeled, kept; the base has them in another order."""
    kept = KeptChannels(nn.Identity(), (0, 2) if activation == "softmax" else (2,), (1, 0))
    if activation == "sigmoid":
        kept = KeptChannels(nn.Identity(), (2,), (0,))
    label = torch.zeros(2, 1, 6, 6, 6, dtype=torch.long)
    label[..., 3:] = 1

    def gradient(same: bool) -> Tensor:
        logits, _ = batch()
        of_base = torch.stack((logits[:, 2], logits[:, 0], torch.zeros_like(logits[:, 0])), 1).detach()
        kept_loss(logits, of_base if same else of_base + torch.randn(1, 3, 6, 6, 6), label, kept, activation).backward()  # type: ignore[arg-type]
        assert logits.grad is not None
        return logits.grad

    best, other = gradient(True), gradient(False)
    assert not best[:, 1].any() and not other[:, 1].any()
    assert other.abs().max() > 20 * best.abs().max()
    # With a softmax only voxels without a label are compared; regions are compared in all of them.
    assert bool(other[..., 3:].any()) == (activation == "sigmoid")
