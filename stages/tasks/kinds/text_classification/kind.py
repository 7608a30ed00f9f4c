"""Text classification: one label per text (or pair of texts)."""

import pandas as pd

from stages.tasks.data import TaskData
from stages.tasks.kinds.text_classification.settings import TextClassification
from stages.tasks.text_classifier import TextClassifier


class TextClassificationKind(TextClassifier):
    """Classifiers of texts, whose outputs are logits of which a softmax is taken."""

    settings = TextClassification

    def wanted(self, labels: pd.Series, task: TaskData) -> list[int]:
        """The label's position."""
        return [int(position) for position in labels]


KIND = TextClassificationKind()
