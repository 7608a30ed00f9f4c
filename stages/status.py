"""status: of every model and merge, what is cached here, what the remote has, and what `dvc repro` would run, and why.

No stage of the pipeline: it only asks dvc, in four commands, and changes nothing.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from hashlib import md5
from pathlib import Path, PurePosixPath
from typing import Any

from stages.params import PARAMS_FILE, Params, load_params
from stages.pipeline.client import dvc, recorded_dependencies, recorded_outputs
from stages.pipeline.graph import PLAN_FILE, planned_stages
from stages.pipeline.places import (
    CODE,
    EVAL,
    FINETUNED,
    MERGED,
    SEARCH,
    SETTINGS,
    STATISTIC_PLACES,
    code_file,
    settings_file,
)
from stages.pipeline.plan_file import check_plan
from stages.pipeline.stage_code import changed_code, code_text
from stages.pipeline.stage_settings import settings_text
from stages.running.command import run_stage
from stages.storage.cards import COEFFICIENTS, METRICS
from stages.storage.statistics import STATISTICS

ABSENT = ("deleted", "not in cache")  # dvc's words for what is not here, which is no reason to make what is elsewhere
NOWHERE = "its outputs are neither in the cache nor in a remote"


def status() -> None:
    """Print the table."""
    params = load_params()
    check_plan(params)
    data = json.loads(dvc("data", "status", "--not-in-remote", "--json"))
    has_remote = bool(dvc("config", "core.remote", check=False).strip())
    changes = {_short(stage): reasons for stage, reasons in json.loads(dvc("status", "--json")).items()}
    edges = [(first, second) for first, second in _edges(dvc("dag", "--dot")) if first != "settings"]
    absent, not_pushed = (set(data.get(key, [])) for key in ("not_in_cache", "not_in_remote"))
    outputs = recorded_outputs(Path())
    lost = stages_without(absent & not_pushed if has_remote else absent, outputs)
    why = would_run(_told_otherwise(changes, params), edges, lost)
    made = {path for own in outputs.values() for path in own}
    rows = [["", "stage", "here", "remote", "would run"]]
    for owner, stage, output in _stages(params):
        names = {output, f"{output}/"}  # a directory's name has a slash at its end
        unmade = names.isdisjoint(made)
        rows.append(
            [
                owner,
                stage,
                "no" if unmade or names & absent else "yes",
                "none set" if not has_remote else "no" if unmade or names & not_pushed else "yes",
                why.get(stage, "no"),
            ]
        )
    print(aligned(rows))


def stages_without(gone: Iterable[str], outputs: Mapping[str, Iterable[str]]) -> list[str]:
    """The stages of which an output, or a part of one, is gone.

    Args:
        gone: paths as `dvc data status` has them, a directory's with a slash at its end.
        outputs: stage → its outputs.
    """
    places = {str(place) for path in gone for place in (PurePosixPath(path), *PurePosixPath(path).parents)}
    return [stage for stage, own in outputs.items() if not places.isdisjoint(own)]


def would_run(
    changes: Mapping[str, Iterable[Any]], edges: Iterable[tuple[str, str]], lost: Iterable[str] = ()
) -> dict[str, str]:
    """Stage → why it would run, of those that would or, once what is before them has run, might.

    Args:
        changes: stage → what `dvc status --json` says of it.
        edges: pairs of a stage and one that depends on it, in an order in which the stages can run.
        lost: the stages whose outputs no cache has that dvc could take them from.
    """
    reasons = {stage: found for stage, entries in changes.items() if (found := _reasons(entries))}
    why = {
        stage: f"yes: {', '.join(found)}" for stage, found in ({stage: [NOWHERE] for stage in lost} | reasons).items()
    }
    after: dict[str, list[str]] = {}
    for first, second in edges:
        after.setdefault(first, []).append(second)
    reached = list(why)
    for first in reached:
        for second in after.get(first, []):
            if second not in why:
                why[second] = f"after {first}"
                reached.append(second)
    return why


def _told_otherwise(changes: Mapping[str, Iterable[Any]], params: Params) -> dict[str, list[Any]]:
    """The changes, with those that the next run of the stage `settings` is going to make to what others depend on.

    Args:
        changes: stage → what `dvc status --json` says of it.
        params: params.yaml as it is now.
    """
    found = {stage: list(entries) for stage, entries in changes.items()}
    for stage, recorded in recorded_dependencies(Path()).items():
        told, code = recorded.get(str(settings_file(stage))), recorded.get(str(code_file(stage)))
        modified: list[str] = []
        with suppress(KeyError):  # it is no stage any more
            if told is not None and told != _md5(settings_text(stage, params)):
                modified.append(str(PARAMS_FILE))
            if code is not None and code != _md5(code_text(stage, params)):
                modified += changed_code(stage, params) or ["its code"]
        if modified:
            found.setdefault(stage, []).append({"changed deps": dict.fromkeys(modified, "modified")})
    return found


def _md5(text: str) -> str:
    """As dvc has it of a file of this text."""
    return md5(text.encode(), usedforsecurity=False).hexdigest()


def _reasons(entries: Iterable[Any]) -> list[str]:
    """What has changed, other than that it is not here: files, the command."""
    found: list[str] = []
    for entry in entries:
        if isinstance(entry, str):
            found.append(entry)  # "changed command", "always changed"
            continue
        for place, change in (item for part in entry.values() for item in part.items()):
            if change not in ABSENT and Path(place).parent not in (SETTINGS, CODE):
                found.append(place)
    return found


def _stages(params: Params) -> Iterator[tuple[str, str, str]]:
    """Model or merge, stage, and the output to look at, in the order in which they run."""
    planned = planned_stages(params)
    for model in params.models:
        yield model, f"finetune-{model}", str(FINETUNED / model)
        statistics = {f"{kind.stem}-{model}": STATISTIC_PLACES[name] for name, kind in STATISTICS.items()}
        yield from (("", stage, str(place / model)) for stage, place in statistics.items() if stage in planned)
        if f"evaluate-{model}" in planned:
            yield "", f"evaluate-{model}", str(EVAL / model / METRICS)
    for merge in (*params.merges, *params.ensembles):
        outputs = {
            f"search-{merge}": SEARCH / merge / COEFFICIENTS,
            f"merge-{merge}": MERGED / merge,
            f"evaluate-{merge}": EVAL / merge / METRICS,
        }
        owner = merge
        for stage, output in outputs.items():
            if stage in planned:
                yield owner, stage, str(output)
                owner = ""


def _edges(dot: str) -> list[tuple[str, str]]:
    """Pairs of a stage and one that depends on it, from `dvc dag --dot`."""
    return [(_short(first), _short(second)) for first, second in re.findall(r'"([^"]+)" -> "([^"]+)"', dot)]


def _short(stage: str) -> str:
    return stage.removeprefix(f"{PLAN_FILE}:")


def aligned(rows: Iterable[list[str]]) -> str:
    """The rows as text, in columns."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


if __name__ == "__main__":
    run_stage(status)
