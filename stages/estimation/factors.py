"""A checkpoint's statistics of Linear weights, estimated."""

from pathlib import Path

from torch import Tensor

from stages.curvature import CurvatureStatistics
from stages.estimation.accumulators import accumulators
from stages.estimation.passes import estimated_statistics
from stages.params import FisherSettings
from stages.running.errors import InputError
from stages.storage.outputs import atomic_directory
from stages.storage.statistic import StatisticKind
from stages.storage.statistics import FACTORS, TRANSPOSED, write_statistic
from stages.storage.tensors import TensorFiles
from stages.tasks.data import TaskData

OF_GRADIENTS = ("estimator", "samples", "likelihood", "likelihood_parameters")  # in a card: what is nothing to inputs


def estimate_factors(name: str, checkpoint: Path, task: TaskData, settings: FisherSettings, out: Path) -> None:
    """Write a statistic of Linear weights on the examples that the checkpoint's Fisher is of, as directory `out`.

    Args:
        name: of the statistic, one of `FACTORS`.
        checkpoint: whose weights.
        task: whose examples.
        settings: which examples, and how; the estimator is any but `adam`, if gradients are taken.
        out: the directory.

    Raises:
        InputError: the checkpoint or the examples cannot be used, or the result is not finite or empty.
    """
    kind = FACTORS[name]
    if not kind.takes_gradients:  # inputs only: nothing is drawn or differentiated
        settings = settings.model_copy(update={"estimator": "exact", "samples": 1})
    with estimated_statistics(checkpoint, task, settings, out, [name]) as found:
        if found is None:
            return
        tensors = named_factors(kind, found.statistics)
        if not tensors:
            raise InputError(f"{checkpoint}: has no Linear layers, so there are no factors of them")
        facts = {key: fact for key, fact in found.card.items() if kind.takes_gradients or key not in OF_GRADIENTS}
        with atomic_directory(out) as partial:
            card = facts | {TRANSPOSED: sorted(found.statistics.transposed)}
            write_statistic(partial, name, tensors, TensorFiles(checkpoint), card)


def named_factors(kind: StatisticKind, statistics: CurvatureStatistics) -> dict[str, Tensor]:
    """The factors under the names that they have in a file."""
    return {
        f"{part}.{name}": factor
        for part, accumulator in accumulators(kind).items()
        for name, factor in statistics.factors[accumulator.name].items()
    }
