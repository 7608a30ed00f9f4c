"""Tables as files have them: every form, in every guise that it comes in, and where its rows are."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.running.errors import InputError
from stages.tasks.table_files import Table
from tests.tasks.in_memory import read_table

ROWS = [("a, b", "bad"), ('say "é"', "good"), ("c", "bad")]
ORANGE = "text\tlabel\nstring\tdiscrete\nmeta\tclass\n"


def lines(*rows: str) -> bytes:
    return "".join(f"{row}\n" for row in rows).encode()


def separated(separator: str, head: str = "") -> bytes:
    table = pd.DataFrame(ROWS, columns=["text", "label"])
    if separator == "\t" and not head:  # where quotes are ordinary characters
        return lines("text\tlabel", *("\t".join(row) for row in ROWS))
    return (head + table.to_csv(index=False, sep=separator, header=not head)).encode()


def objects() -> list[str]:
    return [json.dumps({"text": text, "label": label}, ensure_ascii=False) for text, label in ROWS]


CONTENTS: dict[str, bytes] = {
    ".csv": separated(","),
    ".tsv": separated("\t"),
    ".txt": separated("\t"),
    ".tab": separated("\t", ORANGE),
    ".jsonl": lines(*objects()),
    ".json": f"[{','.join(objects())}]".encode(),
}


def written(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def rows_of(table: Table) -> list[tuple[Any, ...]]:
    return list(zip(table.column("text"), table.column("label"), strict=True))


GUISES: dict[str, Callable[[bytes], bytes]] = {
    "as it is": lambda content: content,
    "with a byte order mark": lambda content: b"\xef\xbb\xbf" + content,
    "with Windows' line ends": lambda content: content.replace(b"\n", b"\r\n"),
    "without a last line end": lambda content: content.rstrip(b"\n"),
}


@pytest.mark.parametrize("rows", [900, 2500])
def test_a_named_range_is_a_column_whatever_its_length(tmp_path: Path, rows: int) -> None:
    index = pd.RangeIndex(10, 10 + 2 * rows, 2, name="id")
    pd.DataFrame({"text": [f"t{row}" for row in range(rows)]}, index=index).to_parquet(tmp_path / "t.parquet")
    found = read_table(tmp_path / "t.parquet", None).rows
    assert list(found) == ["id", "text"]
    assert found["id"].tolist() == list(index)


@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "compressed"])
@pytest.mark.parametrize("guise", GUISES)
@pytest.mark.parametrize("ending", CONTENTS)
def test_every_form_in_every_guise(tmp_path: Path, ending: str, guise: str, compressed: bool) -> None:
    content = GUISES[guise](CONTENTS[ending])
    for name in (f"t{ending}", f"T.x{ending.upper()}"):
        if compressed:
            name, content = (
                name + (".GZ" if name.isupper() else ".gz"),
                gzip.compress(GUISES[guise](CONTENTS[ending]), mtime=0),
            )
        assert rows_of(read_table(written(tmp_path, name, content), None)) == ROWS


@pytest.mark.parametrize("name", ["t.parquet", "T.PARQUET", "t.v1.Parquet"])
def test_parquet(tmp_path: Path, name: str) -> None:
    pd.DataFrame(ROWS, columns=["text", "label"]).to_parquet(tmp_path / name)
    assert rows_of(read_table(tmp_path / name, None)) == ROWS


@pytest.mark.parametrize(
    "name",
    [
        "t.xlsx",
        "t.XLS",
        "t.ods",
        "t.feather",
        "t.pkl",
        "t",
        "t.csv.zip",
        "t.csv.bz2",
        "t.parquet.gz",
        "t.gz",
        ".csv",
    ],
)
def test_other_endings_are_refused_by_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"not a table that can be read, by its name: \.csv, \.tsv, .*\.parquet$"):
        read_table(written(tmp_path, name, CONTENTS[".tsv"]), None)


def test_quoted_cells_with_line_ends(tmp_path: Path) -> None:
    content = b'text,label\r\n"a\r\nb, ""c""",bad\r\n\r\n"d\n",good\r\n'
    table = read_table(written(tmp_path, "t.csv", content), None)
    assert rows_of(table) == [('a\r\nb, "c"', "bad"), ("d\n", "good")]
    assert [table.place(row) for row in table.rows.index] == ["line 2", "line 5"]


@pytest.mark.parametrize(
    ("name", "content", "places"),
    [
        ("t.csv", b"text,label\na,x\n\n  \nb,x\n", ["line 2", "line 5"]),
        ("t.csv", b"\n\ntext,label\na,x\n", ["line 4"]),
        ("t.tsv", b'text\tlabel\n"a\tx\nb"\tx\n', ["line 2", "line 3"]),
        ("t.csv", lines("text,label", "x" * 200_000 + ",x", "b,x"), ["line 2", "line 3"]),
        ("t.tab", ORANGE.encode() + b"a\tx\n\t\nb\tx\n", ["line 4", "line 6"]),
        ("t.jsonl", b'{"text": "a"}\n\n \r\n{"text": "b"}\n', ["line 1", "line 4"]),
        ("t.json", b'\n[{"text": "a"},\n\n{"text": "b"}]\n', ["entry 1", "entry 2"]),
    ],
)
@pytest.mark.parametrize("compressed", [False, True])
def test_where_rows_are(tmp_path: Path, name: str, content: bytes, places: list[str], compressed: bool) -> None:
    if compressed:
        name, content = f"{name}.gz", gzip.compress(content, mtime=0)
    table = read_table(written(tmp_path, name, content), None)
    assert [table.place(row) for row in table.rows.index] == places


def test_where_rows_without_a_header_are(tmp_path: Path) -> None:
    table = read_table(written(tmp_path, "t.txt", b"a\tx\n\nb\tx\n"), ["text", "label"])
    assert [table.place(row) for row in table.rows.index] == ["line 1", "line 3"]


def test_rows_of_parquet_are_the_file_s_whatever_index_pandas_has_saved(tmp_path: Path) -> None:
    table = pd.DataFrame({"text": ["a", "b", "c"], "label": ["x", "y", "z"]}, index=[7, 7, 0])
    table.to_parquet(tmp_path / "a.parquet")
    table.set_index("text").to_parquet(tmp_path / "b.parquet")
    table.set_index(["label", "text"]).to_parquet(tmp_path / "c.parquet")
    for name in ("a", "b", "c"):
        found = read_table(tmp_path / f"{name}.parquet", None)
        assert rows_of(found) == [("a", "x"), ("b", "y"), ("c", "z")]
        assert [found.place(row) for row in found.rows.index] == ["row 1", "row 2", "row 3"]


def test_columns_of_categories_are_their_values(tmp_path: Path) -> None:
    texts = pa.array(["a", None, "a"]).dictionary_encode()
    pq.write_table(
        pa.table({"text": texts, "label": pa.array([1, 0, None]).dictionary_encode()}), tmp_path / "t.parquet"
    )
    found = read_table(tmp_path / "t.parquet", None)
    assert [isinstance(text, str) for text in found.column("text")] == [True, False, True]
    assert found.column("label").isna().tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("name", "content", "names", "message"),
    [
        (
            "t.txt",
            b"text,label\na,x\n",
            None,
            "has no column 'text'; its columns: text,label; cells of a .txt file are separated by tabs",
        ),
        ("t.csv", b"text;label\na;x\n", None, "its columns: text;label; cells of a .csv file are separated by commas"),
        (
            "t.csv.gz",
            gzip.compress(b"text\tlabel\na\tx\n", mtime=0),
            None,
            "cells of a .csv file are separated by commas",
        ),
        (
            "t.txt",
            b"a,x\n",
            ["text", "label"],
            "its first line is one cell, and `columns` names 2; cells of a .txt file",
        ),
        ("t.csv", b"text,label,text\na,x,b\n", None, "has more than one column 'text'; rename all but one of them"),
        ("t.csv", b"text,label\na\n\xe9,x\n", None, "line 3 is not UTF-8 text; save the file as UTF-8"),
        (
            "t.csv",
            b"text,label\n" + 40_000 * b"a,x\n" + b"\xff,x\n" + 9000 * b"b,x\n",
            None,
            "line 40002 is not UTF-8 text",
        ),
        ("t.csv", "text,label\na,x\n".encode("utf-16"), None, "line 1 is not UTF-8 text"),
        ("t.csv", "text,label\na,x\n".encode("utf-16-le"), None, "has no column 'text'; its columns: "),
        ("t.jsonl.gz", gzip.compress(b'{"text": "a"}\n{"text": "\xe9"}\n', mtime=0), None, "line 2 is not UTF-8 text"),
        ("t.json", b"", None, "has no column 'text'"),
        ("t.json", b"[]", None, "has no column 'text'"),
        ("t.json", b'[{"text": "a"}, 1]', None, "entry 2 is no JSON object"),
        ("t.json", b'[{"text": "a"}', None, "the array is not valid JSON"),
        (
            "t.json",
            b'{\n "text": ["a"]\n}',
            None,
            "line 1 is not valid JSON .*; a table is an object a line, or an array of objects",
        ),
        (
            "t.jsonl",
            b'{"text": "a"}\n{"text": "b", "text": "c"}\n',
            None,
            r"line 2 is not valid JSON \(the key 'text' twice\)",
        ),
        ("t.json", b'[{"text": "a"}, {"text": ["\\ud83d", 1]}]', None, "entry 2: has half of a surrogate pair"),
        ("t.jsonl", b'{"text": "\\uDE00"}\n', None, "line 1: has half of a surrogate pair"),
        (
            "t.tab.gz",
            gzip.compress(b"text\tlabel\na\tx\nb\ty\n", mtime=0),
            None,
            "its second row does not name Orange's types",
        ),
    ],
)
def test_tables_that_are_refused(
    tmp_path: Path, name: str, content: bytes, names: list[str] | None, message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        rows_of(read_table(written(tmp_path, name, content), names))
    assert str(caught.value).isprintable()


def test_whole_surrogate_pairs_and_zero_bytes_are_characters(tmp_path: Path) -> None:
    content = b'{"text": "\\ud83d\\ude00", "label": "\\u0000"}\n'
    assert rows_of(read_table(written(tmp_path, "t.jsonl", content), None)) == [("\U0001f600", "\0")]
    assert rows_of(read_table(written(tmp_path, "t.csv", b"text,label\na\0b,x\n"), None)) == [("a\0b", "x")]


def test_parquet_files_with_one_name_twice_or_broken_text(tmp_path: Path) -> None:
    twice = pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    broken = pa.table(
        {
            "text": pa.Array.from_buffers(
                pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")]
            )
        }
    )
    for table in (twice, broken):
        pq.write_table(table, tmp_path / "t.parquet")
        with pytest.raises(InputError, match=r"t\.parquet: "):
            read_table(tmp_path / "t.parquet", None).column("text").tolist()


def test_prose_with_commas_is_one_column(tmp_path: Path) -> None:
    assert read_table(written(tmp_path, "t.txt", b"one, two\nthree\n"), ["text"]).column("text").tolist() == [
        "one, two",
        "three",
    ]


def test_columns_that_nobody_asks_for_may_have_one_name(tmp_path: Path) -> None:
    assert rows_of(read_table(written(tmp_path, "t.csv", b"text,x,x,label\na,1,2,b\n"), None)) == [("a", "b")]
