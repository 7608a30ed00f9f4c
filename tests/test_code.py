"""The code that a stage depends on, beside what it imports and what it runs."""

import ast
import json
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from stages.code import CHOSEN_AT_RUN_TIME, PACKAGE, READ, UNFOLLOWED, code_of, code_sha256
from tests.project import ROOT, Project, tiny_params

# Runs a stage and writes down the files of its functions that were called, but for calls while a module is imported.
TRACER = """
import json, os, runpy, sys, threading
module, report, root = sys.argv[1], sys.argv[2], os.path.realpath("stages") + os.sep
sys.path.insert(0, os.getcwd())
called = set()

def look(frame, event, argument):
    if event == "call" and frame.f_code.co_filename.startswith(root) and frame.f_code.co_name != "<module>":
        outer = frame
        while outer is not None and outer.f_code.co_name != "<module>":
            outer = outer.f_back
        if outer is None or outer.f_globals.get("__name__") in ("__main__", "threading"):
            called.add(os.path.relpath(frame.f_code.co_filename))

def write():
    with open(report, "w") as file:
        json.dump(sorted(called), file)

leave = os._exit
os._exit = lambda status: (write(), leave(status))
sys.argv = [module, *sys.argv[3:]]
sys.setprofile(look)
threading.setprofile(look)
try:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
finally:
    sys.setprofile(None)
    write()
"""


def test_every_import_is_read_as_it_is_written() -> None:
    """No relative imports, and none by a name that only a run knows but those that are said."""
    chosen = set()
    for file in PACKAGE.rglob("*.py"):
        module = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{file}: a relative import"
                chosen |= {module for alias in node.names if alias.name in ("import_module", "__import__")}
            if isinstance(node, ast.Import):
                assert not any(alias.name.startswith("importlib") for alias in node.names), file
            assert not (isinstance(node, ast.Name) and node.id == "__import__"), file
    assert chosen == CHOSEN_AT_RUN_TIME.keys() | {"stages.tasks"}, "who imports by name: tell stages/code.py"


@pytest.mark.parametrize("module", sorted(UNFOLLOWED))
def test_what_is_not_followed_is_there(module: str) -> None:
    path = PACKAGE.parent / module.replace(".", "/")
    assert path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def test_what_a_stage_depends_on() -> None:
    text = "tasks.text_classification"
    fisher, finetune, merge = code_of("fisher", text), code_of("finetune", text), code_of("merge")
    assert {"stages/fisher.py", "stages/estimates.py", "stages/curvature", "stages/device.py"} < set(fisher)
    assert {"stages/tasks/data.py", "stages/tasks/prediction.py", "stages/tensors.py"} < set(fisher)
    assert not any("report" in path or "search" in path or "merging" in path for path in fisher)
    assert {"stages/merging/inputs.py", "stages/training_progress.py", "stages/tasks/metrics.py"} < set(finetune)
    assert "stages/merging" not in finetune, "no rule of a merge is code of a training"
    assert "stages/merging" in merge, "rules are chosen by name"
    assert "stages/tasks/images.py" in code_of("prepare"), "imported in a function"
    assert "stages/tasks/images.py" in code_of("finetune", "tasks.image_classification")
    assert "stages/tasks/text_classification.py" in code_of("finetune", "tasks.masked_lm")
    assert {"stages/reporting", "stages/templates", "stages/statistics.py"} < set(code_of("report"))
    for paths in (fisher, finetune, merge):
        assert paths == sorted(paths)
        assert all((ROOT / path).exists() for path in paths)
        assert "stages/params" not in paths


def test_a_state_is_of_the_code_that_saved_it(tmp_path: Path) -> None:
    """Of all of it, and of no other."""
    project = Project(tmp_path / "project", tiny_params(tmp_path / "inputs"))
    digests = "from stages.code import *; print(code_sha256('estimates', 'tasks.masked_lm'), *READ)"

    def digest() -> str:
        return project.run("python", "-c", digests).stdout

    before = digest()
    assert before.split() == [code_sha256("estimates", "tasks.masked_lm"), *READ]
    for file in ("reporting/page.py", "merging/dare.py", "params/schema.py", "errors.py"):
        (project.root / "stages" / file).open("a").write("\n# other\n")
        assert digest() == before, file
    for file in ("curvature/rules.py", "tasks/data.py", "tasks/text_classification.py", "device.py", "estimates.py"):
        (project.root / "stages" / file).open("a").write("\n# other\n")
        after = digest()
        assert after != before, file
        before = after


def test_what_stages_run_is_what_they_depend_on(tmp_path: Path) -> None:
    """Every stage of a project with all kinds of them: no function is called in a file that the stage does not name."""

    def complete(params: dict) -> None:
        halves = {"books": 0.5, "films": 0.5}
        search = {"sampler": "grid", "points": 3}
        params["tasks"]["prose"] = {"kind": "masked-lm", "source": "tables", "file": "books.csv", "max_length": 16}
        params["models"]["reader"] = {"base": "base", "task": "prose", "fisher": {"estimator": "sketch", "examples": 4}}
        params["models"]["films"]["fisher"] = {"estimator": "adam"}
        params["merges"] = {
            "rough": {"method": "fisher", "coefficients": halves, "search": search, "heads": "each"},
            "blocks": {"method": "regmean", "coefficients": halves},
            "ensemble": {"method": "ensemble", "coefficients": halves},
        }

    project = Project(tmp_path / "project", tiny_params(tmp_path / "inputs"))
    project.edit_params(complete)
    (tmp_path / "tracer.py").write_text(TRACER)
    project.run("python", "-m", "stages.plan")
    plan = YAML(typ="safe").load(project.root / "models/dvc.yaml")["stages"]
    ends = YAML(typ="safe").load(project.root / "dvc.yaml")["stages"]
    commands = {"settings": ends["settings"]["deps"], "report": ends["report"]["deps"]}
    commands |= {f"fetch {source}": ends["fetch"]["do"]["deps"] for source in ("base", "tables")}
    commands |= {f"prepare {task}": ends["prepare"]["do"]["deps"] for task in ("books", "films", "prose")}
    commands |= {stage["cmd"].removeprefix("python -m stages."): stage["deps"] for stage in plan.values()}
    # The plan asks the tasks' package which module a kind is; whoever needs that module depends on it by itself.
    known = {name.replace(".", "/") for name in (*UNFOLLOWED, "stages.tasks.__init__")}
    for command in _in_order(commands):
        module, *arguments = command.split()
        report = tmp_path / "called.json"
        project.run("python", str(tmp_path / "tracer.py"), f"stages.{module}", str(report), *arguments)
        called = json.loads(report.read_text())
        assert f"stages/{module}.py" in called
        named = set(commands[command])
        for file in called:
            path = Path(file)
            own = {file, *(parent.as_posix() for parent in path.parents)}
            free = {path.with_suffix("").as_posix(), path.parent.as_posix()} - {"stages"}
            assert own & named or free & known, f"{command} runs {file}"


def _in_order(commands: dict[str, list[str]]) -> list[str]:
    kinds = ["settings", "fetch", "prepare", "finetune", "fisher", "factors", "search", "merge", "evaluate"]
    order = {kind: position for position, kind in enumerate([*kinds, "similarity", "scores", "report"])}
    return sorted(commands, key=lambda command: (order[command.split()[0]], command.endswith("ensemble")))
