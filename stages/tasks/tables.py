"""From tables in a source to examples in three splits."""

import gzip
import json
from collections.abc import Iterable
from hashlib import sha256
from numbers import Number
from pathlib import Path

import pandas as pd

from stages.errors import InputError
from stages.params import SPLITS, Split, Task

COMPRESSED = ".gz"
ORANGE_TYPES = {"c", "continuous", "d", "discrete", "s", "string", "t", "time"}


def split_examples(task: Task, source: Path) -> tuple[dict[Split, pd.DataFrame], dict[str, int]]:
    """The task's examples: columns `text` (and `text_pair`), or an image's; `label` (a position) if it has labels.

    Rows whose numeric label lies in no interval are dropped, without labels those that have no text, and repeated texts
    or images (their first row is kept), so that none is in two splits. Splits are stratified by label, if there are
    labels, and depend on nothing but the table, `split.seed`, and how many rows are wanted: images are corrupted
    afterwards.

    Returns:
        The splits, and how many rows were dropped for what reason.

    Raises:
        InputError: a file or column is missing, a label is not one of the task's, or a split is empty.
    """
    if not isinstance(task.file, dict):
        table, dropped = _read_examples(task, source, task.file)
        table, repeated = _without_repeats(table)
        table = _part(table, task)
        if task.examples is not None and task.examples < len(table):
            table = table.sample(task.examples, random_state=task.split.seed).sort_index()
        rest, test = _split(table, round(task.split.test * len(table)), task)
        train, validation = _split(rest, round(task.split.validation * len(table)), task)
    else:
        tables = {split: _read_examples(task, source, files) for split, files in task.file.items()}
        dropped = sum(count for _, count in tables.values())
        # Test first: where a text is in two splits, the training example goes.
        order = [split for split in ("test", "validation", "train") if split in tables]
        joined, repeated = _without_repeats(pd.concat([tables[split][0].assign(split=split) for split in order]))
        parts = {split: _part(joined[joined["split"] == split].drop(columns="split"), task) for split in order}
        train, test = parts["train"], parts["test"]
        if task.examples is not None and task.examples < len(train):
            train = train.sample(task.examples, random_state=task.split.seed).sort_index()
        if "validation" in parts:
            validation = parts["validation"]
        else:
            train, validation = _split(train, round(task.split.validation * len(train)), task)
    splits: dict[Split, pd.DataFrame] = {"train": train, "validation": validation, "test": test}
    for split in SPLITS:
        if splits[split].empty:
            raise InputError(f"{task.file}: the {split} split is empty; give more rows or change the task's `split`")
    splits = {split: frame.reset_index(drop=True) for split, frame in splits.items()}
    if task.corruptions:
        from stages.tasks.images import corrupted

        splits = {split: corrupted(frame, task.corruptions, task.split.seed) for split, frame in splits.items()}
    what = "text" if task.image is None else "image"
    return splits, {"label_in_no_interval" if task.labels else "no_text": dropped, f"repeated_{what}": repeated}


def _without_repeats(table: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    inputs = [column for column in table.columns if column not in ("label", "split")]
    kept = table.drop_duplicates(subset=inputs)
    return kept, len(table) - len(kept)


def _part(table: pd.DataFrame, task: Task) -> pd.DataFrame:
    """The rows whose place between 0 and 1, which their contents and the seed decide, lies in the task's part."""
    if task.part is None:
        return table
    first, last = task.part
    inputs = table.drop(columns="label", errors="ignore")
    places = [_place(row, task.split.seed) for row in inputs.itertuples(index=False)]
    return table[[first <= place < last for place in places]]


def _place(contents: Iterable[object], seed: int) -> float:
    """A number in [0, 1), evenly spread over contents and the same for the same, in whichever table they are."""
    digest = sha256(str(seed).encode())
    for content in contents:
        digest.update(b"\0" + (content if isinstance(content, bytes) else str(content).encode()))
    return int.from_bytes(digest.digest()[:6], "big") / 2**48


def _split(table: pd.DataFrame, rows: int, task: Task) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Two parts, the second of `rows` rows, stratified by label if there are labels, in the table's order."""
    from sklearn.model_selection import train_test_split

    try:
        first, second = train_test_split(
            table, test_size=rows, random_state=task.split.seed, stratify=table.get("label"), shuffle=True
        )
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{task.file}: {len(table)} usable rows cannot be split: {reason}") from None
    return first.sort_index(), second.sort_index()


def _read_examples(task: Task, source: Path, files: str | list[str]) -> tuple[pd.DataFrame, int]:
    """The examples of one file, or of several one after the other, and how many of their rows are none."""
    names = [files] if isinstance(files, str) else files
    parts = [_read_file(task, source / name) for name in names]
    if len(parts) == 1:
        return parts[0]
    return pd.concat([examples for examples, _ in parts], ignore_index=True), sum(dropped for _, dropped in parts)


def _read_file(task: Task, file: Path) -> tuple[pd.DataFrame, int]:
    """The examples of one file, and how many rows have no text, or a label in no interval."""
    table = _read_table(task, file)
    if not task.labels:
        return _read_unlabelled(task, table, file)
    if task.image is None:
        inputs = _read_texts(task, table, file)
    else:
        from stages.tasks.images import read_images

        _check_columns([task.label], table, file)
        inputs = read_images(task, table, file)
    labels = _interval_labels(task, table[task.label], file) if isinstance(task.labels, dict) else None
    if labels is None:
        labels = _named_labels(list(task.labels), table[task.label], file)
    examples = inputs.assign(label=labels.astype("Int64"))
    kept = examples.dropna(subset=["label"]).astype({"label": "int64"})
    return kept, len(examples) - len(kept)


def _read_unlabelled(task: Task, table: pd.DataFrame, file: Path) -> tuple[pd.DataFrame, int]:
    """The rows that have texts, and how many have none."""
    texts = _text_columns(task)
    _check_columns(texts, table, file)
    usable = table[list(texts)].map(lambda value: isinstance(value, str) and bool(value.strip())).all(axis=1)
    kept = table.loc[usable, list(texts)].astype(str).rename(columns=texts)
    return kept, len(table) - len(kept)


def _text_columns(task: Task) -> dict[str, str]:
    """What the task's columns of texts are called, and what they are called in a prepared table."""
    return {task.text: "text"} | ({task.text_pair: "text_pair"} if task.text_pair is not None else {})


def _read_texts(task: Task, table: pd.DataFrame, file: Path) -> pd.DataFrame:
    texts = _text_columns(task)
    _check_columns([*texts, task.label], table, file)
    for column in texts:
        if (bad := ~table[column].map(lambda value: isinstance(value, str)).astype(bool)).any():
            raise InputError(f"{file}: row {_first(bad) + 1}: {column} is not a text ({int(bad.sum())} such rows)")
    return table[list(texts)].rename(columns=texts)


def _check_columns(names: Iterable[str], table: pd.DataFrame, file: Path) -> None:
    for name in names:
        if name not in table.columns:
            raise InputError(f"{file}: has no column {name!r}; its columns: {', '.join(map(str, table.columns))}")


def _read_table(task: Task, file: Path) -> pd.DataFrame:
    if not file.is_file():
        beside = sorted(path.name for path in file.parent.glob("*")) if file.parent.is_dir() else []
        raise InputError(f"{file}: no such file in the source; it has: {', '.join(beside) or 'nothing'}")
    names = task.columns
    if names is not None and task.image is not None and task.image.pixels is not None:
        from stages.tasks.images import expanded_columns

        names = expanded_columns(names, task.image.pixels)
    form = file.with_name(file.name.removesuffix(COMPRESSED)).suffix
    try:
        if form == ".parquet":
            return pd.read_parquet(file)
        if form in (".jsonl", ".json"):
            return _read_json_lines(file)
        # Quotes are ordinary characters in plain tab-separated files; every cell stays the text that it is.
        table = pd.read_csv(
            file,
            sep="," if form == ".csv" else "\t",
            quoting=0 if form in (".csv", ".tab") else 3,
            header=None if names and form != ".tab" else 0,
            names=names,
            dtype=str,
            keep_default_na=False,
            skip_blank_lines=file.suffix != ".tab",  # one may be Orange's row of flags
            encoding="utf-8",
        )
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not UTF-8 text (byte {error.start})") from None
    except InputError:
        raise
    except Exception as error:  # whatever pandas' and pyarrow's readers make of what is no table
        raise InputError(f"{file}: cannot be read as a table: {' '.join(str(error).split())}") from None
    if not isinstance(table.index, pd.RangeIndex):  # pandas takes the first cells of such rows for names of the rows
        raise InputError(f"{file}: its rows have more cells than the {len(table.columns)} columns that have a name")
    return _orange_rows(table.fillna(""), file) if file.suffix == ".tab" else table


def _orange_rows(table: pd.DataFrame, file: Path) -> pd.DataFrame:
    """The rows after those of types and flags that Orange's tables begin with, but for rows of empty cells."""
    if len(table) < 2 or not ORANGE_TYPES & set(table.iloc[0]):
        raise InputError(f"{file}: its second row does not name Orange's types ({', '.join(sorted(ORANGE_TYPES))})")
    rows = table[2:]
    return rows[(rows != "").any(axis=1)].reset_index(drop=True)


def _read_json_lines(file: Path) -> pd.DataFrame:
    """A table with an object a line; lines of nothing but white space do not count."""
    rows = []
    with (gzip.open if file.name.endswith(COMPRESSED) else open)(file, "rt", encoding="utf-8") as opened:
        content = opened.read()
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{file}: line {number} is not valid JSON ({' '.join(str(error).split())})") from None
            if not isinstance(row, dict):
                raise InputError(f"{file}: line {number} is no JSON object")
            rows.append(row)
    return pd.DataFrame(rows)


def _interval_labels(task: Task, column: pd.Series, file: Path) -> pd.Series:
    """Positions of the intervals that the values lie in, missing where none holds a value."""
    assert isinstance(task.labels, dict)
    numbers = pd.to_numeric(
        column.map(lambda value: value if isinstance(value, (str, Number)) else None), errors="coerce"
    )
    if (bad := numbers.isna()).any():
        row = _first(bad)
        raise InputError(f"{file}: row {row + 1}: {task.label} = {str(column.iloc[row])[:80]!r} is not a number")
    labels = pd.Series(pd.NA, index=column.index, dtype="Int64")
    for position, (low, high) in enumerate(task.labels.values()):
        labels[numbers.between(low, high)] = position
    return labels


def _named_labels(names: list[str], column: pd.Series, file: Path) -> pd.Series:
    """Positions of the labels, which the values name, or else are."""
    positions = {str(position): position for position in range(len(names))}
    positions |= {name: position for position, name in enumerate(names)}
    labels = column.map(lambda value: positions.get(str(value)))
    if (bad := labels.isna()).any():
        row = _first(bad)
        value = str(column.iloc[row])[:80]
        raise InputError(f"{file}: row {row + 1}: the label {value!r} is not one of the task's: {', '.join(names)}")
    return labels


def _first(flags: pd.Series) -> int:
    """The position of the first true flag."""
    return int(flags.to_numpy(dtype=bool).argmax())
