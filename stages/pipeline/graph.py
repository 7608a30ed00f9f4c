"""The stages from fine-tuning to the scores, each with exactly what it needs, as DVC reads them.

DVC's templates can neither make a list of dependencies nor choose one (a model's base is a source or another model),
so this writes them out.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from stages.params import Ensemble, Merge, Params
from stages.pipeline.needs import (
    adapters_bases,
    base_directory,
    base_place,
    evaluated_models,
    evaluated_tasks,
    models_with_fishers,
    roles,
    statistics_directories,
)
from stages.pipeline.places import (
    EVAL,
    FINETUNED,
    FISHERS,
    MERGED,
    SCORES,
    SEARCH,
    SIMILARITY,
    SOURCES,
    STATISTIC_PLACES,
    TASKS,
    TRAINING,
    code_file,
    settings_file,
)
from stages.storage.cards import COEFFICIENTS, METRICS, ORIGIN, PER_EXAMPLE, PREDICTIONS, SWEEP
from stages.storage.digests import CONTENTS
from stages.storage.statistic import StatisticKind
from stages.storage.statistics import FACTORS

PLAN_FILE = Path("models/dvc.yaml")
RESULT_FILES = (CONTENTS, METRICS, PER_EXAMPLE, ORIGIN)  # of an evaluation, that the scores are collected from


def planned_stages(params: Params) -> dict[str, dict[str, Any]]:
    """All evaluations, merges and what these need, and the scores, by name, as they stand in models/dvc.yaml."""
    stages: dict[str, dict[str, Any]] = {}
    fishers = models_with_fishers(params)
    for model in params.models:
        stages[f"finetune-{model}"] = _finetune_stage(model, params)
        if model in fishers:
            stages[f"fisher-{model}"] = _fisher_stage(model, params)
    for kind in FACTORS.values():  # planned where some merge needs them
        merges = [merge for merge in params.merges.values() if kind.name in merge.options.statistics]
        for model in sorted({model for merge in merges for model in merge.models}):
            stages[f"{kind.stem}-{model}"] = _factors_stage(kind, model, params)
    for model in evaluated_models(params):
        stages[f"evaluate-{model}"] = _evaluate_stage(model, FINETUNED / model, params)
    for name, merge in params.merges.items():
        if merge.search is not None:
            stages[f"search-{name}"] = _search_stage(name, merge, params)
        stages[f"merge-{name}"] = _merge_stage(name, merge, params)
        stages[f"evaluate-{name}"] = _evaluate_stage(name, MERGED / name, params)
    for name, ensemble in params.ensembles.items():
        stages[f"evaluate-{name}"] = _ensemble_stage(name, ensemble)
    if fishers:
        stages["similarity"] = _similarity_stage(params)
    stages["scores"] = _scores_stage(params)
    return stages


def planned_artifacts(params: Params) -> dict[str, dict[str, Any]]:
    """Every model's checkpoint and Fisher, if it has one, for `dvc artifacts get`, with paths from models/dvc.yaml."""
    made = {f"checkpoint-{model}": FINETUNED / model for model in params.models}
    made |= {f"fisher-{model}": FISHERS / model for model in models_with_fishers(params)}
    return {
        name: {"path": place.relative_to(PLAN_FILE.parent).as_posix(), "type": "model"} for name, place in made.items()
    }


def stages_before(params: Params) -> dict[str, list[str]]:
    """Stage → all that it needs, directly or not, and itself; of the planned stages, in their order."""
    stages = planned_stages(params)
    makes = {path: name for name, entry in stages.items() for path in _outputs(entry)}
    needs = {name: {makes[path] for path in entry["deps"] if path in makes} for name, entry in stages.items()}

    def with_all_before(name: str) -> set[str]:
        return {name}.union(*(with_all_before(other) for other in needs[name]))

    return {name: [other for other in stages if other in with_all_before(name)] for name in stages}


def _outputs(stage: Mapping[str, Any]) -> list[str]:
    plots = [path for plot in stage.get("plots", []) for path in plot]
    return [*stage["outs"], *plots]


def _merge_inputs(merge: Merge, params: Params) -> list[str]:
    base = base_directory(merge, params)
    return [
        *(str(FINETUNED / model) for model in merge.models),
        *map(str, adapters_bases(merge.models, params)),
        *(str(directory) for places in statistics_directories(merge).values() for directory in places),
        *([str(base)] if base is not None and base not in adapters_bases(merge.models, params) else []),
    ]


def _stage(name: str, command: str, inputs: Iterable[str], outs: Iterable[str]) -> dict[str, Any]:
    """A stage's entry.

    Args:
        name: of the stage.
        command: its module and arguments.
        inputs: beside its settings and its code.
        outs: its outputs.
    """
    return {
        "wdir": "..",
        "cmd": f"python -m stages.{command}",
        "deps": [str(settings_file(name)), str(code_file(name)), *inputs],
        "outs": list(outs),
    }


def _finetune_stage(model: str, params: Params) -> dict[str, Any]:
    section = params.models[model]
    adapter = [] if section.adapter is None else [str(SOURCES / section.adapter)]
    inputs = [str(base_place(section.base, params)), *adapter, str(TASKS / section.task)]
    stage = _stage(f"finetune-{model}", f"finetune {model}", inputs, [str(FINETUNED / model)])
    return stage | {"plots": [{str(TRAINING / model): {"x": "step"}}]}


def _fisher_stage(model: str, params: Params) -> dict[str, Any]:
    return _stage(f"fisher-{model}", f"fisher {model}", _estimation_inputs(model, params), [str(FISHERS / model)])


def _factors_stage(kind: StatisticKind, model: str, params: Params) -> dict[str, Any]:
    out, command = STATISTIC_PLACES[kind.name] / model, f"factors {kind.name} {model}"
    return _stage(f"{kind.stem}-{model}", command, _estimation_inputs(model, params), [str(out)])


def _estimation_inputs(model: str, params: Params) -> list[str]:
    bases = map(str, adapters_bases([model], params))
    return [str(FINETUNED / model), *bases, str(TASKS / params.models[model].task)]


def _search_stage(name: str, merge: Merge, params: Params) -> dict[str, Any]:
    inputs = [*_merge_inputs(merge, params), *(str(TASKS / task) for task in params.search_tasks(merge))]
    outs = [str(SEARCH / name / file) for file in (COEFFICIENTS, CONTENTS, "sweep.svg")]
    stage = _stage(f"search-{name}", f"search {name}", inputs, outs)
    plot = {"template": "scatter", "x": f"λ {merge.target_model}", "y": "score"}
    return stage | {"plots": [{str(SEARCH / name / SWEEP): plot}]}


def _merge_stage(name: str, merge: Merge, params: Params) -> dict[str, Any]:
    found = [str(SEARCH / name / file) for file in (COEFFICIENTS, CONTENTS) if merge.search is not None]
    return _stage(f"merge-{name}", f"merge {name}", [*_merge_inputs(merge, params), *found], [str(MERGED / name)])


def _evaluate_stage(name: str, checkpoint: Path, params: Params) -> dict[str, Any]:
    models = params.merges[name].models if name in params.merges else [name]
    tasks = (str(TASKS / task) for task in evaluated_tasks(name, params))
    return _result_stage(name, [str(checkpoint), *map(str, adapters_bases(models, params)), *tasks])


def _ensemble_stage(name: str, ensemble: Ensemble) -> dict[str, Any]:
    files = (CONTENTS, PREDICTIONS, PER_EXAMPLE)
    return _result_stage(name, [str(EVAL / model / file) for model in ensemble.models for file in files])


def _result_stage(name: str, inputs: list[str]) -> dict[str, Any]:
    outs = [str(EVAL / name / file) for file in (CONTENTS, PREDICTIONS, METRICS, PER_EXAMPLE, ORIGIN)]
    return _stage(f"evaluate-{name}", f"evaluate {name}", inputs, outs)


def _similarity_stage(params: Params) -> dict[str, Any]:
    fishers = [str(FISHERS / model) for model in models_with_fishers(params)]
    return _stage("similarity", "similarity", fishers, [str(SIMILARITY)])


def _scores_stage(params: Params) -> dict[str, Any]:
    searched = sorted(name for name, merge in params.merges.items() if merge.search is not None)
    inputs = [  # file by file: dvc pulls no part of a directory
        *(str(EVAL / name / file) for name in sorted(roles(params)) for file in RESULT_FILES),
        *(str(SEARCH / name / file) for name in searched for file in (CONTENTS, SWEEP)),
        *([str(SIMILARITY)] if models_with_fishers(params) else []),
    ]
    return _stage("scores", "scores", inputs, [str(SCORES)])
