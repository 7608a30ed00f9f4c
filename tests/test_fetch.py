"""Sources: packages of a local folder that pip is told to look into, and local paths."""

import io
import itertools
import json
import os
import stat
import subprocess
import sys
import tarfile
import zipfile
from hashlib import sha256
from pathlib import Path

import pytest

from stages.running.errors import InputError
from stages.storage.archives import unpack
from stages.storage.digests import CONTENTS, tree_sha256
from stages.storage.source import Source
from stages.storage.sources import fetch_source
from tests.project import ROOT


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
    """A folder of packages that is looked into instead of the package index."""

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
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["c.txt", CONTENTS]


def test_an_archive_in_a_package(index: Index, tmp_path: Path) -> None:
    digest = index.wheel({"tinydata/inner.tar.gz": tar({"d/x.txt": b"x", "d/y.md": b"y", "z.txt": b"z"})})
    fetch_source(package(digest, "tinydata/inner.tar.gz", "d", files=["*.txt"]), tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [CONTENTS, "x.txt"]


def test_a_corrupt_archive_is_refused_and_the_earlier_one_stays(index: Index, tmp_path: Path) -> None:
    digest = index.wheel({"tinydata/a.txt": b"a"})
    fetch_source(package(digest), tmp_path / "out")
    index.wheel({"tinydata/a.txt": b"other"})
    with pytest.raises(InputError, match=rf"tinydata==1\.0: the archive's sha256 is [0-9a-f]{{64}}, not {digest}"):
        fetch_source(package(digest), tmp_path / "out")
    assert (tmp_path / "out/tinydata/a.txt").read_bytes() == b"a"


def test_a_package_that_is_too_large_is_refused_before_it_is_whole(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = index.wheel({"tinydata/a.txt": b"a"})
    fetch_source(package(digest), tmp_path / "out")
    monkeypatch.setattr("stages.storage.archives.MAX_BYTES", 100)
    with pytest.raises(InputError, match=r"tinydata-1\.0-py3-none-any\.whl: is larger than 100 bytes$"):
        fetch_source(package(digest), tmp_path / "out")
    assert (tmp_path / "out/tinydata/a.txt").read_bytes() == b"a"


@pytest.mark.parametrize(
    ("members", "inside", "message"),
    [
        ({"tinydata/a.txt": b"a"}, ["tinydata/b"], "has no 'tinydata/b' inside"),
        ({"tinydata/a.tar.gz": b"no archive"}, ["tinydata/a.tar.gz", "x"], "cannot be unpacked"),
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
    with pytest.raises(InputError, match=r"tinydata==1\.0: no such version in .*index$"):
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
    for nowhere in (str(tmp_path / "nowhere"), "~nobody-of-this-name/x", str(tmp_path / ("x" * 300))):
        with pytest.raises(InputError, match=r"no such file or directory|too long"):
            fetch_source(Source(path=nowhere, sha256=64 * "0"), tmp_path / "out")


def test_a_relative_path_that_leads_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it does in an experiment's own directory."""
    (tmp_path / "a.csv").write_text("a")
    source = Source(path="../a.csv", sha256=tree_sha256(tmp_path / "a.csv"))
    for name in ("project", "project/.dvc/tmp/exps/x"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "project")
    fetch_source(source, tmp_path / "out")
    assert (tmp_path / "out/a.csv").read_text() == "a"
    monkeypatch.chdir(tmp_path / "project/.dvc/tmp/exps/x")
    with pytest.raises(
        InputError, match=r"\.\./a\.csv: no such file or directory seen from .*exps/x; an absolute path"
    ):
        fetch_source(source, tmp_path / "out")


def test_links_of_a_local_path_are_pinned_by_what_they_lead_to(tmp_path: Path) -> None:
    """As snapshots in the cache of huggingface_hub have them, and DVC's workspaces with `cache.type symlink`."""
    folder, blobs = tmp_path / "snapshots", tmp_path / "blobs"
    folder.mkdir()
    blobs.mkdir()
    (blobs / "0123").write_text("a")
    (folder / "a.csv").symlink_to("../blobs/0123")
    source = Source(path=str(folder), sha256=tree_sha256(folder))
    fetch_source(source, tmp_path / "out")
    assert (tmp_path / "out/a.csv").read_text() == "a"
    assert not (tmp_path / "out/a.csv").is_symlink()
    (blobs / "0123").write_text("b")
    with pytest.raises(InputError, match=r"but params\.yaml pins"):
        fetch_source(source, tmp_path / "out")
    assert (tmp_path / "out/a.csv").read_text() == "a"


def test_an_unreadable_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.csv").write_text("a")

    def denied(source: Path, target: Path) -> None:
        raise PermissionError(13, "Permission denied", str(source))

    monkeypatch.setattr("shutil.copyfile", denied)
    source = Source(path=str(tmp_path / "a.csv"), sha256=tree_sha256(tmp_path / "a.csv"))
    with pytest.raises(InputError, match=r"out: cannot be fetched: .*a\.csv: Permission denied"):
        fetch_source(source, tmp_path / "out")


def special(kind: bytes) -> bytes:
    """A tar archive with one member of that kind."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        info = tarfile.TarInfo("d/x")
        info.type, info.linkname = kind, "d/y"
        archive.addfile(info)
    return stream.getvalue()


def zipped(member: str | zipfile.ZipInfo, content: bytes = b"x", *more: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, content)
        for name in more:
            archive.writestr(name, b"y")
    return stream.getvalue()


def zip_link() -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("x")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


def long_header() -> bytes:
    """A tar archive whose first header says that a gigabyte of a name follows."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1 << 30
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        *(
            ("a.tar.gz", special(kind), "d/x is a link or device")
            for kind in (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)
        ),
        ("a.zip", zipped(zip_link()), "x is a link or device"),
        ("a.zip", zipped("/etc/x"), "outside its directory"),
        ("a.zip", zipped("d/../../x"), "outside its directory"),
        ("a.zip", zipped("..\\x"), "outside its directory"),
        ("a.zip", zipped("a\nb"), r"'a\\nb' has a name that cannot be printed"),
        ("a.zip", zipped("x" * 300), "File name too long"),
        ("a.zip", zipped("A.txt", b"x", "a.txt"), "a.txt and another would be written to one place"),
        ("a.zip", zipped("a", b"x", "a/b"), "a/b and another would be written to one place"),
        ("a.zip", zipped("a", 2 * 10**6 * b"0"), "unpacks to more than 1,000,000 bytes"),
        ("a.zip", zipped("a", 6 * 10**5 * b"0", "b").replace(b"PK\1\2", b"PK\1\3"), "cannot be unpacked"),
        ("a.tar", long_header(), r"cannot be unpacked: a header of 1,073,741,824 bytes"),
        ("a.tar.gz", tar({"a": 15 * 10**5 * b"0"}), "unpacks to more than 1,000,000 bytes"),
        ("a.tar.gz", tar({"a": 15 * 10**5 * b"0", "b": b""}), "unpacks to more than 1,000,000 bytes"),
        ("a.tar.gz", tar({"a": 3 * 10**6 * b"0", "b": b""}), "cannot be unpacked: a member at byte 3,"),
        ("a.tar", tar({"a": b"x"}), "cannot be unpacked"),
        ("a.zip", b"PK", "cannot be unpacked: File is not a zip file"),
    ],
    ids=itertools.count(),  # the content, which has the time in it, would be part of the name
)
def test_archives_that_are_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes, message: str
) -> None:
    monkeypatch.setattr("stages.storage.archives.MAX_BYTES", 10**6)
    (tmp_path / name).write_bytes(content)
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match=message):
        unpack(tmp_path / name, [], ["*"], tmp_path / "out")
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file() and path.stat().st_size]


def test_what_is_not_wanted_is_not_looked_at(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(tar({"./d//x.txt": b"x", "../y": b"y"}, link="d/link"))
    (tmp_path / "out").mkdir()
    unpack(tmp_path / "a.tar.gz", ["d"], ["*.txt"], tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").rglob("*")] == ["x.txt"]


def test_the_command(tmp_path: Path) -> None:
    """Of a URL, and of a GGUF file in an archive at one."""
    from ruamel.yaml import YAML

    from tests.gguf_files import tiny_model, write_gguf

    write_gguf(tmp_path / "tiny.gguf", tiny_model())
    (tmp_path / "tiny.zip").write_bytes(
        zipped("models/tiny.gguf", (tmp_path / "tiny.gguf").read_bytes(), "models/x.txt")
    )
    (tmp_path / "reviews.csv").write_text("text,label\n")

    def of(name: str) -> dict[str, str]:
        content = (tmp_path / name).read_bytes()
        return {"url": (tmp_path / name).as_uri(), "sha256": sha256(content).hexdigest()}

    sources = {
        "reviews": of("reviews.csv"),
        "model": of("tiny.zip") | {"inside": ["models"], "gguf": "tiny.gguf", "dtype": "bfloat16"},
        "wrong": of("reviews.csv") | {"sha256": 64 * "0"},
    }
    (tmp_path / "project").mkdir()
    YAML().dump({"sources": sources, "tasks": {}, "models": {}}, tmp_path / "project/params.yaml")

    def fetch(name: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "stages.fetch", name],
            cwd=tmp_path / "project",
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    for name in ("reviews", "model"):
        assert (result := fetch(name)).returncode == 0, result.stderr
    folder = tmp_path / "project/data/sources"
    assert (folder / "reviews/reviews.csv").read_text() == "text,label\n"
    assert json.loads((folder / "model/checkpoint.json").read_text())["origin"]["dtype"] == "bfloat16"
    assert (folder / "model/model.safetensors").is_file()
    result = fetch("wrong")
    assert result.returncode == 1
    assert result.stderr.startswith("error: file://")
    assert result.stderr.count("\n") == 1
    assert sorted(path.name for path in folder.iterdir()) == ["model", "reviews"]
