"""Tasks of texts in params.yaml: which columns of a table hold them, and how long they may be."""

from collections.abc import Mapping

from pydantic import Field

from stages.tasks.task import TableTask


class TextColumns(TableTask):
    """A task whose examples are texts.

    text, text_pair: the names of the columns used; without the second, an example is a single text.
    max_length: in tokens; longer texts are truncated.
    """

    text: str = "text"
    text_pair: str | None = None
    max_length: int = Field(default=128, ge=2, le=1_000_000)


def refuse_equal_columns(columns: Mapping[str, str | None]) -> None:
    """Raise `ValueError` where two keys of a task name one column of its table.

    Args:
        columns: key → the column that it names, or None.
    """
    named = [column for column in columns.values() if column is not None]
    if len(set(named)) < len(named):
        raise ValueError(f"{', '.join(f'`{key}`' for key in columns)} must be different columns")
