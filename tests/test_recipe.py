"""Recipes with real dvc, in a project in miniature."""

import json
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from stages.recipe import heading, read_times, write_times
from tests.project import Project, tiny_params


def write_recipe(project: Project, name: str, words: str, params: dict[str, Any]) -> None:
    file = project.root / "recipes" / f"{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8") as stream:
        stream.write(words)
        YAML().dump(params, stream)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with two recipes, of which the first has been run."""
    root = tmp_path_factory.mktemp("recipes")
    params = tiny_params(root / "inputs")
    project = Project(root / "project", params)
    first = {**params, "merges": {"average": params["merges"]["average"]}}
    write_recipe(project, "plain", "# Averaging: is the mean\n# of two any good?\n#\n# A second paragraph.\n\n", first)
    halves = {"books": 0.5, "films": 0.5}
    more = {
        f"kept-{k}": {"method": "isotropic", "heads": "target", "coefficients": halves, "target": k} for k in halves
    }
    second = {**params, "merges": {**params["merges"], **more}}
    write_recipe(project, "full", "# All: with Fishers and an ensemble.\n", second)
    assert project.stage("stages.recipe", "plain").returncode == 0
    return project


def test_a_recipe_has_results_of_its_own(project: Project) -> None:
    assert (project.root / "workspaces/plain/results/report/report.html").is_file()
    assert not (project.root / "results").exists()
    assert project.run("git", "status", "--porcelain", "workspaces").stdout == ""
    seconds = json.loads((project.root / "workspaces/times.json").read_text())["seconds"]
    assert len(seconds) >= 8  # from fetch to report, for two models
    assert all(value > 0 for value in seconds.values())
    page = (project.root / "workspaces/report.html").read_text()
    assert "Averaging" in page
    assert "A second paragraph" in page
    assert "What each result costs" in page


def test_another_recipe_makes_nothing_again(project: Project) -> None:
    result = project.stage("stages.recipe", "full")
    assert result.returncode == 0, result.stderr
    ran = [line.split("'")[1].split(":")[-1] for line in result.stdout.splitlines() if line.startswith("Running stage")]
    own = ["fisher", "kept-books", "kept-films"]
    assert sorted(ran) == sorted(
        [
            *(f"{stage}-{name}" for name in own for stage in ("merge", "evaluate")),
            "evaluate-ensemble",
            "settings",
            "scores",
            "report",
        ]
    )
    page = (project.root / "workspaces/report.html").read_text()
    for title in ("Averaging", "All"):
        assert title in page
    # What the first recipe has measured counts for the second too, so that its sums are known.
    assert page.count("What a donor") == 1
    assert project.stage("stages.recipe", "full").stdout.count("Running stage") == 0


def test_a_recipe_that_is_half_there_is_left_out_of_the_report(project: Project) -> None:
    metrics = project.root / "workspaces/plain/results/eval/average/metrics.json"
    content = metrics.read_bytes()
    metrics.unlink()
    result = project.stage("stages.recipe", "full")
    metrics.write_bytes(content)
    assert result.returncode == 0, result.stderr
    assert (
        "plain is left out of the report: workspaces/plain/results/eval/average/metrics.json: not found"
        in result.stderr
    )
    page = (project.root / "workspaces/report.html").read_text()
    assert "Averaging" not in page
    assert "With Fishers and an ensemble" in page


def test_a_recipe_that_there_is_not(project: Project) -> None:
    result = project.stage("stages.recipe", "fool")
    assert result.returncode == 1
    assert result.stderr == "error: recipes/fool.yaml: there is no such recipe; known: full, plain\n"


def test_a_recipe_that_fails_says_so_and_leaves_the_report(project: Project) -> None:
    before = (project.root / "workspaces/report.html").read_bytes()
    write_recipe(project, "broken", "# Broken.\n", {**project.params, "merges": {"x": {"method": "fissher"}}})
    result = project.stage("stages.recipe", "broken")
    assert result.returncode == 1
    assert "unknown method; allowed" in result.stderr
    assert "Traceback" not in result.stderr
    assert (project.root / "workspaces/report.html").read_bytes() == before


def test_times_add_up(tmp_path: Path) -> None:
    file = tmp_path / "times.json"
    assert read_times(file) == {}
    write_times(file, {"a": 1.0})
    write_times(file, {"b": 2.0, "a": 3.0})
    assert read_times(file) == {"a": 3.0, "b": 2.0}


def test_a_heading_is_the_first_comment(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_text("# A title: these\n# words.\n#\n# More: this.\n\nsources: # not this\n")
    assert heading(file) == ("A title", "These words. \n\n More: this.")
    file.write_text("# Words only.\n")
    assert heading(file) == (tmp_path.name, "Words only.")
