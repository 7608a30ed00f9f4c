"""Temporary directories go with their block, and those of killed processes with the next one."""

import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from stages.running.scratch import PREFIX, scratch_directory

HOLD = (
    "import sys; from stages.running.scratch import scratch_directory\n"
    "with scratch_directory() as folder: print(folder, flush=True); (folder / 'rows').touch(); sys.stdin.read()"
)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory for temporary files, of this process and of those that it starts."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def holder() -> tuple[subprocess.Popen[str], Path]:
    """A process that has a temporary directory, until it reads the end of its input."""
    process = subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def end(process: subprocess.Popen[str]) -> None:
    """Let the process end by itself, which must go well."""
    process.communicate()
    assert process.returncode == 0


def test_it_goes_with_its_block(temporary: Path) -> None:
    with scratch_directory() as first, scratch_directory() as second:
        assert {first, second} == set(temporary.iterdir())
        (first / "rows").write_text("a")
    assert not list(temporary.iterdir())
    with pytest.raises(ZeroDivisionError), scratch_directory() as third:
        (third / "rows").write_text(str(1 / 0))
    assert not list(temporary.iterdir())


def test_what_a_killed_process_has_left_is_removed_and_nothing_else(temporary: Path) -> None:
    killed, left = holder()
    living, used = holder()
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    foreign = temporary / f"{PREFIX}notes"
    foreign.write_text("a file, which this never makes")
    outside = temporary / "elsewhere"
    outside.mkdir()
    link = temporary / f"{PREFIX}link"
    link.symlink_to(outside)
    assert left.is_dir()
    with scratch_directory() as own:
        assert set(temporary.iterdir()) == {used, own, foreign, outside, link}
        assert (used / "rows").exists()
    end(living)
    assert set(temporary.iterdir()) == {foreign, outside, link}


def test_many_at_once_take_none_for_abandoned(temporary: Path) -> None:
    script = (
        "from stages.running.scratch import scratch_directory\n"
        "for _ in range(300):\n"
        "    with scratch_directory() as folder: (folder / 'rows').write_text('a'); (folder / 'rows').read_text()"
    )
    processes = [subprocess.Popen([sys.executable, "-c", script]) for _ in range(4)]
    assert [process.wait() for process in processes] == [0] * 4
    assert not list(temporary.iterdir())


def test_all_code_makes_its_temporary_directories_so() -> None:
    code = {file: file.read_text() for file in Path("stages").rglob("*.py")}
    assert "mkdtemp" in code[Path("stages/running/scratch.py")]
    assert not [file for file, text in code.items() if re.search(r"TemporaryDirectory|NamedTemporary", text)]
