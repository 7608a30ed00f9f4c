"""What params.yaml and its defaults tell each stage, as the content of a file of its own."""

import json
import os
from collections.abc import Callable, Iterable
from typing import Any

from stages.merging.sizes import bytes_of
from stages.params import Params, Weighted, load_params
from stages.pipeline.code import REMEDY, RUN_BY_DVC, check_code
from stages.pipeline.needs import (
    base_directory,
    ensemble_kinds,
    evaluated_tasks,
    models_with_fishers,
    roles,
    search_metric,
)
from stages.pipeline.places import settings_file
from stages.pipeline.plan_file import check_stage
from stages.running.errors import InputError
from stages.storage.statistics import FACTORS

CHECKED_OTHERWISE = ("fetch@", "prepare@", "scores")  # in no plan; and the scores check the whole of it


def stage_params(stage: str) -> Params:
    """params.yaml, for a stage; when dvc runs it, it must say what dvc is going to record, and so must the code.

    Raises:
        InputError: params.yaml is wrong, it or the stage's code was edited after `dvc repro` had begun, or the stage is
            not planned by it.
    """
    params = load_params()
    if RUN_BY_DVC not in os.environ:
        return params
    try:
        told = settings_text(stage, params)
    except KeyError:  # a name that is gone
        told = ""
    file = settings_file(stage)
    if file.is_file() and file.read_text(encoding="utf-8") != told:
        raise InputError(f"params.yaml: was changed after the stage `settings` ran, in what {stage} is told; {REMEDY}")
    check_code(stage)
    if not stage.startswith(CHECKED_OTHERWISE):
        check_stage(stage, params)  # without all its inputs among dvc's dependencies its result would be a wrong one
    return params


def model_stage_params(stage: str, model: str) -> Params:
    """`stage_params`, for the stage STAGE-MODEL of a model.

    Raises:
        InputError: as `stage_params` does, or params.yaml has no such model.
    """
    params = stage_params(f"{stage}-{model}")
    if model not in params.models:
        raise InputError(f"params.yaml: models: there is no model {model!r}")
    return params


def settings_text(stage: str, params: Params) -> str:
    """The content of a stage's file.

    Args:
        stage: its name, as dvc has it.
        params: the whole of params.yaml.

    Raises:
        KeyError: there is no such stage, source, task, model or merge.
    """
    kind, _, name = stage.replace("@", "-").partition("-")
    return json.dumps(_SETTINGS[kind](name, params), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _fetch(name: str, params: Params) -> dict[str, Any]:
    return params.sources[name].model_dump(mode="json")


def _prepare(name: str, params: Params) -> dict[str, Any]:
    return params.tasks[name].model_dump(mode="json")


def _finetune(name: str, params: Params) -> dict[str, Any]:
    model = params.models[name]
    return {
        "base": model.base,
        "task": model.task,
        "finetune": params.finetune_settings(name).model_dump(mode="json") if model.finetune is not False else False,
        "keep_moments": params.fisher_settings(name).estimator == "adam",
        **({} if model.adapter is None else {"adapter": model.adapter, "base_names": params.names_of_base(name)}),
    }


def _fisher(name: str, params: Params) -> dict[str, Any]:
    source = params.fisher_source(name)
    return _factors(name, params) if source is None else {"source": source.model_dump(mode="json")}


def _factors(name: str, params: Params) -> dict[str, Any]:
    return {"task": params.models[name].task, "fisher": params.fisher_settings(name).model_dump(mode="json")}


def _merge(name: str, params: Params) -> dict[str, Any]:
    merge = params.merges[name]
    base = base_directory(merge, params)
    return {
        "models": _coefficients(merge) if merge.search is None else merge.models,
        "options": merge.options.model_dump(mode="json"),
        "keeps_single_model": merge.options.keeps_single_model,
        "base": None if base is None else str(base),
        "heads": merge.heads,
        **({"vocabulary": merge.vocabulary} if merge.vocabulary != "same" else {}),
        "precision": merge.precision,
        "max_shard_size": bytes_of(merge.max_shard_size),
        **({} if merge.adapter is None else {"rank": merge.adapter.rank}),
    }


def _search(name: str, params: Params) -> dict[str, Any]:
    merge = params.merges[name]
    if merge.search is None:
        raise KeyError(name)
    return _merge(name, params) | {
        "search": merge.search.model_dump(mode="json") | {"metric": search_metric(merge, params).name},
        "start": _coefficients(merge),
        "tasks": params.search_tasks(merge),
        "experts": [[model, params.models[model].task] for model in merge.models],
    }


def _evaluate(name: str, params: Params) -> dict[str, Any]:
    if name in params.ensembles:
        ensemble = params.ensembles[name]
        kinds = ensemble_kinds(ensemble, params)
        return {"ensemble": _coefficients(ensemble), "kinds": kinds, "metrics": _metrics(kinds, params)}
    tasks = evaluated_tasks(name, params)
    return {"merged": name in params.merges, "tasks": tasks, "metrics": _metrics(tasks, params)}


def _metrics(tasks: Iterable[str], params: Params) -> dict[str, list[str]]:
    """Task → the names of its metrics, the primary one first."""
    return {task: [metric.name for metric in params.tasks[task].own_metrics] for task in tasks}


def _similarity(_: str, params: Params) -> dict[str, Any]:
    return {"fishers": models_with_fishers(params)}


def _scores(_: str, params: Params) -> dict[str, Any]:
    searched = [name for name, merge in params.merges.items() if merge.search is not None]
    return {"results": list(roles(params).items()), "searched": searched, "fishers": models_with_fishers(params)}


def _coefficients(merge: Weighted) -> list[list[str | float]]:
    """The models in the order in which they are merged, the target first, with their λ."""
    return [[model, merge.coefficients[model]] for model in merge.models]


_SETTINGS: dict[str, Callable[[str, Params], dict[str, Any]]] = {
    **dict.fromkeys((kind.stem for kind in FACTORS.values()), _factors),
    "fetch": _fetch,
    "prepare": _prepare,
    "finetune": _finetune,
    "fisher": _fisher,
    "search": _search,
    "merge": _merge,
    "evaluate": _evaluate,
    "similarity": _similarity,
    "scores": _scores,
}
