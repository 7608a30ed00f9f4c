"""A tag for each word, summed over words: the softmax of the logits [examples, positions, labels]."""

from stages.curvature.likelihoods import TokenCategorical
from stages.tasks.data import TaskData


def likelihood(task: TaskData) -> TokenCategorical:
    """The same for all tasks of this kind."""
    return TokenCategorical()
