"""The project that nothing happens to, and its copies that something does."""

import shutil
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from stages.storage.digests import tree_sha256
from tests.faults.process import Process
from tests.project import Project, tiny_params

# A stage of every kind, as DVC and as the command line call them.
STAGES = {
    "settings": "stages.settings",
    "fetch@base": "stages.fetch base",
    "prepare@books": "stages.prepare books",
    "finetune-books": "stages.finetune books",
    "fisher-books": "stages.fisher books",
    "kfac-books": "stages.factors kfac books",
    "search-blocks": "stages.search blocks",
    "merge-blocks": "stages.merge blocks",
    "evaluate-books": "stages.evaluate books",
    "similarity": "stages.similarity",
    "scores": "stages.scores",
    "report": "stages.report",
}
SAVING = ("finetune-books", "fisher-books", "kfac-books", "search-blocks")  # those that save how far they have come
LOCKS = ("dvc.lock", "models/dvc.lock")


def run_undisturbed(root: Path) -> None:
    """Run a tiny project in one go; its stages save after every step."""
    project = Project(root / "project", fault_params(root / "inputs"))
    progress = project.root / "stages/storage/saved_progress.py"
    progress.write_text(progress.read_text().replace("SAVE_SECONDS = 60.0", "SAVE_SECONDS = 0.0"))
    project.run("python", "-m", "stages.plan")
    project.repro()
    project.commit("A run")


class Undisturbed:
    """What `run_undisturbed` has made.

    Args:
        root: where.

    Attributes:
        project: it.
        outputs: of every stage.
    """

    def __init__(self, root: Path) -> None:
        self.project = Project.at(root / "project")
        self._entries = {name: entry for lock in LOCKS for name, entry in _stages(self.project, lock).items()}
        self.outputs = {name: [out["path"] for out in entry["outs"]] for name, entry in self._entries.items()}
        self._work: dict[str, int] = {}

    def copy(self, root: Path) -> Project:
        """A copy of the project, cache and all, below `root`."""
        shutil.copytree(self.project.root, root / "project", symlinks=True)
        return Project.at(root / "project")

    def stale(self, root: Path, stage: str) -> Project:
        """A copy in which the stage has to run again: its outputs are nowhere, and no run is remembered."""
        project = self.copy(root)
        shutil.rmtree(project.root / ".dvc/cache/runs")
        others = {out["md5"] for name, entry in self._entries.items() if name != stage for out in entry["outs"]}
        for out in self._entries[stage]["outs"]:
            remove(project.root / out["path"])
            if out["md5"] not in others:
                self.cached(project, out["md5"]).unlink()
        return project

    def cached(self, project: Project, md5: str) -> Path:
        """A file in the cache of a copy."""
        return project.root / ".dvc/cache/files/md5" / md5[:2] / md5[2:]

    def largest_output(self, stage: str) -> str:
        """The largest of the stage's files: tensors, where it has tensors."""
        root = self.project.root
        files = [file for path in self.outputs[stage] for file in [root / path, *(root / path).rglob("*")]]
        return str(
            max((file for file in files if file.is_file()), key=lambda file: file.stat().st_size).relative_to(root)
        )

    def work(self, root: Path, stage: str) -> int:
        """The steps, batches or points of the stage in one go."""
        if stage not in self._work:
            process = Process(self.stale(root, stage), "dvc", "repro", program="stages.", stop=False)
            assert process.wait() == 0, process.output
            self._work[stage] = process.work
        return self._work[stage]

    def assert_same(self, project: Project) -> None:
        """The copy has this project's outputs bit for bit, DVC's records of them too, and nothing besides."""
        for lock in LOCKS:
            assert (project.root / lock).read_text() == (self.project.root / lock).read_text()
        for paths in self.outputs.values():
            for path in paths:
                assert tree_sha256(project.root / path) == tree_sha256(self.project.root / path), path
        assert not list(project.root.rglob(".partial-*"))


def fault_params(inputs: Path) -> dict[str, Any]:
    """Two models of one task, and a searched merge that needs Fishers and K-FAC factors."""
    params = tiny_params(inputs)
    params["finetune"] = {"epochs": 2, "batch_size": 4, "learning_rate": 1e-3}
    params["fisher"] = {"examples": 36, "batch_size": 3}
    params["tasks"].pop("films")
    params["models"] = {
        "books": {"base": "base", "task": "books"},
        "tomes": {"base": "base", "task": "books", "finetune": {"seed": 1}},
    }
    params["merges"] = {
        "blocks": {
            "method": "kfac",
            "coefficients": {"books": 0.5, "tomes": 0.5},
            "search": {"sampler": "grid", "points": 9},
        }
    }
    return params


def remove(path: Path) -> None:
    """Remove a file or a directory."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def _stages(project: Project, lock: str) -> dict[str, Any]:
    return YAML(typ="safe").load(project.root / lock)["stages"]
