"""Examples of text classification: `text`, perhaps `text_pair`, and `label`, a position."""

from collections.abc import Mapping

import pandas as pd

from stages.tasks.kinds.text_classification.settings import TextClassification
from stages.tasks.labels import LabelReader
from stages.tasks.reading import FileExamples, strings
from stages.tasks.table_files import Table
from stages.tasks.task import Split


class TextClassificationReader(LabelReader[TextClassification]):
    """Reads texts with their labels."""

    def read(self, task: TextClassification, tables: Mapping[str, Table]) -> dict[str, FileExamples]:
        """File → its examples. Raises `InputError` where a text or label is none."""
        inputs = {name: strings(task, table, [task.label]) for name, table in tables.items()}
        return self.labelled(task, tables, inputs)

    def card(self, task: TextClassification, splits: Mapping[Split, pd.DataFrame]) -> dict[str, object]:
        """The examples of each label, and the length that texts are cut to."""
        return {"max_length": task.max_length} | super().card(task, splits)


READER = TextClassificationReader()
