"""A token at each hidden position, summed over positions: the softmax of the logits [examples, positions, tokens]."""

from stages.curvature.likelihoods import TokenCategorical
from stages.tasks.data import TaskData


def likelihood(task: TaskData) -> TokenCategorical:
    """The same for all tasks of this kind."""
    return TokenCategorical()
