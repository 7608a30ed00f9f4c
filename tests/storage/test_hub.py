"""A source from the Hub, of which a server on the loopback speaks what a download asks for."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

COMMIT = 40 * "c"
FILES = {
    "model.safetensors": np.random.default_rng(0).bytes(3_000_000),
    "more/config.json": b'{"model_type": "bert"}',
    "README.md": b"not wanted",
}
PROGRAM = """
import sys
from pathlib import Path
from stages.storage.source import Source
from stages.storage.sources import fetch_source
hub, commit, *files = sys.argv[2:]
fetch_source(Source(hub=hub, revision=commit, files=files), Path(sys.argv[1]))
"""


class Hub(BaseHTTPRequestHandler):
    """The repository org/name at one commit."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path.startswith(f"/api/models/org/name/tree/{COMMIT}"):
            entries = [{"type": "file", "path": name, "size": len(FILES[name]), "oid": oid(name)} for name in FILES]
            self._send(json.dumps(entries).encode(), "application/json")
        elif (name := self.path.removeprefix(f"/org/name/resolve/{COMMIT}/")) in FILES:
            self._send(FILES[name], "application/octet-stream", oid(name))
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    do_HEAD = do_GET  # noqa: N815 (http.server names it)

    def _send(self, body: bytes, kind: str, etag: str = "") -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


def oid(name: str) -> str:
    return sha1(FILES[name], usedforsecurity=False).hexdigest()


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        server.daemon_threads = True
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def fetch(endpoint: str, out: Path, repository: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "HF_ENDPOINT": endpoint,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(out.parent / "home"),
        "NO_PROXY": "127.0.0.1",
        **variables,
    }
    command = [sys.executable, "-c", PROGRAM, str(out), repository, COMMIT, "*.safetensors", "*.json"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)


def test_the_wanted_files_and_a_bar_of_bytes(endpoint: str, tmp_path: Path) -> None:
    result = fetch(endpoint, tmp_path / "out", "org/name")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out/model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert (tmp_path / "out/more/config.json").read_bytes() == FILES["more/config.json"]
    assert not (tmp_path / "out/README.md").exists()
    assert re.search(r"fetch: 100%.* 3\.00M/3\.00M \[", result.stderr), "on what is no terminal, too"
    assert "Fetching" not in result.stderr
    assert "Reconstruct" not in result.stderr


def test_no_bar_for_who_wants_none(endpoint: str, tmp_path: Path) -> None:
    result = fetch(endpoint, tmp_path / "out", "org/name", HF_HUB_DISABLE_PROGRESS_BARS="1")
    assert result.returncode == 0
    assert "fetch" not in result.stderr


def test_a_repository_that_there_is_not(endpoint: str, tmp_path: Path) -> None:
    result = fetch(endpoint, tmp_path / "out", "org/other")
    assert result.returncode != 0
    assert re.search(rf"InputError: org/other@{COMMIT}: .*404", result.stderr)
    assert not (tmp_path / "out").exists()
