"""Multi-label classification: any number of labels per text (or pair of texts)."""

import numpy as np
import pandas as pd

from stages.tasks.data import TaskData
from stages.tasks.kinds.multi_label_classification.settings import MultiLabelClassification
from stages.tasks.text_classifier import TextClassifier


class MultiLabelClassificationKind(TextClassifier):
    """Classifiers of texts whose outputs are a logit per label, each for itself."""

    settings = MultiLabelClassification
    problem = "multi_label_classification"

    def wanted(self, labels: pd.Series, task: TaskData) -> list[list[float]]:
        """1.0 for each label that the example has, 0.0 for the others."""
        found = np.zeros((len(labels), len(task.labels)))
        for row, positions in zip(found, labels, strict=True):
            row[positions] = 1
        return found.tolist()


KIND = MultiLabelClassificationKind()
