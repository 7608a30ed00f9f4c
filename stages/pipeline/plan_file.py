"""models/dvc.yaml, written from params.yaml and compared with it; and dvc.yaml, written by hand and checked."""

from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

from stages.params import PARAMS_FILE, Params
from stages.pipeline.graph import PLAN_FILE, planned_artifacts, planned_stages
from stages.pipeline.places import (
    SCORES,
    SOURCES,
    code_file,
    settings_file,
)
from stages.running.errors import InputError
from stages.storage.outputs import PARTIAL_PREFIX

ENDS_FILE = Path("dvc.yaml")  # the pipeline's ends, written by hand
PACKAGE = "stages"  # whose every file may be some stage's code
HEADER = """\
# Generated from params.yaml by stages/pipeline/graph.py: change params.yaml and run `make plan`, never edit this file.
"""


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
    """Raise `InputError` unless the stages of dvc.yaml depend on their settings and on the code that they run."""
    wanted = {
        "settings": [str(PARAMS_FILE), PACKAGE],
        "fetch": [str(settings_file("fetch@${key}")), str(code_file("fetch@${key}"))],
        "prepare": [
            *(str(file("prepare@${key}")) for file in (settings_file, code_file)),
            str(SOURCES / "${item.source}"),
        ],
        "report": [str(code_file("report")), str(SCORES)],
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
