"""One label per image: the softmax of the logits [examples, labels]."""

from stages.curvature.likelihoods import Categorical

LIKELIHOOD = Categorical()
