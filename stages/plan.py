"""params.yaml → models/dvc.yaml: the stages of every merge, each with exactly its own models as dependencies.

DVC's templates cannot make a list of dependencies, so this writes it out. `make plan` writes the file; `--check` says
whether it is what params.yaml asks for.
"""

import sys
from io import StringIO
from pathlib import Path
from typing import Any

from stages.command import run_stage
from stages.errors import InputError
from stages.params import PARAMS_FILE, EnsembleBaseline, Fisher, Merge, Params, load_params
from stages.paths import EVAL, FINETUNED, FISHERS, MERGED, TASKS

PLAN_FILE = Path("models/dvc.yaml")
EVALUATION_CODE = (
    "stages/evaluate.py",
    "stages/tasks/data.py",
    "stages/tasks/metrics.py",
    "stages/tasks/text_classification.py",
)
HEADER = """\
# Generated from params.yaml by stages/plan.py: change params.yaml and run `make plan`, never edit this file.
"""


def planned_stages(params: Params) -> dict[str, dict[str, Any]]:
    """The stages of all merges, by name, as they stand in models/dvc.yaml."""
    stages: dict[str, dict[str, Any]] = {}
    for name, merge in params.merges.items():
        if not isinstance(merge, EnsembleBaseline):
            stages[f"merge-{name}"] = _merge_stage(name, merge)
        stages[f"evaluate-{name}"] = _evaluate_stage(name, merge, params)
    return stages


def _merge_stage(name: str, merge: Merge) -> dict[str, Any]:
    needs_fisher = isinstance(merge, Fisher)
    return {
        "wdir": "..",
        "cmd": f"python -m stages.merge {name}",
        "params": [f"merges.{name}"],
        "deps": [
            *(str(FINETUNED / model) for model in merge.models),
            *(str(FISHERS / model) for model in merge.models if needs_fisher),
            "stages/merge.py",
            "stages/merging",
        ],
        "outs": [str(MERGED / name)],
    }


def _evaluate_stage(name: str, merge: Merge, params: Params) -> dict[str, Any]:
    if isinstance(merge, EnsembleBaseline):
        inputs = [str(EVAL / model) for model in merge.models]
        settings = {"params": [f"merges.{name}"]}
    else:
        inputs = [str(MERGED / name), *(str(TASKS / task) for task in params.tasks)]
        settings = {}
    return {
        "wdir": "..",
        "cmd": f"python -m stages.evaluate {name}",
        **settings,
        "deps": [*inputs, *EVALUATION_CODE],
        "outs": [str(EVAL / name / file) for file in ("predictions.parquet", "origin.json")],
        "metrics": [str(EVAL / name / "metrics.json")],
    }


def plan() -> None:
    """Write models/dvc.yaml."""
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.default_flow_style = False
    yaml.width = 200
    yaml.indent(mapping=2, sequence=4, offset=2)
    text = StringIO()
    yaml.dump({"stages": planned_stages(load_params())}, text)
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
    found = (content or {}).get("stages") or {}
    wanted = planned_stages(params)
    complaints = {
        "missing": wanted.keys() - found.keys(),
        "stale": {name for name in wanted.keys() & found.keys() if wanted[name] != found[name]},
        f"not in {PARAMS_FILE}": found.keys() - wanted.keys(),
    }
    listed = "; ".join(f"{kind}: {', '.join(sorted(names))}" for kind, names in complaints.items() if names)
    if listed:
        raise InputError(f"{PLAN_FILE} is not what {PARAMS_FILE} asks for ({listed}); run `make plan`")


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        del sys.argv[1:]
        run_stage(lambda: check_plan(load_params()))
    else:
        run_stage(plan)
