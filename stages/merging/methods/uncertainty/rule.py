"""Uncertainty-based gradient matching: task vectors scaled by each model's Fisher relative to all of them."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from stages.merging.methods.isotropic.rule import isotropic_average
from stages.merging.methods.uncertainty.options import Uncertainty
from stages.merging.models import Models, Rule


def uncertainty_average(
    base: Tensor,
    values: Sequence[Tensor],
    fishers: Sequence[Tensor],
    prior: Tensor | None,
    coefficients: Sequence[float],
    scale: float,
    delta: float,
) -> Tensor:
    """θ = θ_b + Σ_t α_t (H_0 + H_t) / H (θ_t − θ_b), H = H_0 + Σ_t α_t H_t (Daheim et al. 2024, section 3.2).

    α_t = scale · λ_t / Σ λ; for N models, their α_t = 1 is scale = N with equal λ, as in task arithmetic, which this is
    where all H_t are zero. For a scale of 1 the weights sum to 1 and the base has no part in it: then it is the Fisher
    merge with H_0 added to every Fisher. In general the weights sum to 1 + (scale − 1) H_0 / H, hence

        θ = θ_1 + (scale − 1) H_0 / H (θ_1 − θ_b) + Σ_{t>1} α_t (H_0 + H_t) / H (θ_t − θ_1),

    which is how it is computed, so that models that agree give, for a scale of 1, their common value back without
    rounding. Where H = 0, the λ-average of the models stands.

    Args:
        base: θ_b, in the precision to compute in.
        values: θ_t, one tensor per model, of the base's shape.
        fishers: H_t ≥ 0, of the same shape; in the paper sums over a model's examples, not means.
        prior: the base's Fisher, of the same shape and in the same unit; zero if None. H_0 is this plus delta.
        coefficients: λ_t ≥ 0, one per model, not all zero.
        scale: how far to go from the base.
        delta: ≥ 0, in the Fishers' unit.
    """
    first = values[0]
    shares = [scale * coefficient / sum(coefficients) for coefficient in coefficients]
    prior = torch.full_like(base, delta) if prior is None else prior + delta
    total = prior.clone()
    for fisher, share in zip(fishers, shares, strict=True):
        total.add_(fisher, alpha=share)
    flat = (total == 0).to(total.dtype)
    total.add_(flat)  # not 0/0: what comes out there is finite, and is replaced
    merged = torch.addcmul(first, first - base, prior / total, value=scale - 1)
    for value, fisher, share in zip(values[1:], fishers[1:], shares[1:], strict=True):
        merged.addcmul_(value - first, (prior + fisher).div_(total), value=share)
    return torch.lerp(merged, isotropic_average(values, coefficients), flat)


def rule(options: Uncertainty, models: Models) -> Rule:
    """Every parameter that the base has by `uncertainty_average`; the others are averaged."""
    fishers = [statistic.tensors for statistic in models.statistics["diagonal"]]
    priors = [models.further["prior"].tensors] if "prior" in models.further else []

    def merged(name: str) -> Iterator[Tensor]:
        together = zip(models.base_and_values(name), models.chunks(name, [*fishers, *priors]), strict=True)
        for (base, values), (*own, last) in together:
            diagonals, prior = (own, last) if priors else ([*own, last], None)
            yield uncertainty_average(base, values, diagonals, prior, models.coefficients, options.scale, options.delta)

    return models.where_the_base_has_it(merged)
