"""The kinds of DVC remote that a team may share over, each real: a directory, an S3 server and an SSH server."""

import contextlib
import getpass
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import boto3
import pytest
from moto import settings
from moto.server import ThreadedMotoServer

from tests.project import Project

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Remote:
    """What `dvc remote add` and `dvc remote modify` want to know; `wrong` has options that the remote must refuse."""

    url: str
    options: dict[str, str] = field(default_factory=dict)
    wrong: dict[str, str] = field(default_factory=dict)

    def configure(self, project: Project) -> None:
        """What models/README.md tells a user to do, once in every clone."""
        project.run("dvc", "remote", "add", "--local", "--default", "team", self.url)
        for option, value in self.options.items():
            self.modify(project, option, value)

    def modify(self, project: Project, option: str, value: str) -> None:
        project.run("dvc", "remote", "modify", "--local", "team", option, value)

    @property
    def private(self) -> list[str]:
        """What must stay out of git."""
        return [self.url, *(value for option, value in self.options.items() if option != "port")]


@contextlib.contextmanager
def directory(root: Path) -> Iterator[Remote]:
    yield Remote(str(root / "remote"))


@contextlib.contextmanager
def s3(root: Path) -> Iterator[Remote]:
    """A bucket of moto's server, which then checks signatures as S3 does."""
    server = ThreadedMotoServer(ip_address=LOOPBACK, port=0, verbose=False)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        try:
            endpoint = f"http://{LOOPBACK}:{server.get_host_and_port()[1]}"
            owner = {
                "endpoint_url": endpoint,
                "region_name": "us-east-1",
                "aws_access_key_id": "owner",
                "aws_secret_access_key": "owner",
            }
            boto3.client("s3", **owner).create_bucket(Bucket="bucket-of-the-team")
            iam = boto3.client("iam", **owner)
            iam.create_user(UserName="colleague")
            allow = {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}
            policy = json.dumps({"Version": "2012-10-17", "Statement": [allow]})
            iam.put_user_policy(UserName="colleague", PolicyName="team", PolicyDocument=policy)
            key = iam.create_access_key(UserName="colleague")["AccessKey"]
            patch.setattr(settings, "INITIAL_NO_AUTH_ACTION_COUNT", 0)
            yield Remote(
                url="s3://bucket-of-the-team/fishers",
                options={
                    "endpointurl": endpoint,
                    "access_key_id": key["AccessKeyId"],
                    "secret_access_key": key["SecretAccessKey"],
                },
                wrong={"secret_access_key": "x" * len(key["SecretAccessKey"])},
            )
        finally:
            server.stop()


@contextlib.contextmanager
def ssh(root: Path) -> Iterator[Remote]:
    """OpenSSH's server, with keys of its own, for the user who runs the tests."""
    sshd = shutil.which("sshd", path=os.pathsep.join((os.environ["PATH"], "/usr/sbin", "/usr/local/sbin")))
    if sshd is None:
        pytest.skip("sshd is missing: install OpenSSH's server (Debian: openssh-server)")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where Debian's sshd locks itself in; its service makes it
    keys = {name: root / name for name in ("host_key", "team_key", "stranger_key")}
    for key in keys.values():
        subprocess.run(("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)), check=True)
    port = free_port()
    (root / "sshd_config").write_text(
        "\n".join(
            (
                f"ListenAddress {LOOPBACK}:{port}",
                f"HostKey {keys['host_key']}",
                f"AuthorizedKeysFile {keys['team_key']}.pub",
                "StrictModes no",  # a temporary directory's parents may be anybody's to write
                "PidFile none",
                "UsePAM no",  # needs root
                "PasswordAuthentication no",
                "KbdInteractiveAuthentication no",
                "Subsystem sftp internal-sftp",
                "",
            )
        )
    )
    log = root / "sshd.log"
    command = (sshd, "-D", "-e", "-f", str(root / "sshd_config"))
    with log.open("w") as stderr, subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=stderr) as server:
        try:
            wait_for_banner(server, port, log)
            yield Remote(
                url=f"ssh://{getpass.getuser()}@{LOOPBACK}{root / 'remote'}",
                options={"port": str(port), "keyfile": str(keys["team_key"])},
                wrong={"keyfile": str(keys["stranger_key"])},
            )
        finally:
            server.terminate()


def free_port() -> int:
    with socket.create_server((LOOPBACK, 0)) as probe:
        return int(probe.getsockname()[1])


def wait_for_banner(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Return when `server` greets as SSH does."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and server.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection((LOOPBACK, port), timeout=5) as connection:
            if connection.recv(4) == b"SSH-":
                return
        time.sleep(0.1)
    raise AssertionError(f"sshd does not answer:\n{log.read_text()}")


KINDS: dict[str, Callable[[Path], AbstractContextManager[Remote]]] = {"directory": directory, "s3": s3, "ssh": ssh}
