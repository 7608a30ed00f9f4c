"""From the labels in tables to their positions in a task's list of labels."""

import sys
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeVar

import pandas as pd

from stages.running.errors import InputError
from stages.tasks.cells import BOOLEANS, NUMBERS, numbers, refuse_missing, shown, spelled, whole_number
from stages.tasks.classification import Classification
from stages.tasks.reading import FileExamples, Reader
from stages.tasks.table_files import Table
from stages.tasks.task import Split

LISTED = 20  # labels in a message

LabelledT = TypeVar("LabelledT", bound=Classification)


class LabelReader(Reader[LabelledT]):
    """What readers of examples with one label each have in common."""

    not_an_example = "label_not_of_the_task"

    def labelled(
        self, task: LabelledT, tables: Mapping[str, Table], inputs: Mapping[str, pd.DataFrame]
    ) -> dict[str, FileExamples]:
        """File → its examples: the inputs that were read from its table, with `label`, a position.

        Raises:
            InputError: a label is missing, or is none of the task's.
        """
        columns = {name: _kept(table, task) for name, table in tables.items()}
        if isinstance(task.labels, dict):
            intervals = task.labels.values()
            positions = [interval_positions(intervals, table, task.label) for table in columns.values()]
        else:
            positions = named_positions(task.output_names, list(columns.values()), task.label)
        return {name: _with_labels(inputs[name], found) for name, found in zip(tables, positions, strict=True)}

    def card(self, task: LabelledT, splits: Mapping[Split, pd.DataFrame]) -> dict[str, object]:
        """The examples of each label."""
        return {"counts": label_counts(task.output_names, splits)}

    def remarks(self, task: LabelledT, splits: Mapping[Split, pd.DataFrame]) -> Iterator[str]:
        """The labels without examples."""
        return labels_without_examples(task.output_names, splits)


def _kept(table: Table, task: Classification) -> Table:
    """The label column alone, without the rows that the task drops."""
    column = table.column(task.label)
    if task.drop:
        dropped = {spelled(value) for value in task.drop}
        column = column[[spelled(value) not in dropped for value in column.tolist()]]
    return replace(table, rows=column.to_frame())


def _with_labels(inputs: pd.DataFrame, positions: pd.Series) -> FileExamples:
    """The rows that have a position, with it, and how many have none."""
    examples = inputs.assign(label=positions)
    kept = examples.dropna(subset=["label"]).astype({"label": "int64"})
    return FileExamples(kept, len(examples) - len(kept))


def interval_positions(intervals: Iterable[Sequence[float]], table: Table, label: str) -> pd.Series:
    """Positions of the intervals that a column's numbers lie in, missing where none holds a number.

    Raises:
        InputError: a label is missing, or no number.
    """
    found = numbers(table, label)
    positions = pd.Series(pd.NA, index=found.index, dtype="Int64")
    for position, (low, high) in enumerate(intervals):
        positions[found.between(low, high)] = position
    return positions


def named_positions(names: Sequence[str], tables: Sequence[Table], label: str) -> list[pd.Series]:
    """Positions of the labels in a column of several tables, which holds either names or positions in all of them.

    Whole numbers (1, 1.0, "1") may be both, and so may true and false, which are the positions 1 and 0. So the whole
    column decides: it holds names if all its values are names, positions if all are positions and not all are names.

    Raises:
        InputError: a label is missing, or is neither, or some are only names and others only positions.
    """
    columns = [table.column(label).tolist() for table in tables]
    found: dict[Hashable, _Label] = {}  # the distinct ones, where they first are
    for table, values in zip(tables, columns, strict=True):
        refuse_missing(table, label, names)
        for row, value in zip(table.rows.index, values, strict=True):
            if (key := _key(value)) not in found:
                found[key] = _Label(value, table, row, _by_name(value, names), _by_position(value, names))
    chosen = "name" if all(one.name is not None for one in found.values()) else "position"
    if any(getattr(one, chosen) is None for one in found.values()):
        raise _neither(names, list(found.values()))
    _say_what_is_ambiguous(names, tables, label, list(found.values()), chosen)
    positions = {key: getattr(one, chosen) for key, one in found.items()}
    return [
        pd.Series([positions[_key(value)] for value in values], table.rows.index, dtype="int64")
        for table, values in zip(tables, columns, strict=True)
    ]


def label_counts(labels: Sequence[str], splits: Mapping[Split, pd.DataFrame]) -> dict[Split, dict[str, int]]:
    """Split → label → how many rows have its position as `label`."""
    return {
        split: {label: int((frame["label"] == position).sum()) for position, label in enumerate(labels)}
        for split, frame in splits.items()
    }


def labels_without_examples(labels: Sequence[str], splits: Mapping[Split, pd.DataFrame]) -> Iterator[str]:
    """What there is to say about labels that no row has, a sentence for each set of splits without them."""
    without: dict[tuple[Split, ...], list[str]] = {}
    for position, label in enumerate(labels):
        empty = tuple(split for split, frame in splits.items() if not (frame["label"] == position).any())
        without.setdefault(empty, []).append(label)
    for empty, missing in without.items():
        if empty:
            where = "any split" if len(empty) == len(splits) else f"the {' and '.join(empty)} split"
            plural = "s" if len(missing) > 1 else ""
            yield f"no example of the label{plural} {_listed([repr(label) for label in missing])} in {where}"


class _Label(NamedTuple):
    """A value in a column of labels.

    Attributes:
        value: what it is in the table.
        table: the table that it is first in, and `row` the row.
        name: the position of the label that it names; None if it names none.
        position: the position that it is itself; None if it is none.
    """

    value: object
    table: Table
    row: Hashable
    name: int | None
    position: int | None

    @property
    def shown(self) -> str:
        return shown(self.value)


def _key(value: object) -> Hashable:
    """What is the same for the same values of one type, and no others: 1, 1.0 and true are equal in Python."""
    return type(value), value if isinstance(value, (str, *NUMBERS)) else str(value)


def _by_name(value: object, names: Sequence[str]) -> int | None:
    """The position of the name that a value is, as it is written, or as the same number or truth is.

    A mapping of names to scores, of which one is 1 and all others are 0, is the name that has the 1.
    """
    if isinstance(value, Mapping) and sorted(map(str, value.values())) == ["0"] * (len(value) - 1) + ["1"]:
        value = next(name for name, score in value.items() if str(score) == "1")
    if not isinstance(value, (str, *NUMBERS)):
        return None
    text = str(value)
    spellings = [text]
    if text.lower() in BOOLEANS:
        spellings += [text.lower(), text.capitalize()]
    elif (whole := whole_number(value)) is not None:
        spellings.append(str(whole))
    return next((names.index(spelling) for spelling in spellings if spelling in names), None)


def _by_position(value: object, names: Sequence[str]) -> int | None:
    """The position that a value is itself."""
    whole = whole_number(value)
    return whole if whole is not None and whole < len(names) else None


def _neither(names: Sequence[str], found: Sequence[_Label]) -> InputError:
    """The error that a column holds neither names nor positions alone."""
    position = next(one for one in found if one.name is None)
    bad = next((one for one in found if one.name is None and one.position is None), None)
    if bad is not None:
        hint = "" if whole_number(bad.value) is None else f" (their positions are 0 to {len(names) - 1})"
        return bad.table.refusal(bad.row, f"the label {bad.shown} is not one of the task's: {_listed(names)}{hint}")
    name = next(one for one in found if one.position is None)
    place = f"{name.table.file.name}, {name.table.place(name.row)}"
    reason = f"the label {position.shown} is a position and no name, and {name.shown} ({place}) a name and no position"
    return position.table.refusal(position.row, f"{reason}; a column holds names or positions, never both")


def _say_what_is_ambiguous(
    names: Sequence[str], tables: Sequence[Table], label: str, found: Sequence[_Label], chosen: str
) -> None:
    """Print how the labels are read, where they could be read otherwise."""
    truths = any(str(one.value).lower() in BOOLEANS for one in found)
    differ = any(one.name is not None and one.position is not None and one.name != one.position for one in found)
    if chosen == "name":
        ambiguous = differ and not truths and all(one.position is not None for one in found)
    else:
        ambiguous = differ or truths
    if ambiguous:
        meanings = sorted({f"{one.shown} is {names[getattr(one, chosen)]!r}" for one in found})
        files = ", ".join(str(table.file) for table in tables)
        print(f"note: {files}: {label} holds {chosen}s: {_listed(meanings)}", file=sys.stderr)


def _listed(items: Sequence[str]) -> str:
    more = f" and {len(items) - LISTED} more" if len(items) > LISTED else ""
    return ", ".join(items[:LISTED]) + more
