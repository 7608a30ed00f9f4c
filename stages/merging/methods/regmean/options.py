"""Options of RegMean."""

from typing import ClassVar, Literal

from pydantic import Field

from stages.merging.options import MethodOptions


class Regmean(MethodOptions):
    """Options of RegMean (Jin et al. 2023): Linear weights by least squares on the models' own inputs.

    alpha: what the Gram matrices' off-diagonal entries are multiplied by.
    """

    statistics: ClassVar[tuple[str, ...]] = ("gram",)

    method: Literal["regmean"] = "regmean"
    alpha: float = Field(default=0.9, ge=0, le=1)
