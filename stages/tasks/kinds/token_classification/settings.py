"""Token classification in params.yaml."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_serializer, model_validator

from stages.tasks.averaging import Averaging, MeanOfSoftmax
from stages.tasks.kinds.token_classification.metrics import EntityF1, TagAccuracy, is_bio
from stages.tasks.metrics import Metric
from stages.tasks.task import DatasetSplit, TableTask
from stages.tasks.text_columns import refuse_equal_columns

Patterns = Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]


class TokenClassification(TableTask):
    """Sentences, each word of which has a tag: parts of speech, names of persons and places.

    form: how the files are written. `table`: as every task's, a sentence a row. `word/tag`: plain text, a sentence a
        line, of words that each have a slash and their tag behind them. `conll`: plain text, a word a line with its tag
        behind a tab, and an empty line between sentences; `columns` names the cells of a line where there are more.
    words, tag: the names of the columns that have a sentence's words and their tags, as many: each a list, or a text
        in which spaces separate them.
    labels: label names, in the order of the model's outputs, which are the tags (or the tags are their positions from
        0, as numbers); or a mapping of names to patterns of tags, of which the first that matches decides. In a pattern
        `*` stands for anything, `?` for a character and `[*]` for an asterisk; `["*"]` takes the rest.
    max_length: in tokens; words beyond it are not predicted.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (TagAccuracy(), EntityF1())
    averaging: ClassVar[Averaging | None] = MeanOfSoftmax()

    kind: Literal["token-classification"] = "token-classification"
    form: Literal["table", "word/tag", "conll"] = "table"
    words: str = "words"
    tag: str = "tag"
    labels: list[str] | dict[str, Patterns]
    max_length: int = Field(default=128, ge=2, le=1_000_000)

    @property
    def output_names(self) -> list[str]:
        """The labels."""
        return list(self.labels)

    @property
    def possible_metrics(self) -> tuple[Metric, ...]:
        """Tag accuracy; before it, where the labels mark entities, their F1 score."""
        return (EntityF1(), TagAccuracy()) if is_bio(self.output_names) else (TagAccuracy(),)

    @field_serializer("labels", when_used="json")
    def _in_order(self, labels: list[str] | dict[str, Patterns]) -> list[str] | list[list[str]]:
        """Also patterns in their order, which a mapping may lose where it is written."""
        return [[name, *patterns] for name, patterns in labels.items()] if isinstance(labels, dict) else labels

    @model_validator(mode="after")
    def _usable_labels(self) -> "TokenClassification":
        names = self.output_names
        if len(names) < 2:
            raise ValueError("`labels` must name at least two labels")
        if len(set(names)) < len(names):
            raise ValueError("`labels` names a label twice")
        return self

    @model_validator(mode="after")
    def _usable_columns(self) -> "TokenClassification":
        refuse_equal_columns({"words": self.words, "tag": self.tag})
        if self.form == "word/tag" and self.columns is not None:
            raise ValueError("`columns`: there are none in a file of the form word/tag; remove the key")
        if self.form != "table" and (self.format or any(isinstance(entry, DatasetSplit) for entry in self.entries)):
            raise ValueError(f"`form`: {self.form} is for files of tagged words; remove it for what is a table")
        return self
