"""params.yaml → models/dvc.yaml: from fine-tuning to the scores, each stage with exactly what it needs.

DVC's templates can neither make a list of dependencies nor choose one (a model's base is a source or another model),
so this writes them out. `make plan` writes the file; `--check` says whether it is what params.yaml asks for.
"""

import sys
from collections.abc import Iterable, Mapping
from io import StringIO
from pathlib import Path
from typing import Any

from stages.artifacts import COEFFICIENTS, CORRECT, METRICS, ORIGIN, PARTIAL_PREFIX, PREDICTIONS, SWEEP
from stages.command import run_stage
from stages.contents import CONTENTS
from stages.errors import InputError
from stages.params import PARAMS_FILE, Ensemble, Merge, Params, Statistic, Uncertainty, load_params
from stages.paths import (
    EVAL,
    FINETUNED,
    FISHERS,
    GRAM,
    KFAC,
    MERGED,
    SCORES,
    SEARCH,
    SIMILARITY,
    SOURCES,
    TASKS,
    TRAINING,
)
from stages.tasks import kind_modules

PLAN_FILE = Path("models/dvc.yaml")
ESTIMATION_CODE = ("stages/estimates.py", "stages/curvature")
METRICS_CODE = "stages/tasks/metrics.py"
RESULT_FILES = (CONTENTS, METRICS, CORRECT, ORIGIN)  # of an evaluation, that the scores are collected from
HEADER = """\
# Generated from params.yaml by stages/plan.py: change params.yaml and run `make plan`, never edit this file.
"""
STATISTICS: dict[Statistic, Path] = {"diagonal": FISHERS, "kfac": KFAC, "gram": GRAM}
FACTORS: tuple[Statistic, ...] = ("kfac", "gram")  # planned where some merge needs them


def planned_stages(params: Params) -> dict[str, dict[str, Any]]:
    """All evaluations, merges and what these need, and the scores, by name, as they stand in models/dvc.yaml."""
    stages: dict[str, dict[str, Any]] = {}
    fishers = models_with_fishers(params)
    for model in params.models:
        stages[f"finetune-{model}"] = _finetune_stage(model, params)
        if model in fishers:
            stages[f"fisher-{model}"] = _fisher_stage(model, params)
    for kind in FACTORS:
        merges = [merge for merge in params.merges.values() if kind in merge.options.statistics]
        for model in sorted({model for merge in merges for model in merge.models}):
            stages[f"{kind}-{model}"] = _factors_stage(kind, model, params)
    for model in evaluated_models(params):
        stages[f"evaluate-{model}"] = _evaluate_stage(model, FINETUNED / model, params)
    for name, merge in params.merges.items():
        if merge.search is not None:
            stages[f"search-{name}"] = _search_stage(name, merge, params)
        if isinstance(merge.options, Ensemble):
            stages[f"evaluate-{name}"] = _ensemble_stage(name, merge)
        else:
            stages[f"merge-{name}"] = _merge_stage(name, merge, params)
            stages[f"evaluate-{name}"] = _evaluate_stage(name, MERGED / name, params)
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
    return [*stage["outs"], *stage.get("metrics", []), *plots]


def statistics_directories(merge: Merge) -> dict[str, list[Path]]:
    """Model → the directories of the statistics that the merge's method needs of it."""
    needed = {model: [STATISTICS[kind] / model for kind in merge.options.statistics] for model in merge.models}
    if isinstance(merge.options, Uncertainty) and merge.options.prior is not None:
        needed.setdefault(merge.options.prior, [FISHERS / merge.options.prior])
    return needed


def base_directory(merge: Merge, params: Params) -> Path | None:
    """The weights that the merge's models were fine-tuned from, if its method needs them."""
    name = params.base_of(merge) if merge.options.needs_base else None
    return None if name is None else base_place(name, params)


def base_place(name: str, params: Params) -> Path:
    """Where a model's base lies, a source or another model."""
    return SOURCES / name if name in params.sources else FINETUNED / name


def evaluated_models(params: Params) -> list[str]:
    """The models that predict labels; others (masked-lm) are evaluated by what they are merged into."""
    return [model for model, section in params.models.items() if params.tasks[section.task].labels]


def evaluated_tasks(name: str, params: Params) -> list[str]:
    """The tasks that a model or merge is evaluated on: those whose kind and labels are its own task's, in its order.

    A merge that keeps each model's head is evaluated on its models' own tasks.
    """
    merge = params.merges.get(name)
    if merge is not None and merge.heads == "each":
        own = {params.models[model].task for model in merge.models}
        return [task for task in params.tasks if task in own]
    task = params.tasks[params.models[name if merge is None else merge.target_model].task]
    return [
        other
        for other, found in params.tasks.items()
        if found.kind == task.kind and list(found.labels) == list(task.labels)
    ]


def search_tasks(merge: Merge, params: Params) -> list[str]:
    """The tasks on whose validation splits the merge's λ are scored."""
    assert merge.search is not None
    own = {params.models[model].task for model in merge.models}
    return merge.search.tasks or [task for task, found in params.tasks.items() if task in own and found.labels]


def models_with_fishers(params: Params) -> list[str]:
    """The models that have a Fisher, estimated or brought in."""
    return [model for model, section in params.models.items() if section.fisher is not False]


def _merge_inputs(merge: Merge, params: Params) -> list[str]:
    base = base_directory(merge, params)
    return [
        *(str(FINETUNED / model) for model in merge.models),
        *(str(directory) for places in statistics_directories(merge).values() for directory in places),
        *([str(base)] if base is not None else []),
    ]


def _task_code(tasks: Iterable[str], params: Params) -> list[str]:
    modules = {module for task in tasks for module in kind_modules(params.tasks[task].kind)}
    return [f"stages/tasks/{module}.py" for module in sorted(modules)]


def _finetune_stage(model: str, params: Params) -> dict[str, Any]:
    section = params.models[model]
    return {
        "wdir": "..",
        "cmd": f"python -m stages.finetune {model}",
        "params": ["finetune", f"models.{model}"],
        "deps": [
            str(base_place(section.base, params)),
            str(TASKS / section.task),
            "stages/finetune.py",
            "stages/training_progress.py",
            *_task_code([section.task], params),
        ],
        "outs": [str(FINETUNED / model)],
        "plots": [{str(TRAINING / model): {"x": "step"}}],
    }


def _fisher_stage(model: str, params: Params) -> dict[str, Any]:
    return _estimation_stage(f"python -m stages.fisher {model}", "stages/fisher.py", FISHERS / model, model, params)


def _factors_stage(kind: Statistic, model: str, params: Params) -> dict[str, Any]:
    command = f"python -m stages.factors {kind} {model}"
    return _estimation_stage(command, "stages/factors.py", STATISTICS[kind] / model, model, params)


def _estimation_stage(command: str, code: str, out: Path, model: str, params: Params) -> dict[str, Any]:
    task = params.models[model].task
    return {
        "wdir": "..",
        "cmd": command,
        "params": ["fisher", f"models.{model}"],
        "deps": [str(FINETUNED / model), str(TASKS / task), code, *ESTIMATION_CODE, *_task_code([task], params)],
        "outs": [str(out)],
    }


def _search_stage(name: str, merge: Merge, params: Params) -> dict[str, Any]:
    plot = {"template": "scatter", "x": f"λ {merge.target_model}", "y": "score"}
    return {
        "wdir": "..",
        "cmd": f"python -m stages.search {name}",
        "params": [f"merges.{name}"],
        "deps": [
            *_merge_inputs(merge, params),
            *(str(TASKS / task) for task in search_tasks(merge, params)),
            "stages/search.py",
            "stages/searching",
            "stages/merging",
            METRICS_CODE,
            *_task_code(search_tasks(merge, params), params),
        ],
        "outs": [str(SEARCH / name / file) for file in (COEFFICIENTS, CONTENTS, "sweep.svg")],
        "plots": [{str(SEARCH / name / SWEEP): plot}],
    }


def _merge_stage(name: str, merge: Merge, params: Params) -> dict[str, Any]:
    return {
        "wdir": "..",
        "cmd": f"python -m stages.merge {name}",
        "params": [f"merges.{name}"],
        "deps": [
            *_merge_inputs(merge, params),
            *(str(SEARCH / name / file) for file in (COEFFICIENTS, CONTENTS) if merge.search is not None),
            "stages/merge.py",
            "stages/merging",
        ],
        "outs": [str(MERGED / name)],
    }


def _evaluate_stage(name: str, checkpoint: Path, params: Params) -> dict[str, Any]:
    tasks = evaluated_tasks(name, params)
    inputs = [str(checkpoint), *(str(TASKS / task) for task in tasks)]
    return _result_stage(name, inputs, _task_code(tasks, params))


def _ensemble_stage(name: str, merge: Merge) -> dict[str, Any]:
    predictions = [str(EVAL / model / file) for model in merge.models for file in (CONTENTS, PREDICTIONS, CORRECT)]
    return _result_stage(name, predictions, []) | {"params": [f"merges.{name}"]}


def _result_stage(name: str, inputs: list[str], code: list[str]) -> dict[str, Any]:
    return {
        "wdir": "..",
        "cmd": f"python -m stages.evaluate {name}",
        "deps": [*inputs, "stages/evaluate.py", METRICS_CODE, *code],
        "outs": [str(EVAL / name / file) for file in (CONTENTS, PREDICTIONS, CORRECT, ORIGIN)],
        "metrics": [str(EVAL / name / METRICS)],
    }


def _similarity_stage(params: Params) -> dict[str, Any]:
    return {
        "wdir": "..",
        "cmd": "python -m stages.similarity",
        "deps": [*(str(FISHERS / model) for model in models_with_fishers(params)), "stages/similarity.py"],
        "outs": [str(SIMILARITY)],
    }


def _scores_stage(params: Params) -> dict[str, Any]:
    return {
        "wdir": "..",
        "cmd": "python -m stages.scores",
        "params": ["models", "merges"],
        # File by file: dvc pulls no part of a directory.
        "deps": [
            *(str(EVAL / name / file) for name in (*evaluated_models(params), *params.merges) for file in RESULT_FILES),
            *(
                str(SEARCH / name / file)
                for name, merge in params.merges.items()
                if merge.search is not None
                for file in (CONTENTS, SWEEP)
            ),
            *([str(SIMILARITY)] if models_with_fishers(params) else []),
            "stages/scores.py",
        ],
        "outs": [str(SCORES)],
    }


def plan() -> None:
    """Write models/dvc.yaml."""
    write_plan(load_params(), PLAN_FILE)


def write_plan(params: Params, file: Path) -> None:
    """Write the plan of these parameters as `file`, whole or not at all."""
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.default_flow_style = False
    yaml.width = 200
    yaml.indent(mapping=2, sequence=4, offset=2)
    text = StringIO()
    yaml.dump({"stages": planned_stages(params), "artifacts": planned_artifacts(params)}, text)
    file.parent.mkdir(exist_ok=True)
    partial = file.with_name(f"{PARTIAL_PREFIX}{file.name}")
    partial.write_text(HEADER + text.getvalue(), encoding="utf-8")
    partial.replace(file)


def check_plan(params: Params) -> None:
    """Raise `InputError` unless models/dvc.yaml is what params.yaml asks for; it says which entries differ."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        content = YAML(typ="safe", pure=True).load(PLAN_FILE.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{PLAN_FILE}: not found; run `make plan`") from None
    except (YAMLError, UnicodeDecodeError):
        raise InputError(f"{PLAN_FILE}: not valid YAML; run `make plan`") from None
    found = _entries(content)
    wanted = planned_stages(params) | planned_artifacts(params)
    complaints = {
        "missing": wanted.keys() - found.keys(),
        "stale": {name for name in wanted.keys() & found.keys() if wanted[name] != found[name]},
        f"not in {PARAMS_FILE}": found.keys() - wanted.keys(),
    }
    listed = "; ".join(f"{kind}: {', '.join(sorted(names))}" for kind, names in complaints.items() if names)
    if listed:
        raise InputError(f"{PLAN_FILE} is not what {PARAMS_FILE} asks for ({listed}); run `make plan`")


def _entries(content: object) -> dict[str, Any]:
    """The stages and artifacts of a dvc.yaml; no two of ours have one name."""
    sections = [content.get(key) for key in ("stages", "artifacts")] if isinstance(content, dict) else []
    return {name: entry for section in sections if isinstance(section, dict) for name, entry in section.items()}


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        del sys.argv[1:]
        run_stage(lambda: check_plan(load_params()))
    else:
        run_stage(plan)
