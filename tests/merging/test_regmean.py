"""RegMean against numpy's least squares on the activations themselves, in float64."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from stages.merging.methods.isotropic.rule import isotropic_average
from stages.merging.methods.regmean.rule import regmean
from tests.merging.models import DTYPES, array, assert_close, gram, random_tensors

λ = [0.5, 0.2, 0.9]


def least_squares(features: Sequence[Tensor], values: Sequence[Tensor], coefficients: Sequence[float]) -> np.ndarray:
    """The W nearest to the λ-average of those that minimise Σ λ_i mean ‖W x − W_i x‖² over the features' rows x."""
    weights = [np.sqrt(c / len(x)) for c, x in zip(coefficients, features, strict=True)]
    average = sum(c * array(value) for c, value in zip(coefficients, values, strict=True)) / sum(coefficients)
    rows = np.concatenate([weight * array(x) for weight, x in zip(weights, features, strict=True)])
    targets = np.concatenate(
        [
            weight * array(x) @ (array(value) - average).T
            for weight, x, value in zip(weights, features, values, strict=True)
        ]
    )
    return average + np.linalg.lstsq(rows, targets, rcond=1e-10)[0].T


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_minimises_the_distance_of_the_outputs(dtype: torch.dtype) -> None:
    features = [random_tensors(1, (rows, 12), dtype, seed=rows)[0] for rows in (30, 50, 40)]
    values = random_tensors(3, (7, 12), dtype, seed=1)
    merged = regmean(values, [gram(x) for x in features], λ, alpha=1.0)
    assert merged.dtype == dtype
    assert_close(merged, least_squares(features, values, λ))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.9])
def test_formula_with_smaller_off_diagonal_elements(dtype: torch.dtype, alpha: float) -> None:
    # Fewer rows than columns: only the diagonals make the sum regular.
    features = random_tensors(3, (3, 12), dtype, seed=0)
    values = random_tensors(3, (7, 12), dtype, seed=1)
    left, right = np.zeros((12, 12)), np.zeros((12, 7))
    for c, x, value in zip(λ, features, values, strict=True):
        A = array(x).T @ array(x) / 3
        scaled = alpha * A + (1 - alpha) * np.diag(np.diag(A))
        left += c * scaled
        right += c * scaled @ array(value).T
    assert_close(regmean(values, [gram(x) for x in features], λ, alpha), np.linalg.solve(left, right).T)


def test_directions_in_which_there_are_no_inputs_keep_the_average() -> None:
    features = random_tensors(3, (3, 12), torch.float64, seed=0)  # of rank 9 together
    values = random_tensors(3, (7, 12), torch.float64, seed=1)
    merged = regmean(values, [gram(x) for x in features], λ, alpha=1.0)
    assert_close(merged, least_squares(features, values, λ), units=1e5)
    without_inputs = np.linalg.svd(np.concatenate([array(x) for x in features]))[2][9:].T
    average = array(isotropic_average(values, λ))
    np.testing.assert_allclose(array(merged) @ without_inputs, average @ without_inputs, atol=1e-9)


def test_inputs_that_are_singular_up_to_rounding() -> None:
    features = random_tensors(3, (30, 100), torch.float64, seed=0)
    values = random_tensors(3, (7, 100), torch.float32, seed=1)
    grams = [gram(x).float() for x in features]  # sums with float32's rounding
    merged = regmean(values, grams, λ, alpha=1.0)
    np.testing.assert_allclose(array(merged), least_squares(features, values, λ), atol=1e-3)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("alpha", [0.9, 1.0])
def test_inputs_that_are_never_active_keep_the_average(dtype: torch.dtype, alpha: float) -> None:
    features = random_tensors(3, (40, 12), dtype, seed=0)
    for x in features:
        x[:, [2, 7]] = 0
    values = random_tensors(3, (7, 12), dtype, seed=1)
    merged = regmean(values, [gram(x) for x in features], λ, alpha)
    average = isotropic_average([value.double() for value in values], λ).to(dtype)
    assert torch.equal(merged[:, [2, 7]], average[:, [2, 7]])
    if alpha == 1:
        assert_close(merged, least_squares(features, values, λ))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_without_any_inputs_the_average_stands(dtype: torch.dtype) -> None:
    values = random_tensors(3, (7, 12), dtype, seed=1)
    merged = regmean(values, [torch.zeros(12, 12, dtype=dtype)] * 3, λ, alpha=0.9)
    assert torch.equal(merged, isotropic_average([value.double() for value in values], λ).to(dtype))


@pytest.mark.parametrize("rows", [40, 3])
def test_inputs_of_very_different_size(rows: int) -> None:
    sizes = 10.0 ** torch.linspace(-5, 5, 12, dtype=torch.float64)
    features = [x * sizes for x in random_tensors(3, (rows, 12), torch.float64, seed=0)]
    values = [value / sizes for value in random_tensors(3, (7, 12), torch.float64, seed=1)]
    merged = regmean(values, [gram(x) for x in features], λ, alpha=1.0)
    expected = least_squares([x / sizes for x in features], [value * sizes for value in values], λ)
    # What is determined is the outputs on the inputs; without any in a direction, the sizes decide what is nearest.
    for x in features:
        np.testing.assert_allclose(array(x) @ array(merged).T, array(x / sizes) @ expected.T, atol=1e-6)


def test_where_only_one_model_has_inputs_it_decides() -> None:
    values = random_tensors(2, (7, 12), torch.float64, seed=1)
    features = random_tensors(1, (40, 12), torch.float64, seed=0)[0]
    merged = regmean(values, [torch.zeros(12, 12, dtype=torch.float64), gram(features)], [1, 1], alpha=0.9)
    assert_close(merged, values[1], units=1e4)
