"""Two people with accounts of their own, primary groups of their own and the usual umask, in one directory.

Needs root, who becomes both of them.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.project import Project, tiny_params

TEAM = 3000  # a group of both
USERS = (2001, 2002)
SETPRIV = "setpriv"
# Python may lie where only root may look: they may read everything, and write as anybody may.
READS_ALL = ("--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search")

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which(SETPRIV) is None, reason="only root can be two users, with util-linux's setpriv"
)


class Account:
    """A user with a clone of the project."""

    def __init__(self, number: int, project: Project) -> None:
        self.number = number
        self.project = project.clone(f"clone-of-{number}")
        self._home = project.root.parent / f"home-of-{number}"
        self._home.mkdir()
        for place in (self.project.root, self._home):
            subprocess.run(["chown", "--recursive", f"{number}:{number}", place], check=True)

    def tries(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the clone, with umask 022; returns also what failed."""
        rights = ["--reuid", str(self.number), "--regid", str(self.number), "--groups", str(TEAM), *READS_ALL]
        identity = [f"{name}={self.number}" for name in ("USER", "LOGNAME")]
        return self.project.run(
            *(SETPRIV, *rights, "env", *identity, f"HOME={self._home}", "sh", "-c", 'umask 022; exec "$@"', "sh"),
            *command,
            check=False,
        )

    def does(self, *command: str) -> str:
        """The same, which must do without any complaint."""
        result = self.tries(*command)
        said = result.stdout + result.stderr
        assert result.returncode == 0, said
        assert "ERROR" not in said, said
        return said

    def share(self, place: Path) -> subprocess.CompletedProcess[str]:
        return self.tries(sys.executable, "-m", "stages.share", str(place), str(TEAM))

    def splits(self, validation: float) -> bool:
        """Have the task's table split so; returns whether that had to be computed here."""
        self.project.edit_params(lambda params: params["tasks"]["books"]["split"].update(validation=validation))
        return "Running stage 'prepare@books'" in self.does("dvc", "repro", "--pull", "prepare@books")

    def pushes(self) -> None:
        """What models/README.md says: objects and run cache."""
        self.does("dvc", "push", "--run-cache", "--with-deps", "prepare@books")

    def uses_remote(self, place: Path) -> None:
        self.does("dvc", "remote", "add", "--local", "--default", "team", str(place))

    def uses_cache(self, place: Path) -> None:
        self.does("dvc", "cache", "dir", "--local", str(place))
        self.does("dvc", "config", "--local", "cache.shared", "group")


@pytest.fixture
def accounts(tmp_path: Path) -> tuple[Account, Account]:
    params = tiny_params(tmp_path / "inputs")
    params["sources"].pop("base")
    params["tasks"].pop("films")
    project = Project(tmp_path / "project", params | {"models": {}, "merges": {}})
    first, second = (Account(number, project) for number in USERS)
    return first, second


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where everybody can make directories, and only their owners remove them."""
    place = tmp_path / "everybody"
    place.mkdir()
    place.chmod(0o1777)
    return place


def assert_shared(place: Path) -> None:
    for directory in (place, *(path for path in place.rglob("*") if path.is_dir())):
        status = directory.stat()
        assert (status.st_gid, status.st_mode & 0o2070) == (TEAM, 0o2070), directory


def test_one_remote(accounts: tuple[Account, Account], place: Path) -> None:
    first, second = accounts
    said = first.share(place / "remote")
    assert said.returncode == 0, said.stderr
    assert said.stdout.startswith(f"{place}/remote: everybody in the group {TEAM} can read it and write in it\n")
    for account in accounts:
        account.uses_remote(place / "remote")
    assert first.splits(0.2)
    first.pushes()
    assert not second.splits(0.2)
    assert second.splits(0.3)
    second.pushes()  # among it the first one's part of the run cache, which DVC writes again
    assert not first.splits(0.3)
    first.pushes()
    assert_shared(place / "remote")
    assert second.share(place / "remote").returncode == 0
    umasks = "umask 002" in said.stdout
    assert umasks == (not hasattr(os, "getxattr") or not os.listxattr(place / "remote"))


def test_one_cache(accounts: tuple[Account, Account], place: Path) -> None:
    """Beside a remote, from which run caches are brought into the cache by a part of DVC that knows of no groups."""
    first, second = accounts
    for name in ("cache", "remote"):
        assert first.share(place / name).returncode == 0
    for account in accounts:
        account.uses_remote(place / "remote")
    assert first.splits(0.2)
    first.pushes()
    for account in accounts:
        account.uses_cache(place / "cache")
    assert not second.splits(0.2)  # but pulled
    assert not first.splits(0.2)
    assert second.splits(0.3)
    assert not first.splits(0.3)
    assert first.splits(0.4)
    assert not second.splits(0.4)
    assert_shared(place / "cache")


def test_a_remote_that_is_there_already_is_mended_by_its_owner(accounts: tuple[Account, Account], place: Path) -> None:
    first, second = accounts
    first.uses_remote(place / "remote")
    assert first.splits(0.2)
    first.pushes()
    refused = second.share(place / "remote")
    assert refused.returncode == 1
    assert refused.stderr.startswith(
        f"error: {place}/remote: its owner, {first.number}, as a member of the group {TEAM}"
    )
    assert first.share(place / "remote").returncode == 0
    second.uses_remote(place / "remote")
    assert not second.splits(0.2)
    assert second.splits(0.3)
    second.pushes()
    assert_shared(place / "remote")
    # What somebody has put there in another way, for instance with `cp -a`.
    second.does("mkdir", "-m", "755", str(place / "remote/runs/00/new"))
    second.does("chmod", "755", str(place / "remote/runs/00/new"))
    refused = first.share(place / "remote")
    assert refused.returncode == 1
    assert f"/runs/00/new for example, are closed to the group and belong to {second.number}" in refused.stderr
    assert second.share(place / "remote").returncode == 0


def test_a_group_that_there_is_not(accounts: tuple[Account, Account], place: Path) -> None:
    result = accounts[0].tries(sys.executable, "-m", "stages.share", str(place / "remote"), "nobodys")
    assert result.stderr == "error: nobodys: there is no such group; `id -Gn` says which are yours\n"
    assert not (place / "remote").exists()
