"""Bad archives: nothing is ever written outside the target, nor more than allowed, and what is refused is one line."""

import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from stages.running.errors import InputError
from stages.storage.archives import unpack
from tests.fuzz.cases import Random, choice, refused
from tests.fuzz.conftest import Runner
from tests.fuzz.mutations import bytes_scattered

SEEDS = 60
MAX_BYTES = 10**6
NAMES = [
    *(
        "a",
        "a/b",
        "a/b/c.txt",
        "A",
        "a/B",
        "b.txt",
        "./a",
        "a//b",
        "a/./b",
        "",
        ".",
        "/",
        "..",
        "../x",
        "a/../../x",
        "/x",
    ),
    *(
        "../../../../x",
        "/etc/x",
        "//x",
        "a\\b",
        "..\\..\\x",
        "C:\\x",
        "C:x",
        "\\\\x\\y",
        "a/",
        "a/..",
        "x" * 300,
        "é",
        "é",
    ),
    *("a\nb", "a\0b", "\x1b[2J", "-rf", "~/x", "$(x)", "con", "a ", " a", "a.", "\udcff", "\u202e", "a/" * 500 + "b"),
]
PLAIN = ["a/x", "a/b/x", "a/b/y.txt", "a/b/c/é", "z", "./a/b/z"]
TYPES = [
    *(tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE),
    *(tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CONTTYPE, tarfile.GNUTYPE_SPARSE, tarfile.XHDTYPE, b"V", b"~"),
]
SUFFIXES = [".zip", ".whl", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".7z"]


def zipped(random: Random, members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", choice(random, [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo("a")
            info.filename = name.encode("utf-8", "replace").decode()
            info.external_attr = choice(random, [*[0, 0o100644] * 5, 0o120777, 0o020644, 0o040755]) << 16
            archive.writestr(info, content)
    return stream.getvalue()


def tarred(random: Random, members: dict[str, bytes], suffix: str) -> bytes:
    stream = io.BytesIO()
    mode = {".tar.gz": "w:gz", ".tgz": "w:gz", ".tar.bz2": "w:bz2", ".tar.xz": "w:xz"}.get(suffix, "w")
    style = choice(random, [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    with tarfile.open(fileobj=stream, mode=mode, format=style) as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            info.type = tarfile.REGTYPE if random.random() < 0.9 else choice(random, TYPES)
            info.linkname = choice(random, [*NAMES, *members])
            info.mode = choice(random, [0, 0o644, 0o4777])
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def packed(random: Random, suffix: str, members: dict[str, bytes]) -> bytes:
    return tarred(random, members, suffix) if "t" in suffix else zipped(random, members)


def random_members(random: Random) -> dict[str, bytes]:
    """A few members, mostly small, seldom a bomb."""
    sizes = [0, 1, 100, 5000, 400_000, 1_500_000, 5_000_000]
    weights = [0.2, 0.2, 0.3, 0.2, 0.05, 0.03, 0.02]
    count = int(random.integers(1, 6))
    names = choice(random, [NAMES, PLAIN, PLAIN])
    return {choice(random, names): bytes(int(random.choice(sizes, p=weights))) for _ in range(count)}


# Of an archive's bytes:


def as_it_is(content: bytes, random: Random) -> bytes:
    return content


def cut_short(content: bytes, random: Random) -> bytes:
    return content[: random.integers(len(content))]


def headers_scattered(content: bytes, random: Random) -> bytes:
    """Bytes that are not zero, where an archive says what it has, are changed."""
    changed = bytearray(content)
    places = [place for place, value in enumerate(content[:1024]) if value] + list(
        range(max(len(content) - 200, 0), len(content))
    )
    for _ in range(int(random.integers(1, 4))):
        changed[choice(random, places)] = choice(random, [0, 1, 0x2E, 0x2F, 0x30, 0x37, 0x80, 0xFF])
    return bytes(changed)


def extended(content: bytes, random: Random) -> bytes:
    return content + choice(random, [content, random.bytes(100), bytes(10_000), b"PK\5\6" + bytes(18)])


def noise(content: bytes, random: Random) -> bytes:
    return choice(random, [b"", b"PK\3\4", b"\x1f\x8b", b"BZh9", b"\xfd7zXZ\0"]) + random.bytes(
        int(random.integers(2000))
    )


MUTATIONS: list[Callable[[bytes, Random], bytes]] = [
    *(as_it_is, cut_short, bytes_scattered, headers_scattered, extended, noise),
]


def unpacked(archive: Path, inside: list[str], tree: Path) -> str:
    """Unpack into a directory in `tree`, and look at what else is there afterwards."""
    out = tree / "deep" / "out"
    out.mkdir(parents=True)
    try:
        unpack(archive, inside, ["*"], out)
        outcome = "unpacked"
    except InputError as error:
        outcome = refused(error)
    outside = [path for path in tree.rglob("*") if out not in path.parents and path not in (out, out.parent)]
    assert not outside, outside
    found = list(out.rglob("*"))
    assert all(path.is_dir() or path.is_file() for path in found)
    assert not any(path.is_symlink() for path in found)
    assert sum(path.stat().st_size for path in found if path.is_file()) <= MAX_BYTES
    return outcome


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Path]:
    """A new empty directory at each call; what may be unpacked is little."""
    monkeypatch.setattr("stages.storage.archives.MAX_BYTES", MAX_BYTES)
    numbers = iter(range(10**6))

    def make() -> Path:
        directory = tmp_path / str(next(numbers))
        directory.mkdir()
        return directory

    return make


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.__name__)
def test_archives(mutation: Callable[[bytes, Random], bytes], run: Runner, fresh: Callable[[], Path]) -> None:
    def case(random: Random) -> str:
        directory = fresh()
        suffix = choice(random, SUFFIXES)
        archive = directory / f"archive{suffix}"
        archive.write_bytes(mutation(packed(random, suffix, random_members(random)), random))
        tree = directory / "tree"
        return unpacked(archive, choice(random, [[], ["a"], ["a/b"], ["nowhere"]]), tree)

    run(mutation.__name__, SEEDS, case)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.__name__)
def test_nested_archives(mutation: Callable[[bytes, Random], bytes], run: Runner, fresh: Callable[[], Path]) -> None:
    def case(random: Random) -> str:
        directory = fresh()
        inner, outer = choice(random, SUFFIXES), choice(random, SUFFIXES[:-1])
        step = choice(random, ["d/inner", "inner", "a::b", "zip://x", "../inner", "/etc/inner"]) + inner
        members = {step: mutation(packed(random, inner, random_members(random)), random), "x": b"x"}
        archive = directory / f"archive{outer}"
        archive.write_bytes(packed(random, outer, members))
        return unpacked(archive, [step, choice(random, ["a", "a/b", "."])], directory / "tree")

    run(mutation.__name__, SEEDS, case)
