"""Examples of text classification: `text`, perhaps `text_pair`, and `label`, a position."""

from collections.abc import Mapping

import pandas as pd

from stages.tasks.kinds.text_classification.settings import TextClassification
from stages.tasks.labels import LabelReader
from stages.tasks.reading import FileExamples, texts
from stages.tasks.table_files import Table
from stages.tasks.task import Split


class TextClassificationReader(LabelReader[TextClassification]):
    """Reads texts with their labels."""

    def read(self, task: TextClassification, tables: Mapping[str, Table]) -> dict[str, FileExamples]:
        """File → its examples. Raises `InputError` where a text or label is none."""
        return self.labelled(task, tables, {name: _texts(task, table) for name, table in tables.items()})

    def card(self, task: TextClassification, splits: Mapping[Split, pd.DataFrame]) -> dict[str, object]:
        """The examples of each label, and the length that texts are cut to."""
        return {"max_length": task.max_length} | super().card(task, splits)


def _texts(task: TextClassification, table: Table) -> pd.DataFrame:
    found = texts(task, table)
    table.column(task.label)
    for column in found:
        if (bad := ~found[column].map(lambda value: isinstance(value, str)).astype(bool)).any():
            name = task.text if column == "text" else task.text_pair
            raise table.refusal(bad.idxmax(), f"{name} is not a text ({int(bad.sum())} such rows)")
    return found.astype(str)


READER = TextClassificationReader()
