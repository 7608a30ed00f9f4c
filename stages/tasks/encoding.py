"""From a split's examples to model inputs, some at a time, in a memory-mapped file that goes with the process."""

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from stages.running.errors import InputError
from stages.running.machine import cores
from stages.running.placement import without_weights
from stages.running.scratch import scratch_directory
from stages.tasks.arrow import ROWS_AT_ONCE, ArrowColumn, progress_bars
from stages.tasks.data import TaskData
from stages.tasks.loading import Model

if TYPE_CHECKING:  # they import this module, or take a third of a second
    from datasets import Dataset

    from stages.tasks.kind import Encoded, Example, Kind

MANY = 100_000  # examples, from which on it is worth the start of processes


class EncodedExamples(torch.utils.data.Dataset["Example"]):
    """Encoded examples one by one, each made when it is asked for."""

    def __init__(self, encoded: Mapping[str, Sequence[Any]]) -> None:
        self._encoded = encoded

    def __len__(self) -> int:
        return number_of(self._encoded)

    def __getitem__(self, row: int) -> "Example":
        return {key: values[row] for key, values in self._encoded.items()}


def number_of(encoded: Mapping[str, Sequence[Any]]) -> int:
    """How many examples are encoded."""
    return len(next(iter(encoded.values())))


def encode(kind: "Kind[Any]", processor: Any, rows: "Dataset", task: TaskData, model: Model, seed: int) -> "Encoded":
    """A split's examples as the kind's `encode` has them, by model input; what an example becomes is its own affair.

    They are encoded some at a time, in several processes where they are many, and kept in an Arrow file without a name
    in the directory for temporary files (TMPDIR), which goes with the process. Standard error has a bar where they are
    many, and the kind's remarks.

    Args:
        kind: the task's.
        processor: the model's.
        rows: the examples.
        task: theirs.
        model: what they are for.
        seed: of what is drawn at random in the examples.

    Raises:
        InputError: an example cannot be the model's input, or none is left.
    """
    many = len(rows) >= MANY
    if many:
        model = without_weights(model)  # each process has it

    def some(frame: pd.DataFrame, numbers: Sequence[int]) -> "Encoded":
        return kind.encode(processor, frame.set_axis(pd.Index(numbers)), task, model, seed)

    with scratch_directory() as folder, progress_bars(many):
        found = rows.with_format("pandas").map(
            some,
            with_indices=True,
            batched=True,
            batch_size=ROWS_AT_ONCE,
            remove_columns=rows.column_names,
            cache_file_name=str(folder / "encoded.arrow"),
            load_from_cache_file=False,
            new_fingerprint="encoded",  # its own would be of all that the function reaches
            num_proc=cores() if many else None,
            desc=f"encode {task.name}",
        )
    if not len(found):
        raise InputError(f"{task.directory}: the tokenizer makes no tokens of its texts; take another base or task")
    encoded = {name: ArrowColumn(found.data.column(name)) for name in found.column_names}
    kind.check_encoded(processor, encoded)
    for remark in kind.remarks(rows, encoded, task):
        print(f"{task.name}: {remark}", file=sys.stderr)
    return encoded
