"""What dvc is asked, with the real one."""

import sys
from pathlib import Path

import pytest

from stages.pipeline.client import dvc, recorded_outputs
from stages.running.errors import InputError
from tests.project import Project, tiny_params


def test_a_failure_is_dvcs_own_last_words(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^dvc status: ERROR: you are not inside of a DVC repository"):
        dvc("status", project=tmp_path)
    assert dvc("status", project=tmp_path, check=False) == ""


def test_dvc_need_not_be_on_the_path(tmp_path: Path) -> None:
    project = Project(tmp_path / "project", tiny_params(tmp_path / "inputs"))
    project.run("python", "-m", "stages.plan")
    project.run("env", "PATH=/nowhere", sys.executable, "-m", "stages.status")


def test_outputs_are_those_of_both_locks(tmp_path: Path) -> None:
    assert recorded_outputs(tmp_path) == {}
    project = Project(tmp_path / "project", tiny_params(tmp_path / "inputs"))
    project.run("python", "-m", "stages.plan")
    project.repro("models/dvc.yaml:finetune-books")
    found = recorded_outputs(project.root)
    assert found.keys() == {"settings", "fetch@base", "fetch@tables", "prepare@books", "finetune-books"}
    assert found["finetune-books"].keys() == {"models/finetuned/books", "results/training/books"}
    assert all(digest.endswith(".dir") for outputs in found.values() for digest in outputs.values())
