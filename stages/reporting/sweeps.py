"""Merges that differ in λ only: a line from one model to another."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stages.reporting.wording import plain
from stages.results.scores import Result

FEWEST = 3  # merges that are a line


@dataclass(frozen=True)
class Line:
    """Merges of two models by one method with the same options, in the order of λ.

    Attributes:
        label: the method, with the options that tell it from others of the same method.
        merges: λ of the target, from 0 to 1, and the merge.
    """

    label: str
    merges: Sequence[tuple[float, Result]]


@dataclass(frozen=True)
class Sweep:
    """All lines between the same two models: `target`, whose λ is on the axis, and `other`."""

    target: str
    other: str
    lines: Sequence[Line]


def find_sweeps(results: Sequence[Result]) -> list[Sweep]:
    """The sweeps along λ among merges and baselines; three merges or more are a line."""
    groups: dict[tuple[str, str], dict[str, list[Result]]] = {}
    for result in results:
        coefficients = result.origin.get("coefficients", {})
        if len(coefficients) == 2 and not result.searched:
            first, second = sorted(coefficients)
            what = json.dumps([result.origin.get(key) for key in ("method", "options", "heads", "precision", "target")])
            groups.setdefault((first, second), {}).setdefault(what, []).append(result)
    sweeps = []
    for models, by_method in groups.items():
        found = [members for members in by_method.values() if len(_λ_of(models[0], members)) >= FEWEST]
        if found:
            target = next((r.origin["target"] for members in found for r in members if "target" in r.origin), models[0])
            labels = _labels([members[0] for members in found])
            lines = [
                Line(label, sorted(_λ_of(target, members).items()))
                for label, members in zip(labels, found, strict=True)
            ]
            sweeps.append(Sweep(target, next(model for model in models if model != target), lines))
    return sweeps


def without_sweeps(results: Sequence[Result], sweeps: Sequence[Sweep]) -> list[Result]:
    """The results, but of every line only the merge that is nearest to λ = ½, which no result has chosen."""
    left_out = set()
    for line in (line for sweep in sweeps for line in sweep.lines):
        middle = min(line.merges, key=lambda point: abs(point[0] - 0.5))
        left_out |= {result.name for λ, result in line.merges if λ != middle[0]}
    return [result for result in results if result.name not in left_out]


def own_task(model: str, results: Sequence[Result]) -> str | None:
    """The task that a model was fine-tuned for; None where there is no such model among the results."""
    found = (result.origin.get("task") for result in results if result.role == "model" and result.name == model)
    return next(found, None)


def _λ_of(model: str, members: Sequence[Result]) -> dict[float, Result]:
    """λ of the model, rounded as far as two merges can be meant to differ → the merge."""
    return {round(result.origin["coefficients"][model], 6): result for result in reversed(members)}


def _labels(representatives: Sequence[Result]) -> list[str]:
    """Each one's method, with those settings that differ between lines of the same method."""

    def settings(result: Result) -> Mapping[str, object]:
        kept = {key: result.origin.get(key) for key in ("heads", "precision", "target")}
        return {**result.origin.get("options", {}), **kept}

    labels = []
    for result in representatives:
        same = [other for other in representatives if other.origin["method"] == result.origin["method"]]
        told_by = [
            f"{key.replace('_', ' ')} = {plain(value)}"
            for key, value in settings(result).items()
            if any(settings(other).get(key) != value for other in same)
        ]
        labels.append(", ".join([str(result.origin["method"]), *told_by]))
    return labels
