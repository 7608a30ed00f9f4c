"""A whole project in miniature: real dvc, tiny models and tables, sources on the local disk."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from stages.storage.digests import tree_sha256
from tests.tiny import save_base, sentiment_table

ROOT = Path(__file__).parent.parent
IDENTITY = ("-c", "user.name=Test", "-c", "user.email=test@example.invalid")


class Project:
    """A git and DVC repository in `root`, with this repository's pipeline and a params.yaml of its own."""

    def __init__(self, root: Path, params: dict[str, Any]) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        for name in ("dvc.yaml", ".dvcignore", ".gitignore"):
            shutil.copyfile(ROOT / name, root / name)
        shutil.copytree(ROOT / "stages", root / "stages", ignore=shutil.ignore_patterns("__pycache__"))
        (root / ".dvc").mkdir()
        for name in ("config", ".gitignore"):
            shutil.copyfile(ROOT / ".dvc" / name, root / ".dvc" / name)
        self.write_params(params)
        self.run("git", "init", "--quiet")
        self.commit("A project")

    @classmethod
    def at(cls, root: Path) -> "Project":
        """The project that is in `root` already."""
        project = cls.__new__(cls)
        project.root = root
        return project

    def commit(self, message: str) -> None:
        """Commit everything that git does not ignore."""
        self.run("git", "add", "--all")
        self.run("git", *IDENTITY, "commit", "--quiet", "--message", message)

    def clone(self, name: str) -> "Project":
        """A clone with git, beside this one; without anything that DVC keeps."""
        self.run("git", "clone", "--quiet", ".", str(self.root.parent / name))
        return Project.at(self.root.parent / name)

    def copy(self, root: Path) -> "Project":
        """The same in another directory: with its files, outputs and cache, as if it had been run there."""
        shutil.copytree(self.root, root, symlinks=True)
        return Project.at(root)

    @property
    def params(self) -> dict[str, Any]:
        return YAML(typ="safe").load(self.root / "params.yaml")

    def write_params(self, params: dict[str, Any]) -> None:
        YAML().dump(params, self.root / "params.yaml")

    def edit_params(self, edit: Callable[[dict[str, Any]], object]) -> None:
        params = self.params
        edit(params)
        self.write_params(params)

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in the project, with this Python first on the path."""
        environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        result = subprocess.run(
            command, cwd=self.root, env=environment, capture_output=True, text=True, check=False, timeout=600
        )
        if check and result.returncode != 0:
            raise AssertionError(f"{' '.join(command)} failed:\n{result.stdout[-3000:]}\n{result.stderr[-3000:]}")
        return result

    def stage(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `python -m stages.…`, whatever comes of it."""
        return self.run("python", "-m", *arguments, check=False)

    def repro(self, *arguments: str) -> list[str]:
        """`dvc repro`: the names of the stages that it ran, in order, without the plan's file name."""
        output = self.run("dvc", "repro", *arguments).stdout
        return [name.removeprefix("models/dvc.yaml:") for name in re.findall(r"Running stage '([^']+)'", output)]


def tiny_params(inputs: Path) -> dict[str, Any]:
    """Params of two domains, `books` and `films`, and three merges; its sources are written into `inputs`."""
    save_base(inputs / "base")
    for seed, domain in enumerate(("books", "films")):
        (inputs / "tables").mkdir(parents=True, exist_ok=True)
        sentiment_table(60, seed).to_csv(inputs / "tables" / f"{domain}.csv", index=False)
    task = {"source": "tables", "labels": ["bad", "good"], "max_length": 16, "split": {"validation": 0.2, "test": 0.2}}
    halves = {"books": 0.5, "films": 0.5}
    return {
        "sources": {
            name: {"path": str(inputs / name), "sha256": tree_sha256(inputs / name)} for name in ("base", "tables")
        },
        "tasks": {domain: {**task, "file": f"{domain}.csv"} for domain in ("books", "films")},
        "finetune": {"epochs": 1, "batch_size": 8, "learning_rate": 1e-3},
        "fisher": {"examples": 20, "batch_size": 4},
        "models": {domain: {"base": "base", "task": domain} for domain in ("books", "films")},
        "merges": {
            "average": {"method": "isotropic", "coefficients": dict(halves)},
            "fisher": {"method": "fisher", "coefficients": dict(halves)},
            "ensemble": {"method": "ensemble", "coefficients": dict(halves)},
        },
    }
