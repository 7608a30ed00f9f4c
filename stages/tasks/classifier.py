"""Classifiers, and models of numbers: what kinds whose models have an output for each of some names have in common."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from stages.running.errors import InputError
from stages.storage.checkpoint_files import config_file
from stages.tasks.data import TaskData
from stages.tasks.kind import Kind, ProcessorT
from stages.tasks.loading import SINGLE_LABEL, Architecture, Model, Problem, load_classifier, new_classifier

if TYPE_CHECKING:
    from stages.storage.checkpoint import Checkpoint


class Classifier(Kind[ProcessorT]):
    """A kind whose models have an output for each of the task's labels, or numbers.

    Attributes:
        architecture: transformers' class of such models.
        problem: what their outputs are, as transformers names it.
    """

    architecture: ClassVar[Architecture]
    problem: ClassVar[Problem] = SINGLE_LABEL

    def load_model(
        self,
        checkpoint: Path,
        labels: Sequence[str],
        *,
        new_head: bool = False,
        head: Mapping[str, torch.Tensor] | None = None,
    ) -> Model:
        """The classifier in a checkpoint directory; see `stages.tasks.loading.load_classifier`."""
        return load_classifier(self.architecture, checkpoint, labels, self.problem, new_head=new_head, head=head)

    def new_model(self, checkpoint: Path, labels: Sequence[str]) -> Model:
        """A classifier by a directory's config.json; see `stages.tasks.loading.new_classifier`."""
        return new_classifier(self.architecture, checkpoint, labels, self.problem)

    def targets(self, encoded: Mapping[str, Sequence[Any]]) -> list[Any]:
        """Each example's `labels`: a position, or an array of numbers."""
        return list(encoded["labels"])

    def refuse_other_outputs(self, checkpoint: "Checkpoint", task: TaskData) -> None:
        """Raise `InputError` if a finished checkpoint says that its outputs are others than the task's.

        They may be others by their names, or by what they mean; unnamed outputs may be any.
        """
        stated = checkpoint.config.get("problem_type")
        if stated not in (None, self.problem):
            raise InputError(
                f"{config_file(checkpoint.directory)}: problem_type is {stated}, but models of the task {task.name}, "
                f"whose kind is {task.kind}, are for {self.problem}; give it a task of another kind"
            )
        labels = checkpoint.labels
        nameless = labels is None or labels == [f"LABEL_{i}" for i in range(len(task.labels))]
        if not nameless and labels != list(task.labels):
            raise InputError(
                f"{config_file(checkpoint.directory)}: the labels are {labels}, but the task {task.name} has "
                f"{list(task.labels)}; name the task's labels like the checkpoint's, in its order"
            )
