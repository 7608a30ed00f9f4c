"""Archives from package indexes: real servers on the loopback interface, configured as pip is."""

import base64
import io
import json
import ssl
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from stages.running.errors import InputError
from stages.storage.package_index import download_package, pip_settings

LARGEST = 10**6
WHEEL = "tiny_data-1.0-py3-none-any.whl"
SOURCE = "tiny_data-1.0.tar.gz"
HTML, JSON = "text/html", "application/vnd.pypi.simple.v1+json"


@cache  # the time is in it
def wheel() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("tiny_data/a.txt", b"a")
    return stream.getvalue()


@cache
def source(setup: str = "") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, text in {
            "setup.py": setup,
            "PKG-INFO": "Metadata-Version: 2.1\nName: tiny-data\nVersion: 1.0\n",
        }.items():
            info = tarfile.TarInfo(f"tiny_data-1.0/{name}")
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    return stream.getvalue()


def digest(content: bytes) -> str:
    return sha256(content).hexdigest()


@dataclass
class Server:
    """What is at which path (or, through a proxy, at which URL), and what was asked for.

    Attributes:
        url: of its root.
        pages: content type and content; or a status, and the place that it redirects to.
        asked: paths, with the `Authorization` that was sent for them.
        failures: so many connections are closed unanswered first.
        password: what `Authorization` must be, if anything.
        encoding: what it says that contents are encoded with.
    """

    url: str = ""
    pages: dict[str, tuple[str | int, bytes | str]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    failures: int = 0
    password: str | None = None
    encoding: str | None = None
    claimed_length: int | None = None

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        self.asked.append(request.path)
        if self.failures:
            self.failures -= 1
            request.close_connection = True
            return
        if self.password is not None and request.headers.get("Authorization") != self.password:
            request.send_error(401)
            return
        kind, content = self.pages.get(request.path, (404, ""))
        if isinstance(kind, int):
            request.send_response(kind)
            request.send_header("Location", str(content))
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        body = content.encode() if isinstance(content, str) else content
        request.send_response(200)
        request.send_header("Content-Type", kind)
        request.send_header("Content-Length", str(self.claimed_length or len(body)))
        if self.encoding is not None and kind == "application/gzip":
            request.send_header("Content-Encoding", self.encoding)
        request.end_headers()
        request.wfile.write(body)
        request.close_connection = True

    def has(self, files: dict[str, bytes], hashes: bool = True, root: str = "") -> None:
        """Serve these files of tiny-data and, by PEP 503, the page of the index `/simple` that lists them."""
        for name, content in files.items():
            self.pages[f"{root}/files/{name}"] = ("application/gzip", content)
        anchors = [
            f'<a href="../../files/{name}{f"#sha256={digest(content)}" if hashes else ""}">{name}</a>'
            for name, content in files.items()
        ]
        self.pages[f"{root}/simple/tiny-data/"] = (HTML, f"<html><body>{'<br>'.join(anchors)}</body></html>")


@contextmanager
def serving(certificate: Path | None = None) -> Iterator[Server]:
    served = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.answer(self)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.url = f"http://127.0.0.1:{server.server_address[1]}"
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        served.url = served.url.replace("http:", "https:")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as served:
        yield served


@pytest.fixture(autouse=True)
def pip(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets pip's settings (`index_url=…`), of which there are none but that it does not try again."""
    import os

    for name in list(os.environ):
        if name.startswith("PIP_") or name.lower().endswith("_proxy") or name.endswith("CA_BUNDLE"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_RETRIES", "0")

    def configure(**settings: str) -> None:
        for name, value in settings.items():
            monkeypatch.setenv(f"PIP_{name.upper()}", value)

    return configure


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "downloads").mkdir()
    return tmp_path / "downloads"


def downloaded(content: bytes, folder: Path, package: str = "tiny-data==1.0", largest: int = LARGEST) -> str:
    """The name of the file with that content, which must have arrived whole."""
    file = download_package(package, digest(content), folder, largest)
    assert file.read_bytes() == content
    return file.name


def refusal(pin: str, folder: Path, package: str = "tiny-data==1.0", largest: int = LARGEST) -> str:
    with pytest.raises(InputError) as caught:
        download_package(package, pin, folder, largest)
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_nothing_of_a_source_archive_is_run(
    server: Server, pip: Callable[..., None], folder: Path, tmp_path: Path
) -> None:
    content = source(f"open({str(tmp_path / 'mark')!r}, 'w').close()")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / SOURCE).write_bytes(content)
    server.has({SOURCE: content})
    for settings in (
        {"no_index": "1", "find_links": str(tmp_path / "links")},
        {"no_index": "0", "index_url": f"{server.url}/simple"},
    ):
        pip(**settings)
        assert downloaded(content, folder) == SOURCE
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("hashes", [True, False], ids=["hashes listed", "no hashes"])
@pytest.mark.parametrize("name", [WHEEL, SOURCE])
def test_the_pin_chooses_among_a_version_s_files(
    server: Server, pip: Callable[..., None], folder: Path, name: str, hashes: bool
) -> None:
    files = {
        WHEEL: wheel(),
        SOURCE: source(),
        "tiny_data-1.1.tar.gz": b"newer",
        "tiny_data-1.0-cp27-cp27m-win32.whl": b"old",
    }
    server.has(files, hashes)
    pip(index_url=f"{server.url}/simple/")
    assert downloaded(files[name], folder) == name
    assert "/files/tiny_data-1.1.tar.gz" not in server.asked
    if hashes:
        assert server.asked == ["/simple/tiny-data/", f"/files/{name}"]


def test_wheels_for_other_machines_yanked_ones_and_releases_before_the_first(
    server: Server, pip: Callable[..., None], folder: Path
) -> None:
    files = {"tiny_data-1.0rc1-cp27-cp27m-win32.whl": b"a wheel", "tiny_data-1.0rc1.zip": b"a source"}
    server.has(files)
    kind, page = server.pages["/simple/tiny-data/"]
    server.pages["/simple/tiny-data/"] = (
        kind,
        str(page).replace("<a ", '<a data-yanked="" data-requires-python="&lt;3" '),
    )
    pip(index_url=f"{server.url}/simple")
    for name, content in files.items():
        assert downloaded(content, folder, "Tiny_Data==1.0rc1") == name


def test_an_index_in_json(server: Server, pip: Callable[..., None], folder: Path) -> None:
    content = wheel()
    server.pages["/files/x/tiny_data-1.0-py3-none-any.whl"] = ("application/zip", content)
    listed = [{"filename": WHEEL, "url": f"{server.url}/files/x/{WHEEL}", "hashes": {"sha256": digest(content)}}]
    server.pages["/simple/tiny-data/"] = (
        JSON,
        json.dumps({"meta": {"api-version": "1.1"}, "name": "tiny-data", "files": listed}),
    )
    pip(index_url=f"{server.url}/simple")
    assert downloaded(content, folder) == WHEEL
    assert f"sha256 is {digest(content)}, not {64 * '0'}" in refusal(64 * "0", folder)


def test_another_hash_is_named_and_nothing_is_downloaded_for_it(
    server: Server, pip: Callable[..., None], folder: Path
) -> None:
    server.has({WHEEL: wheel(), SOURCE: source()})
    pip(index_url=f"{server.url}/simple")
    message = refusal(64 * "0", folder)
    assert digest(wheel()) in message
    assert f" or {digest(source())}, not {64 * '0'}" in message
    assert server.asked == ["/simple/tiny-data/"]


def test_a_file_that_is_not_what_its_index_says(server: Server, pip: Callable[..., None], folder: Path) -> None:
    server.has({WHEEL: wheel()})
    server.pages[f"/files/{WHEEL}"] = ("application/zip", b"forged")
    pip(index_url=f"{server.url}/simple")
    assert f"sha256 is {digest(b'forged')}, not {digest(wheel())}" in refusal(digest(wheel()), folder)


@pytest.mark.parametrize("hashes", [True, False])
def test_a_download_that_fails_is_blamed_before_other_files(
    server: Server, pip: Callable[..., None], folder: Path, hashes: bool
) -> None:
    server.has({WHEEL: wheel(), SOURCE: source()}, hashes)
    del server.pages[f"/files/{WHEEL}"]
    pip(index_url=f"{server.url}/simple")
    message = refusal(digest(wheel()), folder)
    assert message == f"tiny-data==1.0: cannot be downloaded; {server.url}/files/{WHEEL}: 404 Not Found"
    assert downloaded(source(), folder) == SOURCE


def test_places_that_fail_do_not_hide_the_others(
    server: Server, pip: Callable[..., None], folder: Path, tmp_path: Path
) -> None:
    server.has({WHEEL: wheel()}, root="/good")
    server.pages["/broken/tiny-data/"] = (JSON, "{")
    server.pages["/odd/tiny-data/"] = ("image/png", b"")
    bad = f"http://127.0.0.1:1/simple {server.url}/none {server.url}/broken {server.url}/odd"
    pip(
        index_url="http://127.0.0.1:1/",
        extra_index_url=f"{bad} {server.url}/good/simple",
        find_links=f"{tmp_path}/nowhere x",
    )
    assert downloaded(wheel(), folder) == WHEEL
    pip(extra_index_url=bad)
    message = refusal(digest(wheel()), folder)
    assert message.startswith(f"tiny-data==1.0: no such version in {tmp_path}/nowhere, x, http://127.0.0.1:1/, http://")
    for reason in (
        "Connection refused",
        "Client Error(404)",
        "Content-Type unsupported: image/png",
        "nowhere: Invalid find link",
    ):
        assert reason in message


def test_folders_and_pages_of_links(server: Server, pip: Callable[..., None], folder: Path, tmp_path: Path) -> None:
    (tmp_path / "links" / "tiny_data-1.0.zip").mkdir(parents=True)  # a directory that is named as if it were a file
    (tmp_path / "links" / WHEEL).write_bytes(wheel())
    (tmp_path / "simple" / "tiny-data").mkdir(parents=True)
    (tmp_path / "simple" / "tiny-data" / "index.html").write_text(f'<a href="../../links/{WHEEL}">{WHEEL}</a>')
    server.pages["/links.html"] = (HTML, f'<a href="/f/{WHEEL}">{WHEEL}</a>')
    server.pages[f"/f/{WHEEL}"] = ("application/zip", wheel())
    for settings in (
        {"find_links": str(tmp_path / "links")},
        {"find_links": (tmp_path / "links").as_uri()},
        {"find_links": f"{server.url}/links.html"},
        {"index_url": (tmp_path / "simple").as_uri(), "no_index": "false", "find_links": str(tmp_path)},
    ):
        pip(**({"no_index": "true"} | settings))
        assert downloaded(wheel(), folder) == WHEEL


def test_no_place_to_look_is_not_the_default_one(pip: Callable[..., None], folder: Path) -> None:
    pip(no_index="yes")
    assert "no such version in any place" in refusal(64 * "0", folder)


def test_versions_that_there_are(server: Server, pip: Callable[..., None], folder: Path) -> None:
    server.has({f"tiny_data-1.{minor}.tar.gz": b"x" for minor in range(12)})
    pip(index_url=f"{server.url}/simple")
    message = refusal(64 * "0", folder, "tiny-data==2.0")
    assert message.endswith("; there are 1.11, 1.10, 1.9, 1.8, 1.7 and older ones")
    assert "no such version" in refusal(64 * "0", folder, "other-data==2.0")
    assert "other..data" in refusal(64 * "0", folder, "other..data==..")


def test_settings_of_files_and_of_the_environment(
    pip: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "pip.conf"
    file.write_text(
        "[global]\nindex-url = https://a.invalid/simple\ntimeout = 3\nproxy = http://a\nquiet = 2\n[download]\n"
        "extra_index_url =\n    https://b.invalid/it's\n    https://c.invalid\ntimeout = 4\n[wheel]\ncert = /nowhere\n"
        "[install]\ntrusted-host = c.invalid\ntimeout = 5\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(file))
    pip(find_links="x y", proxy="")
    found = pip_settings()
    assert found["index-url"] == "https://a.invalid/simple"
    assert found["extra-index-url"].split() == ["https://b.invalid/it's", "https://c.invalid"]
    assert (found["timeout"], found["proxy"], found["trusted-host"]) == ("4", "http://a", "c.invalid")
    assert found["find-links"] == "x y"
    assert found.get("cert") != "/nowhere"
    pip(timeout="6")
    assert pip_settings()["timeout"] == "6"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"timeout": "soon"}, "config list` fails"),
        ({"retries": "x"}, "config list` fails"),
        ({"proxy": "gopher://x"}, "pip's settings"),
        ({"cert": "/nowhere.pem"}, "/nowhere.pem: no certificates"),
        ({"client_cert": "/nowhere.pem"}, "/nowhere.pem: no certificates"),
    ],
)
def test_settings_that_cannot_be_used(
    pip: Callable[..., None], folder: Path, settings: dict[str, str], message: str
) -> None:
    pip(index_url="http://127.0.0.1:1/", **settings)
    assert message in refusal(64 * "0", folder)


def test_a_configuration_that_pip_cannot_read(monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "pip.conf").write_text("no section\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    assert "fails, so where packages are is unknown" in refusal(64 * "0", folder)


def test_by_a_proxy(server: Server, pip: Callable[..., None], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of pip's setting or the environment's; hosts without encryption must be trusted, and go through it too."""
    server.has({WHEEL: wheel()}, root="http://packages.invalid")
    pip(index_url="http://packages.invalid/simple")
    assert "not being trusted" in refusal(digest(wheel()), folder)
    pip(trusted_host="packages.invalid")
    pip(proxy=server.url.removeprefix("http://"))
    assert downloaded(wheel(), folder) == WHEEL
    monkeypatch.delenv("PIP_PROXY")
    monkeypatch.setenv("http_proxy", server.url)
    assert downloaded(wheel(), folder) == WHEEL
    assert server.asked == 2 * ["http://packages.invalid/simple/tiny-data/", f"http://packages.invalid/files/{WHEEL}"]
    monkeypatch.setenv("no_proxy", "packages.invalid")
    assert "no such version" in refusal(digest(wheel()), folder)
    assert len(server.asked) == 4


def test_credentials_are_sent_and_not_shown(server: Server, pip: Callable[..., None], folder: Path) -> None:
    server.has({WHEEL: wheel()})
    server.password = "Basic " + base64.b64encode(b"ann:se:cret").decode()
    pip(index_url=server.url.replace("//", "//ann:se%3Acret@") + "/simple")
    assert downloaded(wheel(), folder) == WHEEL
    message = refusal(digest(b""), folder, "tiny-data==2.0")
    assert "cret" not in message
    pip(index_url=server.url.replace("//", "//ann:wrong@") + "/simple")
    message = refusal(digest(wheel()), folder)
    assert "401" in message
    assert "wrong" not in message


def test_redirects_are_followed(server: Server, pip: Callable[..., None], folder: Path) -> None:
    server.has({WHEEL: wheel()}, root="/moved")
    server.pages["/simple/tiny-data/"] = (301, "/moved/simple/tiny-data/")
    server.pages[f"/else/{WHEEL}"] = server.pages.pop(f"/moved/files/{WHEEL}")
    server.pages[f"/moved/files/{WHEEL}"] = (302, f"/else/{WHEEL}")
    pip(index_url=f"{server.url}/simple")
    assert downloaded(wheel(), folder) == WHEEL


def test_an_archive_is_not_unpacked_on_its_way(server: Server, pip: Callable[..., None], folder: Path) -> None:
    """By servers that call what is compressed "encoded"."""
    server.has({SOURCE: source()}, hashes=False)
    server.encoding = "gzip"
    pip(index_url=f"{server.url}/simple")
    assert downloaded(source(), folder) == SOURCE


def test_what_is_too_large_and_what_is_cut_short(server: Server, pip: Callable[..., None], folder: Path) -> None:
    server.has({SOURCE: 2 * LARGEST * b"x"})
    pip(index_url=f"{server.url}/simple")
    assert refusal(digest(2 * LARGEST * b"x"), folder).endswith(f"{SOURCE}: is larger than 1,000,000 bytes")
    server.has({SOURCE: source()})
    server.claimed_length = 10**5  # of the page too, which is cut short first
    assert "peer closed connection" in refusal(digest(source()), folder)


def test_what_fails_once_is_tried_again(server: Server, pip: Callable[..., None], folder: Path) -> None:
    server.has({WHEEL: wheel()})
    pip(index_url=f"{server.url}/simple", retries="1")
    server.failures = 1
    assert downloaded(wheel(), folder) == WHEEL
    server.failures = 2
    assert "no such version" in refusal(digest(wheel()), folder)


def test_certificates(pip: Callable[..., None], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = certificate(tmp_path / "own.pem")
    with serving(own) as server:
        server.has({WHEEL: wheel()})
        pip(index_url=f"{server.url}/simple")
        assert "certificate verify failed" in refusal(digest(wheel()), folder)
        pip(cert=str(certificate(tmp_path / "another.pem")))
        assert "certificate verify failed" in refusal(digest(wheel()), folder)
        pip(cert=str(own))
        assert downloaded(wheel(), folder) == WHEEL
        monkeypatch.delenv("PIP_CERT")
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(own))
        assert downloaded(wheel(), folder) == WHEEL
        monkeypatch.delenv("REQUESTS_CA_BUNDLE")
        pip(trusted_host="127.0.0.1")
        assert downloaded(wheel(), folder) == WHEEL


def certificate(file: Path) -> Path:
    """A self-signed certificate of the loopback interface, with its key."""
    from datetime import UTC, datetime, timedelta
    from ipaddress import ip_address

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, file.stem)])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    file.write_bytes(secret + signed.public_bytes(pem))
    return file


def test_sources_of_other_kinds_do_not_import_it() -> None:
    code = "import sys, stages.fetch; sys.exit('unearth' in sys.modules or 'httpx2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
