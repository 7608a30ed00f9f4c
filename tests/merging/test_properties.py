"""What holds for averages of whatever tensors: hypothesis looks for those for which it does not."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import hypothesis.extra.numpy as npst
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stages.merging.methods.fisher.rule import fisher_average
from stages.merging.methods.isotropic.rule import isotropic_average
from stages.merging.methods.uncertainty.rule import uncertainty_average

EPS = float(torch.finfo(torch.float32).eps)
VALUES = 6  # entries of a tensor

# The same examples in every run.
thorough = settings(derandomize=True, deadline=None, max_examples=50)


@dataclass(frozen=True)
class Average:
    """Tensors of some models, with all that an average may want to know of them."""

    values: list[Tensor]
    fishers: list[Tensor]
    coefficients: list[float]
    base: Tensor
    prior: Tensor
    delta: float

    @property
    def rounding(self) -> float:
        """What may come of rounding: some float32 epsilons per model, of the largest magnitude."""
        return 4 * len(self.values) * EPS * max(float(value.abs().max()) for value in self.values)

    def reordered(self, order: Sequence[int]) -> "Average":
        return replace(
            self,
            values=[self.values[i] for i in order],
            fishers=[self.fishers[i] for i in order],
            coefficients=[self.coefficients[i] for i in order],
        )

    def informed(self) -> Tensor:
        """Where some model that takes part has a Fisher above zero: elsewhere a Fisher merge keeps the first's."""
        return torch.stack([fisher * λ for fisher, λ in zip(self.fishers, self.coefficients, strict=True)]).sum(0) > 0


METHODS: dict[str, Callable[[Average], Tensor]] = {
    "isotropic": lambda it: isotropic_average(it.values, it.coefficients),
    "fisher": lambda it: fisher_average(it.values, it.fishers, it.coefficients, [0.0] * len(it.values)),
    "uncertainty": lambda it: uncertainty_average(
        it.base, it.values, it.fishers, it.prior, it.coefficients, scale=1.0, delta=it.delta
    ),
}
each_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def tensors(elements: st.SearchStrategy[float]) -> st.SearchStrategy[Tensor]:
    return npst.arrays(np.float32, VALUES, elements=elements).map(torch.from_numpy)


def floats(low: float, high: float) -> st.SearchStrategy[float]:
    """Zero, or of a magnitude whose products are far from float32's limits."""
    return st.one_of(
        st.just(0.0),
        st.floats(low, high, width=32).filter(lambda x: abs(x) >= 1e-6),
    )


@st.composite
def averages(draw: st.DrawFn) -> Average:
    count = draw(st.integers(1, 5))
    fisher = tensors(floats(0, 1000))
    λ = draw(st.lists(st.one_of(st.just(0.0), st.floats(0.01, 100)), min_size=count, max_size=count).filter(any))
    return Average(
        values=[draw(tensors(floats(-1000, 1000))) for _ in range(count)],
        fishers=[draw(fisher) for _ in range(count)],
        coefficients=λ,
        base=draw(tensors(floats(-1000, 1000))),
        prior=draw(fisher),
        delta=draw(st.sampled_from([0.0, 1e-6, 1e-3, 1.0])),
    )


def assert_equal(found: Tensor, wanted: Tensor, rounding: float) -> None:
    np.testing.assert_allclose(found.double().numpy(), wanted.double().numpy(), rtol=0, atol=rounding)


@each_method
@thorough
@given(it=averages())
def test_every_value_lies_between_the_models(method: Callable[[Average], Tensor], it: Average) -> None:
    merged, together = method(it), torch.stack(it.values)
    assert not merged.isnan().any()  # whatever zeros there are
    assert (merged.double() >= together.amin(0).double() - it.rounding).all()
    assert (merged.double() <= together.amax(0).double() + it.rounding).all()


@each_method
@thorough
@given(it=averages(), data=st.data())
def test_the_order_of_the_models_changes_nothing(
    method: Callable[[Average], Tensor], it: Average, data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(len(it.values))))
    # Where no model has a Fisher, the Fisher merge keeps the first's value, which is meant to depend on the order.
    where = it.informed() if method is METHODS["fisher"] else slice(None)
    assert_equal(method(it.reordered(order))[where], method(it)[where], 2 * it.rounding)


@each_method
@thorough
@given(it=averages(), factor=st.floats(1e-3, 1e3))
def test_coefficients_count_relative_to_each_other(
    method: Callable[[Average], Tensor], it: Average, factor: float
) -> None:
    scaled = replace(it, coefficients=[factor * λ for λ in it.coefficients])
    assert_equal(method(scaled), method(it), 2 * it.rounding)


@pytest.mark.parametrize("name", ["fisher", "uncertainty"])
@thorough
@given(it=averages(), factor=st.floats(1e-3, 1e3))
def test_fishers_count_relative_to_each_other(name: str, it: Average, factor: float) -> None:
    scaled = replace(
        it, fishers=[fisher * factor for fisher in it.fishers], prior=it.prior * factor, delta=it.delta * factor
    )
    assert_equal(METHODS[name](scaled), METHODS[name](it), 2 * it.rounding)


@each_method
@thorough
@given(it=averages())
def test_a_model_merged_with_itself_is_given_back_bit_for_bit(method: Callable[[Average], Tensor], it: Average) -> None:
    same = replace(it, values=[it.values[0].clone() for _ in it.values])
    assert torch.equal(method(same), it.values[0])


@each_method
@thorough
@given(it=averages(), data=st.data())
def test_zeros_anywhere_give_no_nan(method: Callable[[Average], Tensor], it: Average, data: st.DataObject) -> None:
    """Whole tensors of zeros: values, Fishers, prior, base, and delta."""
    zeroed = data.draw(st.sets(st.sampled_from(["values", "fishers", "prior", "base", "delta"]), min_size=1))
    bare = replace(
        it,
        values=[value * ("values" not in zeroed) for value in it.values],
        fishers=[fisher * ("fishers" not in zeroed) for fisher in it.fishers],
        prior=it.prior * ("prior" not in zeroed),
        base=it.base * ("base" not in zeroed),
        delta=it.delta * ("delta" not in zeroed),
    )
    merged = method(bare)
    assert torch.isfinite(merged).all()
    if "values" in zeroed:
        assert not merged.any()
