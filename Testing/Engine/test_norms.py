"""Normalization in the other memory layout: torch's own result and gradients, but for rounding."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from monai.networks.nets import DynUNet, SegResNet
from torch import Tensor, nn

from tcurlora.models.channels_last_norms import GroupNorm, InstanceNorm, replace_norms
from tcurlora.models.opening import load_base_model

LAYOUT = torch.channels_last_3d
SHAPE = (2, 4, 4, 5, 6)
NORMS = {
    "instance": lambda: nn.InstanceNorm3d(4),
    "instance, affine": lambda: nn.InstanceNorm3d(4, affine=True),
    "one group": lambda: nn.GroupNorm(1, 4),
    "two groups": lambda: nn.GroupNorm(2, 4),
    "two groups, not affine": lambda: nn.GroupNorm(2, 4, affine=False),
}


def images(seed: int = 0, shape: tuple[int, ...] = SHAPE, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(shape, generator=generator, dtype=dtype) + 1).to(memory_format=LAYOUT)


def both(name: str) -> tuple[nn.Module, nn.Module]:
    plain = NORMS[name]()
    with torch.no_grad():
        for parameter, values in zip(plain.parameters(), ([0.5, 2.0, -1.0, 1.0], [1.0, 0.0, 3.0, 0.5]), strict=False):
            parameter.copy_(torch.tensor(values))
    other = nn.Sequential(copy.deepcopy(plain))
    replace_norms(other)
    assert isinstance(other[0], InstanceNorm | GroupNorm)
    return plain, other[0]


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("training", [False, True])
def test_output_and_gradients_are_torchs(name: str, training: bool) -> None:
    results = []
    for norm in both(name):
        norm.train(training)
        x = images().requires_grad_()
        output = norm(x)
        # In place, as MONAI's networks do.
        loss = (nn.functional.leaky_relu(output, 0.01, inplace=True) * images(1)).sum()
        results.append([output, *torch.autograd.grad(loss, [x, *norm.parameters()])])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-5)
    assert results[1][0].is_contiguous(memory_format=LAYOUT)


@pytest.mark.parametrize("name", ["instance", "two groups, not affine"])
def test_gradient_is_the_derivative(name: str) -> None:
    norm = both(name)[1]
    assert torch.autograd.gradcheck(norm, images(dtype=torch.float64).requires_grad_())


@pytest.mark.parametrize("name", ["instance", "two groups, not affine"])
def test_small_differences_beside_a_large_mean_are_kept(name: str) -> None:
    x = images(shape=(1, 4, 24, 24, 24)) + 1000
    plain, other = both(name)
    expected = plain(x.double().contiguous())
    assert (other(x) - expected).abs().max() < 2e-3


@pytest.mark.parametrize("name", ["instance, affine", "two groups"])
@pytest.mark.parametrize("x", [images().contiguous(), images()[0]])
def test_other_layouts_and_single_images_go_torchs_way(name: str, x: Tensor) -> None:
    plain, other = both(name)
    x = x if x.dim() == 5 or name.startswith("instance") else x[None, :, 0]
    assert torch.equal(plain(x), other(x))


def test_norms_that_keep_statistics_stay() -> None:
    network = nn.Sequential(nn.InstanceNorm3d(3, track_running_stats=True), nn.BatchNorm3d(3))
    replace_norms(network)
    assert [type(module) for module in network] == [nn.InstanceNorm3d, nn.BatchNorm3d]


NETWORKS = {
    InstanceNorm: lambda: DynUNet(3, 1, 3, (3, 3, 3), (1, 2, 2), (2, 2), filters=(4, 8, 12)),
    GroupNorm: lambda: SegResNet(init_filters=8, blocks_down=(1, 1), blocks_up=(1,)),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_network_gives_the_same_with_the_same_weights(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    plain = NETWORKS[kind]().eval()
    other = copy.deepcopy(plain).to(memory_format=LAYOUT)
    replace_norms(other)
    assert any(isinstance(module, kind) for module in copy.deepcopy(other).modules())
    assert list(plain.state_dict()) == list(other.state_dict())
    x = torch.randn(2, 1, 16, 16, 16)
    with torch.inference_mode():
        torch.testing.assert_close(plain(x), other(x.to(memory_format=LAYOUT)), atol=1e-5, rtol=1e-5)


def test_base_models_are_made_so(bundle: Path) -> None:
    networks = [load_base_model(name).build() for name in ("hippocampus_t1_unetr", bundle)]
    plain = (nn.InstanceNorm3d, nn.GroupNorm)
    assert not any(type(module) in plain for network in networks for module in network.modules())
    for network, kind in zip(networks, (InstanceNorm, GroupNorm), strict=True):
        assert any(isinstance(module, kind) for module in network.modules())
