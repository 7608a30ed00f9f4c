"""Averaging models' outputs: what an ensemble of models for a kind of task predicts.

A kind names one of these in its settings; without, its outputs have no mean that is a prediction.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # params.yaml is checked without it
    import numpy as np


class Averaging(ABC):
    """How outputs are averaged."""

    @abstractmethod
    def mean(self, outputs: Sequence["np.ndarray"], weights: Sequence[float]) -> "np.ndarray":
        """What models that are averaged predict.

        Args:
            outputs: of each model, [N, …], of one shape.
            weights: of each model, summing to 1.

        Returns:
            Outputs [N, …] in float32, as a single model has them.
        """


class MeanOutput(Averaging):
    """The mean of the outputs themselves, which are the numbers that are predicted."""

    def mean(self, outputs: Sequence["np.ndarray"], weights: Sequence[float]) -> "np.ndarray":
        """Σ_i λ_i z_i."""
        return _weighted(outputs, weights).astype("float32")


class MeanOfSoftmax(Averaging):
    """The mean of the probabilities of classes, one of which is right; along the last axis."""

    def mean(self, outputs: Sequence["np.ndarray"], weights: Sequence[float]) -> "np.ndarray":
        """The logarithm of Σ_i λ_i softmax(z_i), whose softmax it is."""
        import numpy as np
        from scipy.special import softmax

        probabilities = [softmax(each.astype(np.float64), axis=-1) for each in outputs]
        smallest = np.finfo(np.float32).tiny
        return np.log(_weighted([np.clip(each, smallest, 1) for each in probabilities], weights)).astype(np.float32)


class MeanOfSigmoid(Averaging):
    """The mean of the probabilities of labels, each of which is right or not."""

    def mean(self, outputs: Sequence["np.ndarray"], weights: Sequence[float]) -> "np.ndarray":
        """The logit of p = Σ_i λ_i sigmoid(z_i), whose sigmoid it is; p and 1 − p are added up apart, for digits."""
        import numpy as np
        from scipy.special import expit

        logits = [each.astype(np.float64) for each in outputs]
        yes, no = (_weighted([expit(sign * each) for each in logits], weights) for sign in (1, -1))
        smallest = np.finfo(np.float32).tiny
        return (np.log(np.maximum(yes, smallest)) - np.log(np.maximum(no, smallest))).astype(np.float32)


class MixtureOfTexts(Averaging):
    """The mixture of models that write: a text's probability is the mean of those that the models give it as a whole.

    So each model's share in a text's next token grows with how well it has foreseen the text so far.
    """

    def mean(self, outputs: Sequence["np.ndarray"], weights: Sequence[float]) -> "np.ndarray":
        """[N, 2]: log Σ_i λ_i p_i of outputs [N, 2] of log p_i and the number of tokens, which is the same in all."""
        import numpy as np
        from scipy.special import logsumexp

        likelihoods = np.stack([each[:, 0].astype(np.float64) for each in outputs])
        mixed = logsumexp(likelihoods, axis=0, b=np.asarray(weights)[:, None])
        return np.stack([mixed, outputs[0][:, 1]], axis=-1).astype(np.float32)


def _weighted(values: Sequence["np.ndarray"], weights: Sequence[float]) -> "np.ndarray":
    first, *others = (weight * value for weight, value in zip(weights, values, strict=True))
    return sum(others, start=first)
