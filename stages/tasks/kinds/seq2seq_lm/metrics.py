"""Metrics of what sequence-to-sequence models write."""

from typing import TYPE_CHECKING

from stages.tasks.metrics import Mean

if TYPE_CHECKING:  # params.yaml is checked without it
    import numpy as np


class ExactMatch(Mean):
    """The share of the examples for which the model writes the target, and nothing else."""

    name, title, unit, larger_is_better = "exact_match", "exact match", "share", True
    of_logits = False

    def per_example(self, outputs: "np.ndarray", targets: "np.ndarray") -> "np.ndarray":
        """1 or 0 for every example, [N], of outputs [N, 3] whose last says it."""
        return outputs[:, 2].astype(int)
