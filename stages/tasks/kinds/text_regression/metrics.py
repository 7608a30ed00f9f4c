"""Metrics of numbers: outputs [N, K] are predictions of targets [N, K]."""

from typing import TYPE_CHECKING

from stages.tasks.metrics import OfCounts, OfSums

if TYPE_CHECKING:  # params.yaml is checked without it
    import numpy as np

CONSTANT = 1e-12  # share of the mean square that is variance, down to which numbers are the same but for rounding


class Pearson(OfSums):
    """The mean over all numbers of an example of Pearson's correlation; that of constants is zero."""

    name, title, unit, larger_is_better = "pearson", "Pearson correlation", "number", True

    def per_example(self, outputs: "np.ndarray", targets: "np.ndarray") -> "np.ndarray":
        """1, x, y, x², y² and x y per number, [N, 6 K]; both are centred and scaled, so that no digits cancel."""
        import numpy as np

        x, y = _standardised(outputs), _standardised(targets)
        return np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], axis=-1).reshape(len(x), -1)

    def of_sums(self, sums: "np.ndarray") -> "np.ndarray":
        """The mean correlation [...] of sums [..., 6 K]."""
        import numpy as np

        count, x, y, xx, yy, xy = np.moveaxis(sums.reshape(*sums.shape[:-1], -1, 6), -1, 0)
        count = np.maximum(count, 1)
        spread_x, spread_y = xx - x * x / count, yy - y * y / count
        vary = (spread_x > CONSTANT * xx) & (spread_y > CONSTANT * yy)
        correlations = (xy - x * y / count) / np.sqrt(np.where(vary, spread_x * spread_y, 1))
        return np.asarray(np.where(vary, np.clip(correlations, -1, 1), 0).mean(-1))


class Spearman(OfCounts):
    """The mean over all numbers of an example of Spearman's rank correlation; that of constants is zero."""

    name, title, unit, larger_is_better = "spearman", "Spearman correlation", "number", True

    def per_example(self, outputs: "np.ndarray", targets: "np.ndarray") -> "np.ndarray":
        """Outputs and targets beside each other, [N, 2 K]."""
        import numpy as np

        return np.concatenate([outputs, targets], axis=-1).astype(np.float64)

    def of_counts(self, per_example: "np.ndarray", counts: "np.ndarray") -> "np.ndarray":
        """The mean rank correlation [R] of outputs and targets [N, 2 K] that occur so often [R, N]."""
        import numpy as np

        outputs, targets = np.split(per_example, 2, axis=-1)
        each, often = [], counts.astype(np.float64)
        for x, y in zip(outputs.T, targets.T, strict=True):
            a, b = _centred_ranks(x, often), _centred_ranks(y, often)
            aa, bb, ab = (np.einsum("rn,rn,rn->r", often, *pair) for pair in ((a, a), (b, b), (a, b)))
            each.append(ab / np.sqrt(np.where(aa * bb > 0, aa * bb, 1)))
        return np.asarray(np.mean(each, axis=0))


class RootMeanSquaredError(OfSums):
    """The root of the mean squared distance of outputs from targets, over all numbers of all examples."""

    name, title, unit = "root_mean_squared_error", "root mean squared error", "number"
    larger_is_better = False

    def per_example(self, outputs: "np.ndarray", targets: "np.ndarray") -> "np.ndarray":
        """The sum of the squared distances, and how many they are: [N, 2]."""
        import numpy as np

        squares = (outputs.astype(np.float64) - targets) ** 2
        return np.stack([squares.sum(-1), np.full(len(squares), squares.shape[-1])], axis=-1)

    def of_sums(self, sums: "np.ndarray") -> "np.ndarray":
        """The root of the mean [...] of sums [..., 2]."""
        import numpy as np

        return np.asarray(np.sqrt(sums[..., 0] / np.maximum(sums[..., 1], 1)))


def _standardised(values: "np.ndarray") -> "np.ndarray":
    """Values [N, K] minus their mean, by their largest distance from it; zeros where all are the same."""
    import numpy as np

    centred = values.astype(np.float64) - values.mean(0, dtype=np.float64)
    varies = (values != values[:1]).any(0)
    return np.asarray(np.where(varies, centred, 0) / np.where(varies, np.abs(centred).max(0), 1))


def _centred_ranks(values: "np.ndarray", counts: "np.ndarray") -> "np.ndarray":
    """The ranks [R, N] of values [N] among those that occur so often [R, N], less their mean; equal ones share one."""
    import numpy as np

    distinct, group = np.unique(values, return_inverse=True)
    sizes = counts[:, np.argsort(group, kind="stable")]
    if len(distinct) < len(values):
        sizes = np.add.reduceat(sizes, np.searchsorted(np.sort(group), np.arange(len(distinct))), axis=1)
    ranks = sizes.cumsum(axis=1) - sizes / 2 - counts.sum(axis=1, keepdims=True) / 2
    return np.asarray(ranks[:, group])
