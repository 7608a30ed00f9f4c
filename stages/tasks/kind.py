"""What a kind of task is to the stages: its models and their inputs."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np
import pandas as pd
import torch

from stages.running.errors import InputError
from stages.running.placement import Placement
from stages.tasks.data import TaskData
from stages.tasks.encoding import EncodedExamples, number_of
from stages.tasks.loading import Model
from stages.tasks.outputs import Tested, Written
from stages.tasks.prediction import Collator, Examples, examples_for, predict, targets
from stages.tasks.task import Task

if TYPE_CHECKING:
    from datasets import Dataset

    from stages.storage.checkpoint import Checkpoint

Example = dict[str, Any]  # encoded: by model input, a number, a list of them, or bytes
Encoded = Mapping[str, Sequence[Any]]  # by model input, an entry an example: a number, a list of them, or bytes


class Processor(Protocol):
    """Makes a model's inputs of examples: a tokenizer, an image processor."""

    def save_pretrained(self, directory: Path) -> object:
        """Write its files beside a checkpoint's weights."""


ProcessorT = TypeVar("ProcessorT", bound=Processor)


class Evaluator(ABC):
    """Evaluates models on tasks of a kind; `stages/tasks/kinds/NAME/kind.py` has it as `KIND`."""

    @abstractmethod
    def tested(
        self, checkpoint: Path, model: Model, task: TaskData, placement: Placement, shown: int, limit: int
    ) -> Tested:
        """What a model gives for the task's test examples.

        Args:
            checkpoint: where its processor is.
            model: of the checkpoint.
            task: whose examples they are.
            placement: where the model and the examples go.
            shown: for how many examples it is kept what the model writes, if it writes.
            limit: how many tokens of that, at most.

        Raises:
            InputError: the model cannot take the examples.
        """


class Kind(Evaluator, Generic[ProcessorT]):
    """A kind of task that has models; the stages ask it for these, their inputs and their outputs.

    Attributes:
        settings: its section of params.yaml.
        train_sampling: the order of training examples, as the Trainer's `train_sampling_strategy` names it.
        prediction_batch: how many examples are predicted at once.
    """

    settings: ClassVar[type[Task]]
    train_sampling: ClassVar[str] = "random"
    prediction_batch: ClassVar[int] = 64

    @abstractmethod
    def load_model(
        self,
        checkpoint: Path,
        labels: Sequence[str],
        *,
        new_head: bool = False,
        head: Mapping[str, torch.Tensor] | None = None,
    ) -> Model:
        """The model in a checkpoint directory, whole and from safetensors, in float32 on the CPU.

        Args:
            checkpoint: safetensors weights and config.json.
            labels: what the outputs are called, in their order, if they have names.
            new_head: a base's head may be missing, or be one for other labels, and is then initialised at random.
            head: tensors to use in place of the checkpoint's head, by their names.

        Raises:
            InputError: the checkpoint cannot be read, lacks a tensor, or has one of another shape than its config says.
        """

    @abstractmethod
    def new_model(self, checkpoint: Path, labels: Sequence[str]) -> Model:
        """A model by a directory's config.json, initialised at random: torch's seed decides. In float32 on the CPU.

        Raises:
            InputError: there is no config, or one of another kind of model.
        """

    @abstractmethod
    def load_processor(self, checkpoint: Path) -> ProcessorT:
        """The processor in a checkpoint directory. Raises `InputError` if there is none that can be loaded."""

    @abstractmethod
    def encode(self, processor: ProcessorT, frame: pd.DataFrame, task: TaskData, model: Model, seed: int) -> Encoded:
        """The examples of a table as model inputs, and `labels`, without padding.

        A table may be a part of a split: `stages.tasks.encoding.encode` has all of it. An example that says nothing to
        the model may be left out.

        Args:
            processor: the model's.
            frame: the examples; its index is their number in the split.
            task: theirs.
            model: what they are for.
            seed: of what is drawn at random in the examples (hidden tokens).

        Raises:
            InputError: an example cannot be the model's input.
        """

    @abstractmethod
    def collator(self, processor: ProcessorT, model: Model) -> Collator:
        """Makes a batch, a mapping of inputs to tensors, of a list of encoded examples.

        Processor and model agree on what pads it from then on.
        """

    def likelihood_batch(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The part of a batch that the task's likelihood is of, with its `labels`; by default all of it."""
        return batch

    def sizes(self, encoded: Mapping[str, Sequence[Any]]) -> np.ndarray:
        """How much each example takes in a batch, in whatever unit; by default all are alike."""
        return np.zeros(number_of(encoded), dtype=np.int64)

    def largest_first(self, encoded: Mapping[str, Sequence[Any]]) -> np.ndarray:
        """The examples' positions, largest first: little padding, and memory runs out at once or not at all."""
        return np.argsort(-self.sizes(encoded), kind="stable")

    def position_limit(self, model: Model) -> int | None:
        """How long an example may be, in tokens, if that is limited."""
        return None

    def longest(self, task: TaskData) -> int:
        """How long the task's examples may be, in tokens."""
        return task.max_length

    def within(self, task: TaskData, limit: int) -> TaskData:
        """The task with no example longer than so many tokens; `encode` refuses by `TooLongError` what needs more."""
        return replace(task, max_length=min(task.max_length, limit))

    def training_set(
        self, processor: ProcessorT, encoded: Mapping[str, Sequence[Any]], seed: int
    ) -> torch.utils.data.Dataset[Example]:
        """The encoded examples to train on, perhaps drawn anew in every epoch."""
        return EncodedExamples(encoded)

    def check_encoded(self, processor: ProcessorT, encoded: Mapping[str, Sequence[Any]]) -> None:
        """Raise `InputError` if a split's encoded examples, all together, cannot be the model's inputs."""

    def remarks(self, rows: "Dataset", encoded: Mapping[str, Sequence[Any]], task: TaskData) -> Iterator[str]:
        """What a user should know of a split's encoded examples, a sentence each."""
        yield from ()

    def refuse_unknown(self, processor: ProcessorT, encoded: Mapping[str, Sequence[Any]], task: TaskData) -> None:
        """Raise `InputError` if a task's training examples, so encoded, say next to nothing to the model."""

    def refuse_other_outputs(self, checkpoint: "Checkpoint", task: TaskData) -> None:
        """Raise `InputError` if a finished checkpoint's outputs have other names than the task's."""

    def outputs(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """What the metrics take of a batch's logits and labels, [examples, …]; the logits themselves by default.

        Of logits at positions [examples, positions, outputs], those stay whose label is not −100.
        """
        return logits

    def predicted(self, model: Model, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """What the metrics take of a model's predictions on a batch, [examples, …]; the model is where the batch is.

        By default it is `outputs` of its logits. A kind whose metrics need more than these has it besides.
        """
        inputs = {key: tensor for key, tensor in batch.items() if key != "labels"}
        return self.outputs(model(**inputs).logits, batch["labels"])

    def further_outputs(self, model: Model, examples: Examples) -> np.ndarray:
        """What metrics take beside `predicted`, [examples, columns], in the table's order; no column by default.

        Asked for where one of the metrics is none `of_logits`. The model is where the examples' batches go.
        """
        return np.empty((len(examples.rows), 0))

    def written(self, model: Model, examples: Examples, rows: Sequence[int], limit: int) -> list[Written]:
        """What a model writes for the examples at some positions, of at most so many tokens; nothing by default."""
        return []

    def targets(self, encoded: Mapping[str, Sequence[Any]]) -> list[Any]:
        """What the metrics compare each encoded example's outputs with: a number, or an array.

        Raises:
            InputError: the kind has no metrics, so nothing is scored.
        """
        raise InputError(f"tasks of the kind {self.settings.model_fields['kind'].default} are not evaluated")

    def tested(
        self, checkpoint: Path, model: Model, task: TaskData, placement: Placement, shown: int, limit: int
    ) -> Tested:
        """A model's predictions on the task's test split; see `Evaluator`."""
        examples = examples_for(self, checkpoint, model, task.rows("test"), task, placement)
        outputs = predict(model, examples, task.metrics)
        if not np.isfinite(outputs).all():
            raise InputError(f"{checkpoint}: predicts logits that are not finite on {task.name}")
        written = self.written(model, examples, range(min(shown, len(examples.rows))), limit)
        numbers = {"texts_cut_to_tokens": examples.cut, "not_predicted": examples.not_predicted}
        return Tested(outputs, targets(examples), written, {key: found for key, found in numbers.items() if found})

    def not_predicted(self, rows: "Dataset", encoded: Mapping[str, Sequence[Any]]) -> int:
        """How much of what a split's examples ask for is not in the encoded examples, because they are too long."""
        return 0
