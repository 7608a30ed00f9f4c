"""The methods that mergekit has too, against mergekit's own; skipped where mergekit is not installed."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from stages.merging.methods.dare.rule import dare, drop_mask, mask_generator
from stages.merging.methods.isotropic.rule import isotropic_average
from stages.merging.methods.slerp.rule import Angle, slerp
from stages.merging.methods.task_arithmetic.rule import task_arithmetic
from stages.merging.methods.ties.rule import ties
from stages.merging.methods.ties.trimming import kth_largest_magnitude

merge_tensors = pytest.importorskip("mergekit.merge_methods").merge_tensors

SHAPE = (50, 40)
λ = [0.5, 0.3, 0.9]
density = 0.3


def random_models(seed: int) -> tuple[Tensor, list[Tensor]]:
    """A base and three models at a distance that is a tenth of their size."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(SHAPE, generator=generator)
    return base, [base + 0.1 * torch.randn(SHAPE, generator=generator) for _ in λ]


def merged_by_mergekit(method: str, tensors: Sequence[Tensor], **parameters: Any) -> Tensor:
    """The first tensor is the base, for methods that have one."""
    base = {} if method == "linear" else {"base_index": 0}
    merged = merge_tensors(tensors, method, parameters=parameters, **base)
    assert isinstance(merged, Tensor)
    return merged


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    assert ours.dtype == theirs.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_linear(seed: int) -> None:
    _, values = random_models(seed)
    assert_same(isotropic_average(values, λ), merged_by_mergekit("linear", values, weight=λ))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("scale", [1.0, 0.4, 1.7])
def test_task_arithmetic(seed: int, scale: float) -> None:
    base, values = random_models(seed)
    ours = task_arithmetic(base, values, λ, scale)
    options = {"normalize": True, "lambda": scale}
    assert_same(ours, merged_by_mergekit("task_arithmetic", [base, *values], weight=λ, **options))
    # Its default is to add task vectors up: for N models and equal weights, a scale of N times the weight.
    ours = task_arithmetic(base, values, [1, 1, 1], 3 * scale)
    assert_same(ours, merged_by_mergekit("task_arithmetic", [base, *values], weight=[scale] * 3))


def threshold(vector: Tensor, keep: int) -> float:
    return kth_largest_magnitude(lambda: vector.split(7), keep)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("scale", [1.0, 0.4, 1.7])
def test_ties(seed: int, scale: float) -> None:
    base, values = random_models(seed)
    keep = int(density * base.numel())
    thresholds = [threshold(value - base, keep) for value in values]
    theirs = merged_by_mergekit("ties", [base, *values], weight=λ, density=[density] * 3, **{"lambda": scale})
    assert_same(ties(base, values, λ, thresholds, scale), theirs)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("scale", [1.0, 0.4])
def test_dare(seed: int, scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    base, values = random_models(seed)
    masks = [drop_mask(mask_generator(seed, str(i), "w"), base.numel(), density).reshape(SHAPE) for i in range(3)]
    draws = iter(masks)
    monkeypatch.setattr("mergekit.sparsify.torch.bernoulli", lambda chances: next(draws).to(chances.dtype))
    # It scales what is kept up to the task vector's own l1 norm, unless told not to, and not by 1 / density.
    options = {"normalize": True, "rescale": False, "lambda": scale / density}
    theirs = merged_by_mergekit("dare_linear", [base, *values], weight=λ, density=[density] * 3, **options)
    assert_same(dare(base, values, λ, masks, density, scale), theirs)


def slerped(first: Tensor, second: Tensor, t: float) -> Tensor:
    angle = Angle()
    angle.add(first, second)
    return slerp(first, second, t, angle.radians())


@pytest.mark.parametrize("t", [0.0, 0.2, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("distance", [0.001, 0.1, 1.0, 30.0])
def test_slerp(t: float, distance: float) -> None:
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(SHAPE, generator=generator)
    second = first + distance * torch.randn(SHAPE, generator=generator)
    ours = slerped(first, second, t)
    units = max(1.0, distance)
    assert_same(ours / units, merged_by_mergekit("slerp", [first, second], t=t) / units)


@pytest.mark.parametrize("factor", [3.0, -0.5])
def test_slerp_of_colinear_tensors(factor: float) -> None:
    first, _ = random_models(0)
    second = factor * first
    assert_same(slerped(first, second, 0.3), merged_by_mergekit("slerp", [first, second], t=0.3))
