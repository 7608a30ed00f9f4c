"""Metrics that no kind of task has yet: numbers, better when smaller, means and one that is none."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from scipy.special import log_softmax

from stages.tasks.kinds import KINDS
from stages.tasks.metrics import Mean, Metric
from stages.tasks.task import Task

TOY_KIND = "toy-regression"


class MeanAbsoluteError(Mean):
    """The mean distance of outputs from targets, [N] each, or [N, 1] and [N]."""

    name, title, unit, larger_is_better = "mean_absolute_error", "mean absolute error", "number", False

    def per_example(self, outputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """The distances [N]."""
        return np.abs(outputs.reshape(targets.shape) - targets)


class RootMeanSquaredError(Metric):
    """The root of the mean squared distance of outputs from targets, [N] each, or [N, 1] and [N]."""

    name, title, unit, larger_is_better = "rmse", "root mean squared error", "number", False

    def per_example(self, outputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """The squared distances [N]."""
        return (outputs.reshape(targets.shape) - targets) ** 2

    def summary(self, per_example: np.ndarray) -> float:
        """The root of their mean."""
        return float(np.sqrt(per_example.mean()))


class CrossEntropy(Mean):
    """The mean of −log p of the labels."""

    name, title, unit, larger_is_better = "cross_entropy", "cross-entropy", "number", False

    def per_example(self, outputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """−log p of each label in nats, [N], of logits [N, K] and label positions [N]."""
        return -log_softmax(outputs.astype(np.float64), axis=-1)[np.arange(len(targets)), targets]


@contextmanager
def kind_with(kind: str, *of_it: Metric) -> Iterator[None]:
    """For a while, a kind of task that has these metrics, the primary one first."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(KINDS, kind, KINDS.get(kind, type("Toy", (Task,), {})))
        patch.setattr(KINDS[kind], "metrics", of_it)
        yield
