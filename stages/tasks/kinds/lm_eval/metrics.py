"""The metrics of lm-evaluation-harness that are the mean of a number for each item."""

from collections.abc import Sequence
from copy import copy
from typing import TYPE_CHECKING, Literal, Self, get_args

from stages.tasks.metrics import Mean, Metric

if TYPE_CHECKING:  # params.yaml is checked without it
    import numpy as np

Measure = Literal["acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match"]  # as lm_eval calls them
MEASURES: tuple[Measure, ...] = get_args(Measure)


class OfHarness(Mean):
    """The mean of what lm_eval makes of each item.

    Args:
        measure: lm_eval's name of it.
    """

    unit, larger_is_better = "share", True
    of_logits = False

    def __init__(self, measure: Measure) -> None:
        self.measure = measure
        # Models that write have an exact match of another kind.
        self.name = "harness_exact_match" if measure == "exact_match" else measure
        self.title = f"lm-eval {measure}"
        self._column = 0

    def of(self, labels: Sequence[str]) -> Self:
        """The metric of outputs that are called so, among which is this measure."""
        found = copy(self)
        found._column = labels.index(self.measure)
        return found

    def per_example(self, outputs: "np.ndarray", targets: "np.ndarray") -> "np.ndarray":
        """lm_eval's number for every item, [N], of outputs [N, measures]; 1 is right and 0 is wrong."""
        return outputs[:, self._column]


METRICS: dict[Measure, Metric] = {measure: OfHarness(measure) for measure in MEASURES}
