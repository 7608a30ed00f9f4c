"""Metrics against plain computations, their intervals and paired bootstraps against other ways to get these."""

from typing import Any

import numpy as np
import pytest
from scipy.stats import bootstrap
from sklearn.metrics import f1_score

from stages.running.errors import InputError
from stages.tasks.kinds import KINDS, metric_named
from stages.tasks.metrics import Accuracy, MacroF1, Metric, OfSums
from tests.metrics import MeanAbsoluteError, RootMeanSquaredError

RESAMPLES = 10_000
ALL: list[Metric] = [Accuracy(), MacroF1(), MeanAbsoluteError(), RootMeanSquaredError()]
each_metric = pytest.mark.parametrize("metric", ALL, ids=lambda metric: metric.name)


def predictions(metric: Metric, seed: int, examples: int = 80) -> tuple[np.ndarray, np.ndarray]:
    """What two models contribute on the same examples; the second is worse."""
    random = np.random.default_rng(seed)
    if metric.unit == "number":
        targets = random.normal(size=examples)
        near, far = (targets + scale * random.standard_t(3, size=examples) for scale in (0.5, 0.7))
        return metric.per_example(near, targets), metric.per_example(far, targets)
    labels = random.integers(0, 3, examples)
    first, second = (random.normal(size=(examples, 3)) + skill * np.eye(3)[labels] for skill in (1.5, 0.8))
    return metric.per_example(first, labels), metric.per_example(second, labels)


def by_hand(metric: Metric, rows: np.ndarray) -> float:
    """The metric of contributions, in float64 and without the metric's own code."""
    if isinstance(metric, MacroF1):
        labels, predicted, number = rows[:, 0], rows[:, 1], int(rows[0, 2])
        hits = [np.sum((labels == k) & (predicted == k)) for k in range(number)]
        sizes = [np.sum(labels == k) + np.sum(predicted == k) for k in range(number)]
        return float(np.mean([2 * hit / size if size else 0 for hit, size in zip(hits, sizes, strict=True)]))
    total = np.sum(rows.astype(np.float64)) / len(rows)
    return float(np.sqrt(total)) if isinstance(metric, RootMeanSquaredError) else float(total)


@each_metric
def test_summary_against_a_plain_computation(metric: Metric) -> None:
    for rows in predictions(metric, seed=0):
        assert metric.summary(rows) == pytest.approx(by_hand(metric, rows), rel=1e-12)


@each_metric
def test_resampled_differences_against_resampled_rows(metric: Metric) -> None:
    """Mean, spread and quantiles are those of another generator's draws, within their own errors."""
    first, second = predictions(metric, seed=1)
    found = metric.resampled_differences(first, second, np.random.default_rng(0), RESAMPLES)
    assert found.shape == (RESAMPLES,)
    random = np.random.default_rng(5)
    drawn = [random.integers(0, len(first), len(first)) for _ in range(RESAMPLES)]
    wanted = np.array([by_hand(metric, first[rows]) - by_hand(metric, second[rows]) for rows in drawn])
    deviation = wanted.std()
    assert found.mean() == pytest.approx(wanted.mean(), abs=4 * deviation * np.sqrt(2 / RESAMPLES))
    assert found.std() == pytest.approx(deviation, rel=0.04)
    quantiles = [0.025, 0.25, 0.5, 0.75, 0.975]
    np.testing.assert_allclose(np.quantile(found, quantiles), np.quantile(wanted, quantiles), atol=0.12 * deviation)


@each_metric
def test_differences_have_two_sides_and_the_better_one_gains(metric: Metric) -> None:
    first, second = predictions(metric, seed=2, examples=400)
    difference = metric.difference(first, second)
    assert difference == pytest.approx(metric.summary(first) - metric.summary(second), abs=1e-12)
    assert difference == pytest.approx(-metric.difference(second, first))
    assert metric.gain(difference) > 0 > metric.gain(-difference)
    values = [metric.summary(second), metric.summary(first)]
    assert metric.best(values) == values[1]
    draws = [metric.resampled_differences(first, second, np.random.default_rng(seed), 50) for seed in (3, 3, 4)]
    assert (draws[0] == draws[1]).all()
    assert (draws[0] != draws[2]).any()
    assert not metric.resampled_differences(first, first, np.random.default_rng(0), 50).any()


@each_metric
def test_intervals_against_resampled_rows(metric: Metric) -> None:
    rows, _ = predictions(metric, seed=3)
    random = np.random.default_rng(6)
    drawn = [by_hand(metric, rows[random.integers(0, len(rows), len(rows))]) for _ in range(4000)]
    assert metric.interval(rows) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.35 * float(np.std(drawn)))
    assert metric.interval(rows) == metric.interval(rows)
    same = np.repeat(rows[:1], 5, axis=0)
    for certain in (same, rows[:1]):
        assert metric.interval(certain) == (metric.summary(certain), metric.summary(certain))


def draw_pair(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Zeros and ones: of any size, sometimes all alike, without losses, or with a difference everywhere."""
    random = np.random.default_rng(seed)
    examples = int(random.integers(1, 300))
    first = (random.random(examples) < random.choice([0.0, 0.5, 0.9, 1.0])).astype(int)
    second = (random.random(examples) < random.choice([0.0, 0.5, 0.8, 1.0])).astype(int)
    return first, [second, 1 - first, np.minimum(first, second)][seed % 3]


@pytest.mark.parametrize("seed", range(30))
def test_accuracys_bootstraps_are_the_same_bits_as_before_there_were_other_metrics(seed: int) -> None:
    """The formulas that made the reports up to then, written out."""
    first, second = draw_pair(seed)
    examples = len(first)
    gains, losses = int((first > second).sum()), int((first < second).sum())
    shares = np.array([gains, losses, examples - gains - losses]) / examples
    before, now = np.random.default_rng(0), np.random.default_rng(0)
    for _ in range(2):  # the tasks of a mean are drawn one after the other
        drawn = before.multinomial(examples, shares, size=RESAMPLES)
        found = Accuracy().resampled_differences(first, second, now, RESAMPLES)
        assert found.tolist() == ((drawn[:, 0] - drawn[:, 1]) / examples).tolist()
    assert Accuracy().difference(first, second) == (gains - losses) / examples
    assert Accuracy().summary(first) == float((first == 1).mean())

    correct = first.astype(float)
    if examples < 2 or correct.min() == correct.max():
        assert Accuracy().interval(first) == (correct.min(), correct.max())
        return
    settings: dict[str, Any] = {"n_resamples": 2000, "confidence_level": 0.95, "method": "percentile"}
    wanted = bootstrap((correct,), np.mean, **settings, rng=np.random.default_rng(0)).confidence_interval
    assert Accuracy().interval(first) == (wanted.low, wanted.high)
    assert Metric.interval(Accuracy(), first) == (wanted.low, wanted.high)  # by the rows, as for any other metric


def test_draws_in_several_steps_are_those_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = predictions(MeanAbsoluteError(), seed=4)
    whole = MeanAbsoluteError().resampled_differences(first, second, np.random.default_rng(0), 1000)
    monkeypatch.setattr("stages.tasks.metrics.DRAWN_AT_ONCE", 700)
    parts = MeanAbsoluteError().resampled_differences(first, second, np.random.default_rng(0), 1000)
    assert (parts == whole).all()


def test_a_mean_of_few_distinct_numbers_that_are_not_0_and_1() -> None:
    """Drawn by how often each difference occurs; the spread is that of a mean of N independent draws."""
    random = np.random.default_rng(7)
    first, second = random.integers(0, 5, 300) / 2, random.integers(0, 5, 300) / 2
    found = MeanAbsoluteError().resampled_differences(first, second, np.random.default_rng(0), 40_000)
    deviation = (first - second).std() / np.sqrt(300)
    assert found.std() == pytest.approx(deviation, rel=0.02)
    assert found.mean() == pytest.approx((first - second).mean(), abs=4 * deviation / np.sqrt(40_000))
    assert set(np.round(found * 600, 6) % 1) == {0}  # halves, 300 of them


def test_macro_f1_is_over_all_labels() -> None:
    """Also over one that no example has and none is taken for, and in a resample that lacks another."""
    logits, labels = np.array([[2.0, 0, 0, 0], [0, 1, 0, 0], [3, 1, 0, 0]]), np.array([0, 1, 1])
    rows = MacroF1().per_example(logits, labels)
    assert rows.tolist() == [[0, 0, 4], [1, 1, 4], [1, 0, 4]]
    assert MacroF1().summary(rows) == pytest.approx((2 / 3 + 2 / 3) / 4)
    assert MacroF1().value(logits[:1], labels[:1]) == 1 / 4
    random = np.random.default_rng(0)
    logits, labels = random.normal(size=(500, 7)), random.integers(0, 7, 500)
    wanted = f1_score(labels, logits.argmax(-1), average="macro", labels=np.arange(7), zero_division=0.0)
    assert MacroF1().value(logits, labels) == float(wanted)


def test_the_table_of_kinds() -> None:
    for kind in ("text-classification", "image-classification"):
        assert [metric.name for metric in KINDS[kind].metrics] == ["accuracy", "macro_f1"]
        for metric in KINDS[kind].metrics:
            assert metric_named(metric.name) is metric
    assert KINDS["masked-lm"].metrics == ()
    with pytest.raises(InputError, match=r"there is no metric 'nonsense'; known: .*accuracy, macro_f1"):
        metric_named("nonsense")


class RatioOfSums(OfSums):
    """Σ a / Σ b."""

    name, title, unit, larger_is_better = "ratio", "ratio", "number", True

    def per_example(self, outputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
        return np.stack([outputs, targets], axis=-1)

    def of_sums(self, sums: np.ndarray) -> np.ndarray:
        return np.asarray(sums[..., 0] / sums[..., 1])


def test_a_function_of_sums_is_resampled_by_example() -> None:
    """Against a bootstrap that draws the examples themselves."""
    random = np.random.default_rng(0)
    metric, examples = RatioOfSums(), 80
    first = metric.per_example(random.gamma(2, size=examples), random.gamma(5, size=examples))
    second = metric.per_example(random.gamma(2, size=examples) + 0.1, first[:, 1])
    assert metric.summary(first) == pytest.approx(first[:, 0].sum() / first[:, 1].sum())
    drawn = [random.integers(0, examples, examples) for _ in range(20_000)]
    ratios = [first[rows, 0].sum() / first[rows, 1].sum() for rows in drawn]
    low, high = metric.interval(first)
    assert (low, high) == metric.interval(first)
    assert (low, high) == pytest.approx(np.quantile(ratios, [0.025, 0.975]), rel=0.03)
    differences = [(first[rows, 0].sum() - second[rows, 0].sum()) / first[rows, 1].sum() for rows in drawn]
    found = metric.resampled_differences(first, second, np.random.default_rng(1), 20_000)
    assert found.shape == (20_000,)
    assert found.mean() == pytest.approx(np.mean(differences), abs=3e-3)
    assert np.quantile(found, [0.025, 0.975]) == pytest.approx(np.quantile(differences, [0.025, 0.975]), abs=6e-3)
