"""A team with a remote of every kind: what a colleague runs and downloads, with real dvc and real servers."""

import json
import re
from collections.abc import Iterator

import pytest
from ruamel.yaml import YAML

from tests.project import Project
from tests.sharing.remotes import KINDS, Remote


@pytest.fixture(scope="module", params=list(KINDS))
def remote(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Remote]:
    with KINDS[request.param](tmp_path_factory.mktemp(request.param)) as remote:
        yield remote


@pytest.fixture(scope="module")
def first(remote: Remote, finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose owner has run it and pushed it; each test starts where the one before it ended."""
    project = finished.copy(tmp_path_factory.mktemp("team") / "first")
    remote.configure(project)
    push(project)
    return project


def push(project: Project) -> None:
    project.run("dvc", "push", "--run-cache")


def cached(project: Project) -> set[str]:
    """The hashes of the files and directories in DVC's cache."""
    return {"".join(path.parts[-2:]) for path in (project.root / ".dvc/cache/files/md5").glob("*/*")}


def made_of(project: Project, *paths: str) -> set[str]:
    """The hashes of the outputs at and under `paths`, and of the files in them."""
    locks = [YAML(typ="safe").load(project.root / name)["stages"] for name in ("dvc.lock", "models/dvc.lock")]
    outs = [out for lock in locks for stage in lock.values() for out in stage.get("outs", [])]
    hashes = {out["md5"] for out in outs if f"{out['path']}/".startswith(tuple(f"{path}/" for path in paths))}
    for name in [name for name in hashes if name.endswith(".dir")]:
        directory = project.root / ".dvc/cache/files/md5" / name[:2] / name[2:]
        hashes.update(entry["md5"] for entry in json.loads(directory.read_bytes()))
    return hashes


def test_a_colleague_runs_nothing(first: Project, remote: Remote) -> None:
    second = first.clone("second")
    remote.configure(second)
    assert second.repro("--pull") == []
    assert (second.root / "results/report/report.html").is_file()
    assert (second.root / "models/merged/fisher/model.safetensors").is_file()
    assert second.run("git", "status", "--porcelain").stdout == ""


def test_a_changed_coefficient_downloads_what_its_merge_needs(first: Project, remote: Remote) -> None:
    third = first.clone("third")
    remote.configure(third)
    third.edit_params(lambda params: params["merges"]["fisher"]["coefficients"].update(films=0.4))
    assert third.repro("--pull", "--allow-missing") == [
        "settings",
        "merge-fisher",
        "evaluate-fisher",
        "scores",
        "report",
    ]
    results = [
        f"results/eval/{name}/{file}.json"
        for name in ("books", "films", "ensemble")
        for file in ("contents", "metrics", "per_example", "origin")
    ]
    needed = made_of(third, "data/tasks", "models/finetuned", "models/fishers", "results/similarity", *results)
    told = ("results/settings", "results/code")
    made_here = made_of(third, *told, "models/merged/fisher", "results/eval/fisher", "results/scores", "results/report")
    assert cached(third) == needed | made_here
    push(third)
    third.commit("Fewer films")
    first.run("git", "pull", "--quiet", str(third.root), "HEAD")
    assert first.repro("--pull") == []
    merged = "models/merged/fisher/model.safetensors"
    assert (first.root / merged).read_bytes() == (third.root / merged).read_bytes()


def test_credentials_are_asked_for_and_stay_out_of_git(first: Project, remote: Remote) -> None:
    clone = first.clone("credentials")
    remote.configure(clone)
    config, settings = ((clone.root / ".dvc" / name).read_text() for name in ("config", "config.local"))
    clone.run("git", "add", "--all")
    history = clone.run("git", "log", "--patch", "--all").stdout + clone.run("git", "diff", "--cached").stdout
    for private in remote.private:
        assert private in settings
        assert private not in config
        assert private not in history
    for option, value in remote.wrong.items():
        remote.modify(clone, option, value)
        refused = clone.run("dvc", "fetch", "models/dvc.yaml:finetune-books", check=False)
        assert refused.returncode != 0
        assert re.search("Forbidden|Permission denied", refused.stderr)
    assert cached(clone) == set()
