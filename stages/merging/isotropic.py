"""The isotropic merge: plain weighted averaging of parameters."""

from collections.abc import Iterator, Sequence

from torch import Tensor

from stages.merging.models import Models, Rule
from stages.params import Isotropic


def isotropic_average_(values: Sequence[Tensor], coefficients: Sequence[float]) -> Tensor:
    """θ = Σ_i λ_i θ_i / Σ_i λ_i, as θ_1 plus the weighted mean of the differences from it.

    In that form models that agree give their common value back without rounding. The Fisher merge with every F equal
    (Matena & Raffel 2022, section 3.1); also known as model soup (Wortsman et al. 2022).

    Args:
        values: one tensor per model, of one shape, in the precision to compute in; they are overwritten.
        coefficients: λ_i ≥ 0, one per model, not all zero.

    Returns:
        θ, in the place of θ_1.
    """
    total = sum(coefficients)
    first, *others = values
    for value in others:
        value.sub_(first)
    for difference, coefficient in zip(others, coefficients[1:], strict=True):
        first.add_(difference, alpha=coefficient / total)
    return first


def isotropic_average(values: Sequence[Tensor], coefficients: Sequence[float]) -> Tensor:
    """`isotropic_average_` that leaves the values as they are."""
    return isotropic_average_([value.clone() for value in values], coefficients)


def rule(_: Isotropic, models: Models) -> Rule:
    """Every parameter by `isotropic_average_`."""

    def merged(name: str) -> Iterator[Tensor]:
        for values in models.chunks(name, models.checkpoints):
            yield isotropic_average_(values, models.coefficients)

    return merged
