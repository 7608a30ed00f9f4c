"""The factor of the output Fisher, likelihoods with parameters, and one of somebody's own."""

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor

from stages.curvature import BackwardVectors, Gaussian, Likelihood, diagonal_fisher
from stages.curvature.likelihoods import categorical_factor
from stages.curvature.vectors import Estimator
from tests.curvature.reference import assert_same_fisher, categorical, reference_fisher
from tests.curvature.test_estimators import Small, inputs
from tests.test_readmes import blocks

TEMPERATURE = 1.7


@pytest.mark.parametrize("classes", [2, 3, 10, 200])
def test_categorical_factor_gives_the_softmax_fisher(classes: int) -> None:
    torch.manual_seed(0)
    logits = 4 * torch.randn(20, classes)
    factor = categorical_factor(logits)
    assert factor.shape == (20, classes, classes - 1)
    p = torch.softmax(logits.double(), -1)
    fisher = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    torch.testing.assert_close(factor @ factor.mT, fisher, rtol=1e-12, atol=1e-16)


def test_categorical_factor_of_a_certain_prediction() -> None:
    factor = categorical_factor(torch.tensor([[200.0, 0.0, -50.0], [0.0, 300.0, 0.0]]))
    assert torch.isfinite(factor).all()
    # Σ_00 = p_0 (1 − p_0), and 1 − p_0 is e⁻²⁰⁰: far below what 1 − p could show.
    variance = factor[0, 0].square().sum()
    torch.testing.assert_close(variance, torch.tensor(-200.0).double().exp(), rtol=1e-10, atol=0)


def test_the_observed_value_of_a_regression() -> None:
    """(y − z) / v, by autograd of the log-density in float64."""
    y = torch.randn(4, 2, generator=torch.Generator().manual_seed(1))

    def observed(z: Tensor, batch: Mapping[str, Tensor]) -> list[tuple[float, Tensor]]:
        return [(1.0, -((batch["labels"][0].double() - z) ** 2).sum() / (2 * 0.3))]

    model = Small(2)
    found = diagonal_fisher(model, inputs(labels=y), likelihood=Gaussian(variance=0.3), estimator="empirical")
    assert_same_fisher(found, reference_fisher(model, inputs(labels=y), observed))


@pytest.mark.parametrize("variance", [0.0, -1.0, float("inf"), float("nan")])
def test_a_variance_that_is_none(variance: float) -> None:
    with pytest.raises(ValueError, match=r"variance = .*: must be positive and finite"):
        Gaussian(variance)


def test_what_tells_likelihoods_of_one_name_apart() -> None:
    assert Gaussian(0.3) != Gaussian()
    assert (Gaussian(0.3).name, Gaussian(0.3).parameters) == ("gaussian", {"variance": 0.3})
    assert BackwardVectors().likelihood.parameters == {}


@pytest.fixture(scope="module")
def tempered() -> Likelihood:
    """The example of stages/README.md."""
    (source,) = (block for block in blocks("stages/README.md") if "class Tempered" in block)
    namespace: dict[str, Callable[[float], Likelihood]] = {}
    exec(compile(source, "stages/README.md", "exec"), namespace)
    return namespace["Tempered"](TEMPERATURE)


def softened(z: Tensor, batch: Mapping[str, Tensor]) -> list[tuple[float, Tensor]]:
    return categorical(z / TEMPERATURE, batch)


def test_the_example_of_a_likelihood(tempered: Likelihood) -> None:
    model = Small(3)
    found = diagonal_fisher(model, inputs(), likelihood=tempered)
    assert_same_fisher(found, reference_fisher(model, inputs(), softened))


@pytest.mark.parametrize("estimator", ["sketch", "sampled"])
def test_its_random_estimators(tempered: Likelihood, estimator: Estimator) -> None:
    model = Small(3)
    exact = diagonal_fisher(model, inputs(), likelihood=tempered)
    many = diagonal_fisher(model, inputs(), likelihood=tempered, estimator=estimator, samples=2000)
    for name, value in exact.items():
        assert float((many[name] - value).abs().max()) < 0.1 * float(value.abs().max()), name
