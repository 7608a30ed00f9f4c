"""What stages run, function by function, is code that they depend on."""

import json
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from stages.pipeline.code import UNFOLLOWED
from tests.project import Project, tiny_params

# What params.yaml is checked with, which every stage does: the values are in its settings.
SCHEMA = (
    "stages.running.section",
    "stages.storage.source",
    "stages.merging.options",
    "stages.merging.sizes",
    "stages.merging.methods",
    "stages.storage.statistic",
    "stages.tasks.task",
    "stages.tasks.classification",
    "stages.tasks.text_columns",
    "stages.tasks.metrics",  # which a task has, and what they are called
)

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
    project.run("python", "-m", "stages.settings")
    plan = YAML(typ="safe").load(project.root / "models/dvc.yaml")["stages"]
    commands = {"report": "report"}  # what is run → the stage that runs it
    commands |= {f"fetch {source}": f"fetch@{source}" for source in ("base", "tables")}
    commands |= {f"prepare {task}": f"prepare@{task}" for task in ("books", "films", "prose")}
    commands |= {entry["cmd"].removeprefix("python -m stages."): stage for stage, entry in plan.items()}
    # The plan asks the tasks' package which module a kind is; whoever needs that module depends on it by itself.
    known = {name.replace(".", "/") for name in (*UNFOLLOWED, "stages.tasks.__init__", *SCHEMA)}
    for command in _in_order(commands):
        module, *arguments = command.split()
        report = tmp_path / "called.json"
        project.run("python", str(tmp_path / "tracer.py"), f"stages.{module}", str(report), *arguments)
        called = json.loads(report.read_text())
        assert f"stages/{module}.py" in called
        named = set(json.loads((project.root / f"results/code/{commands[command]}.json").read_text()))
        for file in called:
            path = Path(file)
            free = {path.with_suffix("").as_posix(), *(parent.as_posix() for parent in path.parents)} - {"stages"}
            assert file in named or free & known, f"{command} runs {file}"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project that has been run."""
    root = tmp_path_factory.mktemp("finished")
    project = Project(root / "project", tiny_params(root / "inputs"))
    project.run("python", "-m", "stages.plan")
    project.repro()
    return project


@pytest.mark.parametrize("command", ["repro", "commit"])
def test_a_change_of_code(command: str, finished: Project, tmp_path: Path) -> None:
    """It re-runs what runs it, or nothing, where dvc is told that what is here is what the code makes."""
    project = finished.copy(tmp_path / "project")
    rule = project.root / "stages/merging/methods/fisher/rule.py"
    rule.write_text(f"{rule.read_text()}# No other result.\n")
    (row,) = [line for line in project.stage("stages.status").stdout.splitlines() if "stages/" in line]
    assert row.split()[:2] == ["fisher", "merge-fisher"]
    assert row.endswith("yes: stages/merging/methods/fisher/rule.py")
    if command == "repro":
        assert project.repro() == ["settings", "merge-fisher"], "what comes of it is the same"
    else:
        assert project.repro("settings") == ["settings"]
        project.run("dvc", "commit", "--force")
    assert project.repro() == []
    assert "yes: " not in project.stage("stages.status").stdout


def test_a_change_of_code_while_dvc_runs_is_refused(finished: Project, tmp_path: Path) -> None:
    """Else a result of the new code would be kept for the old."""
    project = finished.copy(tmp_path / "project")
    by_dvc = ("env", "DVC_STAGE=it", "python", "-m")
    for file, stages in {
        "stages/tasks/kinds/text_classification/reading.py": (["prepare", "books"],),
        "stages/reporting/templates/report.html.jinja": (["report"],),
        "stages/merging/methods/fisher/rule.py": (["merge", "fisher"],),
    }.items():
        changed = project.root / file
        text = changed.read_text()
        changed.write_text(f"{text}\n")
        for stage in stages:
            refused = project.run(*by_dvc, f"stages.{stage[0]}", *stage[1:], check=False)
            assert refused.stderr == (
                f"error: {file}: was changed after the stage `settings` ran; run `dvc repro --force settings`, then "
                "`dvc repro` again\n"
            )
            assert project.stage(f"stages.{stage[0]}", *stage[1:]).returncode == 0, "by hand it is what is meant"
        assert project.run(*by_dvc, "stages.merge", "average").returncode == 0, "the code of others is no matter"
        changed.write_text(text)


def _in_order(commands: dict[str, str]) -> list[str]:
    kinds = ["fetch", "prepare", "finetune", "fisher", "factors", "search", "merge", "evaluate"]
    order = {kind: position for position, kind in enumerate([*kinds, "similarity", "scores", "report"])}
    return sorted(commands, key=lambda command: (order[command.split()[0]], command.endswith("ensemble")))
