"""From tables to splits: what is kept, what is refused."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from datasets import Dataset

from stages.running.errors import InputError
from stages.tasks.arrow import frame as in_memory
from stages.tasks.arrow import write_rows
from stages.tasks.data import TaskData, draw_examples, examples_fingerprint
from stages.tasks.kinds.masked_lm.settings import MaskedLM
from stages.tasks.task import Task
from tests.tasks.in_memory import split_examples, write_task
from tests.tiny import sentiment_table
from tests.workshop import task_of


def task(**settings: Any) -> Task:
    return task_of({"source": "s", "file": "t.csv", "labels": ["bad", "good"]} | settings)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    sentiment_table(100, 0).to_csv(tmp_path / "t.csv", index=False)
    return tmp_path


def test_splits_are_stratified_disjoint_and_fixed(folder: Path) -> None:
    splits, dropped = split_examples(task(), folder)
    assert {split: len(frame) for split, frame in splits.items()} == {"train": 70, "validation": 15, "test": 15}
    texts = [set(frame["text"]) for frame in splits.values()]
    assert len(set.union(*texts)) == sum(map(len, texts)) == 100
    share = sentiment_table(100, 0)["label"].eq("good").mean()
    for frame in splits.values():
        assert abs(frame["label"].mean() - share) < 0.05
    again, _ = split_examples(task(), folder)
    assert all(frame.equals(again[split]) for split, frame in splits.items())
    other, _ = split_examples(task(split={"seed": 1}), folder)
    assert not other["test"].equals(splits["test"])
    assert dropped == {"label_not_of_the_task": 0, "repeated_text": 0}


def test_intervals_of_scores(tmp_path: Path) -> None:
    rows = [
        (f"text {i}", score) for i, score in enumerate([-4, -0.5, -0.49, 0, 0.49, 0.5, 4, 1, -1, 2, -2, 3, -3, 1, -1])
    ]
    (tmp_path / "t.tsv").write_text("".join(f'{score}\t{text} "quoted\n' for text, score in rows))
    settings = task(
        file="t.tsv",
        columns=["score", "words"],
        text="words",
        label="score",
        labels={"negative": [-4, -0.5], "positive": [0.5, 4]},
        split={"validation": 0.2, "test": 0.2},
    )
    splits, dropped = split_examples(settings, tmp_path)
    assert dropped["label_not_of_the_task"] == 3
    everything = pd.concat(splits.values())
    score_of = {f'{text} "quoted': score for text, score in rows}
    for text, label in zip(everything["text"], everything["label"], strict=True):
        assert label == (score_of[text] > 0)


def test_repeated_texts_are_in_one_split_only(folder: Path) -> None:
    table = sentiment_table(100, 0)
    pd.concat([table, table.iloc[:30]]).to_csv(folder / "t.csv", index=False)
    splits, dropped = split_examples(task(), folder)
    assert dropped["repeated_text"] == 30
    assert sum(map(len, splits.values())) == 100


def test_official_splits(tmp_path: Path) -> None:
    sentiment_table(60, 0).to_csv(tmp_path / "train.csv", index=False)
    test = sentiment_table(20, 0)  # all of them in the training file too
    test.to_json(tmp_path / "test.jsonl", orient="records", lines=True)
    splits, dropped = split_examples(task(file={"train": "train.csv", "test": "test.jsonl"}), tmp_path)
    assert splits["test"]["text"].tolist() == test["text"].tolist()
    assert dropped["repeated_text"] == 20
    assert len(splits["train"]) + len(splits["validation"]) == 40
    assert len(splits["validation"]) == 6


def test_labels_by_position_and_limits(tmp_path: Path) -> None:
    table = sentiment_table(100, 0)
    table.assign(label=(table["label"] == "good").astype(int)).to_parquet(tmp_path / "t.parquet")
    splits, _ = split_examples(task(file="t.parquet", examples=40), tmp_path)
    assert sum(map(len, splits.values())) == 40
    truth = dict(zip(table["text"], table["label"] == "good", strict=True))
    assert all(
        truth[text] == label for text, label in zip(splits["train"]["text"], splits["train"]["label"], strict=True)
    )


@pytest.mark.parametrize(
    ("content", "settings", "message"),
    [
        ("text,label\na,bad\nb,fine\n", {}, "line 3: the label 'fine' is not one of the task's: bad, good"),
        ("text,label\na,bad\n", {"text": "words"}, "has no column 'words'; its columns: text, label"),
        ("text,label\na,1\nb,x\n", {"labels": {"a": [0, 1], "b": [2, 3]}}, "line 3: label = 'x' is not a number"),
        ("text,label\na,7\n", {"labels": {"a": [0, 1], "b": [2, 3]}}, "cannot be split"),
        ("text,label\n", {}, "cannot be split"),
        ("", {}, "cannot be read as a table"),
        ("text,label\na,bad\nb,good\n", {}, "cannot be split"),
        ("text,label\na,bad,3,4\nb,good\n", {}, "its rows have more cells than the 2 columns"),
        (b"text,label\n\xff\xfe,bad\n", {}, "line 2 is not UTF-8 text; save the file as UTF-8"),
    ],
)
def test_bad_tables(tmp_path: Path, content: str | bytes, settings: dict[str, Any], message: str) -> None:
    (tmp_path / "t.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message) as caught:
        split_examples(task(**settings), tmp_path)
    assert "\n" not in str(caught.value)


def test_several_files_are_read_one_after_the_other(tmp_path: Path) -> None:
    tables = [sentiment_table(40, seed) for seed in (0, 1)]
    tables[0].to_csv(tmp_path / "a.csv", index=False)
    tables[1].to_json(tmp_path / "b.jsonl", orient="records", lines=True)
    together = pd.concat(tables)
    together.to_csv(tmp_path / "both.csv", index=False)
    splits, dropped = split_examples(task(file=["a.csv", "b.jsonl"]), tmp_path)
    wanted, _ = split_examples(task(file="both.csv"), tmp_path)
    assert all(frame.equals(wanted[split]) for split, frame in splits.items())
    assert dropped["repeated_text"] == 80 - together["text"].nunique()
    official = {"train": ["a.csv"], "validation": "b.jsonl", "test": ["a.csv", "b.jsonl"]}
    with pytest.raises(InputError, match="the train split is empty"):
        split_examples(task(file=official), tmp_path)
    splits, _ = split_examples(task(file={"train": ["a.csv", "b.jsonl"], "test": "a.csv"}), tmp_path)
    assert splits["test"]["text"].tolist() == tables[0]["text"].tolist()
    assert set(splits["train"]["text"]) | set(splits["validation"]["text"]) == (
        set(tables[1]["text"]) - set(tables[0]["text"])
    )
    (tmp_path / "c.csv").write_text("words,label\na,bad\n")
    with pytest.raises(InputError, match=r"c\.csv: has no column 'text'"):
        split_examples(task(file=["a.csv", "c.csv"]), tmp_path)


def unlabelled(**settings: Any) -> Task:
    return task_of({"kind": "masked-lm", "source": "s", "file": "t.jsonl"} | settings)


def test_texts_without_labels(tmp_path: Path) -> None:
    texts = sentiment_table(40, 0)["text"].tolist()
    rows = [*texts, None, "", " \t ", 7, texts[3], texts[5]]
    pd.DataFrame({"text": rows, "other": 1}).to_json(tmp_path / "t.jsonl", orient="records", lines=True)
    splits, dropped = split_examples(unlabelled(), tmp_path)
    assert dropped == {"no_text": 4, "repeated_text": 2}
    assert {split: len(frame) for split, frame in splits.items()} == {"train": 28, "validation": 6, "test": 6}
    assert all(list(frame.columns) == ["text"] for frame in splits.values())
    assert set().union(*(frame["text"] for frame in splits.values())) == set(texts)
    again, _ = split_examples(unlabelled(), tmp_path)
    assert all(frame.equals(again[split]) for split, frame in splits.items())
    (tmp_path / "it").mkdir()
    write_task(tmp_path / "it", unlabelled(), splits, dropped)
    data = TaskData.open(tmp_path / "it")
    assert (data.kind, data.labels) == ("masked-lm", ())
    assert data.read("train").equals(splits["train"])


ORANGE = "Topic\tText\nd\tstring\nclass\t\n\n"


def test_tables_of_orange(tmp_path: Path) -> None:
    """As its writer leaves them: empty rows of either form, and quotes around cells that have quotes."""
    table = sentiment_table(40, 0)
    rows = [f"{label}\t{text}\n" for text, label in zip(table["text"], table["label"], strict=True)]
    rows[4] = f'{table["label"][4]}\t"a ""quoted"" word"\n'
    (tmp_path / "t.tab").write_text(ORANGE + "".join(rows[:20]) + "\t\n" + "".join(rows[20:]))
    table.loc[4, "text"] = 'a "quoted" word'
    splits, dropped = split_examples(task(file="t.tab", text="Text", label="Topic"), tmp_path)
    assert dropped == {"label_not_of_the_task": 0, "repeated_text": 0}
    assert set(pd.concat(splits.values())["text"]) == set(table["text"])
    (tmp_path / "one.tab").write_text("words\nstring\n\n" + "\n".join(table["text"]) + "\n")
    splits, _ = split_examples(unlabelled(file="one.tab", text="words"), tmp_path)
    assert sum(map(len, splits.values())) == 40
    (tmp_path / "plain.tab").write_text("text\tlabel\na\tbad\nb\tgood\n")
    with pytest.raises(InputError, match=r"plain\.tab: its second row does not name Orange's types"):
        split_examples(task(file="plain.tab"), tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a", "label": "bad"}\n\nnull\n', "line 3 is no JSON object"),
        ('{"text": "a", "label": "bad"}\n{"text"\n', "line 2 is not valid JSON"),
        ('{"text": "a", "label": ' + "9" * 5000 + "}", "line 1 is not valid JSON"),
        ('{"text": "a", "label": "bad"}\n{"text": ["b"], "label": "bad"}\n', "line 2: text is not a text"),
        ('{"text": "\\ud83d", "label": "bad"}\n', "line 1: has half of a surrogate pair"),
        ('{"text": "a", "label": []}\n', r"line 1: the label '\[\]' is not one"),
        ("", "has no column 'text'"),
    ],
)
def test_bad_json_lines(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "t.jsonl").write_text(content)
    with pytest.raises(InputError, match=message):
        split_examples(task(file="t.jsonl"), tmp_path)


def test_scores_that_are_no_numbers(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"text": "a", "label": 1}\n{"text": "b", "label": [1]}\n')
    with pytest.raises(InputError, match=r"line 2: label = '\[1\]' is not a number"):
        split_examples(task(file="t.jsonl", labels={"a": [0, 1], "b": [2, 3]}), tmp_path)


def test_rows_with_more_cells_than_columns(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text,label\n1,a,bad\n2,b,good\n")
    with pytest.raises(InputError, match="rows have more cells than the 2 columns that have a name"):
        split_examples(task(), tmp_path)


def test_parquet_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(b"PAR1\0\0\0\0PAR1")
    with pytest.raises(InputError, match=r"t\.parquet: cannot be read as a table"):
        split_examples(task(file="t.parquet"), tmp_path)


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    sentiment_table(30, 0).to_csv(tmp_path / "train.csv", index=False)
    (tmp_path / "test.csv").write_text("text,label\n")
    with pytest.raises(InputError, match="the test split is empty"):
        split_examples(task(file={"train": "train.csv", "test": "test.csv"}), tmp_path)


def test_missing_file_names_what_there_is(folder: Path) -> None:
    with pytest.raises(InputError, match=r"no such file in the source; it has: t\.csv"):
        split_examples(task(file="u.csv"), folder)


def test_a_written_task_is_read_back_and_checked(folder: Path, tmp_path: Path) -> None:
    splits, dropped = split_examples(task(), folder)
    directory = tmp_path / "reviews"
    directory.mkdir()
    write_task(directory, task(max_length=33), splits, dropped)
    data = TaskData.open(directory)
    assert (data.name, data.labels, data.max_length) == ("reviews", ("bad", "good"), 33)
    assert data.read("test").equals(splits["test"])
    write_rows(directory / "test.arrow", [splits["test"][::-1]])
    with pytest.raises(InputError, match=r"not what task\.json says; make or fetch .*reviews again"):
        data.read("test")
    write_rows(directory / "test.arrow", [splits["test"].assign(label=5)])
    with pytest.raises(InputError, match="labels outside the task's 2"):
        data.read("test")
    write_rows(directory / "test.arrow", [splits["test"].iloc[:0]])
    with pytest.raises(InputError, match="split is empty"):
        data.read("test")
    (directory / "test.arrow").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="cannot be read"):
        data.read("test")


def test_examples_are_drawn_at_random_with_the_seed() -> None:
    table = sentiment_table(50, 0)
    rows = Dataset.from_pandas(table)
    drawn = draw_examples(rows, 10, seed=3)
    assert len(drawn) == 10
    assert in_memory(drawn).equals(in_memory(draw_examples(rows, 10, seed=3)))
    assert in_memory(drawn).equals(table.sample(10, random_state=3).sort_index().reset_index(drop=True))
    assert not in_memory(drawn).equals(in_memory(draw_examples(rows, 10, seed=4)))
    assert not in_memory(drawn)["text"].equals(table["text"].iloc[:10])
    assert draw_examples(rows, 1000, seed=3) is rows
    assert examples_fingerprint(drawn) != examples_fingerprint(draw_examples(rows, 10, seed=4))
    assert examples_fingerprint(drawn) == examples_fingerprint(in_memory(drawn))


def test_a_part_is_checked_for_texts_without_labels_too() -> None:
    texts = {"kind": "masked-lm", "source": "s", "file": "f.csv", "text": "label"}
    assert MaskedLM.model_validate(texts).text == "label"  # whose name means nothing here
    for wrong, message in (({"part": [0.5, 0.5]}, "is empty"), ({"text_pair": "label"}, "must be different columns")):
        with pytest.raises(ValueError, match=message):
            task_of(texts | wrong)
