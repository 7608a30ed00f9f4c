"""Draws belong to examples: batches, padding and processes change nothing."""

import numpy as np
import torch

from stages.curvature import BackwardVectors, Estimation, diagonal_fisher
from stages.curvature.draws import Draws
from tests.curvature.test_estimators import Small, inputs


def test_an_example_has_its_draws_whatever_batch_it_is_in() -> None:
    together, alone = Draws(7, 0), Draws(7, 2)
    for kind in ("signs", "uniform", "normal"):
        assert torch.equal(getattr(together, kind)((4, 5))[2], getattr(alone, kind)((1, 5))[0])


def test_padding_changes_no_position_before_it() -> None:
    for kind in ("signs", "uniform"):
        short, long = getattr(Draws(7, 3), kind)((2, 3, 11)), getattr(Draws(7, 3), kind)((2, 8, 11))
        assert torch.equal(short, long[:, :3])


def test_draws_that_start_later_are_the_same() -> None:
    for kind in ("signs", "uniform", "normal"):
        plain, moved = (getattr(draws, kind)((3, 8, 5)) for draws in (Draws(7, 3), Draws(7, 3).starting_at([0, 2, 7])))
        assert torch.equal(moved[0], plain[0])
        assert torch.equal(moved[1, 2:], plain[1, :6])
        assert torch.equal(moved[2, 7:], plain[2, :1])


def test_examples_seeds_and_draws_differ() -> None:
    rows = [Draws(seed, first, draw).signs((1, 64)) for seed in (0, 1) for first in (0, 1) for draw in (0, 1)]
    assert len({tuple(row.flatten().tolist()) for row in rows}) == 8


def test_signs_are_fair() -> None:
    signs = Draws(0, 0).signs((1000, 1000)).double()
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert abs(float(signs.mean())) < 5 / 1000
    np.testing.assert_allclose(float((signs[1:] * signs[:-1]).mean()), 0, atol=5 / 1000)


def test_the_same_estimate_from_other_batches_and_in_any_order() -> None:
    model = Small(5)
    x = inputs()[0]["x"]
    whole = diagonal_fisher(model, [{"x": x}], estimator="sampled", seed=4, samples=3)
    with Estimation(model, BackwardVectors(estimator="sampled", seed=4, samples=3)) as estimation:
        for first in (2, 0):
            estimation.add({"x": x[first : first + 2]}, first=first)
        parts = estimation.result().diagonal
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-5, atol=1e-9)
