"""Arrow files: what is written is read again, some at a time, and a column's values are Python's own."""

from hashlib import sha256
from pathlib import Path
from random import Random

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from datasets import Dataset

from stages.running.errors import InputError
from stages.tasks.arrow import ROWS_AT_ONCE, ArrowColumn, frame, frames, open_rows, write_rows
from stages.tasks.data import TaskData, encoding_fingerprint, examples_fingerprint
from stages.tasks.kinds.text_classification.settings import TextClassification
from tests.tasks.in_memory import write_task


def table(rows: int, start: int = 0) -> pd.DataFrame:
    numbers = range(start, start + rows)
    return pd.DataFrame(
        {
            "text": [f"text {row} «é»" for row in numbers],
            "pixels": pd.Series([bytes([row % 256, 0]) for row in numbers], dtype=object),
            "label": pd.Series([np.arange(row % 3) for row in numbers], dtype=object),
            "number": list(numbers),
        }
    )


@pytest.mark.parametrize("pieces", [[2500], [1, 999, 1500], [1000, 0, 1500]])
def test_rows_are_read_as_they_were_written(tmp_path: Path, pieces: list[int]) -> None:
    """In whatever pieces they were written; and their fingerprint is the same."""
    starts = np.cumsum([0, *pieces])
    write_rows(tmp_path / "t.arrow", (table(rows, start) for rows, start in zip(pieces, starts, strict=False)))
    rows = open_rows(tmp_path / "t.arrow")
    whole = table(2500)
    found = frame(rows)
    for column in ("text", "pixels", "number"):
        assert found[column].tolist() == whole[column].tolist()
    assert [own.tolist() for own in found["label"]] == [own.tolist() for own in whole["label"]]
    parts = list(frames(rows))
    assert [len(part) for part in parts] == [ROWS_AT_ONCE, ROWS_AT_ONCE, 500]
    assert pd.concat(parts)["number"].tolist() == pd.concat(parts).index.tolist() == list(range(2500))
    assert examples_fingerprint(rows) == examples_fingerprint(whole) == examples_fingerprint(found)
    write_rows(tmp_path / "picked.arrow", frames(rows.select(range(0, 2500, 2))))
    picked = open_rows(tmp_path / "picked.arrow")
    assert frame(picked)["number"].tolist() == list(range(0, 2500, 2))
    assert picked.data.column("number").num_chunks == 2, "rows that were picked are not a piece each"
    assert examples_fingerprint(rows.select([3, 1])) == examples_fingerprint(whole.iloc[[3, 1]])


def test_the_fingerprint_is_of_contents_in_their_order() -> None:
    """In JSON, a line a row, so that anybody can have it without this project."""
    rows = pd.DataFrame({"text": ["é", "b\n"], "label": [1, 0]})
    fingerprint = sha256('["text", "label"]\n["é", 1]\n["b\\n", 0]\n'.encode()).hexdigest()
    assert examples_fingerprint(rows) == fingerprint
    others = [
        rows[::-1],
        rows.rename(columns={"label": "labels"}),
        rows.assign(label=[1, 1]),
        rows.assign(label=["1", "0"]),
        rows[["label", "text"]],
        rows[:1],
    ]
    assert len({fingerprint, *map(examples_fingerprint, others)}) == 7
    assert encoding_fingerprint({"a": [[1, 2]], "b": [3]}) != encoding_fingerprint({"a": [[1], [2]], "b": [3, 3]})


def test_rows_of_other_types_are_refused(tmp_path: Path) -> None:
    with pytest.raises((pa.ArrowInvalid, pa.ArrowTypeError)):
        write_rows(tmp_path / "t.arrow", [table(1), table(1).assign(number=["x"])])


@pytest.mark.parametrize(
    "values",
    [
        [[1, 2], [], [-100]],
        [[0.1, 2.0], [], [1e300]],
        [[[1], [2, 3]], [], [[]]],
        [1, 2, 3],
        [0.5, 1.5, 0.1],
        [b"\0\1", b"", b"a"],
    ],
)
def test_a_column_is_a_sequence_of_python_values(tmp_path: Path, values: list[object]) -> None:
    """Of several chunks, and of one that begins inside its buffers."""
    dataset = Dataset.from_dict({"values": values})
    array = dataset.data.column("values").combine_chunks()
    for chunks in ([array], [array[:1], array[:0], array[1:]], [array[1:2]]):
        wanted = pa.chunked_array(chunks, array.type).to_pylist()
        column = ArrowColumn(pa.chunked_array(chunks, array.type))
        assert list(column) == [column[row] for row in range(len(column))] == column[:] == wanted
        assert len(column) == len(wanted)
        assert column[-1] == wanted[-1]
        assert column[np.int64(0)] == wanted[0]
        assert all(type(own) is type(value) for own, value in zip(column, wanted, strict=True))
        with pytest.raises(IndexError):
            column[len(wanted)]


def damaged(content: bytes, random: Random) -> bytes:
    """A file's content as a disk may have it: cut off, with zeros, or with one bit that is another."""
    found = bytearray(content)
    place = random.randrange(len(found))
    kind = random.randrange(3)
    if kind == 0:
        return bytes(found[:place])
    if kind == 1:
        found[place : place + 512] = bytes(len(found[place : place + 512]))
    else:
        found[place] ^= 1 << random.randrange(8)
    return bytes(found)


def test_damaged_rows_are_refused(tmp_path: Path) -> None:
    """None is read as something else, and none ends the process, as Arrow's own conversions may."""
    splits = {split: table(40, start) for split, start in (("train", 0), ("validation", 40), ("test", 80))}
    task = TextClassification.model_validate({"source": "s", "file": "t.csv", "labels": ["a", "b"]})
    labelled = {split: rows[["text"]].assign(label=rows["number"] % 2) for split, rows in splits.items()}
    write_task(tmp_path, task, labelled, {})  # type: ignore[arg-type]
    file, data = tmp_path / "test.arrow", TaskData.open(tmp_path)
    whole = file.read_bytes()
    wanted = data.read("test")
    said = []
    for seed in range(150):
        content = damaged(whole, Random(seed))
        file.unlink()  # a table that is memory-mapped would change with it
        file.write_bytes(content)
        try:
            assert data.read("test").equals(wanted), "only what is no content may be another"
        except InputError as error:
            said.append(str(error))
    assert len(said) > 100
    assert all("test.arrow: " in line and "\n" not in line for line in said)
