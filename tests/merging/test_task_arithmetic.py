"""Task arithmetic against the formula in float64."""

import pytest
import torch

from stages.merging.methods.isotropic.rule import isotropic_average
from stages.merging.methods.task_arithmetic.rule import task_arithmetic
from tests.merging.models import DTYPES, array, assert_close, random_tensors

λ = [0.5, 0.0, 1.5]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [0.0, 0.3, 1.0, 2.4, -0.5])
def test_formula(dtype: torch.dtype, scale: float) -> None:
    base, *values = random_tensors(4, (40, 30), dtype, seed=0)
    vectors = [array(value) - array(base) for value in values]
    expected = array(base) + scale * (0.25 * vectors[0] + 0.75 * vectors[2])
    assert_close(task_arithmetic(base, values, λ, scale), expected)


def test_adding_task_vectors_up_is_a_scale_of_their_number() -> None:
    base, *values = random_tensors(4, (40, 30), torch.float64, seed=0)
    expected = base + 0.4 * sum(value - base for value in values)
    assert_close(task_arithmetic(base, values, [1, 1, 1], scale=0.4 * 3), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scale_0_is_the_base_and_scale_1_the_average(dtype: torch.dtype) -> None:
    base, *values = random_tensors(4, (40, 30), dtype, seed=0)
    assert torch.equal(task_arithmetic(base, values, λ, 0), base)
    assert torch.equal(task_arithmetic(base, values, λ, 1), isotropic_average(values, λ))
    assert torch.equal(task_arithmetic(base, [base] * 3, λ, 0.7), base)
