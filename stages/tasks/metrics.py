"""Metrics: what predictions are worth, example by example and in all, and how sure that is.

Everything that compares results asks a metric of a kind for it: evaluation, search, report. A kind of task names its
metrics in its settings.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal, Self

if TYPE_CHECKING:  # params.yaml is checked without it
    import numpy as np

NO_OUTPUT = -100  # the label of a position at which nothing is predicted, as transformers has it
INTERVAL_RESAMPLES = 2000
CONFIDENCE = 0.95
FEW = 32  # distinct differences, up to which it is faster to draw how often each occurs
DRAWN_AT_ONCE = 4_000_000  # numbers, 32 MB
COUNTED_AT_ONCE = 50_000  # numbers that much is computed of, while a processor's caches hold them


class Metric(ABC):
    """What the predictions on a set of examples are worth, made up of what every single example contributes.

    Attributes:
        name: the key in metrics.json and params.yaml, a Python identifier, for example `macro_f1`.
        title: for people, for example `macro F1`.
        unit: a `share` is shown in per cent, and its differences in percentage points; a `number` as it is.
        larger_is_better: whether the better of two is the larger one.
        of_logits: whether it takes what a kind makes of a batch's logits alone (`Kind.outputs`), as there is while a
            model is trained; otherwise it takes what more there is besides (`Kind.further_outputs`).
    """

    name: str
    title: str
    unit: Literal["share", "number"]
    larger_is_better: bool
    of_logits: bool = True

    def of(self, labels: Sequence[str]) -> Self:
        """The metric of outputs that are called so, in their order; itself if their names mean nothing to it."""
        return self

    @abstractmethod
    def per_example(self, outputs: "np.ndarray", targets: "np.ndarray") -> "np.ndarray":
        """What every example contributes: a resample of the examples is a resample of these rows.

        Args:
            outputs: of the model, [N, …].
            targets: of the examples, [N, …].

        Returns:
            Numbers [N] or [N, S].
        """

    @abstractmethod
    def summary(self, per_example: "np.ndarray") -> float:
        """The metric of the examples with these contributions, [N] or [N, S] with N at least 1."""

    def value(self, outputs: "np.ndarray", targets: "np.ndarray") -> float:
        """The metric of these outputs [N, …] for these targets [N, …]."""
        return self.summary(self.per_example(outputs, targets))

    def difference(self, first: "np.ndarray", second: "np.ndarray") -> float:
        """By how much two results on the same examples differ, first minus second; each as `per_example` gives it."""
        return self.summary(first) - self.summary(second)

    def gain(self, difference: float) -> float:
        """How much better is what exceeds another by `difference`: positive if it is better, in the metric's unit."""
        return difference if self.larger_is_better else -difference

    def best(self, values: Iterable[float]) -> float:
        """The best of some values of the metric, of which there must be one at least."""
        return max(values, key=self.gain)

    def interval(self, per_example: "np.ndarray") -> tuple[float, float]:
        """The 95 % percentile bootstrap interval over examples, the same in every run.

        Args:
            per_example: [N] or [N, S], as `per_example` gives it.

        Returns:
            The lower and the upper end; both are the metric itself if all examples contribute the same.
        """
        import numpy as np

        if (per_example == per_example[:1]).all():
            return (found := self.summary(per_example)), found
        return _percentiles(np.arange(len(per_example)), lambda rows: self.summary(per_example[rows]))

    def resampled_differences(
        self, first: "np.ndarray", second: "np.ndarray", generator: "np.random.Generator", resamples: int
    ) -> "np.ndarray":
        """The paired bootstrap of `difference`: the same examples are drawn for both results, with replacement.

        Args:
            first: [N] or [N, S], as `per_example` gives it.
            second: the other result's, of the same examples in the same order.
            generator: what the examples are drawn by.
            resamples: how many times N of N examples are drawn.

        Returns:
            The differences [resamples].
        """
        import numpy as np

        drawn = (generator.integers(0, len(first), len(first)) for _ in range(resamples))
        return np.array([self.summary(first[rows]) - self.summary(second[rows]) for rows in drawn])


class Mean(Metric):
    """A metric that is the mean of one number an example."""

    def summary(self, per_example: "np.ndarray") -> float:
        """The mean of the numbers [N]."""
        return float(per_example.mean())

    def difference(self, first: "np.ndarray", second: "np.ndarray") -> float:
        """The mean of the examples' differences, first minus second, [N] each."""
        return float((first - second).mean())

    def interval(self, per_example: "np.ndarray") -> tuple[float, float]:
        """The 95 % percentile bootstrap interval of the mean of the numbers [N], the same in every run."""
        import numpy as np

        if (per_example == per_example[:1]).all():
            return float(per_example[0]), float(per_example[0])
        return _percentiles(per_example, np.mean)

    def resampled_differences(
        self, first: "np.ndarray", second: "np.ndarray", generator: "np.random.Generator", resamples: int
    ) -> "np.ndarray":
        """The paired bootstrap of the mean difference.

        Drawing N of N examples with replacement, the numbers of times that the distinct differences occur are
        multinomial with the observed shares. Where these are few, as of 0s and 1s, the numbers are drawn as such: far
        fewer draws. Where they are many, examples are drawn.

        Args:
            first: [N], as `per_example` gives it.
            second: the other result's, of the same examples in the same order.
            generator: what the examples are drawn by.
            resamples: how many times N of N examples are drawn.

        Returns:
            The differences [resamples].
        """
        import numpy as np

        examples, differences = len(first), (first - second).astype(float)
        values, counts = np.unique(np.append(differences, 0), return_counts=True)
        if len(values) > FEW:
            sizes = _steps(resamples, examples, DRAWN_AT_ONCE)
            drawn = [differences[generator.integers(0, examples, (size, examples))].mean(axis=1) for size in sizes]
            return np.concatenate(drawn)
        counts[values == 0] -= 1  # no difference is always among them, as often as it occurs
        order = np.lexsort((-values, -np.abs(values)))  # 1, −1, 0: a draw depends on the order
        values, shares = values[order], counts[order] / examples
        return generator.multinomial(examples, shares, size=resamples) @ values / examples


class OfCounts(Metric):
    """A metric of examples that occur so many times each, as one of ranks is: computed for many resamples at once."""

    @abstractmethod
    def of_counts(self, per_example: "np.ndarray", counts: "np.ndarray") -> "np.ndarray":
        """The metric of every resample.

        Args:
            per_example: what examples contribute, [N, S].
            counts: how many times each of them occurs in each of R resamples, [R, N], N in all.

        Returns:
            [R], a number for whatever counts there may be.
        """

    def summary(self, per_example: "np.ndarray") -> float:
        """The metric of the examples with these contributions [N, S]."""
        import numpy as np

        return float(self.of_counts(per_example, np.ones((1, len(per_example)), dtype=int))[0])

    def interval(self, per_example: "np.ndarray") -> tuple[float, float]:
        """The 95 % percentile bootstrap interval over examples [N, S], the same in every run."""
        import numpy as np

        drawn = _resampled_counts(len(per_example), np.random.default_rng(0), INTERVAL_RESAMPLES)
        values = np.concatenate([self.of_counts(per_example, counts) for counts in drawn])
        low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        return float(low), float(high)

    def resampled_differences(
        self, first: "np.ndarray", second: "np.ndarray", generator: "np.random.Generator", resamples: int
    ) -> "np.ndarray":
        """The paired bootstrap of `difference`; see `Metric.resampled_differences`."""
        ours, theirs = self.resampled([first, second], generator, resamples)
        difference: np.ndarray = ours - theirs
        return difference

    def resampled(
        self, results: "Sequence[np.ndarray]", generator: "np.random.Generator", resamples: int
    ) -> "np.ndarray":
        """The bootstrap of several results: the same examples are drawn for all of them, with replacement.

        Args:
            results: what examples contribute, [N, S] each, of the same examples in the same order.
            generator: what the examples are drawn by.
            resamples: how many times N of N examples are drawn.

        Returns:
            The metric of each result and resample, [results, resamples].
        """
        import numpy as np

        drawn = _resampled_counts(len(results[0]), generator, resamples)
        return np.concatenate([[self.of_counts(own, counts) for own in results] for counts in drawn], axis=1)


class OfSums(OfCounts):
    """A metric that is a function of sums over the examples, as an F1 score, a correlation or a root mean square is.

    Its bootstrap draws how often each example occurs, and needs nothing but the sums.
    """

    @abstractmethod
    def of_sums(self, sums: "np.ndarray") -> "np.ndarray":
        """The metric [...] of sums [..., S] of what examples contribute; a number for whatever sums there may be."""

    def of_counts(self, per_example: "np.ndarray", counts: "np.ndarray") -> "np.ndarray":
        """The metric [R] of the sums of contributions [N, S] that occur so often [R, N]."""
        return self.of_sums(counts @ per_example)

    def summary(self, per_example: "np.ndarray") -> float:
        """The metric of the examples with these contributions [N, S]."""
        return float(self.of_sums(per_example.sum(0)))


class Accuracy(Mean):
    """The share of the examples whose largest logit is their label's."""

    name, title, unit, larger_is_better = "accuracy", "accuracy", "share", True

    def per_example(self, outputs: "np.ndarray", targets: "np.ndarray") -> "np.ndarray":
        """A 1 for every example that is right and a 0 for every other, of logits [N, K] and label positions [N]."""
        return (outputs.argmax(-1) == targets).astype(int)


class MacroF1(Metric):
    """The mean over all labels of the F1 score; that of a label that neither occurs nor is predicted is zero."""

    name, title, unit, larger_is_better = "macro_f1", "macro F1", "share", True

    def per_example(self, outputs: "np.ndarray", targets: "np.ndarray") -> "np.ndarray":
        """Label, predicted label and the number of labels K, [N, 3], of logits [N, K] and label positions [N]."""
        import numpy as np

        predicted = outputs.argmax(-1)
        # In a table with other kinds' targets, the positions may be floating-point numbers.
        return np.stack([targets, predicted, np.full_like(predicted, outputs.shape[-1])], axis=-1).astype(int)

    def summary(self, per_example: "np.ndarray") -> float:
        """The macro-averaged F1 of labels and predictions [N, 3], as `per_example` gives them."""
        import numpy as np

        number = int(per_example[0, 2])
        labels, predicted = per_example[:, 0], per_example[:, 1]
        hits = np.bincount(labels[labels == predicted], minlength=number)
        sizes = np.bincount(labels, minlength=number) + np.bincount(predicted, minlength=number)
        return float((2 * hits / np.maximum(sizes, 1)).mean())


def _resampled_counts(examples: int, generator: "np.random.Generator", resamples: int) -> "Iterator[np.ndarray]":
    """How often each of N examples is among N drawn with replacement, [R, N]; R resamples at once, until all are."""
    import numpy as np

    for size in _steps(resamples, examples, COUNTED_AT_ONCE):
        yield generator.multinomial(examples, np.full(examples, 1 / examples), size=size)


def _steps(resamples: int, examples: int, at_once: int) -> list[int]:
    """How many resamples are drawn at once, time after time, so that they are no more than so many numbers."""
    step = max(1, at_once // examples)
    return [min(step, resamples - start) for start in range(0, resamples, step)]


def _percentiles(rows: "np.ndarray", statistic: "Callable[..., float | np.floating]") -> tuple[float, float]:
    """The percentile bootstrap interval of a statistic of rows [N] that are drawn with replacement."""
    import numpy as np
    from scipy.stats import bootstrap

    interval = bootstrap(
        (rows,),
        statistic,
        n_resamples=INTERVAL_RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(interval.low), float(interval.high)
