"""Examples of token classification: `words`, and `label`, the positions of their tags; each a JSON array as a text."""

import json
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stages.tasks.kinds.token_classification.settings import TokenClassification
from stages.tasks.kinds.token_classification.text_files import one_a_line, slashed
from stages.tasks.labels import labels_without_examples
from stages.tasks.reading import Parts, Reader, SomeExamples
from stages.tasks.table_files import Table, TableFile
from stages.tasks.task import Split

if TYPE_CHECKING:  # its import takes a third of a second
    from datasets import Dataset


class TokenClassificationReader(Reader[TokenClassification]):
    """Reads sentences with a tag for each word; rows without words are dropped."""

    example = "sentence"
    not_an_example = "no_words"

    def open(self, task: TokenClassification, file: Path, source: Path | None = None) -> TableFile:
        """The table in a file of the task's form. Raises `InputError` if it cannot be read."""
        if task.form == "word/tag":
            return slashed(file, task.words, task.tag)
        if task.form == "conll":
            return one_a_line(file, task.columns or [task.words, task.tag], task.words, task.tag)
        return super().open(task, file, source)

    def read(self, task: TokenClassification, files: Mapping[str, TableFile]) -> dict[str, Iterable[SomeExamples]]:
        """File → its examples. Raises `InputError` where a word has no tag, or one that is no label's."""
        examples = partial(_sentences, task, Tags(task))
        return {name: Parts(examples, file) for name, file in files.items()}

    def card(self, task: TokenClassification, splits: "Mapping[Split, Dataset]") -> dict[str, object]:
        """The words of each label, and the length that sentences are cut to."""
        counts = {
            split: {label: int((frame["label"] == position).sum()) for position, label in enumerate(task.output_names)}
            for split, frame in _by_word(splits).items()
        }
        return {"max_length": task.max_length, "counts": counts}

    def remarks(self, task: TokenClassification, splits: "Mapping[Split, Dataset]") -> Iterator[str]:
        """The labels without a word."""
        return labels_without_examples(task.output_names, _by_word(splits))


class Tags:
    """Which label each tag is: its position, or why it has none.

    Args:
        task: whose labels they are.
    """

    def __init__(self, task: TokenClassification) -> None:
        self._names = task.output_names
        self._patterns = task.labels if isinstance(task.labels, dict) else None
        self._known: dict[str, int | str] = {}

    def position(self, tag: object) -> int | str:
        """The position of a tag's label, or what is wrong with the tag."""
        if not isinstance(tag, str):
            return self._found(tag)
        if tag not in self._known:
            self._known[tag] = self._found(tag)
        return self._known[tag]

    def _found(self, tag: object) -> int | str:
        if self._patterns is not None:
            if not isinstance(tag, str):
                return "is no text, which patterns in `labels` are for"
            for position, patterns in enumerate(self._patterns.values()):
                if any(fnmatchcase(tag, pattern) for pattern in patterns):
                    return position
            return "matches no pattern in `labels`; add one that it matches, or last a label with the pattern '*'"
        if isinstance(tag, str) and tag in self._names:
            return self._names.index(tag)
        if isinstance(tag, Integral) and not isinstance(tag, bool) and 0 <= int(tag) < len(self._names):
            position = int(tag)
            if str(position) in self._names and self._names[position] != str(position):
                return "may be a label's name or its position; write tags as texts"
            return position
        return f"is none of the task's labels: {', '.join(self._names)}"


def _sentences(task: TokenClassification, tags: Tags, table: Table) -> SomeExamples:
    examples: dict[Hashable, tuple[str, str]] = {}
    columns = table.column(task.words), table.column(task.tag)
    for row, words, own in zip(table.rows.index, *columns, strict=True):
        found, labels = _items(words, task.words, table, row), _items(own, task.tag, table, row)
        if len(found) != len(labels):
            reason = f"has {len(found)} words ({task.words}) and {len(labels)} tags ({task.tag}); give each word a tag"
            raise table.refusal(row, reason)
        for number, word in enumerate(found, start=1):
            if not isinstance(word, str) or not word.strip():
                raise table.refusal(row, f"word {number} ({task.words}) is {word!r}, and not a text; mend or remove it")
        positions = [tags.position(tag) for tag in labels]
        for number, (word, tag, position) in enumerate(zip(found, labels, positions, strict=True), start=1):
            if isinstance(position, str):
                raise table.refusal(row, f"the tag {tag!r} of word {number}, {word!r}, {position}")
        if found:
            examples[row] = json.dumps(found, ensure_ascii=False), json.dumps(positions)
    frame = pd.DataFrame(examples.values(), index=pd.Index(list(examples)), columns=["words", "label"], dtype=object)
    return SomeExamples(frame, len(table.rows) - len(frame))


def _items(value: object, column: str, table: Table, row: Hashable) -> list[object]:
    """The words or tags in a cell; none in one that is empty or missing."""
    if isinstance(value, str):
        return list(value.split())
    if isinstance(value, (Sequence, np.ndarray)):
        return list(value)
    if value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)):
        return []
    raise table.refusal(row, f"{column} is {value!r}; give a list, or a text in which spaces separate")


def _by_word(splits: "Mapping[Split, Dataset]") -> dict[Split, pd.DataFrame]:
    """The labels of each split, a word a row."""
    return {
        split: pd.DataFrame({"label": [position for own in rows["label"] for position in json.loads(own)]})
        for split, rows in splits.items()
    }


READER = TokenClassificationReader()
