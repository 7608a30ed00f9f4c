"""`make mend`: put right what a full disk or a kill has left of DVC's own records, so that its commands run again.

A full disk cuts these files off, and then every command of dvc fails, with a message about JSON, YAML or 'outs'. What
`dvc.lock` has lost, `dvc repro` takes from the cache. No stage of the pipeline.
"""

import fcntl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from stages.pipeline.client import LOCKS, dvc
from stages.running.command import run_stage
from stages.running.errors import InputError

CLAIMS = Path(".dvc/tmp/rwlock")  # which process of dvc reads or writes what; nothing while there is none
SECONDS_TO_WRITE = 2.0  # an entry of the run cache, a few kilobytes
AT_WORK = Path(".dvc/tmp/lock")  # held by a command of dvc, but not while it waits for a stage


def mend() -> None:
    """Mend this project and the recipes' workspaces in it, and say what was mended.

    Raises:
        InputError: a command of dvc is at work here.
    """
    for process in dvc_processes(Path.cwd()):
        raise InputError(f"dvc is at work, in process {process}; wait for it to end, or end it, then run this again")
    mended = [line for project in sorted(Path().glob("workspaces/**/.dvc")) for line in mend_project(project.parent)]
    mended += mend_project(Path())
    mended += [f"{file}: removed" for file in remove_unfinished(Path(dvc("cache", "dir").strip()))]
    print("\n".join(mended) if mended else "all is well")


def mend_project(project: Path) -> list[str]:
    """Remove a project's claims, and its locks if DVC could not read them; returns what has been done.

    Raises:
        InputError: a command of dvc is at work there.
    """
    done = []
    if (project / CLAIMS).exists():
        with (project / AT_WORK).open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(
                    f"{project / AT_WORK}: dvc is at work there; wait for it to end, then run this again"
                ) from None
            (project / CLAIMS).unlink()
            done.append(f"{project / CLAIMS}: removed")
    for file in (project / lock for lock in LOCKS):
        if file.exists() and not _readable(file):
            kept = subprocess.run(["git", "checkout", "HEAD", "--", file], capture_output=True, check=False).returncode
            if kept != 0:
                file.unlink()
            done.append(f"{file}: cut off; {'removed' if kept else 'now as in the last commit'}; run `dvc repro`")
    return done


def remove_unfinished(cache: Path) -> list[Path]:
    """Remove what was being written into the run cache when that failed: DVC would read it as the newest of its kind.

    The cache may be others' too, so whoever writes now is given time to finish.
    """
    unfinished = sorted((cache / "runs").glob("*/*/.*.tmp"))
    if unfinished:
        time.sleep(SECONDS_TO_WRITE)
    unfinished = [file for file in unfinished if file.exists()]
    for file in unfinished:
        file.unlink(missing_ok=True)
    return unfinished


def dvc_processes(project: Path) -> Iterator[int]:
    """The processes that run a command of dvc in the directory or below it."""
    for process in psutil.process_iter():
        try:
            words, place = process.cmdline()[:3], Path(process.cwd())
        except psutil.Error:  # it has ended, or is somebody else's
            continue
        if any(Path(word).name == "dvc" for word in words) and place.is_relative_to(project):
            yield process.pid


def _readable(lock: Path) -> bool:
    """Whether DVC can read a dvc.lock: by its own schema, since many a cut leaves something that can still be used."""
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA  # type: ignore[import-untyped]
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError
    from voluptuous import Invalid

    try:
        COMPILED_LOCKFILE_SCHEMA(YAML(typ="safe", pure=True).load(lock.read_text(encoding="utf-8")) or {})
    except (UnicodeDecodeError, YAMLError, Invalid):
        return False
    return True


if __name__ == "__main__":
    run_stage(mend)
