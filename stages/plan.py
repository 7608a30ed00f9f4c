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
from stages.code import code_of
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
    SETTINGS,
    SIMILARITY,
    SOURCES,
    TASKS,
    TRAINING,
)
from stages.tasks import module_of

PLAN_FILE = Path("models/dvc.yaml")
ENDS_FILE = Path("dvc.yaml")  # the pipeline's ends, written by hand
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
    return [*stage["outs"], *plots]


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


def roles(params: Params) -> dict[str, str]:
    """What is evaluated → `model`, `merge` or `baseline`, in params.yaml's order.

    Old results of deleted merges may still lie on the disk.
    """
    merges = {
        name: "baseline" if isinstance(merge.options, Ensemble) else "merge" for name, merge in params.merges.items()
    }
    return dict.fromkeys(evaluated_models(params), "model") | merges


def evaluated_tasks(name: str, params: Params) -> list[str]:
    """The tasks that a model or merge is evaluated on: those whose kind and labels are its own task's, by name.

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
    """The models that have a Fisher, estimated or brought in, by name."""
    return sorted(model for model, section in params.models.items() if section.fisher is not False)


def settings_file(stage: str) -> Path:
    """What the stage of that name is told by params.yaml."""
    return SETTINGS / f"{stage}.json"


def _merge_inputs(merge: Merge, params: Params) -> list[str]:
    base = base_directory(merge, params)
    return [
        *(str(FINETUNED / model) for model in merge.models),
        *(str(directory) for places in statistics_directories(merge).values() for directory in places),
        *([str(base)] if base is not None else []),
    ]


def _stage(name: str, command: str, inputs: Iterable[str], code: Iterable[str], outs: Iterable[str]) -> dict[str, Any]:
    """A stage's entry.

    Args:
        name: of the stage.
        command: its module and arguments.
        inputs: beside its settings.
        code: its modules, as `code_of` takes them.
        outs: its outputs.
    """
    return {
        "wdir": "..",
        "cmd": f"python -m stages.{command}",
        "deps": [str(settings_file(name)), *inputs, *code_of(*code)],
        "outs": list(outs),
    }


def _kinds(tasks: Iterable[str], params: Params) -> list[str]:
    """The modules of the tasks' kinds."""
    return sorted({module_of(params.tasks[task].kind) for task in tasks})


def _finetune_stage(model: str, params: Params) -> dict[str, Any]:
    section = params.models[model]
    inputs = [str(base_place(section.base, params)), str(TASKS / section.task)]
    code = ["finetune", *_kinds([section.task], params)]
    stage = _stage(f"finetune-{model}", f"finetune {model}", inputs, code, [str(FINETUNED / model)])
    return stage | {"plots": [{str(TRAINING / model): {"x": "step"}}]}


def _fisher_stage(model: str, params: Params) -> dict[str, Any]:
    code = ["fisher", *_kinds([params.models[model].task], params)]
    return _stage(f"fisher-{model}", f"fisher {model}", _estimation_inputs(model, params), code, [str(FISHERS / model)])


def _factors_stage(kind: Statistic, model: str, params: Params) -> dict[str, Any]:
    code = ["factors", *_kinds([params.models[model].task], params)]
    out = STATISTICS[kind] / model
    return _stage(f"{kind}-{model}", f"factors {kind} {model}", _estimation_inputs(model, params), code, [str(out)])


def _estimation_inputs(model: str, params: Params) -> list[str]:
    return [str(FINETUNED / model), str(TASKS / params.models[model].task)]


def _search_stage(name: str, merge: Merge, params: Params) -> dict[str, Any]:
    tasks = search_tasks(merge, params)
    inputs = [*_merge_inputs(merge, params), *(str(TASKS / task) for task in tasks)]
    outs = [str(SEARCH / name / file) for file in (COEFFICIENTS, CONTENTS, "sweep.svg")]
    stage = _stage(f"search-{name}", f"search {name}", inputs, ["search", *_kinds(tasks, params)], outs)
    plot = {"template": "scatter", "x": f"λ {merge.target_model}", "y": "score"}
    return stage | {"plots": [{str(SEARCH / name / SWEEP): plot}]}


def _merge_stage(name: str, merge: Merge, params: Params) -> dict[str, Any]:
    found = [str(SEARCH / name / file) for file in (COEFFICIENTS, CONTENTS) if merge.search is not None]
    inputs = [*_merge_inputs(merge, params), *found]
    return _stage(f"merge-{name}", f"merge {name}", inputs, ["merge"], [str(MERGED / name)])


def _evaluate_stage(name: str, checkpoint: Path, params: Params) -> dict[str, Any]:
    tasks = evaluated_tasks(name, params)
    inputs = [str(checkpoint), *(str(TASKS / task) for task in tasks)]
    return _result_stage(name, inputs, _kinds(tasks, params))


def _ensemble_stage(name: str, merge: Merge) -> dict[str, Any]:
    predictions = [str(EVAL / model / file) for model in merge.models for file in (CONTENTS, PREDICTIONS, CORRECT)]
    return _result_stage(name, predictions, [])


def _result_stage(name: str, inputs: list[str], kinds: list[str]) -> dict[str, Any]:
    outs = [str(EVAL / name / file) for file in (CONTENTS, PREDICTIONS, METRICS, CORRECT, ORIGIN)]
    return _stage(f"evaluate-{name}", f"evaluate {name}", inputs, ["evaluate", *kinds], outs)


def _similarity_stage(params: Params) -> dict[str, Any]:
    fishers = [str(FISHERS / model) for model in models_with_fishers(params)]
    return _stage("similarity", "similarity", fishers, ["similarity"], [str(SIMILARITY)])


def _scores_stage(params: Params) -> dict[str, Any]:
    searched = sorted(name for name, merge in params.merges.items() if merge.search is not None)
    inputs = [  # file by file: dvc pulls no part of a directory
        *(str(EVAL / name / file) for name in sorted(roles(params)) for file in RESULT_FILES),
        *(str(SEARCH / name / file) for name in searched for file in (CONTENTS, SWEEP)),
        *([str(SIMILARITY)] if models_with_fishers(params) else []),
    ]
    return _stage("scores", "scores", inputs, ["scores"], [str(SCORES)])


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
    _refuse(_differences(params))


def check_stage(stage: str, params: Params) -> None:
    """Raise `InputError` unless models/dvc.yaml has the stage as params.yaml asks for it: with all that it reads."""
    _refuse({kind: names & {stage} for kind, names in _differences(params).items()})


def _differences(params: Params) -> dict[str, set[str]]:
    """What is wrong with models/dvc.yaml → the stages and artifacts of which it is."""
    content = _read(PLAN_FILE)
    found = _entries(content.get("stages"), "") | _entries(content.get("artifacts"), "artifact ")
    wanted = _entries(planned_stages(params), "") | _entries(planned_artifacts(params), "artifact ")
    return {
        "missing": wanted.keys() - found.keys(),
        "stale": {name for name in wanted.keys() & found.keys() if wanted[name] != found[name]},
        f"not in {PARAMS_FILE}": found.keys() - wanted.keys(),
    }


def _refuse(differences: Mapping[str, set[str]]) -> None:
    listed = "; ".join(f"{kind}: {', '.join(sorted(names))}" for kind, names in differences.items() if names)
    if listed:
        raise InputError(f"{PLAN_FILE} is not what {PARAMS_FILE} asks for ({listed}); run `make plan`")


def _entries(section: object, prefix: str) -> dict[str, Any]:
    """A section's entries, told apart from another section's of the same names."""
    return {f"{prefix}{name}": entry for name, entry in section.items()} if isinstance(section, dict) else {}


def check_ends() -> None:
    """Raise `InputError` unless the stages of dvc.yaml depend on their settings and on all the code that they run."""
    wanted = {
        "settings": [str(PARAMS_FILE), *code_of("settings", "params", "plan")],
        "fetch": [str(settings_file("fetch@${key}")), *code_of("fetch")],
        "prepare": [str(settings_file("prepare@${key}")), str(SOURCES / "${item.source}"), *code_of("prepare")],
        "report": [str(SCORES), *code_of("report")],
    }
    stages = _entries(_read(ENDS_FILE).get("stages"), "")
    for name, deps in wanted.items():
        entry = stages.get(name)
        entry = entry.get("do", entry) if isinstance(entry, dict) else {}
        found = entry.get("deps") or []
        if sorted(map(str, found)) != sorted(deps):
            raise InputError(f"{ENDS_FILE}: stages.{name}.deps must be: {', '.join(deps)}")


def _read(file: Path) -> dict[str, Any]:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    remedy = "run `make plan`" if file == PLAN_FILE else "take this project's own"
    try:
        content = YAML(typ="safe", pure=True).load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{file}: not found; {remedy}") from None
    except (YAMLError, UnicodeDecodeError):
        raise InputError(f"{file}: not valid YAML; {remedy}") from None
    return content if isinstance(content, dict) else {}


def check() -> None:
    """Check models/dvc.yaml, and what is written by hand in dvc.yaml."""
    check_plan(load_params())
    check_ends()


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        del sys.argv[1:]
        run_stage(check)
    else:
        run_stage(plan)
