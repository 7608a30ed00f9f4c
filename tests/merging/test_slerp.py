"""Spherical interpolation against the formula on whole tensors, in float64."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from stages.merging.methods.slerp.rule import Angle, slerp
from tests.merging.models import DTYPES, array, assert_close, random_tensors


def angle_between(first: Tensor, second: Tensor, chunk: int = 70) -> float | None:
    angle = Angle()
    for pair in zip(first.reshape(-1).split(chunk), second.reshape(-1).split(chunk), strict=True):
        angle.add(*pair)
    return angle.radians()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("t", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_formula(dtype: torch.dtype, t: float) -> None:
    first, second = random_tensors(2, (20, 30), dtype, seed=0)
    second = second * 3 + first
    a, b = array(first), array(second)
    φ = np.arccos((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))
    found = angle_between(first, second)
    assert found == pytest.approx(φ, abs=1e-13)
    assert_close(slerp(first, second, t, found), (np.sin((1 - t) * φ) * a + np.sin(t * φ) * b) / np.sin(φ))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("angle", [0.04, 1.3, 3.1, None])
def test_the_ends_are_the_models(dtype: torch.dtype, angle: float | None) -> None:
    first, second = random_tensors(2, (20, 30), dtype, seed=0)
    assert torch.equal(slerp(first, second, 0, angle), first)
    assert torch.equal(slerp(first, second, 1, angle), second)


def test_swapping_the_models_swaps_the_ends() -> None:
    first, second = random_tensors(2, (20, 30), torch.float64, seed=0)
    angle = angle_between(first, second)
    assert angle == angle_between(second, first)
    assert_close(slerp(second, first, 0.7, angle), slerp(first, second, 0.3, angle))


def test_between_models_of_one_norm_the_norm_stays() -> None:
    first, second = (tensor / tensor.norm() for tensor in random_tensors(2, (20, 30), torch.float64, seed=0))
    angle = angle_between(first, second)
    assert angle is not None
    merged = slerp(first, second, 0.3, angle)
    assert merged.norm().item() == pytest.approx(1, abs=1e-12)
    assert angle_between(first, merged) == pytest.approx(0.3 * angle, abs=1e-12)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_models_that_agree_and_other_colinear_ones(dtype: torch.dtype) -> None:
    first, zero = random_tensors(1, (20, 30), dtype, seed=0)[0], torch.zeros(20, 30, dtype=dtype)
    for second in (first.clone(), 3 * first, -first, zero):
        assert angle_between(first, second) is None
        assert angle_between(second, first) is None
        assert_close(slerp(first, second, 0.3, None), 0.7 * array(first) + 0.3 * array(second))
    assert angle_between(zero, zero) is None
    assert torch.equal(slerp(first, first.clone(), 0.3, None), first)


@pytest.mark.parametrize("shift", [0, math.pi])
def test_nearly_colinear_is_a_cosine_of_more_than_0_9995(shift: float) -> None:
    first = torch.tensor([1.0, 0.0], dtype=torch.float64)
    edge = math.acos(0.9995)
    for φ, colinear in ((edge * 0.999, True), (edge * 1.001, False)):
        second = torch.tensor([math.cos(shift + φ), math.sin(shift + φ)], dtype=torch.float64)
        assert (angle_between(first, second) is None) == colinear


def test_inputs_are_left_alone() -> None:
    first, second = random_tensors(2, (20, 30), torch.float32, seed=0)
    before = first.clone(), second.clone()
    angle = angle_between(first, second)
    for used in (angle, None):
        slerp(first, second, 0.5, used).add_(1)
    assert torch.equal(first, before[0])
    assert torch.equal(second, before[1])


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_very_small_and_very_large_tensors_have_an_angle(scale: float) -> None:
    first, second = random_tensors(2, (20, 30), torch.float32, seed=0)
    assert angle_between(first * scale, second * scale) == pytest.approx(angle_between(first, second), abs=1e-6)
