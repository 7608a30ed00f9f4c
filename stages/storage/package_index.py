"""A package's archive as its index has it, downloaded as a file: nothing of it is built, installed or run.

Where to look, and how to connect, is what pip's own configuration says (its files and the environment's `PIP_…`).
"""

import ast
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TypeVar
from urllib.request import getproxies, proxy_bypass

import httpx2
from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import Version
from pip._internal.models.index import PyPI
from unearth import Link, PackageFinder
from unearth.auth import MultiDomainBasicAuth
from unearth.fetchers import PyPIClient

from stages.running.errors import InputError
from stages.storage.certificates import certificates
from stages.storage.outputs import writing

SECTIONS = ("global", "install", "download", ":env:")  # of pip's settings: a later one's override an earlier one's
TRUE = ("y", "yes", "t", "true", "on", "1")  # in pip's settings
INDEX, TIMEOUT, RETRIES = PyPI.simple_url, "15", "5"  # pip's defaults; seconds
VERSIONS_NAMED = 5  # where the wanted one is missing

Settings = Mapping[str, str]
ResultT = TypeVar("ResultT")


def download_package(package: str, pin: str, folder: Path, largest: int) -> Path:
    """Download the file of a package's version, a wheel or source archive, that has the pinned SHA-256.

    Args:
        package: `NAME==VERSION`.
        pin: the SHA-256, in hexadecimal.
        folder: where the file is written, under its own name.
        largest: how many bytes it may have.

    Raises:
        InputError: no index or folder that pip would look into has such a file, or it is too large.
    """
    try:
        requirement = Requirement(package)
    except InvalidRequirement as error:
        raise InputError(f"{package}: {_in_one_line(error)}") from None
    settings = pip_settings()
    seen = _Seen()
    with _client(settings) as client, _unearth_reports(seen.problems):
        for place, finder in _finders(settings, client):
            for link in _links(finder, requirement, pin, place, seen, settings):
                try:
                    digest = _retried(partial(_save, client, link, folder, largest), settings)
                except httpx2.HTTPError as error:
                    seen.failures.append(f"{link.redacted}: {_in_one_line(error)}")
                    continue
                if digest == pin:
                    return folder / link.filename
                seen.digests.append(digest)
    raise InputError(f"{package}: {seen.in_vain(pin)}")


@dataclass
class _Seen:
    """What was seen while looking for a file.

    Attributes:
        places: that were looked into.
        problems: why some of them could not be.
        versions: of the package.
        digests: of files of the wanted version that are not the pinned one.
        failures: of downloads that might have been it.
    """

    places: list[str] = field(default_factory=list)
    versions: set[Version] = field(default_factory=set)
    digests: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def in_vain(self, pin: str) -> str:
        """Why there is no file with that digest."""
        if self.failures:
            return "; ".join(["cannot be downloaded", *dict.fromkeys(self.failures)])
        if self.digests:
            found = " or ".join(dict.fromkeys(self.digests))
            return f"the archive's sha256 is {found}, not {pin}; it is corrupt, or not the pinned one"
        message = f"no such version in {', '.join(self.places) or 'any place: pip has none to look into'}"
        if self.versions:
            newest = [str(version) for version in sorted(self.versions, reverse=True)[:VERSIONS_NAMED]]
            message += f"; there are {', '.join(newest)}{' and older ones' * (len(self.versions) > VERSIONS_NAMED)}"
        return "; ".join([message, *dict.fromkeys(self.problems)])


def pip_settings() -> dict[str, str]:
    """pip's settings for downloads, by their names (`index-url`, …), from its configuration files and the environment.

    Raises:
        InputError: pip is missing, or cannot read its configuration.
    """
    environment = os.environ | {"PIP_QUIET": "0", "PIP_VERBOSE": "0"}  # otherwise it may print nothing, or more
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "config", "list"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        reason = [line for line in (result.stdout + result.stderr).splitlines() if line.strip()]
        raise InputError(f"`{' '.join(command)}` fails, so where packages are is unknown: {' '.join(reason[-1:])}")
    sections: dict[str, dict[str, str]] = {section: {} for section in SECTIONS}
    for line in result.stdout.splitlines():
        if (setting := re.fullmatch(r"([^.=]+)\.([^=]+)=(['\"].*['\"])", line)) and setting[1] in sections:
            sections[setting[1]][setting[2]] = ast.literal_eval(setting[3])
    return {name: value for section in SECTIONS for name, value in sections[section].items() if value.strip()}


def _finders(settings: Settings, client: PyPIClient) -> Iterator[tuple[str, PackageFinder]]:
    """The places to look into, each with a finder of its own, so that one that fails does not hide the others."""
    # The pin says which file, for whatever Python and machine it is.
    common = partial(PackageFinder, client, ignore_compatibility=True)  # type: ignore[arg-type]
    for link in settings.get("find-links", "").split():
        place = os.path.expanduser(link)  # noqa: PTH111 (most are no paths)
        yield Link(link).redacted, common(find_links=[place])
    for url in _index_urls(settings):
        yield Link(url).redacted, common(index_urls=[url])


def _index_urls(settings: Settings) -> list[str]:
    if settings.get("no-index", "").lower() in TRUE:
        return []
    first = settings.get("index-url", settings.get("pypi-url", INDEX))
    return [first, *settings.get("extra-index-url", "").split()]


def _links(
    finder: PackageFinder, requirement: Requirement, pin: str, place: str, seen: _Seen, settings: Settings
) -> list[Link]:
    """A place's files of the wanted version that may be the pinned one: those that are said to be come first."""
    seen.places.append(place)
    try:
        search = partial(finder.find_all_packages, requirement.name, allow_yanked=True)
        found = [(Version(str(package.version)), package.link) for package in _retried(search, settings)]
    except Exception as error:  # whatever unearth makes of a place that is none
        seen.problems.append(f"{place}: {_in_one_line(error)}")
        return []
    seen.versions |= {version for version, _ in found}
    digests = {
        link: (link.hash_option or {}).get("sha256", [""])[0].lower()
        for version, link in found
        if requirement.specifier.contains(version, prereleases=True)
        and not (link.is_file and not link.file_path.is_file())
    }
    seen.digests += [digest for digest in digests.values() if digest not in ("", pin)]
    return [link for wanted in (pin, "") for link, digest in digests.items() if digest == wanted]


def _save(client: PyPIClient, link: Link, folder: Path, largest: int) -> str:
    """Write a file as the server sends it; returns its SHA-256."""
    digest = sha256()
    file = folder / link.filename
    # Servers that say an archive is "encoded" by gzip would have it unpacked on the way.
    headers = {"Accept-Encoding": "identity"}
    with client.get_stream(link.normalized, headers=headers) as response, writing(file), file.open("wb") as writer:
        response.raise_for_status()
        for block in response.iter_raw(1 << 20):
            if writer.tell() + len(block) > largest:
                raise InputError(f"{link.redacted}: is larger than {largest:,} bytes")
            digest.update(block)
            writer.write(block)
    return digest.hexdigest()


def _retried(work: Callable[[], ResultT], settings: Settings) -> ResultT:
    """The result of `work`, which is tried again where the network fails, after pauses that double, as pip does."""
    for attempt in range(int(_number("retries", settings, RETRIES))):
        try:
            return work()
        except (httpx2.NetworkError, httpx2.TimeoutException, httpx2.RemoteProtocolError):
            time.sleep(0.25 * 2**attempt)
    return work()


def _client(settings: Settings) -> PyPIClient:
    """What connects to the places, through pip's proxy if it has one, else the environment's."""
    proxy = settings.get("proxy")
    if proxy is not None and "://" not in proxy:
        proxy = f"http://{proxy}"
    hosts = settings.get("trusted-host", "").split()
    try:
        client = PyPIClient(
            trusted_hosts=hosts,
            verify=certificates(settings.get("cert"), settings.get("client-cert")),
            timeout=_number("timeout", settings, settings.get("default-timeout", TIMEOUT)),
            follow_redirects=True,
            proxy=proxy,
            mounts=_proxies_of_trusted(hosts, proxy),
        )
    except (ValueError, ImportError, httpx2.InvalidURL) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"pip's settings (`pip config list`) cannot be used: {_in_one_line(error)}") from None
    client.auth = MultiDomainBasicAuth(prompting=False, index_urls=_index_urls(settings))
    return client


def _proxies_of_trusted(hosts: Sequence[str], proxy: str | None) -> dict[str, httpx2.BaseTransport]:
    """How to reach hosts whose certificates are not checked, where that is by a proxy: unearth would go around it.

    Only those that pip's own setting `trusted-host` names, as pip does it. Whoever stands in between cannot pass off
    another file all the same: the archive's SHA-256 is pinned.
    """
    proxies = getproxies() if proxy is None else {"http": proxy, "https": proxy}
    transports: dict[str, httpx2.BaseTransport] = {}
    for host in hosts:
        for scheme in ("http", "https"):
            through = proxies.get(scheme, proxies.get("all"))
            if through is not None and not (proxy is None and proxy_bypass(host)):
                transports[f"{scheme}://{host}"] = httpx2.HTTPTransport(verify=False, proxy=through)
    return transports


@contextmanager
def _unearth_reports(problems: list[str]) -> Iterator[None]:
    """Add to `problems` what unearth only logs: places that cannot be reached, or are not to be trusted."""

    class Reports(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            problems.append(_in_one_line(record.getMessage()))

    handler = Reports(logging.WARNING)
    logger = logging.getLogger("unearth")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _number(name: str, settings: Settings, default: str) -> float:
    value = settings.get(name, default)
    try:
        return float(value)
    except ValueError:
        raise InputError(f"pip's setting {name} = {value!r} (`pip config list`) is not a number") from None


def _in_one_line(error: object) -> str:
    if isinstance(error, httpx2.HTTPStatusError):
        return f"{error.response.status_code} {error.response.reason_phrase}"
    text = " ".join(str(error).split())
    return text or type(error).__name__
