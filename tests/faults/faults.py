"""The faults, one small function each, and what must hold after any of them."""

import json
import os
import shutil
import signal
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages.storage.digests import tree_sha256
from tests.faults.process import Moment, Process
from tests.project import Project


def kill_stage(process: Process, stopped: Moment) -> None:
    """SIGKILL to the stage; its dvc ends by itself."""
    os.kill(stopped.pid, signal.SIGKILL)
    assert process.wait() != 0


def kill_dvc(process: Process, stopped: Moment) -> None:
    """SIGKILL to dvc only. The stage lives on: a second one is refused and says which process to end."""
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    result = process.project.run("dvc", "repro", check=False)
    assert result.returncode != 0
    (line,) = error_lines(result.stderr)
    assert f"process {stopped.pid} is at it already" in line
    os.kill(stopped.pid, signal.SIGKILL)


def kill_both(process: Process, stopped: Moment) -> None:
    """SIGKILL to the process group."""
    process.signal_all(signal.SIGKILL)
    process.wait()


def interrupt(process: Process, stopped: Moment) -> None:
    """SIGINT to the process group: Ctrl-C."""
    process.signal_all(signal.SIGINT)
    process.go_on()
    for _ in process.moments():
        pass  # it stops at moments of its tidying up too
    assert process.wait() != 0
    (line,) = error_lines(process.output)
    assert line.startswith("error: interrupted")
    assert "Traceback" not in process.output


KILLS = {
    "SIGKILL of the stage": kill_stage,
    "SIGKILL of dvc": kill_dvc,
    "SIGKILL of both": kill_both,
    "SIGINT": interrupt,
}


@contextmanager
def read_only(directory: Path) -> Iterator[None]:
    """Nothing can be made or removed in the directory. Skips the test where the system cannot do that for us."""
    directory.mkdir(parents=True, exist_ok=True)
    mode = stat.S_IMODE(directory.stat().st_mode)
    root = os.geteuid() == 0  # whom modes do not stop
    if root and (shutil.which("chattr") is None or subprocess.run(["chattr", "+i", directory], check=False).returncode):
        pytest.skip("root writes to read-only directories, and chattr does not work here")
    if not root:
        directory.chmod(0o555)
    try:
        yield
    finally:
        if root:
            subprocess.run(["chattr", "-i", directory], check=True)
        else:
            directory.chmod(mode)


def truncate(content: bytes) -> bytes:
    """Without the last third."""
    return content[: len(content) * 2 // 3]


def zero(content: bytes) -> bytes:
    """As long, of zeros."""
    return bytes(len(content))


def flip_bit(content: bytes) -> bytes:
    """One bit of the last tenth is another: in a tensor's values, where the file has tensors."""
    changed = bytearray(content)
    changed[len(content) * 19 // 20] ^= 4
    return bytes(changed)


DAMAGES = {"truncated": truncate, "zeroed": zero, "bit-flipped": flip_bit}


def damage(file: Path, kind: str) -> None:
    """Damage a file in place as a disk does: its mode and time stay."""
    before = file.stat()
    file.chmod(0o644)
    content = file.read_bytes()
    assert DAMAGES[kind](content) != content
    file.write_bytes(DAMAGES[kind](content))
    file.chmod(stat.S_IMODE(before.st_mode))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def error_lines(output: str) -> list[str]:
    """What stages have said."""
    return [line for line in output.splitlines() if line.startswith("error: ")]


def assert_refused(output: str) -> None:
    """A stage has said in one line what was wrong, and nothing worse."""
    lines = error_lines(output)
    assert len(lines) == 1, output
    line = lines[0]
    assert "run `dvc repro`" in line, line
    assert "Traceback" not in output, output


def mend(project: Project) -> None:
    """The remedy that README.md names for a full disk that has cut off DVC's own records, where it has."""
    try:
        assert not list((project.root / ".dvc/cache/runs").glob("*/*/.*.tmp"))
        json.loads((project.root / ".dvc/tmp/rwlock").read_text())
        for lock in ("dvc.lock", "models/dvc.lock"):
            YAML(typ="safe").load(project.root / lock)["stages"]
    except (AssertionError, json.JSONDecodeError, YAMLError, LookupError, TypeError):
        result = project.stage("stages.mend")
        assert result.returncode == 0, result.stderr


class Keeps:
    """What a project has before a fault, and must have after it.

    Args:
        project: a copy of the undisturbed one whose stage `stage` is to run again.
        outputs: that stage's outputs.
        undisturbed: the other one.
    """

    def __init__(self, project: Project, outputs: list[str], undisturbed: Project) -> None:
        self._project = project
        self._outputs = {path: tree_sha256(undisturbed.root / path) for path in outputs}
        self._files = self._complete()
        self._cached = {file.relative_to(project.root) for file in cached(project)}

    def check(self) -> None:
        """No complete file is lost or changed, in the workspace or in the cache; outputs are whole or absent."""
        assert self._complete() == self._files
        now = cached(self._project)
        assert self._cached <= {file.relative_to(self._project.root) for file in now}
        assert_whole(now)
        for path, wanted in self._outputs.items():
            place = self._project.root / path
            assert not place.exists() or tree_sha256(place) == wanted, path

    def _complete(self) -> dict[str, str]:
        root = self._project.root
        found = {}
        for folder in ("data", "models", "results"):
            for file in (root / folder).rglob("*"):
                name = file.relative_to(root).as_posix()
                own = any(name == path or name.startswith(f"{path}/") for path in self._outputs)
                if file.is_file() and not own and ".partial-" not in name and not name.endswith("dvc.lock"):
                    found[name] = tree_sha256(file)
        return found


def cached(project: Project) -> list[Path]:
    """The files in the project's cache, but those that are not finished."""
    return objects(project.root / ".dvc/cache")


def objects(store: Path) -> list[Path]:
    """The finished files of a cache or a remote: DVC names them by their MD5, others otherwise."""
    return [file for file in (store / "files/md5").glob("??/*") if len(file.name.removesuffix(".dir")) == 30]


def assert_whole(files: list[Path]) -> None:
    """Every file of a cache or a remote has the MD5 that its name says."""
    from hashlib import md5

    for file in files:
        found = md5(file.read_bytes()).hexdigest()
        assert found == file.parent.name + file.name.removesuffix(".dir"), file


@contextmanager
def small_disk(place: Path, megabytes: int) -> Iterator[Path]:
    """A file system in memory of that size, below `place`. Skips the test where none can be mounted."""
    disk = place / "disk"
    disk.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(options, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small file system, and not everywhere")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


@contextmanager
def filled(disk: Path, free: int) -> Iterator[None]:
    """The file system has about `free` bytes left."""
    ballast = disk / "ballast"
    left = shutil.disk_usage(disk).free - free
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, left)
    try:
        yield
    finally:
        ballast.unlink()
