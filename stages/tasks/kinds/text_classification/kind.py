"""Text classification: one label per text (or pair of texts)."""

import pandas as pd
from transformers import AutoModelForSequenceClassification

from stages.tasks.classifier import Classifier
from stages.tasks.data import TaskData
from stages.tasks.kind import Encoded
from stages.tasks.kinds.text_classification.settings import TextClassification
from stages.tasks.loading import Model
from stages.tasks.text_kind import TextKind
from stages.tasks.texts import Tokenizer, some_tokens


class TextClassificationKind(TextKind, Classifier[Tokenizer]):
    """Classifiers of texts. With a new head, the pooler before it may be missing too (a masked-LM model has none)."""

    settings = TextClassification
    architecture = AutoModelForSequenceClassification

    def encode(self, processor: Tokenizer, frame: pd.DataFrame, task: TaskData, model: Model, seed: int) -> Encoded:
        """Token ids and masks of every example, and `labels`; nothing is drawn.

        Raises:
            InputError: the model cannot read them; see `stages.tasks.texts.some_tokens`.
        """
        return some_tokens(processor, frame, task, model) | {"labels": frame["label"].tolist()}


KIND = TextClassificationKind()
