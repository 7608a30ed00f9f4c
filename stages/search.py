"""search-NAME: a merge's checkpoints and statistics, and validation splits → results/search/NAME/.

`coefficients.json` has the best λ, which merge-NAME takes; `sweep.csv` every point, `sweep.svg` a picture of them.
Every point is merged in memory into one live model; nothing is read from the test splits.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from stages.artifacts import FORMAT_VERSION, atomic_directory, library_versions, tree_sha256, write_json
from stages.command import run_stage
from stages.device import compute_device
from stages.errors import InputError
from stages.merging.ingredients import Ingredients, Merging
from stages.merging.inputs import Checkpoint
from stages.merging.streaming import on_all_cores
from stages.params import Ensemble, Merge, Params, Search, load_params
from stages.paths import FINETUNED, SEARCH, TASKS
from stages.plan import base_directory, check_plan, search_tasks, statistics_directories
from stages.progress import Progress
from stages.sampling import Coefficients, best, make_sampler
from stages.tasks import task_kind
from stages.tasks.data import TASK_CARD, TaskData
from stages.tasks.metrics import SCORES
from stages.tensors import fingerprint


def search(name: str) -> None:
    """Search the λ of the merge `name`."""
    params = load_params()
    if name not in params.merges or params.merges[name].search is None:
        raise InputError(f"params.yaml: merges: there is no merge {name!r} with a `search`")
    check_plan(params)
    merge = params.merges[name]
    tasks = [TaskData.open(TASKS / task) for task in search_tasks(merge, params)]
    search_coefficients(merge, params, tasks, SEARCH / name)


def search_coefficients(merge: Merge, params: Params, tasks: Sequence[TaskData], out: Path) -> None:
    """Try λ after λ on the tasks' validation splits and write what was found as the directory `out`.

    What has been scored is saved every minute: a killed search goes on where it was, with the same result.

    Raises:
        InputError: inputs that cannot be merged, or a task that the merged model cannot do.
    """
    settings = merge.search
    assert settings is not None
    assert not isinstance(merge.options, Ensemble)
    ingredients = Ingredients(
        {model: FINETUNED / model for model in merge.models},
        merge.options,
        statistics_directories(merge),
        base_directory(merge, params),
        merge.heads,
    )
    ingredients.verify()
    expert_of = {params.models[model].task: model for model in reversed(merge.models)}
    live = LiveModel(ingredients, merge.heads, {task: expert_of.get(task.name) for task in tasks}, settings)
    experts = (
        [expert_score(FINETUNED / expert_of[task.name], task, settings) for task in tasks]
        if (settings.normalize)
        else [1.0] * len(tasks)
    )

    start = {model: merge.coefficients[model] for model in merge.models}
    progress = Progress(out, "sweep", _identity(merge, ingredients, tasks))
    reached = progress.load()
    saved = reached.tensors["scores"].tolist() if reached is not None else []

    sampler = make_sampler(settings, start)
    points: list[Coefficients] = []
    scores: list[list[float]] = []  # a list of the tasks' scores per point
    seconds = {"merging": 0.0, "evaluating": 0.0}
    for number in tqdm(range(settings.points), desc="search", unit="point"):
        point = sampler.ask()
        if number < len(saved):
            scored = saved[number]  # the sampler takes the same way again
        else:
            began = time.perf_counter()
            live.load(ingredients.at(point, merge.precision))
            merged = time.perf_counter()
            scored = live.scores()
            seconds["merging"] += merged - began
            seconds["evaluating"] += time.perf_counter() - merged
        points.append(point)
        scores.append(scored)
        sampler.tell(mean_score(scored, experts))
        if progress.due:
            progress.save({"scores": torch.tensor(scores, dtype=torch.float64)}, {"done": len(scores)})
    if total := sum(seconds.values()):
        tqdm.write(f"{settings.points} points; merging took {seconds['merging'] / total:.0%} of {total:.1f} s")

    means = [mean_score(scored, experts) for scored in scores]
    winner = best(points, means, start)
    with atomic_directory(out) as partial:
        write_json(
            partial / "coefficients.json",
            {
                "format_version": FORMAT_VERSION,
                "coefficients": points[winner],
                "score": means[winner],
                "start": score_at(start, points, means),
                "metric": settings.metric,
                "tasks": [task.name for task in tasks],
                "points": settings.points,
                "sampler": settings.sampler,
            },
        )
        table = sweep_table(points, scores, means, [task.name for task in tasks])
        table.to_csv(partial / "sweep.csv", index=False)
        sweep_chart(table, list(start), [task.name for task in tasks], settings.metric, winner).save(
            partial / "sweep.svg"
        )
    progress.remove()


def _identity(merge: Merge, ingredients: Ingredients, tasks: Sequence[TaskData]) -> dict[str, Any]:
    """All that points and their scores depend on."""
    statistics = [statistic for found in ingredients.statistics.values() for statistic in found.values()]
    if ingredients.prior is not None:
        statistics.append(ingredients.prior)
    stages = Path(__file__).parent
    code = [stages / "search.py", stages / "sampling.py", *sorted((stages / "merging").glob("*.py"))]
    return {
        "merge": merge.model_dump(),
        "checkpoints": {name: fingerprint(found.tensors) for name, found in ingredients.checkpoints.items()},
        "base": fingerprint(ingredients.base.tensors) if ingredients.base is not None else None,
        "statistics": [statistic.card.get("fingerprint") for statistic in statistics],
        "tasks": {
            task.name: [tree_sha256(task.directory / file) for file in (TASK_CARD, "validation.parquet")]
            for task in tasks
        },
        "code": [tree_sha256(file) for file in code],
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


class LiveModel:
    """A model in memory that takes one merge's weights after another's, with the tasks it is scored on.

    Tasks with heads of their own share one body.
    """

    def __init__(
        self, ingredients: Ingredients, heads: str, experts: Mapping[TaskData, str | None], settings: Search
    ) -> None:
        self._score = SCORES[settings.metric]
        self._device = compute_device()
        self._tasks: list[tuple[Any, Any, Any, np.ndarray]] = []  # kind, model, examples, labels
        target = ingredients.target
        body = None
        for task, expert in experts.items():
            kind = task_kind(task.kind)
            head = None
            if heads == "each":
                if expert is None:
                    raise InputError(f"search: the task {task.name} is that of none of the merged models")
                own = ingredients.checkpoints[expert]
                head = {name: own.tensors.read(name).clone() for name in sorted(own.head())}
            elif list(task.labels) != target.labels:
                raise InputError(
                    f"search: the merged model predicts {target.labels}, but the task {task.name} has "
                    f"{list(task.labels)}; list other tasks under `search.tasks`, or set `heads: each`"
                )
            model = kind.load_model(target.directory, task.labels, head=head)
            if body is None:
                body = model
            elif heads == "each":
                setattr(model, model.base_model_prefix, getattr(body, body.base_model_prefix))
            else:
                model = body
            frame = task.read("validation")
            tokenizer = kind.load_tokenizer(target.directory)
            examples = kind.tokenize(tokenizer, frame, task, kind.position_limit(model), self._device)
            self._tasks.append((kind, model.to(self._device), examples, frame["label"].to_numpy()))
        assert body is not None
        own_heads = ingredients.kept_heads if heads == "each" else set()
        self._parameters = {
            name: tensor.detach() for name, tensor in body.state_dict().items() if name not in own_heads
        }
        self._refuse_renamed(target)

    def _refuse_renamed(self, target: Checkpoint) -> None:
        """Refuse parameters that the file has under other names (old BERTs' `LayerNorm.gamma`): no merge fills them."""
        filled = {tensor.data_ptr() for name, tensor in self._parameters.items() if name in target.tensors.specs}
        for name, tensor in self._parameters.items():
            if tensor.is_floating_point() and tensor.data_ptr() not in filled:
                raise InputError(
                    f"{target.tensors.file}: has the parameter {name} under another name, with which it cannot be "
                    "searched; load the model with transformers and save it again"
                )

    def load(self, merging: Merging) -> None:
        """Take the weights of a merge."""
        merging.prepare()
        names = sorted(self._parameters.keys() & merging.specs.keys(), key=lambda name: -merging.specs[name].elements)

        def fill(name: str) -> None:
            values = self._parameters[name].reshape(-1)
            place = 0
            for piece in merging.merged(name):
                values[place : place + piece.numel()].copy_(piece)
                place += piece.numel()

        for _ in on_all_cores(fill, names):
            pass

    def scores(self) -> list[float]:
        """Every task's score."""
        return [self._score(kind.predict(model, examples), labels) for kind, model, examples, labels in self._tasks]


def expert_score(checkpoint: Path, task: TaskData, settings: Search) -> float:
    """What a task's own model scores on its validation split.

    Raises:
        InputError: it scores zero, so nothing can be measured by it.
    """
    kind = task_kind(task.kind)
    device = compute_device()
    model = kind.load_model(checkpoint, task.labels).to(device)
    frame = task.read("validation")
    examples = kind.tokenize(kind.load_tokenizer(checkpoint), frame, task, kind.position_limit(model), device)
    score = SCORES[settings.metric](kind.predict(model, examples), frame["label"].to_numpy())
    if score == 0:
        raise InputError(f"{checkpoint}: has a {settings.metric} of 0 on {task.name}; `search.normalize` cannot be had")
    return score


def sweep_table(
    points: Sequence[Coefficients], scores: Sequence[Sequence[float]], means: Sequence[float], tasks: Sequence[str]
) -> pd.DataFrame:
    """A row per point: its λ, the tasks' scores, and the mean that counts."""
    return pd.DataFrame(
        [
            {"point": i}
            | {f"λ {model}": λ for model, λ in point.items()}
            | dict(zip(tasks, scored, strict=True))
            | {"score": mean}
            for i, (point, scored, mean) in enumerate(zip(points, scores, means, strict=True))
        ]
    )


def sweep_chart(
    table: pd.DataFrame, models: Sequence[str], tasks: Sequence[str], metric: str, winner: int
) -> alt.FacetChart | alt.LayerChart | alt.HConcatChart:
    """The score against λ: a curve per task for two models, else a panel per model; the winner is marked."""
    chosen = table.assign(chosen=table["point"] == winner)
    score = alt.Scale(zero=False)
    colours = alt.Scale(domain=[False, True], range=["#4c78a8", "#e45756"])
    if len(models) == 2:
        long = chosen.melt(
            id_vars=[f"λ {models[0]}", "chosen"], value_vars=[*tasks, "score"], var_name="on", value_name=metric
        )
        x = alt.X(f"λ {models[0]}:Q", title=f"λ of {models[0]} (the rest is {models[1]}'s)")
        y = alt.Y(f"{metric}:Q", scale=score, axis=alt.Axis(format="%"), title=f"{metric}, validation")
        colour = alt.Color("on:N", title=None, sort=[*tasks, "score"])
        mark = alt.Chart(long).transform_filter("datum.chosen").mark_rule(strokeDash=[4, 4], color="gray").encode(x=x)
        return alt.layer(alt.Chart(long).mark_line(point=True).encode(x=x, y=y, color=colour), mark).properties(
            width=480, height=300
        )
    panels = [
        alt.Chart(chosen)
        .mark_circle(opacity=0.8)
        .encode(
            x=alt.X(f"λ {model}:Q", title=f"λ of {model}", scale=alt.Scale(domain=[0, 1])),
            y=alt.Y("score:Q", scale=score, title=f"mean {metric}, validation" if model == models[0] else None),
            color=alt.Color("chosen:N", legend=None, scale=colours),
            size=alt.Size("chosen:N", legend=None, scale=alt.Scale(domain=[False, True], range=[40, 160])),
        )
        .properties(width=190, height=190)
        for model in models
    ]
    return alt.hconcat(*panels)


if __name__ == "__main__":
    run_stage(search, "name")
