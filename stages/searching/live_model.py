"""A model in memory that is scored with one merge's weights after another's."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stages.estimation.measured import with_own_parameters
from stages.merging.checkpoints import write_merged
from stages.merging.ingredients import Heads, Ingredients
from stages.merging.merged_tensors import Merging, merging_at
from stages.merging.streaming import on_all_cores
from stages.running.errors import InputError
from stages.running.placement import Placement
from stages.running.scratch import scratch_directory
from stages.storage.adapters import file_name
from stages.storage.naming import as_loaded, places
from stages.tasks import task_kind
from stages.tasks.data import TaskData
from stages.tasks.loading import untie
from stages.tasks.metrics import Metric
from stages.tasks.prediction import Examples, examples_for, predict, targets


class LiveModel:
    """A model in memory that takes one merge's weights after another's, with the tasks it is scored on.

    Tasks with heads of their own share one body.
    """

    def __init__(
        self, ingredients: Ingredients, heads: Heads, experts: Mapping[TaskData, str | None], metric: Metric
    ) -> None:
        with _checkpoint_of_its_size(ingredients, heads) as directory:
            self._open(directory, ingredients, heads, experts, metric)

    def _open(
        self,
        directory: Path,
        ingredients: Ingredients,
        heads: Heads,
        experts: Mapping[TaskData, str | None],
        metric: Metric,
    ) -> None:
        """Load a checkpoint into memory, and the tasks with its tokenizer; the other arguments are the model's own."""
        self._placement = Placement.of_this_machine()
        self._merging = self._evaluating = 0.0  # seconds
        self._tasks: list[tuple[Any, Examples, np.ndarray, Metric]] = []  # model, examples, targets, their metric
        target = ingredients.target
        body = None
        for task, expert in experts.items():
            kind = task_kind(task.kind)
            head = None
            if heads == "each":
                if expert is None:
                    raise InputError(f"search: the task {task.name} is that of none of the merged models")
                own = ingredients.checkpoints[expert].head_tensors()
                head = {name: tensor.clone() for name, tensor in own.items()}
            elif list(task.labels) != target.output_names:
                raise InputError(
                    f"search: the merged model predicts {target.output_names}, but the task {task.name} has "
                    f"{list(task.labels)}; list other tasks under `search.tasks`, or set `heads: each`"
                )
            model = _loaded(ingredients, directory, task, head)
            if body is None:
                body = model
            elif heads == "each":
                setattr(model, model.base_model_prefix, getattr(body, body.base_model_prefix))
                model.tie_weights()  # a head that is its body's embeddings, to those of this body
            else:
                model = body
            validation = task.rows("validation")
            examples = examples_for(kind, directory, model, validation, task, self._placement)
            placed = self._placement.model(model)
            self._tasks.append((placed, examples, targets(examples), metric.of(task.labels)))
        assert body is not None
        own_heads = ingredients.kept_heads if heads == "each" else set()
        self._body, self._own_heads = body, heads == "each"
        tensors = body.state_dict()
        self._own_names = None  # of parameters, where a merge is of these alone
        if ingredients.of_vectors:
            self._own_names = target.tensors.specs.keys() - own_heads
            tensors = {file_name(name): tensor for name, tensor in tensors.items()}
            self._parameters = {name: tensors[name].detach() for name in self._own_names & tensors.keys()}
            self._parts: list[str] = []
            return
        where = places(body, target.tensors.specs.keys() - own_heads)
        self._parameters = {name: tensors[at.name].detach() for name, at in where.items() if at.pattern is None}
        self._parts = [name for name, at in where.items() if at.pattern is not None]  # experts that files have apart

    def load(self, merging: Merging) -> None:
        """Take the weights of a merge."""
        began = time.perf_counter()
        merging.prepare()
        parts = {name: self._placement.empty(merging.specs[name].shape) for name in self._parts}
        filled = self._parameters | parts
        names = sorted(filled, key=lambda name: -merging.specs[name].elements)

        def fill(name: str) -> None:
            values = filled[name].view(-1)
            place = 0
            for piece in merging.merged(name):
                values[place : place + piece.numel()].copy_(piece)
                place += piece.numel()

        for _ in on_all_cores(fill, names):
            pass
        tensors = self._body.state_dict()
        made = as_loaded(self._body, parts)
        for name, values in made.items():
            tensors[name].copy_(values)
        self._refuse_unfilled([*self._parameters.values(), *(tensors[name] for name in made)])
        self._merging += time.perf_counter() - began

    def _refuse_unfilled(self, filled: Sequence[torch.Tensor]) -> None:
        """Refuse a model of which a merge fills only a part, and be it that transformers has changed its names."""
        if self._own_names is not None:  # the others are the base's
            if missing := sorted(self._own_names - self._parameters.keys()):
                raise InputError(
                    f"search: the model in memory has no parameter for the adapters' {missing[0]}, so they cannot be "
                    "searched; give the merge fixed coefficients"
                )
            return
        pointers = {tensor.data_ptr() for tensor in filled}
        for name, parameter in self._body.named_parameters():
            own = self._own_heads and not name.startswith(f"{self._body.base_model_prefix}.")
            if not own and parameter.data_ptr() not in pointers:
                raise InputError(
                    f"search: the merged models have no tensor for the parameter {name} of the model in memory, so "
                    "they cannot be searched; give the merge fixed coefficients"
                )

    def scores(self) -> list[float]:
        """Every task's score."""
        began = time.perf_counter()
        found = [
            metric.value(predict(model, examples, [metric]), wanted) for model, examples, wanted, metric in self._tasks
        ]
        self._evaluating += time.perf_counter() - began
        return found

    @property
    def merging_share(self) -> float:
        """Share of the time spent on merging, of all that was spent on merging and evaluating."""
        return self._merging / max(self._merging + self._evaluating, 1e-9)


@contextmanager
def _checkpoint_of_its_size(ingredients: Ingredients, heads: Heads) -> Iterator[Path]:
    """The target; or, where the merge adds tokens to it, a merged checkpoint that has them, while it is read."""
    if ingredients.rows is None or not ingredients.rows.added:
        yield ingredients.target.directory
        return
    with scratch_directory() as directory:
        write_merged(merging_at(ingredients, dict.fromkeys(ingredients.checkpoints, 1)), directory, heads)
        yield directory


def _loaded(ingredients: Ingredients, checkpoint: Path, task: TaskData, head: Mapping[str, torch.Tensor] | None) -> Any:
    """A checkpoint's model in memory: with an adapter's vectors on it where these are merged, else with weights."""
    kind, target = task_kind(task.kind), ingredients.target
    if ingredients.of_vectors and head is None:
        return with_own_parameters(checkpoint, task, kind)
    model = kind.load_model(checkpoint, task.labels, head=head)
    if target.adapted is not None and target.adapted.untied:  # by another adapter, maybe
        untie(model)
    return model


def expert_score(checkpoint: Path, task: TaskData, metric: Metric) -> float:
    """What a task's own model scores on its validation split.

    Raises:
        InputError: it scores zero or less, so nothing can be measured by it.
    """
    kind = task_kind(task.kind)
    model = kind.load_model(checkpoint, task.labels)
    validation = task.rows("validation")
    examples = examples_for(kind, checkpoint, model, validation, task, Placement.of_this_machine())
    score = metric.of(task.labels).value(predict(model, examples, [metric]), targets(examples))
    if score <= 0:
        raise InputError(
            f"{checkpoint}: has {metric.name} {score:.4g} on {task.name}; `search.normalize` cannot be had"
        )
    return score
