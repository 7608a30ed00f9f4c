"""The Fisher merge: averaging weighted by each model's diagonal Fisher, per parameter."""

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from stages.merging.methods.fisher.options import FisherWeighted
from stages.merging.models import Models, Rule
from stages.merging.streaming import chunks, on_all_cores
from stages.running.errors import DamagedError, InputError
from stages.storage.statistic_files import StatisticFiles, bad_value
from stages.storage.statistics import SUMMARY_TOLERANCE

_SMALL = 4096  # values: of tensors whose norms are compared with the card's in every merge


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
    first = values[0]
    total = fishers[0].clamp_min(floors[0]).mul_(coefficients[0])
    shift, weight, difference = torch.zeros_like(first), torch.empty_like(first), torch.empty_like(first)
    for value, fisher, coefficient, floor in zip(values[1:], fishers[1:], coefficients[1:], floors[1:], strict=True):
        torch.clamp_min(fisher, floor, out=weight)
        shift.addcmul_(torch.sub(value, first, out=difference), weight, value=coefficient)
        total.add_(weight, alpha=coefficient)
    if floors[0] * coefficients[0] < (least := torch.finfo(total.dtype).tiny):
        total.clamp_min_(least)  # where the total is zero so is the shift, and zero over this is zero
    return torch.addcdiv(first, shift, total, out=difference)


def fisher_coefficients(options: FisherWeighted, models: Models) -> list[float]:
    """c_i: λ_i, divided by ‖F_i‖₂ if the options say so."""
    names = sorted(models.averaged)
    norms = [
        models.once(("norm", model, *names), lambda files=files: fisher_norm(files, names))  # type: ignore[misc]
        for model, files in zip(models.names, models.statistics["diagonal"], strict=True)
    ]
    if options.normalize == "none":
        return list(models.coefficients)
    return [λ / norm for λ, norm in zip(models.coefficients, norms, strict=True)]


def floors(options: FisherWeighted, models: Models) -> list[float]:
    """Per model: the target's floor, and the others'."""
    return [options.floor if i == 0 or not options.favor_target else 0.0 for i in range(len(models.coefficients))]


def rule(options: FisherWeighted, models: Models) -> Rule:
    """Every parameter by `fisher_average`."""
    fishers = [statistic.tensors for statistic in models.statistics["diagonal"]]
    coefficients, least = fisher_coefficients(options, models), floors(options, models)

    def merged(name: str) -> Iterator[Tensor]:
        for both in models.chunks(name, [*models.checkpoints, *fishers]):
            yield fisher_average(both[: len(fishers)], both[len(fishers) :], coefficients, least)

    return merged


def fisher_norm(fisher: StatisticFiles, names: Sequence[str]) -> float:
    """‖F‖₂ over the named tensors: from the card where it has the norms under a seal, else summed in float64.

    Raises:
        InputError: all entries are zero; an entry that is read is negative or not finite; or the card says another norm
            than a small tensor has.
    """
    known = {name: fisher.norm(name) for name in names}
    norms = [norm for norm in known.values() if norm is not None]
    if len(norms) < len(names):
        norms = list(on_all_cores(lambda name: _tensor_norm(fisher, name), names))
    else:
        _spot_check(fisher, dict(zip(names, norms, strict=True)))
    norm = math.hypot(*norms)
    if names and norm == 0:
        raise InputError(
            f"{fisher.tensors.file}: is zero everywhere; the model's outputs do not depend on its parameters"
        )
    return norm or 1.0


def _spot_check(fisher: StatisticFiles, norms: Mapping[str, float]) -> None:
    """Refuse a card whose norms are not those of the small tensors, which cost nothing to read.

    `stages.estimation.verification` compares all of them, where a Fisher comes from elsewhere.
    """
    for name, norm in norms.items():
        if fisher.tensors.specs[name].elements <= _SMALL:
            found = _tensor_norm(fisher, name)
            if not math.isclose(norm, found, rel_tol=SUMMARY_TOLERANCE, abs_tol=torch.finfo(torch.float32).tiny):
                raise DamagedError(
                    f"{fisher.tensors.file}: its contents are not what {fisher.card_file.name} says: the norm of "
                    f"{name} is {found:.6g}, not {norm:.6g}",
                    fisher.tensors.directory,
                )


def _tensor_norm(fisher: StatisticFiles, name: str) -> float:
    norms = []
    for (chunk,) in chunks([(fisher.tensors, name)], torch.float32):
        if chunk.numel():
            low, high = torch.aminmax(chunk)
            if not (low >= 0 and torch.isfinite(high)):
                raise InputError(
                    f"{fisher.tensors.file}: tensor {name} has {bad_value(chunk)} entry; estimate this Fisher again"
                )
            norms.append(float(torch.linalg.vector_norm(chunk, dtype=torch.float64)))
    return math.hypot(*norms)
