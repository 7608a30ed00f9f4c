"""Commands in a project that stop at moments, to be disturbed there."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import mkdtemp
from threading import Thread
from typing import NamedTuple

import psutil

from tests.project import Project

INSIDE = Path(__file__).parent / "inside"
PATIENCE = 300.0  # seconds


STARTED: list["Process"] = []  # by the test that runs


class Moment(NamedTuple):
    """A stop: of which process, what it is about to do (`renamed`: has just done), and to which path."""

    pid: int
    name: str
    path: str


class Process:
    """A command that has been started in a project, in a process group of its own.

    Args:
        project: where.
        command: for example `dvc`, `repro`.
        program: which of the command's processes is watched, by the beginning of its name: `dvc`, `stages.merge`.
        stop: whether it stops at every moment; `moments` lets it go on.
        where: what is in the paths that make moments.
        limit: of a file's size in bytes, from the first moment on, instead of stops.
        clock: seconds that the watched process's clock is ahead.
    """

    def __init__(
        self,
        project: Project,
        *command: str,
        program: str,
        stop: bool = True,
        where: str | None = None,
        limit: int | None = None,
        clock: float = 0.0,
    ) -> None:
        self.project = project
        self._read = 0  # lines of the log
        self._stopped: psutil.Process | None = None
        self._watched: set[psutil.Process] = set()
        self._log = Path(mkdtemp(dir=project.root.parent)) / "log"
        settings = {
            "FAULTS_PROGRAM": program,
            "FAULTS_LOG": str(self._log),
            "FAULTS_STOP": "1" if stop and limit is None else None,
            "FAULTS_WHERE": where,
            "FAULTS_LIMIT": None if limit is None else str(limit),
            "FAULTS_CLOCK": str(clock),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(INSIDE),
            "OMP_NUM_THREADS": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        self._process = psutil.Popen(
            command,
            cwd=project.root,
            env=os.environ | {name: value for name, value in settings.items() if value is not None},
            stdout=subprocess.PIPE,  # no file, to which the limit would apply
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
            text=True,
        )
        STARTED.append(self)
        self._output: list[str] = []
        self._reader = Thread(target=lambda: self._output.extend(self._process.stdout), daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def output(self) -> str:
        self._reader.join(5)
        return "".join(self._output)

    @property
    def work(self) -> int:
        """Steps, batches or points done."""
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        return sum(line.split()[1] == "work" for line in lines)

    def moments(self) -> Iterator[Moment]:
        """The stops, in their order; the process goes on when the next is asked for."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            ended = self._process.poll() is not None
            lines = self._log.read_text().splitlines(keepends=True)[self._read :] if self._log.exists() else []
            for line in lines:
                if not line.endswith("\n"):
                    break
                self._read += 1
                pid, name, path = line.rstrip("\n").split(" ", 2)
                if name == "work":
                    continue
                stopped = psutil.Process(int(pid))
                self._watched.add(stopped)
                while stopped.status() != psutil.STATUS_STOPPED:
                    time.sleep(0.001)
                self._stopped = stopped
                yield Moment(int(pid), name, path)
                self.go_on()
            if ended:
                return
            time.sleep(0.005)
        raise TimeoutError(self.output)

    def stop_at(self, name: str, number: int = 1, check: Callable[[], object] = lambda: None) -> Moment:
        """Let it go on until the moment `name` has come `number` times; `check` is called at every moment."""
        for moment in self.moments():
            check()
            number -= moment.name == name
            if moment.name == name and number == 0:
                return moment
        raise AssertionError(f"there was no such moment {name}:\n{self.output}")

    def go_on(self) -> None:
        """Let it go on after a stop."""
        if self._stopped is not None:
            self._stopped.send_signal(signal.SIGCONT)
            self._stopped = None

    def signal_all(self, number: signal.Signals) -> None:
        """Send a signal to the whole process group, as a terminal does."""
        os.killpg(self.pid, number)

    def end(self) -> None:
        """Leave nothing of it running."""
        if self._process.poll() is None:  # or the group's number may be somebody else's by now
            self.signal_all(signal.SIGKILL)
            self._process.wait()
        for stage in self._watched:  # whose dvc has been killed
            with suppress(psutil.NoSuchProcess):
                stage.kill()

    def wait(self) -> int:
        """Its exit status, once it has ended, however it has."""
        return self._process.wait(PATIENCE)
