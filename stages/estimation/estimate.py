"""A checkpoint's statistic on its task, whichever it is: estimated, and written with its card."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stages.curvature import CurvatureStatistics
from stages.estimation.accumulators import accumulators
from stages.estimation.given import second_moments
from stages.estimation.measured import measured_files
from stages.estimation.passes import estimate_card, estimated_statistics
from stages.params import FisherSettings
from stages.running.errors import InputError
from stages.storage.outputs import atomic_directory
from stages.storage.statistic import StatisticKind
from stages.storage.statistics import STATISTICS, TRANSPOSED, write_statistic
from stages.tasks.data import TaskData

OF_GRADIENTS = ("estimator", "samples", "likelihood", "likelihood_parameters")  # in a card: what is nothing to inputs


def estimate(statistic: str, checkpoint: Path, task: TaskData, settings: FisherSettings, out: Path) -> None:
    """Write a statistic on examples drawn from the task's train split, with its card, as directory `out`.

    Under torchrun or `accelerate launch`, every process calls it and takes its share of the examples; the first writes.

    Args:
        statistic: which of `STATISTICS`.
        checkpoint: whose.
        task: whose examples.
        settings: which examples, and how. The estimator `adam`, which takes what fine-tuning has kept, gives a
            statistic of parameters alone.
        out: the directory.

    Raises:
        InputError: the checkpoint or the examples cannot be used, or the result is not finite or empty.
    """
    kind = STATISTICS[statistic]
    if not kind.takes_gradients:  # inputs only: nothing is drawn or differentiated
        settings = settings.model_copy(update={"estimator": "exact", "samples": 1})
    if settings.estimator == "adam":
        _write(kind, second_moments(checkpoint), estimate_card(task, settings), checkpoint, settings, out)
        return
    with estimated_statistics(checkpoint, task, settings, out, [statistic]) as found:
        if found is None:
            return
        tensors = named_tensors(kind, found.statistics)
        if not tensors:
            raise InputError(f"{checkpoint}: has no Linear layers, so there are no factors of them")
        facts = {key: fact for key, fact in found.card.items() if kind.takes_gradients or key not in OF_GRADIENTS}
        if not kind.is_of_parameters:
            facts[TRANSPOSED] = sorted(found.statistics.transposed)
        _write(kind, tensors, facts, checkpoint, settings, out)


def named_tensors(kind: StatisticKind, statistics: CurvatureStatistics) -> dict[str, Tensor]:
    """A statistic's tensors under the names that they have in its file."""
    if kind.is_of_parameters:
        return dict(statistics.diagonal)
    return {
        f"{part}.{name}": factor
        for part, accumulator in accumulators(kind).items()
        for name, factor in statistics.factors[accumulator.name].items()
    }


def _write(
    kind: StatisticKind,
    tensors: Mapping[str, Tensor],
    facts: Mapping[str, Any],
    checkpoint: Path,
    settings: FisherSettings,
    out: Path,
) -> None:
    """Write a statistic; one of parameters in the type that the settings want, and its card says which."""
    if kind.is_of_parameters:
        dtype = getattr(torch, settings.dtype)
        tensors = {name: values.to(dtype) for name, values in tensors.items()}
        facts = {**facts, "dtype": settings.dtype}
    with atomic_directory(out) as partial:
        write_statistic(partial, kind.name, tensors, measured_files(checkpoint, settings), facts)
