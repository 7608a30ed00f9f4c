"""A token at each trained position, from those before it, summed: softmax of logits [examples, positions, tokens]."""

from stages.curvature.likelihoods import TokenCategorical
from stages.tasks.data import TaskData


def likelihood(task: TaskData) -> TokenCategorical:
    """The same for all tasks of this kind."""
    return TokenCategorical(shift=True)
