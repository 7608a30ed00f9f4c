"""TIES against the paper's three steps, entry by entry in float64."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from stages.merging.methods.ties.rule import ties
from tests.merging.models import DTYPES, array, assert_close, random_tensors


def expected(
    base: np.ndarray, values: Sequence[np.ndarray], λ: Sequence[float], thresholds: Sequence[float], scale: float
) -> np.ndarray:
    merged = base.copy()
    for place in np.ndindex(base.shape):
        vectors = [float(value[place] - base[place]) for value in values]
        kept = [v if abs(v) >= threshold else 0.0 for v, threshold in zip(vectors, thresholds, strict=True)]
        sign = 1 if sum(weight * v for weight, v in zip(λ, kept, strict=True)) >= 0 else -1
        agreeing = [(weight, v) for weight, v in zip(λ, kept, strict=True) if v * sign > 0 and weight > 0]
        if agreeing:
            merged[place] += scale * sum(weight * v for weight, v in agreeing) / sum(weight for weight, _ in agreeing)
    return merged


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [0.0, 0.4, 1.0, 1.8])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_formula(dtype: torch.dtype, scale: float, count: int) -> None:
    base, *values = random_tensors(count + 1, (20, 30), dtype, seed=count)
    λ, thresholds = [0.7, 0.4, 0.0, 1.1, 0.2][:count], [0.9, 0.0, 0.1, 1.5, float("inf")][:count]
    reference = expected(array(base), [array(value) for value in values], λ, thresholds, scale)
    assert_close(ties(base, values, λ, thresholds, scale), reference)


def test_an_entry_of_the_threshold_is_kept_and_a_smaller_one_is_not() -> None:
    base = torch.zeros(3)
    value = torch.tensor([0.5, -0.5, 0.49999997])
    assert torch.equal(ties(base, [value], [1], [0.5], 1), torch.tensor([0.5, -0.5, 0.0]))


def test_where_the_vectors_cancel_the_positive_ones_are_taken() -> None:
    base = torch.ones(1)
    assert torch.equal(ties(base, [torch.tensor([-1.0]), torch.tensor([3.0])], [1, 1], [0, 0], 1), torch.tensor([3.0]))


def test_the_election_is_weighted() -> None:
    values = [torch.tensor([-1.0]), torch.tensor([2.0]), torch.tensor([4.0])]
    assert ties(torch.zeros(1), values, [7, 1, 1], [0, 0, 0], 1).item() == -1
    assert ties(torch.zeros(1), values, [5, 1, 1], [0, 0, 0], 1).item() == 3


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_where_nothing_is_kept_the_base_stands(dtype: torch.dtype) -> None:
    base, *values = random_tensors(3, (20, 30), dtype, seed=0)
    infinite = [float("inf")] * 2
    assert torch.equal(ties(base, values, [1, 1], infinite, 0.3), base)
    assert torch.equal(ties(base, [base, base], [1, 1], [0, 0], 0.3), base)
    only_without_weight = ties(base, values, [1, 0], [float("inf"), 0], 0.3)
    assert torch.equal(only_without_weight, base)
