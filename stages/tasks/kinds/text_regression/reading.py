"""Examples of text regression: `text`, perhaps `text_pair`, and `label`, an array of numbers."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stages.tasks.cells import numbers, shown
from stages.tasks.kinds.text_regression.settings import TextRegression
from stages.tasks.reading import PartReader, SomeExamples, strings
from stages.tasks.table_files import Table
from stages.tasks.task import Split

LARGEST = float(np.finfo(np.float32).max)  # models compute in float32

if TYPE_CHECKING:  # its import takes a third of a second
    from datasets import Dataset


class TextRegressionReader(PartReader[TextRegression]):
    """Reads texts with their numbers."""

    not_an_example = "no_number"

    def examples(self, task: TextRegression, part: Table) -> SomeExamples:
        """All rows. Raises `InputError` where a text is none, or a number is none or not finite."""
        inputs = strings(task, part, task.targets)
        columns = [_finite(part, name) for name in task.targets]
        targets = pd.Series(list(np.stack(columns, axis=1)), inputs.index, dtype=object)
        return SomeExamples(inputs.assign(label=targets), dropped=0)

    def card(self, task: TextRegression, splits: "Mapping[Split, Dataset]") -> dict[str, object]:
        """The number of examples, the length that texts are cut to, and the likelihood's variance."""
        return {"max_length": task.max_length, "variance": task.variance} | super().card(task, splits)


def _finite(table: Table, name: str) -> np.ndarray:
    """A column's numbers [rows]. Raises `InputError` where a cell has none, or one that is too large."""
    column = table.column(name)
    truth = np.array([isinstance(value, (bool, np.bool_)) for value in column.tolist()], dtype=bool)
    if truth.any():  # a text of it is no number either
        raise table.refusal(column.index[truth][0], f"{name} = {shown(column[truth].iloc[0])} is not a number")
    found = numbers(table, name).astype(np.float64)
    if (bad := ~(found.abs() <= LARGEST)).any():
        reason = f"{name} = {shown(found[bad].iloc[0])} is not finite, or too large for a model"
        raise table.refusal(bad.idxmax(), reason)
    return found.to_numpy()


READER = TextRegressionReader()
