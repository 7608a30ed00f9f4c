"""From tables in a source to a prepared task: examples in three splits, and a card."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b, sha256
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from tqdm import tqdm

from stages.running.errors import InputError
from stages.storage.cards import FORMAT_VERSION, write_json
from stages.tasks.arrow import frames, temporary_rows, write_rows
from stages.tasks.data import TASK_CARD, examples_fingerprint, single_labels, split_file
from stages.tasks.dataset_files import open_splits
from stages.tasks.reading import SomeExamples, reader
from stages.tasks.task import SPLITS, DatasetSplit, Split, TableTask

if TYPE_CHECKING:  # its import takes a third of a second
    from datasets import Dataset


def prepare_tables(task: TableTask, source: Path, directory: Path) -> list[str]:
    """Write the splits of a task and its card.

    Args:
        task: to prepare.
        source: the directory of what it is read from, which is verified.
        directory: to write into; it is empty.

    Returns:
        What a user should know of it, a sentence each.

    Raises:
        InputError: as `split_examples` does.
    """
    splits, dropped = split_examples(task, source)
    write_task(directory, task, splits, dropped)
    return list(reader(task.kind).remarks(task, splits))


def split_examples(task: TableTask, source: Path) -> "tuple[dict[Split, Dataset], dict[str, int]]":
    """The task's examples, with the columns that its kind gives them (`stages/tasks/kinds/NAME/reading.py`).

    Rows that the kind drops are left out, and so are repeated texts or images (their first row is kept), so that none
    is in two splits. Splits are stratified by label, if each example has one, and depend on nothing but the table,
    `split.seed`, and how many rows are wanted: images are corrupted afterwards.

    The examples are in a file that goes with the process (see `stages.tasks.arrow.temporary_rows`); of each, no more
    than a digest, its label and its place are in memory.

    Returns:
        The splits, and how many rows were dropped for what reason.

    Raises:
        InputError: a file or column is missing, a label is not one of the task's, or a split is empty.
    """
    kind, found = reader(task.kind), _Found(task.split.seed)
    with _files(task, source) as files, tqdm(desc="prepare", unit="row", unit_scale=True, delay=2) as bar:
        rows = temporary_rows(found.added(_parts(task, files), bar.update))
    dropped = {kind.not_an_example: found.dropped, f"repeated_{kind.example}": found.forget_repeated()}
    positions = _positions(task, found)
    for split in SPLITS:
        if not len(positions[split]):
            raise InputError(f"{task.file}: the {split} split is empty; give more rows or change the task's `split`")
    splits = {split: kind.finished(task, rows.select(positions[split])) for split in SPLITS}
    return splits, dropped


def _parts(
    task: TableTask, files: Mapping[str | DatasetSplit, Iterable[SomeExamples]]
) -> Iterator[tuple[Split, SomeExamples]]:
    """All examples, with the split that the files have them for."""
    if isinstance(task.file, dict):
        # Test first: where a text is in two splits, the training example goes.
        wanted = {split: task.file[split] for split in ("test", "validation", "train") if split in task.file}
    else:
        wanted = {"train": task.file}
    for split, entries in wanted.items():
        for entry in entries if isinstance(entries, list) else [entries]:
            for part in files[entry]:
                yield split, part


def write_task(directory: Path, task: TableTask, splits: "Mapping[Split, Dataset]", dropped: Mapping[str, int]) -> None:
    """Write a task's splits and card into `directory`."""
    for split, rows in splits.items():
        write_rows(directory / split_file(split), frames(rows))
    write_json(
        directory / TASK_CARD,
        {
            "format_version": FORMAT_VERSION,
            "kind": task.kind,
            "labels": task.output_names,
            "metrics": [metric.name for metric in task.possible_metrics],
            **reader(task.kind).card(task, splits),
            "dropped": dict(dropped),
            "fingerprints": {split: examples_fingerprint(rows) for split, rows in splits.items()},
        },
    )


@contextmanager
def _files(task: TableTask, source: Path) -> Iterator[dict[str | DatasetSplit, Iterable[SomeExamples]]]:
    """The examples of each of a task's entries in `file`, to be read inside the context."""
    kind = reader(task.kind)
    entries = list(dict.fromkeys(task.entries))
    with open_splits(source, [entry for entry in entries if isinstance(entry, DatasetSplit)]) as splits:
        files = {
            str(number): kind.open(task, source / entry, source) if isinstance(entry, str) else splits[entry]
            for number, entry in enumerate(entries)
        }
        yield dict(zip(entries, kind.read(task, files).values(), strict=True))


@dataclass
class _Found:
    """What is known of all examples, in their order, while they themselves are in a file.

    Attributes:
        seed: of their places.
        dropped: how many rows were no examples.
    """

    seed: int
    dropped: int = 0
    _digests: list[np.ndarray] = field(default_factory=list)
    _places: list[np.ndarray] = field(default_factory=list)
    _labels: list[np.ndarray | None] = field(default_factory=list)
    _splits: list[np.ndarray] = field(default_factory=list)
    _usable: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=bool))

    def added(
        self, parts: Iterable[tuple[Split, SomeExamples]], count: Callable[[int], object]
    ) -> Iterator[pd.DataFrame]:
        """The examples of the parts, each of which is added; their rows are counted."""
        for split, (examples, dropped) in parts:
            inputs = examples.drop(columns="label", errors="ignore")
            contents = [[_bytes(value) for value in row] for row in inputs.itertuples(index=False)]
            self._digests.append(np.frombuffer(b"".join(map(_digest, contents)), dtype="<u8").reshape(-1, 2))
            self._places.append(np.array([_place(row, self.seed) for row in contents], dtype=np.float64))
            labels = single_labels(examples) if len(examples) else pd.Series(dtype=np.int32)  # whatever its type is
            self._labels.append(None if labels is None else labels.to_numpy(dtype=np.int32))
            self._splits.append(np.full(len(examples), SPLITS.index(split), dtype=np.int8))
            self.dropped += dropped
            count(len(examples) + dropped)
            yield examples

    def forget_repeated(self) -> int:
        """Let no example be usable whose inputs are those of one before it. Returns how many these are."""
        digests = np.concatenate(self._digests)
        self._digests.clear()
        order = np.lexsort(digests.T)  # the first of those that are alike comes first
        alike = (digests[order[1:]] == digests[order[:-1]]).all(axis=1)
        self._usable = np.ones(len(digests), dtype=bool)
        self._usable[order[1:][alike]] = False
        return int(alike.sum())

    def keep_part(self, first: float, last: float) -> None:
        """Let only those examples be usable whose place is in an interval, that of the same inputs in any table."""
        places = np.concatenate(self._places)
        self._usable &= (first <= places) & (places < last)

    @property
    def labels(self) -> np.ndarray | None:
        """Each example's label, if they have one each, a position."""
        labels = [own for own in self._labels if own is not None]
        return np.concatenate(labels) if len(labels) == len(self._labels) else None

    def of(self, split: Split) -> np.ndarray:
        """The positions of the usable examples that the files have for a split."""
        return np.flatnonzero(self._usable & (np.concatenate(self._splits) == SPLITS.index(split)))


def _positions(task: TableTask, found: _Found) -> dict[Split, np.ndarray]:
    """Which of the examples each split has, in their order."""
    if task.part is not None:
        found.keep_part(*task.part)
    given = {split: found.of(split) for split in SPLITS}
    train = given["train"]
    if task.examples is not None and task.examples < len(train):
        train = np.sort(pd.Series(train).sample(task.examples, random_state=task.split.seed).to_numpy())
    rows, labels = len(train), found.labels
    if not isinstance(task.file, dict):
        train, given["test"] = _split(train, round(task.split.test * rows), labels, task)
    if not isinstance(task.file, dict) or "validation" not in task.file:
        train, given["validation"] = _split(train, round(task.split.validation * rows), labels, task)
    return given | {"train": train}


def _split(
    positions: np.ndarray, rows: int, labels: np.ndarray | None, task: TableTask
) -> tuple[np.ndarray, np.ndarray]:
    """Two parts, the second of `rows` rows, in their order; stratified by label if examples have one each."""
    from sklearn.model_selection import train_test_split

    try:
        first, second = train_test_split(
            positions,
            test_size=rows,
            random_state=task.split.seed,
            stratify=None if labels is None else labels[positions],
            shuffle=True,
        )
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{task.file}: {len(positions)} usable rows cannot be split: {reason}") from None
    return np.sort(first), np.sort(second)


def _bytes(value: object) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


def _digest(contents: Iterable[bytes]) -> bytes:
    """128 bits that are the same for the same contents, and for no others."""
    digest = blake2b(digest_size=16)
    for content in contents:
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.digest()


def _place(contents: Iterable[bytes], seed: int) -> float:
    """A number in [0, 1), evenly spread over contents."""
    digest = sha256(str(seed).encode())
    for content in contents:
        digest.update(b"\0" + content)
    return int.from_bytes(digest.digest()[:6], "big") / 2**48
