"""Regression of texts: one or several numbers per text (or pair of texts)."""

import pandas as pd
from transformers import AutoModelForSequenceClassification

from stages.tasks.classifier import Classifier
from stages.tasks.data import TaskData
from stages.tasks.kind import Encoded
from stages.tasks.kinds.text_regression.settings import TextRegression
from stages.tasks.loading import Model
from stages.tasks.text_kind import TextKind
from stages.tasks.texts import Tokenizer, some_tokens


class TextRegressionKind(TextKind, Classifier[Tokenizer]):
    """Models whose outputs are numbers; they are trained by the mean squared error."""

    settings = TextRegression
    architecture = AutoModelForSequenceClassification
    problem = "regression"

    def encode(self, processor: Tokenizer, frame: pd.DataFrame, task: TaskData, model: Model, seed: int) -> Encoded:
        """Token ids and masks of every example, and `labels`, its numbers.

        Raises:
            InputError: the model cannot read them; see `stages.tasks.texts.some_tokens`.
        """
        found = some_tokens(processor, frame, task, model)
        return found | {"labels": [list(map(float, numbers)) for numbers in frame["label"]]}


KIND = TextRegressionKind()
