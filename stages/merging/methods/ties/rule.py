"""TIES: task vectors without their small entries, averaged where their signs agree with the elected one."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from stages.merging.methods.ties.options import Ties
from stages.merging.methods.ties.trimming import kth_largest_magnitude
from stages.merging.models import Models, Rule


def ties(
    base: Tensor,
    values: Sequence[Tensor],
    coefficients: Sequence[float],
    thresholds: Sequence[float],
    scale: float,
) -> Tensor:
    """θ = θ_b + scale · the weighted mean of those trimmed task vectors whose sign is the elected one.

    Entry by entry, as in Yadav et al. 2023, algorithm 1 (there with equal λ): task vectors τ_i = θ_i − θ_b keep the
    entries of |τ_i| ≥ threshold_i; the sign of Σ_i λ_i τ_i over what was kept is elected, + if the sum is zero; and
    Σ λ_i τ_i / Σ λ_i runs over the models whose kept entry has that sign, and is zero where there is none.

    As in task arithmetic, the mean is written as the first such model plus weighted differences from it, so that models
    that agree give, untrimmed and for a scale of 1, their common value back without rounding.

    Args:
        base: θ_b, in the precision to compute in.
        values: θ_i, one tensor per model, of the base's shape.
        coefficients: λ_i ≥ 0, one per model, not all zero.
        thresholds: the smallest magnitude that is kept, one per model, in float32: see `kth_largest_magnitude`.
        scale: λ in the paper: how far to go from the base.
    """
    # Masks are kept as 0 and 1 of the values' type, and lerp takes one of two values by them: exact, and several times
    # faster than boolean masks and torch.where.
    vectors = [value - base for value in values]
    elected = torch.zeros_like(base)
    for vector, coefficient, threshold in zip(vectors, coefficients, thresholds, strict=True):
        vector.mul_(vector.abs().float().ge_(threshold))  # as the threshold was found
        elected.add_(vector, alpha=coefficient)
    sign = elected.ge_(0).mul_(2).sub_(1)
    # Models without weight take no part in any mean, or one over them alone would be 0/0.
    agreeing = [
        (value, coefficient, vector.mul_(sign).gt_(0))
        for value, coefficient, vector in zip(values, coefficients, vectors, strict=True)
        if coefficient > 0
    ]
    first = base
    for value, _, agrees in reversed(agreeing):
        first = torch.lerp(first, value, agrees)
    total, shift = torch.zeros_like(base), torch.zeros_like(base)
    for value, coefficient, agrees in agreeing:
        weight = agrees.mul_(coefficient)
        shift.addcmul_(torch.sub(value, first), weight)
        total.add_(weight)
    shift.div_(total + (total == 0))
    return torch.lerp(base, first, scale).add_(shift, alpha=scale)


def rule(options: Ties, models: Models) -> Rule:
    """Every parameter that the base has by `ties`; the others are averaged."""
    every = range(len(models.checkpoints))
    together = (
        [_threshold(models, i, list(filter(models.base_has, models.parts(i))), options.density) for i in every]
        if options.trim == "global"
        else None
    )

    def merged(name: str) -> Iterator[Tensor]:
        thresholds = together or [_threshold(models, i, [name], options.density) for i in every]
        for base, values in models.base_and_values(name):
            yield ties(base, values, models.coefficients, thresholds, options.scale)

    return models.where_the_base_has_it(merged)


def _threshold(models: Models, model: int, names: Sequence[str], density: float) -> float:
    """The magnitude that the share `density` of a model's task vector reaches, over the named tensors together."""

    def vectors() -> Iterator[Tensor]:
        for name in names:
            for base, (value,) in models.base_and_values(name, [model]):
                yield (value - base).float()

    elements = sum(models.checkpoints[model].specs[name].elements for name in names)
    key = ("threshold", models.names[model], *names)
    return models.once(key, lambda: kth_largest_magnitude(vectors, max(1, int(density * elements))))
