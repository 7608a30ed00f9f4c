"""A token at each of the decoder's positions, summed: the softmax of the logits [examples, positions, tokens]."""

from stages.curvature.likelihoods import TokenCategorical
from stages.tasks.data import TaskData


def likelihood(task: TaskData) -> TokenCategorical:
    """The same for all tasks of this kind."""
    return TokenCategorical()
