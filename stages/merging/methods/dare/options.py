"""Options of DARE."""

from typing import Literal

from pydantic import Field

from stages.merging.methods.task_arithmetic.options import TaskVectorOptions


class Dare(TaskVectorOptions):
    """Options of DARE (Yu et al. 2024): drop entries of the task vectors at random, rescale the others.

    density: probability with which an entry is kept; what is kept is divided by it.
    seed: of the draws, which belong to model and tensor.
    """

    method: Literal["dare"] = "dare"
    density: float = Field(default=0.5, gt=0, le=1)
    seed: int = Field(default=0, ge=0, lt=2**32)
