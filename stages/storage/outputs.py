"""Outputs that appear whole or not at all, and places that are not ours to replace."""

import errno
import glob
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from stages.running.errors import InputError
from stages.running.scratch import held, remove_abandoned

PARTIAL_PREFIX = ".partial-"  # of what is still being written; .dvcignore and .gitignore know it
WRITE_FAILURES = {  # in the words of libraries that keep the system's to themselves: SQLite's (in DVC), torch's
    "disk is full": errno.ENOSPC,
    "readonly database": errno.EROFS,
    "disk I/O error": errno.EIO,
    "PytorchStreamWriter": errno.EIO,
    "inline_container": errno.EIO,
}
OLD_SUFFIX = ".old"  # of what is being replaced


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """A new directory beside `path`, to fill; it becomes `path` when the block ends well, and vanishes otherwise.

    What killed processes have left of theirs is removed.

    Raises:
        OSError: a file cannot be written, whichever library has found that out; with the name of `path` if of no file.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_partial(path)
        partial = Path(tempfile.mkdtemp(prefix=f"{PARTIAL_PREFIX}{path.name}-", dir=path.parent))
        try:
            with held(partial):
                yield partial
                partial.chmod(0o755)  # mkdtemp and safetensors make things that only their owner may read
                for entry in partial.rglob("*"):
                    entry.chmod(0o755 if entry.is_dir() else 0o644)
                _replace_directory(partial, path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def refuse_foreign(directory: Path, ours: Collection[str], inputs: Iterable[Path] = ()) -> None:
    """Refuse to replace a directory that holds what no earlier call has written, or lies among the inputs.

    `atomic_directory` replaces whatever is there: right for a stage's own output, not for a place that a user names.

    Args:
        directory: to be replaced; it may be empty, or not exist.
        ours: the files in it that an earlier call has written, as paths relative to it.
        inputs: what is read: the directory may neither be one of them, nor lie in one, nor hold one.

    Raises:
        InputError: with what would be lost.
    """
    place = directory.resolve()
    for path in inputs:
        read = path.resolve()
        if place == read or place in read.parents or read in place.parents:
            raise InputError(f"{directory}: is, holds or lies in the input {path}; name a directory apart from it")
    if directory.exists() and not directory.is_dir():
        raise InputError(f"{directory}: is a file; name a directory")
    for entry in directory.rglob("*"):
        name = entry.relative_to(directory).as_posix()
        if name not in ours and (entry.is_symlink() or not entry.is_dir()):
            raise InputError(f"{directory}: holds {name}, which would be lost; name a new or an empty directory")


def _replace_directory(new: Path, path: Path) -> None:
    """Rename `new` to `path`; a directory cannot be renamed onto a full one, so an old one steps aside first."""
    if not path.exists():
        new.rename(path)
        return
    with held(path):
        old = path.rename(new.with_name(f"{new.name}{OLD_SUFFIX}"))
        try:
            new.rename(path)
        except OSError:
            old.rename(path)
            raise
        shutil.rmtree(old, ignore_errors=True)


def _remove_partial(path: Path) -> None:
    """Remove the partial directories for `path` that no living process holds."""
    for entry in path.parent.glob(f"{PARTIAL_PREFIX}{glob.escape(path.name)}-*"):
        # By the whole name, since another output's may begin like this one's.
        own = entry.name[len(PARTIAL_PREFIX + path.name) + 1 :]
        if re.fullmatch(rf"[a-z0-9_]{{8}}({re.escape(OLD_SUFFIX)})?", own):
            remove_abandoned(entry)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Make an `OSError` of what libraries raise when the system refuses to write, and name `path` where no file is."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise
    except Exception as error:
        if not isinstance(error, InputError) and (number := _error_number(str(error))) is not None:
            raise OSError(number, os.strerror(number), str(path)) from error
        raise


def _error_number(message: str) -> int | None:
    """The system's error number: Rust's libraries give it, of others' words it is guessed."""
    if found := re.search(r"\(os error (\d+)\)", message):
        return int(found[1])
    return next((number for words, number in WRITE_FAILURES.items() if words in message), None)


def copy_files(names: Iterable[str], source: Path, target: Path) -> None:
    """Copy those of the named files that `source` has."""
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
