"""Regression of texts in params.yaml."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from stages.tasks.averaging import Averaging, MeanOutput
from stages.tasks.kinds.text_regression.metrics import Pearson, RootMeanSquaredError, Spearman
from stages.tasks.metrics import Metric
from stages.tasks.text_columns import TextColumns, refuse_equal_columns


class TextRegression(TextColumns):
    """A text, or a pair of texts, has one or several numbers.

    targets: the names of the columns that have them, in the order of the model's outputs, which are called so.
    variance: of the Gaussians whose means the outputs are, in the square of the numbers' unit. A model's Fisher is
        divided by it, so it weighs the task among others.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (Pearson(), Spearman(), RootMeanSquaredError())
    averaging: ClassVar[Averaging | None] = MeanOutput()

    kind: Literal["text-regression"] = "text-regression"
    targets: list[str] = Field(min_length=1)
    variance: float = Field(default=1.0, gt=0, allow_inf_nan=False)

    @property
    def hub_pipeline(self) -> str:
        """What the Hub calls such models."""
        return "text-classification"

    @property
    def output_names(self) -> list[str]:
        """The targets."""
        return list(self.targets)

    @property
    def exact_passes(self) -> int:
        """One per number: all are independent."""
        return len(self.targets)

    @model_validator(mode="after")
    def _different_columns(self) -> "TextRegression":
        if len(set(self.targets)) < len(self.targets):
            raise ValueError("`targets` names a column twice")
        for column in self.targets:
            refuse_equal_columns({"text": self.text, "text_pair": self.text_pair, "targets": column})
        return self
