"""K-FAC's factors A and G of every Linear weight."""

from stages.storage.statistic import StatisticKind

KIND = StatisticKind(
    name="kfac",
    stem="kfac",
    title="K-FAC factors",
    work="estimation of K-FAC factors",
    directory="kfac",
    takes_gradients=True,
    parts={
        "input": "stages.curvature.accumulators:InputProducts",
        "output": "stages.curvature.accumulators:GradientProducts",
    },
)
