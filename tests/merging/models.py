"""Random tensors of models to merge, for the tests of merge methods."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64)


def random_tensors(count: int, shape: Sequence[int], dtype: torch.dtype, seed: int) -> list[Tensor]:
    """Normally distributed values, with some zeros."""
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(count)]
    return [tensor.masked_fill(torch.rand(shape, generator=generator) < 0.1, 0).to(dtype) for tensor in tensors]


def gram(features: Tensor) -> Tensor:
    """The mean of x xᵀ over rows x."""
    return features.T @ features / len(features)


def array(tensor: Tensor) -> np.ndarray:
    return tensor.double().numpy()


def assert_close(actual: Tensor, expected: Tensor | np.ndarray, units: float = 100) -> None:
    """Equal to a few units of the actual tensor's rounding, relative to the largest value."""
    reference = array(expected) if isinstance(expected, Tensor) else expected
    assert actual.shape == reference.shape
    allowed = units * torch.finfo(actual.dtype).eps * max(1.0, float(np.abs(reference).max(initial=0)))
    np.testing.assert_allclose(array(actual), reference, rtol=0, atol=allowed)


@dataclass(frozen=True)
class Models:
    """What any of the methods may want to know about models with one weight [out, in]."""

    base: Tensor
    values: list[Tensor]
    coefficients: list[float]
    fishers: list[Tensor]
    input_factors: list[Tensor]
    output_factors: list[Tensor]
    masks: list[Tensor]
    thresholds: list[float]
    prior: Tensor
    density: float = 0.6
    scale: float = 0.8

    @classmethod
    def random(cls, count: int, dtype: torch.dtype) -> Self:
        outputs, inputs = 6, 5
        base, prior, *values = random_tensors(count + 2, (outputs, inputs), dtype, seed=1)
        fishers = random_tensors(count, (outputs, inputs), dtype, seed=2)
        return cls(
            base=base,
            values=values,
            coefficients=[0.5, 0.2, 0.9, 0.4][:count],
            fishers=[fisher.square() for fisher in fishers],
            input_factors=[gram(features) for features in random_tensors(count, (20, inputs), dtype, seed=3)],
            output_factors=[gram(features) for features in random_tensors(count, (20, outputs), dtype, seed=4)],
            masks=[fisher < 0.3 for fisher in fishers],
            thresholds=[0.5, 0.8, 0.2, 1.0][:count],
            prior=prior.square(),
        )

    def reordered(self, order: Sequence[int]) -> Self:
        """The same models in another order."""
        return replace(
            self,
            values=[self.values[i] for i in order],
            coefficients=[self.coefficients[i] for i in order],
            fishers=[self.fishers[i] for i in order],
            input_factors=[self.input_factors[i] for i in order],
            output_factors=[self.output_factors[i] for i in order],
            masks=[self.masks[i] for i in order],
            thresholds=[self.thresholds[i] for i in order],
        )

    def agreeing(self) -> Self:
        """All models with the first one's values, of which nothing is dropped, merged with a scale of 1."""
        return replace(
            self,
            values=[self.values[0].clone() for _ in self.values],
            masks=[torch.ones_like(mask) for mask in self.masks],
            thresholds=[0.0 for _ in self.thresholds],
            density=1.0,
            scale=1.0,
        )

    def tensors(self) -> list[Tensor]:
        lists = (self.values, self.fishers, self.input_factors, self.output_factors, self.masks)
        return [self.base, self.prior, *(tensor for tensors in lists for tensor in tensors)]
