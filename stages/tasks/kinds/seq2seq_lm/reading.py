"""Examples of sequence-to-sequence language modelling: `input` and `target`."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pandas as pd

from stages.tasks.kinds.seq2seq_lm.settings import Seq2SeqLM
from stages.tasks.reading import PartReader, SomeExamples, filled
from stages.tasks.table_files import Table
from stages.tasks.task import Split

if TYPE_CHECKING:  # its import takes a third of a second
    from datasets import Dataset


class Seq2SeqLMReader(PartReader[Seq2SeqLM]):
    """Reads pairs of texts; every row is an example or refused."""

    not_an_example = "no_text"

    def examples(self, task: Seq2SeqLM, part: Table) -> SomeExamples:
        """All rows. Raises `InputError` where an input or target is no text, or empty."""
        return SomeExamples(
            pd.DataFrame({"input": filled(part, task.input), "target": filled(part, task.target)}), dropped=0
        )

    def card(self, task: Seq2SeqLM, splits: "Mapping[Split, Dataset]") -> dict[str, object]:
        """The number of examples, and the lengths that inputs and targets are cut to."""
        lengths = {"max_length": task.max_length, "max_target_length": task.max_target_length}
        return lengths | super().card(task, splits)


READER = Seq2SeqLMReader()
