"""The tensor mathematics of tCURLoRA: t-product, CUR index selection, and the low-rank change C * U * R.

A third-order tensor stacks n equal-shaped matrices along axis 0. The t-product multiplies such tensors by circular
convolution along that axis, which is an ordinary matrix product per frequency of its Fourier transform.

Source: He et al., tCURLoRA, arXiv 2501.02227, section 2; the t-product is from Kilmer and Martin, 2011.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

FactorMode = Literal["relative", "orthonormal", "raw"]


class Factors(NamedTuple):
    """C and R in the Fourier domain: (n // 2 + 1, p, r) and (n // 2 + 1, r, q), complex."""

    columns: Tensor
    rows: Tensor


def t_product(a: Tensor, b: Tensor) -> Tensor:
    """Multiply two third-order tensors by the t-product.

    Args:
        a: (n, p, q), real.
        b: (n, q, s), real.

    Returns:
        (n, p, s), real: slice k is the sum over j of a[j] @ b[(k - j) mod n].
    """
    n = a.shape[0]
    product: Tensor = torch.fft.irfft(torch.fft.rfft(a, dim=0) @ torch.fft.rfft(b, dim=0), n=n, dim=0)
    return product


def select_rows_and_columns(stack: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Choose the r most energetic columns J and, among these columns, the r most energetic rows I.

    The score of a column is its 2-norm in each Fourier slice, summed over all n slices; rows are scored on the
    columns already chosen (arXiv 2501.02227, section 2.2). Ties go to the lower index, so the choice is deterministic.

    Args:
        stack: (n, p, q), real.
        rank: r, at most min(p, q).

    Returns:
        Row indices I and column indices J, each (r,), int64, ascending.
    """
    spectrum = torch.fft.rfft(stack.double(), dim=0)
    # Frequencies other than 0 and n/2 stand for a conjugate pair of slices and count twice.
    frequency = torch.arange(spectrum.shape[0])
    multiplicity = torch.where((frequency == 0) | (2 * frequency == stack.shape[0]), 1.0, 2.0)[:, None].to(
        spectrum.device
    )
    columns = _largest((spectrum.norm(dim=1) * multiplicity).sum(0), rank)
    rows = _largest((spectrum[:, :, columns].norm(dim=2) * multiplicity).sum(0), rank)
    return rows, columns


def random_rows_and_columns(stack: Tensor, rank: int, seed: int) -> tuple[Tensor, Tensor]:
    """Choose r rows and r columns at random: the control that shows what the selection rule is worth."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = (torch.randperm(stack.shape[axis], generator=generator)[:rank].sort().values for axis in (1, 2))
    return rows, columns


def cur_factors(stack: Tensor, rows: Tensor, columns: Tensor, mode: FactorMode = "relative") -> Factors:
    """Form the frozen factors C = W[:, :, J] and R = W[:, I, :] of a stack.

    `raw` takes them as they are (the paper). `orthonormal` replaces each Fourier slice of C and R by an orthonormal
    basis of its columns and rows: the reachable changes are the same, but one learning rate then moves every stack by
    the same amount. `relative` also multiplies by the norm of the stack, so that one learning rate moves every stack
    by the same part of its weights: the norm of U is that of the change beside that of the weights.

    Args:
        stack: (n, p, q), real.
        rows: I, (r,).
        columns: J, (r,).
        mode: `relative`, `orthonormal` or `raw`.
    """
    # float64, so that the basis does not depend on the linear algebra library of the machine.
    c, r = (torch.fft.rfft(part.double(), dim=0) for part in (stack[:, :, columns], stack[:, rows, :]))
    if mode != "raw":
        c = _orthonormal_columns(c)
        r = _orthonormal_columns(r.mH).mH
    if mode == "relative":
        norm = stack.double().norm()
        c = c * torch.where(norm > 0, norm, torch.ones_like(norm))
    return Factors(c.to(torch.complex64).contiguous(), r.to(torch.complex64).contiguous())


def low_rank_change(factors: Factors, core: Tensor) -> Tensor:
    """Compute C * U * R.

    Args:
        factors: C and R in the Fourier domain.
        core: U, (n, r, r), real.

    Returns:
        (n, p, q), real. A real U keeps conjugate symmetry, so half of the spectrum is enough.
    """
    if core.shape[0] <= 2:
        # Fourier slices of one or two matrices are real: no complex arithmetic is needed.
        spectrum = torch.fft.rfft(core, dim=0).real
        product = factors.columns.real @ spectrum @ factors.rows.real
        return product if core.shape[0] == 1 else torch.stack([product[0] + product[1], product[0] - product[1]]) / 2
    left = factors.columns @ torch.fft.rfft(core, dim=0)
    # The real parts of all slices, then the imaginary parts, as real matrix products; so is the way back from the
    # Fourier domain, because a Fourier transform along the first axis of a large tensor is several times slower.
    real = torch.cat([left.real, -left.imag], 2)
    imaginary = torch.cat([left.imag, left.real], 2)
    slices = torch.cat([real, imaginary], 1) @ torch.cat([factors.rows.real, factors.rows.imag], 1)
    weights = _inverse_transform(core.shape[0], core.dtype, core.device)
    p, q = left.shape[1], slices.shape[2]
    back = torch.stack([weights.real, -weights.imag], 2).flatten(1)
    return (back @ slices.view(-1, p * q)).view(-1, p, q)


class RealFactors(NamedTuple):
    """C and R as real matrices that all layers of a stack share: (p, k) and (k, q), where k is n r or little more."""

    columns: Tensor
    rows: Tensor


def real_factors(factors: Factors) -> RealFactors:
    """Lay real and imaginary parts of all Fourier slices side by side; see `layer_blocks`."""
    columns = torch.stack([factors.columns.real, factors.columns.imag], 2).flatten(2)
    rows = torch.stack([factors.rows.real, factors.rows.imag], 1)
    return RealFactors(columns.transpose(0, 1).flatten(1), rows.flatten(0, 2))


def layer_blocks(core: Tensor) -> Tensor:
    """Say how C * U * R comes from `real_factors` layer by layer, without being formed.

    Args:
        core: U, (n, r, r), real.

    Returns:
        (n, n // 2 + 1, 2 r, 2 r), real: the change of layer s is columns @ block_diagonal(blocks[s]) @ rows.
    """
    spectrum = torch.fft.rfft(core, dim=0)
    # Re(C A R) = [C.re C.im] [[A.re, -A.im], [-A.im, -A.re]] [R.re; R.im], where A is U's slice turned by its layer.
    turned = _inverse_transform(core.shape[0], core.dtype, core.device)[:, :, None, None] * spectrum
    upper, lower = torch.cat([turned.real, -turned.imag], 3), torch.cat([-turned.imag, -turned.real], 3)
    return torch.cat([upper, lower], 2)


def apply_change(inputs: Tensor, factors: RealFactors, blocks: Tensor) -> Tensor:
    """Multiply by the changes of some layers of a stack, without forming them.

    Args:
        inputs: (..., q).
        factors: of the stack.
        blocks: of the layers, from `layer_blocks`: (layers, frequencies, 2 r, 2 r).

    Returns:
        (..., layers * p): what the layers' changes add to their outputs, one after the other.
    """
    layers, frequencies, width, _ = blocks.shape
    rows, columns = (factor.to(inputs.dtype) for factor in (factors.rows, factors.columns))
    inside = linear(inputs.reshape(-1, inputs.shape[-1]), rows).view(-1, frequencies, width)
    turned = torch.einsum("tfa,lfba->tlfb", inside, blocks.to(inside.dtype))
    added: Tensor = linear(turned.flatten(2), columns)
    return added.view(*inputs.shape[:-1], layers * columns.shape[0])


@lru_cache(maxsize=64)
def _inverse_transform(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What half a spectrum weighs in each of n layers, (n, n // 2 + 1); the real part of the weighted sum counts."""
    # On the processor, because some devices have no float64; kept, so that a step need not wait for a copy. A tensor
    # that was made in inference mode could not be used in training.
    with torch.inference_mode(False):
        frequency, layer = torch.arange(n // 2 + 1, dtype=torch.float64), torch.arange(n, dtype=torch.float64)
        pairs = torch.where((frequency == 0) | (2 * frequency == n), 1.0, 2.0).double()
        weights = torch.polar((pairs / n).expand(n, -1).contiguous(), 2 * math.pi / n * torch.outer(layer, frequency))
        return weights.to(device, torch.complex128 if dtype == torch.float64 else torch.complex64)


def _largest(scores: Tensor, count: int) -> Tensor:
    # In float32, because equal columns differ by rounding in float64, and a tie must not hang on that.
    return torch.argsort(scores.float(), descending=True, stable=True)[:count].sort().values


def _orthonormal_columns(matrix: Tensor) -> Tensor:
    q, triangle = torch.linalg.qr(matrix)
    # QR leaves the phase of each column open; a positive diagonal makes it unique.
    diagonal = torch.diagonal(triangle, dim1=-2, dim2=-1)
    phase = torch.where(diagonal.abs() > 0, diagonal / diagonal.abs().clamp_min(1e-300), torch.ones_like(diagonal))
    basis: Tensor = q * phase[..., None, :]
    return basis
