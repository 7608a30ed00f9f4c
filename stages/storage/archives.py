"""Archives: the wanted files of a zip, wheel or tar, and nothing that could harm."""

import bz2
import fnmatch
import gzip
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, cast

from stages.running.errors import InputError
from stages.running.scratch import scratch_directory

MAX_BYTES = 100_000_000_000  # of all files taken from an archive: more is a mistake or an attack
MAX_MEMBERS = 1_000_000  # of a tar archive
MAX_PIECE = 16 << 20  # that is read of a tar archive at once
ZIPS = (".whl", ".zip")
TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
READ = "zip, wheel or tar"


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
                folder = stack.enter_context(scratch_directory())
                _protocol(member.path)
                archive = _write(member, folder / PurePosixPath(step).name)
        root = PurePosixPath(inside[-1].strip("/") if inside else "")
        with _opened(archive) as members:
            below = [(relative, member) for member in members if (relative := _below(root, member)) is not None]
            if not below:
                raise InputError(f"{archive.name}: has no {str(root)!r} inside")
            wanted = [(relative, member) for relative, member in below if matches(relative, patterns)]
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


def is_archive(name: str) -> bool:
    """Whether a file of that name is an archive that can be read."""
    return name.endswith((*ZIPS, *TARS))


def _protocol(name: str) -> str:
    if name.endswith(ZIPS):
        return "zip"
    if name.endswith(TARS):
        return "tar"
    raise InputError(f"{name}: not an archive that can be read ({READ})")


def matches(relative: PurePosixPath, patterns: Sequence[str]) -> bool:
    """Whether a path matches one of the glob patterns; a `*` matches slashes too."""
    return any(fnmatch.fnmatchcase(relative.as_posix(), pattern) for pattern in patterns)
