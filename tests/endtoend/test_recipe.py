"""Recipes with real dvc, in a project in miniature."""

import json
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from stages.recipe import copy_settings, heading, read_times, write_times
from tests.project import Project, tiny_params

SECRET = "of nobody else's interest"


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
    # Who tried an earlier version has the keys in the workspace.
    project.run("dvc", "remote", "add", "--local", "--default", "team", "../remote")
    project.run("dvc", "remote", "add", "--local", "bucket", "s3://bucket/fishers")
    project.run("dvc", "remote", "modify", "--local", "bucket", "secret_access_key", SECRET)
    project.run("dvc", "config", "--local", "cache.shared", "group")
    (project.root / "workspaces/plain/.dvc").mkdir(parents=True)
    shutil.copyfile(project.root / ".dvc/config.local", project.root / "workspaces/plain/.dvc/config.local")
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


def test_keys_stay_where_they_are(project: Project) -> None:
    files = [file for file in (project.root / "workspaces").rglob("*") if file.is_file()]
    (holder,) = (file for file in files if SECRET.encode() in file.read_bytes())
    assert holder == project.root / "workspaces/plain/.dvc/config"
    assert stat.S_IMODE(holder.stat().st_mode) == 0o600
    workspace, values = Project.at(project.root / "workspaces/plain"), {}
    for name in ("core.no_scm", "core.remote", "cache.dir", "remote.team.url", "remote.bucket.secret_access_key"):
        values[name] = workspace.run("dvc", "config", name).stdout.strip()
    assert values == {
        "core.no_scm": "true",
        "core.remote": "team",
        "cache.dir": str(project.root / ".dvc/cache"),
        "remote.team.url": str(project.root.parent / "remote"),
        "remote.bucket.secret_access_key": SECRET,
    }


def test_settings_mean_the_same_in_another_place(tmp_path: Path) -> None:
    """Paths, relative to where they stand; also what DVC puts in quotes; a project without any settings has none."""
    project, other = Project(tmp_path / "a, 'b' #c/project", {}), Project(tmp_path / "other/other", {})
    project.run("dvc", "remote", "add", "--local", "team", "../remote, of #us")
    project.run("dvc", "remote", "add", "public", "ssh://host/a#b")
    settings = {
        "remote.team.verify": "true",
        "remote.public.keyfile": "../key",
        "cache.type": "hardlink,copy",
        "core.site_cache_dir": "/a, b#c's %d",
    }
    for name, value in settings.items():
        project.run("dvc", "config", "--local", name, value)
    copy_settings(project.root / ".dvc", other.root / ".dvc")
    there, here = (sorted(one.run("dvc", "config", "--list").stdout.splitlines()) for one in (other, project))
    assert there == here
    assert len(here) == 9
    copy_settings(tmp_path / "nothing", other.root / ".dvc")
    assert (other.root / ".dvc/config").read_text() == ""


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
