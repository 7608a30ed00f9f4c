"""Directories that are locked for as long as their process needs them, and the temporary ones among them."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

PREFIX = "fisher-merging-"


@contextmanager
def scratch_directory() -> Iterator[Path]:
    """A new directory in the one for temporary files (TMPDIR), which vanishes when the block ends.

    Those that killed processes have left are removed.
    """
    for entry in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        remove_abandoned(entry)
    with ExitStack() as stack:
        folder = _new(stack)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _new(stack: ExitStack) -> Path:
    """A new directory, held. Until it is, another process may take it for abandoned; then it is made again."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        with suppress(FileNotFoundError):
            stack.enter_context(held(folder))
            if folder.exists():
                return folder


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """Hold a lock on a directory, which ends with this process if not before: nobody takes it for abandoned."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks, where nothing is taken for abandoned
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def remove_abandoned(directory: Path) -> None:
    """Remove a directory, which was held once, if no living process holds it and it is this user's to remove."""
    with suppress(OSError):
        handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(handle).st_uid == os.getuid():
                shutil.rmtree(directory, ignore_errors=True)
        finally:
            os.close(handle)
