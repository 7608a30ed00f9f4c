"""From tables in a source to examples in three splits."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from stages.params import SPLITS, Split, Task
from stages.running.errors import InputError
from stages.tasks.labels import interval_positions, named_positions
from stages.tasks.table_files import Table, read_table


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
    files = _read_files(task, source)
    if not isinstance(task.file, dict):
        table, dropped = _joined(files, task.file)
        table, repeated = _without_repeats(table)
        table = _part(table, task)
        if task.examples is not None and task.examples < len(table):
            table = table.sample(task.examples, random_state=task.split.seed).sort_index()
        rest, test = _split(table, round(task.split.test * len(table)), task)
        train, validation = _split(rest, round(task.split.validation * len(table)), task)
    else:
        tables = {split: _joined(files, names) for split, names in task.file.items()}
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


class _File(NamedTuple):
    """One file's examples.

    Attributes:
        examples: with labels as the table has them, if the task names its labels.
        dropped: how many rows have no text, or a label in no interval.
        labels: the table of those labels alone, to say where they are; None if there are none to be read yet.
    """

    examples: pd.DataFrame
    dropped: int
    labels: Table | None = None


def _read_files(task: Task, source: Path) -> dict[str, _File]:
    """Read a task's files, by name. What its labels are, names or positions, is decided for all files together."""
    files = {name: _read_file(task, source / name) for name in dict.fromkeys(task.files)}
    named = {name: file.labels for name, file in files.items() if file.labels is not None}
    if named:
        positions = named_positions(list(task.labels), list(named.values()), task.label)
        for name, labels in zip(named, positions, strict=True):
            files[name] = _File(files[name].examples.assign(label=labels), files[name].dropped)
    return files


def _joined(files: Mapping[str, _File], names: str | list[str]) -> tuple[pd.DataFrame, int]:
    """The examples of one file, or of several one after the other, and how many of their rows are none."""
    if isinstance(names, str):
        return files[names].examples, files[names].dropped
    examples = pd.concat([files[name].examples for name in names], ignore_index=True)
    return examples, sum(files[name].dropped for name in names)


def _read_file(task: Task, file: Path) -> _File:
    names = task.columns
    if names is not None and task.image is not None and task.image.pixels is not None:
        from stages.tasks.images import expanded_columns

        names = expanded_columns(names, task.image.pixels)
    table = read_table(file, names)
    if not task.labels:
        return _read_unlabelled(task, table)
    if task.image is None:
        inputs = _read_texts(task, table)
    else:
        from stages.tasks.images import read_images

        table.column(task.label)
        inputs = read_images(task, table)
    if not isinstance(task.labels, dict):
        return _File(inputs, 0, replace(table, rows=table.column(task.label).to_frame()))
    examples = inputs.assign(label=interval_positions(task.labels.values(), table, task.label))
    kept = examples.dropna(subset=["label"]).astype({"label": "int64"})
    return _File(kept, len(examples) - len(kept))


def _read_unlabelled(task: Task, table: Table) -> _File:
    """The rows that have texts."""
    texts = _texts(task, table)
    usable = texts.map(lambda value: isinstance(value, str) and bool(value.strip())).all(axis=1)
    return _File(texts[usable].astype(str), int((~usable).sum()))


def _read_texts(task: Task, table: Table) -> pd.DataFrame:
    texts = _texts(task, table)
    table.column(task.label)
    for column in texts:
        if (bad := ~texts[column].map(lambda value: isinstance(value, str)).astype(bool)).any():
            name = task.text if column == "text" else task.text_pair
            raise table.refusal(bad.idxmax(), f"{name} is not a text ({int(bad.sum())} such rows)")
    return texts.astype(str)


def _texts(task: Task, table: Table) -> pd.DataFrame:
    """The task's columns of texts, by the names that they have in a prepared table."""
    texts = {"text": table.column(task.text)}
    if task.text_pair is not None:
        texts["text_pair"] = table.column(task.text_pair)
    return pd.DataFrame(texts)
