"""Predictions on a task's test examples, and the file that they are kept in."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from stages.running.errors import DamagedError
from stages.storage.cards import PREDICTIONS
from stages.storage.digests import verify_contents
from stages.tasks.metrics import NO_OUTPUT
from stages.tasks.outputs import Written, padded

ENDING = ".parquet"


@dataclass(frozen=True)
class Predictions:
    """What a model predicts of a task's test examples, in their order.

    Attributes:
        outputs: [N, …]; where a model has outputs at an example's positions, [N, T, …], and any numbers beyond the
            positions of an example that has fewer than T.
        targets: what the metrics compare with them: [N, …], or [N, T] with `NO_OUTPUT` beyond an example's positions.
        written: what the model has written for the first examples, where it writes; in no file of predictions.
    """

    outputs: np.ndarray
    targets: np.ndarray
    written: Sequence[Written] = ()

    @property
    def positions(self) -> list[int] | None:
        """How many positions with an output each example has; None where each has one output."""
        return (self.targets != NO_OUTPUT).sum(1).tolist() if self.outputs.ndim == 3 else None

    def write(self, directory: Path, task: str) -> None:
        """Write `predictions/TASK.parquet` in an evaluation's directory: columns label, logits."""
        outputs, targets = list(self.outputs), list(self.targets)
        if (positions := self.positions) is not None:
            outputs = [list(rows[:stop]) for rows, stop in zip(outputs, positions, strict=True)]
            targets = [rows[:stop] for rows, stop in zip(targets, positions, strict=True)]
        columns = {"label": pd.Series(targets), "logits": pd.Series(outputs)}
        file = directory / predictions_file(task)
        file.parent.mkdir(exist_ok=True)
        pd.DataFrame(columns).to_parquet(file, index=False)


def predictions_file(task: str) -> str:
    """Where the predictions on a task are, in an evaluation's directory."""
    return f"{PREDICTIONS}/{task}{ENDING}"


def read_predictions(directory: Path, task: str) -> Predictions:
    """The predictions on a task in an evaluation's directory. Raises `DamagedError` if they cannot be read."""
    name = predictions_file(task)
    verify_contents(directory, [name])
    try:
        table = pd.read_parquet(directory / name)
        outputs = padded([_array(row) for row in table["logits"]], fill=0.0)
        targets = padded([np.asarray(row) for row in table["label"]], fill=NO_OUTPUT)
    except (OSError, ValueError, KeyError) as error:  # pyarrow's errors are of these kinds
        reason = " ".join(str(error).split())
        raise DamagedError(f"{directory / name}: cannot be read ({reason})", directory) from None
    return Predictions(outputs, targets)


def _array(row: np.ndarray) -> np.ndarray:
    """A row of a table, [K], or [T, K] of its arrays."""
    return np.stack(list(row)) if row.dtype == object and len(row) else row
