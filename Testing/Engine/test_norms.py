"""Instance normalization in the other memory layout: torch's own result and gradients, but for rounding."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from monai.networks.nets import DynUNet
from torch import Tensor, nn

from tcurlora.base_models import load_base_model
from tcurlora.norms import InstanceNorm, replace_instance_norms

LAYOUT = torch.channels_last_3d
SHAPE = (2, 3, 4, 5, 6)


def images(seed: int = 0, shape: tuple[int, ...] = SHAPE, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(shape, generator=generator, dtype=dtype) + 1).to(memory_format=LAYOUT)


def both(affine: bool) -> tuple[nn.InstanceNorm3d, nn.InstanceNorm3d]:
    plain = nn.InstanceNorm3d(3, affine=affine)
    if affine:
        with torch.no_grad():
            plain.weight.copy_(torch.tensor([0.5, 2.0, -1.0]))
            plain.bias.copy_(torch.tensor([1.0, 0.0, 3.0]))
    other = nn.Sequential(copy.deepcopy(plain))
    replace_instance_norms(other)
    assert isinstance(other[0], InstanceNorm)
    return plain, other[0]


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_output_and_gradients_are_torchs(affine: bool, training: bool) -> None:
    results = []
    for norm in both(affine):
        norm.train(training)
        x = images().requires_grad_()
        output = norm(x)
        # In place, as MONAI's networks do.
        loss = (nn.functional.leaky_relu(output, 0.01, inplace=True) * images(1)).sum()
        results.append([output, *torch.autograd.grad(loss, [x, *norm.parameters()])])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-5)
    assert results[1][0].is_contiguous(memory_format=LAYOUT)


def test_gradient_is_the_derivative() -> None:
    norm = both(False)[1]
    assert torch.autograd.gradcheck(norm, images(dtype=torch.float64).requires_grad_())


def test_small_differences_beside_a_large_mean_are_kept() -> None:
    x = images(shape=(1, 3, 24, 24, 24)) + 1000
    expected = nn.functional.instance_norm(x.double())
    for norm in both(False):
        assert (norm(x) - expected).abs().max() < 2e-3


@pytest.mark.parametrize("x", [images().contiguous(), images()[0]])
def test_other_layouts_and_single_images_go_torchs_way(x: Tensor) -> None:
    plain, other = both(True)
    assert torch.equal(plain(x), other(x))


def test_norms_that_keep_statistics_stay() -> None:
    network = nn.Sequential(nn.InstanceNorm3d(3, track_running_stats=True), nn.BatchNorm3d(3), nn.GroupNorm(1, 3))
    replace_instance_norms(network)
    assert [type(module) for module in network] == [nn.InstanceNorm3d, nn.BatchNorm3d, nn.GroupNorm]


def test_a_network_gives_the_same_with_the_same_weights() -> None:
    torch.manual_seed(0)
    plain = DynUNet(3, 1, 3, (3, 3, 3), (1, 2, 2), (2, 2), filters=(4, 8, 12)).eval().to(memory_format=LAYOUT)  # type: ignore[call-overload]
    other = copy.deepcopy(plain)
    replace_instance_norms(other)
    assert any(isinstance(module, InstanceNorm) for module in copy.deepcopy(other).modules())
    assert list(plain.state_dict()) == list(other.state_dict())
    x = torch.randn(2, 1, 16, 16, 16)
    with torch.inference_mode():
        torch.testing.assert_close(plain(x), other(x), atol=1e-5, rtol=1e-5)


def test_base_models_are_made_so(bundle: Path) -> None:
    networks = [load_base_model(name).build() for name in ("hippocampus_t1_unetr", bundle)]
    assert not any(type(module) is nn.InstanceNorm3d for network in networks for module in network.modules())
    assert any(isinstance(module, InstanceNorm) for module in networks[0].modules())
