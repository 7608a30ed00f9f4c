"""`python -m stages.recipe NAME`: run recipes/NAME.yaml in a workspace of its own and add it to workspaces/report.html.

A workspace is a DVC project in workspaces/NAME/ with this repository's code, the recipe as params.yaml, and this
repository's DVC cache: what another recipe or the default has made is not made again. No stage of the pipeline.
"""

import os
import re
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from configparser import ConfigParser
from pathlib import Path
from typing import TYPE_CHECKING

from stages.params import load_params
from stages.pipeline.client import dvc, recorded_outputs, started
from stages.pipeline.graph import PLAN_FILE
from stages.pipeline.places import SCORES
from stages.pipeline.plan_file import write_plan
from stages.running.command import run_stage
from stages.running.errors import InputError
from stages.storage.cards import FORMAT_VERSION, read_json, write_json
from stages.storage.outputs import PARTIAL_PREFIX

if TYPE_CHECKING:  # charts, which recipes that fail need not wait for
    from stages.reporting.experiment import Experiment

RECIPES = Path("recipes")
WORKSPACES = Path("workspaces")
PIPELINE = ("dvc.yaml", ".dvcignore")
CODE = ("stages", "recipes")
PATHS = {"dir", "url", "keyfile", "credentialpath", "configpath", "cert_path", "key_path"}  # in DVC's configuration
TIMES = WORKSPACES / "times.json"  # of all workspaces, since they share what has been made
REPORT = "report.html"
TITLE = "The paper’s experiments, as they come out here"


def recipe(name: str) -> None:
    """Run the recipe `name` and write the report on all that have been run.

    Raises:
        InputError: there is no such recipe, or one of its stages fails.
    """
    file = RECIPES / f"{name}.yaml"
    known = sorted(path.relative_to(RECIPES).with_suffix("").as_posix() for path in RECIPES.rglob("*.yaml"))
    if name not in known:
        raise InputError(f"{file}: there is no such recipe; known: {', '.join(known)}")
    open_workspace(file, WORKSPACES / name)
    run(WORKSPACES / name, TIMES)
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
    from stages.reporting.experiment import Experiment
    from stages.results.counting import count_forward_passes, result_costs, stage_costs
    from stages.results.scores import read_scores

    workspace = WORKSPACES / name
    counted = count_forward_passes(workspace, load_params(workspace / "params.yaml"))
    times = read_times(TIMES)
    seconds = {stage: times[digest] for stage, digest in _digests(workspace).items() if digest in times}
    costs = stage_costs(counted, seconds, hardware())
    title, introduction = heading(workspace / "params.yaml")
    return Experiment(title, read_scores(workspace / SCORES), introduction, costs, result_costs(counted, costs))


def heading(file: Path) -> tuple[str, str]:
    """A recipe's title and introduction: the comment that it begins with, which is `Title: what it is about.`

    Without a colon it is all introduction, and the workspace's name the title.
    """
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    comment = " ".join(line or "\n\n" for line in lines).strip()
    title, colon, introduction = comment.partition(": ")
    return (title, introduction[:1].upper() + introduction[1:]) if colon else (file.parent.name, comment)


def hardware() -> str:
    """This machine in a few words."""
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} × {torch.cuda.get_device_name()}"
    return f"{torch.get_num_threads()} of {os.cpu_count()} CPU cores"


def open_workspace(recipe_file: Path, workspace: Path) -> None:
    """Make the workspace of a recipe, or bring its code, parameters and settings up to date; results stay."""
    (workspace / ".dvc").mkdir(parents=True, exist_ok=True)
    for code in CODE:
        shutil.rmtree(workspace / code, ignore_errors=True)
        shutil.copytree(code, workspace / code, ignore=shutil.ignore_patterns("__pycache__"))
    for file in PIPELINE:
        shutil.copyfile(file, workspace / file)
    shutil.copyfile(recipe_file, workspace / "params.yaml")
    own = {"core.no_scm": "true", "cache.dir": dvc("cache", "dir").strip()}
    copy_settings(Path(".dvc"), workspace / ".dvc")
    for name, value in own.items():
        dvc("config", name, value, project=workspace)
    write_plan(load_params(workspace / "params.yaml"), workspace / PLAN_FILE)


def copy_settings(source: Path, target: Path) -> None:
    """Write the `config` of another .dvc directory: this one's two files in one, readable by their owner only.

    Options of remotes may be keys, and paths are relative to the directory.
    """
    settings = ConfigParser(interpolation=None, strict=False)
    settings.read([source / "config", source / "config.local"], encoding="utf-8")
    for section in settings.values():
        for name in PATHS & section.keys():
            section[name] = _absolute(section[name], source)
    file = target / "config"
    file.touch()
    file.chmod(0o600)
    with file.open("w", encoding="utf-8") as stream:
        settings.write(stream)
    (target / "config.local").unlink(missing_ok=True)


def _absolute(value: str, directory: Path) -> str:
    """A path or an address as it stands in DVC's configuration, in quotes if it has to be, for use in another place."""
    bare = value.strip("\"'")
    if re.match(r"\w+://|[/~]", bare):
        return value
    path = os.path.normpath(Path.cwd() / directory / bare)  # not resolved: a symbolic link stays one
    return f"'{path}'" if '"' in path else f'"{path}"'


def run(workspace: Path, times: Path) -> None:
    """`dvc repro` in the workspace; what each stage took goes into the file `times`, also if a later one fails.

    Raises:
        InputError: a stage fails; it has said why.
    """
    seconds: dict[str, float] = {}
    for stage, took in _timed_stages(workspace):
        seconds[stage] = took
        write_times(times, {digest: seconds[name] for name, digest in _digests(workspace).items() if name in seconds})


def read_times(file: Path) -> dict[str, float]:
    """MD5 of an output → seconds that its stage took when it ran."""
    return dict(read_json(file)["seconds"]) if file.is_file() else {}


def write_times(file: Path, seconds: Mapping[str, float]) -> None:
    """Add to a file of times, whole or not at all."""
    partial = file.with_name(f"{PARTIAL_PREFIX}{file.name}")
    write_json(partial, {"format_version": FORMAT_VERSION, "seconds": read_times(file) | dict(seconds)})
    partial.replace(file)


def _digests(workspace: Path) -> dict[str, str]:
    """Stage → the MD5 of its first output: the same wherever the same was made of the same."""
    return {stage: next(iter(outputs.values())) for stage, outputs in recorded_outputs(workspace).items() if outputs}


def _timed_stages(workspace: Path) -> Iterator[tuple[str, float]]:
    """Run the stages that have to be; each that ended well with its time, once dvc has recorded its outputs.

    The time is from dvc's announcement of the stage to that of its record.
    """
    process = started("repro", project=workspace)
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


if __name__ == "__main__":
    run_stage(recipe, "name")
