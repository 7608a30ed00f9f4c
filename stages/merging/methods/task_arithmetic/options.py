"""Options of task arithmetic."""

from typing import ClassVar, Literal

from pydantic import Field

from stages.merging.options import MethodOptions


class TaskVectorOptions(MethodOptions):
    """What merges of task vectors (the model's weights minus the base's) have in common.

    scale: of the merged task vector. Where papers give a factor of the SUM of N task vectors, scale is N times that.
    """

    needs_base: ClassVar[bool] = True

    scale: float = Field(default=1.0, ge=0, allow_inf_nan=False)

    @property
    def keeps_single_model(self) -> bool:
        """At the task vectors' own length only."""
        return self.scale == 1


class TaskArithmetic(TaskVectorOptions):
    """Options of task arithmetic (Ilharco et al. 2023)."""

    method: Literal["task_arithmetic"] = "task_arithmetic"
