"""A team with a directory for a remote, or one cache on a host: what a colleague runs and downloads, with real dvc."""

from pathlib import Path

import pytest

from tests.project import Project, tiny_params


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose owner has run it and pushed it; each test starts where the one before it ended."""
    root = tmp_path_factory.mktemp("sharing")
    project = Project(root / "first", tiny_params(root / "inputs"))
    project.run("python", "-m", "stages.plan")
    assert {"finetune@books", "fisher@books", "merge-fisher", "report"} < set(project.repro())
    project.commit("A run")
    add_remote(project)
    push(project)
    return project


def add_remote(project: Project) -> None:
    project.run("dvc", "remote", "add", "--local", "--default", "team", str(project.root.parent / "remote"))


def push(project: Project) -> None:
    project.run("dvc", "push", "--run-cache")


def cached_bytes(project: Project) -> int:
    return sum(file.stat().st_size for file in (project.root / ".dvc/cache/files").rglob("*") if file.is_file())


def test_a_colleague_runs_nothing(first: Project) -> None:
    second = first.clone("second")
    add_remote(second)
    assert second.repro("--pull") == []
    assert (second.root / "results/report/report.html").is_file()
    assert (second.root / "models/merged/fisher/model.safetensors").is_file()
    assert second.run("git", "status", "--porcelain").stdout == ""


def test_a_changed_coefficient_downloads_what_its_merge_needs(first: Project) -> None:
    third = first.clone("third")
    add_remote(third)
    third.edit_params(lambda params: params["merges"]["fisher"]["coefficients"].update(films=0.4))
    ran = third.repro("--pull", "--allow-missing")
    assert ran == ["merge-fisher", "evaluate-fisher", "scores", "report"]
    there = {
        f"{folder}/{path.name}"
        for folder in ("models/finetuned", "models/fishers", "models/merged", "data/tasks")
        for path in (third.root / folder).glob("*")
    }
    assert there == {
        *(f"{folder}/{name}" for folder in ("models/finetuned", "models/fishers") for name in ("books", "films")),
        *("data/tasks/books", "data/tasks/films", "models/merged/fisher"),
    }
    assert [path.parent.name for path in third.root.glob("results/eval/*/predictions.parquet")] == ["fisher"]
    assert not (third.root / "data/sources").exists()
    assert cached_bytes(third) < 0.7 * cached_bytes(first)

    push(third)
    third.commit("Fewer films")
    first.run("git", "pull", "--quiet", str(third.root), "HEAD")
    assert first.repro("--pull") == []
    merged = "models/merged/fisher/model.safetensors"
    assert (first.root / merged).read_bytes() == (third.root / merged).read_bytes()


def test_one_cache_on_one_host(first: Project) -> None:
    neighbour = first.clone("neighbour")
    neighbour.run("dvc", "cache", "dir", "--local", str(first.root / ".dvc/cache"))
    assert neighbour.repro() == []
    assert (neighbour.root / "results/report/report.html").is_file()
    neighbour.edit_params(lambda params: params["merges"]["fisher"]["coefficients"].update(films=0.3))
    assert neighbour.repro() == ["merge-fisher", "evaluate-fisher", "scores", "report"]
    first.edit_params(lambda params: params["merges"]["fisher"]["coefficients"].update(films=0.3))
    assert first.repro() == []


def test_credentials_and_paths_stay_out_of_git(first: Project) -> None:
    assert str(first.root.parent) not in first.run("git", "show", "HEAD:.dvc/config").stdout
    assert "config.local" in first.run("git", "check-ignore", "-v", Path(".dvc/config.local").as_posix()).stdout
