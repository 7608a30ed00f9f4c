"""Tables as files have them, some rows at a time, and where in the file each row is."""

import csv
import dataclasses
import gzip
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal, TypeVar, cast

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from stages.running.errors import InputError
from stages.tasks.arrow import ROWS_AT_ONCE

RowT = TypeVar("RowT")

COMPRESSED = ".gz"
# What separates cells, and how they are quoted: in plain tab-separated files, quotes are ordinary characters.
SEPARATED: dict[str, tuple[str, Literal[0, 3]]] = {
    ".csv": (",", csv.QUOTE_MINIMAL),
    ".tsv": ("\t", csv.QUOTE_NONE),
    ".txt": ("\t", csv.QUOTE_NONE),
    ".tab": ("\t", csv.QUOTE_MINIMAL),
}
JSON = (".jsonl", ".json")
PARQUET = ".parquet"
ARROW = ".arrow"
ORANGE = ".tab"
ORANGE_TYPES = {"c", "continuous", "d", "discrete", "s", "string", "t", "time"}
LONGEST_CELL = 2**31 - 1  # in characters


@dataclass(frozen=True)
class Table:
    """A file's rows, or some of them.

    Attributes:
        rows: the rows; their index is unique in the file, and says where they are.
        file: the file, or the directory, or what messages call a split that is neither.
        place: of a row's index, where it is in the file: "line 3" of a text, "row 3" of a Parquet file.
        doubled: names that more than one column has.
        refused: columns that cannot be read, and why.
        whole: all parts of the file, if this is one of several.
    """

    rows: pd.DataFrame
    file: Path
    place: Callable[[Any], str]
    doubled: frozenset[str] = frozenset()
    refused: Mapping[str, str] = dataclasses.field(default_factory=dict)
    whole: "TableFile | None" = None

    def column(self, name: str) -> pd.Series:
        """The column of that name. Raises `InputError` unless there is exactly one, which can be read."""
        if name in self.refused:
            raise InputError(f"{self.file}: {self.refused[name]}")
        if name in self.doubled:
            raise InputError(f"{self.file}: has more than one column {name!r}; rename all but one of them")
        if name not in self.rows.columns:
            names = [str(column) for column in self.rows.columns]
            message = f"{self.file}: has no column {name!r}; its columns: {', '.join(names)}"
            if _form(self.file) in SEPARATED and any(name in re.split(r"[,;|\t]", column) for column in names):
                message += f"; {_separation(self.file)}"
            raise InputError(message)
        return self.rows[name]

    def refusal(self, row: Hashable, reason: str) -> InputError:
        """The error that the row of this index cannot be used."""
        return InputError(f"{self.file}: {self.place(row)}: {reason}")

    def refuse(self, bad: "Callable[[Table], pd.Series]", reason: str, remedy: str = "") -> None:
        """Refuse a table in which some rows are bad.

        Args:
            bad: whether each row of a table is.
            reason: what is wrong; after it, the message says how many such rows the file has.
            remedy: the message's end.

        Raises:
            InputError: there are such rows; it has the place of the first one.
        """
        found = bad(self).astype(bool)
        if found.any():
            parts = [self] if self.whole is None else self.whole.parts()
            number = sum(int(bad(part).astype(bool).sum()) for part in parts)
            raise self.refusal(found.idxmax(), f"{reason} ({number} such rows){remedy}")


@dataclass(frozen=True)
class TableFile:
    """A file's rows, some at a time, so that a file may have any number of them.

    Attributes:
        file: the file, or the directory, or what messages call a split that is neither.
        read: reads it, from its beginning; there is one part at least.
    """

    file: Path
    read: Callable[[], Iterator[Table]]

    def parts(self) -> Iterator[Table]:
        """The rows, some at a time. Raises `InputError` where the file is not what its name says."""
        for part in self.read():
            yield replace(part, whole=self)

    def table(self) -> Table:
        """All rows, in memory."""
        first, *others = self.parts()
        if not others:
            return first
        return replace(first, rows=pd.concat([first.rows, *(other.rows for other in others)]))


def open_table(file: Path, names: list[str] | None, field: str | None = None, source: Path | None = None) -> TableFile:
    """A table in whatever form the file's name says that it has, in upper or lower case.

    Args:
        file: separated text (.csv, .tsv, .txt, Orange's .tab) or JSON (an object a line, or an array of objects), which
            may be compressed (.gz); .parquet or .arrow; or a directory that `datasets` reads (`dataset_files`).
        names: of the columns, where separated text has no header.
        field: the key of the array of rows, in JSON that is one object.
        source: the directory that all must lie in which an .arrow or directory refers to; by default its own.

    Raises:
        InputError: there is no such file, or its name has no ending that is known. That it is not what its name says is
            found where it is read.
    """
    from stages.tasks.dataset_files import arrow_parts, directory_parts

    if file.is_dir():
        return TableFile(file, lambda: directory_parts(file, source or file))
    _refuse_missing(file)
    form = _form(file)
    if form == ARROW:
        return TableFile(file, lambda: arrow_parts(file, source or file.parent))
    if form == PARQUET:
        return TableFile(file, lambda: _readable(_read_parquet(file, source or file.parent), file))
    if form in JSON:
        return TableFile(file, lambda: _readable(_read_json(file, field), file))
    if form in SEPARATED:
        return TableFile(file, lambda: _readable(_read_separated(file, names), file))
    texts = ", ".join([*SEPARATED, *JSON])
    raise InputError(
        f"{file}: not a table that can be read, by its name: {texts} (each also with {COMPRESSED}), {ARROW}, {PARQUET}"
    )


def _readable(parts: Iterator[Table], file: Path) -> Iterator[Table]:
    """The parts of a table. Raises `InputError` whatever is wrong with the file."""
    try:
        yield from parts
    except UnicodeDecodeError:
        raise _not_text(file) from None
    except InputError:
        raise
    except Exception as error:  # whatever pandas' and pyarrow's readers make of what is no table
        raise InputError(f"{file}: cannot be read as a table: {' '.join(str(error).split())}") from None


def open_lines(file: Path) -> TableFile:
    """The lines of a plain text, which may be compressed (.gz), as the column `text`, but for those of white space.

    Raises:
        InputError: there is no such file; or, where it is read, it is not UTF-8 text.
    """
    _refuse_missing(file)
    return TableFile(file, lambda: _read_lines(file))


def _read_lines(file: Path) -> Iterator[Table]:
    for found in in_parts((number, line) for number, line in text_lines(file) if line.strip()):
        numbers = pd.Index([number for number, _ in found], dtype="int64")
        texts = pd.Series([line for _, line in found], numbers, dtype=str)
        yield Table(texts.to_frame("text"), file, lambda row: f"line {row}")


def in_parts(rows: Iterable[RowT]) -> Iterator[list[RowT]]:
    """The rows, some at a time; where there are none, one part without any, which has the table's columns."""
    following = iter(rows)
    found = list(islice(following, ROWS_AT_ONCE))
    yield found
    while found := list(islice(following, ROWS_AT_ONCE)):
        yield found


def text_lines(file: Path) -> Iterator[tuple[int, str]]:
    """The lines of a plain text, which may be compressed (.gz), with their numbers from 1.

    Raises:
        InputError: there is no such file, or it is not UTF-8 text.
    """
    _refuse_missing(file)
    try:
        with _opened(file) as stream, io.TextIOWrapper(stream, encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                yield number, line.rstrip("\n")
    except UnicodeDecodeError:
        raise _not_text(file) from None
    except (OSError, EOFError, zlib.error) as error:  # of what is not compressed as its name says
        raise InputError(f"{file}: cannot be read as a text: {' '.join(str(error).split())}") from None


def _refuse_missing(file: Path) -> None:
    if not file.is_file():
        beside = sorted(path.name for path in file.parent.glob("*")) if file.parent.is_dir() else []
        raise InputError(f"{file}: no such file in the source; it has: {', '.join(beside) or 'nothing'}")


def _not_text(file: Path) -> InputError:
    return InputError(f"{file}: line {_undecodable_line(file)} is not UTF-8 text; save the file as UTF-8")


def _form(file: Path) -> str:
    """The ending that says what a file is: the last one, but for compression."""
    ending = file.suffix.lower()
    if ending != COMPRESSED:
        return ending
    inner = Path(file.stem).suffix.lower()
    return inner if inner not in (PARQUET, ARROW) else ending  # which are compressed inside


def _opened(file: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(file)) if file.suffix.lower() == COMPRESSED else file.open("rb")


def _undecodable_line(file: Path) -> int:
    """The number of the first line that is not UTF-8 text."""
    with _opened(file) as lines:
        for number, line in enumerate(lines, start=1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    raise AssertionError(f"{file} is UTF-8 text")


def _separation(file: Path) -> str:
    form = _form(file)
    return f"cells of a {form} file are separated by {'commas' if SEPARATED[form][0] == ',' else 'tabs'}"


def _read_separated(file: Path, names: list[str] | None) -> Iterator[Table]:
    separator, quoting = SEPARATED[_form(file)]
    orange = _form(file) == ORANGE
    first = next((cells for _, cells in _records(file)), [])
    headless = names is not None and not orange
    if headless and len(first) == 1 < len(names or []):
        raise InputError(
            f"{file}: its first line is one cell, and `columns` names {len(names or [])}; {_separation(file)}"
        )
    place = partial(_line, file, 0 if headless else 1)
    doubled = [name for name, times in Counter(first).items() if times > 1] if names is None else []
    # Every cell stays the text that it is.
    with pd.read_csv(
        file,
        sep=separator,
        quoting=quoting,
        header=None if headless else 0,
        names=names,
        dtype=str,
        keep_default_na=False,
        skip_blank_lines=not orange,  # one may be Orange's row of flags
        encoding="utf-8",
        compression="gzip" if file.suffix.lower() == COMPRESSED else None,
        chunksize=ROWS_AT_ONCE,
    ) as parts:
        for number, rows in enumerate(parts):
            if not isinstance(rows.index, pd.RangeIndex):  # pandas takes the first cells for names of the rows
                columns = len(rows.columns)
                raise InputError(f"{file}: its rows have more cells than the {columns} columns that have a name")
            if orange:
                rows = _orange_rows(rows.fillna(""), file, begins=number == 0)
            yield Table(rows, file, place, frozenset(doubled))


def _records(file: Path) -> Iterator[tuple[int, list[str]]]:
    """Of separated text, the rows' cells and the lines that they begin in, as pandas counts them."""
    form = _form(file)
    separator, quoting = SEPARATED[form]
    csv.field_size_limit(LONGEST_CELL)
    with _opened(file) as stream, io.TextIOWrapper(stream, encoding="utf-8-sig") as lines:
        reader = csv.reader(lines, delimiter=separator, quoting=quoting)
        begin = 1
        for cells in reader:
            if form == ORANGE or len(cells) > 1 or "".join(cells).strip(" \t"):
                yield begin, cells
            begin = reader.line_num + 1


def _line(file: Path, headers: int, row: int) -> str:
    """The line in which a row begins, below so many rows of names."""
    try:
        lines = (line for line, _ in _records(file))
        return f"line {next(islice(lines, row + headers, None))}"
    except (csv.Error, StopIteration):
        return f"row {row + 1}"


def _orange_rows(rows: pd.DataFrame, file: Path, *, begins: bool) -> pd.DataFrame:
    """The rows, but for those of empty cells and, where the table begins, those of types and flags."""
    if begins:
        if len(rows) < 2 or not ORANGE_TYPES & set(rows.iloc[0]):
            raise InputError(f"{file}: its second row does not name Orange's types ({', '.join(sorted(ORANGE_TYPES))})")
        rows = rows[2:]
    return rows[(rows != "").any(axis=1)]


def _read_json(file: Path, field: str | None) -> Iterator[Table]:
    """A table with an object a line, where lines of nothing but white space do not count; or an array of objects."""
    if field is not None:
        rows: Iterable[tuple[int, Any]] = enumerate(_rows_in(_content(file), file, field), start=1)
        yield from _objects(rows, file, f"{field}, entry", None)
    elif _begin(file) == "[":
        rows = enumerate(_parsed(_content(file), file, "the array"), start=1)
        yield from _objects(rows, file, "entry", None)
    else:
        keys: dict[str, None] = {}
        for _, row in _json_lines(file):
            if isinstance(row, dict):
                keys.update(dict.fromkeys(row))
        yield from _objects(_json_lines(file), file, "line", list(keys))


def _objects(rows: Iterable[tuple[int, Any]], file: Path, unit: str, keys: list[str] | None) -> Iterator[Table]:
    """The rows, numbered objects: some at a time with a column for each of the keys, or all with what they have."""
    for found in [list(rows)] if keys is None else in_parts(rows):
        for number, row in found:
            if not isinstance(row, dict):
                raise InputError(f"{file}: {unit} {number} is no JSON object")
        _refuse_halves(file, unit, found)
        numbers = [number for number, _ in found]
        table = pd.DataFrame([row for _, row in found], pd.Index(numbers, dtype="int64"), columns=keys)
        yield Table(table, file, lambda row: f"{unit} {row}")


def _json_lines(file: Path) -> Iterator[tuple[int, Any]]:
    with _text(file) as text:
        for number, line in enumerate(text, start=1):
            if line.strip():
                yield number, _parsed(line, file, f"line {number}")


def _text(file: Path) -> io.TextIOWrapper:
    return io.TextIOWrapper(_opened(file), encoding="utf-8-sig")


def _begin(file: Path) -> str:
    """The first character of a text that is no white space."""
    with _text(file) as text:
        return next((line.lstrip()[0] for line in text if line.strip()), "")


def _content(file: Path) -> str:
    with _text(file) as text:
        return text.read()


def _rows_in(content: str, file: Path, field: str) -> list[Any]:
    """The array of rows under a key of the one object that a file is."""
    found = _parsed(content, file, "the file")
    if not isinstance(found, dict) or not isinstance(rows := found.get(field), list):
        raise InputError(f"{file}: is no JSON object with an array under {field!r}; change `field`, or leave it out")
    return rows


def _parsed(content: str, file: Path, place: str) -> Any:
    try:
        return json.loads(content, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        wanted = "a table is an object a line, or an array of objects"
        raise InputError(f"{file}: {place} is not valid JSON ({reason}); {wanted}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) < len(pairs):
        key = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        raise ValueError(f"the key {key!r} twice")
    return found


def _refuse_halves(file: Path, unit: str, found: Sequence[tuple[int, Any]]) -> None:
    """Refuse halves of surrogate pairs, which JSON can escape, and no text has."""
    if _has_halves(found):
        number = next(number for number, row in found if _has_halves(row))
        raise InputError(f"{file}: {unit} {number}: has half of a surrogate pair, which is no character")


def _has_halves(content: Any) -> bool:
    try:
        json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def _read_parquet(file: Path, source: Path) -> Iterator[Table]:
    from stages.tasks.dataset_files import FEATURES, described_parts

    with pq.ParquetFile(file) as content:
        schema = content.schema_arrow
        batches = (pa.Table.from_batches([batch]) for batch in content.iter_batches(ROWS_AT_ONCE))
        tables = batches if content.metadata.num_rows else iter([schema.empty_table()])
        if FEATURES in (schema.metadata or {}):
            yield from described_parts(tables, schema, file, source)
            return
        start = 0
        for table in tables:
            rows = _with_ranges(_python_values(table.to_pandas()), start, schema)
            yield Table(rows.set_axis(pd.RangeIndex(start, start + len(rows))), file, lambda row: f"row {row + 1}")
            start += len(rows)


def _with_ranges(rows: pd.DataFrame, start: int, schema: pa.Schema) -> pd.DataFrame:
    """The rows, the first of which has this number, with each named range that pandas had as their index."""
    for index in (schema.pandas_metadata or {}).get("index_columns", []):
        if isinstance(index, dict) and index.get("name") is not None and index["name"] not in rows:
            own = range(start, start + len(rows))
            rows.insert(0, index["name"], [index["start"] + index["step"] * row for row in own])
    return rows


def _python_values(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows, with what was their index as columns."""
    named = [name for name in rows.index.names if name is not None]
    rows = rows.reset_index(named).reset_index(drop=True) if named else rows.reset_index(drop=True)
    for name, kind in rows.dtypes.items():
        if isinstance(kind, pd.CategoricalDtype):  # a way to store values, whose missing ones `map` passes over
            rows[name] = rows[name].astype(object)
        elif isinstance(kind, pd.StringDtype):
            pa.array(rows[name]).validate(full=True)  # nothing has looked yet whether it is UTF-8
    return rows
