"""One right choice per example: the softmax of the choices' scores, or of the vocabulary at each of its tokens."""

from stages.curvature.likelihoods import Categorical, TokenCategorical
from stages.tasks.data import TaskData


def likelihood(task: TaskData) -> Categorical | TokenCategorical:
    """Of scores [examples, choices], or of the right choice's tokens, summed: logits [examples, positions, tokens]."""
    return TokenCategorical() if task.card["likelihood"] == "token" else Categorical()
