"""Examples of text classification: `text`, perhaps `text_pair`, and `label`, a position."""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from stages.tasks.kinds.text_classification.settings import TextClassification
from stages.tasks.labels import LabelReader
from stages.tasks.reading import SomeExamples, strings, texts
from stages.tasks.table_files import TableFile
from stages.tasks.task import Split

if TYPE_CHECKING:  # its import takes a third of a second
    from datasets import Dataset


class TextClassificationReader(LabelReader[TextClassification]):
    """Reads texts with their labels."""

    def read(self, task: TextClassification, files: Mapping[str, TableFile]) -> dict[str, Iterable[SomeExamples]]:
        """File → its examples. Raises `InputError` where a text or label is none."""
        for file in files.values():
            texts(task, next(file.parts()))  # so that of several columns that are missing, the text's is named first
        return self.labelled(task, files, partial(strings, task, further=[task.label]))

    def card(self, task: TextClassification, splits: "Mapping[Split, Dataset]") -> dict[str, object]:
        """The examples of each label, and the length that texts are cut to."""
        return {"max_length": task.max_length} | super().card(task, splits)


READER = TextClassificationReader()
