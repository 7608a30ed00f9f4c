"""A Fisher in another repository: by its name with `dvc artifacts get`, and with `dvc import` into a merge there."""

import re
import shutil
from pathlib import Path

import pytest

from stages.pipeline.client import recorded_outputs
from stages.status import NOWHERE
from stages.storage.digests import tree_sha256
from tests.project import IDENTITY, Project


@pytest.fixture(scope="module")
def ours(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project that has run, with a tag; its remote is in the configuration that git has."""
    root = tmp_path_factory.mktemp("elsewhere")
    project = finished.copy(root / "ours")
    project.run("dvc", "remote", "add", "--default", "public", str(root / "remote"))
    project.run("dvc", "push")
    project.commit("A public remote")
    project.run("git", *IDENTITY, "tag", "--annotate", "--message", "Books", "models=fisher-books@v1.0.0")
    return project


def test_a_fisher_by_its_name(ours: Project, tmp_path: Path) -> None:
    ours.run("dvc", "artifacts", "get", str(ours.root), "models:fisher-books", "--out", str(tmp_path / "books"))
    for file in ("fisher.safetensors", "fisher.json"):
        assert (tmp_path / "books" / file).read_bytes() == (ours.root / "models/fishers/books" / file).read_bytes()


def test_status(ours: Project) -> None:
    other = ours.clone("other")
    table = [line.split() for line in other.stage("stages.status").stdout.splitlines()]
    assert table[0] == ["stage", "here", "remote", "would", "run"]
    assert [line[-3:] for line in table[1:]] == [["no", "yes", "no"]] * 9
    assert [line[0] for line in table[1:]][:4] == ["books", "fisher-books", "evaluate-books", "films"]
    other.edit_params(lambda params: params["merges"]["fisher"]["coefficients"].update(films=0.4))
    other.repro("--pull", "--allow-missing", "models/dvc.yaml:merge-fisher")
    other.edit_params(lambda params: params["models"]["films"].update(fisher={"examples": 7}))
    text = other.stage("stages.status").stdout
    assert re.search(r"fisher-films +yes +yes +yes: params\.yaml$", text, re.M)
    assert re.search(r"finetune-films +yes +yes +no$", text, re.M)
    assert re.search(r"merge-fisher +yes +no +after f", text)
    assert re.search(r"evaluate-ensemble +no +yes +no$", text, re.M)  # its experts are the same
    assert re.search(r"evaluate-books +no +yes +no$", text, re.M)


def test_status_of_what_is_nowhere(finished: Project, tmp_path: Path) -> None:
    """Without a remote, what the cache has not is made again, and `status` says so."""
    project = finished.copy(tmp_path / "project")
    clone = project.clone("clone").stage("stages.status").stdout.splitlines()
    assert len(clone) == 10
    assert all(re.search(rf" no +none set +yes: {NOWHERE}$", line) for line in clone[1:])
    text = project.stage("stages.status").stdout
    assert len(re.findall(r" yes +none set +no$", text, re.M)) == 9
    digest = recorded_outputs(project.root)["fisher-books"]["models/fishers/books"]
    (project.root / ".dvc/cache/files/md5" / digest[:2] / digest[2:]).unlink()
    shutil.rmtree(project.root / "models/fishers/books")
    text = project.stage("stages.status").stdout
    assert re.search(rf"fisher-books +no +none set +yes: {NOWHERE}$", text, re.M)
    assert re.search(r"merge-fisher +yes +none set +after fisher-books$", text, re.M)
    assert re.search(r"finetune-books +yes +none set +no$", text, re.M)
    assert re.search(r"fisher-films +yes +none set +no$", text, re.M)
    assert project.repro() == ["fisher-books"], "whose bits are the same"


def test_an_imported_fisher_is_verified_not_estimated(ours: Project) -> None:
    theirs = Project(ours.root.parent / "theirs", ours.params | {"merges": {}})
    theirs.run("dvc", "import", str(ours.root), "models/fishers/books", "--out", "brought")
    pin = tree_sha256(theirs.root / "brought")
    theirs.edit_params(lambda params: params["models"]["books"].update(fisher={"path": "brought", "sha256": pin}))
    theirs.run("python", "-m", "stages.plan")
    assert "fisher-books" in theirs.repro()
    for file in ("fisher.safetensors", "fisher.json"):
        assert (theirs.root / "models/fishers/books" / file).read_bytes() == (
            theirs.root / "brought" / file
        ).read_bytes()
    theirs.edit_params(lambda params: params["models"]["books"].update(finetune={"seed": 1}))
    result = theirs.run("dvc", "repro", check=False)
    assert result.returncode != 0
    assert "belongs to the checkpoint" in result.stderr
    assert "Traceback" not in result.stderr
