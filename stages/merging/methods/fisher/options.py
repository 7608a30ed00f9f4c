"""Options of the Fisher merge."""

from typing import ClassVar, Literal

from pydantic import Field

from stages.merging.options import MethodOptions


class FisherWeighted(MethodOptions):
    """What merges weighted by diagonal Fishers have in common.

    floor: the least value of a Fisher's entries, raw, before λ and the norm enter.
    favor_target: floor the target's Fisher only, so that a coordinate that no model cares about keeps its value.
    normalize: divide λ_i by ‖F_i‖₂ over all merged parameters, or not.
    """

    statistics: ClassVar[tuple[str, ...]] = ("diagonal",)

    floor: float = Field(default=1e-6, ge=0, allow_inf_nan=False)
    favor_target: bool = True
    normalize: Literal["l2", "none"] = "l2"


class Fisher(FisherWeighted):
    """Options of the Fisher merge (Matena & Raffel 2022, eq. 5 and their reference code)."""

    method: Literal["fisher"] = "fisher"
