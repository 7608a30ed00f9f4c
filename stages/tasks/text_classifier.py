"""Models that read a text, or a pair of texts, and have an output for each of some names."""

from abc import abstractmethod
from typing import Any

import pandas as pd
from transformers import AutoModelForSequenceClassification

from stages.tasks.classifier import Classifier
from stages.tasks.data import TaskData
from stages.tasks.kind import Encoded
from stages.tasks.loading import Model
from stages.tasks.text_kind import TextKind
from stages.tasks.texts import Tokenizer, some_tokens


class TextClassifier(TextKind, Classifier[Tokenizer]):
    """A kind of classifiers of texts, or of models of numbers.

    With a new head, the pooler before it may be missing too (a masked-LM model has none).
    """

    architecture = AutoModelForSequenceClassification

    @abstractmethod
    def wanted(self, labels: pd.Series, task: TaskData) -> list[Any]:
        """What the model is to give for each example, from the table's column `label`."""

    def encode(self, processor: Tokenizer, frame: pd.DataFrame, task: TaskData, model: Model, seed: int) -> Encoded:
        """Token ids and masks of every example, and `labels`, which are what is `wanted`; nothing is drawn.

        Raises:
            InputError: the model cannot read them; see `stages.tasks.texts.some_tokens`.
        """
        return some_tokens(processor, frame, task, model) | {"labels": self.wanted(frame["label"], task)}
