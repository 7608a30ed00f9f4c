"""Uncertainty-based gradient matching against the paper's formula in float64."""

import numpy as np
import pytest
import torch
from torch import Tensor

from stages.merging.methods.fisher.rule import fisher_average
from stages.merging.methods.isotropic.rule import isotropic_average
from stages.merging.methods.task_arithmetic.rule import task_arithmetic
from stages.merging.methods.uncertainty.rule import uncertainty_average
from tests.merging.models import DTYPES, array, assert_close, random_tensors

λ = [0.5, 0.2, 0.9]


class Layer:
    """A tensor in three models and their base, with Fishers over ten orders of magnitude and some zeros."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.base, *self.values = random_tensors(4, (20, 30), dtype, seed=0)
        magnitudes = random_tensors(4, (20, 30), torch.float64, seed=1)
        self.prior, *self.fishers = [(10 ** (3 * x - 6) * (x != 0)).to(dtype) for x in magnitudes]

    def merge(self, prior: Tensor | None, scale: float, delta: float) -> Tensor:
        return uncertainty_average(self.base, self.values, self.fishers, prior, λ, scale, delta)

    def expected(self, prior: Tensor | None, scale: float, delta: float) -> np.ndarray:
        α = [scale * weight / sum(λ) for weight in λ]
        H0 = delta + (array(prior) if prior is not None else np.zeros((20, 30)))
        H = H0 + sum(a * array(fisher) for a, fisher in zip(α, self.fishers, strict=True))
        return array(self.base) + sum(
            a * (H0 + array(fisher)) / H * (array(value) - array(self.base))
            for a, fisher, value in zip(α, self.fishers, self.values, strict=True)
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("delta", [1e-9, 1e-3])
@pytest.mark.parametrize("with_prior", [True, False])
def test_formula(dtype: torch.dtype, scale: float, delta: float, with_prior: bool) -> None:
    layer = Layer(dtype)
    prior = layer.prior if with_prior else None
    assert_close(layer.merge(prior, scale, delta), layer.expected(prior, scale, delta))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_for_a_scale_of_1_it_is_the_fisher_merge_with_the_prior_added(dtype: torch.dtype) -> None:
    layer = Layer(dtype)
    fishers = [fisher + (layer.prior + 1e-6) for fisher in layer.fishers]
    assert_close(layer.merge(layer.prior, 1, 1e-6), fisher_average(layer.values, fishers, λ, [0, 0, 0]))
    layer.base += 1
    assert_close(layer.merge(layer.prior, 1, 1e-6), fisher_average(layer.values, fishers, λ, [0, 0, 0]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [0.4, 2.0])
def test_without_the_models_fishers_it_is_task_arithmetic(dtype: torch.dtype, scale: float) -> None:
    layer = Layer(dtype)
    layer.fishers = [torch.zeros_like(fisher) for fisher in layer.fishers]
    assert_close(layer.merge(None, scale, 1e-3), task_arithmetic(layer.base, layer.values, λ, scale))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [0.4, 1.0, 2.0])
def test_where_there_is_no_curvature_the_average_stands(dtype: torch.dtype, scale: float) -> None:
    layer = Layer(dtype)
    layer.prior[:10] = 0
    for fisher in layer.fishers:
        fisher[:10] = 0
    merged = layer.merge(layer.prior, scale, 0)
    assert torch.isfinite(merged).all()
    assert torch.equal(merged[:10], isotropic_average(layer.values, λ)[:10])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scale_0_is_the_base(dtype: torch.dtype) -> None:
    layer = Layer(dtype)
    assert_close(layer.merge(layer.prior, 0, 1e-9), layer.base)


def test_models_that_are_the_base_give_it_back() -> None:
    layer = Layer(torch.float32)
    layer.values = [layer.base.clone() for _ in range(3)]
    assert torch.equal(layer.merge(layer.prior, 0.7, 1e-9), layer.base)
