"""Merge rules on tensors, and the streamed merge of checkpoints; knows nothing of DVC."""

from stages.merging.checkpoints import merge_checkpoints
from stages.merging.saving import save_fisher
from stages.params import Dare, Fisher, Isotropic, Kfac, Regmean, Slerp, TaskArithmetic, Ties, Uncertainty

__all__ = [
    "Dare",
    "Fisher",
    "Isotropic",
    "Kfac",
    "Regmean",
    "Slerp",
    "TaskArithmetic",
    "Ties",
    "Uncertainty",
    "merge_checkpoints",
    "save_fisher",
]
