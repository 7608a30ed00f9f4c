"""What each model, merge and stage needs, by params.yaml, and where that lies."""

from collections.abc import Iterable
from pathlib import Path

from stages.params import Ensemble, Merge, Params
from stages.pipeline.places import (
    FINETUNED,
    FISHERS,
    SOURCES,
    STATISTIC_PLACES,
)
from stages.tasks.kinds import metric_named
from stages.tasks.metrics import Metric


def statistics_directories(merge: Merge) -> dict[str, list[Path]]:
    """Model → the directories of the statistics that the merge's method needs of it."""
    needed = {model: [STATISTIC_PLACES[kind] / model for kind in merge.options.statistics] for model in merge.models}
    for model in merge.options.further_models.values():
        needed.setdefault(model, [FISHERS / model])
    return needed


def base_directory(merge: Merge, params: Params) -> Path | None:
    """The weights that the merge's models were fine-tuned from, if its method needs them."""
    name = params.base_of(merge) if merge.options.needs_base else None
    return None if name is None else base_place(name, params)


def base_place(name: str, params: Params) -> Path:
    """Where a model's base lies, a source or another model."""
    return SOURCES / name if name in params.sources else FINETUNED / name


def adapters_bases(models: Iterable[str], params: Params) -> list[Path]:
    """The bases of those of the models that are adapters, each once: with them, and not alone, they are models."""
    return sorted({base_place(params.models[model].base, params) for model in models if params.is_adapter(model)})


def evaluated_models(params: Params) -> list[str]:
    """The models whose kind of task has a metric; others (masked-lm) are evaluated by what they are merged into."""
    return [model for model, section in params.models.items() if params.tasks[section.task].own_metrics]


def roles(params: Params) -> dict[str, str]:
    """What is evaluated → `model`, `merge` or `baseline`; each of these in params.yaml's order.

    Old results of deleted merges may still lie on the disk.
    """
    return (
        dict.fromkeys(evaluated_models(params), "model")
        | dict.fromkeys(params.merges, "merge")
        | dict.fromkeys(params.ensembles, "baseline")
    )


def evaluated_tasks(name: str, params: Params) -> list[str]:
    """The tasks that a model or merge is evaluated on: those that ask for its own task's outputs, by kind and name."""
    if name in params.merges:
        return params.tasks_of(params.merges[name])
    task = params.tasks[params.models[name].task]
    return [other for other, found in params.tasks.items() if found.has_outputs_of(task)]


def ensemble_kinds(ensemble: Ensemble, params: Params) -> dict[str, str]:
    """Task → kind, of the tasks that all models of an ensemble are evaluated on."""
    tasks = [set(evaluated_tasks(model, params)) for model in ensemble.models]
    return {task: found.kind for task, found in params.tasks.items() if all(task in those for those in tasks)}


def search_metric(merge: Merge, params: Params) -> Metric:
    """The metric by which the merge's λ are searched: the named one, or the primary one of the tasks."""
    assert merge.search is not None
    if merge.search.metric is not None:
        return metric_named(merge.search.metric)
    return params.tasks[params.search_tasks(merge)[0]].own_metrics[0]


def models_with_fishers(params: Params) -> list[str]:
    """The models that have a Fisher, estimated or brought in, by name."""
    return sorted(model for model, section in params.models.items() if section.fisher is not False)
