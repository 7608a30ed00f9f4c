"""Encoded examples, whatever they are of: to train on, in batches, and a classifier's predictions on them."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from stages.running.errors import InputError, TooLongError
from stages.running.placement import Placement
from stages.tasks.data import TaskData
from stages.tasks.encoding import EncodedExamples, encode
from stages.tasks.loading import Model
from stages.tasks.metrics import NO_OUTPUT
from stages.tasks.outputs import padded

if TYPE_CHECKING:  # it imports this module
    from datasets import Dataset

    from stages.tasks.kind import Encoded, Kind
    from stages.tasks.metrics import Metric

Collator = Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]


@dataclass(frozen=True)
class Examples:
    """Encoded examples, from which batches are made when they are needed: all of them at once may be too large.

    Attributes:
        encoded: by model input, one entry an example, in the split's order.
        order: the examples' positions, largest first.
        kind: the task's.
        collate: makes a batch of a list of examples.
        placement: where the batches go.
        rows: the examples as the task has them.
        task: whose they are.
        processor: what has encoded them.
        cut: how many tokens of the task's texts the model reads, if they may have more.
        not_predicted: how much of what the examples ask for is cut off them, by the kind's `not_predicted`.
    """

    encoded: Mapping[str, Sequence[Any]]
    order: np.ndarray
    kind: "Kind[Any]"
    collate: Collator
    placement: Placement
    rows: "Dataset"
    task: TaskData
    processor: Any
    cut: int | None = None
    not_predicted: int = 0

    def batches(self, order: Sequence[int] | np.ndarray | None = None) -> Iterator[dict[str, torch.Tensor]]:
        """Batches of the examples at some positions, of all in `order` by default."""
        wanted = self.order if order is None else order
        return batches(self.collate, self.encoded, wanted, self.kind.prediction_batch, self.placement)


def batches(
    collate: Collator,
    encoded: Mapping[str, Sequence[Any]],
    order: Sequence[int] | np.ndarray,
    batch_size: int,
    placement: Placement,
) -> Iterator[dict[str, torch.Tensor]]:
    """Batches of the encoded examples in the given order, each collated by itself."""
    examples = EncodedExamples(encoded)
    for start in range(0, len(order), batch_size):
        yield placement.batch(collate([examples[row] for row in order[start : start + batch_size]]))


def examples_for(
    kind: "Kind[Any]", checkpoint: Path, model: Model, rows: "Dataset", task: TaskData, placement: Placement
) -> Examples:
    """A split's examples as a task kind's model takes them, ready for `predict`, as often as wanted.

    Of a task that the model was not made for, and whose texts may be longer than it reads, it gets their beginnings;
    standard error says so.

    Args:
        kind: the task's.
        checkpoint: where the processor is.
        model: what they are for.
        rows: of the task.
        task: whose they are.
        placement: where the batches go.

    Raises:
        InputError: the processor cannot be loaded, or the model cannot take the examples.
    """
    processor = kind.load_processor(checkpoint)
    limit, longest = kind.position_limit(model), kind.longest(task)
    cut = limit if limit is not None and limit < longest else None
    if cut is None:
        encoded = encode(kind, processor, rows, task, model, seed=0)
    else:
        print(f"{task.name}: the model reads {cut} tokens of its texts, which may have {longest}", file=sys.stderr)
        encoded = _encoded_beginnings(kind, processor, rows, task, model, cut)
    return Examples(
        encoded,
        kind.largest_first(encoded),
        kind,
        kind.collator(processor, model),
        placement,
        rows,
        task,
        processor,
        cut,
        kind.not_predicted(rows, encoded),
    )


def _encoded_beginnings(
    kind: "Kind[Any]", processor: Any, rows: "Dataset", task: TaskData, model: Model, cut: int
) -> "Encoded":
    """The examples' first `cut` tokens.

    Raises:
        InputError: an example is none without the others, or is no input of the model for another reason.
    """
    try:
        return encode(kind, processor, rows, kind.within(task, cut), model, seed=0)
    except TooLongError as error:
        raise InputError(
            f"{processor.name_or_path}: reads at most {cut} tokens, too few for {task.name}, which is another model's; "
            f"remove its longer examples, or take a base that reads more ({error})"
        ) from None


def predict(model: Model, examples: Examples, metrics: Sequence["Metric"]) -> np.ndarray:
    """A model's outputs on all examples, in the table's order. The model is moved to where the examples go.

    Args:
        model: whose.
        examples: what it predicts.
        metrics: that will take the outputs; they decide whether `Kind.further_outputs` are among these, as columns.

    Returns:
        [examples, …] in float32; of outputs at positions, those whose label is not `NO_OUTPUT`, in their order, and
        zeros beyond them.
    """
    examples.placement.model(model).eval()
    rows: list[np.ndarray] = []
    with torch.inference_mode():
        for batch in examples.batches():
            found = examples.kind.predicted(model, batch)
            rows += _by_example(found.float().cpu(), batch["labels"].cpu())
    ordered = sorted(zip(examples.order, rows, strict=True), key=lambda pair: pair[0])
    outputs = padded([row for _, row in ordered], fill=0.0)
    if all(metric.of_logits for metric in metrics):
        return outputs
    return np.column_stack([outputs, examples.kind.further_outputs(model, examples)]).astype(np.float32)


def targets(examples: Examples) -> np.ndarray:
    """What the metrics compare the outputs with, [examples, …], in the table's order; `NO_OUTPUT` beyond positions."""
    return padded([np.asarray(target) for target in examples.kind.targets(examples.encoded)], fill=NO_OUTPUT)


def _by_example(outputs: torch.Tensor, labels: torch.Tensor) -> list[np.ndarray]:
    if outputs.ndim < 3:
        return list(outputs.numpy())
    return [own[label != NO_OUTPUT].numpy() for own, label in zip(outputs, labels, strict=True)]
