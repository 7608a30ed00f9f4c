"""DVC's own records, cut off as a full disk cuts them, with real dvc in a project of two stages."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.faults.faults import filled, small_disk
from tests.project import IDENTITY, Project

SOURCES = [f"deps/{'a-long-name-' * 8}{number}" for number in range(40)]  # whose claims fill pages
STAGES = {
    "first": {"cmd": "echo 1 > first.txt", "deps": SOURCES, "outs": ["first.txt"]},
    "second": {"cmd": "cat first.txt > second.txt", "deps": ["first.txt"], "outs": ["second.txt"]},
}


def two_stages(root: Path) -> Project:
    """A committed project whose two stages have run."""
    project = Project(root / "project", {})
    for source in SOURCES:
        (project.root / source).parent.mkdir(exist_ok=True)
        (project.root / source).write_text(source)
    YAML().dump({"stages": STAGES}, project.root / "dvc.yaml")
    (project.root / ".gitignore").write_text("*.txt\n/workspaces/\n")
    assert project.repro() == ["first", "second"]
    project.commit("A run")
    return project


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return two_stages(tmp_path_factory.mktemp("mend"))


@pytest.fixture
def project(ran: Project, tmp_path: Path) -> Project:
    return ran.copy(tmp_path / "project")


def assert_fails(project: Project, words: str) -> None:
    result = project.run("dvc", "repro", check=False)
    assert result.returncode != 0
    assert words in result.stderr


def mended(project: Project) -> list[str]:
    result = project.stage("stages.mend")
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_nothing_to_mend(project: Project) -> None:
    (project.root / ".dvc/tmp/rwlock").unlink()
    before = (project.root / "dvc.lock").read_bytes()
    assert mended(project) == ["all is well"]
    assert (project.root / "dvc.lock").read_bytes() == before
    shutil.rmtree(project.root / ".dvc/tmp")
    assert mended(project) == ["all is well"]


@pytest.mark.parametrize("left", ["", '{"write": {"/a/long/pa'])
def test_claims_that_are_cut_off(project: Project, left: str) -> None:
    (project.root / ".dvc/tmp/rwlock").write_text(left)
    assert_fails(project, "JSON structure is corrupted")
    assert mended(project) == [".dvc/tmp/rwlock: removed"]
    assert project.repro() == []


def test_claims_of_a_process_that_was_killed_and_whose_number_another_has(project: Project) -> None:
    with subprocess.Popen(["sleep", "600"]) as other:
        claim = {"pid": other.pid, "cmd": "dvc repro"}
        (project.root / ".dvc/tmp/rwlock").write_text(json.dumps({"write": {str(project.root / "first.txt"): claim}}))
        (project.root / SOURCES[0]).write_text("new")
        assert_fails(project, "it is being blocked by")
        assert mended(project) == [".dvc/tmp/rwlock: removed"]
        assert project.repro() == ["first"]
        other.kill()


def test_claims_on_a_disk_that_is_really_full(tmp_path: Path) -> None:
    with small_disk(tmp_path, 8) as disk:
        project = two_stages(disk)
        (project.root / SOURCES[0]).write_text("new")
        with filled(disk, 0):
            assert_fails(project, "No space left on device")
        assert_fails(project, "JSON structure is corrupted")
        assert mended(project) == [".dvc/tmp/rwlock: removed"]
        assert project.repro() == ["first"]


@pytest.mark.parametrize(
    ("share", "committed"), [(0.0, True), (0.3, False), (0.5, True), (0.7, False), (0.8, True), (0.9, False)]
)
def test_a_dvc_lock_that_is_cut_off(project: Project, share: float, committed: bool) -> None:
    """Whatever is left of it: nothing is run again, since the cache has it."""
    lock = project.root / "dvc.lock"
    whole = lock.read_bytes()
    if not committed:
        project.run("git", "rm", "--quiet", "--cached", "dvc.lock")
        project.run("git", *IDENTITY, "commit", "--quiet", "--message", "Without a lock")
    lock.write_bytes(whole[: int(len(whole) * share)])
    (project.root / ".dvc/tmp/rwlock").unlink()
    unreadable = project.run("dvc", "repro", check=False).returncode != 0
    lines = [line for line in mended(project) if "dvc.lock" in line]
    remedy = "now as in the last commit" if committed else "removed"
    assert lines == ([f"dvc.lock: cut off; {remedy}; run `dvc repro`"] if unreadable else [])
    assert project.repro() == []
    assert lock.read_bytes() == whole


def test_an_entry_of_the_run_cache_that_was_never_finished(project: Project) -> None:
    """It is the newest, and cut off at a page's end it is YAML without outputs."""
    entries = [file for file in (project.root / ".dvc/cache/runs").rglob("*") if file.is_file()]
    entry = max(entries, key=lambda file: file.stat().st_size)
    unfinished = entry.with_name(".abcdefghijklmnop.tmp")
    unfinished.write_bytes(entry.read_bytes()[:4096])
    (project.root / "dvc.lock").unlink()
    assert_fails(project, "failed to reproduce 'first'")
    assert f"{unfinished}: removed" in mended(project)
    assert project.repro() == []


@pytest.fixture
def at_work(project: Project) -> Iterator["subprocess.Popen[bytes]"]:
    """A `dvc repro` whose stage goes on and on."""
    (project.root / "dvc.yaml").write_text("stages: {long: {cmd: touch begun; exec sleep 600}}\n")
    command = [str(Path(sys.executable).parent / "dvc"), "repro"]
    with subprocess.Popen(command, cwd=project.root, stdout=subprocess.DEVNULL, start_new_session=True) as process:
        while not (project.root / "begun").exists():
            time.sleep(0.05)
        yield process
        os.killpg(process.pid, signal.SIGKILL)


def test_nothing_is_touched_while_dvc_is_at_work(project: Project, at_work: "subprocess.Popen[bytes]") -> None:
    """Also in a workspace, and while DVC holds no lock of its own because a stage runs."""
    claims = (project.root / ".dvc/tmp/rwlock").read_bytes()
    result = project.stage("stages.mend")
    assert result.returncode == 1
    assert result.stderr == (
        f"error: dvc is at work, in process {at_work.pid}; wait for it to end, or end it, then run this again\n"
    )
    assert (project.root / ".dvc/tmp/rwlock").read_bytes() == claims


def test_workspaces_of_recipes_are_mended_too(project: Project) -> None:
    workspace = project.copy(project.root / "workspaces/paper/full")
    shutil.rmtree(workspace.root / ".git")
    workspace.run("dvc", "config", "core.no_scm", "true")
    (workspace.root / ".dvc/tmp/rwlock").write_text("")
    (workspace.root / "dvc.lock").write_text("schema: '2.")
    assert mended(project)[:2] == [
        "workspaces/paper/full/.dvc/tmp/rwlock: removed",
        "workspaces/paper/full/dvc.lock: cut off; removed; run `dvc repro`",
    ]
    assert workspace.repro() == []
