"""What a set of predictions is worth."""

from collections.abc import Callable

import numpy as np
from scipy.stats import bootstrap
from sklearn.metrics import f1_score

RESAMPLES = 2000
CONFIDENCE = 0.95


def classification_metrics(logits: np.ndarray, labels: np.ndarray) -> dict[str, float | int]:
    """Accuracy with a 95 % percentile bootstrap interval over examples, and macro-averaged F1.

    Args:
        logits: [examples, K].
        labels: [examples], positions 0…K−1.
    """
    predicted = logits.argmax(-1)
    correct = (predicted == labels).astype(float)
    low, high = accuracy_interval(correct)
    return {
        "accuracy": accuracy(logits, labels),
        "accuracy_low": low,
        "accuracy_high": high,
        "macro_f1": macro_f1(logits, labels),
        "examples": len(labels),
    }


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Share of the examples whose largest logit is their label's."""
    return float((logits.argmax(-1) == labels).mean())


def macro_f1(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean over all K labels of the F1 score; that of a label that neither occurs nor is predicted is zero."""
    classes = np.arange(logits.shape[-1])
    return float(f1_score(labels, logits.argmax(-1), average="macro", labels=classes, zero_division=0.0))


SCORES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {"accuracy": accuracy, "macro_f1": macro_f1}


def accuracy_interval(correct: np.ndarray) -> tuple[float, float]:
    """The interval for the mean of `correct`, which has a 0 or 1 for every example; the same in every run."""
    if len(correct) < 2 or correct.min() == correct.max():
        return float(correct.min()), float(correct.max())
    interval = bootstrap(
        (correct,),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(interval.low), float(interval.high)
