"""scores: every model's and merge's results, and what else the report shows → results/scores/scores.json.

It depends on each of these files by itself, so that DVC can pull those that are not here without any model.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from stages.artifacts import (
    CORRECT,
    METRICS,
    ORIGIN,
    SIMILARITY_FILE,
    SWEEP,
    atomic_directory,
    read_json,
    write_json,
)
from stages.command import run_stage
from stages.contents import verify_contents, write_contents
from stages.errors import InputError, anew
from stages.paths import EVAL, SCORES, SEARCH, SIMILARITY
from stages.plan import check_plan, models_with_fishers, roles
from stages.settings import stage_params

FILE = "scores.json"
MEANS = "mean_accuracy.json"  # one figure a result: the metric that `dvc metrics show` and `dvc exp show` have
SCORES_VERSION = 2  # of the file; 1 had the mean among the tasks


@dataclass(frozen=True)
class Result:
    """One evaluated model or merge.

    Attributes:
        name: in params.yaml.
        role: `model`, `merge` or `baseline`.
        metrics: task → its metrics.
        origin: how it was made.
        searched: whether its λ were found by a search.
        correct: task → `examples`, a fingerprint of the test examples, and `correct`, a 0 or 1 for each.
    """

    name: str
    role: str
    metrics: Mapping[str, Mapping[str, float]]
    origin: Mapping[str, Any]
    searched: bool = False
    correct: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def mean_accuracy(self) -> float:
        """The mean over its tasks, each of which counts alike."""
        return sum(entry["accuracy"] for entry in self.metrics.values()) / len(self.metrics)


@dataclass(frozen=True)
class Scores:
    """All that a report is made of.

    Attributes:
        results: in params.yaml's order.
        sweeps: merge whose λ were searched → its points, by column: `point`, `λ MODEL`, `TASK METRIC`, and `score`,
            the mean that was maximised; all on validation splits.
        fishers: what `stages.similarity` found, or nothing.
    """

    results: Sequence[Result]
    sweeps: Mapping[str, Sequence[Mapping[str, float]]] = field(default_factory=dict)
    fishers: Mapping[str, Any] = field(default_factory=dict)


def scores() -> None:
    """Collect the results of every model and merge of params.yaml, in its order."""
    params = stage_params("scores")
    check_plan(params)
    searched = [name for name, merge in params.merges.items() if merge.search is not None]
    found = Scores(
        [_result(name, role, name in searched) for name, role in roles(params).items()],
        {name: _read_sweep(SEARCH / name / SWEEP) for name in searched},
        _read_similarity() if models_with_fishers(params) else {},
    )
    with atomic_directory(SCORES) as partial:
        write_json(partial / FILE, {"format_version": SCORES_VERSION, **asdict(found)})
        write_json(partial / MEANS, {result.name: result.mean_accuracy for result in found.results})
        write_contents(partial)


def read_scores(directory: Path = SCORES) -> Scores:
    """What `scores` has written. Raises `InputError` if it is missing, damaged or of another version."""
    file = directory / FILE
    verify_contents(directory)
    content = read_json(file)
    if content.get("format_version") != SCORES_VERSION:
        raise InputError(f"{file}: is no collection of results as they are now; {anew(directory)}")
    results = [Result(**result) for result in content["results"]]
    return Scores(results, content["sweeps"], content["fishers"])


def _result(name: str, role: str, searched: bool) -> Result:
    place = EVAL / name
    verify_contents(place, [METRICS, CORRECT, ORIGIN])
    return Result(
        name,
        role,
        read_json(place / METRICS)["tasks"],
        read_json(place / ORIGIN),
        searched,
        read_json(place / CORRECT)["tasks"],
    )


def _read_similarity() -> dict[str, Any]:
    verify_contents(SIMILARITY)
    return read_json(SIMILARITY / SIMILARITY_FILE)


def _read_sweep(file: Path) -> list[dict[str, float]]:
    verify_contents(file.parent, [file.name])
    try:
        with file.open(encoding="utf-8", newline="") as stream:
            return [{column: float(value) for column, value in row.items()} for row in csv.DictReader(stream)]
    except FileNotFoundError:
        raise InputError(f"{file}: not found") from None
    except (ValueError, TypeError, csv.Error):
        raise InputError(f"{file}: is no table of numbers; {anew(file.parent)}") from None


if __name__ == "__main__":
    run_stage(scores)
