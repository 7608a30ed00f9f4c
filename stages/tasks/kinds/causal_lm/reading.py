"""Examples of causal language modelling: `messages`, as JSON text; `prompt` and `completion`; or `text`."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pandas as pd

from stages.tasks.kinds.causal_lm.conversations import read_conversation
from stages.tasks.kinds.causal_lm.settings import CausalLM
from stages.tasks.reading import PartReader, SomeExamples, filled
from stages.tasks.table_files import Table
from stages.tasks.task import Split

if TYPE_CHECKING:  # its import takes a third of a second
    from datasets import Dataset


class CausalLMReader(PartReader[CausalLM]):
    """Reads conversations, prompts with completions, or texts; every row is an example or refused."""

    not_an_example = "no_text"

    def examples(self, task: CausalLM, part: Table) -> SomeExamples:
        """All rows. Raises `InputError` where a text is none or empty, or a conversation is none."""
        return SomeExamples(_examples(task, part), 0)

    def card(self, task: CausalLM, splits: "Mapping[Split, Dataset]") -> dict[str, object]:
        """The number of examples, their form, and the length that they are cut to."""
        return {"max_length": task.max_length, "form": task.form} | super().card(task, splits)


def _examples(task: CausalLM, table: Table) -> pd.DataFrame:
    if task.messages is not None:
        return pd.DataFrame({"messages": _conversations(table, task.messages)})
    if task.text is not None:
        return pd.DataFrame({"text": filled(table, task.text)})
    assert task.completion is not None
    parts = [filled(table, column).tolist() for column in task.prompts]
    ending = "" if isinstance(task.prompt, str) else "\n"
    prompts = ["".join(f"{text}{ending}" for text in row) for row in zip(*parts, strict=True)]
    prompt = pd.Series(prompts, table.rows.index, dtype=str)
    return pd.DataFrame({"prompt": prompt, "completion": filled(table, task.completion)})


def _conversations(table: Table, column: str) -> pd.Series:
    found = {}
    for row, value in table.column(column).items():
        try:
            found[row] = read_conversation(value)
        except ValueError as error:
            raise table.refusal(row, f"{column}: {error}") from None
    return pd.Series(found, dtype=str)


READER = CausalLMReader()
