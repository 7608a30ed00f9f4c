"""The search for λ: points are merged in memory and scored on validation splits, and none twice."""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from stages.merging.ingredients import Ingredients
from stages.merging.merged_tensors import merging_at
from stages.params import Merge, Params, Search
from stages.pipeline.code import code_sha256
from stages.pipeline.needs import base_directory, search_metric, statistics_directories
from stages.pipeline.places import FINETUNED
from stages.searching.live_model import LiveModel, expert_score
from stages.searching.sampling import Coefficients, Sampler, best, make_sampler
from stages.searching.sweep import sweep_chart, sweep_table
from stages.storage.cards import COEFFICIENTS, FORMAT_VERSION, SWEEP, library_versions, write_json
from stages.storage.digests import tree_sha256, write_contents
from stages.storage.outputs import atomic_directory
from stages.storage.saved_progress import Progress
from stages.storage.tensors import fingerprint
from stages.tasks import module_of
from stages.tasks.data import TASK_CARD, TaskData, split_file
from stages.tasks.metrics import Metric


def search_coefficients(merge: Merge, params: Params, tasks: Sequence[TaskData], out: Path) -> None:
    """Try λ after λ on the tasks' validation splits and write what was found as the directory `out`.

    What has been scored is saved every minute: a killed search goes on where it was, with the same result.

    Raises:
        InputError: inputs that cannot be merged, or a task that the merged model cannot do.
    """
    settings = merge.search
    assert settings is not None
    metric = search_metric(merge, params)
    ingredients = Ingredients(
        {model: FINETUNED / model for model in merge.models},
        merge.options,
        statistics_directories(merge),
        base_directory(merge, params),
        merge.heads,
        merge.vocabulary,
    )
    ingredients.verify()
    expert_of = {params.models[model].task: model for model in reversed(merge.models)}
    live = LiveModel(ingredients, merge.heads, {task: expert_of.get(task.name) for task in tasks}, metric)
    experts = [1.0 for _ in tasks]
    if settings.normalize:
        experts = [expert_score(FINETUNED / expert_of[task.name], task, metric) for task in tasks]
    start = {model: merge.coefficients[model] for model in merge.models}
    progress = Progress(out, "sweep", _identity(merge, metric, ingredients, tasks))
    sampler = make_sampler(settings, start)

    def score(point: Coefficients) -> list[float]:
        live.load(merging_at(ingredients, point, merge.precision))
        return live.scores()

    def gain(scored: list[float]) -> float:
        return metric.gain(mean_score(scored, experts))

    points, scores = _sweep(settings.points, sampler, score, gain, progress)
    _write(out, settings, metric, start, [task.name for task in tasks], points, scores, experts)
    progress.remove()
    tqdm.write(f"merging took {live.merging_share:.1%} of a point's time", file=sys.stderr)


def _write(
    out: Path,
    settings: Search,
    metric: Metric,
    start: Coefficients,
    tasks: Sequence[str],
    points: Sequence[Coefficients],
    scores: Sequence[list[float]],
    experts: Sequence[float],
) -> None:
    """Write the best λ, all points and their picture as the directory `out`.

    Args:
        out: the search's output.
        settings: how was searched.
        metric: that the scores are of.
        start: the merge's own λ.
        tasks: that were scored on.
        points: that were tried.
        scores: a point's, one a task.
        experts: what a task's score is divided by.
    """
    means = [mean_score(scored, experts) for scored in scores]
    winner = best(points, [metric.gain(mean) for mean in means], start)
    with atomic_directory(out) as partial:
        write_json(
            partial / COEFFICIENTS,
            {
                "format_version": FORMAT_VERSION,
                "coefficients": points[winner],
                "score": means[winner],
                "start": score_at(start, points, means),
                "metric": metric.name,
                "tasks": list(tasks),
                "points": settings.points,
                "sampler": settings.sampler,
            },
        )
        columns = [f"{task} {metric.name}" for task in tasks]
        table = sweep_table(points, scores, means, columns)
        table.to_csv(partial / SWEEP, index=False)
        sweep_chart(table, list(start), columns, metric, winner).save(partial / "sweep.svg")
        write_contents(partial)


def _sweep(
    count: int,
    sampler: Sampler,
    score: Callable[[Coefficients], list[float]],
    gain: Callable[[list[float]], float],
    progress: Progress,
) -> tuple[list[Coefficients], list[list[float]]]:
    """Ask for `count` points and score them, but those whose scores were saved: the sampler goes the same way again.

    Args:
        count: of points.
        sampler: where they are.
        score: a point's scores, one a task.
        gain: how good these scores are together, better the larger it is.
        progress: where scores are saved.

    Returns:
        The points, and per point the tasks' scores.
    """
    reached = progress.load()
    saved = reached.tensors["scores"].tolist() if reached is not None else []
    points: list[Coefficients] = []
    scores: list[list[float]] = []
    for number in tqdm(range(count), desc="search", unit="point"):
        points.append(sampler.ask())
        scores.append(saved[number] if number < len(saved) else score(points[-1]))
        sampler.tell(gain(scores[-1]))
        if number >= len(saved) and progress.due:  # before, it would replace what was saved by less
            progress.save({"scores": torch.tensor(scores, dtype=torch.float64)}, {"done": len(scores)})
    return points, scores


def _identity(merge: Merge, metric: Metric, ingredients: Ingredients, tasks: Sequence[TaskData]) -> dict[str, Any]:
    """All that points and their scores depend on."""
    statistics = [statistic for found in ingredients.statistics.values() for statistic in found.values()]
    statistics += ingredients.further.values()
    return {
        "merge": merge.model_dump(),
        "metric": metric.name,
        "checkpoints": {name: fingerprint(found.tensors) for name, found in ingredients.checkpoints.items()},
        "rows": ingredients.rows.digest() if ingredients.rows is not None else None,
        "base": fingerprint(ingredients.base.tensors) if ingredients.base is not None else None,
        "statistics": [statistic.card.get("fingerprint") for statistic in statistics],
        "tasks": {
            task.name: [tree_sha256(task.directory / file) for file in (TASK_CARD, split_file("validation"))]
            for task in tasks
        },
        "code": code_sha256("searching.coefficients", *sorted({module_of(task.kind, "kind") for task in tasks})),
        "libraries": library_versions("cmaes", "numpy", "optuna", "torch", "transformers"),
    }


def score_at(λ: Mapping[str, float], points: Sequence[Coefficients], means: Sequence[float]) -> float | None:
    """The score of the point that λ, divided by their sum, is (to rounding), if there is one."""
    total = sum(λ.values())
    for point, mean in zip(points, means, strict=True):
        if all(abs(value / total - point[model]) < 1e-9 for model, value in λ.items()):
            return mean
    return None


def mean_score(scores: Sequence[float], experts: Sequence[float]) -> float:
    """The mean over the tasks, each relative to its expert's score."""
    return float(np.mean([score / expert for score, expert in zip(scores, experts, strict=True)]))
