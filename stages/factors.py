"""A statistic of Linear weights, kfac-MODEL or gram-MODEL: checkpoint and its task's train split → models/kfac/MODEL/.

Stages of their own, so that wanting them never re-runs a Fisher that somebody has paid for.
"""

from stages.estimation.estimate import estimate
from stages.pipeline.places import FINETUNED, STATISTIC_PLACES, TASKS
from stages.pipeline.stage_settings import model_stage_params
from stages.running.command import launch, run_stage
from stages.running.errors import InputError
from stages.storage.statistics import FACTORS
from stages.tasks.data import TaskData


def factors(name: str, model: str) -> None:
    """Estimate a statistic of Linear weights of a model; in several processes, if the environment says so.

    Args:
        name: of the statistic: `kfac`, `gram` or another of `stages/storage/statistics/`.
        model: its name in params.yaml.
    """
    if name not in FACTORS:
        raise InputError(f"there are no factors {name!r}; known: {', '.join(FACTORS)}")
    kind = FACTORS[name]
    params = model_stage_params(kind.stem, model)
    settings = params.fisher_settings(model)
    if kind.takes_gradients and settings.estimator == "adam":
        raise InputError(f"params.yaml: models.{model}: {kind.title} need another fisher.estimator than adam")
    launch("stages.factors", name, model)
    task = TaskData.open(TASKS / params.models[model].task)
    estimate(name, FINETUNED / model, task, settings, STATISTIC_PLACES[name] / model)


if __name__ == "__main__":
    run_stage(factors, "|".join(FACTORS), "model")
