"""What all merge methods have in common."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from stages.merging.methods.dare.rule import dare
from stages.merging.methods.isotropic.rule import isotropic_average
from stages.merging.methods.kfac.rule import kfac_average
from stages.merging.methods.regmean.rule import regmean
from stages.merging.methods.task_arithmetic.rule import task_arithmetic
from stages.merging.methods.ties.rule import ties
from stages.merging.methods.uncertainty.rule import uncertainty_average
from tests.merging.models import DTYPES, Models, assert_close


def merge_kfac(models: Models) -> Tensor:
    initial = isotropic_average(models.values, models.coefficients)
    factors = models.input_factors, models.output_factors
    return kfac_average(models.values, *factors, models.coefficients, initial, 1e-3, iterations=500, tolerance=1e-14)


def merge_uncertainty(models: Models) -> Tensor:
    return uncertainty_average(
        models.base, models.values, models.fishers, models.prior, models.coefficients, models.scale, delta=0.1
    )


METHODS: dict[str, Callable[[Models], Tensor]] = {
    "isotropic": lambda models: isotropic_average(models.values, models.coefficients),
    "task-arithmetic": lambda models: task_arithmetic(models.base, models.values, models.coefficients, models.scale),
    "ties": lambda models: ties(models.base, models.values, models.coefficients, models.thresholds, models.scale),
    "dare": lambda models: dare(
        models.base, models.values, models.coefficients, models.masks, models.density, models.scale
    ),
    "regmean": lambda models: regmean(models.values, models.input_factors, models.coefficients, alpha=0.9),
    "kfac": merge_kfac,
    "uncertainty": merge_uncertainty,
}

ELEMENTWISE = {name: method for name, method in METHODS.items() if name not in ("regmean", "kfac")}

each_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
each_elementwise_method = pytest.mark.parametrize("method", ELEMENTWISE.values(), ids=ELEMENTWISE)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
Method = Callable[[Models], Tensor]


@each_method
@each_dtype
def test_returns_a_new_tensor_and_leaves_its_inputs_alone(method: Method, dtype: torch.dtype) -> None:
    for count in (1, 3):
        models = Models.random(count, dtype)
        before = [tensor.clone() for tensor in models.tensors()]
        merged = method(models)
        assert merged.dtype == dtype
        assert merged.shape == models.base.shape
        merged.add_(1)
        assert all(map(torch.equal, models.tensors(), before))


@each_method
@each_dtype
def test_models_that_agree_give_their_value_back(method: Method, dtype: torch.dtype) -> None:
    for count in (1, 2, 4):
        models = Models.random(count, dtype).agreeing()
        assert torch.equal(method(models), models.values[0])


@each_method
@each_dtype
def test_the_scale_of_the_coefficients_does_not_matter(method: Method, dtype: torch.dtype) -> None:
    models = Models.random(3, dtype)
    larger = replace(models, coefficients=[7.3 * λ for λ in models.coefficients])
    assert_close(method(larger), method(models))


@each_method
@each_dtype
def test_the_order_of_the_models_does_not_matter(method: Method, dtype: torch.dtype) -> None:
    models = Models.random(4, dtype)
    assert_close(method(models.reordered([2, 0, 3, 1])), method(models))


@each_method
@each_dtype
def test_a_model_without_weight_takes_no_part(method: Method, dtype: torch.dtype) -> None:
    models = Models.random(3, dtype)
    for without in range(3):
        λ = [0.0 if i == without else λ for i, λ in enumerate(models.coefficients)]
        others = models.reordered([i for i in range(3) if i != without])
        assert_close(method(replace(models, coefficients=λ)), method(others))


@each_elementwise_method
@each_dtype
def test_chunks_are_merged_as_the_whole(method: Method, dtype: torch.dtype) -> None:
    models = Models.random(3, dtype)
    chunks = [
        method(
            replace(
                models,
                base=models.base[rows],
                prior=models.prior[rows],
                values=[value[rows] for value in models.values],
                fishers=[fisher[rows] for fisher in models.fishers],
                masks=[mask[rows] for mask in models.masks],
            )
        )
        for rows in (slice(0, 1), slice(1, 4), slice(4, None))
    ]
    assert torch.equal(torch.cat(chunks), method(models))
