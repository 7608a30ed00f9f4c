"""`python -m stages.recipe NAME`: run recipes/NAME.yaml in a workspace of its own and add it to workspaces/report.html.

A workspace is a DVC project in workspaces/NAME/ with this repository's code, the recipe as params.yaml, and this
repository's DVC cache: what another recipe or the default has made is not made again. No stage of the pipeline.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stages.artifacts import FORMAT_VERSION, PARTIAL_PREFIX, read_json, write_json
from stages.command import run_stage
from stages.errors import InputError
from stages.paths import SCORES

if TYPE_CHECKING:  # charts, which recipes that fail need not wait for
    from stages.reporting.experiment import Experiment

RECIPES = Path("recipes")
WORKSPACES = Path("workspaces")
PIPELINE = ("dvc.yaml", ".dvcignore")
CODE = ("stages", "recipes")
TIMES = WORKSPACES / "times.json"  # of all workspaces, since they share what has been made
REPORT = "report.html"
TITLE = "The paper’s experiments, as they come out here"
LOCKS = ("dvc.lock", "models/dvc.lock")


def recipe(name: str) -> None:
    """Run the recipe `name` and write the report on all that have been run.

    Raises:
        InputError: there is no such recipe, or one of its stages fails.
    """
    file = RECIPES / f"{name}.yaml"
    known = sorted(path.relative_to(RECIPES).with_suffix("").as_posix() for path in RECIPES.rglob("*.yaml"))
    if name not in known:
        raise InputError(f"{file}: there is no such recipe; known: {', '.join(known)}")
    workspace = open_workspace(file, WORKSPACES / name)
    run(workspace, TIMES)
    found = []
    for other in known:
        if (WORKSPACES / other / SCORES).is_dir():
            try:
                found.append(experiment(other))
            except InputError as error:  # it is being run again, or has failed
                if other == name:
                    raise
                print(f"{other} is left out of the report: {error}; run it again", file=sys.stderr)
    write_report(found, WORKSPACES / REPORT)
    print(f"the report on all recipes that have been run: {WORKSPACES / REPORT}")


def write_report(experiments: "Sequence[Experiment]", file: Path) -> None:
    """Write one page with a part for each of the recipes, whole or not at all."""
    from stages.reporting.page import page

    partial = file.with_name(f"{PARTIAL_PREFIX}{file.name}")
    partial.write_text(page(TITLE, experiments), encoding="utf-8")
    partial.replace(file)


def experiment(name: str) -> "Experiment":
    """A recipe's part of the report: what its file says of it, its scores, and what its stages have cost."""
    from stages.costs import open_workspace as counted
    from stages.costs import result_costs, stage_costs
    from stages.params import load_params
    from stages.reporting.experiment import Experiment
    from stages.reporting.transfers import transfer_figures
    from stages.scores import read_scores

    root = WORKSPACES / name
    params = load_params(root / "params.yaml")
    workspace = counted(root, params)
    times = read_times(TIMES)
    seconds = {stage: times[digest] for stage, digest in made(root).items() if digest in times}
    costs = stage_costs(workspace, seconds, hardware())
    scores = read_scores(root / SCORES)
    title, introduction = heading(root / "params.yaml")
    return Experiment(
        title, scores, introduction, costs, result_costs(workspace, costs), transfer_figures(scores.results)
    )


def heading(file: Path) -> tuple[str, str]:
    """A recipe's title and introduction: the comment that it begins with, whose first sentence's start is the title."""
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    paragraphs = " ".join(line or "\n\n" for line in lines).strip()
    return paragraphs.partition(":")[0], paragraphs


def hardware() -> str:
    """This machine in a few words."""
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} × {torch.cuda.get_device_name()}"
    return f"{torch.get_num_threads()} of {os.cpu_count()} CPU cores"


def open_workspace(file: Path, workspace: Path) -> Path:
    """Make the workspace of a recipe, or bring its code, parameters and settings up to date; results stay."""
    (workspace / ".dvc").mkdir(parents=True, exist_ok=True)
    for code in CODE:
        shutil.rmtree(workspace / code, ignore_errors=True)
        shutil.copytree(code, workspace / code, ignore=shutil.ignore_patterns("__pycache__"))
    for own in PIPELINE:
        shutil.copyfile(own, workspace / own)
    shutil.copyfile(file, workspace / "params.yaml")
    for settings in ("config", "config.local"):
        if (found := Path(".dvc") / settings).is_file():
            shutil.copyfile(found, workspace / ".dvc" / settings)
    cache = _output("dvc", "cache", "dir")
    for setting in (("core.no_scm", "true"), ("cache.dir", cache)):
        _output("dvc", "config", "--local", *setting, cwd=workspace)
    _output(sys.executable, "-m", "stages.plan", cwd=workspace)
    return workspace


def run(workspace: Path, times: Path) -> None:
    """`dvc repro` in the workspace; what each stage took goes into the file `times`, also if a later one fails.

    Raises:
        InputError: a stage fails; it has said why.
    """
    seconds: dict[str, float] = {}
    for stage, took in _timed_stages(workspace):
        seconds[stage] = took
        write_times(times, {digest: seconds[name] for name, digest in made(workspace).items() if name in seconds})


def made(workspace: Path) -> dict[str, str]:
    """Stage → the MD5 that DVC has of its first output: the same wherever the same was made of the same."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    digests = {}
    for lock in LOCKS:
        try:
            content = YAML(typ="safe", pure=True).load((workspace / lock).read_text(encoding="utf-8"))
        except (FileNotFoundError, YAMLError):  # dvc may be writing it just now
            content = None
        for stage, entry in (content or {}).get("stages", {}).items():
            if outputs := entry.get("outs"):
                digests[stage] = outputs[0]["md5"]
    return digests


def read_times(file: Path) -> dict[str, float]:
    """MD5 of an output → seconds that its stage took when it ran."""
    return dict(read_json(file)["seconds"]) if file.is_file() else {}


def write_times(file: Path, seconds: Mapping[str, float]) -> None:
    """Add to a file of times, whole or not at all."""
    partial = file.with_name(f"{PARTIAL_PREFIX}{file.name}")
    write_json(partial, {"format_version": FORMAT_VERSION, "seconds": read_times(file) | dict(seconds)})
    partial.replace(file)


def _timed_stages(workspace: Path) -> Iterator[tuple[str, float]]:
    """Run the stages that have to be; each that ended well with its time, once dvc has recorded its outputs.

    The time is from dvc's announcement of the stage to that of its record.
    """
    process = subprocess.Popen(["dvc", "repro"], cwd=workspace, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    stage: str | None = None
    done: tuple[str, float] | None = None
    start = 0.0
    for line in process.stdout:
        print(line, end="", flush=True)
        if stage is not None and re.match(r"(Updating|Generating) lock file", line):
            done = (stage, time.monotonic() - start)
            stage = None
        elif found := re.match(r"Running stage '(?:models/dvc\.yaml:)?([^']+)'", line):
            if done is not None:
                yield done
            stage, start, done = found[1], time.monotonic(), None
    if done is not None:
        yield done
    if process.wait() != 0:
        raise InputError(f"{workspace}: dvc repro has failed, for the reason above; mend it, then run the recipe again")


def _output(*command: str, cwd: Path | None = None) -> str:
    """What a command prints. Raises `InputError` with its own last words if it fails."""
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        said = [line for line in (result.stderr + result.stdout).splitlines() if line.strip()]
        raise InputError(f"{' '.join(command)}: {said[-1] if said else 'failed'}")
    return result.stdout.strip()


if __name__ == "__main__":
    run_stage(recipe, "name")
