"""The Fisher merge: averaging weighted by each model's diagonal Fisher, per parameter."""

from collections.abc import Sequence

import torch
from torch import Tensor


def fisher_average(
    values: Sequence[Tensor], fishers: Sequence[Tensor], coefficients: Sequence[float], floors: Sequence[float]
) -> Tensor:
    """θ_j = Σ_i c_i max(F_ij, floor_i) θ_ij / Σ_i c_i max(F_ij, floor_i) (Matena & Raffel 2022, eq. 5).

    Computed as θ_1 plus the weighted mean of the differences from it, so that models that agree give their common value
    back without rounding. Where every weight is zero, the first model's value stands.

    Args:
        values: θ_i, one tensor per model, of one shape, in the precision to compute in; the target first.
        fishers: F_i ≥ 0, of the same shape.
        coefficients: c_i ≥ 0: λ_i, divided by ‖F_i‖₂ where Fishers are normalised.
        floors: per model; their reference code floors the target's at 1e-6 and the others' not at all.
    """
    total = _weight(fishers[0], coefficients[0], floors[0])
    shift = torch.zeros_like(values[0])
    for value, fisher, coefficient, floor in zip(values[1:], fishers[1:], coefficients[1:], floors[1:], strict=True):
        weight = _weight(fisher, coefficient, floor)
        shift.addcmul_(torch.sub(value, values[0]), weight)
        total.add_(weight)
    # A shift is only ever zero where the total is: dividing it by anything else gives 0 there.
    return shift.div_(torch.where(total == 0, 1, total)).add_(values[0])


def _weight(fisher: Tensor, coefficient: float, floor: float) -> Tensor:
    return torch.clamp_min(fisher, floor).mul_(coefficient)
