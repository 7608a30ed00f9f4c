"""Task arithmetic: the base model plus a multiple of the mean task vector."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from stages.merging.methods.task_arithmetic.options import TaskArithmetic
from stages.merging.models import Models, Rule


def task_arithmetic(base: Tensor, values: Sequence[Tensor], coefficients: Sequence[float], scale: float) -> Tensor:
    """θ = θ_b + scale · Σ_i λ_i (θ_i − θ_b) / Σ_i λ_i (Ilharco et al. 2023, section 2).

    They add task vectors up, all with one λ: for N models that is scale = λ N with equal coefficients.

    Computed as θ_b + scale · (θ_1 − θ_b) plus `scale` times the weighted mean of the differences from θ_1, so that
    models that agree give, for a scale of 1, their common value back without rounding; a scale of 0 gives the base.

    Args:
        base: θ_b, in the precision to compute in.
        values: θ_i, one tensor per model, of the base's shape.
        coefficients: λ_i ≥ 0, one per model, not all zero.
        scale: how far to go from the base; 1 gives the weighted average of the models, whatever the base.
    """
    total = sum(coefficients)
    merged = torch.lerp(base, values[0], scale)  # exactly the base at 0 and exactly θ_1 at 1
    for value, coefficient in zip(values[1:], coefficients[1:], strict=True):
        merged.add_(torch.sub(value, values[0]), alpha=scale * coefficient / total)
    return merged


def rule(options: TaskArithmetic, models: Models) -> Rule:
    """Every parameter that the base has by `task_arithmetic`; the others are averaged."""

    def merged(name: str) -> Iterator[Tensor]:
        for base, values in models.base_and_values(name):
            yield task_arithmetic(base, values, models.coefficients, options.scale)

    return models.where_the_base_has_it(merged)
