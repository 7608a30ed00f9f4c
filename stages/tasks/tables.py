"""From tables in a source to a prepared task: examples in three splits, and a card."""

from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path

import pandas as pd

from stages.running.errors import InputError
from stages.storage.cards import FORMAT_VERSION, write_json
from stages.tasks.data import TASK_CARD, examples_fingerprint, single_labels
from stages.tasks.dataset_files import read_splits
from stages.tasks.reading import FileExamples, reader
from stages.tasks.task import SPLITS, DatasetSplit, Split, Task


def split_examples(task: Task, source: Path) -> tuple[dict[Split, pd.DataFrame], dict[str, int]]:
    """The task's examples, with the columns that its kind gives them (`stages/tasks/kinds/NAME/reading.py`).

    Rows that the kind drops are left out, and so are repeated texts or images (their first row is kept), so that none
    is in two splits. Splits are stratified by label, if each example has one, and depend on nothing but the table,
    `split.seed`, and how many rows are wanted: images are corrupted afterwards.

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
    kind = reader(task.kind)
    splits = {split: kind.finished(task, frame.reset_index(drop=True)) for split, frame in splits.items()}
    return splits, {kind.not_an_example: dropped, f"repeated_{kind.example}": repeated}


def write_task(directory: Path, task: Task, splits: Mapping[Split, pd.DataFrame], dropped: Mapping[str, int]) -> None:
    """Write a task's splits and card into `directory`."""
    for split, frame in splits.items():
        frame.to_parquet(directory / f"{split}.parquet", index=False)
    write_json(
        directory / TASK_CARD,
        {
            "format_version": FORMAT_VERSION,
            "kind": task.kind,
            "labels": task.output_names,
            "metrics": [metric.name for metric in task.possible_metrics],
            **reader(task.kind).card(task, splits),
            "dropped": dict(dropped),
            "fingerprints": {split: examples_fingerprint(frame) for split, frame in splits.items()},
        },
    )


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
    """Two parts, the second of `rows` rows, in the table's order; stratified by label if examples have one each."""
    from sklearn.model_selection import train_test_split

    try:
        first, second = train_test_split(
            table, test_size=rows, random_state=task.split.seed, stratify=single_labels(table), shuffle=True
        )
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{task.file}: {len(table)} usable rows cannot be split: {reason}") from None
    return first.sort_index(), second.sort_index()


def _read_files(task: Task, source: Path) -> dict[str | DatasetSplit, FileExamples]:
    """Read what a task is read from, by its entries in `file`."""
    kind = reader(task.kind)
    entries = list(dict.fromkeys(task.entries))
    splits = read_splits(source, [entry for entry in entries if isinstance(entry, DatasetSplit)])
    tables = {
        str(number): kind.table(task, source / entry, source) if isinstance(entry, str) else splits[entry]
        for number, entry in enumerate(entries)
    }
    return dict(zip(entries, kind.read(task, tables).values(), strict=True))


def _joined(
    files: Mapping[str | DatasetSplit, FileExamples], entries: str | DatasetSplit | list[str | DatasetSplit]
) -> tuple[pd.DataFrame, int]:
    """The examples of one entry, or of several one after the other, and how many of their rows are none."""
    if not isinstance(entries, list):
        return files[entries].examples, files[entries].dropped
    examples = pd.concat([files[entry].examples for entry in entries], ignore_index=True)
    return examples, sum(files[entry].dropped for entry in entries)
