"""The scores: every result with its metrics, origin and sweep, in one file that reports are made of."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages.pipeline.places import EVAL, SCORES, SIMILARITY
from stages.running.errors import InputError, anew
from stages.storage.cards import CORRECT, METRICS, ORIGIN, SIMILARITY_FILE, read_json
from stages.storage.digests import verify_contents

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


def read_scores(directory: Path = SCORES) -> Scores:
    """What `scores` has written. Raises `InputError` if it is missing, damaged or of another version."""
    file = directory / FILE
    verify_contents(directory)
    content = read_json(file)
    if content.get("format_version") != SCORES_VERSION:
        raise InputError(f"{file}: is no collection of results as they are now; {anew(directory)}")
    results = [Result(**result) for result in content["results"]]
    return Scores(results, content["sweeps"], content["fishers"])


def read_result(name: str, role: str, searched: bool) -> Result:
    """What there is of a model, merge or baseline; `searched`: whether its λ was searched for."""
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


def read_similarity() -> dict[str, Any]:
    """How alike the models' Fishers are, by the stage `similarity`."""
    verify_contents(SIMILARITY)
    return read_json(SIMILARITY / SIMILARITY_FILE)


def read_sweep(file: Path) -> list[dict[str, float]]:
    """All points of a search, each as column → number."""
    verify_contents(file.parent, [file.name])
    try:
        with file.open(encoding="utf-8", newline="") as stream:
            return [{column: float(value) for column, value in row.items()} for row in csv.DictReader(stream)]
    except FileNotFoundError:
        raise InputError(f"{file}: not found") from None
    except (ValueError, TypeError, csv.Error):
        raise InputError(f"{file}: is no table of numbers; {anew(file.parent)}") from None
