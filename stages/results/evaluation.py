"""Evaluations: a checkpoint's or an ensemble's predictions on test splits, and what they are worth."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.results.predictions import Predictions, read_predictions
from stages.running.errors import InputError
from stages.storage.cards import PER_EXAMPLE, read_json
from stages.storage.checkpoint import read_head
from stages.storage.checkpoint_files import own_card
from stages.storage.digests import verify_contents
from stages.storage.weights import verify_checkpoint
from stages.tasks import task_evaluator, task_kind
from stages.tasks.data import TaskData
from stages.tasks.kinds import KINDS
from stages.tasks.metrics import Metric

if TYPE_CHECKING:  # a type alone: an evaluation runs no code of the scores
    from stages.results.scores import Contributions


SHOWN = 3  # test examples of a task whose models write, for which it is kept what they write
SHOWN_TOKENS = 64  # of each, at most


def predict(checkpoint: Path, tasks: list[TaskData]) -> tuple[dict[str, Predictions], dict[str, dict[str, int]]]:
    """The checkpoint's outputs on the test splits of the tasks that it can do.

    Returns:
        Task → predictions; and what origin.json is to say: key → task → a number.

    Raises:
        InputError: it has the labels of none of the tasks, or cannot be loaded.
    """
    from stages.running.placement import Placement

    found = {}
    said: dict[str, dict[str, int]] = {}
    placement = Placement.of_this_machine()
    verify_checkpoint(checkpoint)
    for task, model in models_by_task(checkpoint, tasks):
        tested = task_evaluator(task.kind).tested(checkpoint, model, task, placement, SHOWN, SHOWN_TOKENS)
        found[task.name] = Predictions(tested.outputs, tested.targets, tested.written)
        for key, number in tested.said.items():
            said.setdefault(key, {})[task.name] = number
    return found, said


def models_by_task(checkpoint: Path, tasks: list[TaskData]) -> Iterator[tuple[TaskData, Any]]:
    """Each task with a metric, of those that ask for the checkpoint's outputs, with its model.

    There is one model for all tasks of a kind, or one per kept head. Tasks for evaluation alone get the first one.
    """
    card = own_card(checkpoint)
    if card["origin"].get("heads") == "each":
        head_of = {entry["task"]: model for model, entry in reversed(card["origin"]["models"].items())}
        for task in tasks:
            if task.metrics and task.name in head_of:
                head = read_head(checkpoint, head_of[task.name])
                yield task, task_kind(task.kind).load_model(checkpoint, task.labels, head=head)
        return
    own = {task.kind for task in tasks if task.name == card["task"]}
    alike = [task for task in tasks if task.metrics and list(task.labels) == card["labels"]]
    known = [
        task
        for task in alike
        # Outputs with names mean something else to another kind; those without, tokens, do not.
        if (task.kind in own or not task.labels) and not KINDS[task.kind].only_evaluates
    ]
    if not known:
        raise InputError(f"{checkpoint}: its labels, {card['labels']}, are those of no task")
    first = known[0].kind
    for kind in dict.fromkeys(task.kind for task in known):
        model = task_kind(kind).load_model(checkpoint, known[0].labels)
        also = [task for task in tasks if kind == first and KINDS[task.kind].only_evaluates]
        yield from ((task, model) for task in [*(task for task in known if task.kind == kind), *also])


def ensemble(
    evaluations: Mapping[str, Path], coefficients: Mapping[str, float], kinds: Mapping[str, str]
) -> tuple[dict[str, Predictions], dict[str, str]]:
    """What models predict together, λ-weighted, on the tasks that all of them do; no forward pass.

    Tasks that are for evaluation alone are left out: what their outputs are has no mean that is a prediction.

    Args:
        evaluations: model → its evaluation's directory.
        coefficients: model → λ, summing to 1.
        kinds: task → its kind, which says how outputs are averaged.

    Returns:
        Task → predictions; and `shared_examples`.

    Raises:
        InputError: the models have no task in common, or their predictions are not of the same examples.
    """
    shared = shared_examples(evaluations)
    if unknown := shared.keys() - kinds.keys():
        raise InputError(
            f"{next(iter(evaluations.values())).parent}: has evaluations on {', '.join(sorted(unknown))}, which "
            "params.yaml does not ask for; run `dvc repro`"
        )
    found = {}
    shared = {task: examples for task, examples in shared.items() if not KINDS[kinds[task]].only_evaluates}
    for task in shared:
        by_model = {model: read_predictions(directory, task) for model, directory in evaluations.items()}
        averaging = KINDS[kinds[task]].averaging
        if averaging is None:
            raise InputError(f"there is no ensemble for {task}: outputs of the kind {kinds[task]} have no mean")
        first_name, first = next(iter(by_model.items()))
        for model, own in by_model.items():
            if own.outputs.shape != first.outputs.shape or not np.array_equal(own.targets, first.targets):
                raise InputError(
                    f"{evaluations[model]}: has other outputs on {task} than {first_name}'s, of other parts of the "
                    "texts perhaps; models that read as many tokens can be in an ensemble"
                )
        mean = averaging.mean([own.outputs for own in by_model.values()], [coefficients[model] for model in by_model])
        found[task] = Predictions(mean, first.targets)
    return found, shared


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


def metrics(
    predictions: Mapping[str, Predictions], measured_by: Mapping[str, Sequence[Metric]]
) -> dict[str, dict[str, float | int]]:
    """What predictions are worth.

    Args:
        predictions: by task.
        measured_by: task → its metrics, the primary one first.

    Returns:
        Task → by metric's name: the primary metric, its 95 % bootstrap interval over the examples (`NAME_low`,
        `NAME_high`), and the other metrics; and `examples`, their number.
    """
    found = {}
    for task, own in predictions.items():
        primary, *others = measured_by[task]
        per_example = primary.per_example(own.outputs, own.targets)
        low, high = primary.interval(per_example)
        found[task] = {
            primary.name: primary.summary(per_example),
            f"{primary.name}_low": low,
            f"{primary.name}_high": high,
            **{metric.name: metric.value(own.outputs, own.targets) for metric in others},
            "examples": len(own.targets),
        }
    return found


def contributions(
    predictions: Mapping[str, Predictions], primary: Mapping[str, Metric], fingerprints: Mapping[str, str]
) -> "dict[str, Contributions]":
    """Task → what every example contributes to its primary metric, and what was written for the first ones, if any.

    Args:
        predictions: by task.
        primary: task → its primary metric.
        fingerprints: task → fingerprint of its test examples.
    """
    found: dict[str, Contributions] = {}
    for task, own in predictions.items():
        values = primary[task].per_example(own.outputs, own.targets)
        found[task] = {"examples": fingerprints[task], "metric": primary[task].name, "values": values.tolist()}
        if own.written:
            found[task]["written"] = [each._asdict() for each in own.written]
    return found
