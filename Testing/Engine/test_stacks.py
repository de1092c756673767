"""Which weights of a network are stacked, in which order, and how a matrix becomes a weight again."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from monai.networks.blocks.selfattention import SABlock
from monai.networks.nets import UNETR, DynUNet, SegResNet, SwinUNETR
from torch import Tensor, nn

from tcurlora.method.stacks import (
    CONVOLUTIONS,
    TRANSPOSED,
    KernelMode,
    Slice,
    as_matrices,
    as_weight,
    find_stacks,
    gather,
)

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "UNETR": lambda: UNETR(1, 3, (32, 16, 16), feature_size=4, hidden_size=24, mlp_dim=48, num_heads=2),
    "SwinUNETR": lambda: SwinUNETR(1, 3, feature_size=12, depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 2), patch_size=2),
    "SegResNet": lambda: SegResNet(init_filters=8, in_channels=1, out_channels=3),
    "DynUNet": lambda: DynUNet(3, 1, 3, (3, 3, 3), (1, 2, 2), (2, 2), filters=(4, 8, 12)),
}


@pytest.mark.parametrize("kernels", ["taps", "flat"])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_of_a_network_is_in_exactly_one_stack(name: str, kernels: KernelMode) -> None:
    network = NETWORKS[name]()
    layers = (nn.Linear, *CONVOLUTIONS, *TRANSPOSED)
    expected = sorted(
        f"{n}.weight" for n, m in network.named_modules() if isinstance(m, layers) and m.weight is not None
    )
    specs = find_stacks(network, kernels=kernels)
    whole = [s.parameter for spec in specs for s in spec.slices if s.part == 0]
    assert sorted(whole) == expected
    assert len({(spec.kind, spec.shape) for spec in specs if spec.taps == 1}) == sum(spec.taps == 1 for spec in specs)
    assert all(len(spec.slices) == 1 for spec in specs if spec.taps > 1)
    assert any(spec.taps > 1 for spec in specs) == (kernels == "taps")
    kinds = {spec.kind for spec in specs}
    assert ("linear" in kinds) == (name in ("UNETR", "SwinUNETR"))
    assert "convolution" in kinds


@pytest.mark.parametrize("kernels", ["taps", "flat"])
@pytest.mark.parametrize("name", NETWORKS)
def test_gathered_matrices_become_the_same_weights_again(name: str, kernels: KernelMode) -> None:
    network = NETWORKS[name]()
    parameters = dict(network.named_parameters())
    matrices: dict[str, list[Tensor]] = {}
    kinds = {}
    for spec in find_stacks(network, kernels=kernels):
        stack = gather(spec, parameters)
        assert stack.shape == (spec.depth, *spec.shape)
        for part, of_part in zip(spec.slices, stack.split(spec.taps), strict=True):
            assert part.part == len(matrices.setdefault(part.parameter, []))
            matrices[part.parameter].append(of_part)
            kinds[part.parameter] = spec.kind
    for parameter, parts in matrices.items():
        weight = parameters[parameter]
        again = as_weight(torch.cat(parts, 1), weight.shape, kinds[parameter])
        assert torch.equal(again, weight)


def test_matrices_are_gathered_on_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a network lies must not matter to the factors, and some devices have no float64."""
    monkeypatch.setattr(Tensor, "cpu", lambda tensor: torch.ones(tensor.shape) if tensor.is_meta else tensor)
    network = NETWORKS["UNETR"]().to("meta")
    parameters = dict(network.named_parameters())
    assert {gather(spec, parameters).device.type for spec in find_stacks(network)} == {"cpu"}


def test_order_of_the_attention_stack_of_unetr() -> None:
    spec = next(s for s in find_stacks(NETWORKS["UNETR"]()) if s.kind == "linear" and s.shape == (24, 24))
    expected = []
    for block in range(12):
        attention = f"vit.blocks.{block}.attn"
        expected += [f"{attention}.out_proj.weight"] + [f"{attention}.qkv.weight#{part}" for part in "qkv"]
    assert [str(s) for s in spec.slices] == expected


def test_mlp_stacks_of_unetr() -> None:
    specs = {s.shape: s for s in find_stacks(NETWORKS["UNETR"]()) if s.kind == "linear"}
    assert list(specs) == [(48, 24), (24, 48), (24, 24)]
    assert [str(s) for s in specs[48, 24].slices] == [f"vit.blocks.{i}.mlp.linear1.weight" for i in range(12)]
    assert [str(s) for s in specs[24, 48].slices] == [f"vit.blocks.{i}.mlp.linear2.weight" for i in range(12)]


def test_fused_weights_of_swin_are_split_in_every_stage() -> None:
    specs = [s for s in find_stacks(NETWORKS["SwinUNETR"]()) if any("qkv" in part.parameter for part in s.slices)]
    assert [s.shape for s in specs] == [(12, 12), (24, 24), (48, 48), (96, 96)]
    for stage, spec in enumerate(specs, start=1):
        attention = f"swinViT.layers{stage}.0.blocks.0.attn"
        assert [str(s) for s in spec.slices] == [
            *(f"{attention}.qkv.weight#{part}" for part in "qkv"),
            f"{attention}.proj.weight",
        ]


def test_the_third_part_of_a_fused_weight_makes_the_values() -> None:
    block = SABlock(8, 2)
    (spec,) = find_stacks(block)
    parts = {
        str(s): matrix for s, matrix in zip(spec.slices, gather(spec, dict(block.named_parameters())), strict=True)
    }
    assert torch.equal(parts["qkv.weight#q"], block.qkv.weight[:8])
    assert torch.equal(parts["qkv.weight#k"], block.qkv.weight[8:16])
    tokens = torch.randn(1, 5, 8)
    with torch.no_grad():
        parts["qkv.weight#v"].zero_()
        assert not torch.allclose(block(tokens), block.out_proj.bias.expand(1, 5, 8))
        block.qkv.weight[16:] = parts["qkv.weight#v"]
        assert torch.allclose(block(tokens), block.out_proj.bias.expand(1, 5, 8), atol=1e-6)


def test_only_a_fused_qkv_weight_is_split() -> None:
    network = nn.ModuleDict({"expand": nn.Linear(4, 12), "qkv_small": nn.Linear(4, 8), "my_qkv": nn.Linear(4, 12)})
    assert {s.shape: [str(part) for part in s.slices] for s in find_stacks(network)} == {
        (12, 4): ["expand.weight"],
        (8, 4): ["qkv_small.weight"],
        (4, 4): ["my_qkv.weight#q", "my_qkv.weight#k", "my_qkv.weight#v"],
    }


def test_transposed_convolution_is_flattened_by_output_channel() -> None:
    layer = nn.ConvTranspose3d(4, 6, (2, 3, 1), bias=False)
    (spec,) = find_stacks(nn.Sequential(layer))
    assert (spec.kind, spec.shape) == ("transposed", (6, 4 * 6))
    matrix = as_matrices(layer.weight, "transposed")[0]
    assert torch.equal(matrix[5].view(4, 2, 3, 1), layer.weight[:, 5])
    # Row by row, the matrix maps one voxel's channels to the output block of that voxel.
    voxel = torch.randn(4)
    block = torch.einsum("oik,i->ok", matrix.view(6, 4, 6), voxel).view(1, 6, 2, 3, 1)
    assert torch.allclose(layer(voxel.view(1, 4, 1, 1, 1)), block, atol=1e-6)
    assert torch.equal(as_weight(matrix[None], layer.weight.shape, "transposed"), layer.weight)


def test_a_kernel_matrix_is_the_convolution_of_one_patch() -> None:
    layer = nn.Conv3d(2, 5, (3, 1, 2), bias=False)
    patch = torch.randn(2, 3, 1, 2)
    (matrix,) = as_matrices(layer.weight, "convolution")
    assert torch.allclose(matrix @ patch.flatten(), layer(patch[None]).flatten(), atol=1e-6)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_tap_is_the_matrix_of_one_voxel_of_a_kernel(transposed: bool) -> None:
    layer = nn.ConvTranspose3d(4, 6, (2, 3, 1)) if transposed else nn.Conv3d(4, 6, (2, 3, 1))
    (spec,) = find_stacks(nn.Sequential(layer), kernels="taps")
    assert (spec.shape, spec.taps, spec.depth, len(spec.slices)) == ((6, 4), 6, 6, 1)
    weight = layer.weight.transpose(0, 1) if transposed else layer.weight
    for number, (i, j) in enumerate((i, j) for i in range(2) for j in range(3)):
        assert torch.equal(gather(spec, {"0.weight": layer.weight})[number], weight[:, :, i, j, 0])


def test_each_kernel_is_a_stack_of_taps_and_large_kernels_stay_flat() -> None:
    network = nn.Sequential(
        nn.Conv3d(1, 8, 16), nn.Conv3d(8, 4, 3), nn.Conv3d(4, 4, 3), nn.Conv3d(4, 4, 3), nn.Conv3d(4, 4, 1)
    )
    assert [(s.shape, s.taps, [str(p) for p in s.slices]) for s in find_stacks(network, kernels="taps")] == [
        ((8, 4096), 1, ["0.weight"]),
        ((4, 8), 27, ["1.weight"]),
        ((4, 4), 27, ["2.weight"]),
        ((4, 4), 27, ["3.weight"]),
        ((4, 4), 1, ["4.weight"]),
    ]


def test_kinds_are_not_mixed_and_grouped_convolutions_are_left_out() -> None:
    network = nn.ModuleDict(
        {
            "linear": nn.Linear(6, 4),
            "plain": nn.Conv2d(6, 4, 1),
            "grouped": nn.Conv2d(8, 8, 3, groups=2),
            "depthwise": nn.Conv3d(4, 4, 3, groups=4),
            "up_grouped": nn.ConvTranspose3d(4, 4, 2, groups=2),
            "up": nn.ConvTranspose2d(6, 4, 1),
            "norm": nn.BatchNorm2d(4),
        }
    )
    assert [(s.kind, s.shape, [str(part) for part in s.slices]) for s in find_stacks(network)] == [
        ("linear", (4, 6), ["linear.weight"]),
        ("convolution", (4, 6), ["plain.weight"]),
        ("transposed", (4, 6), ["up.weight"]),
    ]


def test_a_single_layer_is_a_network() -> None:
    assert [str(part) for part in find_stacks(nn.Linear(3, 2))[0].slices] == ["weight"]


def test_a_shared_weight_is_stacked_once() -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    (spec,) = find_stacks(nn.Sequential(first, second, nn.Linear(4, 4)))
    assert [str(part) for part in spec.slices] == ["0.weight", "2.weight"]


def test_target_modules_are_searched_in_names() -> None:
    specs = find_stacks(NETWORKS["UNETR"](), [r"blocks\.[01]\.attn", r"^decoder5\.transp"])
    assert [(s.kind, len(s.slices)) for s in specs] == [("linear", 8), ("transposed", 1)]
    assert find_stacks(NETWORKS["UNETR"](), ["no such layer"]) == []


@pytest.mark.parametrize("part", [Slice("a.weight"), *(Slice("a.qkv.weight", i, 3) for i in range(3))])
def test_names_of_slices_are_read_back(part: Slice) -> None:
    assert Slice.parse(str(part)) == part
