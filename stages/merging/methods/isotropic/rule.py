"""The isotropic merge: plain weighted averaging of parameters."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from stages.merging.methods.isotropic.options import Isotropic
from stages.merging.models import Models, Rule


def isotropic_average(values: Sequence[Tensor], coefficients: Sequence[float]) -> Tensor:
    """θ = Σ_i λ_i θ_i / Σ_i λ_i, as θ_1 plus the weighted mean of the differences from it.

    In that form models that agree give their common value back without rounding. The Fisher merge with every F equal
    (Matena & Raffel 2022, section 3.1); also known as model soup (Wortsman et al. 2022).

    Args:
        values: one tensor per model, of one shape, in the precision to compute in.
        coefficients: λ_i ≥ 0, one per model, not all zero.
    """
    total = sum(coefficients)
    first, *others = values
    merged, difference = first.clone(), torch.empty_like(first)
    for value, coefficient in zip(others, coefficients[1:], strict=True):
        merged.add_(torch.sub(value, first, out=difference), alpha=coefficient / total)
    return merged


def rule(_: Isotropic, models: Models) -> Rule:
    """Every parameter by `isotropic_average`."""

    def merged(name: str) -> Iterator[Tensor]:
        for values in models.chunks(name, models.checkpoints):
            yield isotropic_average(values, models.coefficients)

    return merged
