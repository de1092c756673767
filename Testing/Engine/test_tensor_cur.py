"""The tensor mathematics against its definitions, computed here in other ways."""

from __future__ import annotations

import cmath
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tcurlora.method.tensor_cur import (
    FactorMode,
    Factors,
    apply_change,
    cur_factors,
    layer_blocks,
    low_rank_change,
    random_rows_and_columns,
    real_factors,
    select_rows_and_columns,
    t_product,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def circular_product(a: Tensor, b: Tensor) -> Tensor:
    n = a.shape[0]
    result = torch.zeros(n, a.shape[1], b.shape[2], dtype=a.dtype)
    for k in range(n):
        for j in range(n):
            result[k] += a[j] @ b[(k - j) % n]
    return result


def naive_selection(stack: Tensor, rank: int) -> tuple[list[int], list[int]]:
    """Every slice of the full Fourier transform from its defining sum, every norm in a plain loop."""
    n, p, q = stack.shape
    slices = []
    for frequency in range(n):
        turns = [cmath.exp(-2j * math.pi * frequency * k / n) for k in range(n)]
        slices.append(sum((turn * layer.numpy() for turn, layer in zip(turns, stack, strict=True)), np.zeros((p, q))))
    column_scores = [sum(math.sqrt(sum(abs(s[i, j]) ** 2 for i in range(p))) for s in slices) for j in range(q)]
    columns = sorted(sorted(range(q), key=lambda j: -column_scores[j])[:rank])
    row_scores = [sum(math.sqrt(sum(abs(s[i, j]) ** 2 for j in columns)) for s in slices) for i in range(p)]
    rows = sorted(sorted(range(p), key=lambda i: -row_scores[i])[:rank])
    return rows, columns


def selected(stack: Tensor, rank: int) -> tuple[list[int], list[int]]:
    rows, columns = select_rows_and_columns(stack, rank)
    assert rows.dtype == columns.dtype == torch.int64
    return rows.tolist(), columns.tolist()


def reach(factors: Factors, n: int, rank: int) -> Tensor:
    """The linear map from cores to changes as a matrix: one column for each number of the core."""
    units = torch.eye(n * rank * rank).view(-1, n, rank, rank)
    return torch.stack([low_rank_change(factors, unit).flatten() for unit in units], dim=1).double()


@pytest.mark.parametrize("n", [1, 2, 5, 6, 12])
def test_t_product_is_circular_convolution(n: int) -> None:
    a, b = normal(n, 4, 3, seed=1), normal(n, 3, 5, seed=2)
    product = t_product(a, b)
    assert product.shape == (n, 4, 5)
    assert product.dtype == torch.float64
    assert (product - circular_product(a, b)).abs().max() < 1e-10


@pytest.mark.parametrize("n", [1, 2, 3, 6, 7, 12])
@pytest.mark.parametrize("rank", [1, 3, 5])
@pytest.mark.parametrize("seed", range(4))
def test_selection_is_that_of_the_full_transform(n: int, rank: int, seed: int) -> None:
    stack = normal(n, 6, 9, seed=100 * seed + n)
    assert selected(stack, rank) == naive_selection(stack, rank)


def test_a_conjugate_pair_of_slices_counts_twice() -> None:
    stack = torch.zeros(4, 2, 2)
    stack[:, 0, 0] = 1.0
    stack[:, 0, 1] = 1.3 * torch.tensor([1.0, 0.0, -1.0, 0.0])
    assert naive_selection(stack, 1)[1] == [1]
    assert selected(stack, 1) == ([0], [1])


def test_rows_are_scored_on_the_chosen_columns_only() -> None:
    stack = torch.zeros(3, 3, 4)
    stack[:, 0, :3] = 4.0  # the most energetic row of the whole stack
    stack[:, 1, 3] = 9.0
    assert selected(stack, 1) == ([1], [3])


@pytest.mark.parametrize("n", [1, 2, 3, 12, 48])
def test_ties_go_to_the_lower_index(n: int) -> None:
    assert selected(torch.ones(n, 13, 17), 3) == ([0, 1, 2], [0, 1, 2])
    same_columns = normal(n, 24, 1, seed=n).expand(n, 24, 24).contiguous()
    assert selected(same_columns, 3)[1] == [0, 1, 2]
    same_rows = normal(n, 1, 24, seed=n).expand(n, 24, 24).contiguous()
    assert selected(same_rows, 3)[0] == [0, 1, 2]


def test_selection_is_deterministic_and_depends_on_no_memory_layout() -> None:
    stack = normal(6, 20, 30).float()
    first = selected(stack, 8)
    assert selected(stack, 8) == first
    assert selected(stack.permute(2, 0, 1).contiguous().permute(1, 2, 0), 8) == first
    assert first[0] == sorted(set(first[0]))
    assert first[1] == sorted(set(first[1]))


def test_random_selection_follows_its_seed() -> None:
    stack = torch.zeros(2, 30, 40)
    rows, columns = random_rows_and_columns(stack, 8, seed=3)
    again = random_rows_and_columns(stack, 8, seed=3)
    assert torch.equal(rows, again[0])
    assert torch.equal(columns, again[1])
    assert not torch.equal(rows, random_rows_and_columns(stack, 8, seed=4)[0])
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert len(columns.unique()) == 8
    assert 0 <= int(rows.min()) <= int(rows.max()) < 30
    assert not torch.equal(rows, columns)


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_raw_change_is_the_product_of_the_base_weights_own_columns_and_rows(n: int) -> None:
    stack, core = normal(n, 7, 9, seed=n), normal(n, 3, 3, seed=50 + n)
    rows, columns = select_rows_and_columns(stack, 3)
    expected = circular_product(circular_product(stack[:, :, columns], core), stack[:, rows, :])
    assert (t_product(t_product(stack[:, :, columns], core), stack[:, rows, :]) - expected).abs().max() < 1e-10
    exact = Factors(torch.fft.rfft(stack[:, :, columns], dim=0), torch.fft.rfft(stack[:, rows, :], dim=0))
    assert (low_rank_change(exact, core) - expected).abs().max() < 1e-10
    change = low_rank_change(cur_factors(stack.float(), rows, columns, "raw"), core.float())
    assert change.dtype == torch.float32
    assert (change - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("n", [1, 2, 5, 6])
def test_change_of_one_layer_is_a_block_product(n: int) -> None:
    c, core, r = normal(n, 5, 2, seed=1), normal(n, 2, 2, seed=2), normal(n, 2, 4, seed=3)
    change = low_rank_change(Factors(torch.fft.rfft(c, dim=0), torch.fft.rfft(r, dim=0)), core)
    for s in range(n):
        blocks = sum((c[a] @ core[(s - a - b) % n] @ r[b] for a in range(n) for b in range(n)), torch.zeros(5, 4))
        assert (change[s] - blocks).abs().max() < 1e-10


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_gradient_of_the_core(n: int) -> None:
    factors = Factors(torch.fft.rfft(normal(n, 4, 2, seed=1), dim=0), torch.fft.rfft(normal(n, 2, 3, seed=2), dim=0))
    core = normal(n, 2, 2, seed=3).requires_grad_()
    assert torch.autograd.gradcheck(lambda u: low_rank_change(factors, u), core)


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_orthonormal_factors_are_bases_of_the_raw_ones(n: int) -> None:
    stack = normal(n, 8, 10, seed=n)
    rows, columns = select_rows_and_columns(stack, 4)
    raw = cur_factors(stack, rows, columns, "raw")
    basis = cur_factors(stack, rows, columns, "orthonormal")
    for frequency in range(n // 2 + 1):
        c, r = basis.columns[frequency], basis.rows[frequency]
        assert (c.mH @ c - torch.eye(4)).abs().max() < 1e-5
        assert (r @ r.mH - torch.eye(4)).abs().max() < 1e-5
        for mine, whole in (
            (c @ (c.mH @ raw.columns[frequency]), raw.columns),
            ((raw.rows[frequency] @ r.mH) @ r, raw.rows),
        ):
            assert (mine - whole[frequency]).abs().max() < 1e-5 * whole.abs().max()


@pytest.mark.parametrize("mode", ["raw", "orthonormal", "relative"])
@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_change_stays_real(n: int, mode: FactorMode) -> None:
    stack, core = normal(n, 8, 10, seed=n), normal(n, 4, 4, seed=7).float()
    factors = cur_factors(stack, *select_rows_and_columns(stack, 4), mode)
    # The whole spectrum from the half: a real change needs conjugate slices, and real ones at 0 and n / 2.
    half = factors.columns @ torch.fft.fft(core, dim=0)[: n // 2 + 1] @ factors.rows
    whole = torch.stack([half[f] if f <= n // 2 else half[n - f].conj() for f in range(n)])
    change = torch.fft.ifft(whole, dim=0)
    assert change.imag.abs().max() < 1e-5 * change.real.abs().max()
    assert (low_rank_change(factors, core) - change.real).abs().max() < 1e-5 * change.real.abs().max()


@pytest.mark.parametrize("n", [1, 2, 3, 4, 6])
def test_raw_and_orthonormal_factors_reach_the_same_changes(n: int) -> None:
    stack = normal(n, 5, 6, seed=n)
    rows, columns = select_rows_and_columns(stack, 2)
    raw = reach(cur_factors(stack, rows, columns, "raw"), n, 2)
    basis = reach(cur_factors(stack, rows, columns, "orthonormal"), n, 2)
    assert torch.linalg.matrix_rank(raw, rtol=1e-4) == torch.linalg.matrix_rank(basis, rtol=1e-4) == 4 * n
    for goal, tools in ((raw, basis), (basis, raw)):
        missed = goal - tools @ torch.linalg.lstsq(tools, goal).solution
        assert missed.norm() < 1e-4 * goal.norm()
    # Other columns reach other changes, so the comparison above can fail.
    others = torch.tensor([j for j in range(6) if j not in columns.tolist()][:2])
    elsewhere = reach(cur_factors(stack, rows, others, "orthonormal"), n, 2)
    assert (raw - elsewhere @ torch.linalg.lstsq(elsewhere, raw).solution).norm() > 0.01 * raw.norm()


def test_orthonormal_change_does_not_depend_on_the_size_of_the_weights() -> None:
    stack, core = normal(3, 8, 8), normal(3, 2, 2, seed=1).float()
    rows, columns = select_rows_and_columns(stack, 2)
    small, large = (low_rank_change(cur_factors(s, rows, columns, "orthonormal"), core) for s in (stack, 1000 * stack))
    assert torch.allclose(small, large, atol=1e-6)


@pytest.mark.parametrize("n", [1, 2, 3, 6])
@pytest.mark.parametrize("size", [1.0, 1000.0])
def test_norm_of_a_core_is_that_of_the_relative_change(n: int, size: float) -> None:
    stack, core = size * normal(n, 8, 10, seed=n), normal(n, 4, 4, seed=7).float()
    change = low_rank_change(cur_factors(stack, *select_rows_and_columns(stack, 4), "relative"), core)
    assert change.norm() / stack.norm() == pytest.approx(core.norm().item(), rel=1e-5)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("mode", ["raw", "orthonormal", "relative"])
def test_weights_of_zero_give_finite_changes(n: int, mode: FactorMode) -> None:
    stack = torch.zeros(n, 4, 4)
    factors = cur_factors(stack, *select_rows_and_columns(stack, 2), mode)
    assert low_rank_change(factors, torch.ones(n, 2, 2)).isfinite().all()


def exact_factors(n: int, p: int, q: int, rank: int) -> Factors:
    """C and R of a random stack in double precision."""
    stack = normal(n, p, q, seed=n)
    rows, columns = selected(stack, rank)
    return Factors(torch.fft.rfft(stack[:, :, columns], dim=0), torch.fft.rfft(stack[:, rows, :], dim=0))


def by_fourier_transform(factors: Factors, core: Tensor) -> Tensor:
    """The definition of C * U * R, with torch's own gradient."""
    return torch.fft.irfft(factors.columns @ torch.fft.rfft(core, dim=0) @ factors.rows, n=core.shape[0], dim=0)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 12])
def test_the_change_and_its_gradient_are_those_of_the_definition(n: int) -> None:
    factors, core = exact_factors(n, 7, 9, 3), normal(n, 3, 3, seed=1).requires_grad_()
    weights = normal(n, 7, 9, seed=2)
    expected = by_fourier_transform(factors, core)
    change = low_rank_change(factors, core)
    torch.testing.assert_close(change, expected, rtol=0, atol=1e-12)
    gradients = [torch.autograd.grad((result * weights).sum(), core)[0] for result in (change, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-11)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 12])
def test_applying_the_factors_is_multiplying_by_the_change(n: int) -> None:
    factors, core = exact_factors(n, 7, 9, 3), normal(n, 3, 3, seed=1).requires_grad_()
    inputs, weights = normal(2, 5, 9, seed=3).requires_grad_(), normal(2, 5, 7 * n, seed=4)
    expected = torch.cat([inputs @ layer.T for layer in by_fourier_transform(factors, core)], -1)
    applied = apply_change(inputs, real_factors(factors), layer_blocks(core))
    torch.testing.assert_close(applied, expected, rtol=0, atol=1e-11)
    ours, theirs = (torch.autograd.grad((result * weights).sum(), (core, inputs)) for result in (applied, expected))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)


def test_a_change_computed_in_inference_can_be_trained_afterwards() -> None:
    stack = torch.randn(23, 5, 4)
    factors = cur_factors(stack, *select_rows_and_columns(stack, 2))
    core = torch.zeros(23, 2, 2, requires_grad=True)
    with torch.inference_mode():
        low_rank_change(factors, core)
    low_rank_change(factors, core).sum().backward()
    assert core.grad is not None
