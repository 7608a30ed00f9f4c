"""What is asked of dvc, and read of what it has written down."""

import subprocess
import sys
from pathlib import Path
from typing import Any

from stages.pipeline.graph import PLAN_FILE
from stages.running.errors import InputError

LOCKS = (Path("dvc.lock"), PLAN_FILE.with_name("dvc.lock"))


def dvc(*arguments: str, project: Path | None = None, check: bool = True) -> str:
    """What a dvc command prints.

    Args:
        arguments: of the command.
        project: where it is run; here by default.
        check: whether a failure is an error.

    Raises:
        InputError: it fails, with dvc's own last words.
    """
    with started(*arguments, project=project, stderr=subprocess.PIPE) as process:
        output, errors = process.communicate()
    if check and process.returncode != 0:
        said = [line for line in errors.splitlines() if line.startswith("ERROR")]
        raise InputError(f"dvc {' '.join(arguments)}: {said[-1] if said else 'failed'}")
    return output


def started(*arguments: str, project: Path | None = None, stderr: int | None = None) -> "subprocess.Popen[str]":
    """A dvc command at work, whose output is to be read.

    It is this Python's dvc, wherever the shell would find one: pip's script for it does not start from every directory.
    """
    return subprocess.Popen(
        [sys.executable, "-m", "dvc", *arguments], cwd=project, stdout=subprocess.PIPE, stderr=stderr, text=True
    )


def recorded_outputs(project: Path) -> dict[str, dict[str, str]]:
    """Stage → its outputs, by path, with the MD5 that dvc has of each, as they stand in a project's dvc.lock files."""
    return _recorded("outs", project)


def recorded_dependencies(project: Path) -> dict[str, dict[str, str]]:
    """The same of what each stage was made of, when it ran last."""
    return _recorded("deps", project)


def _recorded(what: str, project: Path) -> dict[str, dict[str, str]]:
    from ruamel.yaml import YAML

    found: dict[str, dict[str, str]] = {}
    for lock in LOCKS:
        file = project / lock
        content: dict[str, Any] = {}
        if file.is_file():
            content = YAML(typ="safe", pure=True).load(file.read_text(encoding="utf-8"))
        for stage, entry in content.get("stages", {}).items():
            found[stage] = {file["path"]: file["md5"] for file in entry.get(what, []) if "md5" in file}
    return found
