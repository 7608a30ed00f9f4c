"""How a kind of task makes examples of tables."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import pandas as pd

from stages.tasks import module_of
from stages.tasks.table_files import Table, read_lines, read_table
from stages.tasks.task import Split, Task
from stages.tasks.text_columns import TextColumns

TaskT = TypeVar("TaskT", bound=Task)


class FileExamples(NamedTuple):
    """One file's examples.

    Attributes:
        examples: the columns that the kind's examples have in a prepared task; `label`, a position or an array, if they
            have one.
        dropped: how many of the file's rows are no examples.
    """

    examples: pd.DataFrame
    dropped: int


class Reader(ABC, Generic[TaskT]):
    """Makes examples of tables; `stages/tasks/kinds/NAME/reading.py` has the kind's as `READER`.

    Attributes:
        example: what an example is called in the task's card.
        not_an_example: why a row is dropped, in the card.
    """

    example: ClassVar[str] = "text"
    not_an_example: ClassVar[str]

    def columns(self, task: TaskT) -> list[str] | None:
        """The names of the columns of a table without a header row."""
        return task.columns

    def table(self, task: TaskT, file: Path, source: Path | None = None) -> Table:
        """The table in one of the task's files or directories.

        Args:
            task: whose.
            file: where it is.
            source: the directory that all must lie in which it refers to; by default its own.

        Raises:
            InputError: there is none that can be read.
        """
        if task.format == "text":
            return read_lines(file)
        return read_table(file, self.columns(task), task.field, source)

    @abstractmethod
    def read(self, task: TaskT, tables: Mapping[str, Table]) -> dict[str, FileExamples]:
        """File → its examples; all of a task's files at once, since together they may say what their labels are.

        Raises:
            InputError: a column is missing, or a row can neither be an example nor be dropped.
        """

    def finished(self, task: TaskT, examples: pd.DataFrame) -> pd.DataFrame:
        """A split's examples, after whatever is done with them once it is decided which are in which split."""
        return examples

    def card(self, task: TaskT, splits: Mapping[Split, pd.DataFrame]) -> dict[str, object]:
        """What the task's card says of this kind: `counts`, the examples of each split, and settings that matter."""
        return {"counts": {split: len(frame) for split, frame in splits.items()}}

    def remarks(self, task: TaskT, splits: Mapping[Split, pd.DataFrame]) -> Iterator[str]:
        """What a user should know of the splits, a sentence each."""
        yield from ()


def reader(kind: str) -> Reader[Any]:
    """The reader of a task kind, for tasks of that kind."""
    found: Reader[Any] = import_module(f"stages.{module_of(kind, 'reading')}").READER
    return found


def filled(table: Table, column: str) -> pd.Series:
    """A column of texts, each of which has more than white space.

    Raises:
        InputError: the column is missing, or a row has none; it says which.
    """
    values = table.column(column)
    if (bad := ~values.map(lambda value: isinstance(value, str)).astype(bool)).any():
        raise table.refusal(bad.idxmax(), f"{column} is not a text ({int(bad.sum())} such rows)")
    if (empty := ~values.map(str.strip).astype(bool)).any():
        raise table.refusal(empty.idxmax(), f"{column} is empty ({int(empty.sum())} such rows); remove them")
    return values.astype(str)


def texts(task: TextColumns, table: Table) -> pd.DataFrame:
    """A task's columns of texts, under the names that they have in a prepared task: `text` and perhaps `text_pair`.

    Raises:
        InputError: a column is missing.
    """
    found = {"text": table.column(task.text)}
    if task.text_pair is not None:
        found["text_pair"] = table.column(task.text_pair)
    return pd.DataFrame(found)


def strings(task: TextColumns, table: Table, further: Iterable[str]) -> pd.DataFrame:
    """`texts`, each of which is a string.

    Args:
        task: whose.
        table: where they are.
        further: columns that the table must have besides.

    Raises:
        InputError: a column is missing, or a row has no text in it.
    """
    found = texts(task, table)
    for name in further:
        table.column(name)
    for column in found:
        if (bad := ~found[column].map(lambda value: isinstance(value, str)).astype(bool)).any():
            own = task.text if column == "text" else task.text_pair
            raise table.refusal(bad.idxmax(), f"{own} is not a text ({int(bad.sum())} such rows)")
    return found.astype(str)
