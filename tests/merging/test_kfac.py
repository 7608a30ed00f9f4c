"""The K-FAC merge against a dense solve with Kronecker products, in float64."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from stages.merging.methods.kfac.rule import kfac_average
from tests.merging.models import DTYPES, array, assert_close, gram, random_tensors

c = [0.5, 0.2, 0.9]


class Layer:
    """A Linear's weight in three models, with K-FAC factors of some rank."""

    def __init__(self, dtype: torch.dtype, rank: int = 20) -> None:
        self.values = random_tensors(3, (4, 5), dtype, seed=0)
        self.inputs = [gram(x) for x in random_tensors(3, (rank, 5), dtype, seed=1)]
        self.outputs = [gram(x) for x in random_tensors(3, (rank, 4), dtype, seed=2)]
        self.initial = random_tensors(1, (4, 5), dtype, seed=3)[0]

    def merge(self, damping: float = 0.0, iterations: int = 1000, tolerance: float = 1e-13) -> Tensor:
        return kfac_average(self.values, self.inputs, self.outputs, c, self.initial, damping, iterations, tolerance)

    def system(self, damping: float) -> tuple[np.ndarray, np.ndarray]:
        """The matrix and the right-hand side for W, row by row."""
        fishers = [
            weight / sum(c) * np.kron(array(G), array(A))
            for weight, A, G in zip(c, self.inputs, self.outputs, strict=True)
        ]
        δ = damping * np.diag(sum(fishers)).mean()
        right = sum(F @ array(value).reshape(-1) for F, value in zip(fishers, self.values, strict=True))
        return sum(fishers) + δ * np.eye(20), right + δ * array(self.initial).reshape(-1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("damping", [0.0, 1e-3, 1.0])
def test_solves_the_dense_system(dtype: torch.dtype, damping: float) -> None:
    layer = Layer(dtype)
    merged = layer.merge(damping)
    assert merged.dtype == dtype
    assert_close(merged, np.linalg.solve(*layer.system(damping)).reshape(4, 5), units=1e4 if dtype.itemsize > 4 else 10)


def test_directions_without_curvature_keep_the_initial_weight() -> None:
    layer = Layer(torch.float64, rank=1)  # three models: a Fisher of rank 3 of 20
    merged = array(layer.merge())
    matrix, right = layer.system(0)
    initial = array(layer.initial).reshape(-1)
    expected = initial + np.linalg.lstsq(matrix, right - matrix @ initial, rcond=1e-10)[0]
    np.testing.assert_allclose(merged, expected.reshape(4, 5), atol=1e-8)


def residual(layer: Layer, merged: Tensor, damping: float) -> float:
    matrix, right = layer.system(damping)
    start = right - matrix @ array(layer.initial).reshape(-1)
    return float(np.linalg.norm(right - matrix @ array(merged).reshape(-1)) / np.linalg.norm(start))


@pytest.mark.parametrize("tolerance", [0.5, 1e-2, 1e-6])
def test_stops_at_the_tolerance(tolerance: float) -> None:
    layer = Layer(torch.float64)
    reached = layer.merge(0.01, tolerance=tolerance)
    assert residual(layer, reached, 0.01) <= tolerance * (1 + 1e-9)
    steps = next(n for n in range(1000) if torch.equal(layer.merge(0.01, n, 0), reached))
    assert residual(layer, layer.merge(0.01, steps - 1, 0), 0.01) > tolerance


def test_iterations_are_a_maximum() -> None:
    layer = Layer(torch.float64)
    assert torch.equal(layer.merge(iterations=0), layer.initial)
    assert residual(layer, layer.merge(0.1, 3, 0), 0.1) > residual(layer, layer.merge(0.1, 6, 0), 0.1) > 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_models_that_agree_with_the_initial_weight_leave_it_as_it_is(dtype: torch.dtype) -> None:
    layer = Layer(dtype)
    layer.values = [layer.initial.clone() for _ in range(3)]
    assert torch.equal(layer.merge(0.1, tolerance=0), layer.initial)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("damping", [0.0, 0.1])
def test_where_all_fishers_are_zero_the_initial_weight_stands(dtype: torch.dtype, damping: float) -> None:
    layer = Layer(dtype)
    layer.outputs = [torch.zeros_like(G) for G in layer.outputs]
    assert torch.equal(layer.merge(damping), layer.initial)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_initial_weight_is_not_written_into(dtype: torch.dtype) -> None:
    layer = Layer(dtype)
    before = layer.initial.clone()
    layer.merge().add_(1)
    layer.merge(iterations=0).add_(1)
    assert torch.equal(layer.initial, before)


def test_asking_for_more_than_rounding_allows_ends_well() -> None:
    layer = Layer(torch.float64, rank=1)
    assert torch.isfinite(layer.merge(iterations=5000, tolerance=0)).all()


def test_one_model_is_its_own_merge() -> None:
    layer = Layer(torch.float64)
    factors: tuple[Sequence[Tensor], Sequence[Tensor]] = layer.inputs[:1], layer.outputs[:1]
    merged = kfac_average(layer.values[:1], *factors, c[:1], layer.initial, 0, 1000, 1e-14)
    assert_close(merged, layer.values[0], units=1e4)
