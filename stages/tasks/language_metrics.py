"""Metrics of language models: how probable the tokens are that they are to write."""

from typing import TYPE_CHECKING

from stages.tasks.metrics import OfSums

if TYPE_CHECKING:  # params.yaml is checked without it
    import numpy as np


class NegativeLogLikelihood(OfSums):
    """−log p of the trained tokens in nats, a token: the sum over all examples by the number of their tokens."""

    name, title, unit, larger_is_better = "negative_log_likelihood", "negative log-likelihood", "number", False

    def per_example(self, outputs: "np.ndarray", targets: "np.ndarray") -> "np.ndarray":
        """−log p and the number of tokens, [N, 2], of outputs [N, 2 or more] whose first two are log p and this."""
        import numpy as np

        return np.stack([-outputs[:, 0], outputs[:, 1]], axis=-1).astype(np.float64)

    def of_sums(self, sums: "np.ndarray") -> "np.ndarray":
        """Nats a token [...], of sums [..., 2] of −log p and of tokens."""
        import numpy as np

        return np.asarray(sums[..., 0] / np.maximum(sums[..., 1], 1))


class Perplexity(NegativeLogLikelihood):
    """exp of the negative log-likelihood a token; the largest number that there is where that is too large."""

    name, title, unit, larger_is_better = "perplexity", "perplexity", "number", False

    def of_sums(self, sums: "np.ndarray") -> "np.ndarray":
        """exp of nats a token [...], of sums [..., 2] of −log p and of tokens."""
        import numpy as np

        largest = np.finfo(np.float64).max
        return np.exp(np.minimum(super().of_sums(sums), np.log(largest)))
