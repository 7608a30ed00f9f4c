"""Multi-label classification: any number of labels per text (or pair of texts)."""

import numpy as np
import pandas as pd
from transformers import AutoModelForSequenceClassification

from stages.tasks.classifier import Classifier
from stages.tasks.data import TaskData
from stages.tasks.kind import Encoded
from stages.tasks.kinds.multi_label_classification.settings import MultiLabelClassification
from stages.tasks.loading import Model
from stages.tasks.text_kind import TextKind
from stages.tasks.texts import Tokenizer, some_tokens


class MultiLabelClassificationKind(TextKind, Classifier[Tokenizer]):
    """Classifiers of texts whose outputs are a logit per label, each for itself."""

    settings = MultiLabelClassification
    architecture = AutoModelForSequenceClassification
    problem = "multi_label_classification"

    def encode(self, processor: Tokenizer, frame: pd.DataFrame, task: TaskData, model: Model, seed: int) -> Encoded:
        """Token ids and masks of every example, and `labels`: 1.0 for those that it has, 0.0 for the others.

        Raises:
            InputError: the model cannot read them; see `stages.tasks.texts.some_tokens`.
        """
        found = some_tokens(processor, frame, task, model)
        labels = np.zeros((len(frame), len(task.labels)))
        for row, positions in zip(labels, frame["label"], strict=True):
            row[positions] = 1
        return found | {"labels": labels.tolist()}


KIND = MultiLabelClassificationKind()
