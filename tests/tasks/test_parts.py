"""Files of many rows: read part by part, they give what they give at once."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stages.running.errors import InputError
from stages.tasks import arrow, table_files
from stages.tasks.kinds.masked_lm.settings import MaskedLM
from stages.tasks.kinds.multi_label_classification.settings import MultiLabelClassification
from stages.tasks.kinds.text_classification.settings import TextClassification
from stages.tasks.kinds.text_regression.settings import TextRegression
from stages.tasks.kinds.token_classification.settings import TokenClassification
from stages.tasks.task import Task
from tests.tasks.in_memory import read_table, split_examples
from tests.tiny import sentiment_table

ROWS = 60


def few_at_once(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    for module in (arrow, table_files):
        monkeypatch.setattr(module, "ROWS_AT_ONCE", rows)


def table() -> pd.DataFrame:
    """Sentences, of which some repeat, and what they may be examples of."""
    found = sentiment_table(ROWS, 0)
    texts = found["text"].tolist()
    for row in (7, 31, 55):
        texts[row] = texts[3]
    sets = pd.Series([["bad"] * (row % 2) + ["good"] * (row % 3 == 0) for row in range(ROWS)])
    return found.assign(text=texts, score=[row / 7 for row in range(ROWS)], sets=sets)


def csv(folder: Path) -> str:
    frame = table().drop(columns="sets")
    frame.loc[4, "text"] = "good film\nin two lines"
    frame.to_csv(folder / "t.csv", index=False)
    return "t.csv"


def orange(folder: Path) -> str:
    frame = table()[["text", "label"]]
    lines = ["text\tlabel", "string\tdiscrete", "meta\tclass", *("\t".join(row) for row in frame.to_numpy())]
    (folder / "t.tab").write_text("\n".join([*lines[:9], "\t", *lines[9:]]) + "\n")
    return "t.tab"


def json_lines(folder: Path) -> str:
    """Whose first rows lack a key that others have."""
    rows = table().to_dict("records")
    for row in rows[:20]:
        del row["score"]
    (folder / "t.jsonl").write_text("\n\n".join(json.dumps(row) for row in rows))
    return "t.jsonl"


def json_array(folder: Path) -> str:
    table().to_json(folder / "t.json", orient="records")
    return "t.json"


def parquet(folder: Path) -> str:
    """Whose labels are categories, and whose texts are its index."""
    frame = table().astype({"label": "category"}).set_index("text")
    frame.to_parquet(folder / "t.parquet", row_group_size=25)
    return "t.parquet"


def sentences(folder: Path) -> str:
    texts = [" ".join(f"{word}/{'AB'[len(word) % 2]}" for word in text.split()) for text in table()["text"]]
    (folder / "t.txt").write_text("\n\n".join(texts))
    return "t.txt"


COMMON: dict[str, Any] = {"source": "s", "part": [0.0, 0.95], "examples": 50, "max_length": 16}
CLASSES = {"labels": ["bad", "good"]}


@pytest.mark.parametrize(
    ("write", "kind", "settings"),
    [
        (csv, TextClassification, CLASSES),
        (csv, TextRegression, {"targets": ["score"]}),
        (csv, TextClassification, {"label": "score", "labels": {"low": [0, 3], "high": [4, 9]}}),
        (csv, TextClassification, CLASSES | {"labels": ["good", "else"], "drop": ["bad"]}),
        (orange, TextClassification, CLASSES),
        (json_lines, TextClassification, CLASSES),
        (json_lines, MaskedLM, {}),
        (json_lines, MultiLabelClassification, CLASSES | {"label": "sets"}),
        (json_array, TextClassification, CLASSES),
        (parquet, TextClassification, CLASSES),
        (parquet, MultiLabelClassification, CLASSES | {"label": "sets"}),
        (sentences, TokenClassification, {"form": "word/tag", "labels": ["A", "B"], "examples": 30}),
    ],
)
@pytest.mark.parametrize("rows", [2, 7, 60])
def test_parts_give_what_the_whole_gives(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write: Callable[[Path], str],
    kind: type[Task],
    settings: dict[str, Any],
    rows: int,
) -> None:
    task = kind.model_validate(COMMON | settings | {"file": write(tmp_path)})
    whole, dropped = split_examples(task, tmp_path)
    few_at_once(monkeypatch, rows)
    found, also_dropped = split_examples(task, tmp_path)
    assert dropped == also_dropped
    for split, frame in whole.items():
        assert len(frame) > 3
        pd.testing.assert_frame_equal(found[split], frame)


def test_rows_are_counted_and_named_over_all_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few_at_once(monkeypatch, 7)
    frame = table()[["text", "label"]]
    frame.loc[[20, 41, 59], "label"] = ""
    frame.to_csv(tmp_path / "t.csv", index=False)
    task = TextClassification.model_validate(COMMON | CLASSES | {"file": "t.csv"})
    with pytest.raises(InputError, match=r"t\.csv: line 22: has no label \(3 such rows\)$"):
        split_examples(task, tmp_path)
    dropping = task.model_copy(update={"drop": [None], "labels": ["bad", "good"]})
    assert split_examples(dropping, tmp_path)[1]["label_not_of_the_task"] == 3
    rows = [{"text": text, "label": "bad"} for text in frame["text"]]
    for row in (11, 13, 50):
        rows[row]["text"] = None
    (tmp_path / "t.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    task = task.model_copy(update={"file": "t.jsonl"})
    with pytest.raises(InputError, match=r"t\.jsonl: line 12: text is not a text \(3 such rows\)$"):
        split_examples(task, tmp_path)


@pytest.mark.parametrize("write", [csv, json_lines, parquet])
def test_a_label_that_is_wrong_far_below(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], str]
) -> None:
    few_at_once(monkeypatch, 7)
    name = write(tmp_path)
    rows = read_table(tmp_path / name, None)
    assert len(rows.rows) == ROWS
    assert rows.rows.index.is_unique
    found = rows.rows.drop(columns="sets", errors="ignore").astype({"label": object})
    found.loc[found.index[-1], "label"] = "odd"
    found.to_csv(tmp_path / "odd.csv", index=False)
    task = TextClassification.model_validate(COMMON | CLASSES | {"file": "odd.csv"})
    with pytest.raises(InputError, match=r"odd\.csv: line 6[12]: the label 'odd' is not one of the task's: bad, good$"):
        split_examples(task, tmp_path)


def test_a_text_that_repeats_is_in_one_split(tmp_path: Path) -> None:
    """Also where columns joined would be alike, and where a text is empty."""
    pairs = [("a", "bc"), ("ab", "c"), ("a", "bc"), ("", "abc"), ("abc", "")]
    rows = pd.DataFrame(pairs * 2 + [(f"x{row}", "y") for row in range(20)], columns=["text", "text_pair"])
    rows.assign(label=np.arange(len(rows)) % 2).to_parquet(tmp_path / "t.parquet")
    task = TextClassification.model_validate(
        {"source": "s", "file": "t.parquet", "labels": ["bad", "good"], "text_pair": "text_pair"}
    )
    splits, dropped = split_examples(task, tmp_path)
    found = pd.concat(splits.values())[["text", "text_pair"]]
    assert dropped["repeated_text"] == 6
    assert len(found) == 24
    assert not found.duplicated().any()
