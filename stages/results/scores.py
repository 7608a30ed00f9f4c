"""The scores: every result with its metrics, origin and sweep, in one file that reports are made of."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from stages.pipeline.places import EVAL, SCORES, SIMILARITY
from stages.running.errors import DamagedError, InputError
from stages.storage.cards import METRICS, ORIGIN, PER_EXAMPLE, SIMILARITY_FILE, read_json
from stages.storage.digests import verify_contents
from stages.tasks.kinds import metric_named
from stages.tasks.metrics import Metric

FILE = "scores.json"
MEANS = "means.json"  # a figure for each result and metric: what `dvc metrics show` and `dvc exp show` have
SCORES_VERSION = 3  # of the file; 2 had one metric only, 1 the mean among the tasks


class Contributions(TypedDict):
    """What the examples of a task contribute to its primary metric.

    Attributes:
        examples: a fingerprint of the examples.
        metric: the metric's name.
        values: of each example in their order, as the metric's `per_example` gives it: a number or a list of numbers.
        written: `prompt`, `reference` and `text` of the first examples, where the models write.
    """

    examples: str
    metric: str
    values: Sequence[float] | Sequence[Sequence[float]]
    written: NotRequired[Sequence[Mapping[str, str]]]


@dataclass(frozen=True)
class Result:
    """One evaluated model or merge.

    Attributes:
        name: in params.yaml.
        role: `model`, `merge` or `baseline`.
        metrics: task → its metrics by name, and `examples`, the number of examples.
        origin: how it was made.
        searched: whether its λ were found by a search.
        per_example: task → its primary metric's name, and what every test example contributes to that.
    """

    name: str
    role: str
    metrics: Mapping[str, Mapping[str, float]]
    origin: Mapping[str, Any]
    searched: bool = False
    per_example: Mapping[str, Contributions] = field(default_factory=dict)

    def metric(self, task: str) -> Metric:
        """The primary metric of one of its tasks."""
        return metric_named(self.per_example[task]["metric"])

    def score(self, task: str) -> float:
        """The primary metric's value on one of its tasks."""
        return self.metrics[task][self.metric(task).name]

    def secondary(self, task: str) -> list[Metric]:
        """The other metrics of one of its tasks."""
        primary = self.metric(task).name
        besides = {primary, f"{primary}_low", f"{primary}_high", "examples"}
        return [metric_named(name) for name in self.metrics[task] if name not in besides]

    def tasks_of(self, metric: Metric) -> list[str]:
        """Its tasks with that primary metric."""
        return [task for task in self.metrics if self.per_example[task]["metric"] == metric.name]

    @property
    def means(self) -> dict[str, float]:
        """Metric's name → its mean over the tasks whose primary metric it is, each of which counts alike."""
        found: dict[str, list[float]] = {}
        for task in self.metrics:
            found.setdefault(self.metric(task).name, []).append(self.score(task))
        return {name: sum(values) / len(values) for name, values in found.items()}


@dataclass(frozen=True)
class Scores:
    """All that a report is made of.

    Attributes:
        results: in params.yaml's order.
        sweeps: merge whose λ were searched → its points, by column: `point`, `λ MODEL`, `TASK METRIC`, and `score`,
            the mean that counts; all on validation splits.
        fishers: what `stages.similarity` found, or nothing.
    """

    results: Sequence[Result]
    sweeps: Mapping[str, Sequence[Mapping[str, float]]] = field(default_factory=dict)
    fishers: Mapping[str, Any] = field(default_factory=dict)


def tasks_by_metric(results: Sequence[Result]) -> dict[Metric, list[str]]:
    """Metric → the tasks whose primary metric it is; both in the order in which the results have them."""
    found: dict[Metric, dict[str, None]] = {}
    for result in results:
        for task in result.metrics:
            found.setdefault(result.metric(task), {})[task] = None
    return {metric: list(tasks) for metric, tasks in found.items()}


def read_scores(directory: Path = SCORES) -> Scores:
    """What `scores` has written. Raises `InputError` if it is missing, damaged or of another version."""
    file = directory / FILE
    verify_contents(directory)
    content = read_json(file)
    if content.get("format_version") != SCORES_VERSION:
        raise DamagedError(f"{file}: is no collection of results as they are now", directory)
    results = [Result(**result) for result in content["results"]]
    return Scores(results, content["sweeps"], content["fishers"])


def read_result(name: str, role: str, searched: bool) -> Result:
    """What there is of a model, merge or baseline; `searched`: whether its λ was searched for."""
    place = EVAL / name
    verify_contents(place, [METRICS, PER_EXAMPLE, ORIGIN])
    return Result(
        name,
        role,
        read_json(place / METRICS)["tasks"],
        read_json(place / ORIGIN),
        searched,
        read_json(place / PER_EXAMPLE)["tasks"],
    )


def read_similarity() -> dict[str, Any]:
    """How alike the models' Fishers are, by the stage `similarity`."""
    verify_contents(SIMILARITY)
    return read_json(SIMILARITY / SIMILARITY_FILE)


def searched_metric(points: Sequence[Mapping[str, float]]) -> Metric:
    """The metric that a sweep's points were scored by, from its columns `TASK METRIC`; there is a point at least."""
    columns = [column for column in points[0] if " " in column and not column.startswith("λ ")]
    return metric_named(columns[0].split(" ")[1])


def read_sweep(file: Path) -> list[dict[str, float]]:
    """All points of a search, each as column → number."""
    verify_contents(file.parent, [file.name])
    try:
        with file.open(encoding="utf-8", newline="") as stream:
            return [{column: float(value) for column, value in row.items()} for row in csv.DictReader(stream)]
    except FileNotFoundError:
        raise InputError(f"{file}: not found") from None
    except (ValueError, TypeError, csv.Error):
        raise DamagedError(f"{file}: is no table of numbers", file.parent) from None
