"""Bad task tables: right examples in three splits, or one line that says what is wrong."""

import copy
import gzip
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pydantic import ValidationError

from stages.running.errors import InputError
from stages.tasks.data import TaskData
from stages.tasks.kinds.text_classification.settings import TextClassification
from stages.tasks.task import SPLITS, Task
from stages.tasks.text_columns import TextColumns
from tests.fuzz.cases import Random, choice, refused
from tests.fuzz.conftest import Runner
from tests.fuzz.mutations import bytes_scattered
from tests.tasks.in_memory import split_examples, write_task
from tests.tiny import sentiment_table
from tests.workshop import task_of

SEEDS = 40
TABLE = sentiment_table(60, 0)
VALUES: list[Any] = [
    *(
        None,
        True,
        0,
        1,
        2,
        -1,
        0.5,
        float("nan"),
        float("inf"),
        10**30,
        "",
        " ",
        "x",
        "bad",
        "good",
        "BAD",
        "bad ",
        "é",
    ),
    *(
        "a\nb",
        "a\tb",
        "a,b",
        '"',
        '"a',
        "\x00",
        "\x1b[2J",
        "x" * 100_000,
        "nan",
        "NA",
        "None",
        "0",
        "1",
        "1.0",
        "1e999",
    ),
    *("\ufeff", "\ud83d", [], ["a"], {}, {"a": 1}, b"x", pd.Timestamp("2020-01-01")),
]
FORMATS = ["csv", "tsv", "txt", "tab", "jsonl", "json", "parquet", "CSV", "csv.gz", "tab.gz", "json.GZ"]


def written(table: pd.DataFrame, kind: str) -> bytes:
    """The table in a form, which `outcome` compresses where its ending says so."""
    kind = kind.lower().removesuffix(".gz")
    if kind in ("jsonl", "json"):
        options: dict[str, Any] = {"lines": kind == "jsonl", "date_format": "iso", "default_handler": str}
        return table.to_json(orient="records", **options).encode()
    if kind == "parquet":
        stream = io.BytesIO()
        table.to_parquet(stream)
        return stream.getvalue()
    lines = table.to_csv(index=False, sep="," if kind == "csv" else "\t").encode("utf-8", "surrogatepass")
    if kind == "tab":  # Orange's rows of types and flags
        names, rest = lines.split(b"\n", 1)
        cells = max(len(table.columns), 1)
        lines = b"\n".join([names, b"\t".join([b"string"] * cells), b"\t" * (cells - 1), rest])
    return lines


# Of the table:


def cells_replaced(table: pd.DataFrame, random: Random) -> pd.DataFrame:
    changed = table.astype(object)
    for _ in range(int(random.integers(1, 5))):
        changed.iat[int(random.integers(len(table))), int(random.integers(2))] = choice(random, VALUES)
    return changed


def column_of_one_value(table: pd.DataFrame, random: Random) -> pd.DataFrame:
    value = choice(random, VALUES)
    return table.assign(**{choice(random, ["text", "label"]): pd.Series([value] * len(table), dtype=object)})


def columns_renamed(table: pd.DataFrame, random: Random) -> pd.DataFrame:
    names = ["text", "label", "Text", " text", "text_pair", "", "split", "0", "x" * 100_000, "a\nb", "\ufefftext"]
    return table.set_axis(random.choice(names, 2), axis=1)


def columns_doubled(table: pd.DataFrame, random: Random) -> pd.DataFrame:
    return pd.concat([table, table[[choice(random, ["text", "label"])]]], axis=1)


def columns_dropped(table: pd.DataFrame, random: Random) -> pd.DataFrame:
    return table[random.choice(["text", "label"], random.integers(2), replace=False)]


def few_rows(table: pd.DataFrame, random: Random) -> pd.DataFrame:
    return table.iloc[random.permutation(len(table))[: random.integers(0, 12)]]


def rows_repeated(table: pd.DataFrame, random: Random) -> pd.DataFrame:
    return table.iloc[random.integers(0, int(random.integers(1, len(table))), size=int(random.integers(1, 200)))]


def labels_skewed(table: pd.DataFrame, random: Random) -> pd.DataFrame:
    labels = random.choice(["bad", "good", "0", "1", "2", ""], len(table), p=[0.9, 0.02, 0.02, 0.02, 0.02, 0.02])
    return table.assign(label=labels)


# Of the bytes:


def cut_short(content: bytes, random: Random) -> bytes:
    return content[: random.integers(len(content))]


def signs_inserted(content: bytes, random: Random) -> bytes:
    signs = [
        b'"',
        b",",
        b"\t",
        b"\n",
        b"\r",
        b"\0",
        b"\xff",
        b"\xef\xbb\xbf",
        b"\x1a",
        b"\\",
        b"'",
        b"{",
        b"[",
        b"\n\n",
        b"}{",
    ]
    for _ in range(int(random.integers(1, 5))):
        place = int(random.integers(len(content) + 1))
        content = content[:place] + choice(random, signs) + content[place:]
    return content


def line_ends_changed(content: bytes, random: Random) -> bytes:
    return content.replace(b"\n", choice(random, [b"\r\n", b"\r", b"\n\n", b"\n\r", b"\0", "\u2028".encode()]))


def recoded(content: bytes, random: Random) -> bytes:
    encoding = choice(random, ["utf-16", "utf-16-le", "utf-32", "utf-8-sig", "utf-7", "cp037"])
    return content.decode("latin-1").encode(encoding)


def rows_ragged(content: bytes, random: Random) -> bytes:
    lines = content.splitlines()
    for _ in range(int(random.integers(1, 5))):
        place = int(random.integers(len(lines)))
        lines[place] = choice(
            random, [b"", b"x", lines[place] + b",x\tx", lines[place] * 2, b"," * 1000, b"\t" * 1000, b'"']
        )
    return b"\n".join(lines)


def huge(content: bytes, random: Random) -> bytes:
    return content + choice(
        random, [b"x" * 10**6, b'"' * 10**6, b"," * 10**5, b"\n" * 10**5, b"[" * 10**5, b'{"a":' * 10**5]
    )


def json_of_something_else(content: bytes, random: Random) -> bytes:
    values = [
        b"1",
        b"null",
        b'"x"',
        b"[]",
        b"[1, 2]",
        b"{}",
        b'{"text": {"a": 1}, "label": []}',
        b"NaN",
        b'{"text": "a"}',
    ]
    values += [
        b"9" * 5000,
        b'{"text": "\\ud83d", "label": "bad"}',
        b'{"text": "a", "text": "b", "label": "bad"}',
        b"{'a': 1}",
    ]
    lines = content.splitlines()
    some = [choice(random, values) for _ in range(int(random.integers(1, 5)))]
    return b"\n".join(choice(random, [some, lines + some, some + lines]))


def noise(content: bytes, random: Random) -> bytes:
    start = choice(random, [b"", b"PAR1", b"PK\3\4", b"\x80\4", b"text,label\n", b"text\tlabel\n", b"\x89HDF"])
    return start + random.bytes(int(random.integers(2000))) + choice(random, [b"", b"PAR1"])


def nothing(content: bytes, random: Random) -> bytes:
    return choice(random, [b"", b"\n", b" ", b"text,label", b"text\tlabel\n", b"\xef\xbb\xbf", b"{}", b"[]"])


OF_TABLES: list[Callable[[pd.DataFrame, Random], pd.DataFrame]] = [
    *(cells_replaced, column_of_one_value, columns_renamed, columns_doubled, columns_dropped, few_rows, rows_repeated),
    labels_skewed,
]
OF_BYTES: list[Callable[[bytes, Random], bytes]] = [
    *(
        cut_short,
        bytes_scattered,
        signs_inserted,
        line_ends_changed,
        recoded,
        rows_ragged,
        huge,
        json_of_something_else,
    ),
    *(noise, nothing),
]


def random_task(file: str, random: Random) -> Task:
    """A task, mostly an ordinary one."""
    settings: dict[str, Any] = {"source": "s", "file": file, "labels": ["bad", "good"]}
    odd: dict[str, list[Any]] = {
        "labels": [
            {"low": [0, 0.5], "high": [0.6, 1]},
            ["0", "1"],
            ["good", "bad", "x"],
            {"a": [-1e308, 0], "b": [1, 1e308]},
        ],
        "text": ["label", "x", "", "split"],
        "label": ["text", "x", "text_pair"],
        "text_pair": ["text", "label", "x", ""],
        "columns": [
            [],
            ["text"],
            ["text", "label"],
            ["text", "text"],
            ["label", "text", "x"],
            ["a\nb", "text", "label"],
        ],
        "examples": [1, 2, 3, 10, 10**30],
        "split": [{"validation": 0.01, "test": 0.01}, {"validation": 0.49, "test": 0.5}, {"seed": 2**32 - 1}],
        "file": [
            {"train": file, "test": file},
            {"train": file, "test": file, "validation": file},
            [file, file],
            "nowhere.csv",
            ".",
        ],
    }
    if random.random() < 0.1:
        settings["kind"] = "masked-lm"
        del settings["labels"]
    while random.random() < 0.3:
        key = choice(random, sorted(odd))
        settings[key] = copy.deepcopy(choice(random, odd[key]))
    return task_of(settings)


def outcome(content: bytes, kind: str, folder: Path, random: Random) -> str:
    """Prepare a task from the table, and see that what comes out is whole and can be written and read."""
    file = folder / f"t.{kind}"
    file.write_bytes(gzip.compress(content, mtime=0) if kind.lower().endswith(".gz") else content)
    try:
        task = random_task(file.name, random)
    except ValidationError:
        return "refused"
    try:
        splits, dropped = split_examples(task, folder)
        directory = folder / "task"
        directory.mkdir(exist_ok=True)
        write_task(directory, task, splits, dropped)
    except InputError as error:
        return refused(error)
    seen: set[tuple[str, ...]] = set()
    for split in SPLITS:
        frame = TaskData.open(directory).read(split)
        texts = ["text"] + (["text_pair"] if isinstance(task, TextColumns) and task.text_pair is not None else [])
        assert list(frame.columns) == [*texts, *(["label"] if task.output_names else [])]
        rows = list(frame[texts].itertuples(index=False, name=None))
        assert all(isinstance(text, str) for row in rows for text in row)
        assert seen.isdisjoint(rows)
        seen |= set(rows)
    return "prepared"


@pytest.mark.parametrize("mutation", OF_TABLES, ids=lambda mutation: mutation.__name__)
def test_tables(mutation: Callable[[pd.DataFrame, Random], pd.DataFrame], run: Runner, tmp_path: Path) -> None:
    def case(random: Random) -> str:
        kind = choice(random, FORMATS)
        try:
            content = written(mutation(TABLE, random), kind)
        except Exception:  # parquet holds one type a column, JSON no column twice: no such file
            return "impossible"
        return outcome(content, kind, tmp_path, random)

    run(mutation.__name__, SEEDS, case)


@pytest.mark.parametrize("mutation", OF_BYTES, ids=lambda mutation: mutation.__name__)
def test_bytes(mutation: Callable[[bytes, Random], bytes], run: Runner, tmp_path: Path) -> None:
    contents = {kind: written(TABLE, kind) for kind in FORMATS}

    def case(random: Random) -> str:
        kind = choice(random, FORMATS)
        return outcome(mutation(contents[kind], random), kind, tmp_path, random)

    run(mutation.__name__, SEEDS, case)


LABELS = ["bad", "good", "0", "1", "2", "3", "true", "FALSE", "1.0", "01", "-1", "x", ""]


def test_labels_are_all_names_or_all_positions(run: Runner, tmp_path: Path) -> None:
    def case(random: Random) -> str:
        names = sorted({choice(random, LABELS[:-1]) for _ in range(int(random.integers(2, 5)))} | {"good", "bad"})[-4:]
        pool = [choice(random, [*names, *LABELS[2:5]]) for _ in range(int(random.integers(1, 5)))]
        rows = TABLE.assign(label=[choice(random, pool) for _ in range(len(TABLE))])
        rows[:40].to_csv(tmp_path / "train.csv", index=False)
        rows[40:].to_json(tmp_path / "test.json", orient="records")
        task = TextClassification(source="s", file={"train": "train.csv", "test": "test.json"}, labels=names)
        try:
            splits, _ = split_examples(task, tmp_path)
        except InputError as error:
            return refused(error)
        label_of = dict(zip(rows["text"], rows["label"], strict=True))
        found = [
            (str(label_of[text]), int(label))
            for frame in splits.values()
            for text, label in zip(frame["text"], frame["label"], strict=True)
        ]
        if all(names[label].lower() in (text.lower(), text.removesuffix(".0")) for text, label in found):
            return "names"
        truths = {"true": 1, "false": 0}
        assert all(truths.get(text.lower()) == label or float(text) == label for text, label in found), (names, found)
        return "positions"

    run("labels", 200, case)
