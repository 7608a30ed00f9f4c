"""How a stage is started, and what it says when it cannot go on: one line."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.project import ROOT

STAGE = """
import errno, os, signal, sys, time
from stages.running.command import run_stage

def stage(what):
    {body}

run_stage(stage, "what")
"""


def start(folder: Path, body: str) -> "subprocess.Popen[str]":
    """A process whose stage has this body."""
    return subprocess.Popen(
        [sys.executable, "-c", STAGE.format(body=body), "it"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.ENOSPC, "free some space"), (errno.EFBIG, "ulimit -f"), (errno.EROFS, "make the file system writable")],
)
def test_a_refusal_of_the_system_is_one_line(tmp_path: Path, number: int, remedy: str) -> None:
    process = start(tmp_path, f"raise OSError({number}, os.strerror({number}), 'models/it')")
    _, errors = process.communicate()
    assert process.returncode == 1
    (line,) = errors.splitlines()
    assert line.startswith(f"error: models/it: {os.strerror(number)}; ")
    assert remedy in line
    assert line.endswith("then run `dvc repro` again")


def listen_to_ctrl_c() -> None:
    """Also where these tests run in the background, whose processes a shell lets ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_while_modules_are_imported(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n")
    paths = f"{tmp_path}{os.pathsep}{ROOT}"
    process = subprocess.run(
        [sys.executable, "-m", "stages.fisher", "books"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=listen_to_ctrl_c,
    )
    assert process.returncode != 0
    assert process.stderr == "error: interrupted; `dvc repro` goes on from what was saved\n"


def test_other_errors_keep_their_trace(tmp_path: Path) -> None:
    process = start(tmp_path, "raise ConnectionError('far away')")
    _, errors = process.communicate()
    assert process.returncode == 1
    assert "Traceback" in errors


def test_an_interruption_is_one_line(tmp_path: Path) -> None:
    process = start(tmp_path, "raise KeyboardInterrupt")
    _, errors = process.communicate()
    assert process.returncode == 130
    assert errors.splitlines() == ["error: interrupted; `dvc repro` goes on from what was saved"]


def test_a_stage_does_not_run_beside_itself(tmp_path: Path) -> None:
    (tmp_path / ".dvc").mkdir()
    first = start(tmp_path, "print('begun', flush=True); time.sleep(600)")
    assert first.stdout is not None
    assert first.stdout.readline() == "begun\n"
    second = start(tmp_path, "pass")
    _, errors = second.communicate()
    assert second.returncode == 1
    (line,) = errors.splitlines()
    assert f"process {first.pid} is at it already; wait for it to end, or end it" in line
    first.send_signal(signal.SIGKILL)
    first.communicate()
    third = start(tmp_path, "pass")
    assert third.communicate() == ("", "")
    assert third.returncode == 0
