"""Arrow files: rows that are memory-mapped, so that many of them take no memory, and what is read of them at a time."""

import sys
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa

from stages.running.scratch import scratch_directory

if TYPE_CHECKING:  # its import takes a third of a second
    from datasets import Dataset

ROWS_AT_ONCE = 1000


def write_rows(file: Path, frames: Iterable[pd.DataFrame]) -> None:
    """Write the rows of tables, one after the other, as an Arrow stream, which `datasets` reads too.

    Args:
        file: where.
        frames: at least one; all have the columns and types of the first that has rows.
    """
    following = iter(frames)
    for first in following:
        if len(first):  # without rows, a column of texts may be of anything
            break
    table = pa.Table.from_pandas(first, preserve_index=False)
    schema = table.schema.remove_metadata()
    partial = file.with_name(f".{file.name}.partial")
    with pa.OSFile(str(partial), "wb") as stream, pa.ipc.new_stream(stream, schema) as writer:
        writer.write_table(table.cast(schema).combine_chunks(), max_chunksize=ROWS_AT_ONCE)
        for frame in following:
            if len(frame):
                rows = pa.Table.from_pandas(frame, schema, preserve_index=False)
                # Rows that were picked one by one are a piece each, and so they would be in the file.
                writer.write_table(rows.combine_chunks(), max_chunksize=ROWS_AT_ONCE)
    partial.replace(file)  # whoever has the old rows in memory-mapped tables keeps them


def temporary_rows(frames: Iterable[pd.DataFrame]) -> "Dataset":
    """The rows of tables, memory-mapped from a file in the directory for temporary files (TMPDIR).

    The file has no name any more when this returns, and goes with the process.
    """
    with scratch_directory() as folder:
        file = folder / "rows.arrow"
        write_rows(file, frames)
        return open_rows(file)


def open_rows(file: Path) -> "Dataset":
    """The rows of an Arrow file, memory-mapped. Raises one of pyarrow's errors if it cannot be read."""
    from datasets import Dataset

    rows = Dataset.from_file(str(file))
    rows.data.table.validate(full=True)  # to convert what is damaged may end the process
    return rows


def frames(rows: "Dataset") -> Iterator[pd.DataFrame]:
    """The rows, some at a time; the index of each table counts through all of them."""
    start = 0
    for found in rows.with_format("pandas").iter(ROWS_AT_ONCE):
        assert isinstance(found, pd.DataFrame)
        yield found.set_axis(pd.RangeIndex(start, start + len(found)))
        start += len(found)


def frame(rows: "Dataset") -> pd.DataFrame:
    """All rows as one table.

    It is put together of pieces: of rows that were picked, `Dataset.to_pandas` makes a table each, of millions perhaps.
    """
    if len(rows):
        return pd.concat(frames(rows))
    found = rows.to_pandas()
    assert isinstance(found, pd.DataFrame)
    return found


@contextmanager
def progress_bars(shown: bool) -> Iterator[None]:
    """Inside this context, `datasets` shows bars if asked to and if somebody looks."""
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    before = are_progress_bars_disabled()
    (enable_progress_bars if shown and sys.stderr.isatty() else disable_progress_bars)()
    try:
        yield
    finally:
        (disable_progress_bars if before else enable_progress_bars)()


class ArrowColumn(Sequence[Any]):
    """A memory-mapped column, whose values are made when they are asked for: numbers, bytes, or lists of them.

    Args:
        column: of an Arrow table.
    """

    def __init__(self, column: pa.ChunkedArray) -> None:
        self._chunks = [_Chunk(chunk) for chunk in column.chunks]
        self._starts = list(accumulate(map(len, column.chunks), initial=0))

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return [self[each] for each in range(*row.indices(len(self)))]
        place = row + len(self) if row < 0 else row
        if not 0 <= place < len(self):
            raise IndexError(row)
        chunk = bisect_right(self._starts, place) - 1
        return self._chunks[chunk][place - self._starts[chunk]]

    def __iter__(self) -> Iterator[Any]:
        for chunk in self._chunks:
            yield from (chunk[place] for place in range(len(chunk)))


class _Chunk:
    """A piece of a column. Lists of numbers are cut from their values, ten times as fast as by Arrow's own way."""

    def __init__(self, array: pa.Array) -> None:
        self._array = array
        self._values: np.ndarray | None = None
        if pa.types.is_list(array.type) and _is_number(array.type.value_type):
            self._offsets = array.offsets.to_numpy()
            self._values = array.values.to_numpy(zero_copy_only=False)

    def __len__(self) -> int:
        return len(self._array)

    def __getitem__(self, place: int) -> Any:
        if self._values is None:
            return self._array[place].as_py()
        return self._values[self._offsets[place] : self._offsets[place + 1]].tolist()


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)
