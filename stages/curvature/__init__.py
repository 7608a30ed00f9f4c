"""Fisher estimation for any `torch.nn.Module`; knows nothing of DVC, files or tasks."""

from stages.curvature.check import UnsupportedModelError
from stages.curvature.estimation import CurvatureStatistics, Estimation, curvature_statistics, diagonal_fisher

__all__ = ["CurvatureStatistics", "Estimation", "UnsupportedModelError", "curvature_statistics", "diagonal_fisher"]
