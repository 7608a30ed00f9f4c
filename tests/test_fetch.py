"""Sources: real pip against a local folder of packages, and local paths."""

import io
import tarfile
import zipfile
from hashlib import sha256
from pathlib import Path

import pytest

from stages.artifacts import tree_sha256
from stages.errors import InputError
from stages.fetch import fetch_source
from stages.params import Source


def tar(members: dict[str, bytes], link: str | None = None) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        if link:
            info = tarfile.TarInfo(link)
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(info)
    return stream.getvalue()


class Index:
    """A folder of packages that pip finds instead of the package index."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        folder.mkdir()
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(folder))

    def wheel(self, members: dict[str, bytes]) -> str:
        """Add the package tinydata 1.0 with these files; returns the wheel's sha256."""
        file = self.folder / "tinydata-1.0-py3-none-any.whl"
        with zipfile.ZipFile(file, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
            archive.writestr("tinydata-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tinydata\nVersion: 1.0\n")
            archive.writestr(
                "tinydata-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            )
            archive.writestr("tinydata-1.0.dist-info/RECORD", "")
        return sha256(file.read_bytes()).hexdigest()


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    return Index(tmp_path / "index", monkeypatch)


def package(digest: str, *inside: str, files: list[str] | None = None) -> Source:
    return Source(package="tinydata==1.0", sha256=digest, inside=list(inside), files=files or ["*"])


def test_a_folder_of_a_package(index: Index, tmp_path: Path) -> None:
    digest = index.wheel({"tinydata/model/a.txt": b"a", "tinydata/model/sub/b.txt": b"b", "tinydata/c.txt": b"c"})
    fetch_source(package(digest, "tinydata/model"), tmp_path / "out")
    assert (tmp_path / "out/a.txt").read_bytes() == b"a"
    assert (tmp_path / "out/sub/b.txt").read_bytes() == b"b"
    assert not (tmp_path / "out/c.txt").exists()
    fetch_source(package(digest, "tinydata/c.txt"), tmp_path / "one")
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["c.txt"]


def test_an_archive_in_a_package(index: Index, tmp_path: Path) -> None:
    digest = index.wheel({"tinydata/inner.tar.gz": tar({"d/x.txt": b"x", "d/y.md": b"y", "z.txt": b"z"})})
    fetch_source(package(digest, "tinydata/inner.tar.gz", "d", files=["*.txt"]), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["x.txt"]


def test_a_corrupt_archive_is_refused_and_the_earlier_one_stays(index: Index, tmp_path: Path) -> None:
    digest = index.wheel({"tinydata/a.txt": b"a"})
    fetch_source(package(digest), tmp_path / "out")
    index.wheel({"tinydata/a.txt": b"other"})
    with pytest.raises(InputError, match=rf"tinydata==1\.0: the archive's sha256 is [0-9a-f]{{64}}, not {digest}"):
        fetch_source(package(digest), tmp_path / "out")
    assert (tmp_path / "out/tinydata/a.txt").read_bytes() == b"a"


@pytest.mark.parametrize(
    ("members", "inside", "message"),
    [
        ({"tinydata/a.txt": b"a"}, ["tinydata/b"], "has no 'tinydata/b' inside"),
        ({"tinydata/a.tar.gz": b"no archive"}, ["tinydata/a.tar.gz", "x"], "cannot be read"),
        ({"tinydata/a.txt": b"a"}, ["tinydata/a.txt", "x"], "not an archive that can be read"),
        ({"tinydata/a.tar.gz": tar({"../../evil.txt": b"x"})}, ["tinydata/a.tar.gz", ""], "outside its directory"),
        ({"tinydata/a.tar.gz": tar({"d/a": b"x"}, link="d/link")}, ["tinydata/a.tar.gz", "d"], "is a link"),
    ],
)
def test_bad_archives(index: Index, tmp_path: Path, members: dict[str, bytes], inside: list[str], message: str) -> None:
    digest = index.wheel(members)
    source = Source.model_construct(
        package="tinydata==1.0", sha256=digest, inside=inside, files=["*"], hub=None, path=None
    )
    with pytest.raises(InputError, match=message) as caught:
        fetch_source(source, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "evil.txt").exists()


def test_a_package_that_does_not_exist(index: Index, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tinydata==1\.0: pip cannot download it: ERROR"):
        fetch_source(package(64 * "0"), tmp_path / "out")


def test_no_file_matches(index: Index, tmp_path: Path) -> None:
    digest = index.wheel({"tinydata/a.txt": b"a"})
    with pytest.raises(InputError, match=r"no files that match \*\.csv"):
        fetch_source(package(digest, files=["*.csv"]), tmp_path / "out")


def test_local_paths_are_compared_with_their_pin(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.csv").write_text("a")
    source = Source(path=str(folder), sha256=tree_sha256(folder))
    fetch_source(source, tmp_path / "out")
    assert (tmp_path / "out/a.csv").read_text() == "a"
    (folder / "a.csv").write_text("b")
    with pytest.raises(InputError, match=rf"sha256 is {tree_sha256(folder)}, but params\.yaml pins"):
        fetch_source(source, tmp_path / "out")
    assert (tmp_path / "out/a.csv").read_text() == "a"
    with pytest.raises(InputError, match="no such file or directory"):
        fetch_source(Source(path=str(tmp_path / "nowhere"), sha256=64 * "0"), tmp_path / "out")
