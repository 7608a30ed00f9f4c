"""A token at each hidden position, summed over positions: the softmax of the logits [examples, positions, tokens]."""

from stages.curvature.likelihoods import TokenCategorical

LIKELIHOOD = TokenCategorical()
