"""The isotropic merge: plain weighted averaging of parameters."""

from collections.abc import Sequence

import torch
from torch import Tensor


def isotropic_average(values: Sequence[Tensor], coefficients: Sequence[float]) -> Tensor:
    """θ = Σ_i λ_i θ_i / Σ_i λ_i, as θ_1 plus the weighted mean of the differences from it.

    In that form models that agree give their common value back without rounding. The Fisher merge with every F equal
    (Matena & Raffel 2022, section 3.1); also known as model soup (Wortsman et al. 2022).

    Args:
        values: one tensor per model, of one shape, in the precision to compute in.
        coefficients: λ_i ≥ 0, one per model, not all zero.
    """
    total = sum(coefficients)
    merged = values[0].clone()
    for value, coefficient in zip(values[1:], coefficients[1:], strict=True):
        merged.add_(torch.sub(value, values[0]), alpha=coefficient / total)
    return merged
