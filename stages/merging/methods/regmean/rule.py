"""RegMean: the linear layer that comes closest to every model's outputs on that model's inputs."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from stages.merging.methods.isotropic import rule as isotropic
from stages.merging.methods.isotropic.options import Isotropic
from stages.merging.methods.isotropic.rule import isotropic_average
from stages.merging.methods.regmean.options import Regmean
from stages.merging.models import Models, Rule


def regmean(values: Sequence[Tensor], grams: Sequence[Tensor], coefficients: Sequence[float], alpha: float) -> Tensor:
    """Wᵀ = (Σ_i λ_i Ã_i)⁻¹ Σ_i λ_i Ã_i W_iᵀ with Ã = α A + (1 − α) diag(A) (Jin et al. 2023, eq. 3).

    For α = 1 it minimises Σ_i λ_i E ‖W x_i − W_i x_i‖² over x_i, the inputs of model i. The paper's A_i are sums over a
    model's inputs, not means; with means it is λ alone that weighs the models.

    Solved for the difference from the λ-average, so that models that agree give their common value back without
    rounding, and the average stands in directions that no model's inputs have a part in. The computation is in float64.

    Args:
        values: W_i [out, in], one per model.
        grams: A_i [in, in], the mean of x xᵀ over the model's inputs, in the type in which it was summed: what its
            rounding can amount to is not taken as a direction of the inputs.
        coefficients: λ_i ≥ 0, one per model, not all zero.
        alpha: what is left of the off-diagonal elements, 0 ≤ α ≤ 1.
    """
    total = sum(coefficients)
    average = isotropic_average([value.double() for value in values], coefficients)
    matrix, right = torch.zeros_like(grams[0], dtype=torch.float64), torch.zeros_like(average)
    for value, gram, coefficient in zip(values, grams, coefficients, strict=True):
        share, exact = coefficient / total, gram.double()
        matrix.add_(exact, alpha=share)
        difference = value.double() - average
        right.add_(difference @ exact, alpha=share * alpha)
        right.add_(difference * exact.diagonal(), alpha=share * (1 - alpha))
    matrix = torch.lerp(matrix.diagonal().diag(), matrix, alpha)
    resolution = len(matrix) * torch.finfo(grams[0].dtype).eps
    return average.add_(_solve(right, matrix, resolution)).to(values[0].dtype)


def _solve(right: Tensor, matrix: Tensor, resolution: float) -> Tensor:
    """The smallest X [out, in] for which X M comes closest to R, for a symmetric positive semidefinite M.

    Args:
        right: R [out, in], of which only the part in M's range matters.
        matrix: M [in, in].
        resolution: the eigenvalue below which one is taken as zero, once M's diagonal has been scaled to 1.
    """
    # An input that is never active has a row and column of zeros, and a column of zeros in R: with a one on the
    # diagonal its part of X is zero. All other ways to be singular are left to the eigenvalues.
    diagonal = matrix.diagonal()
    scales = torch.where(diagonal > 0, diagonal, 1).sqrt()
    scaled = (matrix / scales / scales[:, None]).fill_diagonal_(1)
    factor, failed = torch.linalg.cholesky_ex(scaled)
    if failed == 0 and factor.diagonal().square().min() > resolution:
        return torch.cholesky_solve((right / scales).T, factor).T / scales
    eigenvalues, eigenvectors = torch.linalg.eigh(scaled)
    kept = eigenvalues > resolution
    root = eigenvectors[:, kept] * eigenvalues[kept].sqrt() * scales[:, None]  # M = root rootᵀ
    inverse = torch.linalg.pinv(root)
    return right @ inverse.T @ inverse


def rule(options: Regmean, models: Models) -> Rule:
    """Linear weights with Gram matrices by `regmean`; the other parameters are averaged."""
    averaged = isotropic.rule(Isotropic(), models)

    def merged(name: str) -> Iterator[Tensor]:
        if not models.has_factor("gram", name):
            yield from averaged(name)
            return
        grams = models.factors("gram", "input", name)
        merged = regmean(models.matrices("gram", name), grams, models.coefficients, options.alpha)
        yield models.as_stored("gram", name, merged)

    return merged
