"""Tables that the library `datasets` reads, and plain text, as a task's `file` names them."""

import gzip
import io
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import (
    Audio,
    ClassLabel,
    Dataset,
    DatasetDict,
    Features,
    LargeList,
    List,
    Sequence,
    Value,
    Video,
    are_progress_bars_disabled,
    config,
)
from datasets import Image as ImageFeature
from PIL import Image

from stages.params import parse_params
from stages.pipeline.stage_settings import settings_text
from stages.prepare import prepare
from stages.running.errors import InputError
from stages.storage.digests import verify_contents, write_contents
from stages.tasks.data import TaskData
from stages.tasks.dataset_files import open_splits
from stages.tasks.reading import reader
from stages.tasks.table_files import Table
from stages.tasks.task import DatasetSplit, Split, Task
from tests.project import ROOT
from tests.tasks.in_memory import read_table, split_examples
from tests.tiny import sentiment_table, stripes
from tests.workshop import task_of

LABELS = ["bad", "good"]
FEATURES = Features({"text": Value("string"), "label": ClassLabel(names=["good", "bad"])})  # not in the task's order
Splits = dict[Split, pd.DataFrame]
OFFICIAL = {"train": 60, "validation": 20, "test": 20}  # rows


def task(**settings: Any) -> Task:
    return task_of({"source": "s", "file": "t.csv", "labels": LABELS} | settings)


def tables() -> dict[str, pd.DataFrame]:
    return {split: sentiment_table(rows, seed) for seed, (split, rows) in enumerate(OFFICIAL.items())}


def data_set(table: pd.DataFrame) -> Dataset:
    return Dataset.from_dict(table.to_dict("list"), features=FEATURES)


def same(one: Splits, other: Splits) -> bool:
    return all(frame.equals(other[split]) for split, frame in one.items())


def contents_of(folder: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever is read, nothing is written to caches or left in the directory of temporary files."""
    caches, temporary = (tmp_path_factory.mktemp(name) for name in ("caches", "temporary"))
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", caches / "datasets")
    monkeypatch.setattr(config, "DOWNLOADED_DATASETS_PATH", caches / "downloads")
    monkeypatch.setattr(config, "EXTRACTED_DATASETS_PATH", caches / "extracted")
    monkeypatch.setattr(config, "HF_MODULES_CACHE", caches / "modules")
    for name in ("HOME", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(caches))
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    before = are_progress_bars_disabled()
    yield
    assert list(caches.rglob("*")) == []
    assert list(temporary.rglob("*")) == []
    assert are_progress_bars_disabled() == before


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The directory of a source."""
    folder = tmp_path / "source"
    folder.mkdir()
    return folder


def read_split(source: Path, entry: DatasetSplit) -> Table:
    with open_splits(source, [entry]) as found:
        return found[entry].table()


def unchanged(read: Callable[[], Any], folder: Path) -> Any:
    """What a reading gives, which must leave the folder and the current directory as they are."""
    before = contents_of(folder), sorted(map(str, folder.rglob("*"))), sorted(Path().iterdir())
    result = read()
    assert before == (contents_of(folder), sorted(map(str, folder.rglob("*"))), sorted(Path().iterdir()))
    return result


def stream(rows: Dataset, file: Path) -> None:
    with pa.OSFile(str(file), "wb") as out, pa.ipc.new_stream(out, rows.data.table.schema) as writer:
        writer.write_table(rows.data.table)


def arrow_file(table: pd.DataFrame, file: Path) -> None:
    rows = data_set(table).data.table
    with pa.OSFile(str(file), "wb") as out, pa.ipc.new_file(out, rows.schema) as writer:
        writer.write_table(rows)


WRITERS: dict[str, Callable[[pd.DataFrame, Path], object]] = {
    "stream.arrow": lambda table, file: stream(data_set(table), file),
    "FILE.ARROW": arrow_file,
    "saved": lambda table, directory: data_set(table).save_to_disk(directory, num_shards=3),
}


@pytest.mark.parametrize("name", WRITERS)
def test_one_table_in_each_form_gives_what_a_csv_gives(source: Path, name: str) -> None:
    table = sentiment_table(100, 0)
    table.to_csv(source / "t.csv", index=False)
    WRITERS[name](table, source / name)
    wanted, _ = split_examples(task(), source)
    found, dropped = unchanged(lambda: split_examples(task(file=name), source), source)
    assert same(found, wanted)
    assert dropped == {"label_not_of_the_task": 0, "repeated_text": 0}


def repository(folder: Path, card: str | None = None) -> None:
    """A repository of the Hub with two configurations: `plain` of Parquet, `commas` of .csv files."""
    for split, table in tables().items():
        (folder / "plain").mkdir(exist_ok=True)
        data_set(table).to_parquet(folder / f"plain/{split}.parquet")
        (folder / "commas").mkdir(exist_ok=True)
        table.rename(columns={"text": "words"}).to_csv(folder / f"commas/{split}.csv", index=False, sep=";")
    (folder / "README.md").write_text(card if card is not None else CARD)
    write_contents(folder)


def configs(**patterns: str) -> str:
    """The head of a card with these configurations, each of three files whose place has {}."""
    lines = ["---", "license: mit", "configs:"]
    for name, pattern in patterns.items():
        lines += [f"- config_name: {name}", "  data_files:"]
        lines += [line for split in OFFICIAL for line in (f"  - split: {split}", f"    path: {pattern.format(split)}")]
        lines += ["  sep: ';'"] if name == "commas" else []
    return "\n".join([*lines, "---", "# A data set", ""])


CARD = configs(commas="commas/{}.csv", plain="plain/{}*")


def per_split(**entry: str) -> dict[str, Any]:
    return {split: {**entry, "split": split} for split in OFFICIAL}


def official(source: Path, **settings: Any) -> Splits:
    """The examples of the official splits as .csv files have them."""
    folder = source.parent / "texts"
    folder.mkdir(exist_ok=True)
    for split, table in tables().items():
        table.to_csv(folder / f"{split}.csv", index=False)
    return split_examples(task(file={split: f"{split}.csv" for split in OFFICIAL}, **settings), folder)[0]


def test_splits_that_a_data_set_dict_was_saved_with(source: Path) -> None:
    DatasetDict({split: data_set(table) for split, table in tables().items()}).save_to_disk(source / "inner/saved")
    found, _ = unchanged(lambda: split_examples(task(file=per_split(directory="inner/saved")), source), source)
    assert same(found, official(source))
    one, _ = split_examples(task(file={"directory": "inner/saved", "split": "train"}), source)
    assert sum(map(len, one.values())) == OFFICIAL["train"]
    with pytest.raises(InputError, match=r"has several splits; .*: \{directory: inner/saved, split: train\}, \{"):
        split_examples(task(file="inner/saved"), source)
    with pytest.raises(InputError, match=r"saved: has no split 'dev'; it has: train, validation, test$"):
        split_examples(task(file={"directory": "inner/saved", "split": "dev"}), source)
    with pytest.raises(InputError, match=r"is no directory that DatasetDict\.save_to_disk wrote"):
        split_examples(task(file={"directory": "inner", "split": "dev"}), source)
    with pytest.raises(InputError, match="train: has no splits; write `file: inner/saved/train`"):
        split_examples(task(file={"directory": "inner/saved/train", "split": "dev"}), source)


def test_configurations_of_a_repository(source: Path) -> None:
    repository(source)
    wanted = official(source)
    found, _ = unchanged(lambda: split_examples(task(file=per_split(config="plain")), source), source)
    assert same(found, wanted)
    found, _ = split_examples(task(file=per_split(config="commas"), text="words"), source)
    assert same(found, wanted)
    several = [{"config": "plain", "split": "train"}, {"config": "plain", "split": "validation"}, "more.jsonl"]
    sentiment_table(10, 7).to_json(source / "more.jsonl", orient="records", lines=True)
    found, dropped = split_examples(task(file={"train": several, "test": {"config": "plain", "split": "test"}}), source)
    assert found["test"].equals(wanted["test"])
    assert sum(map(len, found.values())) == sum(OFFICIAL.values()) + 10 - dropped["repeated_text"]
    for entry, message in {
        ("plane", "train"): r"source: has no configuration 'plane'; it has: commas, plain$",
        ("plain", "dev"): r"source \{config: plain, split: dev\}: has no split 'dev'; it has: train, validation, test$",
        (None, "train"): r"source: has several configurations; name one as `config`: commas, plain$",
    }.items():
        with pytest.raises(InputError, match=message) as caught:
            read_split(source, DatasetSplit(config=entry[0], split=entry[1]))
        assert str(caught.value).isprintable()


@pytest.mark.parametrize("card", ["", configs(plain="plain/{}*")])
def test_the_only_configuration_needs_no_name(source: Path, card: str) -> None:
    repository(source, card)
    shutil.rmtree(source / "commas")
    write_contents(source)
    found, _ = split_examples(task(file=per_split()), source)
    assert same(found, official(source))
    with pytest.raises(InputError, match=f"has no configuration 'x'; it has: {'plain' if card else 'default'}$"):
        read_split(source, DatasetSplit(config="x", split="train"))


def test_a_repository_of_one_file_is_not_read_with_the_list_of_its_contents(source: Path) -> None:
    for name in ("t.csv", "t.jsonl"):
        folder = source / name.partition(".")[2]
        folder.mkdir()
        table = sentiment_table(30, 0)
        table.to_csv(folder / name, index=False) if name == "t.csv" else table.to_json(
            folder / name, orient="records", lines=True
        )
        write_contents(folder)
        found = read_split(folder, DatasetSplit(split="train"))
        assert found.rows[["text", "label"]].values.tolist() == table.values.tolist()


def test_other_configurations_need_no_files(source: Path) -> None:
    """As of a source whose `files` are those of one configuration."""
    repository(source)
    shutil.rmtree(source / "commas")
    found, _ = split_examples(task(file=per_split(config="plain")), source)
    assert same(found, official(source))


def test_what_a_card_says_of_its_features_and_what_goes_before_it(source: Path) -> None:
    table = sentiment_table(30, 0)
    coded = table.assign(label=[FEATURES["label"].str2int(label) for label in table["label"]])
    (source / "data").mkdir()
    coded.to_csv(source / "data/all.csv", index=False)
    names = "\n".join(f"          '{number}': {name}" for number, name in enumerate(["good", "bad"]))
    (source / "README.md").write_text(
        "---\nconfigs:\n- config_name: a\n  data_files: nowhere.csv\ndataset_info:\n- config_name: b\n  features:\n"
        "  - name: text\n    dtype: string\n  - name: label\n    dtype:\n      class_label:\n        names:\n"
        f"{names}\n---\n"
    )
    (source / ".huggingface.yaml").write_text("configs:\n- config_name: b\n  data_files: data/*.csv\n")
    assert read_split(source, DatasetSplit(split="train")).rows.values.tolist() == table.values.tolist()


@pytest.mark.parametrize("listed", [False, True])
def test_what_an_old_card_says_of_features_by_another_name(source: Path, listed: bool) -> None:
    (source / "train.txt").write_text("a\nb\n")
    info = {"config_name": "plain_text", "features": [{"name": "text", "dtype": "large_string"}]}
    (source / "README.md").write_text(f"---\n{json.dumps({'dataset_info': [info] if listed else info})}\n---\n")
    assert read_split(source, DatasetSplit(split="train")).rows["text"].tolist() == ["a", "b"]
    with pytest.raises(InputError, match="has no configuration 'plain_text'; it has: default"):
        read_split(source, DatasetSplit(config="plain_text", split="train"))


def test_fewer_rows_than_the_card_says(source: Path) -> None:
    (source / "train.txt").write_text("a\nb\n")
    splits = [{"name": "train", "num_bytes": 1, "num_examples": 7}]
    info = {"features": [{"name": "text", "dtype": "string"}], "splits": splits}
    (source / "README.md").write_text(f"---\n{json.dumps({'dataset_info': info})}\n---\n")
    with pytest.raises(InputError, match=r"cannot be read as a data set: NonMatchingSplitsSizesError .*num_examples=7"):
        read_split(source, DatasetSplit(split="train"))


@pytest.mark.parametrize(
    "pattern",
    ["../texts/{}.csv", "/etc/{}*", "https://example.org/{}.csv", "zip://{}.csv::plain.zip", "hf://datasets/x/{}"],
)
def test_configurations_stay_in_the_source(source: Path, pattern: str) -> None:
    official(source)
    repository(source, configs(it=pattern))
    with pytest.raises(InputError, match=r"README\.md: the configuration it has files outside the source: '"):
        read_split(source, DatasetSplit(config="it", split="train"))


def test_scripts_are_not_run(source: Path) -> None:
    repository(source)
    mark = source.parent / "run"
    text = f"import datasets\nopen({str(mark)!r}, 'w')\nclass It(datasets.GeneratorBasedBuilder): ...\n"
    for name in ("source.py", "it.py"):
        (source / name).write_text(text)
        with pytest.raises(
            InputError, match=rf"{name}: this data set is made by a script, and no code of others is run"
        ):
            read_split(source, DatasetSplit(config="plain", split="train"))
        (source / name).write_text("print('of no interest')\n")
    assert not mark.exists()
    assert len(read_split(source, DatasetSplit(config="plain", split="train")).rows) == OFFICIAL["train"]


def test_files_of_other_kinds_are_refused(source: Path) -> None:
    with pytest.raises(InputError, match="cannot be read as a data set: "):
        read_split(source, DatasetSplit(split="train"))
    (source / "a.xml").write_text("<a/>")
    with pytest.raises(
        InputError, match="has files of the kind xml; read are arrow, csv, imagefolder, json, parquet, text"
    ):
        read_split(source, DatasetSplit(split="train"))
    (source / "a.xml").rename(source / "a.jsonl")
    with pytest.raises(
        InputError, match=r"cannot be read as a data set: Failed to load JSON from file 'a\.jsonl'"
    ) as caught:
        read_split(source, DatasetSplit(split="train"))
    assert str(caught.value).isprintable()
    with pytest.raises(InputError, match="no such directory"):
        read_split(source / "x", DatasetSplit(split="train"))


def test_names_decide_and_positions_never(source: Path) -> None:
    data_set(sentiment_table(30, 0)).save_to_disk(source / "saved")
    with pytest.raises(InputError, match=r"saved: row \d: the label '(good|bad)' is not one of the task's: no, yes"):
        split_examples(task(file="saved", labels=["no", "yes"]), source)


def test_labels_that_are_missing_or_unknown(source: Path) -> None:
    rows = {"text": ["a", "b", "c"], "label": [0, -1, None], "tags": [[0, 1], [-1], None]}
    features = Features({**FEATURES, "tags": List(ClassLabel(names=["O", "B"]))})
    Dataset.from_dict(rows, features=features).save_to_disk(source / "saved")
    found = read_table(source / "saved", None)
    assert found.column("label").tolist() == ["good", None, None]
    assert found.column("tags").tolist() == [["O", "B"], [None], None]
    with pytest.raises(InputError, match=r"saved: row 2: has no label \(2 such rows\)"):
        split_examples(task(file="saved"), source)
    metadata = {b"huggingface": json.dumps({"info": {"features": FEATURES.to_dict()}}).encode()}
    strange = pa.table({"text": ["a", "b"], "label": pa.array([1, 7])}).replace_schema_metadata(metadata)
    with pa.OSFile(str(source / "t.arrow"), "wb") as out, pa.ipc.new_stream(out, strange.schema) as writer:
        writer.write_table(strange)
    with pytest.raises(InputError, match=r"t\.arrow: row 2: label is the label 7, and the data set names 0 to 1$"):
        split_examples(task(file="t.arrow"), source)


def test_a_parquet_file_of_the_library_names_its_labels(source: Path) -> None:
    """In whatever order params.yaml lists them: its numbers are positions in the file's own list."""
    table = sentiment_table(400, 0)  # of several row groups and parts
    whole = data_set(pd.concat([table] * 3, ignore_index=True))
    whole.to_parquet(source / "t.parquet", batch_size=150)
    of_text = dict(zip(table["text"], table["label"], strict=True))
    for labels in (["bad", "good"], ["good", "bad"]):
        splits, _ = split_examples(task(file="t.parquet", labels=labels), source)
        for rows in splits.values():
            assert [labels[position] for position in rows["label"]] == [of_text[text] for text in rows["text"]]
    strange = whole.data.table.slice(0, 2).set_column(1, "label", pa.array([1, 7]))
    described = strange.replace_schema_metadata(pq.read_schema(source / "t.parquet").metadata)
    pq.write_table(described, source / "t.parquet")
    with pytest.raises(InputError, match=r"t\.parquet: row 2: label is the label 7, and the data set names 0 to 1$"):
        split_examples(task(file="t.parquet"), source)
    pq.write_table(strange.replace_schema_metadata({b"huggingface": b"{"}), source / "t.parquet")
    with pytest.raises(InputError, match=r"t\.parquet: cannot be read as a data set: "):
        split_examples(task(file="t.parquet"), source)


def test_values_are_those_of_a_parquet_file(source: Path) -> None:
    rows = {
        "text": ["a", None, "é"],
        "whole": [1, 2, 3],
        "some": [1, None, 3],
        "half": [0.5, None, 1.0],
        "truth": [True, False, True],
        "day": [datetime(2020, 1, 1), datetime(1999, 12, 31, 23, 59), None],
        "raw": [b"a", b"", None],
    }
    features = Features(
        {
            "text": Value("string"),
            "whole": Value("int64"),
            "some": Value("int32"),
            "half": Value("float64"),
            "truth": Value("bool"),
            "day": Value("timestamp[us]"),
            "raw": Value("binary"),
        }
    )
    found = Dataset.from_dict(rows, features=features)
    found.save_to_disk(source / "saved")
    found.to_parquet(source / "described.parquet")
    pq.write_table(found.data.table.replace_schema_metadata(None), source / "t.parquet")
    wanted = read_table(source / "t.parquet", None).rows
    for name in ("saved", "described.parquet"):
        pd.testing.assert_frame_equal(read_table(source / name, None).rows, wanted)


def test_lists_are_lists_and_mappings_are_mappings(source: Path) -> None:
    messages = [[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], []]
    rows = {"tags": [["a"], None], "large": [[1, 2], []], "many": [{"x": [1]}, {"x": []}], "messages": messages}
    features = Features(
        {
            "tags": List(Value("string")),
            "large": LargeList(Value("int32")),
            "many": Sequence({"x": Value("int32")}),
            "messages": List({"role": Value("string"), "content": Value("string")}),
        }
    )
    Dataset.from_dict(rows, features=features).save_to_disk(source / "saved")
    found = read_table(source / "saved", None).rows
    assert {name: found[name].tolist() for name in found} == rows


def test_features_that_are_not_read_are_refused_by_name_where_they_are_asked_for(source: Path) -> None:
    table = sentiment_table(30, 0)
    features = Features({**FEATURES, "sound": Audio(), "film": List(Video())})
    empty = [None] * len(table)
    rows = Dataset.from_dict({**table.to_dict("list"), "sound": empty, "film": empty}, features=features)
    rows.save_to_disk(source / "saved")
    assert len(split_examples(task(file="saved"), source)[0]["train"]) > 10
    for column, feature in {"sound": "Audio", "film": "Video"}.items():
        with pytest.raises(
            InputError, match=f"saved: the column {column} is of the feature {feature}, which is not read"
        ):
            split_examples(task(file="saved", text=column), source)
    with pytest.raises(InputError, match=r"saved: has no column 'words'; its columns: text, label$"):
        split_examples(task(file="saved", text="words"), source)


def test_tags_by_name_and_words(source: Path) -> None:
    features = Features({"words": List(Value("string")), "tag": List(ClassLabel(names=["B", "O"]))})
    rows = {"words": [["a", f"b{number}"] for number in range(20)], "tag": [[0, 1]] * 20}
    Dataset.from_dict(rows, features=features).save_to_disk(source / "saved")
    own = task(kind="token-classification", file="saved", labels=["O", "B"])
    splits, _ = split_examples(own, source)
    assert set(splits["train"]["label"]) == {"[1, 0]"}
    with pytest.raises(ValueError, match="`form`: conll is for files of tagged words"):
        task(kind="token-classification", file={"split": "train"}, labels=["O", "B"], form="conll")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.arrow", b"", r"t\.arrow: cannot be read as a data set: "),
        ("t.arrow", b"text,label\na,bad\n", r"t\.arrow: cannot be read as a data set: "),
        ("t.arrow", b"ARROW1\0\0", r"t\.arrow: cannot be read as a data set: "),
        ("t.arrow.gz", gzip.compress(b"", mtime=0), r"not a table that can be read, by its name"),
        ("saved/state.json", b"{", r"state\.json: cannot be read"),
        ("saved/state.json", b"[]", r"state\.json: is no JSON object"),
        ("saved/state.json", b"{}", r"state\.json: lists no files of its directory"),
        ("saved/state.json", b'{"_data_files": 3}', r"state\.json: lists no files of its directory"),
        ("saved/state.json", b'{"_data_files": [{"filename": "../t.arrow"}]}', "lists no files of its directory"),
        ("saved/state.json", b'{"_data_files": [{"filename": "a.arrow"}]}', r"a\.arrow: is missing; save"),
        ("saved/dataset_dict.json", b'{"splits": 1}', r"dataset_dict\.json: lists no splits"),
        ("saved/other.txt", b"", "is a directory without images, and not one that save_to_disk wrote"),
    ],
)
def test_what_is_broken_is_refused_in_one_line(source: Path, name: str, content: bytes, message: str) -> None:
    (source / name).parent.mkdir(exist_ok=True)
    (source / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        split_examples(task(file=name.partition("/")[0]), source)
    assert str(caught.value).isprintable()


def test_texts_that_are_not_utf8(source: Path) -> None:
    text = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")])
    rows = pa.table({"text": text})
    with pa.OSFile(str(source / "t.arrow"), "wb") as out, pa.ipc.new_stream(out, rows.schema) as writer:
        writer.write_table(rows)
    with pytest.raises(InputError, match=r"t\.arrow: cannot be read as a data set: .*UTF8"):
        read_table(source / "t.arrow", None)


@pytest.mark.parametrize("name", WRITERS)
def test_damage_is_refused_and_ends_no_process(source: Path, name: str) -> None:
    WRITERS[name](sentiment_table(20, 0), source / name)
    file = min((source / name).glob("*.arrow")) if (source / name).is_dir() else source / name
    whole = file.read_bytes()
    random = Random(0)
    for _ in range(200):
        content = bytearray(whole[: random.choice([len(whole), random.randrange(len(whole))])])
        for _ in range(3 * bool(content)):
            content[random.randrange(len(content))] = random.randrange(256)
        file.write_bytes(content)
        with suppress(InputError):
            read_table(source / name, None)


def test_links_do_not_lead_out_of_the_source(source: Path) -> None:
    elsewhere = source.parent / "elsewhere"
    repository_like = source / "repository"
    data_set(sentiment_table(30, 0)).save_to_disk(elsewhere)
    (source / "link").symlink_to(elsewhere)
    with pytest.raises(InputError, match="link: is a link that leads out of the source"):
        split_examples(task(file="link"), source)
    data_set(sentiment_table(30, 0)).save_to_disk(source / "saved")
    shard = next((source / "saved").glob("*.arrow"))
    shard.unlink()
    shard.symlink_to(next(elsewhere.glob("*.arrow")))
    with pytest.raises(InputError, match=r"arrow: is a link that leads out of the source"):
        split_examples(task(file="saved"), source)
    write_contents(source)  # as DVC leaves what it has fetched, with `cache.type symlink`
    assert len(split_examples(task(file="saved"), source)[0]["train"]) > 10
    repository_like.mkdir()
    sentiment_table(30, 0).to_csv(elsewhere / "t.csv", index=False)
    (repository_like / "t.csv").symlink_to(elsewhere / "t.csv")
    with pytest.raises(InputError, match=r"t\.csv: is a link that leads out of the source; put a copy there"):
        read_split(repository_like, DatasetSplit(split="train"))
    write_contents(repository_like)
    assert len(read_split(repository_like, DatasetSplit(split="train")).rows) == 30


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG")
    return file.getvalue()


def pictures(**settings: Any) -> Task:
    content = {
        "kind": "image-classification",
        "file": "images",
        "labels": ["down", "across"],
        "image": {"column": "image"},
    }
    return task(**(content | settings))


def image_folder(folder: Path, rows: int = 40, seed: int = 0) -> pd.DataFrame:
    """A folder for each class; and what the same images are in a table, in the order of their paths."""
    table = []
    for number, (image, label) in enumerate(zip(*stripes(rows, seed), strict=True)):
        (folder / label).mkdir(parents=True, exist_ok=True)
        (folder / label / f"{number:03}.png").write_bytes(png(image))
        table.append((f"{label}/{number:03}", png(image), label))
    return pd.DataFrame(sorted(table), columns=["path", "image", "label"])


def test_folders_of_images(source: Path) -> None:
    table = image_folder(source / "images")
    table[["image", "label"]].to_parquet(source / "t.parquet")
    (source / "images/.hidden.png").write_bytes(b"")
    (source / "images/notes.txt").write_text("of no interest")
    wanted, _ = split_examples(pictures(file="t.parquet"), source)
    found, _ = unchanged(lambda: split_examples(pictures(), source), source)
    assert same(found, wanted)
    rows = read_table(source / "images", None).rows
    assert [cell["bytes"] for cell in rows["image"]] == table["image"].tolist()
    assert list(rows.columns) == ["image", "label"]
    (source / "images/down/zero.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"images: row 41 \(down/zero\.png\): image cannot be read as PNG"):
        split_examples(pictures(), source)


def test_folders_of_links_as_dvc_leaves_them(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `cache.type symlink`, from the project's directory."""
    image_folder(source / "images")
    cache = source.parent / "cache"
    shutil.copytree(source, cache)
    monkeypatch.chdir(source.parent)
    place = Path("source")
    wanted, _ = split_examples(pictures(), place)
    for number, file in enumerate(sorted(place.rglob("*.png"))):
        (cache / str(number)).write_bytes(file.read_bytes())
        file.unlink()
        file.symlink_to(cache / str(number))
    everything = {"split": "train"}
    for entry in ("images", everything):
        with pytest.raises(InputError, match=r"png: is a link that leads out of the source"):
            split_examples(pictures(file=entry), place)
    write_contents(place)
    for entry in ("images", everything):
        assert same(split_examples(pictures(file=entry), place)[0], wanted)


def test_classes_may_be_called_as_splits_are_and_may_be_one(source: Path) -> None:
    for split, seed in {"train": 0, "test": 1}.items():
        image_folder(source / split, 20, seed)
        (source / split / "across").rename(source / split / "train")
        (source / split / "down").rename(source / split / "test")
    shutil.rmtree(source / "test/test")
    splits, _ = split_examples(pictures(file={"train": "train", "test": "test"}, labels=["train", "test"]), source)
    assert {split: len(frame) for split, frame in splits.items()} == {"train": 17, "validation": 3, "test": 10}
    assert set(splits["test"]["label"]) == {0}


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_folders_with_metadata(source: Path, ending: str) -> None:
    table = image_folder(source / "images")
    metadata = pd.DataFrame({"file_name": table["path"] + ".png", "way": table["label"]})
    if ending == "csv":
        metadata.to_csv(source / "images/metadata.csv", index=False)
    else:
        metadata.to_json(source / "images/metadata.jsonl", orient="records", lines=True)
    table[["image", "label"]].to_parquet(source / "t.parquet")
    wanted, _ = split_examples(pictures(file="t.parquet"), source)
    found, _ = split_examples(pictures(label="way"), source)
    assert same(found, wanted)
    with pytest.raises(InputError, match=r"images: has no column 'label'; its columns: image, way"):
        split_examples(pictures(), source)


def test_metadata_names_every_image(source: Path) -> None:
    table = image_folder(source / "images")
    names = table["path"] + ".png"
    some = pd.DataFrame({"file_name": names, "way": table["label"]}).drop(index=[3, 7])
    some.to_csv(source / "images/metadata.csv", index=False)
    first = sorted(names[[3, 7]], key=lambda name: Path(name).parts)[0]
    refused = rf"images: 2 of its {len(table)} images, {first} first, are in no row of metadata\.csv; add them to it"
    with pytest.raises(InputError, match=refused):
        split_examples(pictures(label="way"), source)


def test_an_image_that_a_data_set_refers_to_is_as_it_was_fetched(source: Path) -> None:
    table = image_folder(source / "images")
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["across", "down"])})
    files = [str(Path("images") / f"{path}.png") for path in table["path"]]
    rows = {"image": [{"path": file, "bytes": None} for file in files], "label": table["label"].tolist()}
    stream(Dataset.from_dict(rows, features=features), source / "t.arrow")
    write_contents(source)
    split_examples(pictures(file="t.arrow"), source)
    (source / files[3]).write_bytes(png(stripes(1, 5)[0][0]))
    with pytest.raises(InputError, match=rf"{files[3]}: its contents are not what contents\.json says"):
        split_examples(pictures(file="t.arrow"), source)


@pytest.mark.parametrize(
    "strange",
    [
        pa.array([[10**15], None], pa.list_(pa.timestamp("s"))),
        pa.array([2**30, 0], pa.date32()),
        pa.array([0, 1], pa.timestamp("s", tz="Foo/Bar")),
    ],
    ids=["timestamps", "date", "zone"],
)
def test_values_that_are_none_of_pythons_are_refused_in_one_line(source: Path, strange: pa.Array) -> None:
    rows = pa.table({"text": ["good", "bad"], "label": ["good", "bad"], "strange": strange})
    with pa.OSFile(str(source / "t.arrow"), "wb") as out, pa.ipc.new_stream(out, rows.schema) as writer:
        writer.write_table(rows)
    with pytest.raises(InputError, match=r"t\.arrow: cannot be read as a data set: |column strange"):
        split_examples(task(file="t.arrow"), source)


def test_metadata_does_not_lead_out_of_the_source(source: Path) -> None:
    image_folder(source / "images", 4)
    (source.parent / "secret.png").write_bytes(png(stripes(1, 5)[0][0]))
    (source / "images/metadata.csv").write_text("file_name,way\n../../secret.png,down\n")
    with pytest.raises(InputError, match="images: "):
        split_examples(pictures(label="way"), source)


def test_a_repository_of_images(source: Path) -> None:
    for split, seed in {"train": 0, "test": 1}.items():
        image_folder(source / "data" / split, 20, seed)
    write_contents(source)
    found, _ = unchanged(
        lambda: split_examples(pictures(file={name: {"split": name} for name in ("train", "test")}), source), source
    )
    wanted, _ = split_examples(pictures(file={"train": "data/train", "test": "data/test"}), source)
    assert same(found, wanted)


def test_images_that_are_only_named(source: Path) -> None:
    table = image_folder(source / "images")
    wanted, _ = split_examples(pictures(), source)
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["across", "down"])})

    def write(images: list[Any]) -> None:
        rows = {"image": images, "label": table["label"].tolist()}
        stream(Dataset.from_dict(rows, features=features), source / "t.arrow")

    for place in (f"{source}/images", "images", "./images/../images"):
        write([{"bytes": None, "path": f"{place}/{path}.png"} for path in table["path"]])
        assert same(split_examples(pictures(file="t.arrow"), source)[0], wanted)
    (source / "inner").mkdir()
    (source / "t.arrow").rename(source / "inner/t.arrow")
    with pytest.raises(InputError, match=r"row 1: image refers to '\./images/.*png': No such file or directory; save"):
        split_examples(pictures(file="inner/t.arrow"), source)
    (source / "images").rename(source.parent / "images")
    (source / "link.png").symlink_to(source.parent / f"images/{table['path'][0]}.png")
    for path in (f"{source.parent}/images/a.png", "../images/a.png", "link.png", "https://example.org/a.png"):
        write([{"bytes": None, "path": path}] * len(table))
        with pytest.raises(
            InputError, match=r"t\.arrow: row 1: image refers to '.*png', which is not a file in the source"
        ):
            split_examples(pictures(file="t.arrow"), source)
    write([{"bytes": image, "path": "a.png"} for image in table["image"]])
    assert same(split_examples(pictures(file="t.arrow"), source)[0], wanted)
    write([None] * len(table))
    with pytest.raises(InputError, match=r"t\.arrow: row 1: image has no bytes of an image"):
        split_examples(pictures(file="t.arrow"), source)


@pytest.mark.parametrize("compressed", [False, True])
def test_plain_text(source: Path, compressed: bool) -> None:
    texts = sentiment_table(30, 0)["text"].tolist()
    content = ("\ufeff" + "\r\n".join([*texts[:10], "", " \t", *texts[10:]])).encode()
    name = "prose.gz" if compressed else "prose"
    (source / name).write_bytes(gzip.compress(content, mtime=0) if compressed else content)
    pd.DataFrame({"text": texts}).to_csv(source / "t.csv", index=False)
    for kind in ("masked-lm", "causal-lm"):
        settings = {"kind": kind, "source": "s"} | ({"text": "text"} if kind == "causal-lm" else {})
        found, _ = split_examples(task_of(settings | {"file": name, "format": "text"}), source)
        wanted, _ = split_examples(task_of(settings | {"file": "t.csv"}), source)
        assert same(found, wanted)
    own = task_of({"kind": "causal-lm", "source": "s", "text": "text", "file": name, "format": "text"})
    table = reader("causal-lm").open(own, source / name).table()
    assert [table.place(row) for row in table.rows.index[8:12]] == ["line 9", "line 10", "line 13", "line 14"]
    with pytest.raises(InputError, match="has no column 'words'; its columns: text"):
        split_examples(
            task_of({"kind": "masked-lm", "source": "s", "file": name, "format": "text", "text": "words"}), source
        )


def test_text_that_is_none(source: Path) -> None:
    own = task_of({"kind": "masked-lm", "source": "s", "file": "prose", "format": "text"})
    with pytest.raises(InputError, match="no such file in the source"):
        split_examples(own, source)
    (source / "prose").write_bytes(b"a\nb\n\xff\n")
    with pytest.raises(InputError, match="line 3 is not UTF-8 text"):
        split_examples(own, source)
    (source / "prose").write_bytes(b" \n")
    with pytest.raises(InputError, match="cannot be split"):
        split_examples(own, source)


def test_directories_and_configurations_are_compared_with_what_was_fetched(source: Path) -> None:
    repository(source)
    data_set(sentiment_table(30, 0)).save_to_disk(source / "saved")
    write_contents(source)
    wholes = [task(file=per_split(config="plain")).files, task(file="saved").files, ["saved/"], ["plain/test.parquet"]]
    assert wholes[:2] == [["."], ["saved"]]
    for names in wholes:
        verify_contents(source, names)
    info = source / "saved/dataset_info.json"
    info.write_text(info.read_text() + " ")
    for names in wholes[:3]:
        with pytest.raises(InputError, match=r"dataset_info\.json: its contents are not what contents\.json says"):
            verify_contents(source, names)
    verify_contents(source, ["plain/test.parquet"])
    info.unlink()
    with pytest.raises(InputError, match=r"dataset_info\.json: is gone; contents\.json lists it"):
        verify_contents(source, ["saved"])
    info.write_text("")
    write_contents(source)
    (source / "saved/more.arrow").write_text("")
    with pytest.raises(InputError, match=r"more\.arrow: is not among the files that contents\.json lists"):
        verify_contents(source, ["saved"])
    verify_contents(source, ["plain"])


def content(**settings: Any) -> dict[str, Any]:
    return {
        "sources": {"s": {"hub": "org/name", "repo_type": "dataset", "revision": 40 * "a"}},
        "tasks": {"it": {"source": "s", "labels": LABELS} | settings},
        "models": {},
    }


def test_the_stage(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ruamel.yaml import YAML

    monkeypatch.chdir(source)
    fetched = source / "data/sources/s"
    fetched.mkdir(parents=True)
    repository(fetched)
    YAML().dump(content(file=per_split(config="plain")), source / "params.yaml")
    prepare("it")
    wanted = official(source)
    data = TaskData.open(Path("data/tasks/it"))
    assert all(data.read(split).equals(wanted[split]) for split in wanted)
    with (fetched / "commas/test.csv").open("a") as file:
        file.write("\n")
    with pytest.raises(InputError, match=r"test\.csv: its contents are not what contents\.json says"):
        prepare("it")


def test_the_examples_of_the_readme_are_what_the_schema_takes() -> None:
    from ruamel.yaml import YAML

    text = (ROOT / "stages/tasks/README.md").read_text(encoding="utf-8")
    found = text.partition("## Data sets of the library")[2].partition("\n\n")[2].partition("\n\n- ")[0]
    example = YAML(typ="safe").load(found.replace("<commit>", 40 * "a").replace("…", 64 * "a"))
    assert len(parse_params(example | {"models": {}}).tasks) == 5


@pytest.mark.parametrize(
    ("file", "dumped"),
    [
        ("t.csv", "t.csv"),
        (["a.csv", "b.csv"], None),
        ({"train": "a.csv", "test": ["b.csv", "c.csv"]}, None),
        ({"split": "train"}, None),
        ({"directory": "saved", "split": "train"}, None),
        ([{"config": "c", "split": "train"}, "t.csv"], None),
        ({"train": {"config": "c", "split": "train"}, "test": [{"split": "test"}]}, None),
    ],
)
def test_a_file_is_told_to_its_stage_as_it_is_written(file: Any, dumped: Any) -> None:
    params = parse_params(content(file=file))
    told = json.loads(settings_text("prepare@it", params))
    assert told["file"] == (dumped or file)
    assert "format" not in told
    keys = "columns examples file kind label labels max_length part source split text text_pair"
    assert sorted(told) == keys.split()
    assert json.loads(settings_text("prepare@it", parse_params(content(file="t", format="text"))))["format"] == "text"


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ({"config": "c"}, r"it\.file\.split: missing$"),
        ({"config": "c", "splt": "t"}, r"it\.file\.splt: unknown key; .*\(did you mean split\?\)"),
        (
            {"train": "a", "config": "c", "split": "t"},
            r"it\.file\.train: unknown key; allowed: config, directory, split",
        ),
        ({"directory": "d", "config": "c", "split": "t"}, r"it\.file: give one of `directory` and `config`"),
        (
            {"train": "a", "tset": "b"},
            r"it\.file\.tset: unknown key; allowed: 'train', 'validation' or 'test' \(or dir",
        ),
        ({"train": "a", "test": {"split": "t", "x": 1}}, r"it\.file\.test\.x: unknown key; allowed: config, directory"),
        ({"directory": "../d", "split": "t"}, r"it\.file\.directory: '\.\./d' must stay inside the source"),
        ([{"split": "a/../b"}], r"it\.file\.0\.split = 'a/\.\./b': string should match"),
        ({"split": "train[:5%]"}, r"it\.file\.split = "),
        ({"train": [], "test": "b"}, r"it\.file\.train = \[\]: list should have at least 1 item"),
    ],
)
def test_entries_that_are_refused(file: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        parse_params(content(file=file))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"format": "csv"}, r"it\.format = 'csv': input should be 'text'"),
        ({"format": "text", "file": {"split": "t"}}, r"`format` is for files, and \{split: t\} is none"),
        ({"format": "text", "columns": ["text"]}, "`columns`: a plain text has one column"),
        ({"format": "text", "field": "x"}, "`field`: a plain text has one column"),
    ],
)
def test_formats_that_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_params(content(**({"file": "t"} | settings)))
