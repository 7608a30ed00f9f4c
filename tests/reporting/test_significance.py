"""The paired bootstrap, against exact distributions, plain resampling and scipy."""

from itertools import combinations, product
from math import factorial

import numpy as np
import pytest
from scipy.stats import bootstrap

from stages.reporting.significance import RESAMPLES, comparable_groups, compare, compare_all
from stages.results.scores import Contributions, Result
from stages.tasks.kinds import metric_named

ACCURACY = metric_named("accuracy")


def draw(random: np.random.Generator, examples: int, accuracy: float) -> list[float]:
    return [int(right) for right in random.random(examples) < accuracy]


def of(correct: str) -> list[float]:
    return [int(digit) for digit in correct]


def test_p_value_against_the_exact_distribution() -> None:
    """Every way to draw n of n examples, weighted by its multinomial probability."""
    first, second = np.array(of("1110111101")), np.array(of("1010101001"))
    difference = first - second
    n, observed = len(difference), difference.mean()
    shares = [(difference == value).mean() for value in (1, -1, 0)]
    exact = 0.0
    for won, lost in product(range(n + 1), repeat=2):
        if won + lost <= n:
            ways = factorial(n) / (factorial(won) * factorial(lost) * factorial(n - won - lost))
            probability = ways * shares[0] ** won * shares[1] ** lost * shares[2] ** (n - won - lost)
            if abs((won - lost) / n - observed) >= abs(observed) - 1e-12:
                exact += probability
    found = compare(ACCURACY, [first], [second])
    assert found.difference == pytest.approx(observed)
    assert found.p_value == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / RESAMPLES))


def test_mean_over_tasks_against_resampled_examples() -> None:
    random = np.random.default_rng(1)
    first = [draw(random, 120, 0.85), draw(random, 60, 0.7)]
    second = [draw(random, 120, 0.75), draw(random, 60, 0.72)]
    means = []
    for _ in range(RESAMPLES):
        by_task = []
        for a, b in zip(first, second, strict=True):
            rows = random.integers(0, len(a), len(a))  # both results on the same drawn examples
            by_task.append(np.array(a)[rows].mean() - np.array(b)[rows].mean())
        means.append(np.mean(by_task))
    resampled = np.array(means)
    found = compare(ACCURACY, first, second)
    observed = np.mean([np.array(a).mean() - np.array(b).mean() for a, b in zip(first, second, strict=True)])
    assert found.difference == pytest.approx(observed)
    assert (found.low, found.high) == pytest.approx(np.quantile(resampled, [0.025, 0.975]), abs=0.005)
    assert found.p_value == pytest.approx((np.abs(resampled - observed) >= abs(observed) - 1e-12).mean(), abs=0.02)


@pytest.mark.parametrize("seed", range(5))
def test_accuracy_is_compared_by_the_formula_of_before_there_were_other_metrics(seed: int) -> None:
    """To the last bit: the multinomial over gains, losses and the rest, task after task from one generator."""
    random = np.random.default_rng(seed)
    sizes = (120, 7, 60)
    first, second = ([draw(random, examples, skill) for examples in sizes] for skill in (0.85, 0.75))
    generator = np.random.default_rng(0)
    observed, resampled = 0.0, np.zeros(10_000)
    for ours, theirs in zip(first, second, strict=True):
        examples = len(ours)
        gains = sum(a == 1 and b == 0 for a, b in zip(ours, theirs, strict=True))
        losses = sum(a == 0 and b == 1 for a, b in zip(ours, theirs, strict=True))
        shares = np.array([gains, losses, examples - gains - losses]) / examples
        drawn = generator.multinomial(examples, shares, size=10_000)
        observed += (gains - losses) / examples / 3
        resampled += (drawn[:, 0] - drawn[:, 1]) / examples / 3
    low, high = np.quantile(resampled, [(1 - 0.95) / 2, 1 - (1 - 0.95) / 2])
    extreme = int((np.abs(resampled - observed) >= abs(observed) - 1e-12).sum())
    found = compare(ACCURACY, first, second)
    assert (found.difference, found.low, found.high) == (observed, low, high)
    assert found.p_value == (1 + extreme) / (1 + 10_000)


def test_interval_against_scipy() -> None:
    random = np.random.default_rng(2)
    first, second = draw(random, 300, 0.9), draw(random, 300, 0.8)
    interval = bootstrap(
        (np.array(first), np.array(second)),
        lambda a, b, axis: np.mean(a, axis=axis) - np.mean(b, axis=axis),
        paired=True,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=random,
    ).confidence_interval
    found = compare(ACCURACY, [first], [second])
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=0.005)
    assert found.is_beyond_noise


def test_no_false_alarm_more_often_than_promised() -> None:
    random = np.random.default_rng(3)
    found = [compare(ACCURACY, [draw(random, 200, 0.8)], [draw(random, 200, 0.8)]).p_value for _ in range(300)]
    assert np.mean(np.array(found) < 0.05) < 0.09  # 0.05 and three standard errors


def test_the_same_predictions_do_not_differ() -> None:
    found = compare(ACCURACY, [of("1101")], [of("1101")])
    assert (found.difference, found.low, found.high, found.p_value) == (0, 0, 0, 1)
    assert not found.is_beyond_noise


@pytest.mark.parametrize("name", ["accuracy", "tag_accuracy", "spearman"])
def test_several_results_are_compared_as_two_are(name: str) -> None:
    """A mean of numbers, a function of sums and one of ranks: what is drawn once for all is what each pair draws."""
    random, metric = np.random.default_rng(3), metric_named(name)

    def contributions(examples: int) -> np.ndarray:
        if name == "accuracy":
            return random.integers(0, 2, examples)
        if name == "tag_accuracy":
            return np.stack([random.integers(0, 5, examples), np.full(examples, 5)], axis=1)
        return random.normal(size=(examples, 2))

    results = [[contributions(40), contributions(25)] for _ in range(4)]
    found = compare_all(metric, results)
    assert list(found) == list(combinations(range(4), 2))
    for (i, j), comparison in found.items():
        alone = compare(metric, results[i], results[j])
        assert (comparison.difference, comparison.p_value) == pytest.approx((alone.difference, alone.p_value))
        assert (comparison.low, comparison.high) == pytest.approx((alone.low, alone.high))


def test_both_sides_and_every_run_say_the_same() -> None:
    random = np.random.default_rng(4)
    first, second = draw(random, 100, 0.9), draw(random, 100, 0.8)
    assert compare(ACCURACY, [first], [second]) == compare(ACCURACY, [first], [second])
    there, back = compare(ACCURACY, [first], [second]), -compare(ACCURACY, [first], [second])
    assert (back.difference, back.low, back.high) == (-there.difference, -there.high, -there.low)
    with pytest.raises(ValueError, match="100 and 99 predictions cannot be paired"):
        compare(ACCURACY, [first], [second[1:]])


def result(name: str, **tasks: tuple[str, str]) -> Result:
    per_example: dict[str, Contributions] = {
        task: {"examples": examples, "metric": "accuracy", "values": of(right)}
        for task, (examples, right) in tasks.items()
    }
    metrics = {task: {"accuracy": right.count("1") / len(right)} for task, (_, right) in tasks.items()}
    return Result(name, "merge", metrics, {}, per_example=per_example)


def test_only_results_on_the_same_examples_are_paired() -> None:
    a = result("a", t=("one", "1001"), u=("two", "01"))
    b = result("b", t=("one", "1101"), u=("two", "11"))
    others = result("others", t=("another", "1001"), u=("two", "01"))
    narrow = result("narrow", t=("one", "1111"))
    alone = result("alone", v=("three", "1"))
    groups = comparable_groups([narrow, a, b, others, alone])
    found = [(group.tasks, [result.name for result in group.results]) for group in groups]
    assert found == [(["t", "u"], ["b", "a"]), (["t"], ["narrow", "b", "a"])]
    comparisons = groups[0].comparisons
    assert comparisons.keys() == {("a", "b"), ("b", "a")}
    assert comparisons["b", "a"] == compare(
        ACCURACY, *([each.per_example[t]["values"] for t in "tu"] for each in (b, a))
    )
    alone_on_t = compare(ACCURACY, [b.per_example["t"]["values"]], [a.per_example["t"]["values"]])
    assert groups[0].comparisons_by_task["t"]["b", "a"] == alone_on_t
    assert comparisons["a", "b"].difference == pytest.approx(-(0.25 + 0.5) / 2)
    assert comparable_groups([]) == []


def test_results_on_a_task_each_are_groups_of_their_own() -> None:
    results = [result(name, **{name[0]: ("examples", "101")}) for name in ("t1", "t2", "u1", "u2", "t3")]
    found = [[result.name for result in group.results] for group in comparable_groups(results)]
    assert found == [["t1", "t2", "t3"], ["u1", "u2"]]
