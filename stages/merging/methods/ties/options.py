"""Options of TIES."""

from typing import Literal

from pydantic import Field

from stages.merging.methods.task_arithmetic.options import TaskVectorOptions


class Ties(TaskVectorOptions):
    """Options of TIES (Yadav et al. 2023): trim, elect signs, merge what agrees.

    density: share of a task vector's entries that are kept: those of the largest magnitude.
    trim: that share of every tensor (as mergekit does), or of all of a model's tensors together (as the paper does).
    """

    method: Literal["ties"] = "ties"
    density: float = Field(default=0.2, gt=0, le=1)
    trim: Literal["tensor", "global"] = "tensor"
