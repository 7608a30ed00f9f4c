"""contents.json in an output's directory: the digests of its files, so that damage DVC cannot see is not read."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from hashlib import sha256
from pathlib import Path, PurePosixPath

from xxhash import xxh3_128

from stages.running.errors import DamagedError
from stages.storage.cards import FORMAT_VERSION, read_json, write_json

CONTENTS = "contents.json"


def write_contents(directory: Path, besides: str = "") -> None:
    """Write the digests of all files in and below a directory, but for those whose path matches the glob `besides`.

    Tensors whose fingerprint is in a card need no digest: whoever reads them compares that.
    """
    names = sorted(file.relative_to(directory).as_posix() for file in directory.rglob("*") if file.is_file())
    digests = {name: _digest(directory / name) for name in names if name != CONTENTS and not fnmatchcase(name, besides)}
    write_json(directory / CONTENTS, {"format_version": FORMAT_VERSION, "files": digests})


def verify_contents(directory: Path, names: Iterable[str] | None = None) -> None:
    """Compare a directory's files with its contents.json; where it has none, as a foreign checkpoint, all is well.

    Args:
        directory: an output's.
        names: of the files to compare; all by default. Those that are not there are for their reader to miss. Of a
            directory (`.` is the whole) it is all files in and below it, those that should be there too.

    Raises:
        InputError: a file is not as it was written, or not listed, or is gone from a directory that is named.
    """
    card = directory / CONTENTS
    if not card.is_file():
        return
    digests = read_json(card).get("files")
    if not isinstance(digests, dict):
        raise DamagedError(f"{card}: lists no files", directory)
    for name in digests if names is None else names:
        if (directory / name).is_dir():
            _verify_below(directory, directory / name, digests)
        elif (directory / name).is_file() and digests.get(name) != _digest(directory / name):
            raise _changed(directory, name)


def _verify_below(directory: Path, inner: Path, digests: Mapping[str, object]) -> None:
    """`verify_contents` of the files in and below an inner directory."""
    place = inner.relative_to(directory)
    found = {file.relative_to(directory).as_posix() for file in inner.rglob("*") if file.is_file()} - {CONTENTS}
    listed = {name for name in digests if PurePosixPath(name).is_relative_to(place)}
    for name in sorted(found | listed):
        if name not in found:
            raise DamagedError(f"{directory / name}: is gone; {CONTENTS} lists it", directory)
        if name not in listed:
            raise DamagedError(f"{directory / name}: is not among the files that {CONTENTS} lists", directory)
        if digests[name] != _digest(directory / name):
            raise _changed(directory, name)


def _changed(directory: Path, name: str) -> DamagedError:
    return DamagedError(f"{directory / name}: its contents are not what {CONTENTS} says", directory)


def _digest(file: Path) -> str:
    """XXH3-128 of a file's bytes, in hexadecimal: as fast as memory; it guards against mistakes, not forgery."""
    digest = xxh3_128()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def bytes_digest(content: bytes) -> str:
    """The digest that contents.json has of a file with these bytes."""
    return xxh3_128(content).hexdigest()


def tree_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes; of a directory, over its files' relative names and digests in the names' order."""
    if path.is_file():
        with path.open("rb") as file:
            digest = sha256()
            while block := file.read(1 << 20):
                digest.update(block)
            return digest.hexdigest()
    names = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    return sha256("".join(f"{tree_sha256(path / name)}  {name}\n" for name in names).encode()).hexdigest()
