"""Sequence-to-sequence language modelling in params.yaml."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from stages.tasks.kinds.seq2seq_lm.metrics import ExactMatch
from stages.tasks.language_metrics import NegativeLogLikelihood
from stages.tasks.metrics import Metric
from stages.tasks.task import TableTask
from stages.tasks.text_columns import refuse_equal_columns


class Seq2SeqLM(TableTask):
    """Texts that a model learns to write, each from another text.

    input, target: the columns of what is read, and of what is written.
    max_length, max_target_length: of each, in tokens; what is longer is truncated.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (NegativeLogLikelihood(), ExactMatch())

    kind: Literal["seq2seq-lm"] = "seq2seq-lm"
    input: str = "input"
    target: str = "target"
    max_length: int = Field(default=512, ge=2, le=1_000_000)
    max_target_length: int = Field(default=128, ge=2, le=1_000_000)

    @property
    def hub_pipeline(self) -> str:
        """What the Hub calls such models."""
        return "text2text-generation"

    @property
    def auto_class(self) -> str | None:
        """Transformers has no pipeline for such models."""
        return "AutoModelForSeq2SeqLM"

    @model_validator(mode="after")
    def _different_columns(self) -> "Seq2SeqLM":
        refuse_equal_columns({"input": self.input, "target": self.target})
        return self
