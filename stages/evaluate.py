"""evaluate-NAME: a model's or merge's checkpoint on the test splits → results/eval/NAME/.

Outputs are kept (`predictions/TASK.parquet`), so that an output ensemble needs no forward pass; what every example
contributes to a task's primary metric (`per_example.json`), so that two results can be compared example by example.
"""

from typing import Any

from stages.pipeline.needs import ensemble_kinds, evaluated_tasks
from stages.pipeline.places import EVAL, FINETUNED, MERGED, TASKS
from stages.pipeline.stage_settings import stage_params
from stages.results.evaluation import contributions, ensemble, metrics, predict
from stages.running.command import run_stage
from stages.running.errors import InputError
from stages.storage.cards import FORMAT_VERSION, METRICS, ORIGIN, PER_EXAMPLE, write_json
from stages.storage.checkpoint_files import own_card
from stages.storage.digests import write_contents
from stages.storage.outputs import atomic_directory
from stages.tasks.data import TaskData


def evaluate(name: str) -> None:
    """Evaluate the model or merge `name` on every task that it can do."""
    params = stage_params(f"evaluate-{name}")
    merged = name in params.merges
    if not merged and name not in params.models.keys() | params.ensembles.keys():
        raise InputError(f"params.yaml: there is no model or merge {name!r}")
    if name in params.models and not (task := params.tasks[params.models[name].task]).own_metrics:
        raise InputError(
            f"params.yaml: models.{name}: its task is of the kind {task.kind}, which has no metric to evaluate it by; "
            "evaluate its merges"
        )
    if name in params.ensembles:
        of = params.ensembles[name]
        λ = {model: of.coefficients[model] / sum(of.coefficients.values()) for model in of.models}
        kinds = ensemble_kinds(of, params)
        predictions, fingerprints = ensemble({model: EVAL / model for model in of.models}, λ, kinds)
        origin: dict[str, Any] = {"method": "ensemble", "coefficients": λ}
    else:
        checkpoint = (MERGED if merged else FINETUNED) / name
        tasks = [TaskData.open(TASKS / task) for task in evaluated_tasks(name, params)]
        predictions, said = predict(checkpoint, tasks)
        fingerprints = {task.name: task.fingerprints["test"] for task in tasks}
        card = own_card(checkpoint)
        origin = card["origin"] if merged else {"task": card["task"], **card["origin"]}
        origin = origin | said
    measured_by = {task: params.tasks[task].own_metrics for task in predictions}
    primary = {task: own[0] for task, own in measured_by.items()}
    with atomic_directory(EVAL / name) as partial:
        for done, own in predictions.items():
            own.write(partial, done)
        worth, each = metrics(predictions, measured_by), contributions(predictions, primary, fingerprints)
        write_json(partial / METRICS, {"format_version": FORMAT_VERSION, "tasks": worth})
        write_json(partial / PER_EXAMPLE, {"format_version": FORMAT_VERSION, "tasks": each})
        write_json(partial / ORIGIN, {"format_version": FORMAT_VERSION, "name": name, **origin})
        write_contents(partial)


if __name__ == "__main__":
    run_stage(evaluate, "name")
