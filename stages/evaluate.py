"""evaluate-NAME: a model's or merge's checkpoint on the test splits → results/eval/NAME/.

Logits are kept (`predictions.parquet`), so that an output ensemble needs no forward pass; which examples are right
(`correct.json`), so that two results on the same examples can be compared example by example.
"""

from typing import Any

from stages.pipeline.needs import evaluated_tasks
from stages.pipeline.places import EVAL, FINETUNED, MERGED, TASKS
from stages.pipeline.stage_settings import stage_params
from stages.results.evaluation import correct, ensemble, metrics, predict
from stages.running.command import run_stage
from stages.running.errors import InputError
from stages.storage.cards import (
    CHECKPOINT_CARD,
    CORRECT,
    FORMAT_VERSION,
    METRICS,
    ORIGIN,
    PREDICTIONS,
    read_json,
    write_json,
)
from stages.storage.digests import write_contents
from stages.storage.outputs import atomic_directory
from stages.tasks.data import TaskData


def evaluate(name: str) -> None:
    """Evaluate the model or merge `name` on every task whose labels it predicts."""
    params = stage_params(f"evaluate-{name}")
    merged = name in params.merges
    if not merged and name not in params.models.keys() | params.ensembles.keys():
        raise InputError(f"params.yaml: there is no model or merge {name!r}")
    if name in params.models and not params.tasks[params.models[name].task].is_evaluated:
        raise InputError(f"params.yaml: models.{name}: a model of its kind is not evaluated; evaluate its merges")
    if name in params.ensembles:
        of = params.ensembles[name]
        λ = {model: of.coefficients[model] / sum(of.coefficients.values()) for model in of.models}
        predictions, fingerprints = ensemble({model: EVAL / model for model in of.models}, λ)
        origin: dict[str, Any] = {"method": "ensemble", "coefficients": λ}
    else:
        checkpoint = (MERGED if merged else FINETUNED) / name
        tasks = [TaskData.open(TASKS / task) for task in evaluated_tasks(name, params)]
        predictions, cut = predict(checkpoint, tasks)
        fingerprints = {task.name: task.fingerprints["test"] for task in tasks}
        card = read_json(checkpoint / CHECKPOINT_CARD)
        origin = card["origin"] if merged else {"task": card["task"], **card["origin"]}
        origin = origin | ({"texts_cut_to_tokens": cut} if cut else {})
    with atomic_directory(EVAL / name) as partial:
        predictions.to_parquet(partial / PREDICTIONS, index=False)
        write_json(partial / METRICS, {"format_version": FORMAT_VERSION, "tasks": metrics(predictions)})
        write_json(partial / CORRECT, {"format_version": FORMAT_VERSION, "tasks": correct(predictions, fingerprints)})
        write_json(partial / ORIGIN, {"format_version": FORMAT_VERSION, "name": name, **origin})
        write_contents(partial)


if __name__ == "__main__":
    run_stage(evaluate, "name")
