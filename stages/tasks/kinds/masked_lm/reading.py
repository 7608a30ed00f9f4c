"""Examples of masked language modelling: `text`, and perhaps `text_pair`."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from stages.tasks.kinds.masked_lm.settings import MaskedLM
from stages.tasks.reading import PartReader, SomeExamples, texts
from stages.tasks.table_files import Table
from stages.tasks.task import Split

if TYPE_CHECKING:  # its import takes a third of a second
    from datasets import Dataset


class MaskedLMReader(PartReader[MaskedLM]):
    """Reads the rows that have texts."""

    not_an_example = "no_text"

    def examples(self, task: MaskedLM, part: Table) -> SomeExamples:
        """The rows that have texts; the others are dropped."""
        found = texts(task, part)
        usable = found.map(lambda value: isinstance(value, str) and bool(value.strip())).all(axis=1)
        return SomeExamples(found[usable].astype(str), int((~usable).sum()))

    def card(self, task: MaskedLM, splits: "Mapping[Split, Dataset]") -> dict[str, object]:
        """The number of examples, and the length that texts are cut to."""
        return {"max_length": task.max_length} | super().card(task, splits)


READER = MaskedLMReader()
