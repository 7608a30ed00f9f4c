"""Examples of sequence-to-sequence language modelling: `input` and `target`."""

from collections.abc import Mapping

import pandas as pd

from stages.tasks.kinds.seq2seq_lm.settings import Seq2SeqLM
from stages.tasks.reading import FileExamples, Reader, filled
from stages.tasks.table_files import Table
from stages.tasks.task import Split


class Seq2SeqLMReader(Reader[Seq2SeqLM]):
    """Reads pairs of texts; every row is an example or refused."""

    not_an_example = "no_text"

    def read(self, task: Seq2SeqLM, tables: Mapping[str, Table]) -> dict[str, FileExamples]:
        """File → its examples. Raises `InputError` where an input or target is no text, or empty."""
        columns = {"input": task.input, "target": task.target}
        return {
            name: FileExamples(pd.DataFrame({key: filled(table, column) for key, column in columns.items()}), 0)
            for name, table in tables.items()
        }

    def card(self, task: Seq2SeqLM, splits: Mapping[Split, pd.DataFrame]) -> dict[str, object]:
        """The number of examples, and the lengths that inputs and targets are cut to."""
        lengths = {"max_length": task.max_length, "max_target_length": task.max_target_length}
        return lengths | super().card(task, splits)


READER = Seq2SeqLMReader()
