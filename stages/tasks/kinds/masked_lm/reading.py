"""Examples of masked language modelling: `text`, and perhaps `text_pair`."""

from collections.abc import Mapping

import pandas as pd

from stages.tasks.kinds.masked_lm.settings import MaskedLM
from stages.tasks.reading import FileExamples, Reader, texts
from stages.tasks.table_files import Table
from stages.tasks.task import Split


class MaskedLMReader(Reader[MaskedLM]):
    """Reads the rows that have texts."""

    not_an_example = "no_text"

    def read(self, task: MaskedLM, tables: Mapping[str, Table]) -> dict[str, FileExamples]:
        """File → its examples; rows without a text are dropped."""
        return {name: _with_texts(texts(task, table)) for name, table in tables.items()}

    def card(self, task: MaskedLM, splits: Mapping[Split, pd.DataFrame]) -> dict[str, object]:
        """The number of examples, and the length that texts are cut to."""
        return {"max_length": task.max_length} | super().card(task, splits)


def _with_texts(found: pd.DataFrame) -> FileExamples:
    usable = found.map(lambda value: isinstance(value, str) and bool(value.strip())).all(axis=1)
    return FileExamples(found[usable].astype(str), int((~usable).sum()))


READER = MaskedLMReader()
