"""From the labels in tables to their positions in a task's list of labels."""

import sys
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import pandas as pd

from stages.running.errors import InputError, first_names
from stages.tasks.arrow import frame as in_memory
from stages.tasks.cells import BOOLEANS, NUMBERS, numbers, refuse_missing, shown, spelled, whole_number
from stages.tasks.classification import Classification
from stages.tasks.reading import Parts, Reader, SomeExamples
from stages.tasks.table_files import Table, TableFile
from stages.tasks.task import Split

if TYPE_CHECKING:  # its import takes a third of a second
    from datasets import Dataset

LabelledT = TypeVar("LabelledT", bound=Classification)


class LabelReader(Reader[LabelledT]):
    """What readers of examples with one label each have in common."""

    not_an_example = "label_not_of_the_task"

    def labelled(
        self, task: LabelledT, files: Mapping[str, TableFile], inputs: Callable[[Table], pd.DataFrame]
    ) -> dict[str, Iterable[SomeExamples]]:
        """File → its examples: the inputs of each part of it, with `label`, a position.

        Raises:
            InputError: a label is missing, or is none of the task's.
        """
        position_of: Callable[[Table], pd.Series]
        if isinstance(task.labels, dict):
            position_of = partial(interval_positions, list(task.labels.values()), label=task.label)
        else:
            parts = (_kept(part, task) for file in files.values() for part in file.parts())
            position_of = NamedPositions(task.output_names, parts, task.label).of

        def examples(part: Table) -> SomeExamples:
            kept = _kept(part, task)
            return _with_labels(inputs(part), position_of(kept))

        return {name: Parts(examples, file) for name, file in files.items()}

    def card(self, task: LabelledT, splits: "Mapping[Split, Dataset]") -> dict[str, object]:
        """The examples of each label."""
        return {"counts": label_counts(task.output_names, labels_of(splits))}

    def remarks(self, task: LabelledT, splits: "Mapping[Split, Dataset]") -> Iterator[str]:
        """The labels without examples."""
        return labels_without_examples(task.output_names, labels_of(splits))


def _kept(table: Table, task: Classification) -> Table:
    """The label column alone, without the rows that the task drops."""
    column = table.column(task.label)
    if task.drop:
        dropped = {spelled(value) for value in task.drop}
        column = column[[spelled(value) not in dropped for value in column.tolist()]]
    whole = table.whole
    others = whole and TableFile(whole.file, lambda: (_kept(part, task) for part in whole.parts()))
    return replace(table, rows=column.to_frame(), whole=others)


def _with_labels(inputs: pd.DataFrame, positions: pd.Series) -> SomeExamples:
    """The rows that have a position, with it, and how many have none."""
    examples = inputs.assign(label=positions)
    kept = examples.dropna(subset=["label"]).astype({"label": "int64"})
    return SomeExamples(kept, len(examples) - len(kept))


def interval_positions(intervals: Sequence[Sequence[float]], table: Table, label: str) -> pd.Series:
    """Positions of the intervals that a column's numbers lie in, missing where none holds a number.

    Raises:
        InputError: a label is missing, or no number.
    """
    found = numbers(table, label)
    positions = pd.Series(pd.NA, index=found.index, dtype="Int64")
    for position, (low, high) in enumerate(intervals):
        positions[found.between(low, high)] = position
    return positions


class NamedPositions:
    """The positions of the labels in a column of several tables, which holds either names or positions in all of them.

    Whole numbers (1, 1.0, "1") may be both, and so may true and false, which are the positions 1 and 0. So the whole
    column decides: it holds names if all its values are names, positions if all are positions and not all are names.

    Args:
        names: the labels, in their order.
        tables: all of them, or all of their parts.
        label: the column.

    Raises:
        InputError: a label is missing, or is neither, or some are only names and others only positions.
    """

    def __init__(self, names: Sequence[str], tables: Iterable[Table], label: str) -> None:
        self._label = label
        found: dict[Hashable, _Label] = {}  # the distinct ones, where they first are
        files: dict[Path, None] = {}
        for table in tables:
            files[table.file] = None
            refuse_missing(table, label, names)
            column = table.column(label)
            for row, value in zip(column.index, column.tolist(), strict=True):
                if (key := _key(value)) not in found:
                    found[key] = _Label(value, table, row, _by_name(value, names), _by_position(value, names))
                    if found[key].name is None and found[key].position is None:
                        raise _neither(names, list(found.values()))
        chosen = "name" if all(one.name is not None for one in found.values()) else "position"
        if any(getattr(one, chosen) is None for one in found.values()):
            raise _neither(names, list(found.values()))
        _say_what_is_ambiguous(names, files, label, list(found.values()), chosen)
        self._positions = {key: getattr(one, chosen) for key, one in found.items()}

    def of(self, table: Table) -> pd.Series:
        """The positions of one of the tables' labels."""
        column = table.column(self._label)
        return pd.Series([self._positions[_key(value)] for value in column.tolist()], column.index, dtype="int64")


def labels_of(splits: "Mapping[Split, Dataset]") -> dict[Split, pd.DataFrame]:
    """The column `label` of each split, in memory."""
    return {split: in_memory(rows.select_columns(["label"])) for split, rows in splits.items()}


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
            yield f"no example of the label{plural} {first_names([repr(label) for label in missing])} in {where}"


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
        return bad.table.refusal(bad.row, f"the label {bad.shown} is not one of the task's: {first_names(names)}{hint}")
    name = next(one for one in found if one.position is None)
    place = f"{name.table.file.name}, {name.table.place(name.row)}"
    reason = f"the label {position.shown} is a position and no name, and {name.shown} ({place}) a name and no position"
    return position.table.refusal(position.row, f"{reason}; a column holds names or positions, never both")


def _say_what_is_ambiguous(
    names: Sequence[str], files: Iterable[Path], label: str, found: Sequence[_Label], chosen: str
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
        listed = ", ".join(map(str, files))
        print(f"note: {listed}: {label} holds {chosen}s: {first_names(meanings)}", file=sys.stderr)
