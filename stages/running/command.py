"""How a stage is started from the command line, in one process or in several, and how it says what went wrong."""

import atexit
import errno
import fcntl
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from stages.running.errors import InputError, said
from stages.running.interruption import EXIT_STATUS, INTERRUPTED

LOCKS = Path(".dvc/tmp/stages")  # a file per stage, held by the process that runs it
REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some of your quota",
    errno.EFBIG: "raise the limit on the size of files (`ulimit -f`)",
    errno.EROFS: "make the file system writable",
    errno.EACCES: "make it accessible",
    errno.EPERM: "make it writable",
    errno.EIO: "free some space or check the disk",
}
LAUNCHER = "FISHER_LAUNCHER"  # environment variable: "torchrun --nproc-per-node 4", "accelerate launch", …


def run_stage(stage: Callable[..., None], *argument_names: str) -> None:
    """Call `stage` with the command line's arguments, and end the process.

    An error that a user can mend becomes one line and status 1.

    Args:
        stage: the stage's function.
        argument_names: what its positional arguments are called, for the usage line.
    """
    arguments = sys.argv[1:]
    module = sys.modules["__main__"].__spec__
    name = module.name if module else "stages"
    if len(arguments) != len(argument_names):
        sys.exit(" ".join([f"usage: python -m {name}", *(argument.upper() for argument in argument_names)]))
    try:
        with _alone(" ".join([name, *arguments])):
            stage(*arguments)
    except InputError as error:
        sys.exit(f"error: {said(error)}")
    except KeyboardInterrupt:
        print(INTERRUPTED, file=sys.stderr)
        sys.exit(EXIT_STATUS)
    except OSError as error:
        if error.errno not in REMEDIES:
            raise
        place = error.filename or "a file"
        remedy = f"{REMEDIES[error.errno]}, then run `dvc repro` again"
        sys.exit(f"error: {place}: {os.strerror(error.errno)}; {remedy}")
    leave()


@contextmanager
def _alone(stage: str) -> Iterator[None]:
    """Refuse to run beside another process of the same stage, which would write the same files.

    DVC sees to that while it lives; a stage whose dvc has been killed goes on.
    """
    if not LOCKS.parent.parent.is_dir() or "RANK" in os.environ:  # no project; or the launcher's parent has the lock
        yield
        return
    LOCKS.mkdir(parents=True, exist_ok=True)
    with (LOCKS / stage.replace("/", "%2F")).open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise InputError(
                f"{stage}: process {lock.read().strip()} is at it already; wait for it to end, or end it (what it has "
                "saved is kept), then run `dvc repro` again"
            ) from None
        except OSError:
            pass  # a file system without locks
        with suppress(OSError):  # on a full disk, the error is the output's
            lock.truncate(0)
            print(os.getpid(), file=lock, flush=True)
        yield


def launch(module: str, *arguments: str) -> None:
    """Run a stage's module in the processes that the environment's launcher starts, and exit as they do.

    Returns where the environment names no launcher, and in the processes that it has started.
    """
    launcher = shlex.split(os.environ.get(LAUNCHER, ""))
    if launcher and "RANK" not in os.environ:
        sys.exit(subprocess.run([*launcher, "-m", module, *arguments], check=False).returncode)


def leave() -> NoReturn:
    """End a process whose work is done and on the disk, without Python's teardown of every module.

    With transformers loaded that takes a second, as long as it takes to average two models of 335 M parameters.
    """
    atexit._run_exitfuncs()  # of libraries: what they have put aside goes with the process
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
