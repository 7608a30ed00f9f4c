"""Where searches look: what every sampler promises of its points, and which point is the best."""

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest

from stages.params import Search
from stages.searching.sampling import Coefficients, Sampler, best, make_sampler

Kind = Literal["grid", "simplex", "tpe", "cma-es"]

START = {"ann": 2.0, "bob": 1.0, "cid": 1.0}
OPTIMUM = {"ann": 0.55, "bob": 0.05, "cid": 0.3, "dan": 0.1}

learning = pytest.mark.parametrize("kind", ["tpe", "cma-es"])
drawing = pytest.mark.parametrize("kind", ["simplex", "tpe", "cma-es"])


def sampler(kind: Kind, start: Coefficients, points: int = 50, seed: int = 0) -> Sampler:
    return make_sampler(Search(sampler=kind, points=points, seed=seed), start)


def taken(drawn: Sampler, points: int, score: Callable[[Coefficients], float] = lambda _: 0.0) -> list[Coefficients]:
    """The sampler's first points, each told its score."""
    found = []
    for _ in range(points):
        found.append(drawn.ask())
        drawn.tell(score(found[-1]))
    return found


def closeness(point: Coefficients) -> float:
    """Concave, and largest at the optimum."""
    return -sum((point[name] - λ) ** 2 for name, λ in OPTIMUM.items())


@pytest.mark.parametrize("points", [2, 3, 5, 50])
def test_a_grid_is_evenly_spaced_between_the_models_and_has_both_ends(points: int) -> None:
    found = taken(sampler("grid", {"ann": 3.0, "bob": 1.0}, points), points)
    assert [list(point) for point in found] == [["ann", "bob"]] * points
    assert found[0] == {"ann": 1.0, "bob": 0.0}
    assert found[-1] == {"ann": 0.0, "bob": 1.0}
    np.testing.assert_allclose([point["ann"] for point in found], [1 - i / (points - 1) for i in range(points)])
    np.testing.assert_allclose([sum(point.values()) for point in found], 1, rtol=1e-15)


@drawing
@pytest.mark.parametrize(
    "start",
    [START, {"ann": 1.0, "bob": 1.0}, {"ann": 0.0, "bob": 0.3, "cid": 0.6}, {"ann": 0.0, "bob": 7.0}],
    ids=str,
)
def test_the_first_point_is_the_start_divided_by_its_sum(kind: Kind, start: Coefficients) -> None:
    (first,) = taken(sampler(kind, start), 1)
    total = sum(start.values())
    assert first == pytest.approx({name: λ / total for name, λ in start.items()}, abs=1e-6)
    assert all(math.copysign(1, λ) > 0 for λ in first.values())  # a zero is not written as -0.0


@drawing
def test_all_points_are_on_the_simplex(kind: Kind) -> None:
    for point in taken(sampler(kind, START), 60, lambda point: point["bob"]):
        assert list(point) == list(START)
        assert min(point.values()) >= 0
        assert sum(point.values()) == pytest.approx(1, abs=1e-12)


@drawing
def test_the_same_seed_and_scores_give_the_same_points_and_another_seed_gives_others(kind: Kind) -> None:
    def score(point: Coefficients) -> float:
        return point["ann"] - point["cid"] ** 2

    found, again, other = (taken(sampler(kind, START, seed=seed), 40, score) for seed in (3, 3, 4))
    assert found == again
    assert found[1:] != other[1:]


def test_the_mean_of_many_simplex_points_is_the_centre() -> None:
    points = taken(sampler("simplex", OPTIMUM), 4001)[1:]
    table = np.array([list(point.values()) for point in points])
    # A coordinate of the uniform distribution on the simplex of N has the variance (N − 1) / (N² (N + 1)).
    np.testing.assert_allclose(table.mean(0), 1 / 4, atol=4 * math.sqrt(3 / 80 / 4000))
    np.testing.assert_allclose(table.var(0), 3 / 80, rtol=0.1)


@learning
def test_a_learning_samplers_first_draws_depend_on_what_it_is_told(kind: Kind) -> None:
    rising = taken(sampler(kind, START), 40, lambda point: point["ann"])
    falling = taken(sampler(kind, START), 40, lambda point: -point["ann"])
    assert np.mean([point["ann"] for point in rising[20:]]) > np.mean([point["ann"] for point in falling[20:]]) + 0.3


@learning
def test_learning_comes_closer_to_the_optimum_than_drawing(kind: Kind) -> None:
    """In the mean over four seeds less than half as far (measured: a fourth), so that luck does not decide."""
    start = dict.fromkeys(OPTIMUM, 1.0)

    def distance(of: Kind) -> float:
        reached = (taken(sampler(of, start, seed=seed), 100, closeness) for seed in range(4))
        return float(np.mean([math.sqrt(-max(map(closeness, points))) for points in reached]))

    assert distance(kind) < 0.5 * distance("simplex")


def test_the_best_is_the_best_score_then_the_nearest_to_the_start_then_the_first() -> None:
    points = [{"ann": λ, "bob": 1 - λ} for λ in (1.0, 0.75, 0.5, 0.25, 0.0)]
    halves = {"ann": 3.0, "bob": 3.0}
    assert best(points, [0.1, 0.2, 0.3, 0.9, 0.4], halves) == 3
    assert best(points, [0.9, 0.2, 0.9, 0.3, 0.9], halves) == 2  # the nearest of three
    assert best(points, [0.9, 0.9, 0.3, 0.9, 0.9], halves) == 1  # two are equally near
    assert best(points, [0.5] * 5, {"ann": 1.0, "bob": 9.0}) == 4
    assert best([points[3], points[1], points[3]], [0.5] * 3, halves) == 0
