"""What an edit of params.yaml re-runs, with real dvc: defaults, orders, sections, and experiments elsewhere."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.project import Project, tiny_params


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """One model of one task, and no section that may be left out; each test starts where the one before it ended."""
    root = tmp_path_factory.mktemp("params")
    params = tiny_params(root / "inputs")
    del params["finetune"], params["fisher"], params["merges"], params["tasks"]["films"], params["models"]["films"]
    for name, source in params["sources"].items():
        source["path"] = f"../inputs/{name}"
    project = Project(root / "project", params)
    project.run("python", "-m", "stages.plan")
    return project


def test_sections_may_be_left_out(project: Project) -> None:
    ran = project.repro()
    assert ran[0] == "settings"
    assert {"finetune-books", "fisher-books", "scores", "report"} < set(ran)
    card = json.loads((project.root / "models/finetuned/books/checkpoint.json").read_text())
    assert card["origin"]["epochs"] == 2
    assert project.repro() == []


def test_a_section_that_is_added_needs_no_plan(project: Project) -> None:
    """With what is the default anyway, nothing runs; a model's own Fisher is no matter of its training."""
    project.edit_params(lambda params: params.update(finetune={"epochs": 2}, fisher={"estimator": "exact"}, merges={}))
    assert project.repro() == ["settings"]
    project.edit_params(lambda params: params["models"]["books"].update(fisher={"examples": 7}))
    ran = project.repro()
    assert ran[:2] == ["settings", "fisher-books"]
    assert {"finetune-books", "evaluate-books"}.isdisjoint(ran)


def test_a_changed_default_reruns_what_it_is_in_force_for(project: Project) -> None:
    schema = project.root / "stages/params/schema.py"
    text = schema.read_text()
    other = text.replace("samples: int = Field(default=1", "samples: int = Field(default=2")
    assert other != text
    schema.write_text(other.replace("epochs: int = Field(default=2", "epochs: int = Field(default=3"))
    ran = project.repro("models/dvc.yaml:fisher-books")
    assert ran == ["settings", "fisher-books"], "epochs stand in params.yaml"
    assert json.loads((project.root / "models/fishers/books/fisher.json").read_text())["samples"] == 2
    schema.write_text(text)
    assert project.repro("models/dvc.yaml:fisher-books") == [], "it was there before"


def test_an_order_that_decides_something_is_seen(project: Project) -> None:
    rows = (project.root.parent / "inputs/tables/books.csv").read_text()
    table = project.root.parent / "inputs/stars/stars.csv"
    table.parent.mkdir()
    table.write_text(re.sub(",good", ",5", re.sub(",bad", ",1", rows)))
    from stages.storage.digests import tree_sha256

    def add(params: dict[str, Any]) -> None:
        params["sources"]["stars"] = {"path": "../inputs/stars", "sha256": tree_sha256(table.parent)}
        labels = {"good": [4, 5], "bad": [1, 2]}
        params["tasks"]["stars"] = {"source": "stars", "file": "stars.csv", "labels": labels}

    def labels() -> list[str]:
        card = json.loads((project.root / "data/tasks/stars/task.json").read_text())
        return list(card["labels"])

    project.edit_params(add)
    assert project.repro("prepare@stars") == ["settings", "fetch@stars", "prepare@stars"]
    assert labels() == ["good", "bad"]
    project.edit_params(lambda params: params["tasks"]["stars"].update(labels={"bad": [1, 2], "good": [4, 5]}))
    assert project.repro("prepare@stars") == ["settings", "prepare@stars"]
    assert labels() == ["bad", "good"]
    shutil.rmtree(project.root / "data/tasks/stars")
    (project.root / "dvc.lock").unlink()
    assert "prepare@stars" not in project.repro("prepare@stars"), "from the run cache, as a colleague has it"
    assert labels() == ["bad", "good"]


def test_an_experiment_in_a_directory_of_its_own_finds_the_sources(project: Project) -> None:
    """Their paths are relative, and pinned: what is found is what is meant, or refused."""
    for key, value in {"user.name": "Test", "user.email": "test@example.invalid"}.items():
        project.run("git", "config", key, value)
    project.commit("A run")
    Path(project.root / "data/sources/stars/stars.csv").unlink()
    shutil.rmtree(project.root / ".dvc/cache")
    result = project.run("dvc", "exp", "run", "--temp", "--set-param", "+tasks.stars.max_length=9", "fetch@stars")
    assert "Running stage 'fetch@stars'" in result.stdout
    assert "Ran experiment" in result.stdout
