"""Examples of multiple choice: `question`, `choice_0`, `choice_1`, … and `label`, the position of the right one."""

import sys
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

from stages.running.errors import InputError
from stages.tasks.kinds.multiple_choice.cells import READINGS, Choices, UnusableError, choices_in, positions, text_in
from stages.tasks.kinds.multiple_choice.settings import MultipleChoice
from stages.tasks.reading import Reader, SomeExamples
from stages.tasks.table_files import Table, TableFile
from stages.tasks.task import Split

if TYPE_CHECKING:  # its import takes a third of a second
    from datasets import Dataset


class MultipleChoiceReader(Reader[MultipleChoice]):
    """Reads questions with their choices."""

    example = "question"
    not_an_example = "unusable"

    def read(self, task: MultipleChoice, files: Mapping[str, TableFile]) -> dict[str, Iterable[SomeExamples]]:
        """File → its examples. Raises `InputError` where a row is none, unless such rows are dropped.

        How many choices an example has, and what their labels are, all rows say together: they are in memory.
        """
        tables = {name: file.table() for name, file in files.items()}
        unusable = _Unusable(drops=task.unusable == "drop")
        rows = [row for table in tables.values() for row in _rows(task, table, unusable)]
        rows = _of_one_number(rows, unusable)
        rows = _with_labels(rows, task, unusable)
        unusable.say(rows, list(tables.values()))
        reading = _common_reading(rows, task)
        columns = ["question", *(f"choice_{place}" for place in range(len(rows[0].choices.texts))), "label"]
        found: dict[str, Iterable[SomeExamples]] = {}
        for name, table in tables.items():
            own = [row for row in rows if row.table is table]
            records = [[row.question, *row.choices.texts, row.positions[reading]] for row in own]
            examples = pd.DataFrame(records, index=[row.place for row in own], columns=columns)
            found[name] = [SomeExamples(examples.astype({"label": "int64"}), len(table.rows) - len(own))]
        return found

    def card(self, task: MultipleChoice, splits: "Mapping[Split, Dataset]") -> dict[str, object]:
        """The number of choices and of examples, and how texts become a model's inputs."""
        choices = len(choice_columns(splits["train"].column_names))
        settings = {key: getattr(task, key) for key in ("scoring", "likelihood", "separator", "max_length")}
        passes = {} if task.exact_passes is None else {"exact_passes": choices - 1}
        return {"choices": choices, **passes, **settings} | super().card(task, splits)


def choice_columns(columns: Iterable[str]) -> list[str]:
    """Those of a prepared task's columns that have its choices, in their order."""
    return [column for column in columns if column.startswith("choice_")]


class _Row(NamedTuple):
    """A row that is an example, as far as can be told without the others.

    Attributes:
        table: whose it is.
        place: where in it.
        question: its text.
        choices: all of them.
        label: its cell.
        positions: how the label may be read → the position of the right choice.
    """

    table: Table
    place: Hashable
    question: str
    choices: Choices
    label: object
    positions: Mapping[str, int]


@dataclass
class _Unusable:
    """The rows that are no examples, which are refused or dropped.

    Attributes:
        drops: whether they are dropped.
        first: what is wrong with the first one.
        number: of them.
    """

    drops: bool
    first: InputError | None = None
    number: int = 0

    def add(self, table: Table, place: Hashable, reason: str) -> None:
        """Another one. Raises `InputError` unless they are dropped."""
        if not self.drops:
            raise table.refusal(place, f"{reason}; mend the row, or drop all such rows by `unusable: drop`")
        self.first = self.first or table.refusal(place, reason)
        self.number += 1

    def say(self, others: Sequence[_Row], tables: Sequence[Table]) -> None:
        """Print how many rows are dropped. Raises `InputError` if no others are left."""
        if not others:
            files = ", ".join(str(table.file) for table in tables)
            raise InputError(f"{files}: no row is an example" + (f"; the first: {self.first}" if self.first else ""))
        if self.first is not None:
            print(f"note: {self.number} rows are no examples and dropped; the first: {self.first}", file=sys.stderr)


def _rows(task: MultipleChoice, table: Table, unusable: _Unusable) -> list[_Row]:
    """A table's rows that have a question, choices and a label."""
    named = dict.fromkeys([*task.questions, *task.choice_columns, task.label])
    columns = {name: table.column(name).tolist() for name in named}
    found = []
    for number, place in enumerate(table.rows.index):
        row = {name: cells[number] for name, cells in columns.items()}
        try:
            question = task.separator.join(text_in(row[name], name) for name in task.questions)
            own = choices_in(row, task.choices)
            found.append(_Row(table, place, question, own, row[task.label], positions(row[task.label], own)))
        except UnusableError as reason:
            unusable.add(table, place, str(reason))
    return found


def _of_one_number(rows: Sequence[_Row], unusable: _Unusable) -> list[_Row]:
    """The rows with as many choices as the first one or, where others are dropped, as most."""
    if not rows:
        return []
    numbers = [len(row.choices.texts) for row in rows]
    wanted = Counter(numbers).most_common(1)[0][0] if unusable.drops else numbers[0]
    found = []
    for row, number in zip(rows, numbers, strict=True):
        if number == wanted:
            found.append(row)
        else:
            whose = "most others have" if unusable.drops else f"{_place(rows[0])} has"
            reason = f"has {number} choices, and {whose} {wanted}; all examples of a task have the same number"
            unusable.add(row.table, row.place, reason)
    return found


def _with_labels(rows: Sequence[_Row], task: MultipleChoice, unusable: _Unusable) -> list[_Row]:
    """The rows whose label can be read in some way."""
    other = None if task.label_from is None else f"from {1 - task.label_from}"
    found = []
    for row in rows:
        allowed = {reading: place for reading, place in row.positions.items() if reading != other}
        if allowed:
            found.append(row._replace(positions=allowed))
        else:
            texts = ", ".join(map(repr, row.choices.texts))
            reason = f"{task.label} = {_shown(row.label)} is none of the choices ({texts}), nor a label, letter or "
            unusable.add(row.table, row.place, f"{reason}position of one")
    return found


def _common_reading(rows: Sequence[_Row], task: MultipleChoice) -> str:
    """The one way to read all labels; the whole column decides, as that of a classification does.

    Raises:
        InputError: there is none, or the labels may as well be positions from 0 as from 1.
    """
    possible = [reading for reading in READINGS if all(reading in row.positions for row in rows)]
    if not possible:
        raise _of_several_sorts(rows, task.label)
    chosen = possible[0]
    for other in possible[1:]:
        odd_one = next((row for row in rows if row.positions[chosen] != row.positions[other]), None)
        if odd_one is None:
            continue
        if chosen == "from 0":
            raise InputError(
                f"{odd_one.table.file}: all values of {task.label} may be positions from 0 or from 1; say which by "
                "`label_from: 0` or `label_from: 1`"
            )
        files = ", ".join(dict.fromkeys(str(row.table.file) for row in rows))
        print(f"note: {files}: {task.label} holds {READINGS[chosen]}, not {READINGS[other]}", file=sys.stderr)
    return chosen


def _of_several_sorts(rows: Sequence[_Row], label: str) -> InputError:
    """The error that no way to read labels is one for all rows."""
    usual = Counter(reading for row in rows for reading in row.positions).most_common(1)[0][0]
    odd = next(row for row in rows if usual not in row.positions)
    way = next(iter(odd.positions))
    other = next(row for row in rows if way not in row.positions)
    if {usual, way} == {"from 0", "from 1"}:
        reason = (
            f"{label} = {_shown(odd.label)} is no position {usual}, and {_shown(other.label)} ({_place(other)}) is "
            f"none {way}; mend one, or say which are meant by `label_from`"
        )
    else:
        reason = (
            f"{label} = {_shown(odd.label)} is one of the {READINGS[way]}, and most others are {READINGS[usual]}; a "
            "column holds labels of one sort"
        )
    return odd.table.refusal(odd.place, reason)


def _place(row: _Row) -> str:
    return f"{row.table.file.name}, {row.table.place(row.place)}"


def _shown(value: object) -> str:
    return repr(value)[:80]


READER = MultipleChoiceReader()
