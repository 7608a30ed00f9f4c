"""Text classification: one label per text (or pair of texts)."""

import pandas as pd
from transformers import AutoModelForSequenceClassification

from stages.running.errors import InputError
from stages.tasks.classifier import Classifier
from stages.tasks.data import TaskData
from stages.tasks.kind import Encoded
from stages.tasks.kinds.text_classification.settings import TextClassification
from stages.tasks.loading import Model
from stages.tasks.text_kind import TextKind
from stages.tasks.texts import Tokenizer, tokens


class TextClassificationKind(TextKind, Classifier[Tokenizer]):
    """Classifiers of texts. With a new head, the pooler before it may be missing too (a masked-LM model has none)."""

    settings = TextClassification
    architecture = AutoModelForSequenceClassification

    def encode(self, processor: Tokenizer, frame: pd.DataFrame, task: TaskData, model: Model, seed: int) -> Encoded:
        """Token ids and masks of every example, and `labels`; nothing is drawn.

        Raises:
            InputError: the model cannot read them (see `stages.tasks.texts.tokens`), or the tokenizer makes nothing of
                one.
        """
        found = tokens(processor, frame, task, model)
        for text, ids in zip(frame["text"], found["input_ids"], strict=True):
            if not ids:
                raise InputError(
                    f"{processor.name_or_path}: its tokenizer makes no token of the text {text[:40]!r} of "
                    f"{task.name}; remove it from the table, or take another base"
                )
        return found | {"labels": frame["label"].tolist()}


KIND = TextClassificationKind()
