"""Columns as the library `datasets` has them, as a table's: labels by their names, images as the bytes of their files.

What a column is read as its feature says: `Value` as a Parquet file's column is read; `ClassLabel` as the label's name,
none where it is −1, by which a data set says that it does not know it; `Image` as a mapping with the bytes of the file;
lists and mappings of these as Python's. A column of any other feature cannot be asked for.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa

from stages.running.errors import DamagedError, InputError
from stages.storage.cards import read_json
from stages.storage.digests import CONTENTS, bytes_digest
from stages.tasks.arrow import ROWS_AT_ONCE
from stages.tasks.table_files import Table

if TYPE_CHECKING:
    from datasets import Dataset

UNKNOWN = -1  # of a ClassLabel: the example has none
INDEX = re.compile(r"__index_level_\d+__")  # what pandas calls an index without a name
IMAGES_INSIDE = "save the data set with the images in it, as `to_parquet` and `push_to_hub` do"


@dataclass(frozen=True)
class Surroundings:
    """Where the files lie that a data set refers to.

    Attributes:
        source: no file outside it is read.
        base: the directory from which relative paths lead.
        scratch: a directory of links into the source, and of what was unpacked there, if there is one.
    """

    source: Path
    base: Path
    scratch: Path | None = None

    def content(self, name: str) -> bytes:
        """The bytes of a file.

        Raises:
            _UnreadableError: it is not there, or lies elsewhere.
            DamagedError: it is not as it was fetched.
        """
        file = _absolute(self.base / name)
        within = self.scratch is not None and file.is_relative_to(self.scratch)
        if "://" in name or not (within or lies_in(file, self.source)):
            raise _UnreadableError(f"refers to {name!r}, which is not a file in the source; {IMAGES_INSIDE}")
        try:
            found = file.read_bytes()
        except OSError as error:
            raise _UnreadableError(f"refers to {name!r}: {error.strerror}; {IMAGES_INSIDE}") from None
        whole = _absolute(self.source)
        known = _digests(whole).get(file.relative_to(whole).as_posix()) if file.is_relative_to(whole) else None
        if known is not None and known != bytes_digest(found):
            raise DamagedError(f"{file}: its contents are not what {CONTENTS} says", self.source)
        return found


def lies_in(path: Path, source: Path) -> bool:
    """Whether a file or directory lies in a source, wherever links lead.

    What fetching has listed in contents.json lies there, even if DVC has made links of its files.
    """
    if path.resolve().is_relative_to(source.resolve()):
        return True
    whole, inner = _absolute(source), _absolute(path)
    return inner.is_relative_to(whole) and inner.relative_to(whole).as_posix() in _digests(whole)


def _absolute(path: Path) -> Path:
    """A path without `..`, wherever links would lead."""
    return Path(os.path.normpath(path.absolute()))


def _digests(source: Path) -> Mapping[str, str]:
    """The files in a source's list of contents, if it has one, and their digests."""
    card = source / CONTENTS
    return _listed(card, card.stat().st_mtime_ns) if card.is_file() else {}


@lru_cache(maxsize=4)
def _listed(card: Path, _changed: int) -> Mapping[str, str]:
    """The same, read once for as long as it does not change."""
    listed = read_json(card).get("files")
    return listed if isinstance(listed, dict) else {}


def tables_of(dataset: "Dataset", file: Path, surroundings: Surroundings) -> Iterator[Table]:
    """The rows of a data set of the library `datasets`, some at a time.

    Args:
        dataset: without a selection of rows.
        file: what messages call it.
        surroundings: of the files that its images may be in.

    Raises:
        InputError: its values are not what their types say.
    """
    rows: pa.Table = dataset.data.table
    for start in range(0, max(1, len(rows)), ROWS_AT_ONCE):
        yield checked_part(rows.slice(start, ROWS_AT_ONCE), start, dataset.features, file, surroundings)


def checked_part(
    rows: pa.Table, start: int, features: Mapping[str, Any], file: Path, surroundings: Surroundings
) -> Table:
    """Rows, of which the first is that of this number. Raises `InputError` if values are not what their types say."""
    try:
        rows.validate(full=True)  # that texts are UTF-8, for one
        return _table(rows, start, features, file, surroundings)
    except InputError:
        raise
    except Exception as error:  # whatever pyarrow makes of values that are none of Python's
        raise InputError(f"{file}: cannot be read as a data set: {' '.join(str(error).split())[:300]}") from None


def _table(rows: pa.Table, start: int, features: Mapping[str, Any], file: Path, surroundings: Surroundings) -> Table:
    from datasets import Value

    features = {name: feature for name, feature in features.items() if not INDEX.fullmatch(name)}
    plain = [name for name, feature in features.items() if isinstance(feature, Value)]
    frame = rows.select(plain).replace_schema_metadata(None).to_pandas()
    columns: dict[str, pd.Series] = {}
    refused: dict[str, str] = {}
    for name, feature in features.items():
        if name in plain:
            columns[name] = frame[name]
        elif (other := _unreadable(feature)) is not None:
            refused[name] = f"the column {name} is of the feature {other}, which is not read; use another column"
        else:
            try:
                values = _values(rows.column(name).to_pylist(), start, name, _conversion(feature, surroundings))
                columns[name] = pd.Series(values, dtype=object)
            except _UnreadableError as error:
                refused[name] = str(error)
    index = pd.RangeIndex(start, start + len(rows))
    found = pd.DataFrame({name: values.set_axis(index) for name, values in columns.items()}, index)
    return Table(found, file, place, refused=refused)


class _UnreadableError(ValueError):
    """A value cannot be read, and why."""


def place(row: int) -> str:
    """Where the row of an index is."""
    return f"row {row + 1}"


def _values(found: Sequence[Any], start: int, name: str, convert: Callable[[Any], Any]) -> list[Any]:
    """Values converted, the first that of this row. Raises `_UnreadableError`, with the row, where one cannot be."""
    values = []
    for row, value in enumerate(found, start):
        try:
            values.append(convert(value))
        except _UnreadableError as error:
            raise _UnreadableError(f"{place(row)}: {name} {error}") from None
    return values


def _unreadable(feature: Any) -> str | None:
    """The name of a feature that is not read, this one or one inside it; None if there is none."""
    from datasets import ClassLabel, Image, LargeList, List, Value

    if isinstance(feature, dict):
        return next((name for inner in feature.values() if (name := _unreadable(inner)) is not None), None)
    if isinstance(feature, (List, LargeList)):
        return _unreadable(feature.feature)
    return None if isinstance(feature, (ClassLabel, Image, Value)) else type(feature).__name__


def _conversion(feature: Any, surroundings: Surroundings) -> Callable[[Any], Any]:
    """What makes a table's values of those that Arrow has of a feature."""
    from datasets import ClassLabel, Image, LargeList, List

    if isinstance(feature, dict):
        inner = {key: _conversion(value, surroundings) for key, value in feature.items()}
        return _unless_missing(lambda found: {key: inner[key](value) for key, value in found.items()})
    if isinstance(feature, (List, LargeList)):
        each = _conversion(feature.feature, surroundings)
        return _unless_missing(lambda found: [each(value) for value in found])
    if isinstance(feature, ClassLabel):
        return _unless_missing(partial(_label, list(feature.names)))
    if isinstance(feature, Image):
        return _unless_missing(partial(_image, surroundings))
    return lambda found: found


def _unless_missing(convert: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda found: None if found is None else convert(found)


def _label(names: Sequence[str], position: int) -> str | None:
    if position == UNKNOWN:
        return None
    if not 0 <= position < len(names):
        raise _UnreadableError(f"is the label {position}, and the data set names 0 to {len(names) - 1}")
    return names[position]


def _image(surroundings: Surroundings, found: dict[str, Any]) -> dict[str, Any]:
    if found["bytes"] is None and found["path"] is not None:
        return {**found, "bytes": surroundings.content(found["path"])}
    return found
