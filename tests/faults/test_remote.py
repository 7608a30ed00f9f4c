"""A remote that dies while it is written or read: nothing half there, and the next try ends well."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.faults import assert_whole, cached, objects, read_only
from tests.faults.process import Process
from tests.faults.table import Trials
from tests.faults.undisturbed import Undisturbed
from tests.project import Project

COLUMN = "remote"


def killed(process: Process, remote: Path) -> None:
    """SIGKILL of dvc."""
    process.signal_all(signal.SIGKILL)
    process.wait()


def vanished(process: Process, remote: Path) -> None:
    """The remote is gone until dvc has ended."""
    away = remote.rename(remote.with_name("away"))
    remote.touch()  # or dvc would make it anew
    ended_in_error(process)
    remote.unlink()
    away.rename(remote)


def unwritable(process: Process, remote: Path) -> None:
    """The remote's folder takes no new file until dvc has ended."""
    with read_only(remote / "files/md5"):
        ended_in_error(process)


def ended_in_error(process: Process) -> None:
    process.go_on()
    for _ in process.moments():
        pass
    assert process.wait() != 0
    assert "ERROR" in process.output
    assert "Traceback" not in process.output


def with_remote(project: Project, remote: Path) -> Project:
    project.run("dvc", "remote", "add", "--local", "--default", "team", str(remote))
    return project


@pytest.mark.parametrize("number", [2, 12])
@pytest.mark.parametrize("fault", [killed, vanished, unwritable])
def test_a_push_that_is_cut_off(
    undisturbed: Undisturbed,
    trials: Trials,
    tmp_path: Path,
    fault: Callable[[Process, Path], None],
    number: int,
) -> None:
    remote = tmp_path / "remote"
    project = with_remote(undisturbed.copy(tmp_path), remote)
    before = sorted(cached(project))
    with trials.of(COLUMN) as faults:
        faults.append(f"push, {fault.__name__}")
        process = Process(project, "dvc", "push", "--run-cache", program="dvc", where="/remote/")
        process.stop_at("saving", number)
        fault(process, remote)
        assert_whole(objects(remote))
        assert sorted(cached(project)) == before
        project.run("dvc", "push", "--run-cache")
        clone = with_remote(project.clone("clone"), remote)
        assert clone.repro("--pull") == []
        undisturbed.assert_same(clone)


@pytest.mark.parametrize("number", [2, 12])
@pytest.mark.parametrize("fault", [killed, vanished])
def test_a_pull_that_is_cut_off(
    undisturbed: Undisturbed,
    trials: Trials,
    tmp_path: Path,
    fault: Callable[[Process, Path], None],
    number: int,
) -> None:
    remote = tmp_path / "remote"
    project = with_remote(undisturbed.copy(tmp_path), remote)
    project.run("dvc", "push", "--run-cache")
    there = sorted(objects(remote))
    clone = with_remote(project.clone("clone"), remote)
    with trials.of(COLUMN) as faults:
        faults.append(f"pull, {fault.__name__}")
        process = Process(clone, "dvc", "pull", program="dvc", where="/.dvc/cache/files/")
        process.stop_at("saving", number)
        fault(process, remote)
        assert_whole(cached(clone))
        assert sorted(objects(remote)) == there
        assert clone.repro("--pull") == []
        undisturbed.assert_same(clone)
