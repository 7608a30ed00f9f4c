"""Cells of a table: which are missing, which are numbers, and how they are shown."""

import math
import re
from collections.abc import Sequence
from decimal import Decimal
from numbers import Number

import numpy as np
import pandas as pd

from stages.tasks.table_files import Table

BOOLEANS = {"false": 0, "true": 1}  # in lower or upper case
WHOLE_NUMBER = re.compile(r"(0|[1-9][0-9]{0,17})(\.0+)?")
NUMBERS = (int, float, Decimal, np.integer, np.floating, np.bool_)  # truth included


def whole_number(value: object) -> int | None:
    """The whole number that a value is, from 0; true and false are 1 and 0."""
    if isinstance(value, str):
        found = WHOLE_NUMBER.fullmatch(value)
        return int(found[1]) if found else BOOLEANS.get(value.lower())
    if isinstance(value, NUMBERS) and 0 <= value < 10**18 and value == int(value):
        return int(value)
    return None


def refuse_missing(table: Table, label: str, names: Sequence[str]) -> None:
    """Refuse a column with missing cells; empty texts are missing unless one of the names is empty.

    Raises:
        InputError: with the first row, and how many there are.
    """

    def missing(part: Table) -> pd.Series:
        column = part.column(label)
        if "" in names:
            return column.isna()
        return column.isna() | np.array([isinstance(value, str) and not value for value in column.tolist()], dtype=bool)

    table.refuse(missing, f"has no {label}")


def numbers(table: Table, name: str) -> pd.Series:
    """A column's numbers, written as texts perhaps.

    Raises:
        InputError: there is no such column, or a cell is missing or no number.
    """
    column = table.column(name)
    refuse_missing(table, name, names=())
    found = pd.to_numeric(column.map(_as_number), errors="coerce")
    if (bad := found.isna()).any():
        raise table.refusal(bad.idxmax(), f"{name} = {shown(column[bad].iloc[0])} is not a number")
    return found


def _as_number(value: object) -> object:
    """What pandas can make a number of, or None."""
    if isinstance(value, Decimal):
        return float(value)
    return value if isinstance(value, (str, Number)) else None


def shown(value: object) -> str:
    """A value as its file has it, as far as can be known: pandas makes 1.0 of whole numbers beside missing ones."""
    whole = whole_number(value) if isinstance(value, float) else None
    return repr(str(value if whole is None else whole)[:80])


def spelled(value: object) -> str | None:
    """A label as a text, whole numbers without a point; None for no label."""
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, str) and not value:
        return None
    if isinstance(value, (float, Decimal, np.floating)) and float(value).is_integer():
        return str(int(value))
    return str(value)
