"""Examples in memory, as tests look at them: what the stages have some at a time, and in files."""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from datasets import Dataset

from stages.tasks import tables
from stages.tasks.arrow import frame, temporary_rows
from stages.tasks.reading import Reader, SomeExamples
from stages.tasks.table_files import Table, TableFile, open_table
from stages.tasks.task import Split, TableTask, Task


def read_table(file: Path, names: list[str] | None, field: str | None = None) -> Table:
    """All rows of a file."""
    return open_table(file, names, field).table()


def read_examples(reader: Reader[Any], task: Task, found: Mapping[str, Table]) -> dict[str, SomeExamples]:
    """All examples of a task's tables, by name."""
    files = {name: TableFile(table.file, partial(_alone, table)) for name, table in found.items()}
    return {name: _joined(list(parts)) for name, parts in reader.read(task, files).items()}


def _alone(table: Table) -> Iterator[Table]:
    yield table


def _joined(parts: list[SomeExamples]) -> SomeExamples:
    return SomeExamples(pd.concat([part.examples for part in parts]), sum(part.dropped for part in parts))


def split_examples(task: Task, source: Path) -> tuple[dict[Split, pd.DataFrame], dict[str, int]]:
    """A task's splits, and how many rows were dropped for what reason."""
    assert isinstance(task, TableTask)
    splits, dropped = tables.split_examples(task, source)
    return {split: frame(rows) for split, rows in splits.items()}, dropped


def rows_of(splits: Mapping[Split, pd.DataFrame]) -> dict[Split, Dataset]:
    """The splits as the stages have them."""
    return {split: temporary_rows([frame]) for split, frame in splits.items()}


def write_task(directory: Path, task: Task, splits: Mapping[Split, pd.DataFrame], dropped: Mapping[str, int]) -> None:
    """Write a task whose splits are these."""
    assert isinstance(task, TableTask)
    tables.write_task(directory, task, rows_of(splits), dropped)
