"""A headless Chromium, driven over the pipe that `--remote-debugging-pipe` opens (Chrome DevTools Protocol)."""

import base64
import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)


def find_chromium() -> str | None:
    """The browser's path, if there is one."""
    return next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )


class Browser:
    """A browser with one page. What it asks the network for ends at a loopback proxy, which gives nothing.

    Attributes:
        requested: the first line of every request that has come to the proxy.
    """

    def __init__(self, program: str, profile: Path, proxy: "Proxy") -> None:
        self.requested = proxy.requested
        # The browser reads commands from file 3 and writes to file 4; each message ends with a zero byte.
        (read_here, write_there), (read_there, write_here) = os.pipe(), os.pipe()
        self._in, self._out = os.fdopen(read_here, "rb"), os.fdopen(write_here, "wb")
        arguments = [
            program,
            *FLAGS,
            f"--user-data-dir={profile}",
            f"--proxy-server=127.0.0.1:{proxy.server_port}",
            "--proxy-bypass-list=<-loopback>",
            "about:blank",
        ]
        # 3 and 4 may be ends of these very pipes, so both go by numbers that are in nobody's way.
        actions = [
            (os.POSIX_SPAWN_DUP2, read_there, 103),
            (os.POSIX_SPAWN_DUP2, write_there, 104),
            (os.POSIX_SPAWN_DUP2, 103, 3),
            (os.POSIX_SPAWN_DUP2, 104, 4),
            (os.POSIX_SPAWN_CLOSE, 103),
            (os.POSIX_SPAWN_CLOSE, 104),
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
            (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
        ]
        self._process = os.posix_spawn(program, arguments, os.environ, file_actions=actions, setpgroup=0)
        os.close(read_there)
        os.close(write_there)
        self._number = 0
        self._session: str | None = None
        self._events: list[dict[str, Any]] = []
        page = next(t for t in self._call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        attached = self._call("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self._call(f"{domain}.enable")

    def _call(self, method: str, **parameters: object) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        self._out.write(json.dumps(message).encode() + b"\0")
        self._out.flush()
        while (answer := self._receive()).get("id") != self._number:
            self._events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def _receive(self) -> dict[str, Any]:
        content = bytearray()
        while (byte := self._in.read(1)) != b"\0":
            if not byte:
                raise RuntimeError("the browser has ended")
            content += byte
        return json.loads(content)

    def open(self, file: Path, *, width: int, scheme: Literal["light", "dark"], scripts: bool) -> list[str]:
        """Open a file and wait until it is loaded.

        Returns:
            The addresses that were asked for, and what the browser has complained of.
        """
        self._call("Emulation.setScriptExecutionDisabled", value=not scripts)
        self._call(
            "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}], media="screen"
        )
        self._call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        self._events.clear()
        self._call("Page.navigate", url=file.resolve().as_uri())
        seen: list[dict[str, Any]] = []
        while not any(event["method"] == "Page.loadEventFired" for event in seen):
            seen += self._events or [self._receive()]
            self._events = []
        addresses = [e["params"]["request"]["url"] for e in seen if e["method"] == "Network.requestWillBeSent"]
        complaints = [e["params"]["entry"]["text"] for e in seen if e["method"] == "Log.entryAdded"]
        return [*addresses, *complaints]

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page; this works where the page's own scripts are off."""
        found = self._call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(f"{expression}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def screenshot(self, file: Path) -> None:
        """Save a picture (PNG) of the whole page."""
        found = self._call("Page.captureScreenshot", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(found["data"]))

    def close(self) -> None:
        """End the browser and all of its processes."""
        self._session = None
        with suppress(RuntimeError, OSError):
            self._call("Browser.close")
        with suppress(ProcessLookupError):
            os.killpg(self._process, signal.SIGKILL)
        os.waitpid(self._process, 0)
        self._in.close()
        with suppress(OSError):
            self._out.close()


class Proxy(ThreadingHTTPServer):
    """A proxy on the loopback interface that notes every request and answers none."""

    def __init__(self) -> None:
        requested: list[str] = []

        class Refuse(BaseHTTPRequestHandler):
            """Notes and refuses."""

            def handle_one_request(self) -> None:
                line = self.rfile.readline(65537)
                if line:
                    requested.append(line.decode("latin-1").strip())
                self.close_connection = True

        super().__init__(("127.0.0.1", 0), Refuse)
        self.requested = requested


@contextmanager
def browser(program: str, profile: Path) -> Iterator[Browser]:
    """A browser with a profile of its own, in an empty directory."""
    with Proxy() as proxy:
        thread = threading.Thread(target=proxy.serve_forever, daemon=True)
        thread.start()
        found = Browser(program, profile, proxy)
        try:
            yield found
        finally:
            found.close()
            proxy.shutdown()
            thread.join()
