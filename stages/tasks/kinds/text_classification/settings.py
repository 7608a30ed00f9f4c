"""Text classification in params.yaml."""

from typing import Literal

from pydantic import model_validator

from stages.tasks.classification import Classification
from stages.tasks.text_columns import TextColumns, refuse_equal_columns


class TextClassification(TextColumns, Classification):
    """One label per text, or per pair of texts."""

    kind: Literal["text-classification"] = "text-classification"

    @model_validator(mode="after")
    def _different_columns(self) -> "TextClassification":
        refuse_equal_columns({"text": self.text, "text_pair": self.text_pair, "label": self.label})
        return self
