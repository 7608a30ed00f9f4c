"""Merge rules on tensors, and the streamed merge of checkpoints; knows nothing of DVC."""

from stages.merging.checkpoints import merge_checkpoints
from stages.params import Fisher, Isotropic

__all__ = ["Fisher", "Isotropic", "merge_checkpoints"]
