"""params.yaml → models/dvc.yaml: merges, evaluations and their scores, each with exactly what it needs as dependencies.

DVC's templates cannot make a list of dependencies, so this writes it out. `make plan` writes the file; `--check` says
whether it is what params.yaml asks for.
"""

import sys
from io import StringIO
from pathlib import Path
from typing import Any

from stages.artifacts import METRICS, ORIGIN, PREDICTIONS
from stages.command import run_stage
from stages.contents import CONTENTS
from stages.errors import InputError
from stages.params import PARAMS_FILE, Ensemble, Merge, Params, Statistic, Uncertainty, load_params
from stages.paths import EVAL, FINETUNED, FISHERS, GRAM, KFAC, MERGED, SCORES, SEARCH, SOURCES, TASKS

PLAN_FILE = Path("models/dvc.yaml")
TASK_CODE = ("stages/tasks/data.py", "stages/tasks/text_classification.py")
ESTIMATION_CODE = ("stages/estimates.py", "stages/curvature", *TASK_CODE)
EVALUATION_CODE = ("stages/evaluate.py", "stages/tasks/metrics.py", *TASK_CODE)
RESULT_FILES = (CONTENTS, METRICS, ORIGIN)  # of an evaluation, that the scores are collected from
HEADER = """\
# Generated from params.yaml by stages/plan.py: change params.yaml and run `make plan`, never edit this file.
"""
STATISTICS: dict[Statistic, Path] = {"diagonal": FISHERS, "kfac": KFAC, "gram": GRAM}
FACTORS: tuple[Statistic, ...] = ("kfac", "gram")  # planned where some merge needs them


def planned_stages(params: Params) -> dict[str, dict[str, Any]]:
    """All evaluations, merges and what these need, and the scores, by name, as they stand in models/dvc.yaml."""
    stages: dict[str, dict[str, Any]] = {}
    for kind in FACTORS:
        merges = [merge for merge in params.merges.values() if kind in merge.options.statistics]
        for model in sorted({model for merge in merges for model in merge.models}):
            stages[f"{kind}-{model}"] = _factors_stage(kind, model, params)
    for model in params.models:
        stages[f"evaluate-{model}"] = _evaluate_stage(model, _evaluated_on(FINETUNED / model, params))
    for name, merge in params.merges.items():
        if merge.search is not None:
            stages[f"search-{name}"] = _search_stage(name, merge, params)
        if isinstance(merge.options, Ensemble):
            predictions = [str(EVAL / model / file) for model in merge.models for file in (CONTENTS, PREDICTIONS)]
            stages[f"evaluate-{name}"] = _evaluate_stage(name, predictions) | {"params": [f"merges.{name}"]}
        else:
            stages[f"merge-{name}"] = _merge_stage(name, merge, params)
            stages[f"evaluate-{name}"] = _evaluate_stage(name, _evaluated_on(MERGED / name, params))
    stages["scores"] = _scores_stage(params)
    return stages


def planned_artifacts(params: Params) -> dict[str, dict[str, Any]]:
    """Every model's checkpoint and Fisher by name, for `dvc artifacts get`; paths are relative to models/dvc.yaml."""
    return {
        f"{kind}-{model}": {"path": (directory / model).relative_to(PLAN_FILE.parent).as_posix(), "type": "model"}
        for model in params.models
        for kind, directory in (("checkpoint", FINETUNED), ("fisher", FISHERS))
    }


def statistics_directories(merge: Merge) -> dict[str, list[Path]]:
    """Model → the directories of the statistics that the merge's method needs of it."""
    needed = {model: [STATISTICS[kind] / model for kind in merge.options.statistics] for model in merge.models}
    if isinstance(merge.options, Uncertainty) and merge.options.prior is not None:
        needed.setdefault(merge.options.prior, [FISHERS / merge.options.prior])
    return needed


def base_directory(merge: Merge, params: Params) -> Path | None:
    """The weights that the merge's models were fine-tuned from, if its method needs them."""
    return SOURCES / params.base_of(merge) if merge.options.needs_base else None


def search_tasks(merge: Merge, params: Params) -> list[str]:
    """The tasks on whose validation splits the merge's λ are scored."""
    assert merge.search is not None
    own = {params.models[model].task for model in merge.models}
    return merge.search.tasks or [task for task in params.tasks if task in own]


def _merge_inputs(merge: Merge, params: Params) -> list[str]:
    base = base_directory(merge, params)
    return [
        *(str(FINETUNED / model) for model in merge.models),
        *(str(directory) for places in statistics_directories(merge).values() for directory in places),
        *([str(base)] if base is not None else []),
    ]


def _factors_stage(kind: Statistic, model: str, params: Params) -> dict[str, Any]:
    return {
        "wdir": "..",
        "cmd": f"python -m stages.factors {kind} {model}",
        "params": ["fisher", f"models.{model}"],
        "deps": [
            str(FINETUNED / model),
            str(TASKS / params.models[model].task),
            "stages/factors.py",
            *ESTIMATION_CODE,
        ],
        "outs": [str(STATISTICS[kind] / model)],
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
            *EVALUATION_CODE[1:],
        ],
        "outs": [str(SEARCH / name / file) for file in ("coefficients.json", "sweep.svg")],
        "plots": [{str(SEARCH / name / "sweep.csv"): plot}],
    }


def _merge_stage(name: str, merge: Merge, params: Params) -> dict[str, Any]:
    return {
        "wdir": "..",
        "cmd": f"python -m stages.merge {name}",
        "params": [f"merges.{name}"],
        "deps": [
            *_merge_inputs(merge, params),
            *([str(SEARCH / name / "coefficients.json")] if merge.search is not None else []),
            "stages/merge.py",
            "stages/merging",
        ],
        "outs": [str(MERGED / name)],
    }


def _evaluated_on(checkpoint: Path, params: Params) -> list[str]:
    return [str(checkpoint), *(str(TASKS / task) for task in params.tasks)]


def _evaluate_stage(name: str, inputs: list[str]) -> dict[str, Any]:
    return {
        "wdir": "..",
        "cmd": f"python -m stages.evaluate {name}",
        "deps": [*inputs, *EVALUATION_CODE],
        "outs": [str(EVAL / name / file) for file in (PREDICTIONS, ORIGIN)],
        "metrics": [str(EVAL / name / METRICS)],
    }


def _scores_stage(params: Params) -> dict[str, Any]:
    return {
        "wdir": "..",
        "cmd": "python -m stages.scores",
        "params": ["models", "merges"],
        # File by file: dvc pulls no part of a directory.
        "deps": [
            *(str(EVAL / name / file) for name in (*params.models, *params.merges) for file in RESULT_FILES),
            "stages/scores.py",
        ],
        "outs": [str(SCORES)],
    }


def plan() -> None:
    """Write models/dvc.yaml."""
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.default_flow_style = False
    yaml.width = 200
    yaml.indent(mapping=2, sequence=4, offset=2)
    text = StringIO()
    params = load_params()
    yaml.dump({"stages": planned_stages(params), "artifacts": planned_artifacts(params)}, text)
    PLAN_FILE.parent.mkdir(exist_ok=True)
    partial = PLAN_FILE.with_name(".partial-dvc.yaml")
    partial.write_text(HEADER + text.getvalue(), encoding="utf-8")
    partial.replace(PLAN_FILE)


def check_plan(params: Params) -> None:
    """Raise `InputError` unless models/dvc.yaml is what params.yaml asks for; it says which merges differ."""
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
