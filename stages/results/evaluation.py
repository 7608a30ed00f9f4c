"""Evaluations: a checkpoint's or an ensemble's predictions on test splits, and what they are worth."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stages.running.errors import DamagedError, InputError
from stages.storage.cards import PER_EXAMPLE, PREDICTIONS, read_json
from stages.storage.checkpoint import read_head
from stages.storage.checkpoint_files import own_card
from stages.storage.digests import verify_contents
from stages.storage.tensors import verify_checkpoint
from stages.tasks import task_kind
from stages.tasks.data import TaskData
from stages.tasks.kinds import metrics_of

if TYPE_CHECKING:  # a type alone: an evaluation runs no code of the scores
    from stages.results.scores import Contributions


def predict(checkpoint: Path, tasks: list[TaskData]) -> tuple[pd.DataFrame, dict[str, int]]:
    """The checkpoint's outputs on the test splits of the tasks that it can do.

    Returns:
        Columns task, label, logits; and task → tokens, of the tasks whose texts it got no more of than it reads.

    Raises:
        InputError: it has the labels of none of the tasks, or cannot be loaded.
    """
    from stages.running.placement import Placement
    from stages.tasks import prediction

    parts = []
    cut = {}
    placement = Placement.of_this_machine()
    verify_checkpoint(checkpoint)
    for task, model in models_by_task(checkpoint, tasks):
        kind = task_kind(task.kind)
        frame = task.read("test")
        examples = prediction.examples_for(kind, checkpoint, model, frame, task, placement)
        if examples.cut is not None:
            cut[task.name] = examples.cut
        logits = prediction.predict(model, examples)
        if not np.isfinite(logits).all():
            raise InputError(f"{checkpoint}: predicts logits that are not finite on {task.name}")
        parts.append(pd.DataFrame({"task": task.name, "label": kind.targets(frame), "logits": list(logits)}))
    return pd.concat(parts, ignore_index=True), cut


def models_by_task(checkpoint: Path, tasks: list[TaskData]) -> Iterator[tuple[TaskData, Any]]:
    """Each task with a metric that the checkpoint can do, with its model: one for all, or one per kept head."""
    card = own_card(checkpoint)
    if card["origin"].get("heads") == "each":
        head_of = {entry["task"]: model for model, entry in reversed(card["origin"]["models"].items())}
        for task in tasks:
            if metrics_of(task.kind) and task.name in head_of:
                head = read_head(checkpoint, head_of[task.name])
                yield task, task_kind(task.kind).load_model(checkpoint, task.labels, head=head)
        return
    kinds = {task.kind for task in tasks if task.name == card["task"]}
    alike = [task for task in tasks if list(task.labels) == card["labels"] and task.kind in kinds]
    known = [task for task in alike if metrics_of(task.kind)]
    if not known:
        raise InputError(f"{checkpoint}: its labels, {card['labels']}, are those of no task")
    model = task_kind(known[0].kind).load_model(checkpoint, known[0].labels)
    yield from ((task, model) for task in known)


def ensemble(evaluations: Mapping[str, Path], coefficients: Mapping[str, float]) -> tuple[pd.DataFrame, dict[str, str]]:
    """The λ-weighted mean of the models' probabilities, on the tasks that all of them do; no forward pass.

    Args:
        evaluations: model → its evaluation's directory.
        coefficients: model → λ, summing to 1.

    Returns:
        Columns task, label, logits; and `shared_examples`.

    Raises:
        InputError: the models have no task in common, or their predictions are not of the same examples.
    """
    shared = shared_examples(evaluations)
    tables = {model: _read_predictions(directory) for model, directory in evaluations.items()}
    parts = []
    for task in shared:
        rows = {model: table[table["task"] == task].reset_index(drop=True) for model, table in tables.items()}
        mean = sum(coefficients[model] * _probabilities(table) for model, table in rows.items())
        labels = next(iter(rows.values()))["label"]
        parts.append(pd.DataFrame({"task": task, "label": labels, "logits": list(np.log(mean).astype(np.float32))}))
    return pd.concat(parts, ignore_index=True), shared


def shared_examples(evaluations: Mapping[str, Path]) -> dict[str, str]:
    """Task → fingerprint of its test examples, of the tasks that all of these evaluations have.

    Args:
        evaluations: model → its evaluation's directory.

    Raises:
        InputError: there is no such task, or two of them were made on other examples of one.
    """
    for directory in evaluations.values():
        verify_contents(directory, [PER_EXAMPLE])
    found = {model: read_json(directory / PER_EXAMPLE)["tasks"] for model, directory in evaluations.items()}
    first_name, first = next(iter(found.items()))
    common = [task for task in first if all(task in tasks for tasks in found.values())]
    if not common:
        raise InputError(f"an ensemble of {', '.join(found)} is not possible: they have no task in common")
    for model, tasks in found.items():
        for task in common:
            if tasks[task]["examples"] != first[task]["examples"]:
                raise InputError(
                    f"{evaluations[model]}: was made on other examples of {task} than {first_name}'s; evaluate again"
                )
    return {task: first[task]["examples"] for task in common}


def _read_predictions(directory: Path) -> pd.DataFrame:
    file = directory / PREDICTIONS
    verify_contents(directory, [PREDICTIONS])
    try:
        return pd.read_parquet(file)
    except (OSError, ValueError) as error:  # pyarrow's errors are of these kinds
        raise DamagedError(f"{file}: cannot be read ({' '.join(str(error).split())})", directory) from None


def _probabilities(table: pd.DataFrame) -> np.ndarray:
    from scipy.special import softmax

    return np.clip(
        softmax(np.stack(table["logits"].to_list()).astype(np.float64), axis=-1), np.finfo(np.float32).tiny, 1
    )


def metrics(predictions: pd.DataFrame, kinds: Mapping[str, str]) -> dict[str, dict[str, float | int]]:
    """What predictions are worth.

    Args:
        predictions: columns task, label, logits.
        kinds: task → its kind.

    Returns:
        Task → by metric's name: the primary metric, its 95 % bootstrap interval over the examples (`NAME_low`,
        `NAME_high`), and the other metrics; and `examples`, their number.
    """
    found = {}
    for task, rows in predictions.groupby("task", sort=False):
        outputs, targets = _outputs(rows), rows["label"].to_numpy()
        primary, *others = metrics_of(kinds[str(task)])
        per_example = primary.per_example(outputs, targets)
        low, high = primary.interval(per_example)
        found[str(task)] = {
            primary.name: primary.summary(per_example),
            f"{primary.name}_low": low,
            f"{primary.name}_high": high,
            **{metric.name: metric.value(outputs, targets) for metric in others},
            "examples": len(targets),
        }
    return found


def contributions(
    predictions: pd.DataFrame, kinds: Mapping[str, str], fingerprints: Mapping[str, str]
) -> "dict[str, Contributions]":
    """Task → what every example contributes to its primary metric.

    Args:
        predictions: columns task, label, logits.
        kinds: task → its kind.
        fingerprints: task → fingerprint of its test examples.
    """
    found: dict[str, Contributions] = {}
    for task, rows in predictions.groupby("task", sort=False):
        primary = metrics_of(kinds[str(task)])[0]
        values = primary.per_example(_outputs(rows), rows["label"].to_numpy())
        found[str(task)] = {"examples": fingerprints[str(task)], "metric": primary.name, "values": values.tolist()}
    return found


def _outputs(rows: pd.DataFrame) -> np.ndarray:
    return np.stack(rows["logits"].to_list())
