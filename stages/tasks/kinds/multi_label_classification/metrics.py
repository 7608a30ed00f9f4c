"""Metrics of sets of labels: outputs are logits [N, K], and targets [N, K] are 1 where an example has the label."""

from typing import TYPE_CHECKING

from stages.tasks.metrics import OfCounts, OfSums

if TYPE_CHECKING:  # params.yaml is checked without it
    import numpy as np


class MultiLabelMacroF1(OfSums):
    """The mean over all labels of the F1 score; a label is predicted where its probability is above 1/2.

    The F1 score of a label that neither occurs nor is predicted is zero.
    """

    name, title, unit, larger_is_better = "multi_label_macro_f1", "multi-label macro F1", "share", True

    def per_example(self, outputs: "np.ndarray", targets: "np.ndarray") -> "np.ndarray":
        """Per label, whether it is there and predicted, and of how many of the two it is: [N, 2 K]."""
        import numpy as np

        predicted, present = outputs > 0, targets > 0
        return np.concatenate([predicted & present, predicted.astype(int) + present], axis=-1)

    def of_sums(self, sums: "np.ndarray") -> "np.ndarray":
        """The mean F1 [...] of sums [..., 2 K]."""
        import numpy as np

        hits, sizes = np.split(sums, 2, axis=-1)
        return np.asarray((2 * hits / np.maximum(sizes, 1)).mean(-1))


class MeanAveragePrecision(OfCounts):
    """The mean over all labels of the average precision; that of a label that no example has is zero.

    With the examples in the order of a label's logits, it is Σ_n (R_n − R_{n−1}) P_n over the distinct logits, of the
    precision P_n and the recall R_n of those down to the n-th.
    """

    name, title, unit, larger_is_better = "mean_average_precision", "mean average precision", "share", True

    def per_example(self, outputs: "np.ndarray", targets: "np.ndarray") -> "np.ndarray":
        """Logits and targets beside each other, [N, 2 K]."""
        import numpy as np

        return np.concatenate([outputs, targets], axis=-1).astype(np.float64)

    def of_counts(self, per_example: "np.ndarray", counts: "np.ndarray") -> "np.ndarray":
        """The mean average precision [R] of logits and targets [N, 2 K] that occur so often [R, N]."""
        import numpy as np

        logits, targets = np.split(per_example, 2, axis=-1)
        each = [_average_precision(*label, counts) for label in zip(logits.T, targets.T, strict=True)]
        return np.asarray(np.mean(each, axis=0))


def _average_precision(logits: "np.ndarray", targets: "np.ndarray", counts: "np.ndarray") -> "np.ndarray":
    """A label's average precision [R], of its logits [N] and targets [N] that occur so often [R, N]."""
    import numpy as np

    order = np.argsort(-logits, kind="stable")
    last = np.append(np.diff(logits[order]) != 0, True)  # of the examples with one logit: between them there is none
    group = last.cumsum() - last  # the place of each example's logit among the distinct ones
    holders = np.flatnonzero(targets[order])
    reached = np.flatnonzero(last)[np.unique(group[holders])]  # recall grows at no other logits
    drawn = counts[:, order]
    found = drawn[:, holders].cumsum(axis=1)[:, np.searchsorted(holders, reached, side="right") - 1]
    precision = found / np.maximum(drawn.cumsum(axis=1)[:, reached], 1)
    gained = np.diff(found, axis=1, prepend=0)
    return np.asarray((gained * precision).sum(axis=1) / np.maximum(drawn[:, holders].sum(axis=1), 1))
