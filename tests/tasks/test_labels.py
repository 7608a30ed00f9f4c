"""Labels in tables: names or positions, never both, and where they are missing."""

import itertools
import json
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from stages.running.errors import InputError
from stages.tasks.kinds.text_classification.settings import TextClassification
from stages.tasks.labels import NamedPositions, interval_positions, labels_without_examples
from stages.tasks.table_files import Table
from stages.tasks.task import Task
from tests.tasks.in_memory import split_examples
from tests.tiny import sentiment_table
from tests.workshop import task_of

BINARY = ["bad", "good"]
TRUTH = ["true", "false"]
STARS = ["1", "2", "3", "4", "5"]


def table(values: Any, name: str = "t.csv") -> Table:
    rows = pd.DataFrame({"label": values})
    return Table(rows, Path(name), lambda row: f"row {row + 1}")


def positions(names: Sequence[str], *columns: Any) -> list[int]:
    """What `NamedPositions` makes of columns, each of a file of its own."""
    tables = [table(values, f"{number}.csv") for number, values in enumerate(columns)]
    found = NamedPositions(names, tables, "label")
    return [int(position) for part in tables for position in found.of(part)]


@pytest.mark.parametrize(
    ("names", "values", "expected"),
    [
        (BINARY, ["good", "bad"], [1, 0]),
        (BINARY, [1, 0], [1, 0]),
        (BINARY, ["1", "0"], [1, 0]),
        (BINARY, [1.0, 0.0], [1, 0]),
        (BINARY, ["1.0", "0"], [1, 0]),
        (BINARY, [True, False], [1, 0]),
        (BINARY, ["True", "FALSE"], [1, 0]),
        (BINARY, [Decimal("1.0"), Decimal(0)], [1, 0]),
        (BINARY, np.array([1, 0], dtype=np.uint8), [1, 0]),
        (BINARY, np.array([1, 0], dtype=np.float16), [1, 0]),
        (BINARY, pd.Series([1, 0], dtype="Int8"), [1, 0]),
        # Names that are whole numbers: from 0 they are positions, from 1 names.
        (["1", "2"], [0, 1], [0, 1]),
        (["1", "2"], [1, 2], [0, 1]),
        (["1", "2"], ["1.0", "2.0"], [0, 1]),
        (["1", "2"], [1.0, 2.0], [0, 1]),
        (["1.0", "2.0"], [1.0, 2.0], [0, 1]),
        (["1.0", "2.0"], [0, 1.0], [0, 1]),
        (STARS, [4, 3, 2, 1, 0], [4, 3, 2, 1, 0]),
        (STARS, [5, 4, 3, 2, 1], [4, 3, 2, 1, 0]),
        (STARS, [1, 2, 3], [0, 1, 2]),  # all are names
        (["2", "1", "0"], [0, 1, 2], [2, 1, 0]),
        (["-1", "0", "1"], [-1, 0, 1], [0, 1, 2]),
        (["-1", "0", "1"], ["0", "1", "2"], [0, 1, 2]),
        (["0.5", "1.5"], [1.5, 0.5], [1, 0]),
        (["", "x"], ["", "x"], [0, 1]),
        # Truth: names as they are written, else positions.
        (TRUTH, [True, False], [0, 1]),
        (["False", "True"], [True, False], [1, 0]),
        (TRUTH, ["TRUE", "False"], [0, 1]),
        (["true", "false", "unknown"], ["true", "unknown"], [0, 2]),
        (["yes", "no"], [True, False], [1, 0]),
        (["true", "True"], ["True", "true"], [1, 0]),
        (["nan", "None"], ["None", "nan"], [1, 0]),
    ],
)
def test_names_and_positions(names: list[str], values: Any, expected: list[int]) -> None:
    assert positions(names, values) == expected


def test_one_decision_for_all_files() -> None:
    assert positions(["1", "2", "3"], [1, 2], [0]) == [1, 2, 0]
    assert positions(["1", "2", "3"], [1, 2], [3]) == [0, 1, 2]
    assert positions(["1", "2", "3"], ["1", "2.0"], [0.0], [True]) == [1, 2, 0, 1]
    with pytest.raises(InputError) as caught:
        positions(["1", "2", "3"], [1, 2], [2, 0], [3])
    assert str(caught.value).startswith(
        "1.csv: row 2: the label '0' is a position and no name, and '3' (2.csv, row 1) a name"
    )


def test_every_order_of_rows_is_read_alike() -> None:
    for values in itertools.permutations([0, 1, 2]):
        assert positions(["1", "2", "3"], values) == list(values)
    for texts in itertools.permutations(["1", "2", "x"]):
        assert positions(["1", "2", "x"], texts) == [["1", "2", "x"].index(text) for text in texts]


@pytest.mark.parametrize(
    ("names", "values", "message"),
    [
        (BINARY, ["bad", "fine"], "row 2: the label 'fine' is not one of the task's: bad, good$"),
        (BINARY, ["bad", "fine", 0], "row 2: the label 'fine' is not one of the task's"),
        (BINARY, [1, 2], r"row 2: the label '2' is not one of the task's: bad, good \(their positions are 0 to 1\)"),
        (BINARY, [1.0, 2.0], "row 2: the label '2' is not one"),
        (BINARY, [0.0, 0.5], "row 2: the label '0.5' is not one"),
        (BINARY, [0, -1], "row 2: the label '-1' is not one"),
        (BINARY, ["0", "01"], "row 2: the label '01' is not one"),
        (BINARY, ["bad", " good"], "row 2: the label ' good' is not one"),
        (BINARY, ["0", "9" * 5000], "row 2: the label '9{80}' is not one"),
        (BINARY, [0, float("inf")], "row 2: the label 'inf' is not one"),
        (BINARY, [0, 1e300], "row 2: the label '1e[+]300' is not one"),
        (BINARY, ["bad", ["good"]], r"row 2: the label '\[\\'good\\'\]' is not one|row 2: the label"),
        (BINARY, ["bad", np.array(["good", "bad"])], "row 2: the label"),
        (BINARY, [b"bad", b"good"], "row 1: the label"),
        (
            BINARY,
            ["bad", 1],
            "row 2: the label '1' is a position and no name, and 'bad' .*row 1.* a name and no position",
        ),
        (["1", "2", "x"], ["x", "0"], "row 2: the label '0' is a position and no name, and 'x'"),
        (STARS, [0, 5], "row 1: the label '0' is a position and no name, and '5' .*row 2"),
        (["0", "1", "2.5"], [2.5, 0, 1, 2], "row 4: the label '2' is a position and no name, and '2.5'"),
        (BINARY, [0, None, 1], r"row 2: has no label \(1 such rows\)"),
        (BINARY, [0, 1, 1, float("nan"), None], r"row 4: has no label \(2 such rows\)"),
        (BINARY, ["bad", ""], "row 2: has no label"),
        (BINARY, [True, None], "row 2: has no label"),
        (BINARY, pd.Series([True, pd.NA], dtype="boolean"), "row 2: has no label"),
        (BINARY, pd.Series([0, pd.NA], dtype="Int64"), "row 2: has no label"),
        (BINARY, [pd.Timestamp("2020-01-01"), pd.NaT], "row 2: has no label"),
        ([str(number) for number in range(99)], ["x"], "0, 1, 2, .* 18, 19 and 79 more$"),
    ],
)
def test_labels_that_are_refused(names: list[str], values: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        positions(names, pd.Series(values, dtype=None if isinstance(values, pd.Series) else object))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


def test_what_could_be_read_otherwise_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    def said(names: list[str], *columns: Any) -> str:
        capsys.readouterr()
        positions(names, *columns)
        return capsys.readouterr().err

    assert said(["1", "2"], [0], [1]) == "note: 0.csv, 1.csv: label holds positions: '0' is '1', '1' is '2'\n"
    assert said(["1", "2", "3"], [2, 1]) == "note: 0.csv: label holds names: '1' is '1', '2' is '2'\n"
    assert (
        said(["yes", "no"], [True, False]) == "note: 0.csv: label holds positions: 'False' is 'yes', 'True' is 'no'\n"
    )
    for names, values in (
        (BINARY, [0, 1]),
        (["0", "1"], [0, 1]),
        (["1", "2"], [1, 2]),
        (TRUTH, [True]),
        (BINARY, ["bad"]),
    ):
        assert said(names, values) == ""


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["-1", "1"], [0, 1]),
        ([-0.1, 3], [0, 1]),
        ([Decimal("-0.1"), Decimal(1)], [0, 1]),
        ([False, True], [None, 1]),
        (["0.5", " 1 "], [None, 1]),
        (pd.Series([-1, 2], dtype="Int64"), [0, 1]),
        ([], []),
    ],
)
def test_intervals(values: Any, expected: list[int | None]) -> None:
    found = interval_positions([(-1, -0.1), (1, 5)], table(values), "label")
    assert [None if pd.isna(position) else position for position in found] == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1, None], r"row 2: has no label \(1 such rows\)"),
        (["1", ""], "row 2: has no label"),
        (["1", "x"], "row 2: label = 'x' is not a number"),
        ([1, [1]], r"row 2: label = '\[1\]' is not a number"),
        ([1, pd.Timestamp("2020-01-01")], "row 2: label = '2020-01-01 00:00:00' is not a number"),
    ],
)
def test_intervals_of_what_is_no_number(values: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        interval_positions([(0, 1), (2, 3)], table(pd.Series(values, dtype=object)), "label")


def booleans(folder: Path, form: str) -> pd.DataFrame:
    """Sentences with a column of true and false, as each form of a table has it."""
    rows = sentiment_table(60, 0)
    rows["label"] = rows["label"] == "good"
    if form == "csv":
        rows.to_csv(folder / "t.csv", index=False)
    elif form == "jsonl":
        rows.to_json(folder / "t.jsonl", orient="records", lines=True)
    elif form == "dictionary.parquet":
        label = pa.array(rows["label"].astype(str)).dictionary_encode()
        pq.write_table(pa.table({"text": pa.array(rows["text"]), "label": label}), folder / "t.dictionary.parquet")
    else:
        rows.to_parquet(folder / f"t.{form}")
    return rows


@pytest.mark.parametrize("names", [["false", "true"], ["True", "False"], ["negative", "positive"]])
@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet", "dictionary.parquet"])
def test_columns_of_true_and_false(tmp_path: Path, form: str, names: list[str]) -> None:
    rows = booleans(tmp_path, form)
    splits, _ = split_examples(TextClassification(source="s", file=f"t.{form}", labels=names), tmp_path)
    truth = dict(zip(rows["text"], rows["label"], strict=True))
    positive = next(place for place, name in enumerate(names) if name.lower() in ("true", "positive"))
    everything = pd.concat(splits.values())
    assert len(everything) == 60
    assert all(
        (label == positive) == truth[text] for text, label in zip(everything["text"], everything["label"], strict=True)
    )


def test_splits_of_one_task_are_read_alike(tmp_path: Path) -> None:
    """The test file alone could be names; beside a training file with a 0 it holds positions."""
    rows = sentiment_table(60, 0).assign(label=[row % 3 for row in range(60)])
    rows[:40].to_csv(tmp_path / "train.csv", index=False)
    test = rows[40:][rows[40:]["label"] > 0]
    test.to_parquet(tmp_path / "test.parquet")
    files = {"train": "train.csv", "test": "test.parquet"}
    splits, _ = split_examples(task_of({"source": "s", "file": files, "labels": ["1", "2", "3"]}), tmp_path)
    assert splits["test"]["label"].tolist() == test["label"].tolist()


@pytest.mark.parametrize(
    ("form", "place"),
    [("csv", "line 42"), ("jsonl", "line 41"), ("parquet", "row 41"), ("json", "entry 41"), ("tsv", "line 42")],
)
@pytest.mark.parametrize("value", [None, 7], ids=["missing", "wrong"])
def test_the_row_that_is_blamed(tmp_path: Path, form: str, place: str, value: int | None) -> None:
    rows = sentiment_table(60, 0)
    rows["label"] = pd.Series((rows["label"] == "good").astype(int)).mask(rows.index == 40, value)
    file = tmp_path / f"t.{form}"
    if form in ("csv", "tsv"):
        rows.astype({"label": "Int64"}).to_csv(file, index=False, sep="," if form == "csv" else "\t")
    elif form == "parquet":
        rows.to_parquet(file)
    else:
        rows.to_json(file, orient="records", lines=form == "jsonl")
    reason = "has no label" if value is None else r"the label '7' is not one of the task's: bad, good \(their positions"
    with pytest.raises(InputError, match=rf"{file.name}: {place}: {reason}"):
        split_examples(TextClassification(source="s", file=file.name, labels=BINARY), tmp_path)


def test_labels_without_examples() -> None:
    def frame(*labels: int) -> pd.DataFrame:
        return pd.DataFrame({"label": list(labels)})

    def said(*labels: str, **splits: pd.DataFrame) -> list[str]:
        return list(labels_without_examples(labels, splits))  # type: ignore[arg-type]

    assert said("a", "b", train=frame(0, 1), test=frame(1, 0)) == []
    assert said("a", "b", "c", train=frame(1), validation=frame(1), test=frame(1, 0)) == [
        "no example of the label 'a' in the train and validation split",
        "no example of the label 'c' in any split",
    ]
    assert said("a", "b", "c", train=frame(0, 1, 2), test=frame(0)) == [
        "no example of the labels 'b', 'c' in the test split"
    ]
    assert said(train=frame(), test=frame()) == []


def binary(**settings: Any) -> Task:
    return task_of({"source": "tables", "file": "t.csv", "labels": BINARY, **settings})


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_rows_with_labels_that_are_dropped(tmp_path: Path, form: str) -> None:
    """As SNLI's "-", on which nobody agreed, and rows without a label."""
    rows = sentiment_table(40, 0).assign(label=lambda frame: frame["label"].astype(object))
    rows.loc[[3, 8], "label"] = "-"
    rows.loc[[5, 9, 11], "label"] = None
    if form == "csv":
        rows.to_csv(tmp_path / "t.csv", index=False)
    elif form == "jsonl":
        rows.to_json(tmp_path / "t.jsonl", orient="records", lines=True)
    else:
        rows.to_parquet(tmp_path / "t.parquet")
    splits, dropped = split_examples(binary(file=f"t.{form}", drop=["-", None]), tmp_path)
    assert dropped == {"label_not_of_the_task": 5, "repeated_text": 0}
    kept = pd.concat(splits.values())
    wanted = rows.drop(index=[3, 5, 8, 9, 11])
    assert dict(zip(kept["text"], kept["label"], strict=True)) == {
        text: BINARY.index(label) for text, label in zip(wanted["text"], wanted["label"], strict=True)
    }
    with pytest.raises(InputError, match="has no label"):
        split_examples(binary(file=f"t.{form}", drop=["-"]), tmp_path)
    with pytest.raises(InputError, match="the label '-' is not one of the task's"):
        split_examples(binary(file=f"t.{form}", drop=[None]), tmp_path)
    with pytest.raises(ValidationError, match="`drop`: 'bad' is one of `labels`"):
        binary(drop=["bad"])


def test_numbers_that_are_dropped(tmp_path: Path) -> None:
    """Pandas makes floating-point numbers of whole ones beside missing ones."""
    rows = pd.DataFrame({"text": [f"text {i}" for i in range(60)], "label": [0, 1, -1] * 20}).astype({"label": float})
    rows.to_parquet(tmp_path / "t.parquet")
    splits, dropped = split_examples(binary(file="t.parquet", drop=[-1]), tmp_path)
    assert dropped["label_not_of_the_task"] == 20
    assert sum(map(len, splits.values())) == 40


def test_scores_of_which_one_is_1_are_a_label() -> None:
    """As BIG-bench's target_scores."""
    assert positions(BINARY, [{"bad": 0, "good": 1}, {"good": 0, "bad": 1}]) == [1, 0]
    for wrong in ({"bad": 1, "good": 1}, {"bad": 0, "good": 0}, {"bad": 0.5, "good": 0.5}, {}, {"odd": 1, "good": 0}):
        with pytest.raises(InputError, match=r"t\.csv: row 1: the label .* is not one of the task's"):
            NamedPositions(BINARY, [table([wrong])], "label")


def test_rows_under_a_key_of_one_object(tmp_path: Path) -> None:
    examples: list[dict[str, Any]] = [
        {"input": f"text {i}", "target_scores": {"bad": int(i % 2 == 0), "good": i % 2}} for i in range(40)
    ]
    (tmp_path / "task.json").write_text(json.dumps({"name": "it", "examples": examples}, indent=1))
    settings = binary(file="task.json", field="examples", text="input", label="target_scores")
    splits, _ = split_examples(settings, tmp_path)
    for text, label in splits["train"][["text", "label"]].itertuples(index=False):
        assert int(text.split()[1]) % 2 == label
    for other in ("name", "rows"):
        with pytest.raises(InputError, match=f"task.json: is no JSON object with an array under '{other}'"):
            split_examples(settings.model_copy(update={"field": other}), tmp_path)
    with pytest.raises(InputError, match=r"task\.json: line 1 is not valid JSON"):
        split_examples(settings.model_copy(update={"field": None}), tmp_path)
    examples[4]["input"] = 5
    (tmp_path / "task.json").write_text(json.dumps({"examples": examples}))
    with pytest.raises(InputError, match=r"task\.json: examples, entry 5: input is not a text"):
        split_examples(settings, tmp_path)
