"""A project that is run once and copied, and a home directory without anybody's settings."""

import os
from collections.abc import Iterator

import pytest

from tests.project import Project, tiny_params


@pytest.fixture(scope="session", autouse=True)
def _nobodys_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No keys, known hosts, profiles or remotes of whoever runs the tests: a remote's options are all that dvc has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        for name in list(os.environ):
            if name.startswith(("AWS_", "DVC_", "XDG_")) or name in {"SSH_AUTH_SOCK", "SSH_AGENT_PID"}:
                patch.delenv(name)
        patch.setenv("NO_PROXY", "127.0.0.1")
        yield


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project that has been run and committed; tests take copies."""
    root = tmp_path_factory.mktemp("finished")
    params = tiny_params(root / "inputs")
    del params["merges"]["average"]  # nobody here needs it
    project = Project(root / "project", params)
    project.run("python", "-m", "stages.plan")
    assert {"finetune-books", "fisher-books", "merge-fisher", "report"} < set(project.repro())
    project.commit("A run")
    return project
