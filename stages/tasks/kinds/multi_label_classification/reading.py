"""Examples of multi-label classification: `text`, perhaps `text_pair`, and `label`, an array of positions in order."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stages.tasks.cells import shown, whole_number
from stages.tasks.kinds.multi_label_classification.settings import MultiLabelClassification
from stages.tasks.labels import NamedPositions, label_counts, labels_of, labels_without_examples
from stages.tasks.reading import Parts, Reader, SomeExamples, strings
from stages.tasks.table_files import Table, TableFile
from stages.tasks.task import Split

if TYPE_CHECKING:  # its import takes a third of a second
    from datasets import Dataset


class MultiLabelReader(Reader[MultiLabelClassification]):
    """Reads texts with their sets of labels."""

    not_an_example = "label_unknown"

    def read(self, task: MultiLabelClassification, files: Mapping[str, TableFile]) -> dict[str, Iterable[SomeExamples]]:
        """File → its examples. Raises `InputError` where a text or a label is none, or a label is there twice."""
        sets: Callable[[Table], pd.Series]
        if isinstance(task.label, str):
            sets = NamedSets(task, task.label, (part for file in files.values() for part in file.parts())).of
        else:
            sets = partial(_sets_of_columns, task, task.label)

        def examples(part: Table) -> SomeExamples:
            return _with_sets(strings(task, part, task.label_columns), sets(part))

        return {name: Parts(examples, file) for name, file in files.items()}

    def card(self, task: MultiLabelClassification, splits: "Mapping[Split, Dataset]") -> dict[str, object]:
        """The examples of each label, and the length that texts are cut to."""
        return {"max_length": task.max_length, "counts": label_counts(task.labels, _single(splits))}

    def remarks(self, task: MultiLabelClassification, splits: "Mapping[Split, Dataset]") -> Iterator[str]:
        """The labels without examples."""
        return labels_without_examples(task.labels, _single(splits))


def _with_sets(inputs: pd.DataFrame, sets: pd.Series) -> SomeExamples:
    """The inputs with their sets as `label`, but for those whose set is not known."""
    known = sets.notna()
    return SomeExamples(inputs[known].assign(label=sets[known]), int((~known).sum()))


def _single(splits: "Mapping[Split, Dataset]") -> dict[Split, pd.DataFrame]:
    """The splits' labels with a row for each label of an example."""
    return {split: frame.explode("label") for split, frame in labels_of(splits).items()}


class NamedSets:
    """The sets of labels that the cells of a column list, by names or by positions; see `NamedPositions`.

    Args:
        task: whose labels they are.
        label: the column.
        tables: all of them, or all of their parts.

    Raises:
        InputError: a label is none of the task's, or some are only names and others only positions.
    """

    def __init__(self, task: MultiLabelClassification, label: str, tables: Iterable[Table]) -> None:
        self._task, self._label = task, label
        single = (_one_a_row(table, label, _listed(task, label, table)) for table in tables)
        self._positions = NamedPositions(task.labels, single, label)

    def of(self, table: Table) -> pd.Series:
        """The positions in order [rows, any number] of a table's sets.

        Raises:
            InputError: a set has a label twice.
        """
        cells = _listed(self._task, self._label, table)
        positions = self._positions.of(_one_a_row(table, self._label, cells)).to_numpy()
        sets = _parts(positions, cells.map(len).to_numpy(dtype=int))
        return _gathered(self._task, table, cells.index, sets)


def _one_a_row(table: Table, label: str, cells: pd.Series) -> Table:
    """A table with a row for each label of a cell."""
    names = pd.Series([name for cell in cells for name in cell], cells.index.repeat(cells.map(len)), dtype=object)
    return replace(table, rows=names.to_frame(label), whole=None)


def _parts(values: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    """An array's parts of these lengths, one after the other."""
    return [values[stop - length : stop] for length, stop in zip(lengths, lengths.cumsum(), strict=True)]


def _gathered(task: MultiLabelClassification, table: Table, index: pd.Index, sets: Sequence[np.ndarray]) -> pd.Series:
    """The sets of a table's rows, in order. Raises `InputError` where one has a position twice."""
    ordered = [np.sort(positions) for positions in sets]
    for row, positions in zip(index, ordered, strict=True):
        if (twice := positions[1:] == positions[:-1]).any():
            raise table.refusal(row, f"has the label {task.labels[positions[1:][twice][0]]!r} twice; name it once")
    return pd.Series(ordered, index, dtype=object)


def _listed(task: MultiLabelClassification, label: str, table: Table) -> pd.Series:
    """The labels that each cell lists, as they stand there."""
    column = table.column(label)
    found = []
    for row, cell in zip(column.index, column.tolist(), strict=True):
        if isinstance(cell, str):
            names = [name.strip() for name in cell.split(task.separator)] if cell.strip() else []
            if between := [name for name in task.labels if task.separator in name]:
                reason = f"its labels are a text, and the label {between[0]!r} has the separator {task.separator!r}"
                raise table.refusal(row, f"{reason}; choose another `separator`")
        elif isinstance(cell, list | np.ndarray):
            names = list(cell)
        elif cell is None or cell is pd.NA or cell != cell:
            raise table.refusal(row, f"has no {label}; an empty list or text is what has no label")
        else:
            raise table.refusal(row, f"{label} = {shown(cell)} is neither a list of labels nor a text that names them")
        if any(name is None or (isinstance(name, str) and not name) for name in names):
            raise table.refusal(row, f"{label} names an empty label; remove it")
        found.append(names)
    return pd.Series(found, column.index, dtype=object)


def _sets_of_columns(task: MultiLabelClassification, columns: Sequence[str], table: Table) -> pd.Series:
    """Positions in order [rows, any number] of the columns that have a 1; missing where one has an unknown value."""
    unknown = {str(value) for value in task.unknown}
    holds = np.zeros((len(table.rows), len(columns)), dtype=bool)
    known = np.ones(len(table.rows), dtype=bool)
    for position, name in enumerate(columns):
        column = table.column(name)
        for row, cell in enumerate(column.tolist()):
            if unknown and _spelled(cell) in unknown:
                known[row] = False
            elif (number := whole_number(cell)) in (0, 1):
                holds[row, position] = number
            else:
                raise table.refusal(column.index[row], _no_truth(name, cell))
    sets = [np.flatnonzero(row) if is_known else None for row, is_known in zip(holds, known, strict=True)]
    return pd.Series(sets, table.rows.index, dtype=object)


def _no_truth(name: str, cell: object) -> str:
    """What is wrong with a cell in a column of ones and zeros."""
    if cell is None or cell is pd.NA or cell != cell or cell == "":
        return f"has no {name}; write 1 or 0"
    return f"{name} = {shown(cell)} is neither 1 nor 0; list it under `unknown` if it says that nobody knows"


def _spelled(cell: object) -> str:
    """A cell as params.yaml spells it: whole numbers without a point."""
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)


READER = MultiLabelReader()
