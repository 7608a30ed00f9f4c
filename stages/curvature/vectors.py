"""Where backward passes start: the vectors at a model's outputs that an estimator takes for a batch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from stages.curvature.draws import Draws
from stages.curvature.errors import CurvatureError
from stages.curvature.likelihoods import Categorical, Likelihood

Estimator = Literal["exact", "sketch", "sampled", "empirical"]
ESTIMATORS: tuple[Estimator, ...] = get_args(Estimator)


@dataclass(frozen=True)
class BackwardVectors:
    """Vectors s of the outputs' shape, such that the squares (Jᵀ s)² of their backward passes add up to the Fisher.

    Attributes:
        likelihood: the outputs' meaning; `stages.curvature.likelihoods` has some.
        estimator: see `stages.curvature.likelihoods`.
        samples: draws per example, for `sketch` and `sampled`.
        seed: of the draws.

    Raises:
        CurvatureError: on construction, a likelihood that is only a name, an unknown estimator, or no samples.
    """

    likelihood: Likelihood = field(default_factory=Categorical)
    estimator: Estimator = "exact"
    samples: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.likelihood, str):
            raise CurvatureError(f"likelihood = {self.likelihood!r}: must be an object, such as `Categorical()`")
        if self.estimator not in ESTIMATORS:
            raise CurvatureError(f"unknown estimator {self.estimator!r}; known: {', '.join(ESTIMATORS)}")
        if self.samples < 1:
            raise CurvatureError(f"samples = {self.samples}: must be at least 1")

    def of(self, outputs: Tensor, batch: Mapping[str, Tensor], first: int) -> list[Tensor]:
        """A batch's vectors.

        Args:
            outputs: the model's, [B, …].
            batch: its input, with `labels` where the estimator or the likelihood needs them.
            first: number of its first example among all examples, which the draws belong to.

        Raises:
            CurvatureError: the outputs have another shape than the likelihood's, labels are missing, or an exact
                token-level Fisher would take too many vectors.
        """
        likelihood = self.likelihood
        with torch.no_grad():
            match self.estimator:
                case "exact":
                    return list(likelihood.columns(outputs, batch))
                case "empirical":
                    return [likelihood.observed(outputs, batch)]
                case "sketch":
                    draw: Callable[..., Tensor] = likelihood.sketch
                case "sampled":
                    draw = likelihood.sampled
            scale = self.samples**-0.5  # the squares of the draws are averaged
            return [draw(outputs, batch, Draws(self.seed, first, i)) * scale for i in range(self.samples)]
