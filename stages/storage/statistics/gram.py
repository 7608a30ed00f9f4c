"""RegMean's Gram matrix of every Linear weight: the A of K-FAC alone, which takes forward passes only."""

from stages.storage.statistic import StatisticKind

KIND = StatisticKind(
    name="gram",
    stem="gram",
    title="Gram matrices",
    work="Gram matrices",
    directory="gram",
    takes_gradients=False,
    parts={"input": "stages.curvature.accumulators:InputProducts"},
)
