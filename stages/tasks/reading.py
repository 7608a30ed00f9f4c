"""How a kind of task makes examples of tables, or is prepared without any."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, TypeVar

import pandas as pd

from stages.tasks import module_of
from stages.tasks.table_files import Table, TableFile, open_lines, open_table
from stages.tasks.task import Split, TableTask, Task
from stages.tasks.text_columns import TextColumns

if TYPE_CHECKING:  # its import takes a third of a second
    from datasets import Dataset

AnyTaskT = TypeVar("AnyTaskT", bound=Task)
TaskT = TypeVar("TaskT", bound=TableTask)


class SomeExamples(NamedTuple):
    """The examples that a part of a file has.

    Attributes:
        examples: the columns that the kind's examples have in a prepared task; `label`, a position or an array, if they
            have one.
        dropped: how many of the rows are no examples.
    """

    examples: pd.DataFrame
    dropped: int


class Preparer(ABC, Generic[AnyTaskT]):
    """Prepares tasks of a kind that is read from no tables; the kind's `reading.py` has it as `PREPARER`."""

    @abstractmethod
    def prepare(self, task: AnyTaskT, source: Path, directory: Path) -> list[str]:
        """Write a prepared task, with its card.

        Args:
            task: to prepare.
            source: the directory of what it is read from, which is verified.
            directory: to write into; it is empty.

        Returns:
            What a user should know of it, a sentence each.

        Raises:
            InputError: what is in the source is no such task.
        """


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

    def open(self, task: TaskT, file: Path, source: Path | None = None) -> TableFile:
        """The table in one of the task's files or directories.

        Args:
            task: whose.
            file: where it is.
            source: the directory that all must lie in which it refers to; by default its own.

        Raises:
            InputError: there is none that can be read.
        """
        if task.format == "text":
            return open_lines(file)
        return open_table(file, self.columns(task), task.field, source)

    @abstractmethod
    def read(self, task: TaskT, files: Mapping[str, TableFile]) -> dict[str, Iterable[SomeExamples]]:
        """File → its examples, part by part: each time they are gone through, the file is read.

        It has all of a task's files at once, since together they may say what their labels are.

        Raises:
            InputError: a column is missing, or a row can neither be an example nor be dropped; some of this is found
                where the parts are gone through.
        """

    def finished(self, task: TaskT, rows: "Dataset") -> "Dataset":
        """A split's examples, after whatever is done with them once it is decided which are in which split."""
        return rows

    def card(self, task: TaskT, splits: "Mapping[Split, Dataset]") -> dict[str, object]:
        """What the task's card says of this kind: `counts`, the examples of each split, and settings that matter."""
        return {"counts": {split: len(rows) for split, rows in splits.items()}}

    def remarks(self, task: TaskT, splits: "Mapping[Split, Dataset]") -> Iterator[str]:
        """What a user should know of the splits, a sentence each."""
        yield from ()


class PartReader(Reader[TaskT]):
    """A reader that needs no other part of a file to make examples of one."""

    @abstractmethod
    def examples(self, task: TaskT, part: Table) -> SomeExamples:
        """The examples of a part of a file. Raises `InputError` as `read` does."""

    def read(self, task: TaskT, files: Mapping[str, TableFile]) -> dict[str, Iterable[SomeExamples]]:
        """File → its examples, part by part."""
        return {name: Parts(partial(self.examples, task), file) for name, file in files.items()}


class Parts(Iterable[SomeExamples]):
    """A file's examples, part by part, read each time anew.

    Args:
        examples: makes them of a part.
        file: whose.
    """

    def __init__(self, examples: Callable[[Table], SomeExamples], file: TableFile) -> None:
        self._examples = examples
        self._file = file

    def __iter__(self) -> Iterator[SomeExamples]:
        return map(self._examples, self._file.parts())


def reader(kind: str) -> Reader[Any]:
    """The reader of a task kind, for tasks of that kind."""
    found: Reader[Any] = import_module(f"stages.{module_of(kind, 'reading')}").READER
    return found


def preparer(kind: str) -> Preparer[Any]:
    """What prepares tasks of a kind that is read from no tables."""
    found: Preparer[Any] = import_module(f"stages.{module_of(kind, 'reading')}").PREPARER
    return found


def filled(table: Table, column: str) -> pd.Series:
    """A column of texts, each of which has more than white space.

    Raises:
        InputError: the column is missing, or a row has none; it says which.
    """
    table.refuse(partial(_are_no_strings, column=column), f"{column} is not a text")
    table.refuse(partial(_are_empty, column=column), f"{column} is empty", "; remove them")
    return table.column(column).astype(str)


def _are_no_strings(table: Table, column: str) -> pd.Series:
    return table.column(column).map(lambda value: not isinstance(value, str))


def _are_empty(table: Table, column: str) -> pd.Series:
    return table.column(column).map(lambda value: isinstance(value, str) and not value.strip())


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
    for own in (task.text, task.text_pair):
        if own is not None:
            table.refuse(partial(_are_no_strings, column=own), f"{own} is not a text")
    return found.astype(str)
