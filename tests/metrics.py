"""Metrics that no kind of task has yet: numbers, better when smaller, a mean and one that is none."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from stages.tasks import metrics
from stages.tasks.metrics import Mean, Metric

TOY_KIND = "toy-regression"


class MeanAbsoluteError(Mean):
    """The mean distance of outputs from targets, both [N]."""

    name, title, unit, larger_is_better = "mean_absolute_error", "mean absolute error", "number", False

    def per_example(self, outputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """The distances [N]."""
        return np.abs(outputs - targets)


class RootMeanSquaredError(Metric):
    """The root of the mean squared distance of outputs from targets, both [N]."""

    name, title, unit, larger_is_better = "rmse", "root mean squared error", "number", False

    def per_example(self, outputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """The squared distances [N]."""
        return (outputs - targets) ** 2

    def summary(self, per_example: np.ndarray) -> float:
        """The root of their mean."""
        return float(np.sqrt(per_example.mean()))


@contextmanager
def toy_kind(*of_it: Metric) -> Iterator[None]:
    """A kind of task with these metrics, the primary one first, for a while."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(metrics.KINDS, TOY_KIND, of_it or (RootMeanSquaredError(), MeanAbsoluteError()))
        yield
