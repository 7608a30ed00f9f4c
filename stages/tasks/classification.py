"""Classification: what params.yaml says of tasks whose examples have one label each."""

from itertools import pairwise
from typing import Annotated, ClassVar

from pydantic import Field, field_serializer, model_validator

from stages.tasks.averaging import Averaging, MeanOfSoftmax
from stages.tasks.metrics import Accuracy, MacroF1, Metric
from stages.tasks.task import TableTask

Interval = Annotated[list[float], Field(min_length=2, max_length=2)]


class Classification(TableTask):
    """A task with one label an example.

    label: the name of the label's column.
    labels: label names, in the order of the model's outputs (in all files of a task, the label column holds these
        names, or else their positions from 0, or false and true); or a mapping of names to intervals [low, high] of a
        numeric label column (rows outside all of them are dropped).
    drop: rows whose label is one of these, as the table has it, are no examples; null stands for rows without a label.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (Accuracy(), MacroF1())
    averaging: ClassVar[Averaging | None] = MeanOfSoftmax()

    label: str = "label"
    labels: list[str] | dict[str, Interval]
    drop: list[str | int | None] | None = Field(default=None, min_length=1, exclude_if=lambda value: value is None)

    @property
    def output_names(self) -> list[str]:
        """The labels."""
        return list(self.labels)

    @property
    def exact_passes(self) -> int:
        """One fewer than labels: the rank of the softmax likelihood's Fisher."""
        return len(self.labels) - 1

    @field_serializer("labels", when_used="json")
    def _in_order(self, labels: list[str] | dict[str, Interval]) -> list[str] | list[list[str | float]]:
        """Also intervals in the order of the outputs, which a mapping may lose where it is written."""
        if not isinstance(labels, dict):
            return labels
        listed: list[list[str | float]] = [[name, *interval] for name, interval in labels.items()]
        return listed

    @model_validator(mode="after")
    def _usable_labels(self) -> "Classification":
        names = self.output_names
        if len(names) < 2:
            raise ValueError("`labels` must name at least two labels")
        if len(set(names)) < len(names):
            raise ValueError("`labels` names a label twice")
        if both := [value for value in self.drop or [] if str(value) in names]:
            raise ValueError(f"`drop`: {both[0]!r} is one of `labels`")
        if isinstance(self.labels, dict):
            intervals = sorted(self.labels.values())
            for low, high in intervals:
                if not low <= high:
                    raise ValueError(f"`labels`: the interval [{low}, {high}] is empty")
            for (_, high), (low, _) in pairwise(intervals):
                if low <= high:
                    raise ValueError(f"`labels`: two intervals both hold {low}")
        return self
