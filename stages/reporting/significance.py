"""Is one result better than another, or are the test examples too few to say? The paired bootstrap.

Two results on the same test examples are compared example by example: what is resampled are the examples, and with
each example both results' predictions on it (Koehn, "Statistical Significance Tests for Machine Translation
Evaluation", EMNLP 2004; Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 13 and 16).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np

from stages.results.scores import Result, tasks_by_metric
from stages.tasks.metrics import Metric, OfCounts

RESAMPLES = 10_000
CONFIDENCE = 0.95
SEED = 0

PerExample = Sequence[float] | Sequence[Sequence[float]] | np.ndarray  # what examples contribute, [N] or [N, S]


@dataclass(frozen=True)
class Comparison:
    """By how much the first of two results exceeds the second, whether that is better or worse.

    Attributes:
        difference: of the metric's values, first minus second.
        low, high: the 95 % percentile interval of it.
        p_value: two-sided, for the hypothesis that there is no difference; of this pair alone.
    """

    difference: float
    low: float
    high: float
    p_value: float

    @property
    def is_beyond_noise(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0

    def __neg__(self) -> "Comparison":
        """The same, seen from the other side."""
        return Comparison(-self.difference, -self.high, -self.low, self.p_value)


def compare(metric: Metric, first: Sequence[PerExample], second: Sequence[PerExample]) -> Comparison:
    """Compare two results by the paired bootstrap, on one task or on the mean over several.

    Examples are resampled within each task, the tasks are fixed and count alike. The p-value is the share of resampled
    differences that lie as far from the observed one as that lies from zero, (1 + count) / (1 + resamples): the
    bootstrap's distribution, moved to where the hypothesis has it (Efron & Tibshirani, chapter 16).

    Args:
        metric: what the results are compared by.
        first: per task, what every example contributes to the metric.
        second: the other result's, of the same tasks and examples in the same order.

    Raises:
        ValueError: the results are not of the same number of examples.
    """
    generator = np.random.default_rng(SEED)
    resampled = np.zeros(RESAMPLES)
    for ours, theirs in _paired(first, second):
        resampled += metric.resampled_differences(ours, theirs, generator, RESAMPLES) / len(first)
    return _comparison(_observed(metric, first, second), resampled)


def compare_all(metric: Metric, results: Sequence[Sequence[PerExample]]) -> dict[tuple[int, int], Comparison]:
    """Compare every two of several results, as `compare` does; for a metric of counts, examples are drawn once for all.

    Args:
        metric: what the results are compared by.
        results: what every example contributes to the metric, by task.

    Returns:
        The positions of two results, the smaller one first → their comparison.
    """
    pairs = list(combinations(range(len(results)), 2))
    if not isinstance(metric, OfCounts):
        return {(i, j): compare(metric, results[i], results[j]) for i, j in pairs}
    generator = np.random.default_rng(SEED)
    observed = {(i, j): _observed(metric, results[i], results[j]) for i, j in pairs}
    resampled = np.zeros((len(results), RESAMPLES))
    for of_task in zip(*results, strict=True):
        resampled += metric.resampled(list(map(np.asarray, of_task)), generator, RESAMPLES) / len(results[0])
    return {(i, j): _comparison(observed[i, j], resampled[i] - resampled[j]) for i, j in pairs}


def _paired(first: Sequence[PerExample], second: Sequence[PerExample]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for ours, theirs in zip(map(np.asarray, first), map(np.asarray, second), strict=True):
        if len(ours) != len(theirs) or not len(ours):
            raise ValueError(f"{len(ours)} and {len(theirs)} predictions cannot be paired")
        yield ours, theirs


def _observed(metric: Metric, first: Sequence[PerExample], second: Sequence[PerExample]) -> float:
    """The difference on the mean over the tasks."""
    return sum(metric.difference(ours, theirs) / len(first) for ours, theirs in _paired(first, second))


def _comparison(observed: float, resampled: np.ndarray) -> Comparison:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    tolerance = 1e-12  # sums of the same numbers in another order are the same difference
    extreme = int((np.abs(resampled - observed) >= abs(observed) - tolerance).sum())
    return Comparison(observed, float(low), float(high), (1 + extreme) / (1 + RESAMPLES))


@dataclass(frozen=True)
class Group:
    """Results that can be compared with each other: all have these tasks, on the same test examples.

    Attributes:
        metric: the tasks' primary one.
        tasks: what a mean over is the same thing for all of them.
        results: by their mean over the tasks, the best first.
    """

    metric: Metric
    tasks: Sequence[str]
    results: Sequence[Result]

    @cached_property
    def comparisons(self) -> Mapping[tuple[str, str], Comparison]:
        """Every ordered pair of names → the comparison on the mean over the tasks."""
        return self._compared(self.tasks)

    @cached_property
    def comparisons_by_task(self) -> Mapping[str, Mapping[tuple[str, str], Comparison]]:
        """Task → every ordered pair of names → the comparison on this task alone."""
        return {task: self._compared([task]) for task in self.tasks}

    def _compared(self, tasks: Sequence[str]) -> dict[tuple[str, str], Comparison]:
        contributed = [[result.per_example[task]["values"] for task in tasks] for result in self.results]
        found: dict[tuple[str, str], Comparison] = {}
        for (i, j), comparison in compare_all(self.metric, contributed).items():
            first, second = self.results[i].name, self.results[j].name
            found |= {(first, second): comparison, (second, first): -comparison}
        return found


def comparable_groups(results: Sequence[Result]) -> list[Group]:
    """The groups in which results can be compared on a mean over tasks of one metric, metric by metric.

    Of a metric, those with most tasks come first. Each set of tasks (and test examples) that some result has is a group
    of all results that have it, and perhaps more, but for a set whose group is the same as that of a larger one. A
    group is of two results or more.
    """
    return [group for metric in tasks_by_metric(results) for group in _groups_by(metric, results)]


def _groups_by(metric: Metric, results: Sequence[Result]) -> list[Group]:
    examples = [{task: result.per_example[task]["examples"] for task in result.tasks_of(metric)} for result in results]
    groups: dict[tuple[str, ...], Group] = {}
    for wanted in sorted(examples, key=len, reverse=True):
        members = [
            result
            for result, has in zip(results, examples, strict=True)
            if wanted and all(has.get(task) == fingerprint for task, fingerprint in wanted.items())
        ]
        names = tuple(result.name for result in members)
        if len(members) > 1 and names not in groups:
            ranked = sorted(members, key=lambda result: metric.gain(mean_score(result, list(wanted))), reverse=True)
            groups[names] = Group(metric, list(wanted), ranked)
    return list(groups.values())


def mean_score(result: Result, tasks: Sequence[str]) -> float:
    """The mean over tasks of one metric that the result has."""
    return sum(result.score(task) for task in tasks) / len(tasks)
