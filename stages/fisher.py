"""fisher-MODEL: checkpoint and its task's train split → models/fishers/MODEL/{fisher.safetensors,fisher.json}.

Or, for a model whose Fisher is brought in: the Fisher, verified; or second moments as one, which nothing binds to it.
"""

from stages.estimation.estimate import estimate
from stages.estimation.given import bring_in
from stages.estimation.moments import take_moments
from stages.pipeline.places import FINETUNED, FISHERS, TASKS
from stages.pipeline.stage_settings import model_stage_params
from stages.running.command import launch, run_stage
from stages.tasks.data import TaskData


def fisher(name: str) -> None:
    """Estimate the diagonal Fisher of the model `name`, in as many processes as the environment says, or bring it."""
    params = model_stage_params("fisher", name)
    if (source := params.fisher_source(name)) is not None:
        if source.file is not None:
            take_moments(source, FINETUNED / name, FISHERS / name)
        else:
            bring_in(name, source, FINETUNED / name, FISHERS / name)
        return
    settings = params.fisher_settings(name)
    if settings.estimator != "adam":
        launch("stages.fisher", name)
    task = TaskData.open(TASKS / params.models[name].task)
    estimate("diagonal", FINETUNED / name, task, settings, FISHERS / name)


if __name__ == "__main__":
    run_stage(fisher, "model")
