"""Is one result better than another, or are the test examples too few to say? The paired bootstrap.

Two results on the same test examples are compared example by example: what is resampled are the examples, and with
each example both results' predictions on it (Koehn, "Statistical Significance Tests for Machine Translation
Evaluation", EMNLP 2004; Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 13 and 16).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stages.scores import Result

RESAMPLES = 10_000
CONFIDENCE = 0.95
SEED = 0


@dataclass(frozen=True)
class Comparison:
    """How much more accurate the first of two results is than the second.

    Attributes:
        difference: of the accuracies, first minus second.
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


def compare(first: Sequence[str], second: Sequence[str]) -> Comparison:
    """Compare two results by the paired bootstrap, on one task or on the mean over several.

    Examples are resampled within each task, the tasks are fixed and count alike. An example's contribution to the
    difference is −1, 0 or 1; so, drawing n of n examples with replacement, the numbers of −1, 0 and 1 are multinomial
    with the observed shares, and are drawn as such. The p-value is the share of resampled differences that lie as far
    from the observed one as that lies from zero, (1 + count) / (1 + resamples): the bootstrap's distribution, moved to
    where the hypothesis has it (Efron & Tibshirani, chapter 16).

    Args:
        first: per task a string with a 1 for every right and a 0 for every wrong prediction.
        second: the other result's, of the same tasks and examples in the same order.

    Raises:
        ValueError: the strings are not of the same number of examples.
    """
    generator = np.random.default_rng(SEED)
    observed, resampled = 0.0, np.zeros(RESAMPLES)
    for ours, theirs in zip(first, second, strict=True):
        if len(ours) != len(theirs) or not ours:
            raise ValueError(f"{len(ours)} and {len(theirs)} predictions cannot be paired")
        examples = len(ours)
        gains, losses = _count(ours, theirs), _count(theirs, ours)
        shares = np.array([gains, losses, examples - gains - losses]) / examples
        drawn = generator.multinomial(examples, shares, size=RESAMPLES)
        observed += (gains - losses) / examples / len(first)
        resampled += (drawn[:, 0] - drawn[:, 1]) / examples / len(first)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    tolerance = 1e-12  # sums of the same numbers in another order are the same difference
    extreme = int((np.abs(resampled - observed) >= abs(observed) - tolerance).sum())
    return Comparison(observed, float(low), float(high), (1 + extreme) / (1 + RESAMPLES))


def _count(right: str, wrong: str) -> int:
    return sum(a == "1" and b == "0" for a, b in zip(right, wrong, strict=True))


def shared_tasks(results: Sequence[Result]) -> list[str]:
    """The tasks that all of these results have, on the same test examples."""

    def have(task: str) -> bool:
        entries = [result.correct.get(task) for result in results]
        return None not in entries and len({entry["examples"] for entry in entries if entry is not None}) == 1

    return [task for task in results[0].correct if have(task)] if results else []


def compare_on(tasks: Sequence[str], first: Result, second: Result) -> Comparison:
    """Compare two results on the mean over tasks; `shared_tasks` says which they can be."""
    return compare(*([result.correct[task]["correct"] for task in tasks] for result in (first, second)))


def compare_all(results: Sequence[Result]) -> Mapping[tuple[str, str], Comparison]:
    """Every ordered pair of names → the comparison on the mean over the tasks that all of the results have."""
    tasks = shared_tasks(results)
    if not tasks:
        return {}
    found: dict[tuple[str, str], Comparison] = {}
    for i, first in enumerate(results):
        for second in results[i + 1 :]:
            comparison = compare_on(tasks, first, second)
            found |= {(first.name, second.name): comparison, (second.name, first.name): -comparison}
    return found


def comparable(results: Sequence[Result]) -> list[Result]:
    """Those results, in their order, that have all tasks of the one that has most of them, on the same test examples.

    Only these can be compared with each other on a mean.
    """
    most = max(results, key=lambda result: len(result.correct)).correct if results else {}
    return [
        result
        for result in results
        if most
        and all(result.correct.get(task, {}).get("examples") == entry["examples"] for task, entry in most.items())
    ]
