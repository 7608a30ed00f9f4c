"""Downloads of URLs, from servers on the loopback that break off, change their minds, or know nothing of ranges."""

import fcntl
import io
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest

from stages.running.errors import InputError
from stages.storage.digests import CONTENTS
from stages.storage.source import Source
from stages.storage.sources import fetch_source

BYTES = np.random.default_rng(0).bytes(3_000_000)
OTHER = np.random.default_rng(1).bytes(3_000_000)
ABSENT = 64 * "0"


def digest(content: bytes) -> str:
    return sha256(content).hexdigest()


@dataclass
class Server:
    """A web server: what it has, how it behaves, and what it was asked.

    Attributes:
        content: of every file, but for those under /missing and /moved.
        breaks: after how many bytes the next answers break off.
        statuses: of the next answers.
        ranges: whether it knows of them.
        dated: whether it says the file's version.
        weak: whether its ETags are weak.
        seconds: that it waits in the middle of an answer.
        asked: path and headers of every request.
    """

    content: bytes = BYTES
    breaks: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    ranges: bool = True
    dated: bool = True
    weak: bool = False
    seconds: float = 0
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    before: Callable[[int], None] = lambda number: None
    url: str = ""

    @property
    def etag(self) -> str:
        return f'{"W/" * self.weak}"{digest(self.content)[:16]}"'

    def wanted_ranges(self) -> list[str | None]:
        return [headers.get("range") for _, headers in self.asked]

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        headers = {name.lower(): value for name, value in handler.headers.items()}
        self.asked.append((handler.path, headers))
        self.before(len(self.asked))
        if handler.path.startswith("/moved"):
            handler.send_response(302)
            handler.send_header("Location", handler.path.replace("/moved", "/there"))
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        if self.statuses or handler.path.startswith("/missing"):
            handler.send_response(self.statuses.pop(0) if self.statuses else 404)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        start = 0
        found = re.fullmatch(r"bytes=(\d+)-", headers.get("range", ""))
        # As RFC 9110 has it: a weak ETag is never the same, for `If-Range`.
        same = "if-range" not in headers or (headers["if-range"] == self.etag and not self.weak)
        if found and self.ranges and same:
            start = int(found[1])
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        else:
            handler.send_response(200)
        if self.dated:
            handler.send_header("ETag", self.etag)
        body = self.content[start:]
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        if self.breaks:
            handler.wfile.write(body[: self.breaks.pop(0)])
            handler.close_connection = True
            return
        handler.wfile.write(body[: len(body) // 2])
        handler.wfile.flush()
        time.sleep(self.seconds)
        handler.wfile.write(body[len(body) // 2 :])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    serving = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            serving.answer(self)

        def log_message(self, format: str, *arguments: Any) -> None:
            """Say nothing."""

        def handle(self) -> None:
            try:
                super().handle()
            except ConnectionError:  # a client that was killed
                self.close_connection = True

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("stages.storage.downloads.PAUSE", 0.001)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        listening.daemon_threads = True
        Thread(target=listening.serve_forever, daemon=True).start()
        serving.url = f"http://127.0.0.1:{listening.server_port}"
        yield serving
        listening.shutdown()


def of(url: str, pin: str = digest(BYTES), **settings: Any) -> Source:
    return Source(url=url, sha256=pin, **settings)


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_a_file(server: Server, tmp_path: Path) -> None:
    fetch_source(of(f"{server.url}/a/some%20data.bin?token=secret"), tmp_path / "out")
    assert (tmp_path / "out/some data.bin").read_bytes() == BYTES
    assert files(tmp_path) == ["out", f"out/{CONTENTS}", "out/some data.bin"]
    ((path, headers),) = server.asked
    assert path == "/a/some%20data.bin?token=secret"
    assert headers["accept-encoding"] == "identity"
    assert "range" not in headers


def test_a_connection_that_breaks_off_goes_on_where_it_was(server: Server, tmp_path: Path) -> None:
    server.breaks = [1_000_000, 500_000, 0]
    fetch_source(of(f"{server.url}/data.bin"), tmp_path / "out")
    assert (tmp_path / "out/data.bin").read_bytes() == BYTES
    assert server.wanted_ranges() == [None, "bytes=1000000-", "bytes=1500000-", "bytes=1500000-"]
    assert all(headers["if-range"] == server.etag for _, headers in server.asked[1:])
    assert files(tmp_path / "out") == [CONTENTS, "data.bin"]


@pytest.mark.parametrize(("dated", "weak"), [(False, False), (True, True)])
def test_a_server_that_says_little_of_its_versions(server: Server, tmp_path: Path, dated: bool, weak: bool) -> None:
    server.breaks, server.dated, server.weak = [1_000_000], dated, weak
    fetch_source(of(f"{server.url}/data.bin"), tmp_path / "out")
    assert (tmp_path / "out/data.bin").read_bytes() == BYTES
    assert server.wanted_ranges() == [None, "bytes=1000000-"]
    assert "if-range" not in server.asked[1][1]


def test_a_server_that_knows_no_ranges(server: Server, tmp_path: Path) -> None:
    server.breaks, server.ranges = [1_000_000, 2_000_000], False
    fetch_source(of(f"{server.url}/data.bin"), tmp_path / "out")
    assert (tmp_path / "out/data.bin").read_bytes() == BYTES


@pytest.mark.parametrize("dated", [True, False])
def test_a_file_that_changes_between_attempts(server: Server, tmp_path: Path, dated: bool) -> None:
    """By its version, or without one by the digest, the parts are known to be of two files; it begins again."""

    def change(number: int) -> None:
        server.content = OTHER if number == 1 else BYTES

    server.breaks, server.before, server.dated = [1_000_000], change, dated
    fetch_source(of(f"{server.url}/data.bin"), tmp_path / "out")
    assert (tmp_path / "out/data.bin").read_bytes() == BYTES
    assert server.wanted_ranges() == [None, "bytes=1000000-"] + [None] * (not dated)


def test_a_file_that_has_become_shorter(server: Server, tmp_path: Path) -> None:
    def change(number: int) -> None:
        server.content = OTHER if number == 1 else BYTES[:1000]

    server.breaks, server.before = [1_000_000], change
    fetch_source(of(f"{server.url}/data.bin", digest(BYTES[:1000])), tmp_path / "out")
    assert (tmp_path / "out/data.bin").read_bytes() == BYTES[:1000]


def test_another_file_than_the_pinned_one(server: Server, tmp_path: Path) -> None:
    server.breaks = [1_000_000]
    fetch_source(of(f"{server.url}/data.bin"), tmp_path / "out")
    server.content = OTHER
    message = rf"http://127\.0\.0\.1:\d+/data\.bin: the file's sha256 is {digest(OTHER)}, but params\.yaml pins "
    with pytest.raises(InputError, match=message + digest(BYTES)) as caught:
        fetch_source(of(f"{server.url.replace('//', '//me:secret@')}/data.bin?token=secret"), tmp_path / "out")
    assert "secret" not in str(caught.value)
    assert (tmp_path / "out/data.bin").read_bytes() == BYTES
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_server_that_fails_for_a_while(server: Server, tmp_path: Path) -> None:
    server.statuses = [503, 500, 429]
    fetch_source(of(f"{server.url}/data.bin"), tmp_path / "out")
    assert (tmp_path / "out/data.bin").read_bytes() == BYTES
    server.statuses = [500] * 99
    with pytest.raises(InputError, match=r"/data\.bin: cannot be downloaded: 500 Internal Server Error$"):
        fetch_source(of(f"{server.url}/data.bin?token=secret"), tmp_path / "out")
    assert len(server.asked) == 4 + 5
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_a_server_does_not_have(server: Server, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"/missing/x\.bin: cannot be downloaded: the server says 404 Not Found$"):
        fetch_source(of(f"{server.url}/missing/x.bin?token=secret"), tmp_path / "out")
    assert len(server.asked) == 1
    assert files(tmp_path) == []


def test_no_server(server: Server, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^http://127\.0\.0\.1:1/x\.bin: cannot be downloaded: .*refused$"):
        fetch_source(of("http://me:secret@127.0.0.1:1/x.bin?token=secret"), tmp_path / "out")


def test_a_redirect(server: Server, tmp_path: Path) -> None:
    server.breaks = [1_000_000]
    fetch_source(of(f"{server.url}/moved/data.bin"), tmp_path / "out")
    assert (tmp_path / "out/data.bin").read_bytes() == BYTES
    assert [path for path, _ in server.asked] == ["/moved/data.bin", "/there/data.bin"] * 2
    assert server.wanted_ranges()[-1] == "bytes=1000000-"


def test_passwords(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login ann password secret\n")
    fetch_source(of(f"{server.url}/data.bin"), tmp_path / "out")
    fetch_source(of(f"{server.url.replace('//', '//bob:own@')}/data.bin"), tmp_path / "out")
    sent = [headers["authorization"] for _, headers in server.asked]
    assert sent == ["Basic YW5uOnNlY3JldA==", "Basic Ym9iOm93bg=="]  # ann:secret, bob:own


def test_a_download_that_has_ended_elsewhere_meanwhile(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file is gone when this one has the lock: nothing is downloaded into what nobody can find."""

    lock = fcntl.flock

    def removed(file: Any, how: int) -> None:
        if getattr(file, "name", "").endswith(".download"):
            Path(file.name).unlink()
        lock(file, how)

    monkeypatch.setattr("stages.storage.downloads.fcntl.flock", removed)
    with pytest.raises(InputError, match=r"/data\.bin: another process has just downloaded it to the same place; run"):
        fetch_source(of(f"{server.url}/data.bin"), tmp_path / "out")
    assert (server.asked, files(tmp_path)) == ([], [])


def test_too_large(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.storage.archives.MAX_BYTES", 1000)
    with pytest.raises(InputError, match=r"/data\.bin: is larger than 1,000 bytes$"):
        fetch_source(of(f"{server.url}/data.bin"), tmp_path / "out")
    assert files(tmp_path) == []


def zipped(**members: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"folder/{name}.csv", content)
    return stream.getvalue()


def test_an_archive_is_unpacked(server: Server, tmp_path: Path) -> None:
    server.content = zipped(a=b"a", b=b"b")
    whole, wanted = digest(server.content), ["a.csv", CONTENTS]
    fetch_source(of(f"{server.url}/data.zip?token=secret", whole), tmp_path / "all")
    assert files(tmp_path / "all") == [CONTENTS, "folder", "folder/a.csv", "folder/b.csv"]
    fetch_source(of(f"{server.url}/data.zip", whole, inside=["folder"], files=["a*"]), tmp_path / "one")
    assert files(tmp_path / "one") == wanted
    with pytest.raises(InputError, match=r"http://127.0.0.1:\d+/data\.zip: data\.zip: has no 'x' inside$"):
        fetch_source(of(f"{server.url}/data.zip?token=secret", whole, inside=["x"]), tmp_path / "two")
    before = len(server.asked)
    fetch_source(of(f"{server.url}/data.zip", whole, inside=["folder"], files=["a*"]), tmp_path / "two")
    assert files(tmp_path / "two") == wanted
    assert len(server.asked) == before, "the archive was whole"


def test_what_cannot_be_wanted_is_not_downloaded(server: Server, tmp_path: Path) -> None:
    """A file that is large would come in vain, and go again."""
    settings: dict[str, dict[str, Any]] = {
        r"not an archive that can be read \(.*\), so leave out `inside`$": {"inside": ["folder"]},
        r"the file data\.bin does not match \*\.csv, \*\.txt$": {"files": ["*.csv", "*.txt"]},
        r"the file data\.bin does not match other\.gguf$": {"gguf": "other.gguf"},
    }
    for message, own in settings.items():
        with pytest.raises(InputError, match=rf"^http://127\.0\.0\.1:\d+/data\.bin: {message}"):
            fetch_source(of(f"{server.url}/data.bin?token=secret", **own), tmp_path / "out")
    assert (server.asked, files(tmp_path)) == ([], [])


PROGRAM = """
import sys
from pathlib import Path
from stages.storage.source import Source
from stages.storage.sources import fetch_source
fetch_source(Source(url=sys.argv[1], sha256=sys.argv[2]), Path(sys.argv[3]))
"""


def killed(server: Server, out: Path, pin: str = digest(BYTES)) -> Path:
    """Kill a fetch in the middle; returns the file that it leaves."""
    server.seconds = 60
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, f"{server.url}/data.bin", pin, str(out)])
    kept = out.parent / f".partial-{out.name}.download"
    deadline = time.monotonic() + 60
    while not kept.exists() or kept.stat().st_size < 1_000_000:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    server.seconds = 0
    server.asked.clear()
    return kept


def test_a_killed_fetch_goes_on_where_it_was(server: Server, tmp_path: Path) -> None:
    reached = killed(server, tmp_path / "out").stat().st_size
    fetch_source(of(f"{server.url}/data.bin"), tmp_path / "out")
    assert (tmp_path / "out/data.bin").read_bytes() == BYTES
    assert server.wanted_ranges() == [f"bytes={reached}-"]
    assert files(tmp_path) == ["out", f"out/{CONTENTS}", "out/data.bin"]


def test_a_killed_fetch_of_another_file_is_not_gone_on_with(server: Server, tmp_path: Path) -> None:
    killed(server, tmp_path / "out", ABSENT)
    fetch_source(of(f"{server.url}/data.bin"), tmp_path / "out")
    assert (tmp_path / "out/data.bin").read_bytes() == BYTES
    assert server.wanted_ranges() == [None]


def test_a_damaged_part_is_found_out(server: Server, tmp_path: Path) -> None:
    kept = killed(server, tmp_path / "out")
    kept.write_bytes(b"x" + kept.read_bytes()[1:])
    fetch_source(of(f"{server.url}/data.bin"), tmp_path / "out")
    assert (tmp_path / "out/data.bin").read_bytes() == BYTES
    assert len(server.asked) == 2


def test_the_bar_has_bytes(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("stages.storage.downloads.BAR_DELAY", 0)
    server.breaks = [1_000_000]
    fetch_source(of(f"{server.url}/data.bin"), tmp_path / "out")
    assert re.search(r"fetch out: 100%.* 3\.00M/3\.00M ", capsys.readouterr().err)


def test_a_file_in_memory_and_one_here(tmp_path: Path) -> None:
    import fsspec  # type: ignore[import-untyped]

    with fsspec.open("memory://bucket/data.bin", "wb") as file:
        file.write(BYTES)
    fetch_source(of("memory://bucket/data.bin"), tmp_path / "out")
    assert (tmp_path / "out/data.bin").read_bytes() == BYTES
    (tmp_path / "own.bin").write_bytes(OTHER)
    fetch_source(of((tmp_path / "own.bin").as_uri(), digest(OTHER)), tmp_path / "out")
    assert files(tmp_path / "out") == [CONTENTS, "own.bin"]
    with pytest.raises(InputError, match=rf"own\.bin: the file's sha256 is {digest(OTHER)}, but params\.yaml pins"):
        fetch_source(of((tmp_path / "own.bin").as_uri(), ABSENT), tmp_path / "out")
    with pytest.raises(InputError, match=r"nowhere\.bin: there is no such file$"):
        fetch_source(of("memory://bucket/nowhere.bin"), tmp_path / "out")
    with pytest.raises(InputError, match=r"is a directory; name a file$"):
        fetch_source(of(tmp_path.as_uri()), tmp_path / "out")
    with pytest.raises(InputError, match=r"nonsense://x/y: cannot be downloaded: Protocol not known: nonsense"):
        fetch_source(of("nonsense://x/y"), tmp_path / "out")


def test_other_file_systems_go_on_where_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader breaks off in the middle, twice; before the second time, the file is replaced."""
    from fsspec.implementations.local import LocalFileOpener  # type: ignore[import-untyped]

    content, reads, own = tmp_path / "data.bin", 0, LocalFileOpener.read
    content.write_bytes(OTHER)
    places = []

    def read(self: Any, size: int = -1) -> bytes:
        nonlocal reads
        reads += 1
        places.append(self.tell())
        if reads == 2:
            raise TimeoutError("no answer")
        if reads == 4:
            content.write_bytes(BYTES)
            raise TimeoutError("no answer")
        return own(self, size)

    monkeypatch.setattr("stages.storage.downloads.PAUSE", 0.001)
    monkeypatch.setattr(LocalFileOpener, "read", read)
    fetch_source(of(content.as_uri()), tmp_path / "out")
    assert (tmp_path / "out/data.bin").read_bytes() == BYTES
    mebi = 1 << 20
    assert places[:6] == [0, mebi, mebi, 2 * mebi, 0, mebi]


def test_a_file_in_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import boto3
    from moto.server import ThreadedMotoServer

    serving = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    serving.start()
    try:
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{serving.get_host_and_port()[1]}")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        client = boto3.client("s3")
        client.create_bucket(Bucket="models")
        client.put_object(Bucket="models", Key="some/data.bin", Body=BYTES)
        fetch_source(of("s3://models/some/data.bin"), tmp_path / "out")
        assert (tmp_path / "out/data.bin").read_bytes() == BYTES
        with pytest.raises(InputError, match=r"s3://models/some/other\.bin: there is no such file$"):
            fetch_source(of("s3://models/some/other.bin"), tmp_path / "out")
    finally:
        serving.stop()
