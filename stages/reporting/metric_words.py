"""What the report says of a metric: sentences of its own for some, plain ones for all others."""

from dataclasses import dataclass, replace

from stages.results.shown import capital, in_per_cent
from stages.tasks.metrics import Metric


@dataclass(frozen=True)
class Words:
    """Parts of sentences on a metric.

    Attributes:
        is_best: what the best of several results does.
        as_good: what a merge is that no single model is ahead of.
        in_full: the title where there is room for it.
    """

    is_best: str
    as_good: str
    in_full: str


def words(metric: Metric) -> Words:
    """The parts of sentences on a metric."""
    plain = Words(f"has the best {metric.title}", "as good as the best single model or better", metric.title)
    match metric.name:
        case "accuracy":
            return replace(
                plain, is_best="is the most accurate", as_good="as accurate as the best single model or more"
            )
        case "macro_f1":
            return replace(plain, in_full="macro-averaged F1")
    return plain


def slug(metric: Metric) -> str:
    """The metric's name in links and in names of files."""
    return metric.name.replace("_", "-")


def table_introduction(metric: Metric) -> str:
    """What stands before the table of a metric's test results."""
    best = "The best of each column" if metric.larger_is_better else "The best of each column, the smallest,"
    return (
        f"Test {metric.title}{in_per_cent(metric)}, with 95 % bootstrap intervals over the examples; the mean is over "
        f"the tasks. {best} is bold. Choices belong to the validation splits; these are only reported."
    )


def difference_introduction(metric: Metric, resamples: int) -> str:
    """What stands before the matrices of a metric's differences."""
    unit = ", in percentage points" if metric.unit == "share" else ""
    direction = "" if metric.larger_is_better else " Less is better."
    return (
        f"Row minus column: the difference in {metric.title}{unit}.{direction} **Bold**: its 95 % interval leaves "
        "out zero. The comparison is a paired bootstrap: the same test examples are drawn "
        f"{resamples:,} times with replacement, within each task, and both results are scored on what was drawn. "
        "The intervals are about other test examples, not about another training run, and each is of its pair "
        "alone."
    )


def transfer_caption(metric: Metric) -> str:
    """What stands under the grids of targets and donors."""
    unit, points = (", in per cent,", ", in percentage points") if metric.unit == "share" else ("", "")
    return (
        f"What a donor (column) gives a target (row): the {metric.title} on the target’s test split{unit} and in "
        f"brackets its difference from the target alone{points}. Green is better, orange is worse."
    )


def trade_off_direction(metric: Metric) -> str:
    """Where the better results are in a picture with the metric on both axes."""
    return "up and to the right is better" if metric.larger_is_better else "down and to the left is better"


def title(metric: Metric) -> str:
    """The metric's title at the beginning of a sentence."""
    return capital(metric.title)
