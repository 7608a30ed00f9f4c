"""A file at a URL, downloaded in pieces; what broke off, or was killed, goes on where it was.

HTTP is spoken by httpx2, through the environment's proxies and certificates; all else is fsspec's.
"""

import fcntl
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, TypeVar

import httpx2
from tqdm import tqdm

from stages.running.errors import InputError
from stages.storage.certificates import certificates
from stages.storage.outputs import PARTIAL_PREFIX
from stages.storage.source import shown_url

PIECE = 1 << 20  # bytes
BLOCK = 8 << 20  # that fsspec asks for at once
ATTEMPTS = 5  # one after the other that bring nothing more of the file
PAUSE = 0.5  # seconds before the second attempt; they double
TIMEOUT = 30.0  # seconds without a byte
BAR_DELAY = 2.0  # seconds before a progress bar is worth showing
FOR_NOW = (408, 425, 429, 500, 502, 503, 504)  # statuses of a server that may have the file in a while

ResultT = TypeVar("ResultT")


class _BrokenError(Exception):
    """An attempt that came to nothing, or to a part; the next may come to more."""


class _ChangedError(_BrokenError):
    """The file at the URL is no more the one that was begun."""


class _RefusedError(InputError):
    """The file is not the pinned one, or too large: what there is of it is of no use."""


@dataclass(frozen=True)
class _Answer:
    """What a server sends.

    Attributes:
        start: where in the file the first byte stands.
        total: the file's size, if it says so.
        version: what tells the file from another at the same URL; empty if nothing does.
        pieces: its bytes from `start` on.
    """

    start: int
    total: int | None
    version: dict[str, str]
    pieces: Iterator[bytes]


@contextmanager
def downloaded(url: str, pin: str, output: Path, largest: int) -> Iterator[Path]:
    """The file at a URL, whole and with the pinned SHA-256, under a name of its own beside `output`.

    It is removed when the block ends well. After an interruption, or an error in the block, it stays: the next call for
    the same pin takes it up.

    Args:
        url: of the file.
        pin: its SHA-256, in hexadecimal.
        output: beside which it is written.
        largest: how many bytes it may have.

    Raises:
        InputError: it cannot be had, is too large, or has another SHA-256, and then it is removed.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    kept = output.parent / f"{PARTIAL_PREFIX}{output.name}.download"
    with kept.open("a+b") as file:
        _hold(file, shown_url(url))
        begun = _Begun(file, kept.with_name(f"{kept.name}.json"), {"url": shown_url(url), "sha256": pin})
        try:
            _complete(begun, url, pin, largest, output.name)
        except _RefusedError:
            begun.remove()
            raise
        finally:
            if not begun.length:
                begun.remove()
        yield kept
        begun.remove()


class _Begun:
    """A file of which a part is there, with a small one beside it that says of what it is a part.

    Attributes:
        length: how many bytes are there.
        digest: SHA-256 of them, so far.
        version: of the file that they are of, as the server said.
        resumed: whether some of them came over another connection than the rest.
    """

    def __init__(self, file: BinaryIO, about: Path, identity: Mapping[str, str]) -> None:
        self._file = file
        self._about = about
        self._identity = dict(identity)
        self.length, self.digest, self.version, self.resumed = 0, sha256(), dict[str, str](), False
        try:
            said = json.loads(about.read_text(encoding="utf-8"))
            if said["identity"] == self._identity:
                self.version = {str(key): str(value) for key, value in said["version"].items()}
                file.seek(0)
                while block := file.read(PIECE):
                    self._count(block)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none, or no such JSON
            self.version = {}
        self.resumed = self.length > 0

    def restart(self, version: Mapping[str, str]) -> None:
        """Forget the bytes: those of this version follow."""
        self._file.truncate(0)
        self.length, self.digest, self.version, self.resumed = 0, sha256(), dict(version), False
        self._about.write_text(json.dumps({"identity": self._identity, "version": self.version}), encoding="utf-8")

    def append(self, block: bytes) -> None:
        """Write further bytes."""
        self._file.write(block)
        self._count(block)

    def _count(self, block: bytes) -> None:
        self.digest.update(block)
        self.length += len(block)

    def pause(self) -> None:
        """Hand all bytes to the system: what follows comes over another connection."""
        self._file.flush()
        self.resumed = self.length > 0

    def remove(self) -> None:
        """Remove both files."""
        self._about.unlink(missing_ok=True)
        Path(self._file.name).unlink(missing_ok=True)


def _hold(file: BinaryIO, place: str) -> None:
    """Keep other processes from writing the same file, as long as it is open."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"{place}: another process is downloading it to the same place; wait for it to end") from None
    except OSError:
        pass  # a file system without locks
    kept = Path(file.name)
    if not (kept.exists() and os.path.samestat(kept.stat(), os.fstat(file.fileno()))):  # between opening and locking
        raise InputError(f"{place}: another process has just downloaded it to the same place; run this again")


def _complete(begun: _Begun, url: str, pin: str, largest: int, name: str) -> None:
    """Download what is missing."""
    furthest, failures, again = begun.length, 0, False
    with tqdm(desc=f"fetch {name}", unit="B", unit_scale=True, delay=BAR_DELAY) as bar:
        while (found := begun.digest.hexdigest()) != pin or not begun.length:
            try:
                _attempt(begun, url, largest, bar)
            except _BrokenError as error:
                failures = failures + 1 if begun.length <= furthest else 1
                furthest = max(furthest, begun.length)
                begun.pause()
                if isinstance(error, _ChangedError):
                    begun.restart({})
                if failures == ATTEMPTS:
                    kept = f"; the next run goes on from byte {begun.length:,}" if begun.length else ""
                    raise InputError(f"{shown_url(url)}: cannot be downloaded: {error}{kept}") from None
                time.sleep(PAUSE * 2 ** (failures - 1))
                continue
            if (found := begun.digest.hexdigest()) == pin:
                break
            if again or not begun.resumed:
                raise _RefusedError(f"{shown_url(url)}: the file's sha256 is {found}, but params.yaml pins {pin}")
            again = True  # its parts may be of two files
            begun.restart({})
    begun.pause()


def _attempt(begun: _Begun, url: str, largest: int, bar: "tqdm") -> None:
    """Take what one connection brings.

    Raises:
        _BrokenError: that is not all.
    """
    over_http = url.lower().startswith(("http://", "https://"))
    ask: Callable[[str, int, Mapping[str, str]], AbstractContextManager[_Answer]] = _http if over_http else _other
    with ask(url, begun.length, begun.version) as answer:
        if answer.start == 0:
            begun.restart(answer.version)
        bar.total, bar.n, bar.initial = answer.total, begun.length, begun.length
        if (answer.total or 0) > largest:
            raise _RefusedError(f"{shown_url(url)}: is larger than {largest:,} bytes")
        for block in answer.pieces:
            if begun.length + len(block) > largest:
                raise _RefusedError(f"{shown_url(url)}: is larger than {largest:,} bytes")
            begun.append(block)
            bar.update(len(block))
    if answer.total is not None and begun.length != answer.total:
        raise _BrokenError(f"it ended after {begun.length:,} of {answer.total:,} bytes")


@contextmanager
def _http(url: str, start: int, version: Mapping[str, str]) -> Iterator[_Answer]:
    """The answer of a web server: from `start` on where it can do that and has the same file as before; else all."""
    headers = {"Accept-Encoding": "identity"}  # the file's bytes as they are
    if start:
        headers["Range"] = f"bytes={start}-"
        if condition := _condition(version):
            headers["If-Range"] = condition
    try:
        with _client(url) as client, client.stream("GET", url, headers=headers) as response:
            yield _http_answer(response, url, start, version)
    except (httpx2.NetworkError, httpx2.TimeoutException, httpx2.RemoteProtocolError) as error:
        raise _BrokenError(_reason(error)) from None
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise InputError(f"{shown_url(url)}: cannot be downloaded: {_reason(error)}") from None


def _client(url: str) -> httpx2.Client:
    try:
        passwords = None if httpx2.URL(url).userinfo else _own_passwords()
        return httpx2.Client(verify=certificates(), timeout=TIMEOUT, follow_redirects=True, auth=passwords)
    except (ValueError, ImportError, httpx2.InvalidURL) as error:  # of a proxy's address, or of SOCKS
        if isinstance(error, InputError):
            raise
        raise InputError(f"{shown_url(url)}: cannot be downloaded: {_reason(error)}") from None


def _http_answer(response: httpx2.Response, url: str, start: int, version: Mapping[str, str]) -> _Answer:
    status = f"{response.status_code} {response.reason_phrase}".strip()
    if response.status_code in FOR_NOW:
        raise _BrokenError(status)
    if response.status_code == httpx2.codes.REQUESTED_RANGE_NOT_SATISFIABLE and start:
        raise _ChangedError(status)
    named = {"etag": response.headers.get("etag", ""), "last-modified": response.headers.get("last-modified", "")}
    found = {key: value for key, value in named.items() if value}
    pieces = response.iter_raw()
    if response.status_code == httpx2.codes.OK:
        size = response.headers.get("content-length", "")
        return _Answer(0, int(size) if size.isdecimal() else None, found, pieces)
    span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("content-range", ""))
    if response.status_code != httpx2.codes.PARTIAL_CONTENT or not start:
        raise InputError(f"{shown_url(url)}: cannot be downloaded: the server says {status}")
    if span is None or int(span[1]) != start or any(version.get(key, value) != value for key, value in found.items()):
        raise _ChangedError("the file has changed since it was begun")
    return _Answer(start, int(span[2]) if span[2] != "*" else None, dict(version), pieces)


def _condition(version: Mapping[str, str]) -> str:
    """What the server compares with the file it has now, before it sends a part; a weak ETag says too little."""
    etag = version.get("etag", "")
    return etag if etag and not etag.startswith("W/") else version.get("last-modified", "")


def _own_passwords() -> httpx2.Auth | None:
    """The user's .netrc, which has passwords by host, if there is one."""
    from netrc import NetrcParseError

    file = os.environ.get("NETRC") or os.path.expanduser("~/.netrc")  # noqa: PTH111 (which raises without a home)
    try:
        return httpx2.NetRCAuth(file) if Path(file).is_file() else None
    except (NetrcParseError, OSError) as error:
        raise InputError(f"{file}: cannot be read: {_reason(error)}") from None


@contextmanager
def _other(url: str, start: int, version: Mapping[str, str]) -> Iterator[_Answer]:
    """The answer of what fsspec opens, as `_http` has it."""
    from fsspec.core import url_to_fs  # type: ignore[import-untyped]

    system, path = _asked(lambda: url_to_fs(url), url)
    system.invalidate_cache()
    about = _asked(lambda: system.info(path), url)
    if about.get("type") == "directory":
        raise InputError(f"{shown_url(url)}: is a directory; name a file")
    found = {"key": str(_asked(lambda: system.ukey(path), url))}
    begin = start if dict(version) == found else 0
    stream = _asked(lambda: system.open(path, "rb", block_size=BLOCK), url)
    try:
        _asked(lambda: stream.seek(begin), url)
        yield _Answer(begin, about.get("size"), found, iter(lambda: _asked(lambda: stream.read(PIECE), url), b""))
    finally:
        with suppress(Exception):
            stream.close()


def _asked(work: Callable[[], ResultT], url: str) -> ResultT:
    """What one of fsspec's file systems says, and whatever its library makes of a failure in words of our own."""
    try:
        return work()
    except FileNotFoundError:
        raise InputError(f"{shown_url(url)}: there is no such file") from None
    except ImportError as error:
        scheme = url.partition(":")[0]
        raise InputError(
            f"{shown_url(url)}: {_reason(error)} (`pip install 'fisher-merging[s3]'` for s3://, else the package "
            f"of fsspec's for {scheme}://)"
        ) from None
    except (PermissionError, IsADirectoryError, ValueError) as error:
        raise InputError(f"{shown_url(url)}: cannot be downloaded: {_reason(error)}") from None
    except Exception as error:  # botocore's and paramiko's are of no common kind
        raise _BrokenError(_reason(error)) from None


def _reason(error: Exception) -> str:
    """An error in one line, without what its URLs have of secrets."""
    line = " ".join(str(error).split())
    return re.sub(r"(://[^\s?]*)\?[^\s'\"]*", r"\1", re.sub(r"://[^\s/]*@", "://", line))[:400] or type(error).__name__
