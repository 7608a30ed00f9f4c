"""The Fisher merge of a linear layer with its K-FAC Fisher, solved by conjugate gradients."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from stages.merging.methods.fisher import rule as fisher
from stages.merging.methods.kfac.options import Kfac
from stages.merging.models import Models, Rule


def kfac_average(
    values: Sequence[Tensor],
    input_factors: Sequence[Tensor],
    output_factors: Sequence[Tensor],
    coefficients: Sequence[float],
    initial: Tensor,
    damping: float,
    iterations: int,
    tolerance: float,
) -> Tensor:
    """W with Σ_i c_i G_i W A_i + δ W = Σ_i c_i G_i W_i A_i + δ W_0 (MaTS: Tam et al. 2024).

    The models' average weighted by their K-FAC Fishers A_i ⊗ G_i, with a pull of δ towards the initial W_0.
    δ is `damping` times the mean diagonal element of Σ_i c_i A_i ⊗ G_i.

    By conjugate gradients from W_0, for the difference X = W − W_0:

        Σ_i c_i G_i X A_i + δ X = Σ_i c_i G_i (W_i − W_0) A_i.

    So models that agree with W_0 leave it exactly as it is, and so do Fishers that are all zero; where no model has
    curvature W_0 stands, and few iterations stay close to it. Sums over a whole matrix are in float64.

    Args:
        values: W_i [out, in], one per model.
        input_factors: A_i [in, in], symmetric positive semidefinite.
        output_factors: G_i [out, out], symmetric positive semidefinite.
        coefficients: c_i ≥ 0, not all zero; they are divided by their sum.
        initial: W_0 [out, in], for instance the models' average.
        damping: ≥ 0.
        iterations: at most as many.
        tolerance: of the residual's norm, relative to that of the right-hand side of the equation for X.
    """
    total = sum(coefficients)
    dtype = initial.dtype
    weighted_inputs = [A.to(dtype) * (c / total) for A, c in zip(input_factors, coefficients, strict=True)]
    outputs = [G.to(dtype) for G in output_factors]
    factors = list(zip(outputs, weighted_inputs, strict=True))
    δ = damping * sum(float(G.diagonal().mean() * A.diagonal().mean()) for G, A in factors)

    residual = torch.zeros_like(initial)
    for (G, A), value in zip(factors, values, strict=True):
        residual += G @ (value - initial) @ A
    return initial + _solution(factors, δ, residual, iterations, tolerance)


def _solution(
    factors: Sequence[tuple[Tensor, Tensor]], δ: float, residual: Tensor, iterations: int, tolerance: float
) -> Tensor:
    """X with Σ_i G_i X A_i + δ X = `residual`, by conjugate gradients from zero; `residual` is used up."""
    difference = torch.zeros_like(residual)
    direction = residual.clone()
    square = _dot(residual, residual)
    enough = tolerance**2 * square
    for _ in range(iterations):
        if square <= enough:
            break
        image = δ * direction
        for G, A in factors:
            image += G @ direction @ A
        curvature = _dot(direction, image)
        if curvature <= 0:  # only rounding is left of a direction in which no model has curvature
            break
        step = square / curvature
        difference.add_(direction, alpha=step)
        residual.sub_(image, alpha=step)
        previous, square = square, _dot(residual, residual)
        direction.mul_(square / previous).add_(residual)
    return difference


def _dot(first: Tensor, second: Tensor) -> float:
    return float((first * second).sum(dtype=torch.float64))


def rule(options: Kfac, models: Models) -> Rule:
    """Linear weights with K-FAC factors by `kfac_average` from the Fisher merge; the others by that alone."""
    weighted = fisher.rule(options, models)
    coefficients = fisher.fisher_coefficients(options, models)

    def merged(name: str) -> Iterator[Tensor]:
        if not models.has_factor("kfac", name):
            yield from weighted(name)
            return
        start = torch.cat([piece.clone() for piece in weighted(name)])
        merged = kfac_average(
            models.matrices("kfac", name),
            models.factors("kfac", "input", name),
            models.factors("kfac", "output", name),
            coefficients,
            models.as_matrix("kfac", name, start),
            options.damping,
            options.iterations,
            options.tolerance,
        )
        yield models.as_stored("kfac", name, merged)

    return merged
