"""Multi-label classification in params.yaml."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from stages.tasks.averaging import Averaging, MeanOfSigmoid
from stages.tasks.kinds.multi_label_classification.metrics import MeanAveragePrecision, MultiLabelMacroF1
from stages.tasks.metrics import Metric
from stages.tasks.text_columns import TextColumns, refuse_equal_columns


class MultiLabelClassification(TextColumns):
    """A text, or a pair of texts, has any number of the labels, or none.

    label: the name of one column, whose cells are lists of labels (JSON, Parquet) or texts that name them (an empty one
        has no label); or a list of columns, one per label in the order of `labels`, of ones and zeros. In all files of
        a task, one column holds names, or else positions from 0.
    labels: label names, in the order of the model's outputs.
    separator: what stands between labels where a cell is a text.
    unknown: what stands in a column of ones and zeros where it is not known whether the label holds, as after a
        disagreement of annotators; rows with one are dropped.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (MultiLabelMacroF1(), MeanAveragePrecision())
    averaging: ClassVar[Averaging | None] = MeanOfSigmoid()

    kind: Literal["multi-label-classification"] = "multi-label-classification"
    label: str | list[str] = "label"
    labels: list[str] = Field(min_length=1)
    separator: str = Field(default=",", min_length=1)
    unknown: list[int | str] = Field(default_factory=list)

    @property
    def hub_pipeline(self) -> str:
        """What the Hub calls such models."""
        return "text-classification"

    @property
    def output_names(self) -> list[str]:
        """The labels."""
        return list(self.labels)

    @property
    def exact_passes(self) -> int:
        """One per label: each has a probability of its own."""
        return len(self.labels)

    @property
    def label_columns(self) -> list[str]:
        """The columns that labels are in, one or several."""
        return [self.label] if isinstance(self.label, str) else self.label

    @model_validator(mode="after")
    def _usable_labels(self) -> "MultiLabelClassification":
        if len(set(self.labels)) < len(self.labels):
            raise ValueError("`labels` names a label twice")
        if "" in self.labels:
            raise ValueError("`labels` has an empty name")
        return self

    @model_validator(mode="after")
    def _usable_columns(self) -> "MultiLabelClassification":
        columns = self.label_columns
        for column in columns:
            refuse_equal_columns({"text": self.text, "text_pair": self.text_pair, "label": column})
        if len(set(columns)) < len(columns):
            raise ValueError("`label` names a column twice")
        if isinstance(self.label, list) and len(self.label) != len(self.labels):
            raise ValueError(f"`label` lists {len(self.label)} columns, and there are {len(self.labels)} `labels`")
        if isinstance(self.label, str) and self.unknown:
            raise ValueError("`unknown` is for a `label` that lists a column per label")
        return self
