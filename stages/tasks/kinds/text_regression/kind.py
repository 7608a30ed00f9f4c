"""Regression of texts: one or several numbers per text (or pair of texts)."""

import pandas as pd

from stages.tasks.data import TaskData
from stages.tasks.kinds.text_regression.settings import TextRegression
from stages.tasks.text_classifier import TextClassifier


class TextRegressionKind(TextClassifier):
    """Models whose outputs are numbers; they are trained by the mean squared error."""

    settings = TextRegression
    problem = "regression"

    def wanted(self, labels: pd.Series, task: TaskData) -> list[list[float]]:
        """The example's numbers."""
        return [list(map(float, numbers)) for numbers in labels]


KIND = TextRegressionKind()
