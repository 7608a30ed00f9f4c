"""Masked language modelling in params.yaml."""

from typing import Literal

from pydantic import model_validator

from stages.tasks.text_columns import TextColumns, refuse_equal_columns


class MaskedLM(TextColumns):
    """Texts alone, whose hidden tokens are predicted: rows without a text are dropped.

    Its models are not evaluated; what they are merged into is.
    """

    kind: Literal["masked-lm"] = "masked-lm"

    @property
    def hub_pipeline(self) -> str:
        """What the Hub calls such models."""
        return "fill-mask"

    @model_validator(mode="after")
    def _different_columns(self) -> "MaskedLM":
        refuse_equal_columns({"text": self.text, "text_pair": self.text_pair})
        return self
