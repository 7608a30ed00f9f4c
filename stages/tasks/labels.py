"""From the labels in tables to their positions in a task's list of labels."""

import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from numbers import Number

import numpy as np
import pandas as pd

from stages.errors import InputError
from stages.params import Split
from stages.tasks.table_files import Table

BOOLEANS = {"false": 0, "true": 1}  # in lower or upper case
WHOLE_NUMBER = re.compile(r"(0|[1-9][0-9]{0,17})(\.0+)?")
LISTED = 20  # labels in a message


def interval_positions(intervals: Iterable[Sequence[float]], table: Table, label: str) -> pd.Series:
    """Positions of the intervals that a column's numbers lie in, missing where none holds a number.

    Raises:
        InputError: a label is missing, or no number.
    """
    column = table.column(label)
    _refuse_missing(table, label, names=())
    numbers = pd.to_numeric(column.map(_as_number), errors="coerce")
    if (bad := numbers.isna()).any():
        value = _shown(column[bad].iloc[0])
        raise table.refusal(bad.idxmax(), f"{label} = {value} is not a number")
    positions = pd.Series(pd.NA, index=column.index, dtype="Int64")
    for position, (low, high) in enumerate(intervals):
        positions[numbers.between(low, high)] = position
    return positions


def named_positions(names: Sequence[str], tables: Sequence[Table], label: str) -> list[pd.Series]:
    """Positions of the labels in a column of several tables, which holds either names or positions in all of them.

    Whole numbers (1, 1.0, "1") may be both, and so may true and false, which are the positions 1 and 0. So the whole
    column decides: it holds names if all its values are names, positions if all are positions and not all are names.

    Raises:
        InputError: a label is missing, or is neither, or some are only names and others only positions.
    """
    for table in tables:
        _refuse_missing(table, label, names)
    parts = [_readings(names, table.column(label)).assign(table=number) for number, table in enumerate(tables)]
    readings = pd.concat(parts, ignore_index=True)
    if readings["name"].notna().all():
        chosen = "name"
    elif readings["position"].notna().all():
        chosen = "position"
    else:
        raise _neither(names, tables, readings)
    _say_what_is_ambiguous(names, tables, label, readings, chosen)
    return [part.set_index("row")[chosen].astype("int64") for part in parts]


def labels_without_examples(labels: Sequence[str], splits: Mapping[Split, pd.DataFrame]) -> Iterator[str]:
    """What there is to say about labels that have no example, a sentence for each set of splits without them."""
    without: dict[tuple[Split, ...], list[str]] = {}
    for position, label in enumerate(labels):
        empty = tuple(split for split, frame in splits.items() if not (frame["label"] == position).any())
        without.setdefault(empty, []).append(label)
    for empty, missing in without.items():
        if empty:
            where = "any split" if len(empty) == len(splits) else f"the {' and '.join(empty)} split"
            plural = "s" if len(missing) > 1 else ""
            yield f"no example of the label{plural} {_listed([repr(label) for label in missing])} in {where}"


def _readings(names: Sequence[str], column: pd.Series) -> pd.DataFrame:
    """By `row` of a column the `value`, and its position as a `name` and as a `position`, missing where it is none."""
    values = [value.item() if isinstance(value, np.generic) else value for value in column]
    of_name = {name: position for position, name in enumerate(names)}
    named = [next((of_name[text] for text in _spellings(value) if text in of_name), None) for value in values]
    placed = [whole if (whole := _whole(value)) is not None and whole < len(names) else None for value in values]
    columns = {
        "row": column.index,
        "value": pd.Series(values, dtype=object),
        "name": pd.Series(named, dtype="Int64"),
        "position": pd.Series(placed, dtype="Int64"),
    }
    return pd.DataFrame(columns)


def _spellings(value: object) -> list[str]:
    """The names that a value may be: what it is as a text, then other ways to write the same number or truth."""
    text = str(value)
    if text.lower() in BOOLEANS:
        return [text, text.lower(), text.capitalize()]
    return [text] if (whole := _whole(value)) is None else [text, str(whole)]


def _whole(value: object) -> int | None:
    """The whole number that a value is, from 0; true and false are 1 and 0."""
    if isinstance(value, str):
        found = WHOLE_NUMBER.fullmatch(value)
        return int(found[1]) if found else BOOLEANS.get(value.lower())
    if isinstance(value, (int, float, Decimal)) and 0 <= value < 10**18 and value == int(value):
        return int(value)
    return None


def _neither(names: Sequence[str], tables: Sequence[Table], readings: pd.DataFrame) -> InputError:
    """The error that a column holds neither names nor positions alone."""
    no_name, no_position = readings["name"].isna(), readings["position"].isna()
    both = readings[no_name & no_position]
    bad = readings[no_name].iloc[0] if both.empty else both.iloc[0]
    table, value = tables[bad["table"]], _shown(bad["value"])
    if not both.empty:
        hint = "" if _whole(bad["value"]) is None else f" (their positions are 0 to {len(names) - 1})"
        return table.refusal(bad["row"], f"the label {value} is not one of the task's: {_listed(names)}{hint}")
    named = readings[no_position].iloc[0]
    place = f"{tables[named['table']].file.name}, {tables[named['table']].place(named['row'])}"
    reason = (
        f"the label {value} is a position and no name, and {_shown(named['value'])} ({place}) a name and no position"
    )
    return table.refusal(bad["row"], f"{reason}; a column holds names or positions, never both")


def _say_what_is_ambiguous(
    names: Sequence[str], tables: Sequence[Table], label: str, readings: pd.DataFrame, chosen: str
) -> None:
    """Print how the labels are read, where they could be read otherwise."""
    other = readings["position" if chosen == "name" else "name"]
    truths = readings["value"].map(lambda value: str(value).lower() in BOOLEANS)
    if chosen == "name":
        ambiguous = other.notna().all() and (other != readings["name"]).any() and not truths.any()
    else:
        ambiguous = (other.notna() & (other != readings["position"])).any() or truths.any()
    if ambiguous:
        taken = dict(zip(readings["value"].map(_shown), readings[chosen], strict=True))
        meanings = [f"{value} is {names[position]!r}" for value, position in sorted(taken.items())]
        files = ", ".join(str(table.file) for table in tables)
        print(f"note: {files}: {label} holds {chosen}s: {_listed(meanings)}", file=sys.stderr)


def _refuse_missing(table: Table, label: str, names: Sequence[str]) -> None:
    missing = table.column(label).map(lambda value: _is_missing(value, names))
    if (flags := missing.astype(bool)).any():
        raise table.refusal(flags.idxmax(), f"has no {label} ({int(flags.sum())} such rows)")


def _is_missing(value: object, names: Sequence[str]) -> bool:
    if isinstance(value, str):
        return value == "" and "" not in names
    return value is None or (pd.api.types.is_scalar(value) and bool(pd.isna(value)))  # type: ignore[call-overload]


def _as_number(value: object) -> object:
    """What pandas can make a number of, or None."""
    if isinstance(value, Decimal):
        return float(value)
    return value if isinstance(value, (str, Number)) else None


def _shown(value: object) -> str:
    """A value as its file has it, as far as can be known: pandas makes 1.0 of whole numbers beside missing ones."""
    whole = _whole(value) if isinstance(value, float) else None
    return repr(str(value if whole is None else whole)[:80])


def _listed(items: Sequence[str]) -> str:
    more = f" and {len(items) - LISTED} more" if len(items) > LISTED else ""
    return ", ".join(items[:LISTED]) + more
