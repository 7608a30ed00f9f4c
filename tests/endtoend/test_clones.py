"""Clones of the project as users have them: in directories of any name, by a git that changes line ends."""

import shutil
import sys
from pathlib import Path

import pytest

from tests.project import ROOT, Project, tiny_params

NAMES = ["my project", "it's mine", 'the "project"', "$HOME & `more`", "größe [1] 50% #2"]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A tiny project with the Makefile and the git attributes; tests take copies or clones."""
    root = tmp_path_factory.mktemp("clones")
    params = tiny_params(root / "inputs")
    params["models"].pop("films")
    project = Project(root / "project", params | {"merges": {}})
    for name in ("Makefile", "requirements.lock", ".gitattributes"):
        shutil.copyfile(ROOT / name, project.root / name)
    project.commit("Commands")
    return project


def with_environment(project: Project) -> Project:
    """Give it this environment as its `.venv`, as if it had been installed there."""
    environment = project.root / ".venv"
    environment.mkdir()
    for name in ("bin", "lib", "pyvenv.cfg"):
        (environment / name).symlink_to(Path(sys.prefix) / name)
    (environment / ".installed").touch()
    return project


@pytest.mark.parametrize("name", NAMES)
def test_make_plan_in_a_directory_of_any_name(project: Project, tmp_path: Path, name: str) -> None:
    clone = with_environment(project.copy(tmp_path / name / "clone"))
    clone.run("make", "plan")
    assert "finetune-books" in (clone.root / "models/dvc.yaml").read_text(encoding="utf-8")


def test_make_repro_in_a_directory_of_any_name(project: Project, tmp_path: Path) -> None:
    clone = with_environment(project.copy(tmp_path / " ".join(NAMES) / "clone"))
    clone.run("make", "repro")
    assert (clone.root / "results/report/report.html").is_file()


@pytest.mark.parametrize("settings", [("core.autocrlf=true",), ("core.eol=crlf",), ("core.autocrlf=input",)])
def test_every_clone_has_the_same_bytes(project: Project, tmp_path: Path, settings: tuple[str, ...]) -> None:
    """Line ends are part of the hashes of code; what is no text stays as it is, ends of lines in it too."""
    origin = project.copy(tmp_path / "origin")
    (origin.root / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00\r\n\n")
    origin.commit("A picture")
    options = [word for setting in settings for word in ("-c", setting)]
    origin.run("git", *options, "clone", "--quiet", ".", str(tmp_path / "clone"))
    clone = Project.at(tmp_path / "clone")
    names = origin.run("git", "ls-files").stdout.splitlines()
    assert {"params.yaml", "stages/plan.py", "picture.png"} <= set(names)
    for name in names:
        assert (clone.root / name).read_bytes() == (origin.root / name).read_bytes(), name
    assert clone.run("git", *options, "status", "--porcelain").stdout == ""
