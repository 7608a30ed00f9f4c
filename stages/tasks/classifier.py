"""Classifiers: what kinds whose examples have one label each have in common."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from stages.running.errors import InputError
from stages.storage.checkpoint_files import config_file
from stages.tasks.data import TaskData
from stages.tasks.kind import Kind, ProcessorT
from stages.tasks.loading import Architecture, Model, load_classifier, new_classifier

if TYPE_CHECKING:
    from stages.storage.checkpoint import Checkpoint


class Classifier(Kind[ProcessorT]):
    """A kind whose models have an output for each of the task's labels.

    Attributes:
        architecture: transformers' class of such models.
    """

    architecture: ClassVar[Architecture]

    def load_model(
        self,
        checkpoint: Path,
        labels: Sequence[str],
        *,
        new_head: bool = False,
        head: Mapping[str, torch.Tensor] | None = None,
    ) -> Model:
        """The classifier in a checkpoint directory; see `stages.tasks.loading.load_classifier`."""
        return load_classifier(self.architecture, checkpoint, labels, new_head=new_head, head=head)

    def new_model(self, checkpoint: Path, labels: Sequence[str]) -> Model:
        """A classifier by a directory's config.json; see `stages.tasks.loading.new_classifier`."""
        return new_classifier(self.architecture, checkpoint, labels)

    def targets(self, encoded: Mapping[str, Sequence[Any]]) -> list[Any]:
        """The labels' positions, a number an example."""
        return list(encoded["labels"])

    def refuse_other_outputs(self, checkpoint: "Checkpoint", task: TaskData) -> None:
        """Raise `InputError` if a finished checkpoint has other labels than the task; unnamed outputs may be any."""
        labels = checkpoint.labels
        nameless = labels is None or labels == [f"LABEL_{i}" for i in range(len(task.labels))]
        if not nameless and labels != list(task.labels):
            raise InputError(
                f"{config_file(checkpoint.directory)}: the labels are {labels}, but the task {task.name} has "
                f"{list(task.labels)}; name the task's labels like the checkpoint's, in its order"
            )
