"""Fisher estimation for any `torch.nn.Module`; knows nothing of DVC, files or tasks."""

from stages.curvature.diagonal import UnsupportedModelError, diagonal_fisher

__all__ = ["UnsupportedModelError", "diagonal_fisher"]
