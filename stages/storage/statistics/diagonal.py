"""The diagonal of the Fisher."""

from stages.storage.statistic import StatisticKind

KIND = StatisticKind(
    name="diagonal",
    stem="fisher",
    title="Fisher",
    work="estimation of the Fisher",
    directory="fishers",
    takes_gradients=True,
)
