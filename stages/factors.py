"""kfac-MODEL, gram-MODEL: checkpoint and its task's train split → models/{kfac,gram}/MODEL/.

Stages of their own, so that wanting them never re-runs a Fisher that somebody has paid for.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from stages.curvature import CurvatureStatistics
from stages.estimation.passes import estimated_statistics
from stages.params import FisherSettings
from stages.pipeline.needs import FACTORS, STATISTICS
from stages.pipeline.places import FINETUNED, TASKS
from stages.pipeline.stage_settings import stage_params
from stages.running.command import launch, run_stage
from stages.running.errors import InputError
from stages.storage.outputs import atomic_directory
from stages.storage.statistics import TRANSPOSED, Statistic, input_factor, output_factor, write_statistic
from stages.storage.tensors import TensorFiles
from stages.tasks.data import TaskData


def factors(kind: Statistic, name: str) -> None:
    """Estimate K-FAC factors or Gram matrices of the model `name`; in several processes, if the environment says so."""
    params = stage_params(f"{kind}-{name}")
    if kind not in FACTORS:
        raise InputError(f"there are no factors {kind!r}; known: {', '.join(FACTORS)}")
    if name not in params.models:
        raise InputError(f"params.yaml: models: there is no model {name!r}")
    settings = params.fisher_settings(name)
    if kind == "kfac" and settings.estimator == "adam":
        raise InputError(f"params.yaml: models.{name}: K-FAC factors need another fisher.estimator than adam")
    launch("stages.factors", kind, name)
    task = TaskData.open(TASKS / params.models[name].task)
    estimate_factors(kind, FINETUNED / name, task, settings, STATISTICS[kind] / name)


def estimate_factors(kind: Statistic, checkpoint: Path, task: TaskData, settings: FisherSettings, out: Path) -> None:
    """Write the checkpoint's factors on the examples that its Fisher is estimated on, as directory `out`.

    Raises:
        InputError: the checkpoint or the examples cannot be used, or the result is not finite or empty.
    """
    if kind == "gram":  # inputs only: nothing is drawn or differentiated
        settings = settings.model_copy(update={"estimator": "exact", "samples": 1})
    with estimated_statistics(checkpoint, task, settings, out, [kind]) as found:
        if found is None:
            return
        tensors = named_factors(found.statistics)
        if not tensors:
            raise InputError(f"{checkpoint}: has no Linear layers, so there are no factors of them")
        card: Mapping[str, Any] = found.card | {TRANSPOSED: sorted(found.statistics.transposed)}
        if kind == "gram":
            card = {key: value for key, value in card.items() if key not in ("estimator", "samples", "likelihood")}
        with atomic_directory(out) as partial:
            write_statistic(partial, kind, tensors, TensorFiles(checkpoint), card)


def named_factors(statistics: CurvatureStatistics) -> dict[str, Tensor]:
    """The factors under the names that they have in a file."""
    inputs = {input_factor(name): factor for name, factor in statistics.input_factors.items()}
    return inputs | {output_factor(name): factor for name, factor in statistics.output_factors.items()}


if __name__ == "__main__":
    run_stage(factors, "kfac|gram", "model")
