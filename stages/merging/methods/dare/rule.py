"""DARE: task vectors of which a random part is dropped and the rest scaled up."""

import hashlib
import json
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from stages.merging.methods.dare.options import Dare
from stages.merging.methods.task_arithmetic.rule import task_arithmetic
from stages.merging.models import Models, Rule


def dare(
    base: Tensor,
    values: Sequence[Tensor],
    coefficients: Sequence[float],
    masks: Sequence[Tensor],
    density: float,
    scale: float,
) -> Tensor:
    """θ = θ_b + scale · Σ_i λ_i m_i (θ_i − θ_b) / (density · Σ_i λ_i) (Yu et al. 2024, section 3).

    That is task arithmetic on models that have the base's value where m_i is zero, going further by 1 / density. Its
    expectation over random masks is task arithmetic on the models as they are.

    Args:
        base: θ_b, in the precision to compute in.
        values: θ_i, one tensor per model, of the base's shape.
        coefficients: λ_i ≥ 0, one per model, not all zero.
        masks: m_i, boolean, of the same shape: what of each task vector is kept.
        density: the probability with which the masks keep an entry, 0 < density ≤ 1; 1 − p in the paper.
        scale: how far to go from the base.
    """
    # A weight of 0 or 1 takes one of the two exactly, several times faster than torch.where.
    dropped = [torch.lerp(base, value, mask.to(base.dtype)) for value, mask in zip(values, masks, strict=True)]
    return task_arithmetic(base, dropped, coefficients, scale / density)


def drop_mask(generator: np.random.Generator, values: int, density: float) -> Tensor:
    """A mask of `values` booleans, each True with probability `density` to 2⁻³³.

    It takes 32 bits of the generator per entry, so a tensor's mask is the same drawn at once or in chunks, if all of
    these but the last have an even number of entries.
    """
    # Raw bits, since numpy keeps a bit generator's stream between versions, but not what its distributions make of it.
    bits = generator.bit_generator.random_raw((values + 1) // 2).astype("<u8", copy=False).view("<u4")[:values]
    return torch.from_numpy(bits < round(density * 2**32))


def mask_generator(seed: int, model: str, tensor: str) -> np.random.Generator:
    """The generator of one model's mask of one tensor: a function of these three, whatever is drawn before it."""
    digest = hashlib.sha256(json.dumps([seed, model, tensor]).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def rule(options: Dare, models: Models) -> Rule:
    """Every parameter that the base has by `dare`; the others are averaged."""

    def merged(name: str) -> Iterator[Tensor]:
        generators = [mask_generator(options.seed, model, name) for model in models.names]
        for base, values in models.base_and_values(name):
            masks = [drop_mask(generator, base.numel(), options.density) for generator in generators]
            yield dare(base, values, models.coefficients, masks, options.density, options.scale)

    return models.where_the_base_has_it(merged)
