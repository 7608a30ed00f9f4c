"""Fisher estimation for any `torch.nn.Module`; knows nothing of DVC, files or tasks."""

from stages.curvature.accumulators import Accumulator
from stages.curvature.errors import UnsupportedModelError
from stages.curvature.estimation import CurvatureStatistics, Estimation
from stages.curvature.likelihoods import Bernoulli, Categorical, Gaussian, Likelihood, TokenCategorical
from stages.curvature.statistics import curvature_statistics, diagonal_fisher
from stages.curvature.vectors import BackwardVectors

__all__ = [
    "Accumulator",
    "BackwardVectors",
    "Bernoulli",
    "Categorical",
    "CurvatureStatistics",
    "Estimation",
    "Gaussian",
    "Likelihood",
    "TokenCategorical",
    "UnsupportedModelError",
    "curvature_statistics",
    "diagonal_fisher",
]
