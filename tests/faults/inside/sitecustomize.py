"""Python runs this first in every process of a project under test: one of them stops at each moment that matters.

The environment says what to do, see `tests.faults.process`. Python's audit events tell what the process is about to do
with its files, so the code under test is the pipeline's own, unchanged.
"""

import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROGRAM = os.environ.get("FAULTS_PROGRAM")  # what the command's first words begin with: `dvc`, `stages.merge`
LOG = os.environ.get("FAULTS_LOG")  # a line per moment and per unit of work: process, moment, path
STOP = "FAULTS_STOP" in os.environ  # whether to stop at the moments
WHERE = os.environ.get("FAULTS_WHERE", ".partial-")  # what is in the paths that count
LIMIT = os.environ.get("FAULTS_LIMIT")  # of a file's size in bytes, from the first moment on: a full disk
CLOCK = float(os.environ.get("FAULTS_CLOCK", "0"))  # seconds that the clock is ahead

# What is counted as work: a training step, a batch of an estimation, a point of a search.
WORK = {
    "transformers.trainer": ("Trainer", "training_step"),
    "stages.estimation.passes": ("Share", "_add_batch"),
    "stages.searching.live_model": ("LiveModel", "scores"),
}


class Watch:
    """Writes down the moments and the work of this process, and stops it."""

    def __init__(self, log: str) -> None:
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._uncounted = dict(WORK)
        self._busy = False
        self._renamed = ""

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._busy:
            return
        self._busy = True
        try:
            for module in list(self._uncounted):
                self._count(module)
            if self._renamed:
                renamed, self._renamed = self._renamed, ""
                self._note("renamed", renamed)
            if found := self._moment(event, arguments):
                self._note(*found)
                if found[0] == "whole":
                    self._renamed = found[1]
        finally:
            self._busy = False

    def _moment(self, event: str, arguments: tuple[Any, ...]) -> tuple[str, str] | None:
        """What is about to happen, if it is a moment, and to which file."""
        if event == "tempfile.mkdtemp" and WHERE in arguments[0]:
            return "begun", arguments[0]
        if event == "os.rename":
            source, target = map(os.fsdecode, arguments[:2])
            if WHERE in source and WHERE not in target:
                return "whole", target
            if WHERE in target and not target.endswith(".old"):
                return "saving", target
        if event == "open" and isinstance(arguments[0], str) and WHERE in arguments[0]:
            path, mode, flags = arguments
            if set(mode or "") & set("wxa+") or flags & (os.O_WRONLY | os.O_RDWR):
                if ".training/" not in path:
                    return "writing", path
                if path.endswith("/seal"):
                    return "saving", path
        return None

    def _note(self, moment: str, path: str) -> None:
        if LIMIT is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(LIMIT), int(LIMIT)))
            return  # the log is a file too
        os.write(self._log, f"{os.getpid()} {moment} {path}\n".encode())
        if STOP and moment != "work":
            os.kill(os.getpid(), signal.SIGSTOP)

    def _count(self, module: str) -> None:
        """Wrap what is counted, once its module is loaded."""
        class_name, name = WORK[module]
        owner = getattr(sys.modules.get(module), class_name, None)
        if owner is None or name not in vars(owner):
            return
        del self._uncounted[module]
        original: Callable[..., Any] = vars(owner)[name]

        def counted(*arguments: Any, **options: Any) -> Any:
            result = original(*arguments, **options)
            os.write(self._log, f"{os.getpid()} work {module}\n".encode())
            return result

        setattr(owner, name, counted)


if LOG and PROGRAM and any(Path(word).name.startswith(PROGRAM) for word in sys.orig_argv[1:3]):
    if CLOCK:
        real = time.time
        time.time = lambda: real() + CLOCK
    sys.addaudithook(Watch(LOG))
